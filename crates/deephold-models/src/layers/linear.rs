//! A matrix product that hides how its weight is stored.

use deephold_kernels::{Activations, Ops, PackedMatrix, Tensor};

use crate::ModelError;
use crate::loader::Loader;

/// y = x W^T + b, W [N, K].
pub(crate) struct Linear {
    weight: PackedMatrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Loads `<name>.weight` `[n, k]` and, where `bias`, `<name>.bias` `[n]`.
    pub(crate) fn load(
        l: &mut Loader<'_>,
        name: &str,
        n: usize,
        k: usize,
        bias: bool,
    ) -> Result<Self, ModelError> {
        let weight = l.matrix(&format!("{name}.weight"), n, k)?;
        let bias = if bias { Some(l.vector(&format!("{name}.bias"), n)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// [T, K] -> [T, N]; products of one input share one `Activations`, so that it is quantised once.
    pub(crate) fn forward(&self, ops: &Ops, x: &Activations<'_>) -> Tensor {
        let [y] = ops.linears([self.parts()], x);
        y
    }

    /// Weight and bias, for several products of one input in one call.
    pub(crate) fn parts(&self) -> (&PackedMatrix, Option<&[f32]>) {
        (&self.weight, self.bias.as_deref())
    }
}
