//! The products over whole lines of 64 bytes, written once for every instruction set that has a dot product of bytes.
//!
//! A [`Wide`] type says how a line of 16 lanes is held (one register of AVX-512, two of AVX-VNNI, four of NEON, an array in
//! the tests) and gives its one-line operations. What can go wrong in a kernel, its offsets and shifts, is here, and is tested
//! everywhere through the array form; the operations of AVX-512 and AVX-VNNI are, over their instructions in plain Rust.

use std::mem::offset_of;

use super::layout::{
    Block32Int4, Block32Int8, Block32Int8Min, Block256Int4Min, Block256Int6, Block256Int6Min,
};
use super::{Layout, PANEL, QuantizedActivations};

/// 16 lanes: of 4 bytes, of an i32, of an f32. All integer operations wrap; the sums here stay far below 2^31.
pub(super) trait Wide {
    /// 64 bytes, 4 a lane.
    type Bytes: Copy;
    /// An i32 a lane.
    type Ints: Copy;
    /// An f32 a lane.
    type Floats: Copy;

    /// What [`Self::dot_signed`] adds to every code: sets without a signed product shift codes up.
    const SIGNED_OFFSET: i32;
    /// Whether [`Self::mul_add_pair`] costs less than two of [`Self::mul_add`].
    const PAIRS: bool = false;

    /// Asks for a line that will be read soon; the address may lie anywhere.
    unsafe fn ask_for(p: *const u8);

    /// # Safety
    /// As all functions here: the instruction set is present, and `p` points at the 64 bytes, 16 bytes (scales), 32
    /// bytes (mins, halves) or 16 f32 (store) that are read or written.
    unsafe fn load(p: *const u8) -> Self::Bytes;
    /// The low nibble of each byte.
    unsafe fn low(b: Self::Bytes) -> Self::Bytes;
    /// The high nibble of each byte.
    unsafe fn high(b: Self::Bytes) -> Self::Bytes;
    /// The low six bits of each byte, and what their high two bits are together, the first line's the highest.
    unsafe fn six_bits(lines: [Self::Bytes; 3]) -> [Self::Bytes; 4];
    /// acc + the dot product of each lane's codes, 0..=63, with the four activations of `x`.
    unsafe fn dot(acc: Self::Ints, codes: Self::Bytes, x: i32) -> Self::Ints;
    /// As [`Self::dot`] for codes -128..=127, each plus [`Self::SIGNED_OFFSET`].
    unsafe fn dot_signed(acc: Self::Ints, codes: Self::Bytes, x: i32) -> Self::Ints;
    unsafe fn splat(x: i32) -> Self::Ints;
    unsafe fn scales(p: *const i8) -> Self::Ints;
    /// acc + a * b
    unsafe fn mul_add(acc: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// acc + the two parts, each within 16 bits, times the scales of two groups in turn, which lie one behind the other.
    #[inline(always)]
    unsafe fn mul_add_pair(acc: Self::Ints, parts: [Self::Ints; 2], scales: *const i8) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe {
            let first = Self::mul_add(acc, parts[0], Self::scales(scales));
            Self::mul_add(first, parts[1], Self::scales(scales.add(PANEL)))
        }
    }
    /// acc + each lane's two mins times the two i16 of `sums`.
    unsafe fn add_mins(acc: Self::Ints, p: *const u8, sums: i32) -> Self::Ints;
    unsafe fn zeros() -> Self::Floats;
    /// Sixteen f16.
    unsafe fn halves(p: *const u8) -> Self::Floats;
    /// fma(dx * d, f32(sum), acc)
    unsafe fn add_scaled(acc: Self::Floats, dx: f32, d: Self::Floats, sum: Self::Ints) -> Self::Floats;
    unsafe fn store(acc: Self::Floats, y: *mut f32);
}

/// Bytes ahead of the current line that are asked for; the hardware's own prefetch stops at page ends.
const AHEAD: usize = 2048;

