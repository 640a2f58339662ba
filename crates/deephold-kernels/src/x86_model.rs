//! Instructions that the machine at hand may lack, in plain Rust: those of AVX-512 and AVX-VNNI that the kernels use.
//!
//! The tests compile the kernels' own source over this module in place of `std::arch::x86_64`, so that what a kernel computes
//! is proven on every x86 machine with AVX2; where the processor has the instructions, the same tests run them as well. What
//! is not defined here is the real thing. Behaviour after the operation sections of Intel's Software Developer's Manual, volume 2.

#![allow(non_camel_case_types, reason = "the names of the instructions' types")]

pub(crate) use std::arch::x86_64::*;

use std::array::from_fn;
use std::mem::transmute;

/// 512 bits. The three types are one, so that casts between them cost nothing here either.
#[derive(Clone, Copy)]
pub(crate) struct Register([u8; 64]);

pub(crate) type __m512 = Register;
pub(crate) type __m512d = Register;
pub(crate) type __m512i = Register;
pub(crate) type __mmask16 = u16;

/// What no instruction defines.
const UNDEFINED: u8 = 0xa5;

/// A type of lane: how a register is taken apart into N of them, and put together.
macro_rules! lanes {
    ($($take:ident, $put:ident: [$lane:ty; $n:literal];)*) => {
        impl Register {
            $(
                fn $take(self) -> [$lane; $n] {
                    let (lanes, _) = self.0.as_chunks();
                    from_fn(|i| <$lane>::from_le_bytes(lanes[i]))
                }
                fn $put(lane: impl FnMut(usize) -> $lane) -> Self {
                    let lanes: [$lane; $n] = from_fn(lane);
                    let mut bytes = lanes.iter().flat_map(|lane| lane.to_le_bytes());
                    Register(from_fn(|_| bytes.next().unwrap_or(UNDEFINED)))
                }
            )*
        }
    };
}

lanes! {
    u16s, of_u16s: [u16; 32];
    i32s, of_i32s: [i32; 16];
    u32s, of_u32s: [u32; 16];
    f32s, of_f32s: [f32; 16];
}

/// Sixteen bytes of a register.
fn bytes16(a: __m128i) -> [u8; 16] {
    // SAFETY: both are 16 bytes, and any bits are a value.
    unsafe { transmute(a) }
}

fn words16(a: __m256i) -> [u16; 16] {
    // SAFETY: both are 32 bytes, and any bits are a value.
    unsafe { transmute(a) }
}

fn map(a: __m512, f: impl Fn(f32) -> f32) -> __m512 {
    let a = a.f32s();
    Register::of_f32s(|i| f(a[i]))
}

fn map2(a: __m512, b: __m512, f: impl Fn(f32, f32) -> f32) -> __m512 {
    let (a, b) = (a.f32s(), b.f32s());
    Register::of_f32s(|i| f(a[i], b[i]))
}

// Loads, stores, constants.

/// # Safety
/// As all of a pointer here: it reaches as many bytes as the instruction reads or writes.
pub(crate) unsafe fn _mm512_loadu_si512(p: *const __m512i) -> __m512i {
    // SAFETY: the caller's.
    Register(unsafe { p.cast::<[u8; 64]>().read_unaligned() })
}

pub(crate) unsafe fn _mm512_loadu_ps(p: *const f32) -> __m512 {
    // SAFETY: the caller's.
    Register(unsafe { p.cast::<[u8; 64]>().read_unaligned() })
}

pub(crate) unsafe fn _mm512_storeu_ps(p: *mut f32, a: __m512) {
    // SAFETY: the caller's.
    unsafe { p.cast::<[u8; 64]>().write_unaligned(a.0) }
}

pub(crate) fn _mm512_set1_epi8(x: i8) -> __m512i {
    Register([x as u8; 64])
}

pub(crate) fn _mm512_set1_epi32(x: i32) -> __m512i {
    Register::of_i32s(|_| x)
}

pub(crate) fn _mm512_set1_ps(x: f32) -> __m512 {
    Register::of_f32s(|_| x)
}

pub(crate) fn _mm512_setzero_ps() -> __m512 {
    Register([0; 64])
}

// Bits.

pub(crate) fn _mm512_and_si512(a: __m512i, b: __m512i) -> __m512i {
    Register(from_fn(|i| a.0[i] & b.0[i]))
}

pub(crate) fn _mm512_xor_si512(a: __m512i, b: __m512i) -> __m512i {
    Register(from_fn(|i| a.0[i] ^ b.0[i]))
}

