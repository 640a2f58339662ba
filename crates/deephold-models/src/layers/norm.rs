//! Normalisations: RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016).

use deephold_kernels::{Ops, Tensor};

use crate::ModelError;
use crate::loader::Loader;

/// x / sqrt(mean(x^2) + eps) * weight.
pub(crate) struct RmsNorm {
    /// [D]
    pub(crate) weight: Vec<f32>,
    pub(crate) eps: f32,
}

impl RmsNorm {
    pub(crate) fn load(l: &mut Loader<'_>, name: &str, dim: usize, eps: f32) -> Result<Self, ModelError> {
        Ok(Self { weight: l.vector(&format!("{name}.weight"), dim)?, eps })
    }

    /// [T, D] -> [T, D]
    pub(crate) fn forward(&self, ops: &Ops, x: &Tensor) -> Tensor {
        ops.rms_norm(x, &self.weight, self.eps)
    }

    /// In place on `groups` neighbouring slices of D columns from `col0` on.
    pub(crate) fn forward_groups(&self, ops: &Ops, x: &mut Tensor, col0: usize, groups: usize) {
        ops.rms_norm_groups(x, col0, groups, &self.weight, self.eps);
    }
}

/// (x - mean) / sqrt(var + eps) * weight + bias.
pub(crate) struct LayerNorm {
    /// [D]
    weight: Vec<f32>,
    /// [D]
    bias: Vec<f32>,
    eps: f32,
}

impl LayerNorm {
    pub(crate) fn load(l: &mut Loader<'_>, name: &str, dim: usize, eps: f32) -> Result<Self, ModelError> {
        Ok(Self {
            weight: l.vector(&format!("{name}.weight"), dim)?,
            bias: l.vector(&format!("{name}.bias"), dim)?,
            eps,
        })
    }

    /// [T, D] -> [T, D]
    pub(crate) fn forward(&self, ops: &Ops, x: &Tensor) -> Tensor {
        ops.layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