/// y[i] = the panel's 16 outputs for activation row `rows[i]`; 8, 4, 2 or 1 rows. `fetch` asks for lines ahead of their use:
/// for the first rows that meet a panel, which then comes from memory.
///
/// # Safety
/// `W`'s instruction set is present; `panel` is whole blocks for `act.k`, and `rows` are below `act.rows`.
#[inline(always)]
pub(super) unsafe fn tile<W: Wide>(
    layout: Layout,
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
    fetch: bool,
) {
    debug_assert_eq!(panel.len(), act.k / layout.block_len() * layout.block_bytes());
    // SAFETY: the caller's promise is handed on.
    unsafe {
        match rows.len() {
            8 => rows_of::<W, 8>(layout, panel, act, rows, y, fetch),
            4 => rows_of::<W, 4>(layout, panel, act, rows, y, fetch),
            2 => rows_of::<W, 2>(layout, panel, act, rows, y, fetch),
            _ => rows_of::<W, 1>(layout, panel, act, rows, y, fetch),
        }
    }
}

#[inline(always)]
unsafe fn rows_of<W: Wide, const T: usize>(
    layout: Layout,
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
    fetch: bool,
) {
    // SAFETY: the caller's promise is handed on.
    let acc: [W::Floats; T] = unsafe {
        match layout {
            Layout::Block32Int8 => b8::<W, T, false>(panel, act, rows, fetch),
            Layout::Block32Int8Min => b8::<W, T, true>(panel, act, rows, fetch),
            Layout::Block32Int4 => b4::<W, T>(panel, act, rows, fetch),
            Layout::Block256Int4Min => k4::<W, T>(panel, act, rows, fetch),
            Layout::Block256Int6 => k6::<W, T, false>(panel, act, rows, fetch),
            Layout::Block256Int6Min => k6::<W, T, true>(panel, act, rows, fetch),
        }
    };
    for (acc, y) in acc.into_iter().zip(y) {
        // SAFETY: a row of `y` is 16 f32.
        unsafe { W::store(acc, y.as_mut_ptr()) };
    }
}

/// Per row of the tile: where its part of an array of `per_row` elements a row begins.
#[inline(always)]
fn parts<const T: usize, E>(array: &[E], per_row: usize, rows: &[usize]) -> [*const E; T] {
    std::array::from_fn(|t| array[rows[t] * per_row..][..per_row].as_ptr())
}

/// Four bytes from `at` elements on.
#[inline(always)]
unsafe fn quad<E>(p: *const E, at: usize) -> i32 {
    // SAFETY: the caller points at 4 readable bytes there.
    unsafe { p.add(at).cast::<i32>().read_unaligned() }
}

// SAFETY of the unsafe blocks below: offsets within block b of the panel stay below the layout's block bytes, and those
// of activations below the block's length, sums and scales, as the caller promises their sizes.

/// A block of a panel, and what its codes meet.
struct Block<const T: usize> {
    p: *const u8,
    /// Of each row, the block's activations.
    q: [*const i8; T],
    /// Of each row, where the sums of its groups begin, two i16 a group; only of [`SixBits`].
    center: [*const i16; T],
    fetch: bool,
}

/// Codes of a block in groups of columns with a scale each.
trait Groups {
    const COUNT: usize;
    /// Where the scales stand in a block.
    const SCALES: usize;
    /// The products of a group's codes with its columns, of each row.
    unsafe fn products<W: Wide, const T: usize>(block: &Block<T>, group: usize) -> [W::Ints; T];
}

struct FourBits;

impl Groups for FourBits {
    const COUNT: usize = 8;
    // Scales of 6 bits: as i8 they are themselves.
    const SCALES: usize = offset_of!(Block256Int4Min, scales);

    #[inline(always)]
    unsafe fn products<W: Wide, const T: usize>(block: &Block<T>, group: usize) -> [W::Ints; T] {
        // SAFETY: see above.
        unsafe {
            let mut sum = [W::splat(0); T];
            for l in 0..4 {
                let line = block.p.add((group * 4 + l) * 64);
                if block.fetch {
                    W::ask_for(line.wrapping_add(AHEAD));
                }
                let codes = W::load(line);
                let (first, second) = (W::low(codes), W::high(codes));
                for (sum, q) in sum.iter_mut().zip(block.q) {
                    let at = group * 32 + l * 8;
                    *sum = W::dot(*sum, first, quad(q, at));
                    *sum = W::dot(*sum, second, quad(q, at + 4));
                }
            }
            sum
        }
    }
}

/// Without mins codes are stored 32 too high, for which sums begin with what that adds.
struct SixBits<const MINS: bool>;

