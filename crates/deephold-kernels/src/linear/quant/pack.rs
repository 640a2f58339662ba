//! From stored rows to panels.
//!
//! Block by block: each row's codes become one byte each, four consecutive ones a word; words are transposed, so that the same word
//! of all rows stands in a line; lines are put together as the layout has them. The formats that models mostly come in give their words
//! with a few instructions, the others are taken apart element by element. Loading a model waits for this and for the system,
//! which clears the pages.

use std::mem::offset_of;

use deephold_quant::{Block, DType, q4k_scales, unpack_block};
use half::f16;

use super::layout::{
    Block32Int4, Block32Int8, Block32Int8Min, Block256Int4Min, Block256Int6, Block256Int6Min,
};
use super::{Layout, PANEL};

/// Words of the longest block.
const WORDS: usize = 64;

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
    #[cfg(target_arch = "x86_64")]
    if crate::Isa::Avx2.is_available() {
        // SAFETY: the machine has AVX2.
        return unsafe { panel_avx2(layout, dtype, n, k, bytes, p, out) };
    }
    panel_plain(layout, dtype, n, k, bytes, p, out);
}

/// The plain loops, compiled for AVX2: the compiler vectorizes them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn panel_avx2(layout: Layout, dtype: DType, n: usize, k: usize, bytes: &[u8], p: usize, out: &mut [u8]) {
    panel_plain(layout, dtype, n, k, bytes, p, out);
}

#[inline(always)]
fn panel_plain(layout: Layout, dtype: DType, n: usize, k: usize, bytes: &[u8], p: usize, out: &mut [u8]) {
    let blocks = k / layout.block_len();
    let size = dtype.block_bytes();
    let mut block = Block::default();
    let mut rows = [[0; WORDS]; PANEL];
    let mut lines = [[0; PANEL]; WORDS];
    let mut groups = [[0; PANEL]; 8];
    // Block by block, so that what is written stays in the first cache.
    for (b, out) in out.chunks_exact_mut(layout.block_bytes()).enumerate() {
        for (r, words) in rows.iter_mut().enumerate().take(n - p * PANEL) {
            let at = ((p * PANEL + r) * blocks + b) * size;
            let stored = &bytes[at..][..size];
            // Sixteen places are read in turns, which the hardware does not follow.
            ask_for(stored.as_ptr_range().end.wrapping_add(size), size);
            match dtype {
                DType::Q4K => put_q4k(stored, r, words, &mut groups, out),
                DType::Q6K => put_q6k(stored, r, words, &mut groups, out),
                DType::Q8_0 => put_q8_0(stored, r, words, out),
                _ => {
                    unpack_block(dtype, stored, &mut block);
                    put(layout, &block, r, words, &mut groups, out);
                }
            }
        }
        let lines = &mut lines[..layout.block_len() / 4];
        transpose(&rows, lines);
        put_lines(layout, lines, out);
        put_groups(layout, &groups, out);
    }
}

/// Asks for bytes that will be read soon, wherever they lie; a hint.
#[inline(always)]
fn ask_for(p: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has SSE; a hint reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(line).cast()) }
    }
    let _ = (p, bytes);
}

/// `lines[i][r] = rows[r][i]`, four rows and four words at a time: so much fits in registers.
#[inline(always)]
fn transpose(rows: &[[u32; WORDS]; PANEL], lines: &mut [[u32; PANEL]]) {
    for (i, lines) in lines.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        for (r, rows) in rows.as_chunks::<4>().0.iter().enumerate() {
            let part = transpose_4x4(rows.each_ref().map(|row| row.as_chunks::<4>().0[i]));
            for (line, words) in lines.iter_mut().zip(part) {
                line.as_chunks_mut::<4>().0[r] = words;
            }
        }
    }
}

