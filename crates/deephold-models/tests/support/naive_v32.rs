//! DeepSeek-V3.2 in plain loops, keys and values expanded, whole prompts only: what the golden vectors hold, with the
//! choice between equal indexer scores left open.
//!
//! With few indexer heads many scores are exactly 0 (relu), and the cut at `index_topk` falls among equals. The
//! reference ran on torch's CPU `topk`, a quickselect over the whole row, masked positions behind the query included: which
//! equals it keeps depends on how long the prompt is. No engine whose answer is independent of chunking can follow that.
//! So two comparisons replace one: this model with torch's choice against golden, and the engine against this model
//! with the engine's choice (the lower position).

use deephold_testkit::SyntheticModel;

/// Which of equal scores are kept.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Ties {
    /// libstdc++'s `nth_element` on the whole row, as torch's CPU `topk` calls it.
    Torch,
    /// The lower position.
    LowerPosition,
}

struct Sizes {
    heads: usize,
    nope: usize,
    rope: usize,
    v: usize,
    latent: usize,
    index_heads: usize,
    index_dim: usize,
    index_topk: usize,
    experts: usize,
    per_token: usize,
    groups: usize,
    topk_groups: usize,
    scaling: f32,
}

/// The model; every tensor as floats.
pub(crate) struct NaiveV32 {
    file: SyntheticModel,
    sizes: Sizes,
    inv_freq: Vec<f32>,
}

type Rows = Vec<Vec<f32>>;

impl NaiveV32 {
    /// Of a golden-like checkpoint with yarn (factor 4 over 64 positions, mscale 1) and one dense layer.
    pub(crate) fn new(file: SyntheticModel) -> Self {
        let n = |key: &str| file.config[key].as_u64().expect("a size") as usize;
        let sizes = Sizes {
            heads: n("num_attention_heads"),
            nope: n("qk_nope_head_dim"),
            rope: n("qk_rope_head_dim"),
            v: n("v_head_dim"),
            latent: n("kv_lora_rank"),
            index_heads: n("index_n_heads"),
            index_dim: n("index_head_dim"),
            index_topk: n("index_topk"),
            experts: n("n_routed_experts"),
            per_token: n("num_experts_per_tok"),
            groups: n("n_group"),
            topk_groups: n("topk_group"),
            scaling: file.config["routed_scaling_factor"].as_f64().expect("a factor") as f32,
        };
        let inv_freq = yarn(sizes.rope);
        Self { file, sizes, inv_freq }
    }

    /// [T][V] logits.
    pub(crate) fn logits(&self, ids: &[u32], ties: Ties) -> Rows {
        let table = self.file.tensors["model.embed_tokens.weight"].to_f32();
        let hidden = self.file.tensors["model.norm.weight"].shape[0];
        let mut x: Rows = ids.iter().map(|id| table[*id as usize * hidden..][..hidden].to_vec()).collect();
        for layer in 0..self.file.config["num_hidden_layers"].as_u64().expect("layers") {
            let p = format!("model.layers.{layer}");
            let normed = self.rms(&x, &format!("{p}.input_layernorm"));
            add(&mut x, &self.attention(&normed, &format!("{p}.self_attn"), ties));
            let normed = self.rms(&x, &format!("{p}.post_attention_layernorm"));
            let fed = if layer == 0 {
                self.mlp(&normed, &format!("{p}.mlp"))
            } else {
                self.moe(&normed, &format!("{p}.mlp"))
            };
            add(&mut x, &fed);
        }
        self.linear(&self.rms(&x, "model.norm"), "lm_head")
    }

