//! What the result holds: tensors, their types and sources, and the metadata.

use std::collections::BTreeMap;

use super::QuantFormat;
use super::choose::{choose, fell_back};
use super::hf_config::HfConfig;
use super::metadata::{self, GgufArchitecture};
use super::rows::{Order, Part, PlannedTensor, Source};
use crate::error::shown;
use crate::gguf::{Metadata, Value};
use crate::{Checkpoint, Kind, TensorView, WeightsError, names};

/// Experts of one projection of one layer, by number.
type Experts<'a> = BTreeMap<usize, TensorView<'a>>;

pub(super) struct Plan<'a> {
    pub(super) metadata: Metadata,
    pub(super) planned: Vec<PlannedTensor<'a>>,
    pub(super) skipped: Vec<(String, String)>,
    pub(super) notes: Vec<String>,
}

pub(super) fn plan(input: &Checkpoint, format: QuantFormat) -> Result<Plan<'_>, WeightsError> {
    let mut plan = match input.kind() {
        Kind::Gguf => from_gguf(input, format)?,
        Kind::HuggingFace => from_hugging_face(input, format)?,
    };
    plan.note_fallbacks(format);
    plan.metadata.set("general.quantization_version", Value::U32(2));
    plan.metadata.set("general.file_type", Value::U32(format.file_type()));
    Ok(plan)
}

impl Plan<'_> {
    /// Says which types were taken instead of the format's own.
    fn note_fallbacks(&mut self, format: QuantFormat) {
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        let fallbacks = self.planned.iter().filter(|t| t.shape.len() > 1);
        for t in fallbacks.filter(|t| fell_back(format, &t.name, &t.shape, t.dtype)) {
            *counts.entry(t.dtype.name()).or_default() += 1;
        }
        if counts.is_empty() {
            return;
        }
        let total: usize = counts.values().sum();
        let list: Vec<String> = counts.iter().map(|(name, n)| format!("{n} as {name}")).collect();
        let list = list.join(", ");
        self.notes.push(format!(
            "the rows of {total} tensors are not whole blocks of {format}: they were written with more bits, {list}"
        ));
    }
}

/// Names and metadata stay; parts of a split model become one file.
fn from_gguf(input: &Checkpoint, format: QuantFormat) -> Result<Plan<'_>, WeightsError> {
    let mut metadata = input.gguf_metadata().cloned().unwrap_or_default();
    metadata.retain(|key| !key.starts_with("split."));
    let layers = HfConfig(input.config()).opt_size("num_hidden_layers")?.unwrap_or(0);
    let tied = input.tensor("lm_head.weight").is_none();
    let (mut planned, mut from_blocks) = (Vec::new(), 0usize);
    for info in input.tensors() {
        let view = input.view(info);
        let wanted = choose(format, &info.stored_name, &info.shape, layers, tied);
        // Integers are tables, not weights.
        let is_number = info.dtype.is_quantized() || is_float(&view);
        let dtype = if is_number { wanted } else { info.dtype };
        if !is_number {
            let problem = format!("{}, which is not a weight format", info.dtype);
            return Err(WeightsError::unsupported(
                format!("tensor `{}`", info.stored_name),
                problem,
                "remove it",
            ));
        }
        from_blocks += usize::from(info.dtype.is_quantized() && info.dtype != dtype);
        let source = Source::Parts(vec![Part::new(input, view)?], Order::Plain);
        planned.push(PlannedTensor {
            name: info.stored_name.clone(),
            shape: info.shape.clone(),
            dtype,
            source,
        });
    }
    let mut notes = Vec::new();
    if from_blocks > 0 {
        notes.push(format!(
            "{from_blocks} tensors were quantized before: errors add up, prefer the original weights as input"
        ));
    }
    Ok(Plan { metadata, planned, skipped: Vec::new(), notes })
}

fn is_float(view: &TensorView<'_>) -> bool {
    use deephold_quant::DType::{BF16, F8E4M3, F16, F32, F64};
    matches!(view.info().dtype, F64 | F32 | F16 | BF16 | F8E4M3)
}

