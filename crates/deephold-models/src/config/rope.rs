//! Rotary position embedding: the frequencies of each published scaling.
//!
//! Sources: Su et al. 2021 (default); Llama 3.1's frequency bands (`llama3`); Peng et al. 2023, "YaRN" (`yarn`), with
//! DeepSeek's `mscale` and `mscale_all_dim`. Reference: transformers 5.23, `modeling_rope_utils`.
//! Refused: `dynamic`, `longrope` and partial rotation, which no supported family uses.

use std::f64::consts::PI;

use deephold_kernels::RopeTable;
use serde_json::Value;

use crate::ModelError;
use crate::config::section::{POSITIONS_MAX, Section};

/// Which frequencies are slowed, and how.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RopeScaling {
    /// None.
    Default,
    /// All, by `factor`.
    Linear { factor: f64 },
    /// The slow ones by `factor`, the fast ones not, a ramp between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original: f64 },
    /// A ramp over dimensions between two counts of rotations.
    Yarn(Yarn),
    /// Each by a divisor of its own, as GGUF files carry them in `rope_freqs.weight`.
    Factors(Vec<f64>),
}

/// YaRN's numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Yarn {
    factor: f64,
    original: f64,
    beta_fast: f64,
    beta_slow: f64,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: bool,
}

/// Rotation of `dim` columns.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeConfig {
    pub(crate) dim: usize,
    pub(crate) theta: f64,
    pub(crate) scaling: RopeScaling,
}

