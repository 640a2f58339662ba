//! Products with weight matrices: y[T, N] = x[T, K] W^T.
//!
//! A matrix is packed once, at load, into panels of 16 interleaved output rows. One accumulator per output element runs
//! over k (dense) or over blocks of k (quantized) in order, so tiles of tokens and panels change speed, never bits.

mod dense;
mod gated;
mod quant;

use std::ops::Range;
use std::sync::OnceLock;

use deephold_quant::DType;

use crate::route::ExpertPlan;
use crate::tensor::Window;
use crate::{KernelError, Ops, Tensor, ThreadPool};
use dense::DenseMatrix;
use quant::{ActivationBlocks, InputRows, QuantMatrix, QuantizedActivations};

/// Output rows a panel.
pub(crate) const PANEL: usize = 16;

/// Input rows that meet all panels of a task before the next ones do: in int8 what the second cache holds, or nearly. All rows of a
/// long prompt would come from memory again for each panel (docs/lab.md, 2026-12-01).
const ROWS_AT_ONCE: usize = 512;

/// A weight matrix [N out, K in] in the layout that the kernels read.
pub struct PackedMatrix {
    n: usize,
    k: usize,
    dtype: DType,
    form: Form,
}

enum Form {
    Dense(DenseMatrix),
    Quant(QuantMatrix),
}

impl PackedMatrix {
    /// Packs a row-major matrix [n, k] as a checkpoint stores it.
    ///
    /// F32, F16 and BF16 are kept as they are; block formats that have an integer layout are kept in it, the others
    /// become F32. FP8 needs its scales: [`Self::pack_fp8`].
    ///
    /// # Errors
    /// The bytes do not fit the shape, the format cannot be a weight, or memory is short.
    pub fn pack(
        pool: &ThreadPool,
        dtype: DType,
        n: usize,
        k: usize,
        bytes: &[u8],
    ) -> Result<Self, KernelError> {
        let form = match dtype {
            DType::F32 | DType::F16 | DType::BF16 => {
                Form::Dense(DenseMatrix::pack(pool, dtype, n, k, bytes)?)
            }
            _ if quant::supports(dtype) => Form::Quant(QuantMatrix::pack(pool, dtype, n, k, bytes)?),
            _ if dtype.is_quantized() => Form::Dense(DenseMatrix::pack_decoded(pool, dtype, n, k, bytes)?),
            _ => return Err(KernelError::Format { dtype }),
        };
        Ok(Self { n, k, dtype, form })
    }

    /// Packs f32 values, [n * k].
    ///
    /// # Errors
    /// The values do not fit the shape, or memory is short.
    pub fn pack_f32(pool: &ThreadPool, n: usize, k: usize, values: &[f32]) -> Result<Self, KernelError> {
        Ok(Self { n, k, dtype: DType::F32, form: Form::Dense(DenseMatrix::pack_f32(pool, n, k, values)?) })
    }

    /// Packs E4M3 bytes whose `block.0` x `block.1` tiles share a factor of `scale_inv`, row-major
    /// [ceil(n / block.0), ceil(k / block.1)] (DeepSeek-V3's `weight_scale_inv`).
    ///
    /// # Errors
    /// The bytes or scales do not fit the shape, or memory is short.
    pub fn pack_fp8(
        pool: &ThreadPool,
        n: usize,
        k: usize,
        bytes: &[u8],
        scale_inv: &[f32],
        block: (usize, usize),
    ) -> Result<Self, KernelError> {
        let dense = DenseMatrix::pack_fp8(pool, n, k, bytes, scale_inv, block)?;
        Ok(Self { n, k, dtype: DType::F8E4M3, form: Form::Dense(dense) })
    }

    /// Bytes that packing a matrix [n, k] of this type takes in memory. `fp8_columns` columns share a factor of FP8.
    pub fn bytes_for(dtype: DType, n: usize, k: usize, fp8_columns: usize) -> u64 {
        let bytes = match dtype {
            _ if quant::supports(dtype) => quant::bytes_for(dtype, n, k),
            DType::F32 | DType::F16 | DType::BF16 => dense::bytes_for(n, k, dtype.block_bytes(), 0),
            DType::F8E4M3 => dense::bytes_for(n, k, 1, k.div_ceil(fp8_columns.max(1))),
            _ => dense::bytes_for(n, k, 4, 0),
        };
        bytes as u64
    }

    /// N.
    pub fn out_features(&self) -> usize {
        self.n
    }

    /// K.
    pub fn in_features(&self) -> usize {
        self.k
    }

    /// The format it was packed from.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Dense(m) => m.bytes(),
            Form::Quant(m) => m.bytes(),
        }
    }

    /// Whether products run in int8 (the others run in f32).
    pub fn is_integer(&self) -> bool {
        matches!(self.form, Form::Quant(_))
    }

    fn panels(&self) -> usize {
        match &self.form {
            Form::Dense(m) => m.panels(),
            Form::Quant(m) => m.panels(),
        }
    }

    /// The output columns of panels.
    fn columns(&self, panels: &Range<usize>) -> Range<usize> {
        panels.start * PANEL..(panels.end * PANEL).min(self.n)
    }
}

