//! Writes GGUF v3: entries first, then tensor data in the planned order.

use std::io::{self, Write};

use deephold_quant::DType;

use super::{Array, DEFAULT_ALIGNMENT, Metadata, Value};

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    /// Name as stored.
    pub name: String,
    /// A type that GGUF has.
    pub dtype: DType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Bytes of its data.
    pub bytes: u64,
}

/// Streams a file: [`Writer::begin`], then each tensor's data in the planned order through [`Writer::data`].
pub struct Writer<W: Write> {
    out: W,
    at: u64,
    alignment: u64,
}

impl<W: Write> Writer<W> {
    /// Writes everything before the tensor data. `general.alignment`, if set, is kept.
    ///
    /// # Errors
    /// The sink's; `InvalidInput` for a type that GGUF does not have.
    pub fn begin(out: W, metadata: &Metadata, tensors: &[TensorPlan]) -> io::Result<Self> {
        let alignment = metadata
            .get_u64("general.alignment")
            .filter(|a| a.is_power_of_two())
            .unwrap_or(DEFAULT_ALIGNMENT);
        let mut w = Self { out, at: 0, alignment };
        w.raw(b"GGUF")?;
        w.raw(&3u32.to_le_bytes())?;
        w.raw(&(tensors.len() as u64).to_le_bytes())?;
        w.raw(&(metadata.len() as u64).to_le_bytes())?;
        for (key, value) in metadata.iter() {
            w.string(key.as_bytes())?;
            w.raw(&(value.value_type() as u32).to_le_bytes())?;
            w.value(value)?;
        }
        let mut offset = 0u64;
        for t in tensors {
            let Some(kind) = t.dtype.to_ggml() else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("GGUF has no {}", t.dtype)));
            };
            w.string(t.name.as_bytes())?;
            w.raw(&(t.shape.len() as u32).to_le_bytes())?;
            for dim in t.shape.iter().rev() {
                w.raw(&(*dim as u64).to_le_bytes())?;
            }
            w.raw(&kind.to_le_bytes())?;
            w.raw(&offset.to_le_bytes())?;
            offset += t.bytes.next_multiple_of(alignment);
        }
        w.pad()?;
        Ok(w)
    }

    /// Appends data of the current tensor.
    ///
    /// # Errors
    /// The sink's.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.raw(bytes)
    }

    /// Ends a tensor: zeros up to the alignment.
    ///
    /// # Errors
    /// The sink's.
    pub fn pad(&mut self) -> io::Result<()> {
        let gap = self.at.next_multiple_of(self.alignment) - self.at;
        let zeros = [0u8; 4096];
        let mut left = gap;
        while left > 0 {
            let n = left.min(zeros.len() as u64);
            self.raw(&zeros[..n as usize])?;
            left -= n;
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// The sink.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn string(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.raw(&(bytes.len() as u64).to_le_bytes())?;
        self.raw(bytes)
    }

    fn value(&mut self, value: &Value) -> io::Result<()> {
        match value {
            Value::U8(v) => self.raw(&v.to_le_bytes()),
            Value::I8(v) => self.raw(&v.to_le_bytes()),
            Value::U16(v) => self.raw(&v.to_le_bytes()),
            Value::I16(v) => self.raw(&v.to_le_bytes()),
            Value::U32(v) => self.raw(&v.to_le_bytes()),
            Value::I32(v) => self.raw(&v.to_le_bytes()),
            Value::F32(v) => self.raw(&v.to_le_bytes()),
            Value::Bool(v) => self.raw(&[u8::from(*v)]),
            Value::String(v) => self.string(v),
            Value::Array(v) => self.array(v),
            Value::U64(v) => self.raw(&v.to_le_bytes()),
            Value::I64(v) => self.raw(&v.to_le_bytes()),
            Value::F64(v) => self.raw(&v.to_le_bytes()),
        }
    }

    fn array(&mut self, array: &Array) -> io::Result<()> {
        self.raw(&(array.element_type() as u32).to_le_bytes())?;
        self.raw(&(array.len() as u64).to_le_bytes())?;
        match array {
            Array::U8(v) => self.raw(v),
            Array::I8(v) => v.iter().try_for_each(|x| self.raw(&x.to_le_bytes())),
            Array::U16(v) => v.iter().try_for_each(|x| self.raw(&x.to_le_bytes())),
            Array::I16(v) => v.iter().try_for_each(|x| self.raw(&x.to_le_bytes())),
            Array::U32(v) => v.iter().try_for_each(|x| self.raw(&x.to_le_bytes())),
            Array::I32(v) => v.iter().try_for_each(|x| self.raw(&x.to_le_bytes())),
            Array::F32(v) => v.iter().try_for_each(|x| self.raw(&x.to_le_bytes())),
            Array::Bool(v) => v.iter().try_for_each(|x| self.raw(&[u8::from(*x)])),
            Array::String(v) => v.iter().try_for_each(|x| self.string(x)),
            Array::Array(v) => v.iter().try_for_each(|x| self.array(x)),
            Array::U64(v) => v.iter().try_for_each(|x| self.raw(&x.to_le_bytes())),
            Array::I64(v) => v.iter().try_for_each(|x| self.raw(&x.to_le_bytes())),
            Array::F64(v) => v.iter().try_for_each(|x| self.raw(&x.to_le_bytes())),
        }
    }
}