impl<const MINS: bool> Groups for SixBits<MINS> {
    const COUNT: usize = 16;
    const SCALES: usize = offset_of!(Block256Int6, scales);

    #[inline(always)]
    unsafe fn products<W: Wide, const T: usize>(block: &Block<T>, group: usize) -> [W::Ints; T] {
        // SAFETY: see above.
        unsafe {
            let lines = [0, 64, 128].map(|at| block.p.add(group * 192 + at));
            if block.fetch {
                for line in lines {
                    W::ask_for(line.wrapping_add(AHEAD));
                }
            }
            let codes = W::six_bits([W::load(lines[0]), W::load(lines[1]), W::load(lines[2])]);
            let mut sum = [W::splat(0); T];
            for (sum, (q, center)) in sum.iter_mut().zip(block.q.into_iter().zip(block.center)) {
                if !MINS {
                    *sum = W::splat(quad(center, group * 2));
                }
                for (i, code) in codes.into_iter().enumerate() {
                    *sum = W::dot(*sum, code, quad(q, group * 16 + i * 4));
                }
            }
            sum
        }
    }
}

/// A block's sum of each row: its groups' products times their scales. `NARROW` ones fit 16 bits.
#[inline(always)]
unsafe fn scaled<W: Wide, G: Groups, const T: usize, const NARROW: bool>(block: &Block<T>) -> [W::Ints; T] {
    // SAFETY: see above.
    unsafe {
        let mut sum = [W::splat(0); T];
        for g in (0..G::COUNT).step_by(2) {
            let scales = block.p.add(G::SCALES + g * PANEL).cast();
            let first = G::products::<W, T>(block, g);
            if NARROW {
                let second = G::products::<W, T>(block, g + 1);
                for t in 0..T {
                    sum[t] = W::mul_add_pair(sum[t], [first[t], second[t]], scales);
                }
            } else {
                let scale = W::scales(scales);
                for t in 0..T {
                    sum[t] = W::mul_add(sum[t], first[t], scale);
                }
                let second = G::products::<W, T>(block, g + 1);
                let scale = W::scales(scales.add(PANEL));
                for t in 0..T {
                    sum[t] = W::mul_add(sum[t], second[t], scale);
                }
            }
        }
        sum
    }
}

/// [`scaled`], with products of 16 bits where all rows' are narrow and the instructions gain by it.
#[inline(always)]
unsafe fn sums<W: Wide, G: Groups, const T: usize>(
    block: &Block<T>,
    narrow: [*const bool; T],
    b: usize,
) -> [W::Ints; T] {
    // SAFETY: see above.
    unsafe {
        if W::PAIRS && narrow.into_iter().fold(true, |all, narrow| all & *narrow.add(b)) {
            scaled::<W, G, T, true>(block)
        } else {
            scaled::<W, G, T, false>(block)
        }
    }
}

#[inline(always)]
unsafe fn k4<W: Wide, const T: usize>(
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    fetch: bool,
) -> [W::Floats; T] {
    let blocks = act.k / 256;
    let q = parts::<T, _>(&act.q, act.k, rows);
    let totals = parts::<T, _>(&act.sums32, act.k / 32, rows);
    let (dx, narrow) = (parts::<T, _>(&act.d, blocks, rows), parts::<T, _>(&act.narrow, blocks, rows));
    // SAFETY: see above.
    unsafe {
        let mut acc = [W::zeros(); T];
        for b in 0..blocks {
            let p = panel.as_ptr().add(b * size_of::<Block256Int4Min>());
            let block = Block { p, q: q.map(|q| q.add(b * 256)), center: [std::ptr::null(); T], fetch };
            let sum = sums::<W, FourBits, T>(&block, narrow, b);
            let (d, dmin) = (
                W::halves(p.add(offset_of!(Block256Int4Min, d))),
                W::halves(p.add(offset_of!(Block256Int4Min, dmin))),
            );
            for t in 0..T {
                let mut min_sum = W::splat(0);
                for pair in 0..4 {
                    min_sum = W::add_mins(
                        min_sum,
                        p.add(offset_of!(Block256Int4Min, mins) + pair * 2 * PANEL),
                        quad(totals[t], b * 8 + pair * 2),
                    );
                }
                let dx = *dx[t].add(b);
                acc[t] = W::add_scaled(acc[t], dx, d, sum[t]);
                acc[t] = W::add_scaled(acc[t], -dx, dmin, min_sum);
            }
        }
        acc
    }
}

