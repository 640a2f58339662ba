//! Streams one tensor of the result: rows of the sources are decoded, reordered and encoded in chunks, on all threads.

use std::ops::Range;

use deephold_quant::{DType, dequantize, quantize};

use crate::fp8::{self, Fp8Scale};
use crate::gguf::TensorPlan;
use crate::{Checkpoint, TensorView, WeightsError};

/// Elements of a chunk: 1 MiB as float32.
const CHUNK_ELEMENTS: usize = 1 << 18;

/// How rows of the result come out of rows of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As they are; several sources one after the other.
    Plain,
    /// Llama's q and k: within a head, row i of the first half is followed by row i of the second.
    PairRows {
        /// D.
        head_dim: usize,
    },
    /// `kv_b_proj` -> `[Nh * R, nope]`: each head's key rows, transposed.
    KeyHeads {
        /// Key rows of a head.
        nope: usize,
        /// Value rows of a head.
        v: usize,
    },
    /// `kv_b_proj` -> `[Nh * v, R]`: each head's value rows.
    ValueHeads {
        /// Key rows of a head.
        nope: usize,
        /// Value rows of a head.
        v: usize,
    },
}

/// A matrix (or vector: one row) of the input.
pub(super) struct Part<'a> {
    pub(super) view: TensorView<'a>,
    pub(super) scale: Option<Fp8Scale>,
}

impl<'a> Part<'a> {
    pub(super) fn new(input: &'a Checkpoint, view: TensorView<'a>) -> Result<Self, WeightsError> {
        let scale = input.fp8_scale(&view.info().name)?;
        Ok(Self { view, scale })
    }

    fn k(&self) -> usize {
        self.view.info().shape.last().copied().unwrap_or(1)
    }

    fn rows(&self) -> usize {
        self.view.info().elements().checked_div(self.k()).unwrap_or(0)
    }

    fn raw(&self, rows: Range<usize>) -> Result<&'a [u8], WeightsError> {
        let per_row = self.view.bytes().len() / self.rows().max(1);
        self.view.bytes().get(rows.start * per_row..rows.end * per_row).ok_or_else(|| {
            WeightsError::malformed(
                format!("tensor `{}`", self.view.info().name),
                "is not made of whole rows",
            )
        })
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), WeightsError> {
        let info = self.view.info();
        let first = rows.start;
        dequantize(info.dtype, self.raw(rows)?, out)
            .map_err(|source| WeightsError::Values { tensor: info.name.clone(), source })?;
        if let Some(scale) = &self.scale {
            fp8::apply(out, first, self.k(), scale);
        }
        match out.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(i) => Err(WeightsError::NotFinite {
                tensor: info.name.clone(),
                index: first * self.k() + i,
                value: out[i],
            }),
        }
    }
}

/// Takes encoded bytes and how many elements they are.
pub(super) type Sink<'a> = dyn FnMut(&[u8], u64) -> Result<(), WeightsError> + 'a;

/// Where a tensor's values come from.
pub(super) enum Source<'a> {
    /// Tensors of the input, equal in shape and type.
    Parts(Vec<Part<'a>>, Order),
    /// Computed.
    Values(Vec<f32>),
}

/// One tensor of the result.
pub(super) struct PlannedTensor<'a> {
    /// GGUF name.
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) source: Source<'a>,
}

/// Sums over a tensor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Errors {
    pub(super) squares: f64,
    pub(super) value_squares: f64,
    pub(super) max: f64,
}

impl Errors {
    fn add(&mut self, other: &Errors) {
        self.squares += other.squares;
        self.value_squares += other.value_squares;
        self.max = self.max.max(other.max);
    }
}

