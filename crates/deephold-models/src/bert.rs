//! BERT as an encoder of texts (Devlin et al. 2018; Reimers and Gurevych 2019): every token sees the whole text, and the last
//! layer's states become one vector, their mean or the first of them.
//!
//! Reference: transformers 5.24, `BertModel`, and sentence-transformers' pooling. Norms stand behind the residual sums. Refused:
//! other activations than the exact GELU, relative positions, heads that classify.

use std::ops::Range;
use std::sync::Arc;

use deephold_base::TokenId;
use deephold_kernels::{Activations, EmbeddingTable, Ops, Tensor};
use deephold_quant::DType;
use deephold_weights::Checkpoint;
use deephold_weights::verify::ExpectedTensor;
use serde_json::Value;

use crate::config::{DIM_MAX, LAYERS_MAX, POSITIONS_MAX, Section, VOCAB_MAX};
use crate::info::ModelInfo;
use crate::layers::linear::Linear;
use crate::layers::norm::LayerNorm;
use crate::loader::Loader;
use crate::tensors::TensorList;
use crate::{Encoder, ModelError};

/// As config.json names them.
pub(crate) const ARCHITECTURES: [&str; 2] = ["BertModel", "BertForMaskedLM"];

const WORDS: &str = "embeddings.word_embeddings.weight";
const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TYPES: &str = "embeddings.token_type_embeddings.weight";

/// Tables whose rows are looked up in the mapped file.
pub(crate) fn stays_mapped(name: &str) -> bool {
    [WORDS, POSITIONS, TYPES].iter().any(|table| name.ends_with(table))
}

/// How states become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pooling {
    /// Of the first token, `[CLS]`.
    First,
    Mean,
}

/// config.json and 1_Pooling/config.json, checked.
pub(crate) struct Config {
    /// Before every name: `bert.` where the file holds a model for masked words.
    prefix: &'static str,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    pooling: Pooling,
}

impl Config {
    pub(crate) fn parse(c: &Section<'_>, checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        c.only_text("hidden_act", &["gelu"], "BERT is built with the exact GELU")?;
        c.only_text("position_embedding_type", &["absolute"], "only learned positions are built")?;
        let hidden_size = c.size("hidden_size", DIM_MAX)?;
        let heads = c.size("num_attention_heads", 1 << 12)?;
        if !hidden_size.is_multiple_of(heads) {
            return Err(c.bad("num_attention_heads", format!("= {heads} does not divide hidden_size")));
        }
        let prefixed = checkpoint.tensor(&format!("bert.{WORDS}")).is_some();
        Ok(Self {
            prefix: if prefixed { "bert." } else { "" },
            hidden_size,
            intermediate_size: c.size("intermediate_size", DIM_MAX)?,
            num_hidden_layers: c.size("num_hidden_layers", LAYERS_MAX)?,
            num_attention_heads: heads,
            vocab_size: c.size("vocab_size", VOCAB_MAX)?,
            max_position_embeddings: c.size("max_position_embeddings", POSITIONS_MAX)?,
            type_vocab_size: c.opt_size("type_vocab_size", 1 << 10)?.unwrap_or(2),
            layer_norm_eps: c.opt_float("layer_norm_eps", 1e-20, 1.0)?.unwrap_or(1e-12) as f32,
            pooling: pooling(checkpoint.pooling_config())?,
        })
    }

    fn layer(&self, layer: usize) -> String {
        format!("{}encoder.layer.{layer}", self.prefix)
    }

