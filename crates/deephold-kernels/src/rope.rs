//! Rotary position embedding (Su et al. 2021): pairs of columns turn by position * frequency.

use std::sync::{Arc, PoisonError, RwLock};

use crate::{Ops, Tensor};

/// Positions a page of the table; pages are computed when a position in them is first seen.
const PAGE: usize = 256;

/// Pairs (cos, sin), [PAGE][dim / 2].
type Page = Arc<[[f32; 2]]>;

/// Which columns are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// i and i + dim / 2 (GPT-NeoX; Hugging Face Llama and Qwen).
    Half,
    /// 2 i and 2 i + 1 (GPT-J; DeepSeek, llama.cpp's Llama).
    Interleaved,
}

/// Which columns of a row turn: `heads` slices of `dim` columns, the first at `col0`, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct RopeSlice {
    /// First column.
    pub col0: usize,
    /// From one slice to the next.
    pub stride: usize,
    /// Number of slices.
    pub heads: usize,
    /// Columns of a slice; even.
    pub dim: usize,
}

/// Cosines and sines, computed in f64 and rounded once, page by page.
pub struct RopeTable {
    inv_freq: Vec<f32>,
    attention_scale: f32,
    pages: RwLock<Vec<Option<Page>>>,
}

impl RopeTable {
    /// `inv_freq`, [dim / 2], in radians a position; cosines and sines are multiplied by `attention_scale` (YaRN).
    pub fn new(inv_freq: &[f32], attention_scale: f32) -> Self {
        Self { inv_freq: inv_freq.to_vec(), attention_scale, pages: RwLock::default() }
    }

    fn page(&self, page: usize) -> Page {
        let read = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(p)) = read.get(page) {
            return Arc::clone(p);
        }
        drop(read);
        let scale = f64::from(self.attention_scale);
        let made: Page = (page * PAGE..(page + 1) * PAGE)
            .flat_map(|position| self.inv_freq.iter().map(move |f| position as f64 * f64::from(*f)))
            .map(|angle| [(angle.cos() * scale) as f32, (angle.sin() * scale) as f32])
            .collect();
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        if pages.len() <= page {
            pages.resize(page + 1, None);
        }
        pages[page] = Some(Arc::clone(&made));
        made
    }
}

impl Ops {
    /// Turns the slices of row t by `positions[t]`, in place.
    pub fn rope(&self, x: &mut Tensor, s: RopeSlice, positions: &[u32], table: &RopeTable, style: RopeStyle) {
        let half = s.dim / 2;
        assert!(positions.len() == x.rows() && table.inv_freq.len() == half, "rope of another shape");
        assert!(
            s.heads == 0 || s.col0 + (s.heads - 1) * s.stride + s.dim <= x.cols(),
            "slices beyond the row"
        );
        let Some(last) = positions.iter().max() else { return };
        let pages: Vec<Option<Page>> = {
            let mut pages = vec![None; *last as usize / PAGE + 1];
            for p in positions {
                let page = *p as usize / PAGE;
                if pages[page].is_none() {
                    pages[page] = Some(table.page(page));
                }
            }
            pages
        };
        self.for_rows(x, |t, row| {
            let position = positions[t] as usize;
            let Some(page) = &pages[position / PAGE] else { return };
            let turns = &page[position % PAGE * half..][..half];
            for head in 0..s.heads {
                let v = &mut row[s.col0 + head * s.stride..][..s.dim];
                match style {
                    RopeStyle::Half => {
                        let (a, b) = v.split_at_mut(half);
                        for ((a, b), [c, s]) in a.iter_mut().zip(b).zip(turns) {
                            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                        }
                    }
                    RopeStyle::Interleaved => {
                        for (v, [c, s]) in v.chunks_exact_mut(2).zip(turns) {
                            (v[0], v[1]) = (v[0] * c - v[1] * s, v[1] * c + v[0] * s);
                        }
                    }
                }
            }
        });
    }
}
