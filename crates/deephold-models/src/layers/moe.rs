//! Mixture of experts as DeepSeek builds it (DeepSeekMoE, Dai et al. 2024): routed experts, and shared ones for every token.
//!
//! Two routings: softmax scores with groups ranked by their best expert (V2, section 2.2), and sigmoid scores with a
//! correction bias that only chooses and never weighs, groups ranked by the sum of their two best (V3, section 2.1.2).

use deephold_kernels::{Activations, GroupScore, Ops, PackedMatrix, PairRows, RouteSpec, Scoring, Tensor};

use super::mlp::Mlp;
use crate::ModelError;
use crate::config::{DIM_MAX, DecoderConfig, EXPERTS_MAX, Section};
use crate::loader::Loader;
use crate::tensors::{ExpertSizes, TensorList};

/// Keeps the normalised weights finite where all scores are 0; the reference's number.
const NORM_TOPK_EPS: f32 = 1e-20;

/// Routing and sizes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MoeConfig {
    /// E.
    pub(crate) n_routed_experts: usize,
    /// In units of `moe_intermediate_size`; 0 for none.
    pub(crate) n_shared_experts: usize,
    /// I of one expert.
    pub(crate) moe_intermediate_size: usize,
    pub(crate) num_experts_per_tok: usize,
    pub(crate) n_group: usize,
    pub(crate) topk_group: usize,
    pub(crate) norm_topk_prob: bool,
    pub(crate) routed_scaling_factor: f32,
    /// Sigmoid with correction bias, else softmax.
    pub(crate) sigmoid: bool,
    /// One flag a layer: experts or dense.
    pub(crate) sparse: Vec<bool>,
}

impl MoeConfig {
    /// V2: softmax, `greedy` or `group_limited_greedy`.
    pub(crate) fn parse_softmax(c: &Section<'_>, d: &DecoderConfig) -> Result<Self, ModelError> {
        c.only_text("scoring_func", &["softmax"], "V2 scores experts with softmax")?;
        let grouped = match c.opt_text("topk_method")?.unwrap_or("greedy") {
            "greedy" => false,
            "group_limited_greedy" => true,
            other => {
                let hint = "V2 is built with greedy and group_limited_greedy";
                return Err(c.unsupported("topk_method", other, hint));
            }
        };
        if c.flag("norm_topk_prob", false)? {
            // The published code and the reference disagree here, and no published V2 sets it.
            return Err(c.unsupported("norm_topk_prob", "true", "no published V2 checkpoint uses it"));
        }
        let mut moe = Self::parse(c, d, false)?;
        if !grouped {
            (moe.n_group, moe.topk_group) = (1, 1);
        }
        Ok(moe)
    }

    /// V3 and V3.2: sigmoid with correction bias (`noaux_tc`).
    pub(crate) fn parse_sigmoid(c: &Section<'_>, d: &DecoderConfig) -> Result<Self, ModelError> {
        c.only_text("scoring_func", &["sigmoid"], "V3 scores experts with sigmoid")?;
        c.only_text("topk_method", &["noaux_tc"], "V3 chooses experts with noaux_tc")?;
        Self::parse(c, d, true)
    }

    fn parse(c: &Section<'_>, d: &DecoderConfig, sigmoid: bool) -> Result<Self, ModelError> {
        // The reference's own default where a file is silent.
        let scaling = if sigmoid { 2.5 } else { 1.0 };
        let moe = Self {
            n_routed_experts: c.size("n_routed_experts", EXPERTS_MAX)?,
            n_shared_experts: c.opt_count("n_shared_experts", EXPERTS_MAX)?.unwrap_or(0),
            moe_intermediate_size: c.size("moe_intermediate_size", DIM_MAX)?,
            num_experts_per_tok: c.size("num_experts_per_tok", EXPERTS_MAX)?,
            n_group: c.opt_size("n_group", EXPERTS_MAX)?.unwrap_or(1),
            topk_group: c.opt_size("topk_group", EXPERTS_MAX)?.unwrap_or(1),
            norm_topk_prob: sigmoid && c.flag("norm_topk_prob", true)?,
            routed_scaling_factor: c.opt_float("routed_scaling_factor", 1e-6, 1e6)?.unwrap_or(scaling) as f32,
            sigmoid,
            sparse: Self::sparse_layers(c, d)?,
        };
        moe.check(c, d)?;
        Ok(moe)
    }

