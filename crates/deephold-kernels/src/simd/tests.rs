use super::*;
use crate::Isa;
use crate::tests::available;

/// `tested!(name(args) -> type = body)`: as `dispatch!`, but for a [`Set`].
macro_rules! tested {
    (fn $name:ident($($arg:ident : $ty:ty),*) $(-> $ret:ty)? = $body:ident) => {
        fn $name(set: Set, $($arg: $ty),*) $(-> $ret)? {
            dispatch!(fn real($($arg: $ty),*) $(-> $ret)? = $body);
            // SAFETY: `sets` gives only what the machine can run; the bodies take arrays.
            unsafe {
                match set {
                    Set::Real(isa) => real(isa, $($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Set::Modelled => $body::<modelled::Avx512>($($arg),*),
                }
            }
        }
    };
}

/// What vectors are made of.
#[derive(Clone, Copy, Debug)]
enum Set {
    Real(Isa),
    /// AVX-512 with its instructions in plain Rust.
    #[cfg(target_arch = "x86_64")]
    Modelled,
}

/// All that can be tested here.
fn sets() -> Vec<Set> {
    let sets = available().into_iter().map(Set::Real);
    #[cfg(target_arch = "x86_64")]
    let sets = sets.chain(Isa::Avx2.is_available().then_some(Set::Modelled));
    sets.collect()
}

#[inline(always)]
unsafe fn exp_body<S: Simd>(x: &[f32; 16], out: &mut [f32; 16]) {
    // SAFETY: arrays of 16.
    unsafe { S::store(out.as_mut_ptr(), exp::<S>(S::load(x.as_ptr()))) }
}
tested!(fn exp_of(x: &[f32; 16], out: &mut [f32; 16]) = exp_body);

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
tested!(fn loads(h: &[u16; 16], b: &[u8; 16], out: &mut [[f32; 16]; 3]) -> f32 = load_body);

/// What every operation makes of three vectors, the sums and largest lanes of these last.
#[inline(always)]
unsafe fn all_body<S: Simd>(x: &[[f32; 16]; 3], out: &mut Vec<f32>) {
    // SAFETY: arrays of 16.
    unsafe {
        let [a, b, c] = [0, 1, 2].map(|i| S::load(x[i].as_ptr()));
        let exponents = x[0].map(|a| if a.abs() <= 126.0 { a.trunc() } else { 0.0 });
        let mut vectors = vec![
            S::splat(x[0][3]),
            S::add(a, b),
            S::sub(a, b),
            S::mul(a, b),
            S::div(a, b),
            S::fma(a, b, c),
            S::max(a, b),
            S::min(a, b),
            S::zero_below(a, b, c),
            S::round(a),
            S::pow2(S::load(exponents.as_ptr())),
        ];
        let rows = std::array::from_fn(|i| S::mul([a, b, c][i % 3], S::splat(1.0 + i as f32)));
        vectors.extend(S::transpose(rows));
        for v in vectors {
            let mut lanes = [0.0; 16];
            S::store(lanes.as_mut_ptr(), v);
            out.extend(lanes);
        }
        out.extend([S::sum(a), S::sum(c), S::fold_max(b), S::fold_max(c)]);
    }
}
tested!(fn all(x: &[[f32; 16]; 3], out: &mut Vec<f32>) = all_body);

#[test]
fn every_operation_gives_the_same_bits() {
    let special = [0.0, -0.0, 0.5, -1.5, 2.5, f32::INFINITY, f32::NEG_INFINITY, 1e-40, f32::MAX, 8_388_609.0];
    for set in sets() {
        for round in 0..200 {
            let noise = crate::check::noise(round, 3 * 16);
            let mut x: [[f32; 16]; 3] = std::array::from_fn(|v| {
                std::array::from_fn(|i| noise[v * 16 + i] * [1.0, 100.0, 1e20][(i + v) % 3])
            });
            // Each special value beside ordinary ones, itself and others; NaN not in what `fold_max` takes.
            let (first, second) = (round as usize % 16, round as usize / 16 % 16);
            x[0][first] = special[round as usize % special.len()];
            x[1][first] = special[round as usize / special.len() % special.len()];
            x[0][second] = if round % 3 == 0 { f32::NAN } else { x[1][second] };
            let (mut a, mut b) = (Vec::new(), Vec::new());
            all(set, &x, &mut a);
            all(Set::Real(Isa::Scalar), &x, &mut b);
            assert_eq!(a.len(), 27 * 16 + 4);
            for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
                assert!(same(a, b), "{set:?}: {a} but scalar {b}, vector {} of {x:?}", i / 16);
            }
        }
    }
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn exp_is_close_and_the_same_everywhere() {
    for set in sets() {
        let mut worst = 0.0f64;
        let special =
            [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -87.0, 88.0, -87.1, 200.0];
        let ramp = (0..40_000).map(|i| -87.0 + i as f32 * (175.0 / 40_000.0));
        let xs: Vec<f32> = special.into_iter().chain(ramp).collect();
        for chunk in xs.chunks_exact(16) {
            let x: &[f32; 16] = chunk.try_into().unwrap();
            let (mut a, mut b) = ([0.0; 16], [0.0; 16]);
            exp_of(set, x, &mut a);
            exp_of(Set::Real(Isa::Scalar), x, &mut b);
            for i in 0..16 {
                assert!(same(a[i], b[i]), "{set:?}: exp({}) = {} but scalar {}", x[i], a[i], b[i]);
                if x[i].abs() <= 87.0 {
                    let exact = f64::from(x[i]).exp();
                    worst = worst.max((f64::from(a[i]) - exact).abs() / exact);
                }
            }
        }
        assert!(worst < 2e-7, "{set:?}: relative error {worst:e}");
        let (x, mut y) = ([f32::NEG_INFINITY; 16], [1.0; 16]);
        exp_of(set, &x, &mut y);
        assert_eq!(y[3], 0.0);
    }
}

#[test]
fn every_code_of_the_small_formats_loads_alike() {
    for set in sets() {
        for first in (0..=u16::MAX).step_by(16) {
            let h: [u16; 16] = std::array::from_fn(|i| first + i as u16);
            let b: [u8; 16] = std::array::from_fn(|i| (first + i as u16) as u8);
            let (mut x, mut y) = ([[0.0; 16]; 3], [[0.0; 16]; 3]);
            let sums = (loads(set, &h, &b, &mut x), loads(Set::Real(Isa::Scalar), &h, &b, &mut y));
            assert!(same(sums.0, sums.1));
            for (x, y) in x.iter().flatten().zip(y.iter().flatten()) {
                assert!(same(*x, *y), "{set:?}: {x} but scalar {y} near {first}");
            }
        }
    }
}
