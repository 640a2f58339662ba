//! From stored rows to panels.
//!
//! The formats that models mostly come in have a way of their own, a few instructions for eight codes; the others are taken apart
//! element by element. Loading a model waits for this and for the system, which clears the pages.

use std::mem::offset_of;

use deephold_quant::{Block, DType, q4k_scales, unpack_block};
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
            match dtype {
                DType::Q4K => put_q4k(stored, r, out),
                DType::Q6K => put_q6k(stored, r, out),
                DType::Q8_0 => put_q8_0(stored, r, out),
                _ => {
                    unpack_block(dtype, stored, &mut block);
                    put(layout, &block, r, out);
                }
            }
        }
    }
}

/// Row `r`'s part of the lines that begin at `at`.
fn lines(out: &mut [u8], at: usize, r: usize) -> impl Iterator<Item = &mut [u8; 4]> {
    out[at..].as_chunks_mut::<64>().0.iter_mut().map(move |line| &mut line.as_chunks_mut::<4>().0[r])
}

/// Eight bytes at a time, in order.
fn eights(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b))
}

/// A line's part from eight codes of four bits, one in the low half of each byte: the last four go above the first four.
fn nibble_pairs(codes: u64) -> u32 {
    let codes = codes & 0x0f0f_0f0f_0f0f_0f0f;
    (codes | codes >> 28) as u32
}

/// The scale and the minimum of group `g` in a [`Block256Int4Min`].
fn put_int4_group(out: &mut [u8], r: usize, g: usize, scale: u8, min: u8) {
    out[offset_of!(Block256Int4Min, scales) + g * PANEL + r] = scale;
    out[offset_of!(Block256Int4Min, mins) + g / 2 * 2 * PANEL + r * 2 + g % 2] = min;
}

/// Q4_K: f16 d and dmin, 12 bytes of scales and mins, 4 times 32 bytes, whose low halves are one group's codes and whose high
/// halves the next one's.
fn put_q4k(stored: &[u8], r: usize, out: &mut [u8]) {
    out[offset_of!(Block256Int4Min, d) + 2 * r..][..2].copy_from_slice(&stored[..2]);
    out[offset_of!(Block256Int4Min, dmin) + 2 * r..][..2].copy_from_slice(&stored[2..4]);
    let (scales, mins) = q4k_scales(&stored[4..16]);
    for g in 0..8 {
        put_int4_group(out, r, g, scales[g], mins[g]);
    }
    let mut lines = lines(out, 0, r);
    for two_groups in stored[16..144].as_chunks::<32>().0 {
        for shift in [0, 4] {
            for (codes, line) in eights(two_groups).zip(&mut lines) {
                *line = nibble_pairs(codes >> shift).to_le_bytes();
            }
        }
    }
}

/// Three lines' parts from sixteen codes of six bits, four in each of `quads`.
fn six_bit_lines(quads: [u32; 4]) -> [u32; 3] {
    let [a, b, c, d] = quads;
    [a | (d & 0x3030_3030) << 2, b | (d & 0x0c0c_0c0c) << 4, c | (d & 0x0303_0303) << 6]
}