    /// V3.2 may name each layer's kind; otherwise dense layers come first.
    fn sparse_layers(c: &Section<'_>, d: &DecoderConfig) -> Result<Vec<bool>, ModelError> {
        let layers = d.num_hidden_layers;
        if let Some(types) = c.opt_texts("mlp_layer_types")? {
            if types.len() < layers {
                return Err(c.bad("mlp_layer_types", format!("names {} of {layers} layers", types.len())));
            }
            let kind = |t: &&str| match *t {
                "dense" => Ok(false),
                "sparse" => Ok(true),
                other => Err(c.unsupported("mlp_layer_types", other, "supported: dense, sparse")),
            };
            return types.iter().take(layers).map(kind).collect();
        }
        let first = c.opt_count("first_k_dense_replace", 1 << 20)?.unwrap_or(0);
        let every = c.opt_size("moe_layer_freq", 1 << 20)?.unwrap_or(1);
        Ok((0..layers).map(|l| l >= first && l.is_multiple_of(every)).collect())
    }

    fn check(&self, c: &Section<'_>, d: &DecoderConfig) -> Result<(), ModelError> {
        let (e, groups) = (self.n_routed_experts, self.n_group);
        // Names of experts are made in memory before the file is asked for them.
        if e * d.num_hidden_layers > 1 << 17 {
            return Err(c.bad(
                "n_routed_experts",
                format!("= {e} in {} layers is beyond bounds", d.num_hidden_layers),
            ));
        }
        if !e.is_multiple_of(groups) {
            return Err(c.bad("n_group", format!("= {groups} does not divide {e} experts")));
        }
        if self.topk_group > groups {
            return Err(c.bad("topk_group", format!("= {} is above n_group = {groups}", self.topk_group)));
        }
        if self.num_experts_per_tok > self.topk_group * (e / groups) {
            let problem = format!("= {} is more than the chosen groups hold", self.num_experts_per_tok);
            return Err(c.bad("num_experts_per_tok", problem));
        }
        if self.sigmoid && groups > 1 && e / groups < 2 {
            return Err(c.bad(
                "n_group",
                format!("= {groups} leaves groups of one expert; two are summed to rank a group"),
            ));
        }
        if self.n_shared_experts * self.moe_intermediate_size > DIM_MAX {
            return Err(c.bad("n_shared_experts", "times moe_intermediate_size is beyond bounds"));
        }
        Ok(())
    }

    fn shared_intermediate(&self) -> usize {
        self.n_shared_experts * self.moe_intermediate_size
    }

    fn route_spec(&self) -> RouteSpec {
        RouteSpec {
            scoring: if self.sigmoid { Scoring::Sigmoid } else { Scoring::Softmax },
            top_k: self.num_experts_per_tok,
            n_group: self.n_group,
            topk_group: self.topk_group,
            group_score: if self.sigmoid { GroupScore::Top2Sum } else { GroupScore::Max },
            norm_topk_prob: self.norm_topk_prob,
            norm_eps: NORM_TOPK_EPS,
            routed_scaling_factor: self.routed_scaling_factor,
        }
    }

    /// The tensors of one layer, for checks.
    pub(crate) fn tensors(&self, list: &mut TensorList<'_>, name: &str, hidden: usize) {
        list.tensor(&format!("{name}.gate.weight"), &[self.n_routed_experts, hidden]);
        if self.sigmoid {
            list.vector(&format!("{name}.gate.e_score_correction_bias"), self.n_routed_experts);
        }
        if self.n_shared_experts > 0 {
            list.mlp(&format!("{name}.shared_experts"), hidden, self.shared_intermediate(), false);
        }
        let sizes = ExpertSizes {
            experts: self.n_routed_experts,
            active: self.num_experts_per_tok,
            intermediate: self.moe_intermediate_size,
            hidden,
        };
        list.experts(&format!("{name}.experts"), sizes);
    }
}

