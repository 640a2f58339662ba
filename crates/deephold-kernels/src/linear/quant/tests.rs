//! Every instruction set against the plain loops, to the bit; the plain loops against decoded matrices.

use deephold_quant::{DType, dequantize, quantize};

use super::*;
use crate::PoolOptions;
use crate::check::noise;
use crate::tensor::SharedOut;
use crate::tests::available;

const FORMATS: [DType; 11] = [
    DType::Q4_1,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q5_0,
    DType::IQ4NL,
    DType::Q4_0,
    DType::Q4K,
    DType::Q6K,
    DType::Q3K,
    DType::Q5K,
    DType::Q2K,
];

/// Any code bytes with f16 scales that are moderate: extreme codes included.
fn random_blocks(dtype: DType, elements: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; dtype.bytes_for(elements).unwrap()];
    let mut decent = bytes.clone();
    quantize(dtype, &noise(seed, elements), &mut decent).unwrap();
    let any = noise(seed + 1, bytes.len());
    let size = dtype.block_bytes();
    let halves: &[usize] = match dtype {
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        DType::Q4K | DType::Q5K | DType::Q4_1 | DType::Q5_1 => &[0, 2],
        _ => &[0],
    };
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = match i / size % 4 {
            0 => 0xff,
            1 => 0x80,
            _ => (any[i] * 128.0) as i32 as u8,
        };
        let at = i % size;
        if halves.iter().any(|&h| at == h || at == h + 1) {
            *byte = decent[i];
        }
    }
    bytes
}

/// Rows of activations whose sums are of every size.
fn activations(seed: u64, rows: usize, k: usize) -> Vec<f32> {
    let mut x = noise(seed, rows * k);
    for (i, row) in x.chunks_exact_mut(k).enumerate() {
        match i {
            1 => row.fill(-1.0), // every code -127
            2 => row.fill(1.0),
            // Magnitudes of 16 codes that add up to 1023, the most that counts as narrow.
            3 | 4 => row.iter_mut().enumerate().for_each(|(j, x)| {
                let of_16 = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 7.0 / 127.0];
                *x = of_16.get(j % 16).unwrap_or(&0.0) * if i == 3 { 1.0 } else { -1.0 };
            }),
            // Narrow ones.
            _ if i / 8 % 2 == 1 => row.iter_mut().for_each(|x| *x = x.powi(5)),
            _ => {}
        }
    }
    x
}

fn product(
    m: &QuantMatrix,
    isa: Isa,
    pool: &ThreadPool,
    x: &[f32],
    rows: usize,
    per_task: usize,
) -> Vec<f32> {
    let act = QuantizedActivations::new(pool, isa, m.activation_blocks(), x, rows, m.k);
    let mut y = vec![f32::NAN; rows * m.n];
    let out = SharedOut::new(&mut y);
    pool.run(m.panels().div_ceil(per_task), &|task, _| {
        let panels = task * per_task..((task + 1) * per_task).min(m.panels());
        let part = Part { rows: 0..rows, panels };
        m.gemm(isa, &act, InputRows::All, &part, Window { out, row0: 0, col0: 0, skip: 0, stride: m.n });
    });
    y
}

/// One panel's product, as [`wide::tile`].
#[cfg(target_arch = "x86_64")]
type Tile = unsafe fn(Layout, &[u8], &QuantizedActivations, &[usize], &mut [[f32; PANEL]], bool);

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn activations_have_the_sums_of_their_codes() {
    let pool = ThreadPool::new(PoolOptions { threads: 2, pin: false });
    for isa in available() {
        for (kind, k) in [(ActivationBlocks::Of32, 96), (ActivationBlocks::Of256, 768)] {
            let x = activations(3, 50, k);
            let act = QuantizedActivations::new(&pool, isa, kind, &x, 50, k);
            let plain = QuantizedActivations::new(&pool, Isa::Scalar, kind, &x, 50, k);
            assert_eq!((&act.q, bits(&act.d)), (&plain.q, bits(&plain.d)), "{isa} {k}");
            let sum = |codes: &[i8]| codes.iter().map(|&q| i32::from(q)).sum::<i32>();
            let of_32 = act.q.chunks_exact(32).map(sum);
            assert!(act.sums32.iter().map(|&s| i32::from(s)).eq(of_32), "{isa} {k}");
            if kind == ActivationBlocks::Of32 {
                continue;
            }
            for (i, codes) in act.q.chunks_exact(16).enumerate() {
                assert_eq!(i32::from(act.sums16[i]), sum(codes), "{isa}");
                let [low, high] = [act.center[2 * i], act.center[2 * i + 1]];
                if isa == Isa::Avx2 {
                    let first: i32 = codes.chunks_exact(4).map(|four| sum(&four[..2])).sum();
                    assert_eq!(i32::from(low), -32 * first);
                    assert_eq!(i32::from(high), -32 * (sum(codes) - first));
                } else {
                    assert_eq!(i32::from(high) << 16 | i32::from(low as u16), -32 * sum(codes), "{isa}");
                }
            }
            for (narrow, codes) in act.narrow.iter().zip(act.q.chunks_exact(256)) {
                let magnitude = |codes: &[i8]| codes.iter().map(|&q| i32::from(q).abs()).sum::<i32>();
                assert_eq!(*narrow, codes.chunks_exact(16).all(|codes| magnitude(codes) <= 1023), "{isa}");
            }
        }
    }
}

