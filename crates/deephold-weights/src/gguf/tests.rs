use deephold_quant::DType;

use super::*;

fn sample() -> (Metadata, Vec<TensorPlan>, Vec<u8>) {
    let mut m = Metadata::new();
    m.set("general.architecture", Value::text("llama"));
    for (i, v) in [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::F32(0.1),
        Value::Bool(true),
        Value::U64(1 << 40),
        Value::I64(-4),
        Value::F64(0.5),
        Value::String(vec![0xff, 0x00]),
        Value::Array(Array::String(vec![b"a".to_vec(), vec![], "é".into()])),
        Value::Array(Array::F32(vec![1.0, -0.0])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::Array(vec![Array::U8(vec![1, 2]), Array::I64(vec![])])),
    ]
    .into_iter()
    .enumerate()
    {
        m.set(format!("key.{i}"), v);
    }
    let plan = |name: &str, dtype: DType, shape: &[usize]| TensorPlan {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        bytes: dtype.bytes_for(shape.iter().product()).expect("whole blocks") as u64,
    };
    let plans = vec![
        plan("a", DType::F32, &[3]),
        plan("b", DType::Q8_0, &[2, 64]),
        plan("c", DType::Q4K, &[2, 2, 256]),
    ];
    let mut w = Writer::begin(Vec::new(), &m, &plans).expect("written");
    for (i, p) in plans.iter().enumerate() {
        w.data(&vec![i as u8 + 1; p.bytes as usize]).and_then(|()| w.pad()).expect("written");
    }
    (m, plans, w.into_inner())
}

#[test]
fn what_is_written_is_read() {
    let (m, plans, bytes) = sample();
    let g = parse(&bytes).expect("a file");
    assert_eq!((g.version, &g.metadata), (3, &m));
    for (i, (p, t)) in plans.iter().zip(&g.tensors).enumerate() {
        assert_eq!((&p.name, p.dtype, &p.shape, p.bytes), (&t.name, t.dtype, &t.shape, t.bytes as u64));
        assert!(bytes[t.offset..t.offset + t.bytes].iter().all(|b| *b == i as u8 + 1));
        assert_eq!(t.offset % 32, 0);
    }
    assert_eq!(m.get_f64("key.6"), Some(0.1));
    assert_eq!(m.get_u64("key.1"), None);
    assert_eq!(m.get_u64("key.4"), Some(3));
    let mut v2 = bytes.clone();
    v2[4] = 2;
    assert_eq!(parse(&v2).expect("version 2").version, 2);
}

#[test]
fn every_truncation_is_an_error() {
    let (_, _, bytes) = sample();
    let g = parse(&bytes).expect("a file");
    let end = g.tensors.iter().map(|t| t.offset + t.bytes).max().expect("tensors");
    for n in 0..end {
        assert!(parse(&bytes[..n]).is_err(), "{n}");
    }
    assert!(parse(&bytes[..end]).is_ok(), "padding after the last tensor may be missing");
}

/// A file with one key whose value is `value` (type included).
fn with_value(value: &[u8]) -> Vec<u8> {
    let mut b = b"GGUF".to_vec();
    b.extend(3u32.to_le_bytes());
    b.extend(0u64.to_le_bytes());
    b.extend(1u64.to_le_bytes());
    b.extend(1u64.to_le_bytes());
    b.push(b'k');
    b.extend(value);
    b
}

#[test]
fn giant_claims_cost_nothing() {
    for claim in [1u64 << 32, 1 << 48, 1 << 61, u64::MAX] {
        for kind in 0u32..14 {
            let array = [9u32.to_le_bytes().as_slice(), &kind.to_le_bytes(), &claim.to_le_bytes()].concat();
            assert!(parse(&with_value(&array)).is_err(), "array of {claim} of type {kind}");
        }
        let string = [8u32.to_le_bytes().as_slice(), &claim.to_le_bytes()].concat();
        assert!(parse(&with_value(&string)).is_err());
        for at in [8, 16] {
            let (_, _, mut bytes) = sample();
            bytes[at..at + 8].copy_from_slice(&claim.to_le_bytes());
            assert!(parse(&bytes).is_err(), "count at {at}");
        }
    }
}

#[test]
fn deep_arrays_are_refused() {
    let mut value = 9u32.to_le_bytes().to_vec();
    for _ in 0..10_000 {
        value.extend(9u32.to_le_bytes());
        value.extend(1u64.to_le_bytes());
    }
    let error = parse(&with_value(&value)).expect_err("too deep").to_string();
    assert!(error.contains("deep"), "{error}");
}

fn entry(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut b = b"GGUF".to_vec();
    b.extend(3u32.to_le_bytes());
    b.extend(1u64.to_le_bytes());
    b.extend(0u64.to_le_bytes());
    b.extend((name.len() as u64).to_le_bytes());
    b.extend(name.as_bytes());
    b.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| b.extend(d.to_le_bytes()));
    b.extend(kind.to_le_bytes());
    b.extend(offset.to_le_bytes());
    b.resize(b.len().next_multiple_of(32) + 4096, 0);
    b
}

#[test]
fn bad_tensor_entries_are_named() {
    assert!(parse(&entry("t", &[8], 0, 0)).is_ok());
    let cases: [(&[u8], &str); 8] = [
        (&entry("t", &[8], 16, 0), "tensor `t` is of ggml type 16 (IQ2_XXS)"),
        (&entry("t", &[8], 999, 0), "999, which is unknown"),
        (&entry("t", &[33], 8, 0), "Q8_0 needs multiples of 32"),
        (&entry("t", &[16, 2], 8, 0), "Q8_0 needs multiples of 32"),
        (&entry("t", &[1 << 40, 1 << 40], 0, 0), "overflows"),
        (&entry("t", &[8], 0, 1), "not a multiple of 32"),
        (&entry("t", &[8], 0, u64::MAX - 31), "overflows"),
        (&entry("t", &[1 << 20], 0, 0), "tensor `t` needs 4194304 bytes"),
    ];
    for (bytes, says) in cases {
        let error = parse(bytes).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(parse(b"GGML").is_err());
    let mut old = entry("t", &[8], 0, 0);
    old[4] = 1;
    assert!(parse(&old).expect_err("version 1").to_string().contains("version"));
    old[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(parse(&old).expect_err("big-endian").to_string().contains("big-endian"));
}
