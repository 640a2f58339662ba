//! DeepSeek-family models, one file a family, each reading like its paper; and BERT, for vectors of texts.
//!
//! The engine calls [`Model::hidden`] and [`Model::head`] for each step; the binary loads, describes and measures. It never
//! schedules, never samples, and owns no cache.
//!
//! A family is a validated configuration, a list of tensors with shapes, and layers whose forward pass is written in
//! numbered steps. All arithmetic goes through `deephold-kernels`; no file here knows a block table, a thread count or a
//! weight format. To add a family: one file, one line in `FAMILIES`, one golden folder.
//!
//! Shapes in comments: T tokens, H hidden, Nq query heads, Nkv key heads, D head columns, R latent rank, I intermediate,
//! E experts, V vocabulary.

mod bert;
mod config;
mod decoder;
mod error;
mod family;
mod info;
mod layers;
mod loader;
mod packed;
mod tensors;

mod deepseek_v2;
mod deepseek_v3;
mod deepseek_v32;
mod llama;
mod qwen2;
mod qwen3;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use deephold_base::TokenId;
use deephold_kernels::{AttentionContext, CacheSpec, Ops, Tensor};
use deephold_weights::Checkpoint;
use deephold_weights::fp8::Fp8Config;

pub use deephold_weights::verify::ExpectedTensor;
pub use error::ModelError;
pub use info::{Description, FormatShare, ModelInfo};
pub use loader::{LoadOptions, Progress};
pub use tensors::ignored_tensor;

use config::Section;
use decoder::Decoder;
use family::Family;
use loader::Loader;
use tensors::TensorList;

/// A loaded model: token ids in, logits out.
pub trait Model: Send + Sync {
    /// Sizes and remarks.
    fn info(&self) -> &ModelInfo;

    /// What each layer keeps for each position, one entry a kind of cache.
    fn cache_layers(&self) -> Vec<Vec<CacheSpec>>;

    /// One pass over the batch's T rows; the residual stream behind the final norm, [rows.len(), H], of the rows asked
    /// for, in that order.
    ///
    /// # Errors
    /// [`ModelError::Token`] for an id beyond the vocabulary, [`ModelError::Row`] for a row beyond the batch.
    fn hidden(
        &self,
        ctx: &AttentionContext<'_>,
        tokens: &[TokenId],
        rows: &[usize],
    ) -> Result<Tensor, ModelError>;

    /// Logits [rows, V] of what [`Self::hidden`] gave.
    fn head(&self, ops: &Ops, hidden: &Tensor) -> Tensor;

    /// Both in one: logits [logits_rows.len(), V].
    ///
    /// # Errors
    /// As [`Self::hidden`].
    fn forward(
        &self,
        ctx: &AttentionContext<'_>,
        tokens: &[TokenId],
        logits_rows: &[usize],
    ) -> Result<Tensor, ModelError> {
        Ok(self.head(ctx.ops(), &self.hidden(ctx, tokens, logits_rows)?))
    }
}

/// A loaded encoder: token ids of whole texts in, one vector a text out.
pub trait Encoder: Send + Sync {
    /// Sizes and remarks.
    fn info(&self) -> &ModelInfo;

    /// A vector \[H\] for each text; a text's vector does not depend on the texts beside it.
    ///
    /// # Errors
    /// [`ModelError::Token`] for an id beyond the vocabulary, [`ModelError::TextLength`] for a text that is empty or too long.
    fn encode(&self, ops: &Ops, texts: &[&[TokenId]]) -> Result<Vec<Vec<f32>>, ModelError>;
}

/// `architectures[0]`, `model_type`, and how a configuration is read.
struct Entry(&'static str, &'static str, fn(&Section<'_>) -> Result<Box<dyn Family>, ModelError>);

const FAMILIES: &[Entry] = &[
    Entry("LlamaForCausalLM", "llama", llama::parse),
    Entry("Qwen2ForCausalLM", "qwen2", qwen2::parse),
    Entry("Qwen3ForCausalLM", "qwen3", qwen3::parse),
    Entry("DeepseekV2ForCausalLM", "deepseek_v2", deepseek_v2::parse),
    Entry("DeepseekV3ForCausalLM", "deepseek_v3", deepseek_v3::parse),
    Entry("DeepseekV32ForCausalLM", "deepseek_v32", deepseek_v32::parse),
];

/// The architectures that [`load`] knows, as config.json names them.
pub fn supported_architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|e| e.0).chain(bert::ARCHITECTURES)
}

