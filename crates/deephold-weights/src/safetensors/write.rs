//! Writes a safetensors file: for fixtures and conversions.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use deephold_quant::DType;
use serde_json::json;

use crate::WeightsError;
use crate::atomic::AtomicFile;
use crate::shape::elements;

/// A tensor in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedTensor {
    /// Name.
    pub name: String,
    /// Element type, none of the block formats.
    pub dtype: DType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Row-major.
    pub data: Vec<u8>,
}

/// Writes `tensors` in their order; the file appears whole or not at all.
///
/// # Errors
/// A tensor whose bytes do not fit its shape, a block format, a name that comes twice, or the system's refusal.
pub fn write(
    path: &Path,
    tensors: &[OwnedTensor],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut at = 0;
    for t in tensors {
        let bad = |problem: &str| WeightsError::malformed(format!("tensor `{}`", t.name), problem);
        let elements = elements(&t.shape);
        if t.dtype.is_quantized() {
            return Err(bad("is in a block format, which safetensors does not have"));
        }
        if elements.and_then(|n| t.dtype.bytes_for(n)) != Some(t.data.len()) {
            return Err(bad("has bytes that do not fit its shape"));
        }
        let entry =
            json!({"dtype": t.dtype.name(), "shape": t.shape, "data_offsets": [at, at + t.data.len()]});
        if header.insert(t.name.clone(), entry).is_some() {
            return Err(bad("comes twice"));
        }
        at += t.data.len();
    }
    let mut json = serde_json::to_vec(&header).expect("maps of strings and numbers serialize");
    // Data begins at a multiple of 8, as other writers have it.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut file = AtomicFile::create(path)?;
    file.write_all(&(json.len() as u64).to_le_bytes()).map_err(WeightsError::io("write", path))?;
    file.write_all(&json).map_err(WeightsError::io("write", path))?;
    for t in tensors {
        file.write_all(&t.data).map_err(WeightsError::io("write", path))?;
    }
    file.commit()
}