/// Q6_K: 128 bytes of low halves, 64 of the two high bits, 16 scales, f16 d. Each half of the block has 64 bytes of the first kind,
/// low halves before high ones, and 32 of the second, whose bytes hold the bits of four codes that stand 32 apart.
fn put_q6k(stored: &[u8], r: usize, out: &mut [u8]) {
    out[offset_of!(Block256Int6, d) + 2 * r..][..2].copy_from_slice(&stored[208..210]);
    for (g, scale) in stored[192..208].iter().enumerate() {
        out[offset_of!(Block256Int6, scales) + g * PANEL + r] = *scale;
    }
    let mut lines = lines(out, 0, r);
    let halves = stored[..128].as_chunks::<64>().0.iter().zip(stored[128..192].as_chunks::<32>().0);
    for (low, high) in halves {
        for part in 0..4 {
            let low = &low[part % 2 * 32..][..32];
            // Sixteen columns at a time, in two words.
            for (low, high) in low.as_chunks::<16>().0.iter().zip(high.as_chunks::<16>().0) {
                let mut quads = [0; 4];
                for (quads, (low, high)) in
                    quads.as_chunks_mut::<2>().0.iter_mut().zip(eights(low).zip(eights(high)))
                {
                    let codes = low >> (part / 2 * 4) & 0x0f0f_0f0f_0f0f_0f0f
                        | (high >> (2 * part) & 0x0303_0303_0303_0303) << 4;
                    *quads = [codes as u32, (codes >> 32) as u32];
                }
                for (bytes, line) in six_bit_lines(quads).into_iter().zip(&mut lines) {
                    *line = bytes.to_le_bytes();
                }
            }
        }
    }
}

/// Q8_0: f16 d, 32 codes.
fn put_q8_0(stored: &[u8], r: usize, out: &mut [u8]) {
    out[offset_of!(Block32Int8, d) + 2 * r..][..2].copy_from_slice(&stored[..2]);
    for (codes, line) in stored[2..34].as_chunks::<4>().0.iter().zip(lines(out, 0, r)) {
        *line = *codes;
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
    match layout {
        Layout::Block32Int8 | Layout::Block32Int8Min => {
            quads.iter().enumerate().for_each(|(i, q)| line(i * 64, *q));
        }
        Layout::Block32Int4 | Layout::Block256Int4Min => {
            for (i, [first, second]) in quads.as_chunks::<2>().0.iter().enumerate() {
                line(i * 64, nibble_pairs(u64::from(*first) | u64::from(*second) << 32));
            }
        }
        Layout::Block256Int6 | Layout::Block256Int6Min => {
            for (i, four) in quads.as_chunks::<4>().0.iter().enumerate() {
                let lines = six_bit_lines(four.map(|codes| codes & 0x3f3f_3f3f));
                lines.into_iter().enumerate().for_each(|(j, bytes)| line((i * 3 + j) * 64, bytes));
            }
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
                put_int4_group(out, r, g, block.scales[g] as u8, block.mins[g]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_ways_give_what_taking_apart_gives() {
        for dtype in [DType::Q4K, DType::Q6K, DType::Q8_0] {
            let layout = Layout::of(dtype).expect("a layout");
            let (n, k) = (PANEL + 3, 2 * layout.block_len());
            let mut bytes = vec![0u8; dtype.bytes_for(k).expect("whole blocks") * n];
            let any = crate::tests::noise(1, bytes.len());
            bytes.iter_mut().zip(any).for_each(|(b, v)| *b = (v * 128.0) as i8 as u8);
            // Factors that are numbers: a NaN may change its bits on the way through f32.
            let size = dtype.block_bytes();
            for stored in bytes.chunks_exact_mut(size) {
                match dtype {
                    DType::Q6K => stored[209] &= 0x3f,
                    DType::Q4K => (stored[1], stored[3]) = (stored[1] & 0x3f, stored[3] & 0x3f),
                    _ => stored[1] &= 0x3f,
                }
            }
            for p in 0..2 {
                let mut short = vec![0; 2 * layout.block_bytes()];
                panel(layout, dtype, n, k, &bytes, p, &mut short);
                let mut long = vec![0; short.len()];
                let mut block = Block::default();
                for (b, out) in long.chunks_exact_mut(layout.block_bytes()).enumerate() {
                    for r in 0..PANEL.min(n - p * PANEL) {
                        assert!(unpack_block(
                            dtype,
                            &bytes[((p * PANEL + r) * 2 + b) * size..][..size],
                            &mut block
                        ));
                        put(layout, &block, r, out);
                    }
                }
                assert!(short == long, "{dtype:?}, panel {p}");
            }
        }
    }
}