fn from_hugging_face(input: &Checkpoint, format: QuantFormat) -> Result<Plan<'_>, WeightsError> {
    let c = HfConfig(input.config());
    let family = GgufArchitecture::of(c)?;
    let mut b = Builder {
        input,
        format,
        family,
        layers: c.size("num_hidden_layers")?,
        tied: c.flag("tie_word_embeddings") || input.tensor("lm_head.weight").is_none(),
        planned: Vec::new(),
        skipped: Vec::new(),
        experts: BTreeMap::new(),
    };
    for info in input.tensors() {
        b.tensor(input.view(info))?;
    }
    b.merged_experts(c)?;
    if let Some(factors) = metadata::rope_factors(c)? {
        let shape = vec![factors.len()];
        let dtype = deephold_quant::DType::F32;
        b.planned.push(PlannedTensor {
            name: "rope_freqs.weight".into(),
            shape,
            dtype,
            source: Source::Values(factors),
        });
    }
    let mut notes = Vec::new();
    let metadata = metadata::build(input, c, family, &mut notes)?;
    Ok(Plan { metadata, planned: b.planned, skipped: b.skipped, notes })
}

struct Builder<'a> {
    input: &'a Checkpoint,
    format: QuantFormat,
    family: GgufArchitecture,
    layers: usize,
    tied: bool,
    planned: Vec<PlannedTensor<'a>>,
    skipped: Vec<(String, String)>,
    /// (layer, projection) -> experts
    experts: BTreeMap<(usize, String), Experts<'a>>,
}

impl<'a> Builder<'a> {
    fn tensor(&mut self, view: TensorView<'a>) -> Result<(), WeightsError> {
        let name = view.info().name.as_str();
        if let Some(reason) = self.left_out(name) {
            if !reason.is_empty() {
                self.skipped.push((name.to_owned(), reason.to_owned()));
            }
            return Ok(());
        }
        if let Some((layer, expert, projection)) = expert_of(name) {
            let group = self.experts.entry((layer, projection.to_owned())).or_default();
            group.insert(expert, view);
            return Ok(());
        }
        if self.family.is_latent() && name.ends_with(".self_attn.kv_b_proj.weight") {
            return self.latent_heads(view);
        }
        let Some(gguf_name) = names::to_gguf(name) else {
            return Err(WeightsError::unsupported(
                format!("tensor `{}`", shown(name)),
                "unknown to GGUF",
                "only the tensors of Llama, Qwen2, Qwen3 and DeepSeek models can be written",
            ));
        };
        let order = self.order(&view)?;
        let shape = view.info().shape.clone();
        self.push(gguf_name, shape, vec![view], order)
    }

