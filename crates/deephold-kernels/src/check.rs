//! Whether this processor computes with its vector instructions what the plain loops compute.
//!
//! The tests prove the same of the kernels' source, on the machines that they ran on. This runs on the machine that serves.

use std::sync::Arc;

use deephold_quant::{DType, quantize};

use crate::{
    Activations, AttentionContext, CacheDType, CacheSpec, EntryOrder, Isa, KernelError, KvCache, Ops,
    PackedMatrix, SeqRows, Tensor, ThreadPool,
};

/// What was compared, to the bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The instruction set beside the plain loops.
    pub isa: Isa,
    /// Each kernel by the format of its weights, or by what it computes.
    pub compared: Vec<&'static str>,
    /// Those of them that gave other bits.
    pub differ: Vec<&'static str>,
}

/// Runs every kind of kernel on small inputs with each instruction set of this machine.
///
/// # Errors
/// Memory is short.
pub fn compare(pool: &Arc<ThreadPool>) -> Result<Vec<Comparison>, KernelError> {
    let run = |isa| results(&Ops::new(isa, pool.clone()));
    let expected = run(Isa::Scalar)?;
    let wider = Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar);
    wider.map(|isa| Ok(comparison(isa, &expected, &run(isa)?))).collect()
}

/// What a kernel computed, under its name.
type Outcome = (&'static str, Vec<u32>);

fn comparison(isa: Isa, expected: &[Outcome], got: &[Outcome]) -> Comparison {
    let differ = expected.iter().zip(got).filter(|(e, g)| e != g).map(|(e, _)| e.0).collect();
    Comparison { isa, compared: expected.iter().map(|e| e.0).collect(), differ }
}

/// The formats that have kernels of their own.
const FORMATS: [DType; 14] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q4_0,
    DType::Q4_1,
    DType::IQ4NL,
    DType::Q6K,
    DType::Q5K,
    DType::Q4K,
    DType::Q3K,
    DType::Q2K,
];

/// Outputs of a product: two whole panels and a part of one.
const OUT: usize = 37;
/// Inputs of a product.
const IN: usize = 512;
/// Rows of a product: a tile of eight, one of four and a single row.
const ROWS: usize = 13;
/// Tokens that attention looks back on: more than a tile of positions.
const CONTEXT: usize = 70;

fn results(ops: &Ops) -> Result<Vec<Outcome>, KernelError> {
    let weights = noise(1, OUT * IN);
    let x = ops.tensor_from(ROWS, IN, &noise(2, ROWS * IN));
    let mut out = Vec::new();
    for dtype in FORMATS {
        let mut bytes = vec![0; dtype.bytes_for(weights.len()).unwrap_or_default()];
        quantize(dtype, &weights, &mut bytes).map_err(|_| KernelError::Format { dtype })?;
        let w = PackedMatrix::pack(ops.pool(), dtype, OUT, IN, &bytes)?;
        out.push((dtype.name(), bits(&ops.linear(&w, &Activations::new(&x)))));
    }
    // All codes of E4M3 but its two NaNs.
    let codes: Vec<u8> = (0..OUT * IN).map(|i| (i % 127) as u8 | ((i / 127 % 2) as u8) << 7).collect();
    let scales = noise(3, OUT.div_ceil(16) * IN.div_ceil(128));
    let w = PackedMatrix::pack_fp8(ops.pool(), OUT, IN, &codes, &scales, (16, 128))?;
    out.push((DType::F8E4M3.name(), bits(&ops.linear(&w, &Activations::new(&x)))));

    out.push(("grouped attention", attention(ops, false)?));
    out.push(("latent attention", attention(ops, true)?));
    out.push(("norm", bits(&ops.rms_norm(&x, &noise(4, IN), 1e-6))));
    let mut hidden = ops.tensor_from(x.rows(), x.cols(), x.data());
    ops.silu_mul(&x, &mut hidden);
    out.push(("silu", bits(&hidden)));
    Ok(out)
}

/// One sequence of [`CONTEXT`] tokens: two heads share each head of the cache, or four its only one.
fn attention(ops: &Ops, latent: bool) -> Result<Vec<u32>, KernelError> {
    let (heads, kv_heads, width) = (4, if latent { 1 } else { 2 }, 40);
    let spec = |name, order| CacheSpec { name, heads: kv_heads, width, order };
    let (columns, rows) = (spec("k", EntryOrder::Columns), spec("v", EntryOrder::Rows));
    let layer = if latent { vec![rows] } else { vec![columns, rows] };
    let blocks = CONTEXT.div_ceil(16);
    let cache = KvCache::new(&[layer], blocks, 16, CacheDType::F16)?;
    let block_table = (0..blocks as u32).rev().collect();
    let seqs = [SeqRows { rows: 0..CONTEXT, num_computed: 0, block_table }];
    let ctx = AttentionContext::new(ops, &cache, &seqs);
    let tensor = |seed, cols| ops.tensor_from(CONTEXT, cols, &noise(seed, CONTEXT * cols));
    ctx.write(0, 0, &tensor(5, kv_heads * width));
    let queries = tensor(6, heads * width);
    if latent {
        return Ok(bits(&ctx.attend_mla(0, &queries, 32, 0.3, None)));
    }
    ctx.write(0, 1, &tensor(7, kv_heads * width));
    Ok(bits(&ctx.attend_gqa(0, &queries, 0.3)))
}

pub(crate) fn bits(t: &Tensor) -> Vec<u32> {
    t.data().iter().map(|x| x.to_bits()).collect()
}

/// SplitMix64; values in -1..1.
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolOptions;

    #[test]
    fn every_kernel_gives_something_and_the_same_on_every_set() {
        let pool = Arc::new(ThreadPool::new(PoolOptions { threads: 2, pin: false }));
        for (name, values) in results(&Ops::new(Isa::Scalar, pool.clone())).unwrap() {
            let values: Vec<f32> = values.into_iter().map(f32::from_bits).collect();
            let distinct: std::collections::BTreeSet<u32> = values.iter().map(|v| v.to_bits()).collect();
            assert!(values.iter().all(|v| v.is_finite()), "{name}");
            assert!(distinct.len() > values.len() / 2, "{name}: {} values differ", distinct.len());
        }
        let all = compare(&pool).unwrap();
        assert_eq!(all.len(), Isa::available().len() - 1);
        for one in all {
            assert!(one.compared.len() == FORMATS.len() + 5 && one.differ.is_empty(), "{one:?}");
        }
    }

    #[test]
    fn other_bits_are_named() {
        let expected = [("a", vec![1, 2]), ("b", vec![3])];
        let got = [("a", vec![1, 2]), ("b", vec![4])];
        let one = comparison(Isa::Scalar, &expected, &got);
        assert_eq!((one.compared, one.differ), (vec!["a", "b"], vec!["b"]));
    }
}
