//! Properties of every op: one result whatever the batch, the threads and the instruction set.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use deephold_quant::{DType, quantize};

use crate::check::{bits, noise};
use crate::*;

fn ops(isa: Isa, threads: usize) -> Ops {
    Ops::new(isa, Arc::new(ThreadPool::new(PoolOptions { threads, pin: false })))
}

/// The instruction sets that this machine has. What it lacks is said once, past the test runner, which would keep it to itself,
/// and listed for the closing line of `./test`.
pub(crate) fn available() -> Vec<Isa> {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let lacking = Isa::ALL.into_iter().filter(|isa| !isa.is_available());
        for isa in lacking {
            let _ = writeln!(std::io::stderr(), "NOT ON THIS MACHINE: the kernels for {isa}");
            if let Some(list) = std::env::var_os("DEEPHOLD_SKIPPED_LIST") {
                let file = std::fs::OpenOptions::new().create(true).append(true).open(list);
                let _ = file.and_then(|mut f| writeln!(f, "kernels {isa}"));
            }
        }
    });
    Isa::available()
}

/// Every available instruction set with several thread counts.
fn machines() -> Vec<Ops> {
    available().into_iter().flat_map(|isa| [1, 2, 3, 7].map(|t| ops(isa, t))).collect()
}

fn dense(dtype: DType, n: usize, k: usize, x: &[f32]) -> PackedMatrix {
    let pool = ThreadPool::new(PoolOptions { threads: 2, pin: false });
    let mut bytes = vec![0; dtype.bytes_for(x.len()).unwrap()];
    quantize(dtype, x, &mut bytes).unwrap();
    PackedMatrix::pack(&pool, dtype, n, k, &bytes).unwrap()
}

#[test]
fn a_dense_product_is_one_chain_of_fused_multiply_adds() {
    for (n, k) in [(1, 1), (15, 7), (16, 16), (17, 33), (40, 100)] {
        let weights: Vec<f32> = noise(1, n * k).iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            // bf16 values in -1..1 with 8 bits are exact in f16 unless tiny: take what f16 keeps.
            let weights: Vec<f32> = match dtype {
                DType::F16 => weights.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect(),
                _ => weights.clone(),
            };
            let w = dense(dtype, n, k, &weights);
            for rows in [0, 1, 5, 6, 7, 13] {
                let x = noise(2, rows * k);
                let mut expected = Vec::new();
                for t in 0..rows {
                    for j in 0..n {
                        let mut acc = 0f32;
                        for i in 0..k {
                            acc = weights[j * k + i].mul_add(x[t * k + i], acc);
                        }
                        expected.push(acc.to_bits());
                    }
                }
                for ops in machines() {
                    let x = ops.tensor_from(rows, k, &x);
                    assert_eq!(
                        bits(&ops.linear(&w, &Activations::new(&x))),
                        expected,
                        "{dtype:?} {n} {k} {rows}"
                    );
                }
            }
        }
    }
}

#[test]
fn fp8_equals_its_decoded_matrix() {
    let (n, k, block) = (20usize, 37usize, (16usize, 16usize));
    let pool = ThreadPool::new(PoolOptions::default());
    let codes: Vec<u8> = (0..n * k).map(|i| (i * 7 % 126) as u8 | ((i as u8 & 1) << 7)).collect();
    let scales = noise(3, n.div_ceil(block.0) * k.div_ceil(block.1));
    let decoded: Vec<f32> = (0..n * k)
        .map(|i| {
            let scale = scales[i / k / block.0 * k.div_ceil(block.1) + i % k / block.1];
            deephold_quant::f8e4m3_to_f32(codes[i]) * scale
        })
        .collect();
    let packed = PackedMatrix::pack_fp8(&pool, n, k, &codes, &scales, block).unwrap();
    let plain = PackedMatrix::pack_f32(&pool, n, k, &decoded).unwrap();
    for ops in machines() {
        for rows in [1, 4, 9] {
            let x = ops.tensor_from(rows, k, &noise(4, rows * k));
            let act = Activations::new(&x);
            assert_eq!(bits(&ops.linear(&packed, &act)), bits(&ops.linear(&plain, &act)));
        }
    }
    assert!(PackedMatrix::pack_fp8(&pool, n, k, &codes, &scales[1..], block).is_err());
    assert!(PackedMatrix::pack(&pool, DType::F32, n, k, &[0; 3]).is_err());
}

/// What is attended to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Grouped,
    Latent,
    /// Latent, over the positions that the indexer chooses, at most so many.
    Chosen(usize),
}