/// Of each bit: the bit of `TABLE` that those of `a`, `b` and `c` count, `a`'s the highest.
pub(crate) fn _mm512_ternarylogic_epi32<const TABLE: i32>(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    let bit = |byte: u8, n: usize| i32::from(byte >> n & 1);
    let of_byte =
        |i: usize, n: usize| TABLE >> (bit(a.0[i], n) << 2 | bit(b.0[i], n) << 1 | bit(c.0[i], n)) & 1;
    Register(from_fn(|i| (0..8).map(|n| (of_byte(i, n) as u8) << n).sum()))
}

pub(crate) fn _mm512_srli_epi16<const N: u32>(a: __m512i) -> __m512i {
    let a = a.u16s();
    Register::of_u16s(|i| if N < 16 { a[i] >> N } else { 0 })
}

pub(crate) fn _mm512_slli_epi32<const N: u32>(a: __m512i) -> __m512i {
    let a = a.u32s();
    Register::of_u32s(|i| if N < 32 { a[i] << N } else { 0 })
}

// Integers.

pub(crate) fn _mm512_add_epi32(a: __m512i, b: __m512i) -> __m512i {
    let (a, b) = (a.i32s(), b.i32s());
    Register::of_i32s(|i| a[i].wrapping_add(b[i]))
}

/// The low 32 bits of each product.
pub(crate) fn _mm512_mullo_epi32(a: __m512i, b: __m512i) -> __m512i {
    let (a, b) = (a.i32s(), b.i32s());
    Register::of_i32s(|i| a[i].wrapping_mul(b[i]))
}

/// A lane's sum plus the products of four unsigned bytes of `codes` with four signed ones of `x`, wrapping.
fn dot(sum: i32, codes: [u8; 4], x: [u8; 4]) -> i32 {
    let product = |i: usize| i32::from(codes[i]) * i32::from(x[i] as i8);
    sum.wrapping_add((0..4).map(product).sum())
}

pub(crate) fn _mm512_dpbusd_epi32(sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
    let (sum, codes, x) = (sum.i32s(), codes.u32s(), x.u32s());
    Register::of_i32s(|i| dot(sum[i], codes[i].to_le_bytes(), x[i].to_le_bytes()))
}

/// A lane's sum plus the products of two signed words, wrapping.
pub(crate) fn _mm512_dpwssd_epi32(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    let sum = sum.i32s();
    let [a, b] = [a, b].map(|v| v.u16s().map(|x| i32::from(x as i16)));
    Register::of_i32s(|i| (2 * i..2 * i + 2).fold(sum[i], |sum, j| sum.wrapping_add(a[j] * b[j])))
}

/// `vpdpbusd` of AVX-VNNI, with eight lanes.
pub(crate) fn _mm256_dpbusd_avx_epi32(sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    // SAFETY: both are 32 bytes, and any bits are a value.
    unsafe {
        let sum: [i32; 8] = transmute(sum);
        let [codes, x] = [codes, x].map(|v| transmute::<__m256i, [[u8; 4]; 8]>(v));
        transmute::<[i32; 8], __m256i>(from_fn(|i| dot(sum[i], codes[i], x[i])))
    }
}

// From one type of number to another.

pub(crate) fn _mm512_cvtepi8_epi32(a: __m128i) -> __m512i {
    let a = bytes16(a);
    Register::of_i32s(|i| i32::from(a[i] as i8))
}

pub(crate) fn _mm512_cvtepu8_epi16(a: __m256i) -> __m512i {
    let a = words16(a);
    Register::of_u16s(|i| a[i / 2] >> (8 * (i % 2)) & 0xff)
}

pub(crate) fn _mm512_cvtepu16_epi32(a: __m256i) -> __m512i {
    let a = words16(a);
    Register::of_u32s(|i| u32::from(a[i]))
}

pub(crate) fn _mm512_cvtph_ps(a: __m256i) -> __m512 {
    let a = words16(a);
    Register::of_f32s(|i| half::f16::from_bits(a[i]).to_f32())
}

pub(crate) fn _mm512_cvtepi32_ps(a: __m512i) -> __m512 {
    let a = a.i32s();
    Register::of_f32s(|i| a[i] as f32)
}

/// To the nearest, ties to even; what does not fit gives the most negative number.
pub(crate) fn _mm512_cvtps_epi32(a: __m512) -> __m512i {
    let a = a.f32s();
    Register::of_i32s(|i| {
        let whole = a[i].round_ties_even();
        if (-2147483648.0..2147483648.0).contains(&whole) { whole as i32 } else { i32::MIN }
    })
}

