//! The gated feed-forward block, SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x)).

use deephold_kernels::{Activations, Ops, Tensor};

use super::linear::Linear;
use crate::ModelError;
use crate::loader::Loader;

/// H -> I -> H.
pub(crate) struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    pub(crate) fn load(
        l: &mut Loader<'_>,
        name: &str,
        hidden: usize,
        intermediate: usize,
        bias: bool,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            gate_proj: Linear::load(l, &format!("{name}.gate_proj"), intermediate, hidden, bias)?,
            up_proj: Linear::load(l, &format!("{name}.up_proj"), intermediate, hidden, bias)?,
            down_proj: Linear::load(l, &format!("{name}.down_proj"), hidden, intermediate, bias)?,
        })
    }

    /// [T, H] -> [T, H]
    pub(crate) fn forward(&self, ops: &Ops, x: &Activations<'_>) -> Tensor {
        let hidden = ops.gated(self.gate_proj.parts(), self.up_proj.parts(), x); // [T, I]
        self.down_proj.forward(ops, &Activations::new(&hidden))
    }
}
