//! Bytes -> [`Gguf`]. Counts and lengths are held against the bytes that are left before anything is allocated.

use std::collections::HashSet;

use deephold_quant::DType;

use super::{Array, DEFAULT_ALIGNMENT, Gguf, GgufTensor, Metadata, Value, ValueType};
use crate::WeightsError;
use crate::error::shown;
use crate::shape::elements;

/// Arrays of arrays nest at most this deep.
const NESTING_MAX: usize = 4;
/// The format's own limit.
const DIMS_MAX: u32 = 4;
const KEY_BYTES_MAX: u64 = 65_535;
const NAME_BYTES_MAX: u64 = 65_535;
const ALIGNMENT_MAX: u64 = 1 << 20;
/// Far above published files (some 60 keys, some 2000 tensors); bounds what a hostile file of many tiny entries costs.
const KEYS_MAX: u64 = 1 << 16;
const TENSORS_MAX: u64 = 1 << 20;

/// Checks a whole file: `bytes` is all of it, tensor data included.
///
/// # Errors
/// Anything that contradicts the format, a version other than 2 and 3, or a tensor of a type that is not read; all
/// with the key or the tensor named.
pub fn parse(bytes: &[u8]) -> Result<Gguf, WeightsError> {
    let mut r = Reader { bytes, at: 0 };
    if r.take(4, "the magic")? != b"GGUF" {
        return Err(WeightsError::malformed("the file", "does not begin with `GGUF`: it is not a GGUF file"));
    }
    let version = r.u32("the version")?;
    if !(2..=3).contains(&version) {
        let hint = match version {
            0x0200_0000 | 0x0300_0000 => "it is big-endian; convert it to little-endian",
            _ => "versions 2 and 3 are read; convert it with a current tool",
        };
        return Err(WeightsError::unsupported("the GGUF version", version.to_string(), hint));
    }
    let tensor_count = r.u64("the number of tensors")?;
    let key_count = r.u64("the number of keys")?;
    let metadata = r.metadata(key_count)?;
    let raw = r.tensor_entries(tensor_count)?;
    let alignment = alignment(&metadata)?;
    let data_start = (r.at as u64).next_multiple_of(alignment);
    let tensors = place(raw, alignment, data_start, bytes.len() as u64)?;
    Ok(Gguf { version, metadata, tensors })
}

fn alignment(metadata: &Metadata) -> Result<u64, WeightsError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_u64() {
        Some(a) if a.is_power_of_two() && a <= ALIGNMENT_MAX => Ok(a),
        _ => Err(WeightsError::malformed("`general.alignment`", "must be a power of two up to 1048576")),
    }
}