// Floats.

pub(crate) fn _mm512_add_ps(a: __m512, b: __m512) -> __m512 {
    map2(a, b, |a, b| a + b)
}

pub(crate) fn _mm512_sub_ps(a: __m512, b: __m512) -> __m512 {
    map2(a, b, |a, b| a - b)
}

pub(crate) fn _mm512_mul_ps(a: __m512, b: __m512) -> __m512 {
    map2(a, b, |a, b| a * b)
}

pub(crate) fn _mm512_div_ps(a: __m512, b: __m512) -> __m512 {
    map2(a, b, |a, b| a / b)
}

pub(crate) fn _mm512_fmadd_ps(a: __m512, b: __m512, c: __m512) -> __m512 {
    let (a, b, c) = (a.f32s(), b.f32s(), c.f32s());
    Register::of_f32s(|i| a[i].mul_add(b[i], c[i]))
}

/// The second where one is NaN or both are zero.
pub(crate) fn _mm512_max_ps(a: __m512, b: __m512) -> __m512 {
    map2(a, b, |a, b| if a > b { a } else { b })
}

/// The second where one is NaN or both are zero.
pub(crate) fn _mm512_min_ps(a: __m512, b: __m512) -> __m512 {
    map2(a, b, |a, b| if a < b { a } else { b })
}

pub(crate) fn _mm512_abs_ps(a: __m512) -> __m512 {
    map(a, f32::abs)
}

/// `HOW` 0: to the nearest whole number, ties to even.
pub(crate) fn _mm512_roundscale_ps<const HOW: i32>(a: __m512) -> __m512 {
    const { assert!(HOW == 0, "other ways to round are not modelled") };
    map(a, f32::round_ties_even)
}

pub(crate) fn _mm512_cmp_ps_mask<const HOW: i32>(a: __m512, b: __m512) -> __mmask16 {
    const { assert!(HOW == _CMP_LT_OQ || HOW == _CMP_EQ_OQ, "other comparisons are not modelled") };
    let (a, b) = (a.f32s(), b.f32s());
    let holds = |i: &usize| if HOW == _CMP_LT_OQ { a[*i] < b[*i] } else { a[*i] == b[*i] };
    (0..16).filter(holds).map(|i| 1 << i).sum()
}

/// `b` where the mask's bit is set, else `a`.
pub(crate) fn _mm512_mask_mov_ps(a: __m512, mask: __mmask16, b: __m512) -> __m512 {
    let (a, b) = (a.u32s(), b.u32s());
    Register::of_u32s(|i| if mask >> i & 1 == 1 { b[i] } else { a[i] })
}

// Between registers.

pub(crate) fn _mm512_castps_pd(a: __m512) -> __m512d {
    a
}

pub(crate) fn _mm512_castpd_ps(a: __m512d) -> __m512 {
    a
}

pub(crate) fn _mm512_castsi512_ps(a: __m512i) -> __m512 {
    a
}

pub(crate) fn _mm512_castps512_ps256(a: __m512) -> __m256 {
    let a = a.f32s();
    // SAFETY: both are 32 bytes.
    unsafe { transmute::<[f32; 8], __m256>(from_fn(|i| a[i])) }
}

pub(crate) fn _mm512_castps256_ps512(a: __m256) -> __m512 {
    // SAFETY: both are 32 bytes, and any bits are a value.
    let a: [u8; 32] = unsafe { transmute(a) };
    Register(from_fn(|i| if i < 32 { a[i] } else { UNDEFINED }))
}

/// The half that `HALF` names.
pub(crate) fn _mm512_extractf64x4_pd<const HALF: i32>(a: __m512d) -> __m256d {
    // SAFETY: both are 32 bytes, and any bits are a value.
    unsafe { transmute::<[u8; 32], __m256d>(from_fn(|i| a.0[32 * (HALF & 1) as usize + i])) }
}

/// `b` in place of the half that `HALF` names.
pub(crate) fn _mm512_insertf64x4<const HALF: i32>(a: __m512d, b: __m256d) -> __m512d {
    let at = 32 * (HALF & 1) as usize;
    // SAFETY: both are 32 bytes, and any bits are a value.
    let b: [u8; 32] = unsafe { transmute(b) };
    Register(from_fn(|i| if (at..at + 32).contains(&i) { b[i - at] } else { a.0[i] }))
}