/// The compiler makes 16 moves of what are eight instructions.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_4x4(rows: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    use std::arch::x86_64::*;
    // SAFETY: every x86-64 has SSE2; an array of four words and a register are the same 16 bytes.
    unsafe {
        let [a, b, c, d] = std::mem::transmute::<[[u32; 4]; 4], [__m128i; 4]>(rows);
        let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
        std::mem::transmute::<[__m128i; 4], [[u32; 4]; 4]>([
            _mm_unpacklo_epi64(ab, cd),
            _mm_unpackhi_epi64(ab, cd),
            _mm_unpacklo_epi64(ab_high, cd_high),
            _mm_unpackhi_epi64(ab_high, cd_high),
        ])
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transpose_4x4(rows: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    std::array::from_fn(|word| rows.map(|row| row[word]))
}

/// Lines of codes of a byte each, as the layout stores them.
#[inline(always)]
fn put_lines(layout: Layout, lines: &[[u32; PANEL]], out: &mut [u8]) {
    let mut stored = out.as_chunks_mut::<{ 4 * PANEL }>().0.iter_mut();
    let mut put = |line: [u32; PANEL]| {
        if let Some(stored) = stored.next() {
            for (bytes, word) in stored.as_chunks_mut::<4>().0.iter_mut().zip(line) {
                *bytes = word.to_le_bytes();
            }
        }
    };
    match layout {
        Layout::Block32Int8 | Layout::Block32Int8Min => lines.iter().for_each(|line| put(*line)),
        Layout::Block32Int4 | Layout::Block256Int4Min => {
            for [first, second] in lines.as_chunks::<2>().0 {
                put(std::array::from_fn(|r| first[r] | second[r] << 4));
            }
        }
        Layout::Block256Int6 | Layout::Block256Int6Min => {
            for [a, b, c, d] in lines.as_chunks::<4>().0 {
                put(std::array::from_fn(|r| a[r] | (d[r] & 0x3030_3030) << 2));
                put(std::array::from_fn(|r| b[r] | (d[r] & 0x0c0c_0c0c) << 4));
                put(std::array::from_fn(|r| c[r] | (d[r] & 0x0303_0303) << 6));
            }
        }
    }
}

/// Four bytes at a time, in order.
#[inline(always)]
fn fours(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b))
}

/// Each row's scales, four to a word, and from the fifth word on its minima.
type Groups = [[u32; PANEL]; 8];

/// The scales and the minima of groups where the layout has them.
#[inline(always)]
fn put_groups(layout: Layout, groups: &Groups, out: &mut [u8]) {
    let (scales_at, scales, mins_at, mins) = match layout {
        Layout::Block32Int8 | Layout::Block32Int8Min | Layout::Block32Int4 => return,
        Layout::Block256Int4Min => {
            (offset_of!(Block256Int4Min, scales), 8, offset_of!(Block256Int4Min, mins), 8)
        }
        Layout::Block256Int6 => (offset_of!(Block256Int6, scales), 16, 0, 0),
        Layout::Block256Int6Min => {
            (offset_of!(Block256Int6, scales), 16, offset_of!(Block256Int6Min, mins), 16)
        }
    };
    for (g, bytes) in out[scales_at..].as_chunks_mut::<PANEL>().0.iter_mut().enumerate().take(scales) {
        *bytes = groups[g / 4].map(|word| (word >> (g % 4 * 8)) as u8);
    }
    // Of two groups side by side.
    for (g, bytes) in out[mins_at..].as_chunks_mut::<{ 2 * PANEL }>().0.iter_mut().enumerate().take(mins / 2)
    {
        for (pair, word) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(groups[4 + g / 2]) {
            *pair = ((word >> (g % 2 * 16)) as u16).to_le_bytes();
        }
    }
}

/// Q4_K: f16 d and dmin, 12 bytes of scales and mins, 4 times 32 bytes, whose low halves are one group's codes and whose high
/// halves the next one's.
#[inline(always)]
fn put_q4k(stored: &[u8], r: usize, words: &mut [u32; WORDS], groups: &mut Groups, out: &mut [u8]) {
    out[offset_of!(Block256Int4Min, d) + 2 * r..][..2].copy_from_slice(&stored[..2]);
    out[offset_of!(Block256Int4Min, dmin) + 2 * r..][..2].copy_from_slice(&stored[2..4]);
    let (scales, mins) = q4k_scales(&stored[4..16]);
    for (at, factors) in [(0, scales), (4, mins)] {
        groups[at..].iter_mut().zip(fours(&factors)).for_each(|(rows, four)| rows[r] = four);
    }
    let groups = words.as_chunks_mut::<16>().0.iter_mut().zip(stored[16..144].as_chunks::<32>().0);
    for (words, two_groups) in groups {
        for (i, codes) in fours(two_groups).enumerate() {
            (words[i], words[8 + i]) = (codes & 0x0f0f_0f0f, codes >> 4 & 0x0f0f_0f0f);
        }
    }
}