/// Activations [T, K] and, once a product asked for them, their int8 forms: products that share an input share those.
pub struct Activations<'a> {
    /// Row-major.
    x: &'a [f32],
    rows: usize,
    cols: usize,
    of_32: OnceLock<QuantizedActivations>,
    of_256: OnceLock<QuantizedActivations>,
}

impl<'a> Activations<'a> {
    /// Wraps a tensor; nothing is computed yet.
    pub fn new(x: &'a Tensor) -> Self {
        Self::of_heads(x, 1)
    }

    /// Each of `heads` slices of a row as a row of its own, those of a row one after the other: [T * heads, K / heads].
    fn of_heads(x: &'a Tensor, heads: usize) -> Self {
        let (rows, cols) = (x.rows() * heads, x.cols() / heads.max(1));
        Self { x: x.data(), rows, cols, of_32: OnceLock::new(), of_256: OnceLock::new() }
    }

    fn row(&self, i: usize) -> &'a [f32] {
        &self.x[i * self.cols..][..self.cols]
    }

    fn quant(&self, ops: &Ops, kind: ActivationBlocks) -> &QuantizedActivations {
        let cell = match kind {
            ActivationBlocks::Of32 => &self.of_32,
            ActivationBlocks::Of256 => &self.of_256,
        };
        cell.get_or_init(|| {
            QuantizedActivations::new(ops.pool(), ops.isa(), kind, self.x, self.rows, self.cols)
        })
    }
}

/// What the rows of an expert product's input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairRows {
    /// One for each token: a pair of token and expert reads its token's row.
    PerToken,
    /// One for each pair of token and expert, in the plan's order.
    PerExpertPair,
}

/// A matrix and what is added to its products.
type Weight<'a> = (&'a PackedMatrix, Option<&'a [f32]>);

/// One product within a call: a matrix, the input rows it reads, and where its output goes.
struct Product<'a> {
    w: Weight<'a>,
    /// What the output is gated by: a matrix of the same shape.
    gate: Option<Weight<'a>>,
    x: &'a Activations<'a>,
    rows: InputRows<'a>,
    window: Window,
}

/// What is computed of a product at a time: some of its rows, counted as it reads them, with some panels.
#[derive(Clone)]
struct Part {
    rows: Range<usize>,
    panels: Range<usize>,
}

impl<'a> Product<'a> {
    fn weights(&self) -> impl Iterator<Item = Weight<'a>> {
        self.gate.into_iter().chain([self.w])
    }

    fn panels(&self) -> usize {
        self.w.0.panels()
    }

    fn count(&self) -> usize {
        match self.rows {
            InputRows::All => self.x.rows,
            InputRows::List(list) => list.len(),
        }
    }
}

impl Ops {
    /// y[T, N] = x W^T.
    pub fn linear(&self, w: &PackedMatrix, x: &Activations<'_>) -> Tensor {
        let [y] = self.linears([(w, None)], x);
        y
    }

