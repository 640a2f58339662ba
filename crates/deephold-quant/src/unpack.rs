//! Taking blocks apart, and the exact values they stand for.

use half::{bf16, f16};

use crate::{DType, QuantError, f8e4m3_to_f32};

/// Values of the 4-bit codes of IQ4_NL and IQ4_XS.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// A block taken apart: element i of group g is `(d * scales[g]) * codes[i] - dmin * mins[g]`.
///
/// The products are rounded in this order, which is ggml's. A group is `len / groups` elements.
#[derive(Clone, Debug)]
pub struct Block {
    /// Integer codes, offsets already subtracted (so signed).
    pub codes: [i8; 256],
    /// Factor of each group.
    pub scales: [i8; 16],
    /// Offset of each group, in units of `dmin`.
    pub mins: [u8; 16],
    /// Factor of all groups.
    pub d: f32,
    /// Factor of all offsets; 0 where the format has none.
    pub dmin: f32,
    /// Elements: 32 or 256.
    pub len: usize,
    /// Groups: 1, 8 or 16.
    pub groups: usize,
}

impl Default for Block {
    fn default() -> Self {
        Self { codes: [0; 256], scales: [1; 16], mins: [0; 16], d: 0.0, dmin: 0.0, len: 32, groups: 1 }
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Takes one quantized block apart; `false` if the type is not a block type or the size is wrong.
pub fn unpack_block(dtype: DType, bytes: &[u8], block: &mut Block) -> bool {
    if !dtype.is_quantized() || bytes.len() != dtype.block_bytes() {
        return false;
    }
    block.len = dtype.block_len();
    block.groups = match dtype {
        DType::Q2K | DType::Q3K | DType::Q6K => 16,
        DType::Q4K | DType::Q5K | DType::IQ4XS => 8,
        _ => 1,
    };
    block.scales = [1; 16];
    block.mins = [0; 16];
    block.dmin = 0.0;
    match dtype {
        DType::Q2K => unpack_q2k(bytes, block),
        DType::Q3K => unpack_q3k(bytes, block),
        DType::Q4K => unpack_q4k(bytes, &bytes[16..144], None, block),
        DType::Q5K => unpack_q4k(bytes, &bytes[48..176], Some(&bytes[16..48]), block),
        DType::Q6K => unpack_q6k(bytes, block),
        DType::IQ4XS => unpack_iq4xs(bytes, block),
        _ => unpack_small(dtype, bytes, block),
    }
    true
}

/// The formats of 32 elements.
fn unpack_small(dtype: DType, bytes: &[u8], block: &mut Block) {
    block.d = f16_at(bytes, 0);
    if matches!(dtype, DType::Q4_1 | DType::Q5_1) {
        // d * q + m is d * q - dmin * 1 with dmin = -m, to the bit.
        block.dmin = -f16_at(bytes, 2);
        block.mins[0] = 1;
    }
    if dtype == DType::Q8_0 {
        for (code, &byte) in block.codes.iter_mut().zip(&bytes[2..]) {
            *code = byte as i8;
        }
        return;
    }
    let nibbles = &bytes[bytes.len() - 16..];
    let high = match dtype {
        DType::Q5_0 | DType::Q5_1 => {
            let at = bytes.len() - 20;
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        }
        _ => 0,
    };
    let codes = &mut block.codes[..32];
    for (i, byte) in nibbles.iter().enumerate() {
        codes[i] = (byte & 15) as i8;
        codes[i + 16] = (byte >> 4) as i8;
    }
    match dtype {
        DType::Q4_0 => codes.iter_mut().for_each(|c| *c -= 8),
        DType::IQ4NL => codes.iter_mut().for_each(|c| *c = IQ4_VALUES[*c as usize]),
        DType::Q5_0 | DType::Q5_1 => {
            let offset = if dtype == DType::Q5_0 { 16 } else { 0 };
            for (i, c) in codes.iter_mut().enumerate() {
                *c = (*c | ((high >> i & 1) << 4) as i8) - offset;
            }
        }
        _ => {}
    }
}

/// The codes of a block of 256, 32 at a time: loops of a fixed length become vector code.
fn groups(block: &mut Block) -> impl Iterator<Item = (usize, &mut [i8; 32])> {
    block.codes.as_chunks_mut::<32>().0.iter_mut().enumerate()
}

fn part(bytes: &[u8], at: usize) -> &[u8; 32] {
    &bytes[at..].as_chunks::<32>().0[0]
}

fn unpack_q2k(bytes: &[u8], block: &mut Block) {
    (block.d, block.dmin) = (f16_at(bytes, 80), f16_at(bytes, 82));
    for (g, byte) in bytes[..16].iter().enumerate() {
        block.scales[g] = (byte & 15) as i8;
        block.mins[g] = byte >> 4;
    }
    for (g, codes) in groups(block) {
        let (low, plane) = (part(bytes, 16 + g / 4 * 32), g % 4);
        for at in 0..32 {
            codes[at] = (low[at] >> (2 * plane) & 3) as i8;
        }
    }
}

fn unpack_q3k(bytes: &[u8], block: &mut Block) {
    let (hmask, qs, scales) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
    block.d = f16_at(bytes, 108);
    for g in 0..16 {
        let low = scales[g % 8] >> (4 * (g / 8)) & 15;
        let high = scales[8 + g % 4] >> (2 * (g / 4)) & 3;
        block.scales[g] = (low | high << 4) as i8 - 32;
    }
    for (g, codes) in groups(block) {
        let (low, high, plane) = (part(qs, g / 4 * 32), part(hmask, 0), g % 4);
        for at in 0..32 {
            codes[at] = (low[at] >> (2 * plane) & 3) as i8 + 4 * (high[at] >> g & 1) as i8 - 4;
        }
    }
}

/// The scales and mins of the eight groups of a Q4_K or Q5_K block, six bits each, from their 12 bytes.
///
/// # Panics
/// There are fewer than 12 bytes.
#[inline]
pub fn q4k_scales(bytes: &[u8]) -> ([u8; 8], [u8; 8]) {
    // Four at a time: six bits of the first four scales and minima; of the others four bits, and the two that those leave free.
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (scales, mins, others) = (word(0), word(4), word(8));
    let eight = |first: u32, others: u32| {
        let (first, last) = (first & 0x3f3f_3f3f, others & 0x0f0f_0f0f | (first >> 6 & 0x0303_0303) << 4);
        (u64::from(first) | u64::from(last) << 32).to_le_bytes()
    };
    (eight(scales, others), eight(mins, others >> 4))
}

fn unpack_q4k(bytes: &[u8], qs: &[u8], qh: Option<&[u8]>, block: &mut Block) {
    (block.d, block.dmin) = (f16_at(bytes, 0), f16_at(bytes, 2));
    let (scales, mins) = q4k_scales(&bytes[4..16]);
    for g in 0..8 {
        (block.scales[g], block.mins[g]) = (scales[g] as i8, mins[g]);
    }
    for (g, codes) in groups(block) {
        let low = part(qs, g / 2 * 32);
        for at in 0..32 {
            codes[at] = (low[at] >> (4 * (g % 2)) & 15) as i8;
        }
        if let Some(qh) = qh {
            let high = part(qh, 0);
            for at in 0..32 {
                codes[at] |= ((high[at] >> g & 1) << 4) as i8;
            }
        }
    }
}

fn unpack_q6k(bytes: &[u8], block: &mut Block) {
    let (ql, qh) = (&bytes[..128], &bytes[128..192]);
    block.d = f16_at(bytes, 208);
    for g in 0..16 {
        block.scales[g] = bytes[192 + g] as i8;
    }
    for (g, codes) in groups(block) {
        let (half, plane) = (g / 4, g % 4);
        let (low, high) = (part(ql, half * 64 + plane % 2 * 32), part(qh, half * 32));
        for at in 0..32 {
            let (low, high) = (low[at] >> (4 * (plane / 2)) & 15, high[at] >> (2 * plane) & 3);
            codes[at] = (low | high << 4) as i8 - 32;
        }
    }
}

fn unpack_iq4xs(bytes: &[u8], block: &mut Block) {
    block.d = f16_at(bytes, 0);
    let high = u16::from_le_bytes([bytes[2], bytes[3]]);
    for g in 0..8 {
        let low = bytes[4 + g / 2] >> (4 * (g % 2)) & 15;
        block.scales[g] = (low | ((high >> (2 * g) & 3) as u8) << 4) as i8 - 32;
    }
    for (i, code) in block.codes.iter_mut().enumerate() {
        let (group, at) = (i / 32, i % 32);
        let nibble = bytes[8 + group * 16 + at % 16] >> (4 * (at / 16)) & 15;
        *code = IQ4_VALUES[nibble as usize];
    }
}

impl Block {
    /// Writes the `len` values of the block.
    pub fn values(&self, out: &mut [f32]) {
        let group_len = self.len / self.groups;
        for (g, group) in out[..self.len].chunks_exact_mut(group_len).enumerate() {
            let scale = self.d * f32::from(self.scales[g]);
            let min = self.dmin * f32::from(self.mins[g]);
            let codes = &self.codes[g * group_len..];
            if self.dmin.to_bits() == 0 {
                group.iter_mut().zip(codes).for_each(|(y, &q)| *y = scale * f32::from(q));
            } else {
                group.iter_mut().zip(codes).for_each(|(y, &q)| *y = scale * f32::from(q) - min);
            }
        }
    }
}

/// Values of `out.len()` elements stored in `bytes`, exactly as the format defines them.
///
/// # Errors
/// The sizes disagree, or the type is an integer type.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    if dtype.bytes_for(out.len()) != Some(bytes.len()) {
        return Err(QuantError::Size { dtype, elements: out.len(), bytes: bytes.len() });
    }
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
        for (y, chunk) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *y = f(*chunk);
        }
    }
    match dtype {
        DType::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        DType::F8E4M3 => each(bytes, out, |[b]| f8e4m3_to_f32(b)),
        _ if dtype.is_quantized() => {
            let mut block = Block::default();
            for (y, b) in out.chunks_exact_mut(dtype.block_len()).zip(bytes.chunks_exact(dtype.block_bytes()))
            {
                unpack_block(dtype, b, &mut block);
                block.values(y);
            }
        }
        _ => return Err(QuantError::Unsupported { dtype }),
    }
    Ok(())
}
