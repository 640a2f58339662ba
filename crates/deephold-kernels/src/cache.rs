//! The paged cache's storage. Which block belongs to whom is the engine's business.
//!
//! Each layer has one slab for each of its [`CacheSpec`]s: \[block\]\[head\]\[slot\]\[width\], or
//! \[block\]\[head\]\[slot / 16\]\[width\]\[16\] (see [`EntryOrder`]). Pages are zeroed memory that
//! the system hands out on first touch, so a large cache costs nothing until it is used.

use std::sync::Mutex;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::KernelError;
use crate::memory::Memory;
use crate::simd::LANES;

/// How entries are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheDType {
    /// As computed.
    F32,
    /// Rounded to nearest even.
    F16,
}

impl CacheDType {
    /// Bytes of an entry.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// One kind of entry that a layer keeps for each position: `heads` vectors of `width`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// For people: "k", "v", "latent", "index_k".
    pub name: &'static str,
    /// Vectors a position.
    pub heads: usize,
    /// Elements of a vector.
    pub width: usize,
    /// How the vectors of neighbouring positions lie.
    pub order: EntryOrder,
}

/// How the vectors of neighbouring positions lie in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryOrder {
    /// One after the other: for values, which are read column by column.
    Rows,
    /// Sixteen positions side by side, \[width\]\[16\]: for keys, whose scores are computed sixteen at a time.
    Columns,
}

/// Storage for `num_blocks` blocks of `block_size` positions in every layer.
pub struct KvCache {
    layers: Vec<Vec<(CacheSpec, Memory)>>,
    num_blocks: usize,
    block_size: usize,
    dtype: CacheDType,
    /// Held by the one batch that may touch the slabs.
    pub(crate) in_use: Mutex<()>,
}

impl KvCache {
    /// Reserves the slabs; `layers[l]` lists what layer l keeps.
    ///
    /// # Errors
    /// A size of zero or beyond memory; blocks that are not whole groups of sixteen, where entries lie in such.
    pub fn new(
        layers: &[Vec<CacheSpec>],
        num_blocks: usize,
        block_size: usize,
        dtype: CacheDType,
    ) -> Result<Self, KernelError> {
        Self::bytes_for(layers, num_blocks, block_size, dtype)?;
        let columns = layers.iter().flatten().any(|spec| spec.order == EntryOrder::Columns);
        if columns && !block_size.is_multiple_of(LANES) {
            return Err(KernelError::Invalid {
                what: "the cache",
                problem: format!("has blocks of {block_size} positions, and keys lie in groups of {LANES}"),
            });
        }
        let slab = |spec: &CacheSpec| {
            let bytes = spec.heads * spec.width * num_blocks * block_size * dtype.bytes();
            Ok::<_, KernelError>((spec.clone(), Memory::zeroed("the cache", bytes)?))
        };
        let layers = layers
            .iter()
            .map(|specs| specs.iter().map(slab).collect())
            .collect::<Result<_, KernelError>>()?;
        Ok(Self { layers, num_blocks, block_size, dtype, in_use: Mutex::new(()) })
    }

    /// Bytes that [`Self::new`] would reserve.
    ///
    /// # Errors
    /// As [`Self::new`], short of asking the system for them.
    pub fn bytes_for(
        layers: &[Vec<CacheSpec>],
        num_blocks: usize,
        block_size: usize,
        dtype: CacheDType,
    ) -> Result<usize, KernelError> {
        if block_size == 0 || num_blocks == 0 || u32::try_from(num_blocks).is_err() {
            return Err(KernelError::Invalid {
                what: "the cache",
                problem: format!("needs blocks: {num_blocks} of {block_size} positions"),
            });
        }
        let slab = |spec: &CacheSpec| {
            let factors = [spec.heads, spec.width, num_blocks, block_size, dtype.bytes()];
            factors.into_iter().try_fold(1usize, usize::checked_mul)
        };
        let total = layers.iter().flatten().try_fold(0usize, |sum, spec| sum.checked_add(slab(spec)?));
        total.ok_or(KernelError::Memory { what: "the cache", bytes: usize::MAX })
    }

    /// Positions a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// How entries are stored.
    pub fn dtype(&self) -> CacheDType {
        self.dtype
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(|(_, slab)| slab.len()).sum()
    }

    pub(crate) fn spec(&self, layer: usize, spec: usize) -> &CacheSpec {
        &self.layers[layer][spec].0
    }

    /// Element index of the first column of (block, head, slot).
    pub(crate) fn at(&self, spec: &CacheSpec, block: u32, head: usize, slot: usize) -> usize {
        let first = (block as usize * spec.heads + head) * self.block_size;
        match spec.order {
            EntryOrder::Rows => (first + slot) * spec.width,
            EntryOrder::Columns => (first + slot / LANES * LANES) * spec.width + slot % LANES,
        }
    }

    /// Start of a slab.
    pub(crate) fn slab(&self, layer: usize, spec: usize) -> *mut u8 {
        self.layers[layer][spec].1.as_ptr()
    }

    /// Stores a vector whose first column has the element index `at`.
    ///
    /// # Safety
    /// `in_use` is held, the place lies in the slab and nobody else touches it.
    pub(crate) unsafe fn store(&self, layer: usize, spec: usize, at: usize, x: &[f32]) {
        let slab = self.slab(layer, spec);
        let stride = match self.spec(layer, spec).order {
            EntryOrder::Rows => 1,
            EntryOrder::Columns => LANES,
        };
        match self.dtype {
            CacheDType::F32 => {
                for (i, v) in x.iter().enumerate() {
                    // SAFETY: the caller's.
                    unsafe { *slab.cast::<f32>().add(at + i * stride) = *v };
                }
            }
            CacheDType::F16 => {
                let mut halves = [f16::ZERO; 64];
                for (c, x) in x.chunks(64).enumerate() {
                    halves[..x.len()].convert_from_f32_slice(x);
                    for (i, v) in halves[..x.len()].iter().enumerate() {
                        // SAFETY: the caller's.
                        unsafe { *slab.cast::<f16>().add(at + (c * 64 + i) * stride) = *v };
                    }
                }
            }
        }
    }
}
