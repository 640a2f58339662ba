use super::*;
use crate::Isa;
use crate::tests::available;

#[inline(always)]
unsafe fn exp_body<S: Simd>(x: &[f32; 16], out: &mut [f32; 16]) {
    // SAFETY: arrays of 16.
    unsafe { S::store(out.as_mut_ptr(), exp::<S>(S::load(x.as_ptr()))) }
}
dispatch!(fn exp_of(x: &[f32; 16], out: &mut [f32; 16]) = exp_body);

#[inline(always)]
unsafe fn load_body<S: Simd>(h: &[u16; 16], b: &[u8; 16], out: &mut [[f32; 16]; 3]) -> f32 {
    // SAFETY: arrays of 16.
    unsafe {
        let (x, y, z) = (S::load_f16(h.as_ptr()), S::load_bf16(h.as_ptr()), S::load_f8(b.as_ptr()));
        S::store(out[0].as_mut_ptr(), x);
        S::store(out[1].as_mut_ptr(), y);
        S::store(out[2].as_mut_ptr(), z);
        S::sum(z)
    }
}
dispatch!(fn loads(h: &[u16; 16], b: &[u8; 16], out: &mut [[f32; 16]; 3]) -> f32 = load_body);

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn exp_is_close_and_the_same_everywhere() {
    for isa in available() {
        let mut worst = 0.0f64;
        let special =
            [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -87.0, 88.0, -87.1, 200.0];
        let ramp = (0..40_000).map(|i| -87.0 + i as f32 * (175.0 / 40_000.0));
        let xs: Vec<f32> = special.into_iter().chain(ramp).collect();
        for chunk in xs.chunks_exact(16) {
            let x: &[f32; 16] = chunk.try_into().unwrap();
            let (mut a, mut b) = ([0.0; 16], [0.0; 16]);
            // SAFETY: both are available.
            unsafe {
                exp_of(isa, x, &mut a);
                exp_of(Isa::Scalar, x, &mut b);
            }
            for i in 0..16 {
                assert!(same(a[i], b[i]), "{isa}: exp({}) = {} but scalar {}", x[i], a[i], b[i]);
                if x[i].abs() <= 87.0 {
                    let exact = f64::from(x[i]).exp();
                    worst = worst.max((f64::from(a[i]) - exact).abs() / exact);
                }
            }
        }
        assert!(worst < 2e-7, "{isa}: relative error {worst:e}");
        let (x, mut y) = ([f32::NEG_INFINITY; 16], [1.0; 16]);
        // SAFETY: available.
        unsafe { exp_of(isa, &x, &mut y) };
        assert_eq!(y[3], 0.0);
    }
}

#[test]
fn every_code_of_the_small_formats_loads_alike() {
    for isa in available() {
        for first in (0..=u16::MAX).step_by(16) {
            let h: [u16; 16] = std::array::from_fn(|i| first + i as u16);
            let b: [u8; 16] = std::array::from_fn(|i| (first + i as u16) as u8);
            let (mut x, mut y) = ([[0.0; 16]; 3], [[0.0; 16]; 3]);
            // SAFETY: both are available.
            let sums = unsafe { (loads(isa, &h, &b, &mut x), loads(Isa::Scalar, &h, &b, &mut y)) };
            assert!(same(sums.0, sums.1));
            for (x, y) in x.iter().flatten().zip(y.iter().flatten()) {
                assert!(same(*x, *y), "{isa}: {x} but scalar {y} near {first}");
            }
        }
    }
}