/// Q6_K: 128 bytes of low halves, 64 of the two high bits, 16 scales, f16 d. Each half of the block has 64 bytes of the first kind,
/// low halves before high ones, and 32 of the second, whose bytes hold the bits of four codes that stand 32 apart.
#[inline(always)]
fn put_q6k(stored: &[u8], r: usize, words: &mut [u32; WORDS], groups: &mut Groups, out: &mut [u8]) {
    out[offset_of!(Block256Int6, d) + 2 * r..][..2].copy_from_slice(&stored[208..210]);
    groups.iter_mut().zip(fours(&stored[192..208])).for_each(|(rows, scales)| rows[r] = scales);
    let halves = stored[..128].as_chunks::<64>().0.iter().zip(stored[128..192].as_chunks::<32>().0);
    for (words, (low, high)) in words.as_chunks_mut::<32>().0.iter_mut().zip(halves) {
        for (part, words) in words.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let low = fours(&low[part % 2 * 32..][..32]);
            for (word, (low, high)) in words.iter_mut().zip(low.zip(fours(high))) {
                *word = low >> (part / 2 * 4) & 0x0f0f_0f0f | (high >> (2 * part) & 0x0303_0303) << 4;
            }
        }
    }
}

/// Q8_0: f16 d, 32 codes.
#[inline(always)]
fn put_q8_0(stored: &[u8], r: usize, words: &mut [u32; WORDS], out: &mut [u8]) {
    out[offset_of!(Block32Int8, d) + 2 * r..][..2].copy_from_slice(&stored[..2]);
    words.iter_mut().zip(fours(&stored[2..34])).for_each(|(word, codes)| *word = codes);
}

fn put_f16(out: &mut [u8], at: usize, value: f32) {
    // Exact: the value was read from an f16.
    out[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Puts row `r` of a block in its place, its codes in `words`.
fn put(
    layout: Layout,
    block: &Block,
    r: usize,
    words: &mut [u32; WORDS],
    groups: &mut Groups,
    out: &mut [u8],
) {
    let offset = match layout {
        Layout::Block32Int4 => 8,
        Layout::Block256Int6 => 32,
        _ => 0,
    };
    for (word, codes) in words.iter_mut().zip(block.codes[..block.len].as_chunks::<4>().0) {
        *word = u32::from_le_bytes(codes.map(|c| c.wrapping_add(offset) as u8));
    }
    match layout {
        Layout::Block32Int8 => put_f16(out, offset_of!(Block32Int8, d) + 2 * r, block.d),
        Layout::Block32Int8Min => {
            put_f16(out, offset_of!(Block32Int8Min, d) + 2 * r, block.d);
            put_f16(out, offset_of!(Block32Int8Min, dmin) + 2 * r, block.dmin);
        }
        Layout::Block32Int4 => put_f16(out, offset_of!(Block32Int4, d) + 2 * r, block.d),
        Layout::Block256Int4Min => {
            put_f16(out, offset_of!(Block256Int4Min, d) + 2 * r, block.d);
            put_f16(out, offset_of!(Block256Int4Min, dmin) + 2 * r, block.dmin);
        }
        Layout::Block256Int6 => put_f16(out, offset_of!(Block256Int6, d) + 2 * r, block.d),
        Layout::Block256Int6Min => {
            put_f16(out, offset_of!(Block256Int6, d) + 2 * r, block.d);
            put_f16(out, offset_of!(Block256Int6Min, dmin) + 2 * r, block.dmin);
        }
    }
    // Formats of fewer and larger groups have each scale several times.
    let count = match layout {
        Layout::Block32Int8 | Layout::Block32Int8Min | Layout::Block32Int4 => 0,
        Layout::Block256Int4Min => 8,
        Layout::Block256Int6 | Layout::Block256Int6Min => 16,
    };
    for g in 0..count {
        let (own, shift) = (g * block.groups / count, g % 4 * 8);
        let keep = !(0xff << shift);
        for (at, value) in [(g / 4, block.scales[own] as u8), (4 + g / 4, block.mins[own])] {
            groups[at][r] = groups[at][r] & keep | u32::from(value) << shift;
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
            let any = crate::check::noise(1, bytes.len());
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
                let mut plain = vec![0; short.len()];
                panel_plain(layout, dtype, n, k, &bytes, p, &mut plain);
                assert!(short == plain, "{dtype:?}, panel {p}");
                let mut long = vec![0; short.len()];
                let mut block = Block::default();
                for (b, out) in long.chunks_exact_mut(layout.block_bytes()).enumerate() {
                    let (mut rows, mut groups) = ([[0; WORDS]; PANEL], [[0; PANEL]; 8]);
                    for r in 0..PANEL.min(n - p * PANEL) {
                        assert!(unpack_block(
                            dtype,
                            &bytes[((p * PANEL + r) * 2 + b) * size..][..size],
                            &mut block
                        ));
                        put(layout, &block, r, &mut rows[r], &mut groups, out);
                    }
                    let lines: Vec<_> = (0..layout.block_len() / 4).map(|i| rows.map(|row| row[i])).collect();
                    put_lines(layout, &lines, out);
                    put_groups(layout, &groups, out);
                }
                assert!(short == long, "{dtype:?}, panel {p}");
            }
        }
    }
}
