//! From stored rows to panels.

use std::mem::offset_of;

use deephold_quant::{Block, DType, unpack_block};
use half::f16;

use super::layout::{
    Block32Int4, Block32Int8, Block32Int8Min, Block256Int4Min, Block256Int6, Block256Int6Min,
};
use super::{Layout, PANEL};

/// Packs panel `p` into `out` (zeroed; missing rows stay zero).
pub(super) fn panel(
    layout: Layout,
    dtype: DType,
    n: usize,
    k: usize,
    bytes: &[u8],
    p: usize,
    out: &mut [u8],
) {
    let blocks = k / layout.block_len();
    let size = dtype.block_bytes();
    let mut block = Block::default();
    // Block by block, so that what is written stays in the first cache.
    for (b, out) in out.chunks_exact_mut(layout.block_bytes()).enumerate() {
        for r in 0..PANEL.min(n - p * PANEL) {
            let stored = &bytes[((p * PANEL + r) * blocks + b) * size..][..size];
            unpack_block(dtype, stored, &mut block);
            put(layout, &block, r, out);
        }
    }
}

fn put_f16(out: &mut [u8], at: usize, value: f32) {
    // Exact: the value was read from an f16.
    out[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Puts row `r` of a block in its place.
fn put(layout: Layout, block: &Block, r: usize, out: &mut [u8]) {
    let offset = match layout {
        Layout::Block32Int4 => 8,
        Layout::Block256Int6 => 32,
        _ => 0,
    };
    // Four codes at a time, a byte each.
    let mut quads = [0u32; 64];
    for (quad, codes) in quads.iter_mut().zip(block.codes[..block.len].chunks_exact(4)) {
        let bytes = [codes[0], codes[1], codes[2], codes[3]].map(|c| c.wrapping_add(offset) as u8);
        *quad = u32::from_le_bytes(bytes);
    }
    let quads = &quads[..block.len / 4];
    let mut line = |at: usize, value: u32| out[at + 4 * r..][..4].copy_from_slice(&value.to_le_bytes());
    if matches!(layout, Layout::Block32Int8 | Layout::Block32Int8Min) {
        quads.iter().enumerate().for_each(|(i, q)| line(i * 64, *q));
    } else {
        const LOW: u32 = 0x0f0f_0f0f;
        for (i, pair) in quads.chunks_exact(2).enumerate() {
            line(i * 64, (pair[0] & LOW) | (pair[1] & LOW) << 4);
        }
    }
    if matches!(layout, Layout::Block256Int6 | Layout::Block256Int6Min) {
        for (i, four) in quads.chunks_exact(4).enumerate() {
            let high = |j: usize| ((four[j] >> 4) & 0x0303_0303) << (2 * j);
            line(offset_of!(Block256Int6, high) + i * 64, high(0) | high(1) | high(2) | high(3));
        }
    }
    match layout {
        Layout::Block32Int8 => put_f16(out, offset_of!(Block32Int8, d) + 2 * r, block.d),
        Layout::Block32Int8Min => {
            put_f16(out, offset_of!(Block32Int8Min, d) + 2 * r, block.d);
            put_f16(out, offset_of!(Block32Int8Min, dmin) + 2 * r, block.dmin);
        }
        Layout::Block32Int4 => put_f16(out, offset_of!(Block32Int4, d) + 2 * r, block.d),
        Layout::Block256Int4Min => {
            for g in 0..8 {
                out[offset_of!(Block256Int4Min, scales) + g * PANEL + r] = block.scales[g] as u8;
                out[offset_of!(Block256Int4Min, mins) + g / 2 * 2 * PANEL + r * 2 + g % 2] = block.mins[g];
            }
            put_f16(out, offset_of!(Block256Int4Min, d) + 2 * r, block.d);
            put_f16(out, offset_of!(Block256Int4Min, dmin) + 2 * r, block.dmin);
        }
        Layout::Block256Int6 | Layout::Block256Int6Min => {
            let per_group = 16 / block.groups;
            for g in 0..16 {
                out[offset_of!(Block256Int6, scales) + g * PANEL + r] = block.scales[g / per_group] as u8;
            }
            put_f16(out, offset_of!(Block256Int6, d) + 2 * r, block.d);
            if layout == Layout::Block256Int6Min {
                for g in 0..16 {
                    out[offset_of!(Block256Int6Min, mins) + g / 2 * 2 * PANEL + r * 2 + g % 2] =
                        block.mins[g / per_group];
                }
                put_f16(out, offset_of!(Block256Int6Min, dmin) + 2 * r, block.dmin);
            }
        }
    }
}