struct RawTensor {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

/// Offsets from the start of the file, checked against its length and each other.
fn place(
    raw: Vec<RawTensor>,
    alignment: u64,
    data_start: u64,
    file_len: u64,
) -> Result<Vec<GgufTensor>, WeightsError> {
    let mut tensors = Vec::with_capacity(raw.len());
    for t in raw {
        let bad = |problem: String| WeightsError::malformed(format!("tensor `{}`", shown(&t.name)), problem);
        if !t.offset.is_multiple_of(alignment) {
            return Err(bad(format!("begins at {}, which is not a multiple of {alignment}", t.offset)));
        }
        let begin = data_start.checked_add(t.offset);
        let end = begin.and_then(|b| b.checked_add(t.bytes));
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(bad(format!("begins at {}, which overflows", t.offset)));
        };
        if end > file_len {
            return Err(WeightsError::Truncated {
                what: format!("tensor `{}`", shown(&t.name)),
                need: t.bytes,
                have: file_len.saturating_sub(begin),
            });
        }
        let (offset, bytes) = (begin as usize, t.bytes as usize);
        tensors.push(GgufTensor { name: t.name, dtype: t.dtype, shape: t.shape, offset, bytes });
    }
    let mut order: Vec<&GgufTensor> = tensors.iter().filter(|t| t.bytes > 0).collect();
    order.sort_by_key(|t| t.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            let problem = format!("overlaps tensor `{}`", shown(&pair[0].name));
            return Err(WeightsError::malformed(format!("tensor `{}`", shown(&pair[1].name)), problem));
        }
    }
    Ok(tensors)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], WeightsError> {
        if n > self.left() {
            return Err(WeightsError::Truncated { what: what.to_owned(), need: n, have: self.left() });
        }
        let taken = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self, what: &str) -> Result<[u8; N], WeightsError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32, WeightsError> {
        self.chunk(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, WeightsError> {
        self.chunk(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &str) -> Result<&'a [u8], WeightsError> {
        let n = self.u64(what)?;
        self.take(n, what)
    }

    /// A key or a name: bounded, and UTF-8.
    fn name(&mut self, what: &str, limit: u64) -> Result<String, WeightsError> {
        let bytes = self.string(what)?;
        if bytes.len() as u64 > limit {
            return Err(WeightsError::malformed(what, format!("has {} bytes", bytes.len())));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| WeightsError::malformed(what, "is not UTF-8"))?;
        Ok(text.to_owned())
    }

    /// `count` things of at least `bytes_min` each must fit what is left.
    fn fits(&self, count: u64, bytes_min: u64, what: &str) -> Result<usize, WeightsError> {
        match count.checked_mul(bytes_min) {
            Some(need) if need <= self.left() => Ok(count as usize),
            need => Err(WeightsError::Truncated {
                what: format!("{what} ({count} of them)"),
                need: need.unwrap_or(u64::MAX),
                have: self.left(),
            }),
        }
    }

    fn metadata(&mut self, count: u64) -> Result<Metadata, WeightsError> {
        // A key takes 8 bytes of length, 4 of type and at least 1 of value.
        let count = self.fits(count, 13, "the keys")?;
        if count as u64 > KEYS_MAX {
            return Err(WeightsError::malformed("the metadata", format!("has {count} keys")));
        }
        let mut metadata = Metadata::new();
        for i in 0..count {
            let key = self.name(&format!("key {i}"), KEY_BYTES_MAX)?;
            let what = format!("`{}`", shown(&key));
            if metadata.get(&key).is_some() {
                return Err(WeightsError::malformed(what, "comes twice"));
            }
            let kind = self.value_type(&what)?;
            let value = self.value(kind, &what)?;
            metadata.set(key, value);
        }
        Ok(metadata)
    }

    fn value_type(&mut self, what: &str) -> Result<ValueType, WeightsError> {
        let id = self.u32(what)?;
        ValueType::from_id(id).ok_or_else(|| {
            WeightsError::malformed(what, format!("has value type {id}, which does not exist"))
        })
    }

    fn value(&mut self, kind: ValueType, what: &str) -> Result<Value, WeightsError> {
        Ok(match kind {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.chunk(what)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.chunk(what)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.chunk(what)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.chunk(what)?)),
            ValueType::U32 => Value::U32(self.u32(what)?),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.chunk(what)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.chunk(what)?)),
            ValueType::Bool => Value::Bool(self.chunk::<1>(what)?[0] != 0),
            ValueType::String => Value::String(self.string(what)?.to_vec()),
            ValueType::Array => Value::Array(self.array(what, 1)?),
            ValueType::U64 => Value::U64(self.u64(what)?),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.chunk(what)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.chunk(what)?)),
        })
    }

    fn array(&mut self, what: &str, depth: usize) -> Result<Array, WeightsError> {
        if depth > NESTING_MAX {
            let problem = format!("nests arrays more than {NESTING_MAX} deep");
            return Err(WeightsError::malformed(what, problem));
        }
        let kind = self.value_type(what)?;
        let count = self.u64(what)?;
        let count = self.fits(count, kind.bytes_min(), what)?;
        Ok(match kind {
            ValueType::U8 => Array::U8(self.numbers(count, what, u8::from_le_bytes)?),
            ValueType::I8 => Array::I8(self.numbers(count, what, i8::from_le_bytes)?),
            ValueType::U16 => Array::U16(self.numbers(count, what, u16::from_le_bytes)?),
            ValueType::I16 => Array::I16(self.numbers(count, what, i16::from_le_bytes)?),
            ValueType::U32 => Array::U32(self.numbers(count, what, u32::from_le_bytes)?),
            ValueType::I32 => Array::I32(self.numbers(count, what, i32::from_le_bytes)?),
            ValueType::F32 => Array::F32(self.numbers(count, what, f32::from_le_bytes)?),
            ValueType::Bool => Array::Bool(self.numbers(count, what, |[b]: [u8; 1]| b != 0)?),
            ValueType::U64 => Array::U64(self.numbers(count, what, u64::from_le_bytes)?),
            ValueType::I64 => Array::I64(self.numbers(count, what, i64::from_le_bytes)?),
            ValueType::F64 => Array::F64(self.numbers(count, what, f64::from_le_bytes)?),
            ValueType::String => {
                let mut strings = Vec::with_capacity(count);
                for _ in 0..count {
                    strings.push(self.string(what)?.to_vec());
                }
                Array::String(strings)
            }
            ValueType::Array => {
                let mut arrays = Vec::with_capacity(count);
                for _ in 0..count {
                    arrays.push(self.array(what, depth + 1)?);
                }
                Array::Array(arrays)
            }
        })
    }

    fn numbers<const N: usize, T>(
        &mut self,
        count: usize,
        what: &str,
        f: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, WeightsError> {
        let bytes = self.take((count * N) as u64, what)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|c| f(*c)).collect())
    }

    fn tensor_entries(&mut self, count: u64) -> Result<Vec<RawTensor>, WeightsError> {
        // 8 bytes of name length, 4 of dimension count, 4 of type, 8 of offset.
        let count = self.fits(count, 24, "the tensor entries")?;
        if count as u64 > TENSORS_MAX {
            return Err(WeightsError::malformed("the file", format!("has {count} tensors")));
        }
        let mut seen = HashSet::new();
        let mut tensors = Vec::with_capacity(count);
        for i in 0..count {
            let t = self.tensor_entry(i)?;
            if !seen.insert(t.name.clone()) {
                return Err(WeightsError::malformed(format!("tensor `{}`", shown(&t.name)), "comes twice"));
            }
            tensors.push(t);
        }
        Ok(tensors)
    }

    fn tensor_entry(&mut self, i: usize) -> Result<RawTensor, WeightsError> {
        let name = self.name(&format!("the name of tensor {i}"), NAME_BYTES_MAX)?;
        let what = format!("tensor `{}`", shown(&name));
        let dims = self.u32(&what)?;
        if dims > DIMS_MAX {
            return Err(WeightsError::malformed(
                what,
                format!("has {dims} dimensions, at most {DIMS_MAX} exist"),
            ));
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            shape.push(usize::try_from(self.u64(&what)?).unwrap_or(usize::MAX));
        }
        let Some(elements) = elements(&shape) else {
            return Err(WeightsError::malformed(what, "has dimensions whose product overflows"));
        };
        let kind = self.u32(&what)?;
        let offset = self.u64(&what)?;
        let Some(dtype) = DType::from_ggml(kind) else {
            let hint = "read are F32 F16 BF16 F64 I8 I16 I32 I64 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K \
                        IQ4_NL IQ4_XS; take a file in one of these formats";
            return Err(WeightsError::unsupported(what, format!("of ggml type {}", type_name(kind)), hint));
        };
        // Rows are the innermost dimension and whole blocks.
        let row = shape.first().copied().unwrap_or(1);
        let Some(bytes) = dtype.bytes_for(elements).filter(|_| row.is_multiple_of(dtype.block_len())) else {
            return Err(WeightsError::malformed(
                what,
                format!("has rows of {row} elements, {dtype} needs multiples of {}", dtype.block_len()),
            ));
        };
        shape.reverse();
        Ok(RawTensor { name, dtype, shape, bytes: bytes as u64, offset })
    }
}

/// Names of the types that exist and are not read, for the message.
fn type_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => return format!("{id}, which is unknown"),
    };
    format!("{id} ({name})")
}