/// A small attention over random entries, the rows of one sequence in steps; results of the rows from `from` on.
fn attend(ops: &Ops, steps: &[usize], kind: Kind, dtype: CacheDType, from: usize) -> Vec<u32> {
    let mla = kind != Kind::Grouped;
    let (heads, kv_heads, width) = (4, if mla { 1 } else { 2 }, if mla { 40 } else { 24 });
    let spec = |order| CacheSpec { name: "k", heads: kv_heads, width, order };
    let (columns, rows) = (spec(EntryOrder::Columns), spec(EntryOrder::Rows));
    let layers = if mla { vec![vec![rows, columns]] } else { vec![vec![columns, rows]] };
    let total: usize = steps.iter().sum();
    // Every third block first, so that neighbours are apart.
    let blocks = total.div_ceil(16) as u32;
    let block_table: Vec<u32> = (0..3).flat_map(|i| (i..blocks).step_by(3)).collect();
    let cache = KvCache::new(&layers, blocks as usize, 16, dtype).unwrap();
    let q = noise(5, total * heads * width);
    let kv = noise(6, total * kv_heads * width);
    let w = noise(7, total * heads);
    let mut out = Vec::new();
    let mut done = 0;
    for step in steps {
        let seqs = [SeqRows { rows: 0..*step, num_computed: done, block_table: block_table.clone() }];
        let ctx = AttentionContext::new(ops, &cache, &seqs);
        let rows = |x: &[f32], w: usize| ops.tensor_from(*step, w, &x[done * w..][..step * w]);
        ctx.write(0, 0, &rows(&kv, kv_heads * width));
        ctx.write(0, 1, &rows(&kv, kv_heads * width));
        let (queries, weights) = (rows(&q, heads * width), rows(&w, heads));
        done += step;
        if done <= from {
            continue;
        }
        let y = match kind {
            Kind::Grouped => ctx.attend_gqa(0, &queries, 0.3),
            Kind::Latent => ctx.attend_mla(0, &queries, 32, 0.3, None),
            Kind::Chosen(topk) => {
                let chosen = ctx.index_select(0, 1, &queries, &weights, topk, 0.5);
                ctx.attend_mla(0, &queries, 32, 0.3, Some(&chosen))
            }
        };
        let cols = y.cols();
        out.extend_from_slice(&bits(&y)[from.saturating_sub(done - step) * cols..]);
    }
    out
}