    /// `Some("")`: part of another tensor.
    fn left_out(&self, name: &str) -> Option<&'static str> {
        if name.ends_with(".weight_scale_inv") {
            return Some("");
        }
        if name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attn.masked_bias") {
            return Some("a buffer that follows from the configuration");
        }
        if names::layer_of(name).is_some_and(|l| l >= self.layers) {
            return Some("multi-token prediction");
        }
        (name == "lm_head.weight" && self.tied).then_some("tied to the embedding")
    }

    fn order(&self, view: &TensorView<'_>) -> Result<Order, WeightsError> {
        let info = view.info();
        let rope_rows = [".q_proj.weight", ".k_proj.weight", ".q_proj.bias", ".k_proj.bias"];
        if self.family != GgufArchitecture::Llama || !rope_rows.iter().any(|end| info.name.ends_with(end)) {
            return Ok(Order::Plain);
        }
        let head_dim = HfConfig(self.input.config()).head_dim()?;
        let rows = info.shape.first().copied().unwrap_or(0);
        if head_dim < 2 || !head_dim.is_multiple_of(2) || !rows.is_multiple_of(head_dim) {
            let problem = format!("has {rows} rows, which are not heads of {head_dim}");
            return Err(WeightsError::malformed(format!("tensor `{}`", shown(&info.name)), problem));
        }
        Ok(Order::PairRows { head_dim })
    }

    /// `kv_b_proj` [Nh*(nope+v), R] becomes `attn_k_b` [Nh, R, nope] and `attn_v_b` [Nh, v, R].
    fn latent_heads(&mut self, view: TensorView<'a>) -> Result<(), WeightsError> {
        let c = HfConfig(self.input.config());
        let (heads, r) = (c.size("num_attention_heads")?, c.size("kv_lora_rank")?);
        let (nope, v) = (c.size("qk_nope_head_dim")?, c.size("v_head_dim")?);
        let info = view.info();
        if info.shape != [heads * (nope + v), r] {
            return Err(WeightsError::malformed(
                format!("tensor `{}`", shown(&info.name)),
                format!("has shape {:?}, expected [{}, {r}]", info.shape, heads * (nope + v)),
            ));
        }
        let layer = names::layer_of(&info.name).unwrap_or(0);
        let name = |part: &str| format!("blk.{layer}.attn_{part}_b.weight");
        self.push(name("k"), vec![heads, r, nope], vec![view], Order::KeyHeads { nope, v })?;
        self.push(name("v"), vec![heads, v, r], vec![view], Order::ValueHeads { nope, v })
    }

    fn merged_experts(&mut self, c: HfConfig<'_>) -> Result<(), WeightsError> {
        for ((layer, projection), group) in std::mem::take(&mut self.experts) {
            let expected = c.size("n_routed_experts")?;
            let what = format!("`model.layers.{layer}.mlp.experts.*.{projection}.weight`");
            if group.len() != expected || group.keys().next_back() != Some(&(expected - 1)) {
                let problem = format!("are {} experts, config.json says {expected}", group.len());
                return Err(WeightsError::malformed(what, problem));
            }
            let views: Vec<TensorView<'a>> = group.into_values().collect();
            let first = views[0].info();
            let alike = |v: &TensorView<'_>| v.info().shape == first.shape && v.info().dtype == first.dtype;
            if first.shape.len() != 2 || !views.iter().all(alike) {
                return Err(WeightsError::malformed(what, "differ in shape or type and cannot be merged"));
            }
            let shape = vec![expected, first.shape[0], first.shape[1]];
            let merged = format!("model.layers.{layer}.mlp.experts.{projection}.weight");
            let Some(name) = names::to_gguf(&merged) else {
                return Err(WeightsError::unsupported(
                    what,
                    "unknown to GGUF",
                    "expected gate_proj, up_proj, down_proj",
                ));
            };
            self.push(name, shape, views, Order::Plain)?;
        }
        Ok(())
    }

    fn push(
        &mut self,
        name: String,
        shape: Vec<usize>,
        views: Vec<TensorView<'a>>,
        order: Order,
    ) -> Result<(), WeightsError> {
        if let Some(odd) = views.iter().find(|v| !is_float(v)) {
            return Err(WeightsError::unsupported(
                format!("tensor `{}`", shown(&odd.info().name)),
                odd.info().dtype.name(),
                "weights are F32, F16, BF16 or FP8 with scales",
            ));
        }
        let dtype = choose(self.format, &name, &shape, self.layers, self.tied);
        let input = self.input;
        let parts = views.into_iter().map(|v| Part::new(input, v)).collect::<Result<_, _>>()?;
        self.planned.push(PlannedTensor { name, shape, dtype, source: Source::Parts(parts, order) });
        Ok(())
    }
}

/// `model.layers.<layer>.mlp.experts.<expert>.<projection>.weight`
fn expert_of(name: &str) -> Option<(usize, usize, &str)> {
    let layer = names::layer_of(name)?;
    let (_, rest) = name.split_once(".mlp.experts.")?;
    let (expert, projection) = rest.strip_suffix(".weight")?.split_once('.')?;
    Some((layer, expert.parse().ok()?, projection))
}
