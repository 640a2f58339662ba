//! Attention over a filled cache, beside the ceilings of the machine.
//!
//! `cargo bench -p deephold-kernels --bench attention [-- --quick] [--threads N] [--isa NAME] [--depth N]`. The shapes are those of
//! a 1.5B model with grouped heads and of DeepSeek-V2-Lite's latent attention; as many layers as no cache holds. Best of
//! several rounds: other programs can only make a round slower.
#![allow(missing_docs, reason = "a program")]

use std::sync::Arc;
use std::time::Instant;

use deephold_kernels::{
    AttentionContext, CacheDType, CacheSpec, EntryOrder, Isa, KvCache, Ops, PoolOptions, SeqRows, ThreadPool,
    ceilings,
};

/// Bytes that all layers together take at least: more than the caches of one machine's cores.
const WORKING_SET: usize = 192 << 20;

struct Shape {
    name: &'static str,
    heads: usize,
    specs: Vec<CacheSpec>,
    /// Columns of a value.
    value: usize,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let quick = args.iter().any(|a| a == "--quick");
    let threads = value("--threads").and_then(|v| v.parse().ok()).unwrap_or(0);
    let isa = value("--isa").and_then(|v| v.parse::<Isa>().ok()).filter(|i| i.is_available());
    let isa = isa.unwrap_or_else(Isa::detect);
    let depth = value("--depth").and_then(|v| v.parse().ok()).unwrap_or(if quick { 256 } else { 4096 });
    let pool = Arc::new(ThreadPool::new(PoolOptions { threads, pin: false }));
    let ops = Ops::new(isa, Arc::clone(&pool));
    let limits = ceilings::measure(&pool, isa);
    println!(
        "{} threads, {isa}, {depth} positions; limits: read {:.1} GB/s, f32 {:.1} GMAC/s",
        pool.threads(),
        limits.read_bytes_per_second / 1e9,
        limits.f32_flops_per_second / 2e9
    );
    println!("{:24} {:>10} {:>24} {:>24}", "", "a layer", "arithmetic", "cache read");
    let spec = |name, heads, width, order| CacheSpec { name, heads, width, order };
    let shapes = [
        Shape {
            name: "grouped 12/2 x 128",
            heads: 12,
            specs: vec![spec("k", 2, 128, EntryOrder::Columns), spec("v", 2, 128, EntryOrder::Rows)],
            value: 128,
        },
        Shape {
            name: "latent 16 x 576",
            heads: 16,
            specs: vec![spec("latent", 1, 576, EntryOrder::Rows)],
            value: 512,
        },
    ];
    for shape in shapes {
        for (rows, sequences) in [(1, 1), (1, 8), (if quick { 16 } else { 512 }, 1)] {
            measure(&ops, &shape, depth, rows, sequences, quick, &limits);
        }
    }
}

/// `rows` rows of each sequence, the last of which sees `depth` positions.
fn measure(
    ops: &Ops,
    shape: &Shape,
    depth: usize,
    rows: usize,
    sequences: usize,
    quick: bool,
    limits: &ceilings::Ceilings,
) {
    let depth = depth.max(rows);
    let blocks = depth.div_ceil(16) * sequences;
    let one = vec![shape.specs.clone()];
    let layer_bytes = KvCache::bytes_for(&one, blocks, 16, CacheDType::F16).expect("fits");
    let layers = if quick { 1 } else { WORKING_SET.div_ceil(layer_bytes) };
    let specs: Vec<Vec<CacheSpec>> = (0..layers).map(|_| shape.specs.clone()).collect();
    let cache = KvCache::new(&specs, blocks, 16, CacheDType::F16).expect("memory");
    let table = |s: usize| (0..blocks as u32).filter(|b| *b as usize % sequences == s).collect();
    let fill: Vec<SeqRows> = (0..sequences)
        .map(|s| SeqRows { rows: s * depth..(s + 1) * depth, num_computed: 0, block_table: table(s) })
        .collect();
    let noise = |n: usize| -> Vec<f32> { (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect() };
    for layer in 0..layers {
        let ctx = AttentionContext::new(ops, &cache, &fill);
        for (i, spec) in shape.specs.iter().enumerate() {
            let cols = spec.heads * spec.width;
            ctx.write(layer, i, &ops.tensor_from(depth * sequences, cols, &noise(depth * sequences * cols)));
        }
    }
    let seqs: Vec<SeqRows> = (0..sequences)
        .map(|s| SeqRows {
            rows: s * rows..(s + 1) * rows,
            num_computed: depth - rows,
            block_table: table(s),
        })
        .collect();
    let ctx = AttentionContext::new(ops, &cache, &seqs);
    let (width, total) = (shape.specs[0].width, rows * sequences);
    let q = ops.tensor_from(total, shape.heads * width, &noise(total * shape.heads * width));
    let mut best = f64::MAX;
    for _ in 0..if quick { 2 } else { 7 } {
        let start = Instant::now();
        for layer in 0..layers {
            std::hint::black_box(match shape.specs.len() {
                1 => ctx.attend_mla(layer, &q, shape.value, 0.05, None),
                _ => ctx.attend_gqa(layer, &q, 0.05),
            });
        }
        best = best.min(start.elapsed().as_secs_f64() / layers as f64);
    }
    // Of the last rows' triangle only one half is seen.
    let seen = (depth - rows) * rows + rows * (rows + 1) / 2;
    let macs = (seen * sequences * shape.heads * (width + shape.value)) as f64;
    let (compute, read) = (macs / best, layer_bytes as f64 / best);
    println!(
        "{:24} {:>7.0} us {:>14.1} GMAC/s {:>3.0}% {:>14.1} GB/s {:>3.0}%",
        format!("{}, {sequences} x {rows}", shape.name),
        best * 1e6,
        compute / 1e9,
        100.0 * compute / (limits.f32_flops_per_second / 2.0),
        read / 1e9,
        100.0 * read / limits.read_bytes_per_second
    );
}