#[test]
fn every_set_shape_and_split_gives_the_same_bits() {
    let pools = [1, 2].map(|threads| ThreadPool::new(PoolOptions { threads, pin: false }));
    for dtype in FORMATS {
        for (n, k, seed) in [(1, 256, 1), (37, 768, 2), (64, 512, 3)] {
            let m = QuantMatrix::pack(&pools[1], dtype, n, k, &random_blocks(dtype, n * k, seed)).unwrap();
            let x = activations(seed + 7, 50, k);
            let expected = bits(&product(&m, Isa::Scalar, &pools[0], &x, 50, 1));
            for isa in available() {
                for rows in (1..=9).chain([12, 17, 24, 25, 48, 50]) {
                    let y = product(&m, isa, &pools[rows % 2], &x[..rows * k], rows, 1 + rows % 3);
                    assert_eq!(bits(&y), expected[..rows * n], "{dtype} {isa} {rows} rows [{n}, {k}]");
                }
            }
        }
    }
}

#[test]
fn long_rows_that_are_taken_apart_by_parts_give_the_same_bits() {
    let pool = ThreadPool::new(PoolOptions { threads: 1, pin: false });
    let (n, k, rows) = (20, 73 * 256, 50);
    let x = noise(2, rows * k);
    for dtype in [DType::Q4K, DType::Q5K, DType::Q6K, DType::Q8_0, DType::Q4_1] {
        let m = QuantMatrix::pack(&pool, dtype, n, k, &random_blocks(dtype, n * k, 9)).unwrap();
        let expected = bits(&product(&m, Isa::Scalar, &pool, &x, rows, 2));
        for isa in available() {
            assert_eq!(bits(&product(&m, isa, &pool, &x, rows, 2)), expected, "{dtype} {isa}");
        }
    }
}

