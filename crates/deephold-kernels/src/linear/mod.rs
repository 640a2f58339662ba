//! Products with weight matrices: y[T, N] = x[T, K] W^T.
//!
//! A matrix is packed once, at load, into panels of 16 interleaved output rows. One accumulator per output element runs
//! over k (dense) or over blocks of k (quantized) in order, so tiles of tokens and panels change speed, never bits.

mod dense;
mod quant;

use std::sync::OnceLock;

use deephold_quant::DType;

use crate::route::ExpertPlan;
use crate::tensor::{SharedOut, Window};
use crate::{KernelError, Ops, Tensor, ThreadPool};
use dense::DenseMatrix;
use quant::{ActivationBlocks, InputRows, QuantMatrix, QuantizedActivations};

/// Output rows a panel.
pub(crate) const PANEL: usize = 16;

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
}

/// Activations [T, K] and, once a product asked for them, their int8 forms: products that share an input share those.
pub struct Activations<'a> {
    x: &'a Tensor,
    of_32: OnceLock<QuantizedActivations>,
    of_256: OnceLock<QuantizedActivations>,
}

impl<'a> Activations<'a> {
    /// Wraps a tensor; nothing is computed yet.
    pub fn new(x: &'a Tensor) -> Self {
        Self { x, of_32: OnceLock::new(), of_256: OnceLock::new() }
    }

    /// The f32 values.
    pub fn tensor(&self) -> &Tensor {
        self.x
    }

    fn quant(&self, ops: &Ops, kind: ActivationBlocks) -> &QuantizedActivations {
        let cell = match kind {
            ActivationBlocks::Of32 => &self.of_32,
            ActivationBlocks::Of256 => &self.of_256,
        };
        cell.get_or_init(|| {
            QuantizedActivations::new(
                ops.pool(),
                ops.isa(),
                kind,
                self.x.data(),
                self.x.rows(),
                self.x.cols(),
            )
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

/// One product within a call: a matrix, the input rows it reads, and where its output goes.
struct Product<'a> {
    w: &'a PackedMatrix,
    x: &'a Activations<'a>,
    rows: InputRows<'a>,
    row0: usize,
    col0: usize,
}

impl Ops {
    /// y[T, N] = x W^T.
    pub fn linear(&self, w: &PackedMatrix, x: &Activations<'_>) -> Tensor {
        let mut y = self.dirty(x.x.rows(), w.n);
        self.run_products(&[Product { w, x, rows: InputRows::All, row0: 0, col0: 0 }], &mut y);
        y
    }

    /// y[T, N] = x W^T + bias.
    pub fn linear_bias(&self, w: &PackedMatrix, x: &Activations<'_>, bias: Option<&[f32]>) -> Tensor {
        let mut y = self.linear(w, x);
        if let Some(bias) = bias {
            assert_eq!(bias.len(), w.n, "a bias of another length");
            self.for_rows(&mut y, |_, row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        y
    }

    /// One matrix [N, K] a head: x[T, heads * K] -> [T, heads * N].
    pub fn head_linear(&self, ws: &[PackedMatrix], x: &Tensor) -> Tensor {
        let (heads, k) = (ws.len(), ws.first().map_or(0, |w| w.k));
        assert_eq!(x.cols(), heads * k, "activations of another width");
        // Each head's slice as rows of its own: [heads * T, K].
        let t = x.rows();
        let mut slices = self.dirty(heads * t, k);
        self.for_rows(&mut slices, |i, row| {
            let (head, token) = (i / t, i % t);
            row.copy_from_slice(&x.row(token)[head * k..][..k]);
        });
        let act = Activations::new(&slices);
        let lists: Vec<Vec<u32>> = (0..heads).map(|h| (0..t).map(|i| (h * t + i) as u32).collect()).collect();
        let n = ws.first().map_or(0, |w| w.n);
        let products: Vec<Product<'_>> = ws
            .iter()
            .zip(&lists)
            .enumerate()
            .map(|(h, (w, list))| Product { w, x: &act, rows: InputRows::List(list), row0: 0, col0: h * n })
            .collect();
        let mut y = self.dirty(t, heads * n);
        self.run_products(&products, &mut y);
        y
    }

    /// Each pair of `plan` through its expert's matrix: [pairs, N], rows in the plan's order.
    pub fn moe_linear(
        &self,
        ws: &[PackedMatrix],
        x: &Activations<'_>,
        plan: &ExpertPlan,
        rows: PairRows,
    ) -> Tensor {
        let n = ws.first().map_or(0, |w| w.n);
        let pairs: Vec<u32> = (0..plan.row_tokens().len() as u32).collect();
        let source = match rows {
            PairRows::PerToken => plan.row_tokens(),
            PairRows::PerExpertPair => &pairs,
        };
        let products: Vec<Product<'_>> = plan
            .groups()
            .iter()
            .map(|(expert, range)| Product {
                w: &ws[*expert],
                x,
                rows: InputRows::List(&source[range.clone()]),
                row0: range.start,
                col0: 0,
            })
            .collect();
        let mut y = self.dirty(pairs.len(), n);
        self.run_products(&products, &mut y);
        y
    }

    /// Runs all products as one set of tasks, so that small ones share the threads.
    fn run_products(&self, products: &[Product<'_>], y: &mut Tensor) {
        let stride = y.cols();
        if y.rows() == 0 || stride == 0 {
            return;
        }
        let out = SharedOut::new(y.data_mut());
        // Int8 forms are made here, before the tasks, so that making them runs on all threads.
        for product in products {
            assert_eq!(product.w.k, product.x.x.cols(), "activations of another width");
            if let Form::Quant(m) = &product.w.form {
                product.x.quant(self, m.activation_blocks());
            }
        }
        // About eight tasks a thread: small enough to balance, large enough to stream.
        let total: usize = products.iter().map(|p| p.w.panels()).sum();
        let chunk = total.div_ceil(8 * self.pool().threads()).max(1);
        let mut tasks = Vec::new();
        for (i, product) in products.iter().enumerate() {
            let panels = product.w.panels();
            tasks.extend((0..panels).step_by(chunk).map(|p| (i, p..(p + chunk).min(panels))));
        }
        self.pool().run(tasks.len(), &|task, _| {
            let (i, panels) = tasks[task].clone();
            let product = &products[i];
            let window = Window { out, row0: product.row0, col0: product.col0, stride };
            match &product.w.form {
                Form::Dense(m) => {
                    m.gemm(self.isa(), product.x.x, product.rows, panels, window);
                }
                Form::Quant(m) => {
                    let act = product.x.quant(self, m.activation_blocks());
                    m.gemm(self.isa(), act, product.rows, panels, window);
                }
            }
        });
    }
}
