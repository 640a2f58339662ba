//! Sixteen f32 lanes on every instruction set, so that a kernel body is written once.
//!
//! A vector is 16 lanes everywhere: sixteen plain floats (the specification), two AVX2 registers, one AVX-512 register,
//! four NEON registers. All operations are exactly rounded and sums over lanes take one fixed tree, so every instruction
//! set computes the same bits; only NaN payloads may differ. Bodies are `#[inline(always)]` and generic over [`Simd`];
//! `dispatch!` wraps them into functions with the target features on.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod exp;
#[cfg(all(test, target_arch = "x86_64"))]
mod modelled;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod scalar;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;

pub(crate) use exp::exp;
pub(crate) use scalar::Scalar;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Exactly rounded arithmetic on 16 lanes.
///
/// # Safety
/// All functions may be called only where the processor has the implementation's instructions; pointers reach 16 elements.
#[allow(clippy::missing_safety_doc, reason = "said once for the whole trait")]
pub(crate) trait Simd: Copy {
    type V: Copy;
    /// Asks for a line that will be read soon, wherever the address lies; a hint that not every set takes.
    #[inline(always)]
    unsafe fn ask_for(p: *const u8) {
        let _ = p;
    }
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn load_f16(p: *const u16) -> Self::V;
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    /// E4M3, not scaled.
    unsafe fn load_f8(p: *const u8) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a > b ? a : b, hence b where one is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// a < b ? a : b, hence b where one is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// x < limit ? 0 : v.
    unsafe fn zero_below(x: Self::V, limit: Self::V, v: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// 2^n of whole n in -126..=127.
    unsafe fn pow2(n: Self::V) -> Self::V;
    /// Lane i + 8 to lane i, then i + 4, i + 2, i + 1.
    unsafe fn sum(a: Self::V) -> f32;
    /// The largest lane, where none is NaN.
    unsafe fn fold_max(a: Self::V) -> f32;
    /// Lane i of vector j to lane j of vector i.
    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut lanes = [[0f32; LANES]; LANES];
        // SAFETY: the caller's; arrays of sixteen.
        unsafe {
            for (row, lanes) in rows.into_iter().zip(&mut lanes) {
                Self::store(lanes.as_mut_ptr(), row);
            }
            std::array::from_fn(|i| {
                let column: [f32; LANES] = std::array::from_fn(|j| lanes[j][i]);
                Self::load(column.as_ptr())
            })
        }
    }
}

/// The first `n` <= 16 elements, the rest 0.
///
/// # Safety
/// `p` reaches `n` elements; see [`Simd`].
#[inline(always)]
pub(crate) unsafe fn load_n<S: Simd>(p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's; a whole vector is read only where 16 elements are there.
    unsafe {
        if n >= LANES {
            return S::load(p);
        }
        let mut lanes = [0.0f32; LANES];
        std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
        S::load(lanes.as_ptr())
    }
}

/// Stores the first `n` <= 16 elements.
///
/// # Safety
/// `p` reaches `n` elements; see [`Simd`].
#[inline(always)]
pub(crate) unsafe fn store_n<S: Simd>(p: *mut f32, n: usize, v: S::V) {
    // SAFETY: the caller's; a whole vector is written only where 16 elements are there.
    unsafe {
        if n >= LANES {
            return S::store(p, v);
        }
        let mut lanes = [0.0f32; LANES];
        S::store(lanes.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
    }
}

/// `dispatch!(isa, name(args) -> body::<S>)`: calls the generic `body` with the target features of `isa` switched on.
/// Defines the wrappers in place; the body must be `#[inline(always)] unsafe fn body<S: Simd>(args)`.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $([$($gen:ident : $bound:path),*])? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The pointers and lengths must be what the body says; `isa` must be available.
        #[allow(clippy::too_many_arguments, reason = "raw pointers and lengths, which only the body can check")]
        $vis unsafe fn $name $(<$($gen: $bound),*>)? (isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments, reason = "raw pointers and lengths, which only the body can check")]
            unsafe fn avx2 $(<$($gen: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's.
                unsafe { $body::<$crate::simd::avx2::Avx2 $($(, $gen)*)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
            #[allow(clippy::too_many_arguments, reason = "raw pointers and lengths, which only the body can check")]
            unsafe fn avx512 $(<$($gen: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's.
                unsafe { $body::<$crate::simd::avx512::Avx512 $($(, $gen)*)?>($($arg),*) }
            }
            // SAFETY: `isa` is available, so its instructions are; the rest is the caller's.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::Avx2 | $crate::Isa::AvxVnni => avx2 $(::<$($gen),*>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::Avx512 => avx512 $(::<$($gen),*>)? ($($arg),*),
                    // NEON is part of the aarch64 baseline: no feature to switch on.
                    #[cfg(target_arch = "aarch64")]
                    $crate::Isa::Neon => $body::<$crate::simd::neon::Neon $($(, $gen)*)?>($($arg),*),
                    _ => $body::<$crate::simd::Scalar $($(, $gen)*)?>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use dispatch;