/// Safe functions refuse what would lead outside the cache or let two rows write one place.
#[test]
fn attention_refuses_what_does_not_fit() {
    let ops = ops(Isa::Scalar, 1);
    let kind = |heads, order| CacheSpec { name: "k", heads, width: 8, order };
    let (rows, columns) = (EntryOrder::Rows, EntryOrder::Columns);
    let layers = vec![
        vec![kind(2, columns), kind(1, rows)],
        vec![kind(1, rows)],
        vec![kind(2, columns), kind(2, rows)],
        vec![kind(1, columns)],
    ];
    assert!(KvCache::new(&layers, 4, 24, CacheDType::F32).is_err(), "a block of one group and a half");
    let cache = KvCache::new(&layers, 4, 16, CacheDType::F32).unwrap();
    let rows = |rows, num_computed, block_table: &[u32]| SeqRows {
        rows,
        num_computed,
        block_table: block_table.to_vec(),
    };
    let panics = |what: &str, f: &dyn Fn()| {
        let payload = catch_unwind(AssertUnwindSafe(f)).expect_err(what);
        let text = payload.downcast_ref::<String>().cloned();
        let text =
            text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        assert!(text.contains(what), "{text} instead of {what}");
    };
    let batch =
        |what: &str, seqs: &[SeqRows]| panics(what, &|| drop(AttentionContext::new(&ops, &cache, seqs)));
    batch("too short", &[rows(0..17, 0, &[0])]);
    batch("beyond the cache", &[rows(0..1, 0, &[4])]);
    batch("belongs to two", &[rows(0..2, 0, &[0]), rows(1..2, 0, &[1])]);
    batch("written at two places", &[rows(0..1, 0, &[0]), rows(1..2, 0, &[0])]);
    batch("written at two places", &[rows(0..17, 0, &[1, 1])]);
    batch("written at two places", &[rows(0..1, 20, &[0, 1]), rows(1..2, 3, &[1])]);
    // Blocks that are only read may be shared.
    drop(AttentionContext::new(&ops, &cache, &[rows(0..1, 16, &[0, 1]), rows(1..2, 16, &[0, 2])]));
    let seqs = [rows(0..2, 0, &[0])];
    let ctx = AttentionContext::new(&ops, &cache, &seqs);
    let q = |rows, cols| ops.zeros(rows, cols);
    panics("another number of heads", &|| drop(ctx.attend_gqa(0, &q(2, 16), 1.0)));
    panics("another batch", &|| drop(ctx.attend_gqa(2, &q(1, 16), 1.0)));
    panics("another shape", &|| drop(ctx.attend_gqa(2, &q(2, 12), 1.0)));
    panics("9 columns from entries of 8", &|| drop(ctx.attend_mla(1, &q(2, 8), 9, 1.0, None)));
    panics("values in columns", &|| drop(ctx.attend_mla(3, &q(2, 8), 8, 1.0, None)));
    panics("index keys in rows", &|| drop(ctx.index_select(1, 0, &q(2, 8), &q(2, 1), 1, 1.0)));
    panics("entries of another shape", &|| ctx.write(1, 0, &q(2, 7)));
    panics("entries of another shape", &|| ctx.write(1, 0, &q(3, 8)));
    panics("index queries of another shape", &|| drop(ctx.index_select(3, 0, &q(2, 8), &q(1, 1), 1, 1.0)));
    panics("a selection of nothing", &|| drop(ctx.index_select(3, 0, &q(2, 8), &q(2, 1), 0, 1.0)));
    let chosen = ctx.index_select(3, 0, &q(2, 8), &q(2, 1), 1, 1.0);
    drop(ctx.attend_mla(1, &q(2, 8), 8, 1.0, Some(&chosen)));
    drop(ctx);
    // A choice of one batch says nothing about another.
    for (what, seqs) in
        [("of another batch", [rows(0..1, 0, &[0])]), ("beyond the row", [rows(0..2, 0, &[0])])]
    {
        let later = [rows(0..2, 14, &[0])];
        let later =
            AttentionContext::new(&ops, &cache, &later).index_select(3, 0, &q(2, 8), &q(2, 1), 20, 1.0);
        let ctx = AttentionContext::new(&ops, &cache, &seqs);
        let n = ctx.positions().len();
        panics(what, &|| drop(ctx.attend_mla(1, &q(n, 8), 8, 1.0, Some(&later))));
    }
}

#[test]
fn attention_does_not_depend_on_steps_threads_or_instructions() {
    for kind in [Kind::Grouped, Kind::Latent, Kind::Chosen(30)] {
        for dtype in [CacheDType::F32, CacheDType::F16] {
            let expected = attend(&ops(Isa::Scalar, 1), &[100], kind, dtype, 0);
            for ops in machines() {
                for steps in [&[100][..], &[1; 100], &[5; 20], &[64, 36], &[17, 1, 82]] {
                    assert!(
                        attend(&ops, steps, kind, dtype, 0) == expected,
                        "{:?} {kind:?} {steps:?}",
                        ops.isa()
                    );
                }
            }
        }
    }
}

/// More positions than a chunk has: those of a prompt, and of single rows, whose chunks are tasks of their own.
#[test]
fn long_contexts_do_not_depend_on_steps_threads_or_instructions() {
    for kind in [Kind::Grouped, Kind::Latent, Kind::Chosen(700)] {
        let expected = attend(&ops(Isa::detect(), 1), &[1040, 80], kind, CacheDType::F16, 1000);
        for isa in available() {
            for threads in [1, 2, 7] {
                let ops = ops(isa, threads);
                let one_by_one: Vec<usize> = [1010].into_iter().chain([1; 110]).collect();
                for steps in [&[1000, 120][..], &one_by_one] {
                    assert!(
                        attend(&ops, steps, kind, CacheDType::F16, 1000) == expected,
                        "{isa} {threads} {kind:?} {}",
                        steps.len()
                    );
                }
            }
        }
    }
}