#[inline(always)]
unsafe fn k6<W: Wide, const T: usize, const MINS: bool>(
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    fetch: bool,
) -> [W::Floats; T] {
    let blocks = act.k / 256;
    let block_bytes = if MINS { size_of::<Block256Int6Min>() } else { size_of::<Block256Int6>() };
    let q = parts::<T, _>(&act.q, act.k, rows);
    let center = parts::<T, _>(&act.center, act.k / 8, rows);
    let totals = parts::<T, _>(&act.sums16, act.k / 16, rows);
    let (dx, narrow) = (parts::<T, _>(&act.d, blocks, rows), parts::<T, _>(&act.narrow, blocks, rows));
    // SAFETY: see above.
    unsafe {
        let mut acc = [W::zeros(); T];
        for b in 0..blocks {
            let p = panel.as_ptr().add(b * block_bytes);
            let (q, center) = (q.map(|q| q.add(b * 256)), center.map(|center| center.add(b * 32)));
            let sum = sums::<W, SixBits<MINS>, T>(&Block { p, q, center, fetch }, narrow, b);
            let d = W::halves(p.add(offset_of!(Block256Int6, d)));
            for t in 0..T {
                acc[t] = W::add_scaled(acc[t], *dx[t].add(b), d, sum[t]);
                if MINS {
                    let mut min_sum = W::splat(0);
                    for pair in 0..8 {
                        min_sum = W::add_mins(
                            min_sum,
                            p.add(offset_of!(Block256Int6Min, mins) + pair * 2 * PANEL),
                            quad(totals[t], b * 16 + pair * 2),
                        );
                    }
                    acc[t] = W::add_scaled(
                        acc[t],
                        -*dx[t].add(b),
                        W::halves(p.add(offset_of!(Block256Int6Min, dmin))),
                        min_sum,
                    );
                }
            }
        }
        acc
    }
}

#[inline(always)]
unsafe fn b4<W: Wide, const T: usize>(
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    fetch: bool,
) -> [W::Floats; T] {
    let blocks = act.k / 32;
    let q = parts::<T, _>(&act.q, act.k, rows);
    let sums = parts::<T, _>(&act.sums32, blocks, rows);
    let dx = parts::<T, _>(&act.d, blocks, rows);
    // SAFETY: see above.
    unsafe {
        let mut acc = [W::zeros(); T];
        for b in 0..blocks {
            let p = panel.as_ptr().add(b * size_of::<Block32Int4>());
            let mut sum: [W::Ints; T] = std::array::from_fn(|t| W::splat(-8 * i32::from(*sums[t].add(b))));
            for l in 0..4 {
                let line = p.add(l * 64);
                if fetch {
                    W::ask_for(line.wrapping_add(AHEAD));
                }
                let codes = W::load(line);
                let (first, second) = (W::low(codes), W::high(codes));
                for t in 0..T {
                    sum[t] = W::dot(sum[t], first, quad(q[t], b * 32 + l * 8));
                    sum[t] = W::dot(sum[t], second, quad(q[t], b * 32 + l * 8 + 4));
                }
            }
            let d = W::halves(p.add(offset_of!(Block32Int4, d)));
            for t in 0..T {
                acc[t] = W::add_scaled(acc[t], *dx[t].add(b), d, sum[t]);
            }
        }
        acc
    }
}