    fn attention(&self, x: &Rows, p: &str, ties: Ties) -> Rows {
        let s = &self.sizes;
        let q_latent = self.rms(&self.linear(x, &format!("{p}.q_a_proj")), &format!("{p}.q_a_layernorm"));
        let mut q = self.linear(&q_latent, &format!("{p}.q_b_proj"));
        let kv = self.linear(x, &format!("{p}.kv_a_proj_with_mqa"));
        let latent: Rows = kv.iter().map(|r| r[..s.latent].to_vec()).collect();
        let expanded =
            self.linear(&self.rms(&latent, &format!("{p}.kv_a_layernorm")), &format!("{p}.kv_b_proj"));
        let mut k_rope: Rows = kv.iter().map(|r| r[s.latent..].to_vec()).collect();
        let width = s.nope + s.rope;
        for t in 0..x.len() {
            self.turn(&mut k_rope[t], t, true);
            for h in 0..s.heads {
                self.turn(&mut q[t][h * width + s.nope..(h + 1) * width], t, true);
            }
        }
        let chosen = self.select(x, &q_latent, &format!("{p}.indexer"), ties);
        let mscale = 0.1 * 4f32.ln() + 1.0;
        let scale = mscale * mscale / (width as f32).sqrt();
        let mut out = vec![vec![0f32; s.heads * s.v]; x.len()];
        for t in 0..x.len() {
            for h in 0..s.heads {
                let key = |at: usize| &expanded[at][h * (s.nope + s.v)..];
                let query = &q[t][h * width..(h + 1) * width];
                let score = |at: &usize| {
                    (dot(&query[..s.nope], &key(*at)[..s.nope]) + dot(&query[s.nope..], &k_rope[*at])) * scale
                };
                let p = softmax(&chosen[t].iter().map(score).collect::<Vec<_>>());
                for (weight, at) in p.iter().zip(&chosen[t]) {
                    for j in 0..s.v {
                        out[t][h * s.v + j] += weight * key(*at)[s.nope + j];
                    }
                }
            }
        }
        self.linear(&out, &format!("{p}.o_proj"))
    }

    /// The positions that each query sees.
    fn select(&self, x: &Rows, q_latent: &Rows, p: &str, ties: Ties) -> Vec<Vec<usize>> {
        let s = &self.sizes;
        let mut q = self.linear(q_latent, &format!("{p}.wq_b"));
        let mut k = self.linear(x, &format!("{p}.wk"));
        let (gain, offset) =
            (self.floats(&format!("{p}.k_norm.weight")), self.floats(&format!("{p}.k_norm.bias")));
        for t in 0..x.len() {
            layer_norm(&mut k[t], &gain, &offset);
            self.turn(&mut k[t][..s.rope], t, false);
            for h in 0..s.index_heads {
                self.turn(&mut q[t][h * s.index_dim..][..s.rope], t, false);
            }
        }
        let w = self.linear(x, &format!("{p}.weights_proj"));
        let score = |t: usize, at: usize| -> f32 {
            let heads = (0..s.index_heads)
                .map(|h| w[t][h] * dot(&q[t][h * s.index_dim..][..s.index_dim], &k[at]).max(0.0));
            heads.fold(0.0, |a, b| a + b)
        };
        (0..x.len())
            .map(|t| {
                let masked = |at: usize| if at <= t { score(t, at) } else { f32::NEG_INFINITY };
                let mut row: Vec<(f32, usize)> = (0..x.len()).map(|at| (masked(at), at)).collect();
                let keep = s.index_topk.min(row.len());
                match ties {
                    Ties::Torch => nth_element(&mut row, keep - 1),
                    Ties::LowerPosition => row.sort_by(|a, b| b.0.partial_cmp(&a.0).expect("no NaN")),
                }
                let mut kept: Vec<usize> = row[..keep].iter().map(|r| r.1).filter(|at| *at <= t).collect();
                kept.sort_unstable();
                kept
            })
            .collect()
    }

    fn moe(&self, x: &Rows, p: &str) -> Rows {
        let s = &self.sizes;
        let bias = self.floats(&format!("{p}.gate.e_score_correction_bias"));
        let mut out = self.mlp(x, &format!("{p}.shared_experts"));
        for (t, logits) in self.linear(x, &format!("{p}.gate")).iter().enumerate() {
            let scores: Vec<f32> = logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect();
            let choice: Vec<f32> = scores.iter().zip(&bias).map(|(a, b)| a + b).collect();
            let size = s.experts / s.groups;
            let group = |g: usize| -> f32 {
                let best = top(&choice[g * size..(g + 1) * size], 2);
                best.iter().map(|i| choice[g * size + i]).sum()
            };
            let groups = top(&(0..s.groups).map(group).collect::<Vec<_>>(), s.topk_groups);
            let masked: Vec<f32> = (0..s.experts)
                .map(|e| if groups.contains(&(e / size)) { choice[e] } else { f32::NEG_INFINITY })
                .collect();
            let chosen = top(&masked, s.per_token);
            let sum: f32 = chosen.iter().map(|e| scores[*e]).sum();
            for e in chosen {
                let y = self.mlp(&vec![x[t].clone()], &format!("{p}.experts.{e}"));
                let weight = scores[e] / sum * s.scaling;
                out[t].iter_mut().zip(&y[0]).for_each(|(o, y)| *o += weight * y);
            }
        }
        out
    }