/// Whether a checkpoint is an encoder, for [`load_encoder`], rather than a model that writes text, for [`load`].
///
/// # Errors
/// As [`load`], for the configuration.
pub fn is_encoder(checkpoint: &Checkpoint) -> Result<bool, ModelError> {
    Ok(matches!(open(checkpoint)?, Opened::Encoder { .. }))
}

/// Loads an encoder; see [`load`].
///
/// # Errors
/// As [`load`]; [`ModelError::NoEncoder`].
pub fn load_encoder(
    checkpoint: &Arc<Checkpoint>,
    ops: &Ops,
    options: &LoadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Box<dyn Encoder>, ModelError> {
    let opened = open(checkpoint)?;
    let list = opened.list(checkpoint);
    let Opened::Encoder { architecture, config } = &opened else {
        return Err(ModelError::NoEncoder(opened.architecture().to_owned()));
    };
    list.check()?;
    let info = config.info(architecture, &list.items);
    let total_bytes = stored_bytes(checkpoint, list.items.iter().filter(|t| !bert::stays_mapped(&t.name)));
    let mut loader = Loader::new(checkpoint, ops, options, total_bytes, progress);
    Ok(Box::new(bert::Bert::load(checkpoint, config, &mut loader, info)?))
}

/// Loads a model; tensors are packed one at a time straight from the mapped files. The embedding table stays mapped,
/// so the model keeps the checkpoint alive.
///
/// # Errors
/// A configuration or tensor that does not fit, named; nothing is packed before every shape is checked.
pub fn load(
    checkpoint: &Arc<Checkpoint>,
    ops: &Ops,
    options: &LoadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Box<dyn Model>, ModelError> {
    let opened = open(checkpoint)?;
    let list = opened.list(checkpoint);
    let Opened::Decoder { architecture, family, .. } = &opened else {
        return Err(ModelError::Encoder(opened.architecture().to_owned()));
    };
    list.check()?;
    let info = ModelInfo::new(architecture, &**family, &list.items, checkpoint);
    // Scales travel with their matrices, and the embedding is packed only where it is the head as well.
    let stays = |t: &&ExpectedTensor| {
        t.active_share.0 == 0 || (t.name == decoder::EMBEDDING && !family.decoder().tie_word_embeddings)
    };
    let total_bytes = stored_bytes(checkpoint, list.items.iter().filter(|t| !stays(t)));
    let mut loader = Loader::new(checkpoint, ops, options, total_bytes, progress);
    Ok(Box::new(Decoder::load(checkpoint, &**family, &mut loader, info)?))
}

/// How many bytes of the files loading will go through.
fn stored_bytes<'t>(checkpoint: &Checkpoint, tensors: impl Iterator<Item = &'t ExpectedTensor>) -> u64 {
    tensors.filter_map(|t| checkpoint.tensor(&t.name)).map(|view| view.bytes().len() as u64).sum()
}

/// Bytes of memory that the weights take once loaded: matrices as the kernels pack them, vectors in float32. From headers
/// alone, so that a machine can say no before it loads. The embedding table stays in the mapped file and counts only where
/// it is the head as well.
///
/// # Errors
/// As [`load`], short of reading weights.
pub fn packed_bytes(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<u64, ModelError> {
    let opened = open(checkpoint)?;
    let list = opened.list(checkpoint);
    list.check()?;
    Ok(match &opened {
        Opened::Decoder { family, fp8_block, .. } => {
            packed::bytes(checkpoint, &**family, &list.items, *fp8_block, options)
        }
        Opened::Encoder { .. } => packed::encoder_bytes(checkpoint, &list.items, options),
    })
}

/// What a checkpoint is, from its configuration and headers alone.
///
/// # Errors
/// A configuration that is not an object or names no architecture at all.
pub fn describe(checkpoint: &Checkpoint) -> Result<Description, ModelError> {
    let formats = info::formats(checkpoint);
    let weights_bytes = formats.iter().map(|f| f.bytes).sum();
    let architecture = architecture(&Section::root(checkpoint.config())?)?;
    let mut out = Description { architecture, info: None, formats, weights_bytes, unsupported: Vec::new() };
    match open(checkpoint) {
        Ok(opened) => {
            let list = opened.list(checkpoint);
            if let Err(error) = list.check() {
                out.unsupported.push(error.to_string());
            }
            out.info = Some(match &opened {
                Opened::Decoder { architecture, family, .. } => {
                    ModelInfo::new(architecture, &**family, &list.items, checkpoint)
                }
                Opened::Encoder { architecture, config } => config.info(architecture, &list.items),
            });
        }
        Err(error) => out.unsupported.push(error.to_string()),
    }
    Ok(out)
}

/// Every tensor that the configuration calls for, with its shape.
///
/// # Errors
/// As [`load`], for the configuration.
pub fn expected_tensors(checkpoint: &Checkpoint) -> Result<Vec<ExpectedTensor>, ModelError> {
    Ok(open(checkpoint)?.list(checkpoint).items)
}

/// What a configuration describes.
enum Opened {
    /// A model that writes text.
    Decoder { architecture: String, family: Box<dyn Family>, fp8_block: Option<(usize, usize)> },
    /// A model that gives vectors.
    Encoder { architecture: String, config: bert::Config },
}

impl Opened {
    fn architecture(&self) -> &str {
        match self {
            Self::Decoder { architecture, .. } | Self::Encoder { architecture, .. } => architecture,
        }
    }

    fn list<'a>(&self, checkpoint: &'a Checkpoint) -> TensorList<'a> {
        match self {
            Self::Decoder { family, fp8_block, .. } => {
                let mut list = TensorList::new(checkpoint, *fp8_block);
                decoder::tensors(&**family, &mut list);
                list
            }
            Self::Encoder { config, .. } => {
                let mut list = TensorList::new(checkpoint, None);
                config.tensors(&mut list);
                list
            }
        }
    }
}