impl RopeConfig {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling` (with `rope_type` or `type`).
    pub(crate) fn parse(c: &Section<'_>, dim: usize, max_positions: usize) -> Result<Self, ModelError> {
        let newer = c.object("rope_parameters")?;
        let older = c.object("rope_scaling")?;
        let theta = match newer.map(|r| r.opt_float("rope_theta", 1.0, 1e15)).transpose()?.flatten() {
            Some(theta) => theta,
            None => c.opt_float("rope_theta", 1.0, 1e15)?.unwrap_or(10_000.0),
        };
        let section = newer.or(older);
        if let Some(r) =
            section.unwrap_or(*c).opt_float("partial_rotary_factor", 0.0, 1.0)?.filter(|r| *r != 1.0)
        {
            return Err(c.unsupported("partial_rotary_factor", &r.to_string(), "the whole head is rotated"));
        }
        let scaling = match section {
            Some(r) => RopeScaling::parse(&r, max_positions)?,
            None => RopeScaling::Default,
        };
        if let RopeScaling::Factors(factors) = &scaling
            && factors.len() != dim / 2
        {
            return Err(
                c.bad("rope_scaling", format!("has {} factors for {} frequencies", factors.len(), dim / 2))
            );
        }
        if matches!(scaling, RopeScaling::Yarn(_)) && theta <= 1.0 {
            return Err(c.bad("rope_theta", "must be above 1 for yarn"));
        }
        Ok(Self { dim, theta, scaling })
    }

    /// [dim / 2] radians a position.
    pub(crate) fn inv_freq(&self) -> Vec<f32> {
        let dim = self.dim as f64;
        let plain = (0..self.dim / 2).map(|i| self.theta.powf(-(2.0 * i as f64) / dim));
        match &self.scaling {
            RopeScaling::Default => plain.map(|f| f as f32).collect(),
            RopeScaling::Linear { factor } => plain.map(|f| (f / factor) as f32).collect(),
            RopeScaling::Factors(factors) => plain.zip(factors).map(|(f, by)| (f / by) as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => plain
                .map(|f| {
                    let rotations = original * f / (2.0 * PI);
                    let smooth = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    ((1.0 - smooth) * f / factor + smooth * f) as f32
                })
                .collect(),
            RopeScaling::Yarn(y) => {
                let (low, high) = y.ramp(self.dim, self.theta);
                plain
                    .enumerate()
                    .map(|(i, f)| {
                        let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        (f / y.factor * slowed + f * (1.0 - slowed)) as f32
                    })
                    .collect()
            }
        }
    }

    /// What cos and sin are multiplied by.
    pub(crate) fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn(y) => y.attention_factor(),
            _ => 1.0,
        }
    }

    /// What DeepSeek's softmax scale is multiplied by: mscale(factor, mscale_all_dim)^2.
    pub(crate) fn softmax_scale_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn(y) => match y.mscale_all_dim {
                Some(all) if all != 0.0 => mscale(y.factor, all).powi(2),
                _ => 1.0,
            },
            _ => 1.0,
        }
    }

    /// The table that the kernels turn with.
    pub(crate) fn table(&self) -> RopeTable {
        RopeTable::new(&self.inv_freq(), self.attention_factor() as f32)
    }
}

impl RopeScaling {
    fn parse(r: &Section<'_>, max_positions: usize) -> Result<Self, ModelError> {
        let kind = match r.opt_text("rope_type")? {
            Some(kind) => kind,
            None => r.opt_text("type")?.unwrap_or("default"),
        };
        let original = || -> Result<f64, ModelError> {
            let original = r.opt_size("original_max_position_embeddings", POSITIONS_MAX)?;
            Ok(original.unwrap_or(max_positions) as f64)
        };
        match kind {
            "default" | "none" => Ok(Self::Default),
            "linear" => Ok(Self::Linear { factor: r.float("factor", 1.0, 1e6)? }),
            "llama3" => {
                let low_freq_factor = r.float("low_freq_factor", 1e-6, 1e6)?;
                let high_freq_factor = r.float("high_freq_factor", 1e-6, 1e6)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(r.bad("high_freq_factor", "must be above low_freq_factor"));
                }
                let factor = r.float("factor", 1.0, 1e6)?;
                Ok(Self::Llama3 { factor, low_freq_factor, high_freq_factor, original: original()? })
            }
            "yarn" => {
                let original = original()?;
                let factor = match r.opt_float("factor", 1.0, 1e6)? {
                    Some(factor) => factor,
                    None => (max_positions as f64 / original).max(1.0),
                };
                let beta = |key, default| -> Result<f64, ModelError> {
                    // 0 stands for "not given" in the reference.
                    Ok(r.opt_float(key, 0.0, 1e6)?.filter(|b| *b != 0.0).unwrap_or(default))
                };
                Ok(Self::Yarn(Yarn {
                    factor,
                    original,
                    beta_fast: beta("beta_fast", 32.0)?,
                    beta_slow: beta("beta_slow", 1.0)?,
                    attention_factor: r.opt_float("attention_factor", 1e-6, 1e6)?,
                    mscale: r.opt_float("mscale", 0.0, 1e6)?,
                    mscale_all_dim: r.opt_float("mscale_all_dim", 0.0, 1e6)?,
                    truncate: r.flag("truncate", true)?,
                }))
            }
            "factors" => {
                let list = r.value("factors").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let factors: Vec<f64> =
                    list.iter().filter_map(Value::as_f64).filter(|f| f.is_finite() && *f > 0.0).collect();
                if factors.is_empty() || factors.len() != list.len() {
                    return Err(r.bad("factors", "must be a list of positive numbers"));
                }
                Ok(Self::Factors(factors))
            }
            other => Err(r.unsupported("rope_type", other, "supported: default, linear, llama3, yarn")),
        }
    }
}

impl Yarn {
    /// The dimensions between which the ramp lies.
    fn ramp(&self, dim: usize, theta: f64) -> (f64, f64) {
        let dims = dim as f64;
        let at = |rotations: f64| dims * (self.original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (at(self.beta_fast), at(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dims - 1.0));
        // The reference's own guard against a ramp of no width.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }

    fn attention_factor(&self) -> f64 {
        if let Some(given) = self.attention_factor {
            return given;
        }
        match (self.mscale, self.mscale_all_dim) {
            (Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
                mscale(self.factor, m) / mscale(self.factor, all)
            }
            _ => mscale(self.factor, 1.0),
        }
    }
}

fn mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}