    pub(crate) fn tensors(&self, list: &mut TensorList<'_>) {
        let (h, i, p) = (self.hidden_size, self.intermediate_size, self.prefix);
        list.tensor(&format!("{p}{WORDS}"), &[self.vocab_size, h]);
        list.tensor(&format!("{p}{POSITIONS}"), &[self.max_position_embeddings, h]);
        list.tensor(&format!("{p}{TYPES}"), &[self.type_vocab_size, h]);
        let norm = |list: &mut TensorList<'_>, name: &str| {
            list.vector(&format!("{name}.weight"), h);
            list.vector(&format!("{name}.bias"), h);
        };
        norm(list, &format!("{p}embeddings.LayerNorm"));
        for layer in 0..self.num_hidden_layers {
            let name = self.layer(layer);
            for projection in ["query", "key", "value"] {
                list.linear(&format!("{name}.attention.self.{projection}"), h, h, true);
            }
            list.linear(&format!("{name}.attention.output.dense"), h, h, true);
            norm(list, &format!("{name}.attention.output.LayerNorm"));
            list.linear(&format!("{name}.intermediate.dense"), i, h, true);
            list.linear(&format!("{name}.output.dense"), h, i, true);
            norm(list, &format!("{name}.output.LayerNorm"));
        }
    }

    pub(crate) fn info(&self, architecture: &str, tensors: &[ExpectedTensor]) -> ModelInfo {
        let parameters = tensors.iter().map(ExpectedTensor::elements).sum();
        let pooled = match self.pooling {
            Pooling::First => "the first token's state",
            Pooling::Mean => "the mean of all states",
        };
        ModelInfo {
            architecture: architecture.to_owned(),
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            max_model_len: self.max_position_embeddings,
            parameters_total: parameters,
            parameters_active: parameters,
            notes: vec![format!("an encoder: it gives vectors ({pooled}), not text")],
            ..ModelInfo::default()
        }
    }
}

/// The mean where nothing is said, as sentence-transformers does.
fn pooling(config: Option<&Value>) -> Result<Pooling, ModelError> {
    let on = |config: &Value, key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    let Some(config) = config else { return Ok(Pooling::Mean) };
    let modes: Vec<&String> = config.as_object().map_or_else(Vec::new, |map| {
        map.keys().filter(|k| k.starts_with("pooling_mode_") && on(config, k)).collect()
    });
    match modes.as_slice() {
        [mode] if *mode == "pooling_mode_mean_tokens" => Ok(Pooling::Mean),
        [mode] if *mode == "pooling_mode_cls_token" => Ok(Pooling::First),
        other => Err(ModelError::UnsupportedConfig {
            file: "1_Pooling/config.json",
            key: "pooling_mode".into(),
            value: format!("{other:?}").chars().take(120).collect(),
            hint: "one of pooling_mode_mean_tokens and pooling_mode_cls_token is built".into(),
        }),
    }
}

/// A loaded encoder; its tables stay in the mapped file.
pub(crate) struct Bert {
    checkpoint: Arc<Checkpoint>,
    tables: [String; 3],
    norm: LayerNorm,
    layers: Vec<EncoderLayer>,
    pooling: Pooling,
    info: ModelInfo,
}

struct EncoderLayer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    heads: usize,
}

impl EncoderLayer {
    fn load(l: &mut Loader<'_>, c: &Config, name: &str) -> Result<Self, ModelError> {
        let (h, i, eps) = (c.hidden_size, c.intermediate_size, c.layer_norm_eps);
        let mut linear =
            |part: &str, n: usize, k: usize| Linear::load(l, &format!("{name}.{part}"), n, k, true);
        let query = linear("attention.self.query", h, h)?;
        let key = linear("attention.self.key", h, h)?;
        let value = linear("attention.self.value", h, h)?;
        let attention_output = linear("attention.output.dense", h, h)?;
        let intermediate = linear("intermediate.dense", i, h)?;
        let output = linear("output.dense", h, i)?;
        let attention_norm = LayerNorm::load(l, &format!("{name}.attention.output.LayerNorm"), h, eps)?;
        let output_norm = LayerNorm::load(l, &format!("{name}.output.LayerNorm"), h, eps)?;
        Ok(Self {
            query,
            key,
            value,
            attention_output,
            attention_norm,
            intermediate,
            output,
            output_norm,
            heads: c.num_attention_heads,
        })
    }

    /// x [T, H] -> [T, H]
    fn forward(&self, ops: &Ops, texts: &[Range<usize>], x: &Tensor) -> Tensor {
        // 1. x = norm(x + attention(x))
        let input = Activations::new(x);
        let [q, k, v] = [&self.query, &self.key, &self.value].map(|p| p.forward(ops, &input)); // [T, H]
        let scale = 1.0 / ((x.cols() / self.heads) as f32).sqrt();
        let attended = ops.attend_whole([&q, &k, &v], texts, self.heads, scale);
        let mut sum = self.attention_output.forward(ops, &Activations::new(&attended));
        ops.add(&mut sum, x);
        let x = self.attention_norm.forward(ops, &sum);
        // 2. x = norm(x + output(gelu(intermediate(x))))
        let mut inner = self.intermediate.forward(ops, &Activations::new(&x)); // [T, I]
        ops.gelu(&mut inner);
        let mut sum = self.output.forward(ops, &Activations::new(&inner));
        ops.add(&mut sum, &x);
        self.output_norm.forward(ops, &sum)
    }
}

