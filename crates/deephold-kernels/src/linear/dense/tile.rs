//! The inner loop: one panel against up to six tokens, accumulators in registers.
//!
//! Six tokens of 16 lanes are twelve AVX2 registers; with the weight and a broadcast that is all sixteen. A tile of fewer
//! tokens computes the same chain for each element. One token alone leaves only two chains in flight, so the latency of
//! an FMA would bound it; decoding is bound by memory before that on f32 weights, and close to it on bf16.

use deephold_quant::DType;

use crate::Isa;
use crate::simd::{LANES, Simd, dispatch};

/// Tokens a tile.
pub(super) const TOKENS: usize = 6;

/// How a weight of a panel is read.
trait Weight: Copy {
    const SIZE: usize;
    /// # Safety
    /// See [`Simd`].
    unsafe fn load<S: Simd>(p: *const u8) -> S::V;
}

#[derive(Clone, Copy)]
struct F32;
#[derive(Clone, Copy)]
struct F16;
#[derive(Clone, Copy)]
struct Bf16;

impl Weight for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load(p.cast()) }
    }
}
impl Weight for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load_f16(p.cast()) }
    }
}
impl Weight for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load_bf16(p.cast()) }
    }
}

type Out = [[f32; LANES]; TOKENS];

/// Multiplies `panel` with `xs` (1 to 6 rows of k) into the first rows of `y`.
pub(super) fn run(
    isa: Isa,
    dtype: DType,
    panel: &[u8],
    k: usize,
    block_k: usize,
    xs: &[&[f32]],
    y: &mut Out,
) {
    assert!(xs.len() <= TOKENS && xs.iter().all(|x| x.len() == k), "rows of another length");
    // SAFETY: `isa` is available as `Ops` checked; the panel holds k lines of 16 weights by construction, and each x
    // has k elements.
    unsafe {
        match dtype {
            DType::F32 => any::<F32>(isa, panel, k, xs, y),
            DType::F16 => any::<F16>(isa, panel, k, xs, y),
            DType::BF16 => any::<Bf16>(isa, panel, k, xs, y),
            _ => match xs.len() {
                1 => fp8_1(isa, panel, k, block_k, xs, y),
                2 => fp8_2(isa, panel, k, block_k, xs, y),
                3 => fp8_3(isa, panel, k, block_k, xs, y),
                4 => fp8_4(isa, panel, k, block_k, xs, y),
                5 => fp8_5(isa, panel, k, block_k, xs, y),
                _ => fp8_6(isa, panel, k, block_k, xs, y),
            },
        }
    }
}

unsafe fn any<W: Weight>(isa: Isa, panel: &[u8], k: usize, xs: &[&[f32]], y: &mut Out) {
    // SAFETY: the caller's.
    unsafe {
        match xs.len() {
            1 => plain_1::<W>(isa, panel, k, xs, y),
            2 => plain_2::<W>(isa, panel, k, xs, y),
            3 => plain_3::<W>(isa, panel, k, xs, y),
            4 => plain_4::<W>(isa, panel, k, xs, y),
            5 => plain_5::<W>(isa, panel, k, xs, y),
            _ => plain_6::<W>(isa, panel, k, xs, y),
        }
    }
}

#[inline(always)]
unsafe fn plain<S: Simd, W: Weight, const T: usize>(panel: &[u8], k: usize, xs: &[&[f32]], y: &mut Out) {
    // SAFETY: `run` checked the lengths.
    unsafe {
        let x: [*const f32; T] = std::array::from_fn(|t| xs[t].as_ptr());
        let mut acc = [S::splat(0.0); T];
        let mut w = panel.as_ptr();
        for c in 0..k {
            let v = W::load::<S>(w);
            for t in 0..T {
                acc[t] = S::fma(v, S::splat(*x[t].add(c)), acc[t]);
            }
            w = w.add(LANES * W::SIZE);
        }
        for t in 0..T {
            S::store(y[t].as_mut_ptr(), acc[t]);
        }
    }
}

#[inline(always)]
unsafe fn fp8<S: Simd, const T: usize>(panel: &[u8], k: usize, block_k: usize, xs: &[&[f32]], y: &mut Out) {
    // SAFETY: `run` checked the lengths; factors lie behind the codes, 16 f32 a block.
    unsafe {
        let x: [*const f32; T] = std::array::from_fn(|t| xs[t].as_ptr());
        let mut acc = [S::splat(0.0); T];
        let (codes, factors) = panel.split_at(k * LANES);
        for (block, c0) in (0..k).step_by(block_k).enumerate() {
            let factor = S::load(factors[block * LANES * 4..].as_ptr().cast());
            for c in c0..(c0 + block_k).min(k) {
                let v = S::mul(S::load_f8(codes.as_ptr().add(c * LANES)), factor);
                for t in 0..T {
                    acc[t] = S::fma(v, S::splat(*x[t].add(c)), acc[t]);
                }
            }
        }
        for t in 0..T {
            S::store(y[t].as_mut_ptr(), acc[t]);
        }
    }
}

macro_rules! tiles {
    ($($tokens:literal $plain:ident $plain_body:ident $fp8:ident $fp8_body:ident;)*) => {$(
        #[inline(always)]
        unsafe fn $plain_body<S: Simd, W: Weight>(panel: &[u8], k: usize, xs: &[&[f32]], y: &mut Out) {
            // SAFETY: the caller's.
            unsafe { plain::<S, W, $tokens>(panel, k, xs, y) }
        }
        #[inline(always)]
        unsafe fn $fp8_body<S: Simd>(panel: &[u8], k: usize, block_k: usize, xs: &[&[f32]], y: &mut Out) {
            // SAFETY: the caller's.
            unsafe { fp8::<S, $tokens>(panel, k, block_k, xs, y) }
        }
        dispatch!(fn $plain[W: Weight](panel: &[u8], k: usize, xs: &[&[f32]], y: &mut Out) = $plain_body);
        dispatch!(fn $fp8(panel: &[u8], k: usize, block_k: usize, xs: &[&[f32]], y: &mut Out) = $fp8_body);
    )*};
}
tiles! {
    1 plain_1 plain_body_1 fp8_1 fp8_body_1;
    2 plain_2 plain_body_2 fp8_2 fp8_body_2;
    3 plain_3 plain_body_3 fp8_3 fp8_body_3;
    4 plain_4 plain_body_4 fp8_4 fp8_body_4;
    5 plain_5 plain_body_5 fp8_5 fp8_body_5;
    6 plain_6 plain_body_6 fp8_6 fp8_body_6;
}