/// The experts of one layer.
pub(crate) struct Moe {
    gate: PackedMatrix,
    e_score_correction_bias: Option<Vec<f32>>,
    /// E matrices each: [I, H], [I, H], [H, I].
    gate_proj: Vec<PackedMatrix>,
    up_proj: Vec<PackedMatrix>,
    down_proj: Vec<PackedMatrix>,
    shared_experts: Option<Mlp>,
    spec: RouteSpec,
}

impl Moe {
    pub(crate) fn load(
        l: &mut Loader<'_>,
        name: &str,
        hidden: usize,
        c: &MoeConfig,
    ) -> Result<Self, ModelError> {
        let (e, i) = (c.n_routed_experts, c.moe_intermediate_size);
        let bias = format!("{name}.gate.e_score_correction_bias");
        Ok(Self {
            gate: l.exact_matrix(&format!("{name}.gate.weight"), e, hidden)?,
            e_score_correction_bias: if c.sigmoid { Some(l.vector(&bias, e)?) } else { None },
            gate_proj: l.experts(&format!("{name}.experts"), "gate_proj", e, i, hidden)?,
            up_proj: l.experts(&format!("{name}.experts"), "up_proj", e, i, hidden)?,
            down_proj: l.experts(&format!("{name}.experts"), "down_proj", e, hidden, i)?,
            shared_experts: match c.shared_intermediate() {
                0 => None,
                shared => Some(Mlp::load(l, &format!("{name}.shared_experts"), hidden, shared, false)?),
            },
            spec: c.route_spec(),
        })
    }

    /// [T, H] -> [T, H]
    pub(crate) fn forward(&self, ops: &Ops, x: &Activations<'_>) -> Tensor {
        // 1. Scores [T, E]; the chosen experts of each token and their weights.
        let scores = ops.linear(&self.gate, x);
        let plan = ops.route(&scores, self.e_score_correction_bias.as_deref(), &self.spec);
        // 2. One row a pair of token and expert: [P, I], then [P, H].
        let hidden = ops.moe_gated(&self.gate_proj, &self.up_proj, x, &plan);
        let hidden = Activations::new(&hidden);
        let routed = ops.moe_linear(&self.down_proj, &hidden, &plan, PairRows::PerExpertPair);
        // 3. Shared experts, then the weighted sum in the order of each token's ranks.
        let mut out = match &self.shared_experts {
            Some(shared) => shared.forward(ops, x),
            None => ops.zeros(scores.rows(), routed.cols()),
        };
        ops.moe_combine(&routed, &plan, &mut out);
        out
    }
}

/// Dense or with experts.
#[allow(clippy::large_enum_variant, reason = "one a layer, never moved")]
pub(crate) enum FeedForward {
    Dense(Mlp),
    Sparse(Moe),
}

impl FeedForward {
    pub(crate) fn tensors(list: &mut TensorList<'_>, layer: usize, d: &DecoderConfig, c: &MoeConfig) {
        let name = format!("model.layers.{layer}.mlp");
        match c.sparse[layer] {
            true => c.tensors(list, &name, d.hidden_size),
            false => list.mlp(&name, d.hidden_size, d.intermediate_size, false),
        }
    }

    pub(crate) fn load(
        l: &mut Loader<'_>,
        layer: usize,
        d: &DecoderConfig,
        c: &MoeConfig,
    ) -> Result<Self, ModelError> {
        let name = format!("model.layers.{layer}.mlp");
        Ok(match c.sparse[layer] {
            true => Self::Sparse(Moe::load(l, &name, d.hidden_size, c)?),
            false => Self::Dense(Mlp::load(l, &name, d.hidden_size, d.intermediate_size, false)?),
        })
    }

    /// [T, H] -> [T, H]
    pub(crate) fn forward(&self, ops: &Ops, x: &Activations<'_>) -> Tensor {
        match self {
            Self::Dense(mlp) => mlp.forward(ops, x),
            Self::Sparse(moe) => moe.forward(ops, x),
        }
    }
}
