//! Products with weight matrices in every format, beside the ceilings of the machine.
//!
//! `cargo bench -p deephold-kernels [-- --quick] [--threads N] [--isa NAME] [--rows N] [--columns K] [--matrices N]
//! [--format NAME] [--tokens T,..]`. The shape is a feed-forward matrix of a 1.5B model; several matrices are multiplied one after the other,
//! as layers are. Best of several rounds: other programs can only make a round slower.
//!
//! `--step` measures the products of decoding one token with a whole model of 0.6B instead, where matrices are small and none is
//! in a cache: the median of several steps, since a step is long enough to meet what other programs do.
#![allow(missing_docs, reason = "a program")]

use std::sync::Arc;
use std::time::Instant;

use deephold_kernels::{Activations, Isa, Ops, PackedMatrix, PoolOptions, ThreadPool, ceilings};
use deephold_quant::DType;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let quick = args.iter().any(|a| a == "--quick");
    let threads = value("--threads").and_then(|v| v.parse().ok()).unwrap_or(0);
    let isa = value("--isa").and_then(|v| v.parse::<Isa>().ok()).filter(|i| i.is_available());
    let isa = isa.unwrap_or_else(Isa::detect);
    let pool = Arc::new(ThreadPool::new(PoolOptions { threads, pin: false }));
    let (n, k) = if quick { (512, 512) } else { (8960, 1536) };
    // More rows than the caches hold show what comes from memory.
    let number = |name: &str, default: usize| value(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let (n, k, matrices) = (number("--rows", n), number("--columns", k), number("--matrices", 1));
    let limits = ceilings::measure(&pool, isa);
    println!(
        "{} threads, {isa}, {matrices} x [{n}, {k}]; limits: read {:.1} GB/s, int8 {:.1} GMAC/s, f32 {:.1} GMAC/s",
        pool.threads(),
        limits.read_bytes_per_second / 1e9,
        limits.int8_macs_per_second / 1e9,
        limits.f32_flops_per_second / 2e9
    );
    let formats =
        [DType::Q4K, DType::Q6K, DType::Q5K, DType::Q4_0, DType::Q8_0, DType::IQ4XS, DType::BF16, DType::F32];
    let only = value("--format");
    let formats = formats.into_iter().filter(|d| only.as_deref().is_none_or(|name| name == d.name()));
    if args.iter().any(|a| a == "--step") {
        println!("{:8} {:>12} {}", "", "all", PARTS.map(|(name, ..)| format!("{name:>12}")).join(" "));
        formats.for_each(|dtype| step(&Ops::new(isa, Arc::clone(&pool)), dtype, quick));
        return;
    }
    let tokens = value("--tokens").unwrap_or_else(|| "1,8,512".to_owned());
    let tokens: Vec<usize> = tokens.split(',').filter_map(|t| t.parse().ok()).collect();
    let heads: String = tokens.iter().map(|t| format!(" {:>22}", format!("T={t}"))).collect();
    println!("{:8} {:>14}{heads}", "", "pack");
    for dtype in formats {
        let bytes = stored(dtype, n, k);
        let start = Instant::now();
        let pack = |_| PackedMatrix::pack(&pool, dtype, n, k, &bytes).expect("packs");
        let ws: Vec<PackedMatrix> = (0..matrices).map(pack).collect();
        let pack = (matrices * bytes.len()) as f64 / start.elapsed().as_secs_f64() / 1e9;
        let ops = Ops::new(isa, Arc::clone(&pool));
        let compute =
            if ws[0].is_integer() { limits.int8_macs_per_second } else { limits.f32_flops_per_second / 2.0 };
        let cells: String = tokens
            .iter()
            .map(|&t| {
                let seconds = best(&ops, &ws, t, quick);
                let read = ws.iter().map(|w| w.bytes() as f64).sum::<f64>();
                let macs = (n * k * t * matrices) as f64;
                let limit = (macs / compute).max(read / limits.read_bytes_per_second);
                let figure = if t == 1 {
                    format!("{:.1} GB/s", read / seconds / 1e9)
                } else {
                    format!("{:.1} GMAC/s", macs / seconds / 1e9)
                };
                format!(" {:>22}", format!("{figure} {:3.0}%", 100.0 * limit / seconds))
            })
            .collect();
        let pack = format!("{pack:.2} GB/s");
        println!("{:8} {pack:>14}{cells}", dtype.name());
    }
}

