//! What a model is, without its weights.

use std::collections::BTreeMap;

use deephold_kernels::{CacheDType, CacheSpec};
use deephold_weights::Checkpoint;
use deephold_weights::verify::ExpectedTensor;

use crate::family::Family;
use crate::tensors::ignored_tensor;

/// Sizes and remarks of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelInfo {
    /// As config.json names it, `DeepseekV3ForCausalLM`.
    pub architecture: String,
    /// V.
    pub vocab_size: usize,
    /// H.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// The longest context in tokens.
    pub max_model_len: usize,
    /// All parameters, without block scales.
    pub parameters_total: u64,
    /// Those that one token passes through.
    pub parameters_active: u64,
    /// Anonymous memory of the packed weights; 0 until loaded.
    pub packed_bytes: u64,
    /// What each layer keeps for each position.
    pub cache_layers: Vec<Vec<CacheSpec>>,
    /// Remarks for people, such as a multi-token-prediction layer that is not computed.
    pub notes: Vec<String>,
}

impl ModelInfo {
    pub(crate) fn new(
        architecture: &str,
        family: &dyn Family,
        tensors: &[ExpectedTensor],
        checkpoint: &Checkpoint,
    ) -> Self {
        let d = family.decoder();
        let counted = || tensors.iter().filter(|t| t.active_share.0 > 0);
        let share = |t: &ExpectedTensor| t.active_share.0 as f64 / t.active_share.1 as f64;
        // f64 is exact far beyond any published size.
        let active: f64 = counted().map(|t| t.elements() as f64 * share(t)).sum();
        Self {
            architecture: architecture.to_owned(),
            vocab_size: d.vocab_size,
            hidden_size: d.hidden_size,
            num_hidden_layers: d.num_hidden_layers,
            max_model_len: d.max_position_embeddings,
            parameters_total: counted().map(ExpectedTensor::elements).sum(),
            parameters_active: active.round() as u64,
            packed_bytes: 0,
            cache_layers: (0..d.num_hidden_layers).map(|l| family.layer_cache(l)).collect(),
            notes: notes(family, checkpoint),
        }
    }

    /// Bytes that one position takes in the cache, over all layers.
    pub fn cache_bytes_per_token(&self, dtype: CacheDType) -> u64 {
        let values: u64 = self.cache_layers.iter().flatten().map(|s| s.heads as u64 * s.width as u64).sum();
        values * dtype.bytes() as u64
    }
}

fn notes(family: &dyn Family, checkpoint: &Checkpoint) -> Vec<String> {
    let d = family.decoder();
    let mut notes = family.notes();
    let mut beyond = std::collections::BTreeSet::new();
    let mut buffers = 0usize;
    for t in checkpoint.tensors() {
        match ignored_tensor(&t.name, d.num_hidden_layers) {
            Some(why) if why.starts_with("multi-token") => {
                beyond.extend(t.name.split('.').nth(2).map(str::to_owned));
            }
            Some(_) => buffers += 1,
            None => {}
        }
    }
    let announced = d.num_nextn_predict_layers;
    if !beyond.is_empty() {
        notes
            .push(format!("{} multi-token-prediction layer(s) in the files, not computed yet", beyond.len()));
    } else if announced > 0 {
        notes.push(format!(
            "{announced} multi-token-prediction layer(s) announced, not in the files, not computed"
        ));
    }
    if buffers > 0 {
        notes.push(format!("{buffers} buffer(s) of older files ignored"));
    }
    notes
}

/// How much of a checkpoint is stored in one format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatShare {
    /// `BF16`, `F8_E4M3`, `Q4_K`, ...
    pub dtype: &'static str,
    /// Tensors.
    pub tensors: usize,
    /// Values.
    pub parameters: u64,
    /// Stored bytes.
    pub bytes: u64,
}

/// What `model inspect` shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// As config.json names it.
    pub architecture: String,
    /// `None` where this build cannot run it; `unsupported` says why.
    pub info: Option<ModelInfo>,
    /// By format, the largest first.
    pub formats: Vec<FormatShare>,
    /// Stored bytes of all tensors.
    pub weights_bytes: u64,
    /// What this build cannot do with it.
    pub unsupported: Vec<String>,
}

pub(crate) fn formats(checkpoint: &Checkpoint) -> Vec<FormatShare> {
    let mut by_name: BTreeMap<&'static str, FormatShare> = BTreeMap::new();
    for t in checkpoint.tensors() {
        let dtype = t.dtype.name();
        let share =
            by_name.entry(dtype).or_insert(FormatShare { dtype, tensors: 0, parameters: 0, bytes: 0 });
        let elements = t.shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64));
        share.tensors += 1;
        share.parameters = share.parameters.saturating_add(elements);
        share.bytes += usize::try_from(elements).ok().and_then(|n| t.dtype.bytes_for(n)).unwrap_or(0) as u64;
    }
    let mut formats: Vec<_> = by_name.into_values().collect();
    formats.sort_by_key(|f| std::cmp::Reverse(f.bytes));
    formats
}