#[inline(always)]
unsafe fn b8<W: Wide, const T: usize, const MINS: bool>(
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    fetch: bool,
) -> [W::Floats; T] {
    let blocks = act.k / 32;
    let block_bytes = if MINS { size_of::<Block32Int8Min>() } else { size_of::<Block32Int8>() };
    let q = parts::<T, _>(&act.q, act.k, rows);
    let sums = parts::<T, _>(&act.sums32, blocks, rows);
    let dx = parts::<T, _>(&act.d, blocks, rows);
    // SAFETY: see above.
    unsafe {
        let mut acc = [W::zeros(); T];
        for b in 0..blocks {
            let p = panel.as_ptr().add(b * block_bytes);
            let total = |t: usize| i32::from(*sums[t].add(b));
            let mut sum: [W::Ints; T] = std::array::from_fn(|t| W::splat(-W::SIGNED_OFFSET * total(t)));
            for l in 0..8 {
                let line = p.add(l * 64);
                if fetch {
                    W::ask_for(line.wrapping_add(AHEAD));
                }
                let codes = W::load(line);
                for t in 0..T {
                    sum[t] = W::dot_signed(sum[t], codes, quad(q[t], b * 32 + l * 4));
                }
            }
            let d = W::halves(p.add(offset_of!(Block32Int8, d)));
            for t in 0..T {
                acc[t] = W::add_scaled(acc[t], *dx[t].add(b), d, sum[t]);
                if MINS {
                    let dmin = W::halves(p.add(offset_of!(Block32Int8Min, dmin)));
                    acc[t] = W::add_scaled(acc[t], -*dx[t].add(b), dmin, W::splat(total(t)));
                }
            }
        }
        acc
    }
}

/// Arrays in place of registers: the form in which the kernels above are tested everywhere.
#[cfg(test)]
pub(super) struct Portable;

#[cfg(test)]
impl Wide for Portable {
    type Bytes = [u8; 64];
    type Ints = [i32; 16];
    type Floats = [f32; 16];

    const SIGNED_OFFSET: i32 = 128;
    const PAIRS: bool = true;

    unsafe fn ask_for(_: *const u8) {}

    unsafe fn load(p: *const u8) -> [u8; 64] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u8; 64]>().read() }
    }

    unsafe fn low(b: [u8; 64]) -> [u8; 64] {
        b.map(|b| b & 15)
    }

    unsafe fn high(b: [u8; 64]) -> [u8; 64] {
        b.map(|b| b >> 4)
    }

    unsafe fn six_bits(lines: [[u8; 64]; 3]) -> [[u8; 64]; 4] {
        let [a, b, c] = lines;
        let last = std::array::from_fn(|i| a[i] >> 6 << 4 | b[i] >> 6 << 2 | c[i] >> 6);
        let [a, b, c] = lines.map(|line| line.map(|byte| byte & 63));
        [a, b, c, last]
    }

    unsafe fn dot(acc: [i32; 16], codes: [u8; 64], x: i32) -> [i32; 16] {
        let x = x.to_le_bytes().map(|b| i32::from(b as i8));
        std::array::from_fn(|r| acc[r] + (0..4).map(|i| i32::from(codes[4 * r + i]) * x[i]).sum::<i32>())
    }

    unsafe fn dot_signed(acc: [i32; 16], codes: [u8; 64], x: i32) -> [i32; 16] {
        // SAFETY: arrays.
        unsafe { Self::dot(acc, codes.map(|c| c ^ 0x80), x) }
    }

    unsafe fn splat(x: i32) -> [i32; 16] {
        [x; 16]
    }

    unsafe fn scales(p: *const i8) -> [i32; 16] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[i8; 16]>().read() }.map(i32::from)
    }

    unsafe fn mul_add(acc: [i32; 16], a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|r| acc[r] + a[r] * b[r])
    }

    unsafe fn add_mins(acc: [i32; 16], p: *const u8, sums: i32) -> [i32; 16] {
        // SAFETY: the caller's promise.
        let mins = unsafe { p.cast::<[[u8; 2]; 16]>().read() };
        let sums = [sums as i16, (sums >> 16) as i16].map(i32::from);
        std::array::from_fn(|r| acc[r] + i32::from(mins[r][0]) * sums[0] + i32::from(mins[r][1]) * sums[1])
    }

    unsafe fn zeros() -> [f32; 16] {
        [0.0; 16]
    }

    unsafe fn halves(p: *const u8) -> [f32; 16] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[[u8; 2]; 16]>().read() }.map(|b| half::f16::from_le_bytes(b).to_f32())
    }

    unsafe fn add_scaled(acc: [f32; 16], dx: f32, d: [f32; 16], sum: [i32; 16]) -> [f32; 16] {
        std::array::from_fn(|r| (dx * d[r]).mul_add(sum[r] as f32, acc[r]))
    }

    unsafe fn store(acc: [f32; 16], y: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { y.cast::<[f32; 16]>().write(acc) }
    }
}