/// What a layer multiplies by, with rows and columns of each matrix, and the vocabulary (Qwen3-0.6B).
const PARTS: [(&str, usize, usize); 5] = [
    ("q, k, v", 4096, 1024),
    ("output", 1024, 2048),
    ("gate, up", 6144, 1024),
    ("down", 1024, 3072),
    ("vocabulary", 151_936, 1024),
];

/// Prints how fast each part is read, in GB/s, and the whole step.
fn step(ops: &Ops, dtype: DType, quick: bool) {
    let (layers, steps) = if quick { (1, 1) } else { (28, 15) };
    let pack = |(_, n, k): (&str, usize, usize)| {
        PackedMatrix::pack(ops.pool(), dtype, n, k, &stored(dtype, n, k)).expect("packs")
    };
    let layers: Vec<[PackedMatrix; 4]> =
        (0..layers).map(|_| [PARTS[0], PARTS[1], PARTS[2], PARTS[3]].map(pack)).collect();
    let vocabulary = pack(PARTS[4]);
    let times: Vec<[f64; 5]> = (0..steps)
        .map(|_| {
            let mut times = [0.0; 5];
            let products = layers.iter().flat_map(|layer| layer.iter().enumerate()).chain([(4, &vocabulary)]);
            for (part, w) in products {
                let x = ops.zeros(1, w.in_features());
                let start = Instant::now();
                std::hint::black_box(ops.linear(w, &Activations::new(&x)));
                times[part] += start.elapsed().as_secs_f64();
            }
            times
        })
        .collect();
    let rate = |bytes: usize, seconds: &dyn Fn(&[f64; 5]) -> f64| {
        let mut all: Vec<f64> = times.iter().map(seconds).collect();
        all.sort_by(f64::total_cmp);
        format!("{:>7.1} GB/s", bytes as f64 / all[all.len() / 2] / 1e9)
    };
    let bytes = |part: usize| match part {
        4 => vocabulary.bytes(),
        _ => layers.iter().map(|layer| layer[part].bytes()).sum(),
    };
    let cells: Vec<String> = (0..5).map(|part| rate(bytes(part), &|times| times[part])).collect();
    let all = rate((0..5).map(bytes).sum(), &|times| times.iter().sum());
    println!("{:8} {all} {}", dtype.name(), cells.join(" "));
}

/// The best time of the products of all matrices with `t` rows.
fn best(ops: &Ops, ws: &[PackedMatrix], t: usize, quick: bool) -> f64 {
    // A bell's shape, as norms put it out: where sums are small, sets of instructions have shorter ways.
    let mut state = 7;
    let x: Vec<f32> =
        (0..t * ws[0].in_features()).map(|_| (0..4).map(|_| evenly(&mut state)).sum()).collect();
    let x = ops.tensor_from(t, ws[0].in_features(), &x);
    let (rounds, seconds) = if quick { (2, 0.01) } else { (20, 1.0) };
    let (start, mut best, mut done) = (Instant::now(), f64::MAX, 0);
    while done < rounds || (done < 3 * rounds && start.elapsed().as_secs_f64() < seconds) {
        let round = Instant::now();
        for w in ws {
            std::hint::black_box(ops.linear(w, &Activations::new(&x)));
        }
        best = best.min(round.elapsed().as_secs_f64());
        done += 1;
    }
    best
}

/// The next of evenly spread numbers from -1 to 1.
fn evenly(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as f32 / 8_388_608.0 - 1.0
}

/// A row-major matrix as a checkpoint stores it.
fn stored(dtype: DType, n: usize, k: usize) -> Vec<u8> {
    let size = dtype.bytes_for(n * k).expect("whole blocks");
    let mut bytes = vec![0; size];
    let mut state = 1u64;
    let values: Vec<f32> = (0..k).map(|_| evenly(&mut state)).collect();
    let row = size / n;
    match dtype {
        DType::F32 => {
            values
                .iter()
                .zip(bytes.chunks_exact_mut(4))
                .for_each(|(v, b)| b.copy_from_slice(&v.to_le_bytes()));
        }
        DType::BF16 => {
            let top = |v: &f32| ((v.to_bits() >> 16) as u16).to_le_bytes();
            values.iter().zip(bytes.chunks_exact_mut(2)).for_each(|(v, b)| b.copy_from_slice(&top(v)));
        }
        _ => deephold_quant::quantize(dtype, &values, &mut bytes[..row]).expect("quantizes"),
    }
    let (first, rest) = bytes.split_at_mut(row);
    rest.chunks_exact_mut(row).for_each(|r| r.copy_from_slice(first));
    bytes
}
