//! Choosing experts: softmax with greedy or group-limited choice (DeepSeek-V2, section 2.1.2), sigmoid with a correction
//! bias and groups ranked by their two best (DeepSeek-V3, section 2.1.2).

use std::ops::Range;

use crate::{Ops, Tensor};

/// From logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Over all experts.
    Softmax,
    /// Each expert alone.
    Sigmoid,
}

/// What ranks a group of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert (V2).
    Max,
    /// The sum of its two best (V3).
    Top2Sum,
}

/// A family's way of routing.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteSpec {
    /// From logits to scores.
    pub scoring: Scoring,
    /// Experts a token.
    pub top_k: usize,
    /// Groups that the experts are split into; 1 means none.
    pub n_group: usize,
    /// Groups that a token may use.
    pub topk_group: usize,
    /// What ranks a group.
    pub group_score: GroupScore,
    /// Whether the chosen weights are divided by their sum.
    pub norm_topk_prob: bool,
    /// Added to that sum.
    pub norm_eps: f32,
    /// What the weights are multiplied by.
    pub routed_scaling_factor: f32,
}

/// The chosen experts of a batch: T * top_k pairs of token and expert, grouped by expert.
pub struct ExpertPlan {
    top_k: usize,
    /// Weight of each token's rank, [T, top_k].
    weights: Vec<f32>,
    /// Row of each token's rank among the pairs, [T, top_k].
    pair_rows: Vec<u32>,
    /// Token of each pair.
    row_tokens: Vec<u32>,
    /// Experts that were chosen, with their pairs.
    groups: Vec<(usize, Range<usize>)>,
}

impl ExpertPlan {
    /// The token of each pair, pairs ordered by expert, then token.
    pub fn row_tokens(&self) -> &[u32] {
        &self.row_tokens
    }

    /// Each chosen expert and its pairs.
    pub fn groups(&self) -> &[(usize, Range<usize>)] {
        &self.groups
    }

    fn new(experts: usize, top_k: usize, chosen: &[(usize, f32)]) -> Self {
        let mut starts = vec![0usize; experts + 1];
        for (e, _) in chosen {
            starts[e + 1] += 1;
        }
        for e in 0..experts {
            starts[e + 1] += starts[e];
        }
        let groups =
            (0..experts).filter(|e| starts[*e] < starts[e + 1]).map(|e| (e, starts[e]..starts[e + 1]));
        let groups = groups.collect();
        let mut next = starts;
        let mut row_tokens = vec![0; chosen.len()];
        let mut pair_rows = vec![0; chosen.len()];
        for (i, (e, _)) in chosen.iter().enumerate() {
            let row = next[*e];
            next[*e] += 1;
            row_tokens[row] = (i / top_k) as u32;
            pair_rows[i] = row as u32;
        }
        Self { top_k, weights: chosen.iter().map(|c| c.1).collect(), pair_rows, row_tokens, groups }
    }
}

impl Ops {
    /// Chooses experts from `logits`, \[T, E\]; `bias`, \[E\], is added for the choice only.
    pub fn route(&self, logits: &Tensor, bias: Option<&[f32]>, spec: &RouteSpec) -> ExpertPlan {
        let experts = logits.cols();
        let mut scratch = Scratch::default();
        let mut chosen = Vec::with_capacity(logits.rows() * spec.top_k);
        for t in 0..logits.rows() {
            choose(logits.row(t), bias, spec, &mut scratch, &mut chosen);
        }
        ExpertPlan::new(experts, spec.top_k, &chosen)
    }

    /// out\[token\] += weight * y\[pair\], a token's ranks from first to last.
    pub fn moe_combine(&self, y: &Tensor, plan: &ExpertPlan, out: &mut Tensor) {
        assert!(
            y.cols() == out.cols() && plan.pair_rows.len() == out.rows() * plan.top_k,
            "another plan's rows"
        );
        self.for_rows(out, |t, row| {
            for rank in t * plan.top_k..(t + 1) * plan.top_k {
                let weight = plan.weights[rank];
                let pair = y.row(plan.pair_rows[rank] as usize);
                row.iter_mut().zip(pair).for_each(|(o, y)| *o = weight.mul_add(*y, *o));
            }
        });
    }
}

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    choice: Vec<f32>,
    order: Vec<usize>,
    groups: Vec<(f32, usize)>,
}

fn choose(
    logits: &[f32],
    bias: Option<&[f32]>,
    spec: &RouteSpec,
    s: &mut Scratch,
    chosen: &mut Vec<(usize, f32)>,
) {
    // 1. Scores.
    s.scores.clear();
    match spec.scoring {
        Scoring::Sigmoid => s.scores.extend(logits.iter().map(|x| 1.0 / (1.0 + (-x).exp()))),
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            s.scores.extend(logits.iter().map(|x| (x - max).exp()));
            let sum: f32 = s.scores.iter().sum();
            s.scores.iter_mut().for_each(|x| *x /= sum);
        }
    }
    s.choice.clear();
    match bias {
        Some(bias) => s.choice.extend(s.scores.iter().zip(bias).map(|(s, b)| s + b)),
        None => s.choice.extend_from_slice(&s.scores),
    }
    // 2. Groups that may be used.
    s.order.clear();
    let size = logits.len() / spec.n_group.max(1);
    if spec.n_group > 1 && spec.topk_group < spec.n_group {
        s.groups.clear();
        for (g, scores) in s.choice.chunks_exact(size).enumerate() {
            let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            for x in scores {
                if *x > best {
                    (best, second) = (*x, best);
                } else if *x > second {
                    second = *x;
                }
            }
            s.groups.push((if spec.group_score == GroupScore::Max { best } else { best + second }, g));
        }
        // A stable sort: equal groups in their order.
        s.groups.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, g) in &s.groups[..spec.topk_group] {
            s.order.extend(g * size..(g + 1) * size);
        }
        s.order.sort_unstable();
    } else {
        s.order.extend(0..logits.len());
    }
    // 3. The best experts; of equals the lower number.
    s.order.sort_by(|a, b| s.choice[*b].total_cmp(&s.choice[*a]));
    s.order.truncate(spec.top_k);
    // 4. Their weights, from the scores without bias.
    let sum: f32 = s.order.iter().map(|e| s.scores[*e]).sum();
    let divisor = if spec.norm_topk_prob { sum + spec.norm_eps } else { 1.0 };
    chosen.extend(s.order.iter().map(|e| (*e, s.scores[*e] / divisor * spec.routed_scaling_factor)));
}