    fn mlp(&self, x: &Rows, p: &str) -> Rows {
        let mut gate = self.linear(x, &format!("{p}.gate_proj"));
        for (g, u) in gate.iter_mut().zip(self.linear(x, &format!("{p}.up_proj"))) {
            g.iter_mut().zip(u).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
        }
        self.linear(&gate, &format!("{p}.down_proj"))
    }

    fn linear(&self, x: &Rows, name: &str) -> Rows {
        let w = self.floats(&format!("{name}.weight"));
        x.iter().map(|row| w.chunks_exact(row.len()).map(|w| dot(w, row)).collect()).collect()
    }

    fn rms(&self, x: &Rows, name: &str) -> Rows {
        let w = self.floats(&format!("{name}.weight"));
        let one = |row: &Vec<f32>| {
            let r = 1.0 / (dot(row, row) / row.len() as f32 + 1e-6).sqrt();
            row.iter().zip(&w).map(|(v, w)| v * r * w).collect()
        };
        x.iter().map(one).collect()
    }

    /// Rope in place; neighbours are pairs, or columns half the width apart.
    fn turn(&self, x: &mut [f32], position: usize, neighbours: bool) {
        let half = x.len() / 2;
        for i in 0..half {
            let (a, b) = if neighbours { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let (sin, cos) = (position as f32 * self.inv_freq[i]).sin_cos();
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
        }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.file.tensors[name].to_f32()
    }
}

/// Yarn of the golden checkpoints, rounded to bfloat16 as the golden run had it.
fn yarn(dim: usize) -> Vec<f32> {
    let theta = 10_000f64;
    let at = |turns: f64| dim as f64 * (64.0 / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
    let (low, high) = (at(32.0).floor().max(0.0), at(1.0).ceil().min(dim as f64 - 1.0));
    let one = |i: usize| {
        let plain = theta.powf(-2.0 * i as f64 / dim as f64);
        let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        half::bf16::from_f64(plain / 4.0 * slowed + plain * (1.0 - slowed)).to_f32()
    };
    (0..dim / 2).map(one).collect()
}

fn add(x: &mut Rows, y: &Rows) {
    for (x, y) in x.iter_mut().zip(y) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn softmax(x: &[f32]) -> Vec<f32> {
    let max = x.iter().copied().fold(f32::MIN, f32::max);
    let e: Vec<f32> = x.iter().map(|v| (v - max).exp()).collect();
    let sum: f32 = e.iter().sum();
    e.iter().map(|v| v / sum).collect()
}

fn layer_norm(x: &mut [f32], gain: &[f32], offset: &[f32]) {
    let n = x.len() as f32;
    let mean = x.iter().sum::<f32>() / n;
    let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
    let r = 1.0 / (var + 1e-6).sqrt();
    for ((v, g), o) in x.iter_mut().zip(gain).zip(offset) {
        *v = (*v - mean) * r * g + o;
    }
}

/// Indices of the `k` largest, the first of equals.
fn top(x: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| x[*b].total_cmp(&x[*a]));
    order.truncate(k);
    order
}

/// Quickselect with a median-of-three pivot as libstdc++ does it (the order of swaps is what matters here): the
/// `nth + 1` largest end up in front.
fn nth_element(v: &mut [(f32, usize)], nth: usize) {
    let above = |a: &(f32, usize), b: &(f32, usize)| a.0 > b.0;
    let (mut first, mut last) = (0, v.len());
    while last - first > 3 {
        let (a, b, c) = (first + 1, first + (last - first) / 2, last - 1);
        let median = match (above(&v[a], &v[b]), above(&v[b], &v[c]), above(&v[a], &v[c])) {
            (true, true, _) | (false, false, false) => b,
            (true, false, true) | (false, true, false) => c,
            (true, false, false) | (false, _, true) => a,
        };
        v.swap(first, median);
        let pivot = v[first];
        let (mut low, mut high) = (first + 1, last);
        loop {
            while above(&v[low], &pivot) {
                low += 1;
            }
            high -= 1;
            while above(&pivot, &v[high]) {
                high -= 1;
            }
            if low >= high {
                break;
            }
            v.swap(low, high);
            low += 1;
        }
        if low <= nth { first = low } else { last = low }
    }
    for i in first + 1..last {
        for j in (first + 1..=i).rev() {
            if !above(&v[j], &v[j - 1]) {
                break;
            }
            v.swap(j, j - 1);
        }
    }
}
