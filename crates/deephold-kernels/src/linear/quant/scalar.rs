//! The specification: plain loops over the layouts.

use half::f16;

use super::{Layout, PANEL, QuantAct};

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The signed code of row `r` at `i` of a block.
fn code(layout: Layout, block: &[u8], r: usize, i: usize) -> i32 {
    let (quad, at) = (i / 4, r * 4 + i % 4);
    let low = || i32::from(block[quad / 2 * 64 + at] >> (4 * (quad % 2)) & 15);
    let high = || i32::from(block[2048 + quad / 4 * 64 + at] >> (2 * (quad % 4)) & 3) << 4;
    match layout {
        Layout::B8 | Layout::B8M => i32::from(block[quad * 64 + at] as i8),
        Layout::B4 => low() - 8,
        Layout::K4 => low(),
        Layout::K6 => (low() | high()) - 32,
        Layout::K6M => low() | high(),
    }
}

/// y[i] = the panel's 16 outputs for activation row `rows[i]`.
pub(super) fn tile(layout: Layout, panel: &[u8], act: &QuantAct, rows: &[usize], y: &mut [[f32; PANEL]]) {
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
                    Layout::B8 | Layout::B8M => 512,
                    Layout::B4 => 256,
                    Layout::K4 => 2304,
                    Layout::K6 | Layout::K6M => 3328,
                };
                *y = (dx * half_at(block, d_at + 2 * r)).mul_add(sum as f32, *y);
                if layout == Layout::B8M {
                    let sum: i32 = q.iter().map(|&q| i32::from(q)).sum();
                    *y = (-(dx * half_at(block, 544 + 2 * r))).mul_add(sum as f32, *y);
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
        Layout::K4 => Some((32, 2176, 2336)),
        Layout::K6M => Some((16, 3360, 3616)),
        _ => None,
    }
}

fn block_sum(layout: Layout, block: &[u8], r: usize, q: &[i8]) -> i32 {
    let scale = |i: usize| match layout {
        Layout::B8 | Layout::B8M | Layout::B4 => 1,
        Layout::K4 => i32::from(block[2048 + i / 32 * 16 + r]),
        Layout::K6 | Layout::K6M => i32::from(block[3072 + i / 16 * 16 + r] as i8),
    };
    q.iter().enumerate().map(|(i, &q)| scale(i) * code(layout, block, r, i) * i32::from(q)).sum()
}