fn open(checkpoint: &Checkpoint) -> Result<Opened, ModelError> {
    read(checkpoint).map_err(|e| e.placed(checkpoint))
}

fn read(checkpoint: &Checkpoint) -> Result<Opened, ModelError> {
    let c = Section::root(checkpoint.config())?;
    let architecture = architecture(&c)?;
    if bert::ARCHITECTURES.contains(&architecture.as_str()) {
        let config = bert::Config::parse(&c, checkpoint)?;
        return Ok(Opened::Encoder { architecture, config });
    }
    let family = parse_family(&c, &architecture)?;
    let fp8_block = Fp8Config::parse(checkpoint.config())?.map(|c| c.block);
    Ok(Opened::Decoder { architecture, family, fp8_block })
}

/// `architectures[0]`, else `model_type`.
fn architecture(c: &Section<'_>) -> Result<String, ModelError> {
    if let Some(first) = c.opt_texts("architectures")?.and_then(|names| names.first().copied()) {
        return Ok(first.to_owned());
    }
    match c.opt_text("model_type")? {
        Some("bert") => Ok(bert::ARCHITECTURES[0].to_owned()),
        Some(kind) => Ok(FAMILIES.iter().find(|e| e.1 == kind).map_or(kind, |e| e.0).to_owned()),
        None => Err(c.bad("architectures", "is missing, and so is `model_type`")),
    }
}

fn parse_family(c: &Section<'_>, architecture: &str) -> Result<Box<dyn Family>, ModelError> {
    let model_type = c.opt_text("model_type")?;
    let entry = FAMILIES
        .iter()
        .find(|e| e.0 == architecture)
        .or_else(|| FAMILIES.iter().find(|e| Some(e.1) == model_type));
    if let Some(entry) = entry {
        return (entry.2)(c);
    }
    let is_v4 = architecture == "DeepseekV4ForCausalLM" || model_type == Some("deepseek_v4");
    let hint = if is_v4 { "; DeepSeek-V4 is recognised and comes next" } else { "" };
    Err(ModelError::UnknownArchitecture {
        found: architecture.chars().take(80).collect(),
        supported: supported_architectures().collect::<Vec<_>>().join(", "),
        hint: hint.to_owned(),
    })
}
