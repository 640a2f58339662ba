//! What a model family is: a validated configuration that knows its tensors and loads its layers.

use deephold_kernels::{AttentionContext, CacheSpec, Tensor};

use crate::ModelError;
use crate::config::DecoderConfig;
use crate::layers::mla::MlaConfig;
use crate::loader::Loader;
use crate::tensors::TensorList;

/// A validated configuration of one family.
pub(crate) trait Family: Send + Sync {
    /// What every decoder has.
    fn decoder(&self) -> &DecoderConfig;
    /// The tensors of one layer.
    fn layer_tensors(&self, list: &mut TensorList<'_>, layer: usize);
    /// What one layer keeps for each position.
    fn layer_cache(&self, layer: usize) -> Vec<CacheSpec>;
    /// Loads one layer.
    fn load_layer(&self, l: &mut Loader<'_>, layer: usize) -> Result<Box<dyn Layer>, ModelError>;
    /// Latent attention, whose `kv_b_proj` is packed head by head.
    fn latent_attention(&self) -> Option<&MlaConfig> {
        None
    }
    /// What a reader of `model inspect` should know.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// One layer on the residual stream.
pub(crate) trait Layer: Send + Sync {
    /// x [T, H] in place.
    fn forward(&self, ctx: &AttentionContext<'_>, x: &mut Tensor);
}