#[test]
fn attention_is_the_softmax_average() {
    let ops = ops(Isa::detect(), 2);
    let got = attend(&ops, &[50], Kind::Grouped, CacheDType::F32, 0);
    let (q, kv) = (noise(5, 50 * 96), noise(6, 50 * 48));
    for t in 0..50 {
        for h in 0..4 {
            let q = &q[t * 96 + h * 24..][..24];
            let key = |s: usize| &kv[s * 48 + h / 2 * 24..][..24];
            let score = |s: usize| {
                0.3 * q.iter().zip(key(s)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            let weights: Vec<f64> = (0..=t).map(|s| score(s).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..24 {
                let expected: f64 =
                    weights.iter().enumerate().map(|(s, w)| w / sum * f64::from(key(s)[d])).sum();
                let got = f64::from(f32::from_bits(got[t * 96 + h * 24 + d]));
                // 24-term dot products and 50-term averages of values below 1: 100 roundings of 2^-24.
                assert!((got - expected).abs() < 100.0 * 6e-8, "{t} {h} {d}: {got} {expected}");
            }
        }
    }
}

#[test]
fn elementwise_ops_agree_on_every_instruction_set() {
    for cols in [1, 15, 16, 17, 64, 100] {
        let mut x = noise(7, 3 * cols);
        x[0] = -0.0;
        let mut run = Vec::new();
        for ops in machines() {
            let t = ops.tensor_from(3, cols, &x);
            let w = noise(8, cols);
            let mut all = bits(&ops.rms_norm(&t, &w, 1e-6));
            all.extend(bits(&ops.layer_norm(&t, &w, &w, 1e-6)));
            let mut hidden = ops.tensor_from(3, cols, &x);
            ops.silu_mul(&t, &mut hidden);
            all.extend(bits(&hidden));
            let mut bent = ops.tensor_from(3, cols, &x);
            ops.gelu(&mut bent);
            all.extend(bits(&bent));
            run.push(all);
        }
        assert!(run.windows(2).all(|w| w[0] == w[1]), "{cols}");
    }
    let ops = ops(Isa::detect(), 1);
    let t = ops.tensor_from(1, 4, &[f32::NAN, f32::INFINITY, -100.0, 0.0]);
    let mut y = ops.tensor_from(1, 4, &[1.0; 4]);
    ops.silu_mul(&t, &mut y);
    assert!(y.data()[0].is_nan() && y.data()[1] == f32::INFINITY && y.data()[3] == 0.0);
    assert!(y.data()[2].abs() < 1e-30);
}

#[test]
fn gated_products_are_silu_of_one_times_the_other() {
    let (n, k) = (100, 256);
    for ops in machines() {
        for dtype in [DType::F32, DType::Q4K, DType::Q8_0] {
            let matrix = |seed| {
                let mut bytes = vec![0; dtype.bytes_for(n * k).unwrap()];
                deephold_quant::quantize(dtype, &noise(seed, n * k), &mut bytes).unwrap();
                PackedMatrix::pack(ops.pool(), dtype, n, k, &bytes).unwrap()
            };
            let (gate, up, bias) = (matrix(1), matrix(2), noise(3, n));
            let input = noise(4, 513 * k);
            let single = |row: usize| {
                let x = ops.tensor_from(1, k, &input[row * k..][..k]);
                bits(&ops.gated((&gate, Some(&bias)), (&up, None), &Activations::new(&x)))
            };
            // With so many rows a part of the columns is gated at a time, and a part of the rows is computed at a time.
            for rows in [1, 3, 513] {
                let x = ops.tensor_from(rows, k, &input[..rows * k]);
                let x = Activations::new(&x);
                let [gates, mut hidden] = ops.linears([(&gate, Some(&bias[..])), (&up, None)], &x);
                ops.silu_mul(&gates, &mut hidden);
                let fused = ops.gated((&gate, Some(&bias)), (&up, None), &x);
                assert_eq!(bits(&fused), bits(&hidden), "{dtype} {rows} rows");
                for row in [0, rows / 2, rows - 1] {
                    assert_eq!(bits(&fused)[row * n..][..n], single(row), "{dtype} row {row} of {rows}");
                }
            }
        }
    }
}

#[test]
fn gelu_is_x_times_the_normal_distribution() {
    // x and Phi(x), from scipy.stats.norm.cdf.
    let cases = [
        (-6.0, 9.865_876e-10),
        (-2.0, 0.022_750_132),
        (-0.5, 0.308_537_54),
        (0.0, 0.5),
        (0.25, 0.598_706_3),
        (1.0, 0.841_344_8),
        (3.0, 0.998_650_1),
        (40.0, 1.0),
    ];
    for ops in machines() {
        let x: Vec<f32> = cases.iter().map(|c| c.0).collect();
        let mut y = ops.tensor_from(1, x.len(), &x);
        ops.gelu(&mut y);
        for ((x, phi), y) in cases.iter().zip(y.data()) {
            // The series is within 1.5e-7 of erfc, so the tail within 0.75e-7 |x|; the sum is rounded once more.
            assert!((x * phi - y).abs() <= 1.5e-7 * x.abs(), "{x}: {y}");
        }
    }
    let ops = ops(Isa::detect(), 1);
    let mut y = ops.tensor_from(1, 2, &[f32::NAN, -0.0]);
    ops.gelu(&mut y);
    assert!(y.data()[0].is_nan() && y.data()[1] == 0.0);
}

#[test]
fn attention_over_whole_texts_sees_all_of_each_and_nothing_else() {
    let (heads, width) = (3, 20);
    let cols = heads * width;
    let texts = [0..1, 1..1, 1..18, 18..51];
    let [q, k, v] = [11, 12, 13].map(|seed| noise(seed, 51 * cols));
    let mut run = Vec::new();
    for ops in machines() {
        let [q, k, v] = [&q, &k, &v].map(|x| ops.tensor_from(51, cols, x));
        run.push(bits(&ops.attend_whole([&q, &k, &v], &texts, heads, 0.3)));
    }
    assert!(run.windows(2).all(|w| w[0] == w[1]));
    for text in texts {
        for row in text.clone() {
            for h in 0..heads {
                let part = |x: &[f32], row: usize| x[row * cols + h * width..][..width].to_vec();
                let weight = |s: usize| {
                    let (q, k) = (part(&q, row), part(&k, s));
                    let dot: f64 = q.iter().zip(&k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    (0.3 * dot).exp()
                };
                let sum: f64 = text.clone().map(weight).sum();
                for d in 0..width {
                    let expected: f64 =
                        text.clone().map(|s| weight(s) / sum * f64::from(part(&v, s)[d])).sum();
                    let got = f64::from(f32::from_bits(run[0][row * cols + h * width + d]));
                    // 20-term dot products and averages of at most 33 values below 1, as in the causal test.
                    assert!((got - expected).abs() < 100.0 * 6e-8, "{row} {h} {d}: {got} {expected}");
                }
            }
        }
    }
}

#[test]
fn experts_are_chosen_grouped_and_summed_by_rank() {
    let ops = ops(Isa::detect(), 3);
    let spec = RouteSpec {
        scoring: Scoring::Sigmoid,
        top_k: 2,
        n_group: 2,
        topk_group: 1,
        group_score: GroupScore::Top2Sum,
        norm_topk_prob: true,
        norm_eps: 0.0,
        routed_scaling_factor: 2.0,
    };
    // Group 0 has the best expert, group 1 the better pair.
    let logits = ops.tensor_from(2, 4, &[3.0, -9.0, 2.0, 2.0, -9.0, -9.0, 1.0, 0.0]);
    let plan = ops.route(&logits, None, &spec);
    assert_eq!(plan.groups(), [(2, 0..2), (3, 2..4)]);
    assert_eq!(plan.row_tokens(), [0, 1, 0, 1]);
    let pool = ops.pool();
    let w: Vec<PackedMatrix> =
        (0..4).map(|e| PackedMatrix::pack_f32(pool, 1, 1, &[e as f32]).unwrap()).collect();
    let x = ops.tensor_from(2, 1, &[10.0, 100.0]);
    let y = ops.moe_linear(&w, &Activations::new(&x), &plan, PairRows::PerToken);
    assert_eq!(y.data(), [20.0, 200.0, 30.0, 300.0]);
    let mut hidden = ops.moe_linear(&w, &Activations::new(&x), &plan, PairRows::PerToken);
    ops.silu_mul(&y, &mut hidden);
    assert_eq!(ops.moe_gated(&w, &w, &Activations::new(&x), &plan).data(), hidden.data());
    let mut out = ops.zeros(2, 1);
    ops.moe_combine(&y, &plan, &mut out);
    assert_eq!(out.data()[0], 50.0);
}

#[test]
fn rope_turns_pairs_and_keeps_lengths() {
    let ops = ops(Isa::detect(), 2);
    let table = RopeTable::new(&[1.0, 0.1], 1.0);
    let x = noise(9, 2 * 6);
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        let mut y = ops.tensor_from(2, 6, &x);
        let slice = RopeSlice { col0: 1, stride: 4, heads: 1, dim: 4 };
        ops.rope(&mut y, slice, &[0, 300], &table, style);
        assert_eq!(y.row(0), &x[..6]);
        let (i, j) = if style == RopeStyle::Half { (1, 3) } else { (1, 2) };
        let (a, b) = (f64::from(x[6 + i]), f64::from(x[6 + j]));
        let expected = a * 300f64.cos() - b * 300f64.sin();
        assert!((f64::from(y.row(1)[i]) - expected).abs() < 1e-6);
        assert_eq!(y.row(1)[0], x[6]);
    }
}
