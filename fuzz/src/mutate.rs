//! Damage: of bytes, of numbers in text, of structure.

use deephold_testkit::Rng;

/// Numbers that programs trip over.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "1e999",
    "-0.0",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "99999999999999999999999",
    "0.5",
    "null",
    "1e-320",
];

/// A damaged copy of one of the seeds.
pub(crate) fn mutate(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[rng.below(seeds.len())].clone();
    for _ in 0..rng.range(1, 6) {
        if bytes.is_empty() {
            bytes.push(rng.next_u64() as u8);
        }
        let at = rng.below(bytes.len());
        match rng.below(10) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next_u64() as u8,
            2 => bytes.truncate(at),
            3 => word(rng, &mut bytes, at),
            4 | 5 => number(rng, &mut bytes, at),
            6 => repeat(rng, &mut bytes, at),
            7 => drop(bytes.drain(at..(at + rng.range(1, 64)).min(bytes.len()))),
            8 => {
                let other = rng.below(seeds.len());
                splice(rng, &mut bytes, at, &seeds[other]);
            }
            _ => nest(rng, &mut bytes, at),
        }
    }
    bytes
}

/// An extreme little-endian number over four or eight bytes.
fn word(rng: &mut Rng, bytes: &mut [u8], at: usize) {
    let value =
        [0, 1, u64::MAX, i64::MAX as u64, 1 << 31, 1 << 40, u64::MAX / 2 + 1, 0x7fff_ffff][rng.below(8)];
    let width = [4, 8][rng.below(2)];
    for (byte, new) in bytes[at..].iter_mut().zip(&value.to_le_bytes()[..width]) {
        *byte = *new;
    }
}

/// Replaces the number in the text at or after `at`.
fn number(rng: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
    let end = bytes[start..]
        .iter()
        .position(|b| !b.is_ascii_digit() && *b != b'.')
        .map_or(bytes.len(), |i| start + i);
    bytes.splice(start..end, NUMBERS[rng.below(NUMBERS.len())].bytes());
}

fn repeat(rng: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let end = (at + rng.range(1, 64)).min(bytes.len());
    let part = bytes[at..end].to_vec();
    let times = rng.range(1, 40);
    bytes.splice(at..at, part.repeat(times));
}

fn splice(rng: &mut Rng, bytes: &mut Vec<u8>, at: usize, other: &[u8]) {
    if !other.is_empty() {
        let from = rng.below(other.len());
        let to = (from + rng.range(1, 256)).min(other.len());
        bytes.splice(at..at, other[from..to].iter().copied());
    }
}

/// Opening brackets, as many as parsers recurse.
fn nest(rng: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let open = [&b"["[..], b"{\"a\":", b"(", b"{{", b"{% if x %}"][rng.below(5)];
    let times = rng.range(1, 400);
    bytes.splice(at..at, open.repeat(times));
}
