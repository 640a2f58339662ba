//! safetensors: 8 bytes of header length, a JSON header, tensor data.
//!
//! ```text
//! 0        u64 little-endian n
//! 8        n bytes of JSON: {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets": [begin, end]}}
//! 8 + n    data; offsets count from here, cover it without holes and do not overlap
//! ```
//! Source: the format's description at huggingface/safetensors. Stricter than a reader must be: duplicate names are
//! refused, since two readers could disagree about which one counts.

#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use deephold_quant::DType;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::WeightsError;
use crate::error::shown;
use crate::shape::elements;

pub use write::{OwnedTensor, write};

/// The format's own cap on the header, in bytes.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
/// More dimensions than any tensor has.
const DIMS_MAX: usize = 16;

/// A checked header.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// In the order of their data.
    pub tensors: Vec<HeaderTensor>,
}

/// One tensor's place.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
}

/// Checks the header of a file of `file_len` bytes that begins with `bytes` (at least the whole header).
///
/// # Errors
/// Anything that contradicts the format: every size is checked against `file_len` before it is believed.
pub fn parse_header(bytes: &[u8], file_len: u64) -> Result<Header, WeightsError> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(WeightsError::Truncated {
            what: "the header length".into(),
            need: 8,
            have: bytes.len() as u64,
        });
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        let problem =
            format!("claims {length} bytes, at most {HEADER_BYTES_MAX} are allowed: not safetensors?");
        return Err(WeightsError::malformed("the header", problem));
    }
    let have = file_len.min(bytes.len() as u64).saturating_sub(8);
    if length > have {
        return Err(WeightsError::Truncated { what: "the header".into(), need: length, have });
    }
    let json = &rest[..length as usize];
    let raw: RawHeader = serde_json::from_slice(json)
        .map_err(|e| WeightsError::malformed("the header", format!("is not what safetensors writes: {e}")))?;
    let data_start = 8 + length;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, entry) in raw.tensors {
        tensors.push(check_tensor(name, entry, data_start, file_len - data_start)?);
    }
    tensors.sort_by_key(|t| (t.offset, t.bytes));
    check_cover(&tensors, data_start, file_len)?;
    Ok(Header { metadata: raw.metadata, tensors })
}

fn check_tensor(
    name: String,
    raw: RawTensor,
    data_start: u64,
    data_len: u64,
) -> Result<HeaderTensor, WeightsError> {
    let bad = |problem: String| WeightsError::malformed(format!("tensor `{}`", shown(&name)), problem);
    let Some(dtype) = dtype_of(&raw.dtype) else {
        return Err(WeightsError::unsupported(
            format!("tensor `{}`", shown(&name)),
            shown(&raw.dtype),
            "read are F64 F32 F16 BF16 F8_E4M3 I64 I32 I16 I8 U8 BOOL",
        ));
    };
    let (begin, end) = raw.data_offsets;
    if begin > end || end > data_len {
        return Err(bad(format!(
            "lies at {begin}..{end}, the file has {data_len} bytes of data: it is truncated or corrupt; fetch it again"
        )));
    }
    if raw.shape.len() > DIMS_MAX {
        return Err(bad(format!("has {} dimensions", raw.shape.len())));
    }
    let mut shape = Vec::with_capacity(raw.shape.len());
    for dim in &raw.shape {
        shape.push(usize::try_from(*dim).map_err(|_| bad(format!("has a dimension of {dim}")))?);
    }
    let elements =
        elements(&shape).ok_or_else(|| bad(format!("has shape {:?}, which overflows", raw.shape)))?;
    if dtype.bytes_for(elements).map(|b| b as u64) != Some(end - begin) {
        return Err(bad(format!(
            "has shape {:?} of {dtype}, which does not take the {} bytes that the header gives it",
            raw.shape,
            end - begin
        )));
    }
    // Both fit usize: they lie within a mapped file.
    Ok(HeaderTensor {
        name,
        dtype,
        shape,
        offset: (data_start + begin) as usize,
        bytes: (end - begin) as usize,
    })
}

/// The data must be covered without holes, overlaps or a tail.
fn check_cover(tensors: &[HeaderTensor], data_start: u64, file_len: u64) -> Result<(), WeightsError> {
    let mut at = data_start as usize;
    for t in tensors {
        if t.offset < at {
            let problem = "overlaps the tensor before it".to_owned();
            return Err(WeightsError::malformed(format!("tensor `{}`", shown(&t.name)), problem));
        }
        if t.offset > at {
            let problem = format!("leaves {} bytes before it that belong to no tensor", t.offset - at);
            return Err(WeightsError::malformed(format!("tensor `{}`", shown(&t.name)), problem));
        }
        at += t.bytes;
    }
    if (at as u64) < file_len {
        let problem = format!("has {} bytes after the last tensor", file_len - at as u64);
        return Err(WeightsError::malformed("the file", problem));
    }
    Ok(())
}

/// Exactly the format's spelling.
fn dtype_of(name: &str) -> Option<DType> {
    DType::from_name(name).filter(|d| !d.is_quantized() && d.name() == name)
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawTensor)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { metadata: BTreeMap::new(), tensors: Vec::new() };
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("`{}` comes twice", shown(&name))));
                    }
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