/// The kernels that AVX-512, AVX-VNNI and NEON share, held in arrays, and with the instructions of the first two in plain
/// Rust: the same bits as the specification.
#[test]
fn kernels_over_lines_give_the_same_bits() {
    let pool = ThreadPool::new(PoolOptions { threads: 1, pin: false });
    for dtype in FORMATS {
        let (n, k) = (16, 768);
        let m = QuantMatrix::pack(&pool, dtype, n, k, &random_blocks(dtype, n * k, 5)).unwrap();
        let x = activations(11, 16, k);
        let act = QuantizedActivations::new(&pool, Isa::Scalar, m.activation_blocks(), &x, 16, k);
        let narrow = |row: usize| act.narrow.iter().skip(row * k / 256).take(k / 256).all(|narrow| *narrow);
        if act.kind == ActivationBlocks::Of256 {
            assert!((3..16).all(|row| narrow(row) != (5..8).contains(&row)) && !(0..3).any(narrow));
        }
        let lists = [
            &[2][..],
            &[4],
            &[1, 3],
            &[3, 4],
            &[0, 1, 2, 3],
            &[9, 3, 4, 8],
            &[7, 1, 2, 3, 4, 5, 6, 0],
            &[3, 4, 8, 9, 10, 11, 12, 13],
        ];
        for rows in lists {
            let (mut expected, mut y) = ([[0f32; PANEL]; 8], [[0f32; PANEL]; 8]);
            scalar::tile(m.layout, &m.data, &act, rows, &mut expected[..rows.len()]);
            // SAFETY: arrays need no instruction set; one panel of the matrix, rows below 16.
            unsafe {
                wide::tile::<wide::Portable>(m.layout, &m.data, &act, rows, &mut y[..rows.len()], true)
            };
            assert_eq!(bits(y.as_flattened()), bits(expected.as_flattened()), "{dtype} {rows:?}");
            #[cfg(target_arch = "x86_64")]
            if Isa::Avx2.is_available() {
                for (name, tile) in [
                    ("avxvnni", wide::tile::<modelled::AvxVnni> as Tile),
                    ("avx512", wide::tile::<modelled::Avx512Vnni>),
                ] {
                    y.fill([f32::NAN; PANEL]);
                    // SAFETY: AVX2 is there, and all else is modelled; one panel of the matrix, rows below 16.
                    unsafe { tile(m.layout, &m.data, &act, rows, &mut y[..rows.len()], true) };
                    let (y, expected) = (&y[..rows.len()], &expected[..rows.len()]);
                    assert_eq!(
                        bits(y.as_flattened()),
                        bits(expected.as_flattened()),
                        "{name} {dtype} {rows:?}"
                    );
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                // SAFETY: NEON is part of the target.
                unsafe { neon::tile_plain(m.layout, &m.data, &act, rows, &mut y[..rows.len()]) };
                assert_eq!(
                    bits(y.as_flattened()),
                    bits(expected.as_flattened()),
                    "{dtype} {rows:?} widening"
                );
            }
        }
    }
}

#[test]
fn products_are_those_of_the_decoded_matrix() {
    let pool = ThreadPool::new(PoolOptions { threads: 1, pin: false });
    let (n, k, rows) = (20, 512, 3);
    for dtype in FORMATS {
        for bytes in [random_blocks(dtype, n * k, 5), {
            let mut b = vec![0; dtype.bytes_for(n * k).unwrap()];
            quantize(dtype, &noise(6, n * k), &mut b).unwrap();
            b
        }] {
            let mut w = vec![0f32; n * k];
            dequantize(dtype, &bytes, &mut w).unwrap();
            let m = QuantMatrix::pack(&pool, dtype, n, k, &bytes).unwrap();
            let x = noise(8, rows * k);
            let y = product(&m, Isa::detect(), &pool, &x, rows, 2);
            for (i, y) in y.iter().enumerate() {
                let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                // An activation is off by at most half a step of 1/127 (|x| <= 1); float rounding is far below that.
                let magnitude: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
                // Rounding of d_x * d_w * sum and of the min part, which cancel in part.
                let bound = magnitude * (0.5 / 127.0) * 1.01 + 1e-3;
                assert!((f64::from(*y) - exact).abs() <= bound, "{dtype} {i}: {y} against {exact}");
            }
        }
    }
}

#[test]
fn listed_rows_go_where_they_belong() {
    let pool = ThreadPool::new(PoolOptions { threads: 1, pin: false });
    let (n, k) = (32, 256);
    let m = QuantMatrix::pack(&pool, DType::Q4K, n, k, &random_blocks(DType::Q4K, n * k, 3)).unwrap();
    let x = noise(4, 6 * k);
    let all = product(&m, Isa::detect(), &pool, &x, 6, 2);
    let act = QuantizedActivations::new(&pool, Isa::detect(), m.activation_blocks(), &x, 6, k);
    let many: Vec<u32> = (0..50).map(|i| i * i % 6).collect();
    for list in [&[5u32, 0, 3, 3, 1][..], &many] {
        let mut y = vec![0.0; 52 * 40];
        let window = Window { out: SharedOut::new(&mut y), row0: 1, col0: 4, skip: 0, stride: 40 };
        m.gemm(
            Isa::detect(),
            &act,
            InputRows::List(list),
            &Part { rows: 0..list.len(), panels: 0..2 },
            window,
        );
        for (i, &row) in list.iter().enumerate() {
            let from = row as usize * n;
            assert_eq!(bits(&y[(i + 1) * 40 + 4..][..n]), bits(&all[from..from + n]));
        }
    }
}

#[test]
fn nan_spreads_and_nothing_panics() {
    let pool = ThreadPool::new(PoolOptions { threads: 2, pin: false });
    for dtype in FORMATS {
        let m = QuantMatrix::pack(&pool, dtype, 16, 512, &random_blocks(dtype, 16 * 512, 3)).unwrap();
        for (bad, rows) in [(f32::NAN, 2), (f32::NAN, 50), (f32::INFINITY, 2), (f32::NEG_INFINITY, 50)] {
            let mut x = noise(4, rows * 512);
            x[300] = bad;
            for isa in available() {
                let y = product(&m, isa, &pool, &x, rows, 1);
                assert!(
                    y[..16].iter().all(|v| v.is_nan()) && y[16..].iter().all(|v| v.is_finite()),
                    "{dtype}"
                );
            }
        }
        let tiny = vec![f32::from_bits(1); 512];
        assert!(product(&m, Isa::detect(), &pool, &tiny, 1, 1).iter().all(|v| v.abs() < 1e-20));
    }
}

#[test]
fn wrong_sizes_are_refused_and_sizes_are_near_the_file() {
    let pool = ThreadPool::new(PoolOptions { threads: 1, pin: false });
    assert!(QuantMatrix::pack(&pool, DType::Q4K, 16, 256, &[0; 7]).is_err());
    assert!(QuantMatrix::pack(&pool, DType::Q4K, 16, 100, &[]).is_err());
    assert!(QuantMatrix::pack(&pool, DType::F32, 1, 1, &[0; 4]).is_err());
    assert!(!supports(DType::F32) && supports(DType::Q4K));
    let m = QuantMatrix::pack(&pool, DType::Q4K, 16, 256, &[0; 16 * 144]).unwrap();
    assert_eq!(m.bytes(), 16 * 148);
    let empty = QuantMatrix::pack(&pool, DType::Q4K, 0, 256, &[]).unwrap();
    assert_eq!(empty.panels(), 0);
}