    /// y[T, N] = x W^T + bias for each matrix and bias, as one set of tasks.
    ///
    /// # Panics
    /// If a bias or the activations are of another length.
    pub fn linears<const M: usize>(&self, ws: [Weight<'_>; M], x: &Activations<'_>) -> [Tensor; M] {
        let mut ys = ws.map(|(w, _)| self.dirty(x.rows, w.n));
        let mut products = Vec::with_capacity(M);
        for (w, y) in ws.into_iter().zip(&mut ys) {
            products.push(Product { w, gate: None, x, rows: InputRows::All, window: Window::whole(y) });
        }
        self.run_products(&products);
        ys
    }

    /// One matrix [N, K] a head: x[T, heads * K] -> [T, heads * N].
    ///
    /// # Panics
    /// If the activations are of another width.
    pub fn head_linear(&self, ws: &[PackedMatrix], x: &Tensor) -> Tensor {
        let (heads, k) = (ws.len(), ws.first().map_or(0, |w| w.k));
        assert_eq!(x.cols(), heads * k, "activations of another width");
        let t = x.rows();
        let act = Activations::of_heads(x, heads);
        let lists: Vec<Vec<u32>> =
            (0..heads).map(|h| (0..t).map(|i| (i * heads + h) as u32).collect()).collect();
        let n = ws.first().map_or(0, |w| w.n);
        let mut y = self.dirty(t, heads * n);
        let whole = Window::whole(&mut y);
        let products: Vec<Product<'_>> = (ws.iter().zip(&lists).enumerate())
            .map(|(h, (w, list))| {
                let window = Window { col0: h * n, ..whole };
                Product { w: (w, None), gate: None, x: &act, rows: InputRows::List(list), window }
            })
            .collect();
        self.run_products(&products);
        y
    }

    /// Each pair of `plan` through its expert's matrix, as one set of tasks: [pairs, N], rows in the plan's order.
    pub fn moe_linear(
        &self,
        ws: &[PackedMatrix],
        x: &Activations<'_>,
        plan: &ExpertPlan,
        rows: PairRows,
    ) -> Tensor {
        self.moe(None, ws, x, plan, rows)
    }

    fn moe(
        &self,
        gates: Option<&[PackedMatrix]>,
        ws: &[PackedMatrix],
        x: &Activations<'_>,
        plan: &ExpertPlan,
        rows: PairRows,
    ) -> Tensor {
        let pairs: Vec<u32> = (0..plan.row_tokens().len() as u32).collect();
        let source = match rows {
            PairRows::PerToken => plan.row_tokens(),
            PairRows::PerExpertPair => &pairs,
        };
        let mut y = self.dirty(pairs.len(), ws.first().map_or(0, |w| w.n));
        let whole = Window::whole(&mut y);
        let product = |(expert, range): &(usize, Range<usize>)| Product {
            w: (&ws[*expert], None),
            gate: gates.map(|gates| (&gates[*expert], None)),
            x,
            rows: InputRows::List(&source[range.clone()]),
            window: Window { row0: range.start, ..whole },
        };
        self.run_products(&plan.groups().iter().map(product).collect::<Vec<_>>());
        y
    }

    /// Runs all products as one set of tasks, so that small ones share the threads.
    ///
    /// # Panics
    /// If a bias or the activations are of another length, or a product's two matrices of another shape.
    fn run_products(&self, products: &[Product<'_>]) {
        for product in products {
            for (w, bias) in product.weights() {
                assert_eq!(w.k, product.x.cols, "activations of another width");
                assert_eq!(w.n, product.w.0.n, "a gate of another shape");
                assert!(bias.is_none_or(|b| b.len() == w.n), "a bias of another length");
                // Int8 forms are made here, before the tasks, so that making them runs on all threads.
                if let Form::Quant(m) = &w.form {
                    product.x.quant(self, m.activation_blocks());
                }
            }
        }
        let tasks = self.cut(products);
        self.pool().run(tasks.len(), &|task, _| {
            let (i, panels) = tasks[task].clone();
            let (product, count) = (&products[i], products[i].count());
            // Parts of nearly equal size: a short one would read the panels for a few rows.
            let parts = count.div_ceil(ROWS_AT_ONCE);
            for part in 0..parts {
                let rows = count * part / parts..count * (part + 1) / parts;
                let part = Part { rows, panels: panels.clone() };
                match &product.gate {
                    None => self.multiply(product, product.w, &part, product.window),
                    Some(gate) => self.multiply_gated(product, *gate, part),
                }
            }
        });
    }

    /// A part of a product with one of its matrices, and what is added, as a task that owns its panels. The window's first row is
    /// that of the product.
    fn multiply(&self, product: &Product<'_>, (w, bias): Weight<'_>, part: &Part, window: Window) {
        match &w.form {
            Form::Dense(m) => m.gemm(self.isa(), product.x, product.rows, part, window),
            Form::Quant(m) => {
                let act = product.x.quant(self, m.activation_blocks());
                m.gemm(self.isa(), act, product.rows, part, window);
            }
        }
        let Some(bias) = bias else { return };
        let columns = w.columns(&part.panels);
        for row in part.rows.clone() {
            // SAFETY: a task owns its panels' columns.
            let y = unsafe { window.slice(row, columns.start, columns.len()) };
            y.iter_mut().zip(&bias[columns.clone()]).for_each(|(y, b)| *y += b);
        }
    }

    /// Tasks of panels of one product each: long ones first, to stream, and short ones last, so that all threads end together.
    ///
    /// Each start of a task costs some tenths of a microsecond, until lines come ahead of their use again, so tasks are few. The
    /// first is half of a thread's share and not all of it: a thread that other programs slow down leaves the rest to the others.
    fn cut(&self, products: &[Product<'_>]) -> Vec<(usize, Range<usize>)> {
        let cost = |p: &Product<'_>| p.weights().map(|(w, _)| w.bytes()).sum::<usize>() / p.panels().max(1);
        let mut left: usize = products.iter().map(|p| cost(p) * p.panels()).sum();
        let mut tasks = Vec::new();
        for (i, product) in products.iter().enumerate() {
            let (panels, cost) = (product.panels(), cost(product).max(1));
            let mut at = 0;
            while at < panels && product.count() > 0 {
                let most = (left / (2 * self.pool().threads()) / cost).max(1);
                let end = (at + most).min(panels);
                left = left.saturating_sub((end - at) * cost);
                tasks.push((i, at..end));
                at = end;
            }
        }
        tasks
    }
}
