use super::*;

fn file(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(json: &str, data: usize) -> Result<Header, WeightsError> {
    let bytes = file(json, data);
    parse_header(&bytes, bytes.len() as u64)
}

fn refusal(json: &str, data: usize) -> String {
    parse(json, data).expect_err(json).to_string()
}

#[test]
fn a_header_is_read() {
    let h = parse(
        r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
            "e":{"dtype":"U8","shape":[0],"data_offsets":[16,16]}}"#,
        16,
    )
    .expect("a header");
    assert_eq!(h.metadata["format"], "pt");
    let names: Vec<_> = h.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "e"]);
    assert_eq!((h.tensors[1].shape.as_slice(), h.tensors[1].bytes), ([2, 3].as_slice(), 12));
    assert_eq!(parse("{}", 0).expect("an empty file").tensors, []);
}

#[test]
fn contradictions_are_refused() {
    let one = |body: &str| format!(r#"{{"x":{{{body}}}}}"#);
    let cases = [
        (one(r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#), 4, "does not take"),
        (one(r#""dtype":"F32","shape":[1],"data_offsets":[4,0]"#), 4, "lies at"),
        (one(r#""dtype":"F32","shape":[1],"data_offsets":[0,8]"#), 4, "lies at"),
        (one(r#""dtype":"F32","shape":[1],"data_offsets":[0,4]"#), 8, "after the last tensor"),
        (one(r#""dtype":"F32","shape":[1],"data_offsets":[4,8]"#), 8, "belong to no tensor"),
        (one(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]"#), 4, "overflows"),
        (one(r#""dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]"#), 0, "does not take"),
        (one(r#""dtype":"F33","shape":[1],"data_offsets":[0,4]"#), 4, "tensor `x` is F33"),
        (one(r#""dtype":"Q8_0","shape":[32],"data_offsets":[0,34]"#), 34, "is Q8_0"),
        (one(r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#), 4, "what safetensors writes"),
        (one(r#""dtype":"F32","shape":[1]"#), 4, "data_offsets"),
        (
            r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#.to_owned(),
            2,
            "comes twice",
        ),
        (
            r#"{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#.to_owned(),
            3,
            "overlaps",
        ),
        ("[]".to_owned(), 0, "what safetensors writes"),
    ];
    for (json, data, says) in cases {
        let error = refusal(&json, data);
        assert!(error.contains(says), "{json}: {error}");
    }
    let deep = format!(r#"{{"x":{}}}"#, "[".repeat(100_000));
    assert!(refusal(&deep, 0).contains("what safetensors writes"));
}

#[test]
fn lengths_are_held_against_the_file() {
    assert!(parse_header(b"", 0).is_err());
    assert!(parse_header(&[0; 7], 7).is_err());
    for claim in [3, 1 << 20, HEADER_BYTES_MAX + 1, u64::MAX] {
        let mut bytes = file("{}", 0);
        bytes[..8].copy_from_slice(&claim.to_le_bytes());
        assert!(parse_header(&bytes, bytes.len() as u64).is_err(), "{claim}");
        // A file that is said to be longer than what is there.
        assert!(parse_header(&bytes, u64::MAX).is_err(), "{claim}");
    }
}

#[test]
fn what_is_written_is_read() {
    let dir = deephold_testkit::TempDir::new("safetensors");
    let path = dir.join("x.safetensors");
    let tensors = [
        OwnedTensor { name: "a".into(), dtype: DType::F8E4M3, shape: vec![3], data: vec![1, 2, 3] },
        OwnedTensor { name: "b.weight".into(), dtype: DType::F32, shape: vec![1, 2], data: vec![7; 8] },
    ];
    write(&path, &tensors, &BTreeMap::from([("format".into(), "pt".into())])).expect("written");
    let bytes = std::fs::read(&path).expect("a file");
    let header = parse_header(&bytes, bytes.len() as u64).expect("a header");
    for (t, h) in tensors.iter().zip(&header.tensors) {
        assert_eq!((&t.name, t.dtype, &t.shape), (&h.name, h.dtype, &h.shape));
        assert_eq!(t.data, bytes[h.offset..h.offset + h.bytes]);
    }
    let twice = [tensors[0].clone(), tensors[0].clone()];
    assert!(write(&dir.join("y"), &twice, &BTreeMap::new()).is_err());
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("a folder").collect();
    assert_eq!(left.len(), 1, "nothing partial stays");
}
