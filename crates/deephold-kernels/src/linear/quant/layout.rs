//! One block of a packed panel: 16 rows side by side. Packing, the scalar form and the vector forms read their offsets here.
//!
//! A line is 64 bytes: four codes of each of the 16 rows. Codes of 4 bits stand in pairs in a byte, the line of the first four
//! columns in the low nibbles and that of the next four in the high ones. Codes of 6 bits take three lines for sixteen columns: the
//! low six bits of a byte are a code of the line's four columns, its high two are a part of the last four columns' codes, the
//! first line's the highest. Factors are f16 bits, one a row. The types only describe:
//! nothing is read through a reference to them.

use super::PANEL;

/// f16 bits, one a row.
type Halves = [u16; PANEL];
/// Two groups' values of each row, side by side: what one product of pairs reads.
type Pairs = [[u8; 2]; PANEL];

/// Of [`super::Layout::Block32Int8`].
#[repr(C)]
pub(super) struct Block32Int8 {
    pub(super) codes: [u8; 32 * PANEL],
    pub(super) d: Halves,
}

/// Of [`super::Layout::Block32Int8Min`].
#[repr(C)]
pub(super) struct Block32Int8Min {
    pub(super) codes: [u8; 32 * PANEL],
    pub(super) d: Halves,
    pub(super) dmin: Halves,
}

/// Of [`super::Layout::Block32Int4`].
#[repr(C)]
pub(super) struct Block32Int4 {
    pub(super) codes: [u8; 32 * PANEL / 2],
    pub(super) d: Halves,
}

/// Of [`super::Layout::Block256Int4Min`].
#[repr(C)]
pub(super) struct Block256Int4Min {
    pub(super) codes: [u8; 256 * PANEL / 2],
    /// Of each group of 32 columns.
    pub(super) scales: [[u8; PANEL]; 8],
    pub(super) mins: [Pairs; 4],
    pub(super) d: Halves,
    pub(super) dmin: Halves,
}

/// Of [`super::Layout::Block256Int6`].
#[repr(C)]
pub(super) struct Block256Int6 {
    pub(super) codes: [u8; 256 * PANEL / 4 * 3],
    /// Of each group of 16 columns.
    pub(super) scales: [[i8; PANEL]; 16],
    pub(super) d: Halves,
}

/// Of [`super::Layout::Block256Int6Min`]; begins as [`Block256Int6`] does, so that one kernel reads both.
#[repr(C)]
pub(super) struct Block256Int6Min {
    pub(super) base: Block256Int6,
    pub(super) mins: [Pairs; 8],
    pub(super) dmin: Halves,
}
