//! Fixtures of another implementation, and properties of encoding and decoding.

use proptest::prelude::*;

use super::*;

const FORMATS: [DType; 12] = [
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q2K,
    DType::Q3K,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
    DType::IQ4NL,
    DType::IQ4XS,
];

#[test]
fn table_is_in_the_order_of_the_enum() {
    for dtype in DType::all() {
        assert_eq!(DType::from_name(dtype.name()), Some(dtype));
        if let Some(id) = dtype.to_ggml() {
            assert_eq!(DType::from_ggml(id), Some(dtype));
        }
    }
    assert_eq!(DType::Q4K.bytes_for(512), Some(288));
    assert_eq!(DType::Q4K.bytes_for(100), None);
    assert_eq!(DType::F64.bytes_for(usize::MAX), None);
}

/// `tests/data/blocks.bin` (written by `tests/data/make_blocks.py`): per format its GGUF number, a number of blocks,
/// their bytes and the values that the `gguf` Python package decodes them to.
#[test]
fn decoding_agrees_with_the_reference_to_the_bit() {
    let data = include_bytes!("../tests/data/blocks.bin");
    let mut at = 0;
    let mut word = |len: usize| {
        at += len;
        &data[at - len..at]
    };
    let mut seen = 0;
    for _ in 0..14 {
        let header = word(8);
        let id = u32::from_le_bytes(header[..4].try_into().unwrap());
        let blocks = u32::from_le_bytes(header[4..].try_into().unwrap()) as usize;
        let dtype = DType::from_ggml(id).unwrap();
        let bytes = word(blocks * dtype.block_bytes());
        let expected = word(blocks * dtype.block_len() * 4);
        let mut actual = vec![0.0; blocks * dtype.block_len()];
        dequantize(dtype, bytes, &mut actual).unwrap();
        for (i, (a, e)) in actual.iter().zip(expected.as_chunks::<4>().0).enumerate() {
            assert_eq!(a.to_bits(), u32::from_le_bytes(*e), "{dtype} element {i}");
        }
        seen += 1;
    }
    assert_eq!((seen, at), (14, data.len()));
}

#[test]
fn every_f8_code_survives_the_round_trip() {
    for code in 0..=255u8 {
        let value = f8e4m3_to_f32(code);
        assert_eq!(f32_to_f8e4m3(value), code, "{value}");
    }
    assert_eq!(f8e4m3_to_f32(0x7e), 448.0);
    assert_eq!(f32_to_f8e4m3(1e9), 0x7e);
    assert_eq!(f32_to_f8e4m3(f32::NEG_INFINITY), 0xfe);
    // Halfway between 16 and 18 the even mantissa wins; below half the smallest subnormal is zero.
    assert_eq!(f8e4m3_to_f32(f32_to_f8e4m3(17.0)), 16.0);
    assert_eq!(f8e4m3_to_f32(f32_to_f8e4m3(19.0)), 20.0);
    assert_eq!(f32_to_f8e4m3(2f32.powi(-10)), 0);
    assert_eq!(f32_to_f8e4m3(2f32.powi(-10) * 1.01), 1);
}

#[test]
fn nan_and_infinity_are_refused_by_block_formats() {
    for dtype in FORMATS {
        let mut x = vec![1.0; 256];
        let mut out = vec![0; dtype.bytes_for(256).unwrap()];
        x[77] = f32::NAN;
        let error = quantize(dtype, &x, &mut out).unwrap_err();
        assert!(matches!(error, QuantError::NotFinite { index: 77, .. }), "{error}");
        assert!(quantize(dtype, &x[..31], &mut out).is_err());
        assert!(dequantize(dtype, &out, &mut x[..31]).is_err());
    }
}

/// Relative root-mean-square error a format may have on noise: roughly its step over the square root of 12.
fn error_bound(dtype: DType) -> f32 {
    match dtype {
        DType::Q8_0 => 0.01,
        DType::Q6K => 0.025,
        DType::Q5_0 | DType::Q5_1 | DType::Q5K => 0.06,
        DType::Q2K => 0.45,
        DType::Q3K => 0.22,
        _ => 0.13,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn decoded_noise_is_near(x in prop::collection::vec(-1f32..1.0, 512), exponent in -3i32..4) {
        let x: Vec<f32> = x.iter().map(|v| v * 10f32.powi(exponent)).collect();
        for dtype in FORMATS {
            let mut bytes = vec![0; dtype.bytes_for(x.len()).unwrap()];
            quantize(dtype, &x, &mut bytes).unwrap();
            let mut y = vec![0.0; x.len()];
            dequantize(dtype, &bytes, &mut y).unwrap();
            let error: f32 = x.iter().zip(&y).map(|(a, b)| (a - b).powi(2)).sum();
            let power: f32 = x.iter().map(|a| a * a).sum();
            prop_assert!((error / power).sqrt() < error_bound(dtype), "{dtype}: {}", (error / power).sqrt());
        }
    }

    #[test]
    fn any_bits_are_encoded_without_panic(bits in prop::collection::vec(any::<u32>(), 256)) {
        let x: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).map(|v| if v.is_finite() { v } else { 0.0 }).collect();
        for dtype in FORMATS {
            let mut bytes = vec![0; dtype.bytes_for(x.len()).unwrap()];
            quantize(dtype, &x, &mut bytes).unwrap();
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for dtype in FORMATS {
        let mut bytes = vec![0; dtype.bytes_for(256).unwrap()];
        quantize(dtype, &[0.0; 256], &mut bytes).unwrap();
        let mut y = vec![1.0; 256];
        dequantize(dtype, &bytes, &mut y).unwrap();
        assert!(y.iter().all(|&v| v == 0.0), "{dtype}");
    }
}
