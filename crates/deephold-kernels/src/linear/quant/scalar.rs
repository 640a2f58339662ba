//! The specification: plain loops over the layouts.

use std::mem::offset_of;

use half::f16;

use super::layout::{Block32Int8, Block32Int8Min, Block256Int4Min, Block256Int6, Block256Int6Min};
use super::{Layout, PANEL, QuantizedActivations};

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The signed code of row `r` at `i` of a block.
fn code(layout: Layout, block: &[u8], r: usize, i: usize) -> i32 {
    let (quad, at) = (i / 4, r * 4 + i % 4);
    let four_bits = || i32::from(block[quad / 2 * 64 + at] >> (4 * (quad % 2)) & 15);
    let six_bits = || {
        let line = |j: usize| block[(quad / 4 * 3 + j) * 64 + at];
        i32::from(match quad % 4 {
            3 => line(0) >> 6 << 4 | line(1) >> 6 << 2 | line(2) >> 6,
            j => line(j) & 63,
        })
    };
    match layout {
        Layout::Block32Int8 | Layout::Block32Int8Min => i32::from(block[quad * 64 + at] as i8),
        Layout::Block32Int4 => four_bits() - 8,
        Layout::Block256Int4Min => four_bits(),
        Layout::Block256Int6 => six_bits() - 32,
        Layout::Block256Int6Min => six_bits(),
    }
}

/// y[i] = the panel's 16 outputs for activation row `rows[i]`.
pub(super) fn tile(
    layout: Layout,
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
) {
    let len = layout.block_len();
    let blocks = act.k / len;
    for (&row, y) in rows.iter().zip(y) {
        let q = &act.q[row * act.k..][..act.k];
        for (r, y) in y.iter_mut().enumerate() {
            *y = 0.0;
            for (b, block) in panel.chunks_exact(layout.block_bytes()).enumerate() {
                let q = &q[b * len..][..len];
                let sum = block_sum(layout, block, r, q);
                let dx = act.d[row * blocks + b];
                let d_at = match layout {
                    Layout::Block32Int8 | Layout::Block32Int8Min => offset_of!(Block32Int8, d),
                    Layout::Block32Int4 => 256,
                    Layout::Block256Int4Min => offset_of!(Block256Int4Min, d),
                    Layout::Block256Int6 | Layout::Block256Int6Min => offset_of!(Block256Int6, d),
                };
                *y = (dx * half_at(block, d_at + 2 * r)).mul_add(sum as f32, *y);
                if layout == Layout::Block32Int8Min {
                    let sum: i32 = q.iter().map(|&q| i32::from(q)).sum();
                    *y = (-(dx * half_at(block, offset_of!(Block32Int8Min, dmin) + 2 * r)))
                        .mul_add(sum as f32, *y);
                } else if let Some((group, mins_at, dmin_at)) = mins(layout) {
                    let min = |g: usize| i32::from(block[mins_at + g / 2 * 32 + r * 2 + g % 2]);
                    let sum: i32 = q.iter().enumerate().map(|(i, &q)| min(i / group) * i32::from(q)).sum();
                    *y = (-(dx * half_at(block, dmin_at + 2 * r))).mul_add(sum as f32, *y);
                }
            }
        }
    }
}

/// Group length, place of the mins, place of dmin.
fn mins(layout: Layout) -> Option<(usize, usize, usize)> {
    match layout {
        Layout::Block256Int4Min => {
            Some((32, offset_of!(Block256Int4Min, mins), offset_of!(Block256Int4Min, dmin)))
        }
        Layout::Block256Int6Min => {
            Some((16, offset_of!(Block256Int6Min, mins), offset_of!(Block256Int6Min, dmin)))
        }
        _ => None,
    }
}

fn block_sum(layout: Layout, block: &[u8], r: usize, q: &[i8]) -> i32 {
    let scale = |i: usize| match layout {
        Layout::Block32Int8 | Layout::Block32Int8Min | Layout::Block32Int4 => 1,
        Layout::Block256Int4Min => i32::from(block[offset_of!(Block256Int4Min, scales) + i / 32 * PANEL + r]),
        Layout::Block256Int6 | Layout::Block256Int6Min => {
            i32::from(block[offset_of!(Block256Int6, scales) + i / 16 * PANEL + r] as i8)
        }
    };
    q.iter().enumerate().map(|(i, &q)| scale(i) * code(layout, block, r, i) * i32::from(q)).sum()
}