impl Bert {
    pub(crate) fn load(
        checkpoint: &Arc<Checkpoint>,
        c: &Config,
        l: &mut Loader<'_>,
        mut info: ModelInfo,
    ) -> Result<Self, ModelError> {
        let tables = [WORDS, POSITIONS, TYPES].map(|name| format!("{}{name}", c.prefix));
        for name in &tables {
            let dtype = checkpoint.tensor(name).map(|view| view.info().dtype);
            if let Some(dtype) = dtype.filter(|d| !matches!(d, DType::F32 | DType::F16 | DType::BF16)) {
                let hint = "a table of BERT is F32, F16 or BF16".into();
                return Err(ModelError::Format { name: name.clone(), dtype: dtype.name(), hint });
            }
        }
        let norm = LayerNorm::load(
            l,
            &format!("{}embeddings.LayerNorm", c.prefix),
            c.hidden_size,
            c.layer_norm_eps,
        )?;
        let layers = (0..c.num_hidden_layers).map(|i| EncoderLayer::load(l, c, &c.layer(i)));
        let layers = layers.collect::<Result<_, _>>()?;
        info.packed_bytes = l.packed_bytes;
        Ok(Self { checkpoint: Arc::clone(checkpoint), tables, norm, layers, pooling: c.pooling, info })
    }

    /// Rows of a table, [rows.len(), H].
    fn rows(&self, ops: &Ops, table: usize, rows: &[TokenId]) -> Result<Tensor, ModelError> {
        let name = &self.tables[table];
        let missing = || ModelError::MissingTensor { name: name.clone(), shape: Vec::new() };
        let view = self.checkpoint.tensor(name).ok_or_else(missing)?;
        let [count, cols] = view.info().shape[..] else { return Err(missing()) };
        Ok(ops.embed(
            rows,
            &EmbeddingTable { dtype: view.info().dtype, rows: count, cols, bytes: view.bytes() },
        ))
    }
}

impl Encoder for Bert {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn encode(&self, ops: &Ops, texts: &[&[TokenId]]) -> Result<Vec<Vec<f32>>, ModelError> {
        let (limit, vocab_size) = (self.info.max_model_len, self.info.vocab_size);
        for text in texts {
            if text.is_empty() || text.len() > limit {
                return Err(ModelError::TextLength { tokens: text.len(), limit });
            }
            if let Some(token) = text.iter().find(|t| **t as usize >= vocab_size) {
                return Err(ModelError::Token { token: *token, vocab_size });
            }
        }
        // 1. Words, positions and the first type, normed.
        let tokens: Vec<TokenId> = texts.concat();
        let positions: Vec<TokenId> = texts.iter().flat_map(|text| 0..text.len() as TokenId).collect();
        let mut x = self.rows(ops, 0, &tokens)?;
        ops.add(&mut x, &self.rows(ops, 1, &positions)?);
        ops.add(&mut x, &self.rows(ops, 2, &vec![0; tokens.len()])?);
        let mut x = self.norm.forward(ops, &x);
        // 2. Layers.
        let mut at = 0;
        let ranges: Vec<Range<usize>> = texts
            .iter()
            .map(|text| {
                let start = at;
                at += text.len();
                start..at
            })
            .collect();
        for layer in &self.layers {
            x = layer.forward(ops, &ranges, &x);
        }
        // 3. One vector a text.
        let pooled = |text: Range<usize>| match self.pooling {
            Pooling::First => x.row(text.start).to_vec(),
            Pooling::Mean => {
                let count = text.len() as f64;
                let column = |c: usize| text.clone().map(|row| f64::from(x.row(row)[c])).sum::<f64>();
                (0..x.cols()).map(|c| (column(c) / count) as f32).collect()
            }
        };
        Ok(ranges.into_iter().map(pooled).collect())
    }
}