impl PlannedTensor<'_> {
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().map(|d| *d as u64).product()
    }

    pub(super) fn source_type(&self) -> &'static str {
        match &self.source {
            Source::Parts(parts, _) => parts.first().map_or("F32", |p| p.view.info().dtype.name()),
            Source::Values(_) => "F32",
        }
    }

    pub(super) fn entry(&self) -> Result<TensorPlan, WeightsError> {
        let Some(bytes) = self.dtype.bytes_for(self.elements() as usize) else {
            let problem = format!("has shape {:?}, which is not whole blocks of {}", self.shape, self.dtype);
            return Err(WeightsError::malformed(format!("tensor `{}`", self.name), problem));
        };
        let (name, shape) = (self.name.clone(), self.shape.clone());
        Ok(TensorPlan { name, dtype: self.dtype, shape, bytes: bytes as u64 })
    }

    /// Lets the system drop the input's pages.
    pub(super) fn release(&self, input: &Checkpoint) {
        if let Source::Parts(parts, _) = &self.source {
            parts.iter().for_each(|p| input.release_pages(p.view.info()));
        }
    }

    fn k(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Calls `sink(bytes, elements)` with the encoded tensor, chunk by chunk in order.
    pub(super) fn stream(&self, threads: usize, sink: &mut Sink<'_>) -> Result<Errors, WeightsError> {
        let (k, mut errors) = (self.k(), Errors::default());
        if self.elements() == 0 {
            return Ok(errors);
        }
        let rows = self.elements() as usize / k;
        let unit = match &self.source {
            Source::Parts(parts, Order::KeyHeads { .. }) => parts[0].k(),
            _ => 1,
        };
        let chunk_rows = (CHUNK_ELEMENTS / k / unit * unit).max(unit);
        let row_bytes = self.dtype.bytes_for(k).ok_or_else(|| {
            WeightsError::malformed(format!("tensor `{}`", self.name), "has rows that are not whole blocks")
        })?;
        let mut bytes = Vec::new();
        let mut first = 0;
        while first < rows {
            let batch = (chunk_rows * threads).min(rows - first);
            bytes.resize(batch * row_bytes, 0);
            let chunks: Vec<(usize, &mut [u8])> = bytes
                .chunks_mut(chunk_rows * row_bytes)
                .enumerate()
                .map(|(i, c)| (first + i * chunk_rows, c))
                .collect();
            for result in self.encode_chunks(chunks, row_bytes) {
                errors.add(&result?);
            }
            sink(&bytes, (batch * k) as u64)?;
            first += batch;
        }
        Ok(errors)
    }

    fn encode_chunks(
        &self,
        mut chunks: Vec<(usize, &mut [u8])>,
        row_bytes: usize,
    ) -> Vec<Result<Errors, WeightsError>> {
        let encode = |(first, out): (usize, &mut [u8])| self.encode(first, out, row_bytes);
        if chunks.len() == 1 {
            return chunks.drain(..).map(encode).collect();
        }
        std::thread::scope(|scope| {
            let running: Vec<_> = chunks.into_iter().map(|c| scope.spawn(move || encode(c))).collect();
            running.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        })
    }

    /// Rows from `first` on, as many as `out` holds.
    fn encode(&self, first: usize, out: &mut [u8], row_bytes: usize) -> Result<Errors, WeightsError> {
        let rows = out.len() / row_bytes;
        let mut values = vec![0f32; rows * self.k()];
        self.decode(first..first + rows, &mut values)?;
        if let Some(raw) = self.raw(first..first + rows)? {
            // Same type and order: not one bit changes.
            out.copy_from_slice(raw);
        } else {
            quantize(self.dtype, &values, out)
                .map_err(|source| WeightsError::Values { tensor: self.name.clone(), source })?;
        }
        let mut again = vec![0f32; values.len()];
        dequantize(self.dtype, out, &mut again)
            .map_err(|source| WeightsError::Values { tensor: self.name.clone(), source })?;
        let mut errors = Errors::default();
        for (v, a) in values.iter().zip(&again) {
            let e = f64::from(v - a).abs();
            errors.squares += e * e;
            errors.value_squares += f64::from(*v) * f64::from(*v);
            errors.max = errors.max.max(e);
        }
        if !errors.squares.is_finite() {
            return Err(WeightsError::unsupported(
                format!("tensor `{}`", self.name),
                format!("beyond the range of {}", self.dtype),
                "write bf16 instead",
            ));
        }
        Ok(errors)
    }

    /// The stored bytes of these rows, where they can be taken as they are.
    fn raw(&self, rows: Range<usize>) -> Result<Option<&[u8]>, WeightsError> {
        match &self.source {
            Source::Parts(parts, Order::Plain)
                if parts.len() == 1 && parts[0].view.info().dtype == self.dtype =>
            {
                parts[0].raw(rows).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), WeightsError> {
        let k = self.k();
        let (parts, order) = match &self.source {
            Source::Values(values) => {
                out.copy_from_slice(&values[rows.start * k..rows.end * k]);
                return Ok(());
            }
            Source::Parts(parts, order) => (parts, *order),
        };
        let first = &parts[0];
        match order {
            Order::Plain => {
                let each = first.rows();
                let mut at = rows.start;
                let mut out = out;
                while at < rows.end {
                    let (part, row) = (at / each, at % each);
                    let n = (each - row).min(rows.end - at);
                    let (head, rest) = out.split_at_mut(n * k);
                    parts[part].decode(row..row + n, head)?;
                    (out, at) = (rest, at + n);
                }
                Ok(())
            }
            Order::PairRows { head_dim } => {
                for (row, out) in rows.zip(out.chunks_exact_mut(k)) {
                    let (head, t) = (row / head_dim, row % head_dim);
                    let from = head * head_dim + t % 2 * (head_dim / 2) + t / 2;
                    first.decode(from..from + 1, out)?;
                }
                Ok(())
            }
            Order::ValueHeads { nope, v } => {
                for (row, out) in rows.zip(out.chunks_exact_mut(k)) {
                    let from = row / v * (nope + v) + nope + row % v;
                    first.decode(from..from + 1, out)?;
                }
                Ok(())
            }
            Order::KeyHeads { nope, v } => {
                let r = first.k();
                let mut head_rows = vec![0f32; nope * r];
                for (head, out) in (rows.start / r..rows.end / r).zip(out.chunks_exact_mut(r * nope)) {
                    let from = head * (nope + v);
                    first.decode(from..from + nope, &mut head_rows)?;
                    for (c, out) in out.chunks_exact_mut(nope).enumerate() {
                        for (j, o) in out.iter_mut().enumerate() {
                            *o = head_rows[j * r + c];
                        }
                    }
                }
                Ok(())
            }
        }
    }
}
