//! A small safetensors reader and writer, independent of the engine's own so that one cannot hide the other's defects.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

/// A tensor as it lies in a file.
#[derive(Clone, Debug)]
pub struct RawTensor {
    /// `F32`, `BF16`, `F8_E4M3`, `I32`, ...
    pub dtype: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Little-endian, row-major.
    pub bytes: Vec<u8>,
}

impl RawTensor {
    /// An F32 tensor.
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: "F32".into(), shape: shape.to_vec(), bytes }
    }

    /// A BF16 tensor, rounded to nearest even.
    pub fn bf16(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        Self { dtype: "BF16".into(), shape: shape.to_vec(), bytes }
    }

    /// A tensor of bytes in the given one-byte type.
    pub fn u8(dtype: &str, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { dtype: dtype.into(), shape: shape.to_vec(), bytes }
    }

    /// The values of an F32, F16 or BF16 tensor.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype.as_str() {
            "F32" => {
                self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            "BF16" => {
                self.bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            "F16" => {
                self.bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            other => panic!("a {other} tensor has no float values here"),
        }
    }

    /// The values of an I32 tensor.
    pub fn to_i32(&self) -> Vec<i32> {
        assert_eq!(self.dtype, "I32");
        self.bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

/// All tensors of one file, by name.
#[derive(Clone, Debug, Default)]
pub struct SafeTensors(pub BTreeMap<String, RawTensor>);

impl SafeTensors {
    /// Reads a whole file.
    pub fn read(path: &Path) -> Self {
        let file = std::fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let header_len = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
        let header: Map<String, Value> =
            serde_json::from_slice(&file[8..8 + header_len]).expect("safetensors header");
        let data = &file[8 + header_len..];
        let number = |v: &Value| v.as_u64().expect("a number") as usize;
        let mut tensors = BTreeMap::new();
        for (name, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let offsets = &entry["data_offsets"];
            tensors.insert(
                name.clone(),
                RawTensor {
                    dtype: entry["dtype"].as_str().expect("dtype").to_owned(),
                    shape: entry["shape"].as_array().expect("shape").iter().map(number).collect(),
                    bytes: data[number(&offsets[0])..number(&offsets[1])].to_vec(),
                },
            );
        }
        Self(tensors)
    }

    /// The tensor called `name`.
    #[track_caller]
    pub fn get(&self, name: &str) -> &RawTensor {
        self.0.get(name).unwrap_or_else(|| panic!("no tensor `{name}`"))
    }
}

/// Writes one file, tensors in name order.
pub fn write_safetensors(path: &Path, tensors: &BTreeMap<String, RawTensor>) {
    let mut header = Map::new();
    let mut offset = 0usize;
    for (name, t) in tensors {
        let end = offset + t.bytes.len();
        header
            .insert(name.clone(), json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut header = serde_json::to_vec(&Value::Object(header)).expect("a header");
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = Vec::with_capacity(8 + header.len() + offset);
    out.extend_from_slice(&(header.len() as u64).to_le_bytes());
    out.extend_from_slice(&header);
    for t in tensors.values() {
        out.extend_from_slice(&t.bytes);
    }
    std::fs::write(path, out).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}
