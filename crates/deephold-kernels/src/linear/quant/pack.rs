//! From stored rows to panels.

use deephold_quant::{Block, DType, unpack_block};
use half::f16;

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
    for r in 0..PANEL.min(n - p * PANEL) {
        let row = &bytes[(p * PANEL + r) * blocks * size..][..blocks * size];
        for (stored, out) in row.chunks_exact(size).zip(out.chunks_exact_mut(layout.block_bytes())) {
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
        Layout::B4 => 8,
        Layout::K6 => 32,
        _ => 0,
    };
    for (i, &code) in block.codes[..block.len].iter().enumerate() {
        let (quad, at) = (i / 4, r * 4 + i % 4);
        let code = code.wrapping_add(offset) as u8;
        if matches!(layout, Layout::B8 | Layout::B8M) {
            out[quad * 64 + at] = code;
            continue;
        }
        out[quad / 2 * 64 + at] |= (code & 15) << (4 * (quad % 2));
        if matches!(layout, Layout::K6 | Layout::K6M) {
            out[2048 + quad / 4 * 64 + at] |= (code >> 4) << (2 * (quad % 4));
        }
    }
    match layout {
        Layout::B8 => put_f16(out, 512 + 2 * r, block.d),
        Layout::B8M => {
            put_f16(out, 512 + 2 * r, block.d);
            put_f16(out, 544 + 2 * r, block.dmin);
        }
        Layout::B4 => put_f16(out, 256 + 2 * r, block.d),
        Layout::K4 => {
            for g in 0..8 {
                out[2048 + g * 16 + r] = block.scales[g] as u8;
                out[2176 + g / 2 * 32 + r * 2 + g % 2] = block.mins[g];
            }
            put_f16(out, 2304 + 2 * r, block.d);
            put_f16(out, 2336 + 2 * r, block.dmin);
        }
        Layout::K6 | Layout::K6M => {
            let per_group = 16 / block.groups;
            for g in 0..16 {
                out[3072 + g * 16 + r] = block.scales[g / per_group] as u8;
            }
            put_f16(out, 3328 + 2 * r, block.d);
            if layout == Layout::K6M {
                for g in 0..16 {
                    out[3360 + g / 2 * 32 + r * 2 + g % 2] = block.mins[g / per_group];
                }
                put_f16(out, 3616 + 2 * r, block.dmin);
            }
        }
    }
}
