//! RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016).
//!
//! Sums run in 16 lanes, element i in lane i mod 16, and the lanes are added in one fixed tree.

use crate::simd::{LANES, Simd, dispatch, load_n, store_n};
use crate::{Ops, Tensor};

#[inline(always)]
unsafe fn rms_body<S: Simd>(x: *const f32, weight: &[f32], eps: f32, out: *mut f32) {
    let n = weight.len();
    // SAFETY: the caller's pointers reach n elements.
    unsafe {
        let mut squares = S::splat(0.0);
        for i in (0..n).step_by(LANES) {
            let v = load_n::<S>(x.add(i), n - i);
            squares = S::fma(v, v, squares);
        }
        let scale = S::splat(1.0 / (S::sum(squares) / n as f32 + eps).sqrt());
        for i in (0..n).step_by(LANES) {
            let v = S::mul(load_n::<S>(x.add(i), n - i), scale);
            store_n::<S>(out.add(i), n - i, S::mul(v, load_n::<S>(weight.as_ptr().add(i), n - i)));
        }
    }
}
dispatch!(fn rms(x: *const f32, weight: &[f32], eps: f32, out: *mut f32) = rms_body);

#[inline(always)]
unsafe fn layer_body<S: Simd>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len();
    // SAFETY: all four have n elements, checked by the caller.
    unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..n).step_by(LANES) {
            sum = S::add(sum, load_n::<S>(x.as_ptr().add(i), n - i));
        }
        let mean = S::sum(sum) / n as f32;
        let mut squares = 0f32;
        for v in x {
            squares = (v - mean).mul_add(v - mean, squares);
        }
        let scale = 1.0 / (squares / n as f32 + eps).sqrt();
        for i in 0..n {
            out[i] = ((x[i] - mean) * scale).mul_add(weight[i], bias[i]);
        }
    }
}
dispatch!(fn layer(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = layer_body);

impl Ops {
    /// x / sqrt(mean(x^2) + eps) * weight, row by row; [T, D] -> [T, D].
    pub fn rms_norm(&self, x: &Tensor, weight: &[f32], eps: f32) -> Tensor {
        assert_eq!(x.cols(), weight.len(), "a norm of another width");
        let mut y = self.dirty(x.rows(), x.cols());
        let isa = self.isa();
        self.for_rows(&mut y, |i, out| {
            // SAFETY: both rows have weight.len() elements; `isa` is available.
            unsafe { rms(isa, x.row(i).as_ptr(), weight, eps, out.as_mut_ptr()) }
        });
        y
    }

    /// RMSNorm in place of `groups` neighbouring slices of weight.len() columns, from `col0` on (Qwen3's heads).
    pub fn rms_norm_groups(&self, x: &mut Tensor, col0: usize, groups: usize, weight: &[f32], eps: f32) {
        let d = weight.len();
        assert!(col0 + groups * d <= x.cols(), "slices beyond the row");
        let isa = self.isa();
        self.for_rows(x, |_, row| {
            for g in 0..groups {
                let p = row[col0 + g * d..][..d].as_mut_ptr();
                // SAFETY: the slice has d elements; the body reads each vector before it writes it.
                unsafe { rms(isa, p.cast_const(), weight, eps, p) }
            }
        });
    }

    /// (x - mean) / sqrt(var + eps) * weight + bias, row by row.
    pub fn layer_norm(&self, x: &Tensor, weight: &[f32], bias: &[f32], eps: f32) -> Tensor {
        assert!(weight.len() == x.cols() && bias.len() == x.cols(), "a norm of another width");
        let mut y = self.dirty(x.rows(), x.cols());
        let isa = self.isa();
        self.for_rows(&mut y, |i, out| {
            // SAFETY: the lengths agree; `isa` is available.
            unsafe { layer(isa, x.row(i), weight, bias, eps, out) }
        });
        y
    }
}
