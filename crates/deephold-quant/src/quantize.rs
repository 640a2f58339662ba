//! Encoding rows into blocks.
//!
//! The 32-element formats scale by the extreme value, as their definition suggests. The 256-element formats search: for
//! each group a number of candidate scales is tried, codes are rounded, the scale (and offset) that fit these codes
//! best in the weighted least-squares sense are solved for, and the candidate with the least weighted error stays.
//! Weights grow with magnitude because large weights meet large activations more often than not. Group scales are
//! then rounded against a shared f16 factor and the codes chosen again with the rounded scales.

use half::{bf16, f16};

use crate::{DType, IQ4_VALUES, QuantError, f32_to_f8e4m3};

/// Encodes `x` (whole blocks) into `out`.
///
/// # Errors
/// The sizes disagree, a block format is given NaN or an infinity, or the type is an integer type.
pub fn quantize(dtype: DType, x: &[f32], out: &mut [u8]) -> Result<(), QuantError> {
    if dtype.bytes_for(x.len()) != Some(out.len()) {
        return Err(QuantError::Size { dtype, elements: x.len(), bytes: out.len() });
    }
    if dtype.is_quantized() {
        if let Some(index) = x.iter().position(|v| !v.is_finite()) {
            return Err(QuantError::NotFinite { dtype, index, value: x[index] });
        }
        for (x, out) in x.chunks_exact(dtype.block_len()).zip(out.chunks_exact_mut(dtype.block_bytes())) {
            encode_block(dtype, x, out);
        }
        return Ok(());
    }
    fn each<const N: usize>(x: &[f32], out: &mut [u8], f: impl Fn(f32) -> [u8; N]) {
        for (&x, chunk) in x.iter().zip(out.as_chunks_mut::<N>().0) {
            *chunk = f(x);
        }
    }
    match dtype {
        DType::F64 => each(x, out, |v| f64::from(v).to_le_bytes()),
        DType::F32 => each(x, out, f32::to_le_bytes),
        DType::F16 => each(x, out, |v| f16::from_f32(v).to_le_bytes()),
        DType::BF16 => each(x, out, |v| bf16::from_f32(v).to_le_bytes()),
        DType::F8E4M3 => each(x, out, |v| [f32_to_f8e4m3(v)]),
        _ => return Err(QuantError::Unsupported { dtype }),
    }
    Ok(())
}

fn encode_block(dtype: DType, x: &[f32], out: &mut [u8]) {
    out.fill(0);
    match dtype {
        DType::Q8_0 => encode_q8_0(x, out),
        DType::Q4_0 => encode_signed(x, 8, out),
        DType::Q5_0 => encode_signed(x, 16, out),
        DType::Q4_1 => encode_offset(x, 15, out),
        DType::Q5_1 => encode_offset(x, 31, out),
        DType::IQ4NL => encode_iq4nl(x, out),
        DType::IQ4XS => encode_iq4xs(x, out),
        DType::Q2K => encode_q2k(x, out),
        DType::Q3K => encode_q3k(x, out),
        DType::Q4K | DType::Q5K => encode_q45k(dtype, x, out),
        _ => encode_q6k(x, out),
    }
}

/// Stores the largest finite f16 instead of an infinity and gives the value that a reader will see.
fn put_f16(out: &mut [u8], at: usize, value: f32) -> f32 {
    let stored = f16::from_f32(value.clamp(-65504.0, 65504.0));
    out[at..at + 2].copy_from_slice(&stored.to_le_bytes());
    stored.to_f32()
}

fn inverse(value: f32) -> f32 {
    let inverse = 1.0 / value;
    if value == 0.0 || !inverse.is_finite() { 0.0 } else { inverse }
}

/// The element of greatest magnitude, with its sign.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |best: f32, &v| if v.abs() > best.abs() { v } else { best })
}

fn encode_q8_0(x: &[f32], out: &mut [u8]) {
    let d = extreme(x).abs() / 127.0;
    put_f16(out, 0, d);
    let inv = inverse(d);
    for (q, &v) in out[2..].iter_mut().zip(x) {
        *q = (v * inv).round() as i8 as u8;
    }
}

/// Puts 32 codes of 4 or 5 bits behind the block's scales.
fn put_codes(codes: &[u8; 32], bits5: bool, out: &mut [u8]) {
    let at = out.len() - 16;
    for i in 0..16 {
        out[at + i] = codes[i] & 15 | codes[i + 16] << 4;
    }
    if bits5 {
        for (i, &code) in codes.iter().enumerate() {
            out[at - 4 + i / 8] |= (code >> 4 & 1) << (i % 8);
        }
    }
}

fn encode_signed(x: &[f32], offset: u8, out: &mut [u8]) {
    // The extreme value gets the code -offset, the one code that has no positive twin.
    let d = extreme(x) / -f32::from(offset);
    put_f16(out, 0, d);
    let inv = inverse(d);
    let mut codes = [0; 32];
    for (q, &v) in codes.iter_mut().zip(x) {
        *q = ((v * inv + f32::from(offset) + 0.5) as u8).min(2 * offset - 1);
    }
    put_codes(&codes, offset == 16, out);
}

fn encode_offset(x: &[f32], max_code: u8, out: &mut [u8]) {
    let low = x.iter().copied().fold(f32::INFINITY, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = high / f32::from(max_code) - low / f32::from(max_code);
    put_f16(out, 0, d);
    put_f16(out, 2, low);
    let inv = inverse(d);
    let mut codes = [0; 32];
    for (q, &v) in codes.iter_mut().zip(x) {
        *q = (((v - low) * inv + 0.5) as u8).min(max_code);
    }
    put_codes(&codes, max_code == 31, out);
}

/// Index of the table value nearest to `v`.
fn nearest_iq4(v: f32) -> u8 {
    // The value lies in the gap above the last table entry that is not greater; the middle of the gap decides.
    let above = IQ4_VALUES.iter().position(|&t| f32::from(t) > v).unwrap_or(16);
    match above {
        0 => 0,
        16 => 15,
        i if v - f32::from(IQ4_VALUES[i - 1]) < f32::from(IQ4_VALUES[i]) - v => i as u8 - 1,
        i => i as u8,
    }
}

/// Scale of one IQ4 group by search.
fn fit_iq4(x: &[f32]) -> f32 {
    let top = extreme(x);
    let mut best = (0.0f32, top / -127.0);
    for step in -7..=7 {
        let inv = inverse(top / (-127.0 + step as f32));
        let (mut xl, mut ll) = (0.0f32, 0.0f32);
        for &v in x {
            let l = f32::from(IQ4_VALUES[nearest_iq4(v * inv) as usize]);
            xl += v * v * v * l;
            ll += v * v * l * l;
        }
        if ll > 0.0 && xl * xl > best.0 * ll {
            best = (xl * xl / ll, xl / ll);
        }
    }
    best.1
}

fn encode_iq4nl(x: &[f32], out: &mut [u8]) {
    let d = put_f16(out, 0, fit_iq4(x));
    let inv = inverse(d);
    let mut codes = [0; 32];
    codes.iter_mut().zip(x).for_each(|(q, &v)| *q = nearest_iq4(v * inv));
    put_codes(&codes, false, out);
}

fn encode_iq4xs(x: &[f32], out: &mut [u8]) {
    let mut fits = [0f32; 8];
    fits.iter_mut().zip(x.chunks_exact(32)).for_each(|(s, x)| *s = fit_iq4(x));
    let d = put_f16(out, 0, extreme(&fits) / -32.0);
    let inv = inverse(d);
    let mut high = 0u16;
    for (g, x) in x.chunks_exact(32).enumerate() {
        let scale = (fits[g] * inv).round().clamp(-32.0, 31.0);
        let stored = (scale as i8 + 32) as u8;
        out[4 + g / 2] |= (stored & 15) << (4 * (g % 2));
        high |= u16::from(stored >> 4) << (2 * g);
        let inv = inverse(d * scale);
        for (i, &v) in x.iter().enumerate() {
            out[8 + g * 16 + i % 16] |= nearest_iq4(v * inv) << (4 * (i / 16));
        }
    }
    out[2..4].copy_from_slice(&high.to_le_bytes());
}

/// To the nearest integer, of two the even one, for |v| below 2^22: adding this number leaves no room for a fraction. Plain
/// arithmetic, which the compiler turns into vector code, unlike `round`.
fn nearest(v: f32) -> f32 {
    const ROOM: f32 = 12_582_912.0;
    (v + ROOM) - ROOM
}

/// Sums over a group run in eight lanes, for the same reason.
fn total(lanes: [f32; 8]) -> f32 {
    lanes.iter().sum()
}

/// Scale of a group of codes `-n..n` without offset, by search.
fn fit_symmetric(x: &[f32], n: f32) -> f32 {
    let top = extreme(x);
    let mut best = (0.0f32, top / -n);
    for step in -9..=9 {
        let inv = inverse(top / -(n + 0.1 * step as f32));
        let (mut xl, mut ll) = ([0f32; 8], [0f32; 8]);
        for v in x.as_chunks::<8>().0 {
            for i in 0..8 {
                let l = nearest((v[i] * inv).clamp(-n, n - 1.0));
                let weighted = v[i] * v[i] * l;
                xl[i] += weighted * v[i];
                ll[i] += weighted * l;
            }
        }
        let (xl, ll) = (total(xl), total(ll));
        if ll > 0.0 && xl * xl > best.0 * ll {
            best = (xl * xl / ll, xl / ll);
        }
    }
    best.1
}

/// Scale and (non-negative) subtracted offset of a group of codes `0..=n`, by search.
fn fit_offset(x: &[f32], n: f32) -> (f32, f32) {
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low {
        return (0.0, -low);
    }
    let mean_square = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
    let base = mean_square.sqrt();
    let mut weights = [0f32; 32];
    weights.iter_mut().zip(x).for_each(|(w, v)| *w = base + v.abs());
    let weights = &weights[..x.len()];
    let w: f32 = weights.iter().sum();
    let wx: f32 = weights.iter().zip(x).map(|(w, v)| w * v).sum();
    let wxx: f64 = weights.iter().zip(x).map(|(w, v)| f64::from(*w) * f64::from(*v).powi(2)).sum();
    let mut best = (f64::INFINITY, (high - low) / n, -low);
    for step in -5..=15 {
        let inv = (n + 0.1 * step as f32) / (high - low);
        if !inv.is_finite() {
            continue;
        }
        let (mut wl, mut wll, mut wxl) = ([0f32; 8], [0f32; 8], [0f32; 8]);
        for (v, w) in x.as_chunks::<8>().0.iter().zip(weights.as_chunks::<8>().0) {
            for i in 0..8 {
                let l = nearest(((v[i] - low) * inv).clamp(0.0, n));
                let weighted = w[i] * l;
                wl[i] += weighted;
                wll[i] += weighted * l;
                wxl[i] += weighted * v[i];
            }
        }
        let (wl, wll, wxl) = (total(wl), total(wll), total(wxl));
        let determinant = w * wll - wl * wl;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (w * wxl - wx * wl) / determinant;
        let mut min = (wl * wxl - wll * wx) / determinant;
        if min < 0.0 {
            (scale, min) = (wxl / wll, 0.0);
        }
        // The weighted square of scale * l - min - x, multiplied out.
        let (s, m) = (f64::from(scale), f64::from(min));
        let [w, wl, wll, wx, wxl] = [w, wl, wll, wx, wxl].map(f64::from);
        let error = s * s * wll + m * m * w + wxx - 2.0 * (s * m * wl + s * wxl - m * wx);
        if error < best.0 {
            best = (error, scale, min);
        }
    }
    (best.1, best.2)
}

/// Code of `v` on the grid `scale * q - min`, `0..=max`.
fn offset_code(v: f32, scale: f32, min: f32, max: f32) -> u8 {
    ((v + min) * inverse(scale)).round().clamp(0.0, max) as u8
}

fn fold_max(x: &[f32]) -> f32 {
    x.iter().copied().fold(0.0, f32::max)
}

fn encode_q45k(dtype: DType, x: &[f32], out: &mut [u8]) {
    let (max, at) = if dtype == DType::Q4K { (15.0, 16) } else { (31.0, 48) };
    let (mut fits, mut mins) = ([0f32; 8], [0f32; 8]);
    for (g, x) in x.chunks_exact(32).enumerate() {
        (fits[g], mins[g]) = fit_offset(x, max);
    }
    let d = put_f16(out, 0, fold_max(&fits) / 63.0);
    let dmin = put_f16(out, 2, fold_max(&mins) / 63.0);
    for (g, x) in x.chunks_exact(32).enumerate() {
        let scale = (fits[g] * inverse(d)).round().clamp(0.0, 63.0) as u8;
        let min = (mins[g] * inverse(dmin)).round().clamp(0.0, 63.0) as u8;
        if g < 4 {
            out[4 + g] |= scale;
            out[8 + g] |= min;
        } else {
            out[8 + g] = scale & 15 | min << 4;
            out[g] |= scale >> 4 << 6;
            out[4 + g] |= min >> 4 << 6;
        }
        for (i, &v) in x.iter().enumerate() {
            let code = offset_code(v, d * f32::from(scale), dmin * f32::from(min), max);
            out[at + g / 2 * 32 + i] |= (code & 15) << (4 * (g % 2));
            if dtype == DType::Q5K {
                out[16 + i] |= (code >> 4) << g;
            }
        }
    }
}

fn encode_q2k(x: &[f32], out: &mut [u8]) {
    let (mut fits, mut mins) = ([0f32; 16], [0f32; 16]);
    for (g, x) in x.chunks_exact(16).enumerate() {
        (fits[g], mins[g]) = fit_offset(x, 3.0);
    }
    let d = put_f16(out, 80, fold_max(&fits) / 15.0);
    let dmin = put_f16(out, 82, fold_max(&mins) / 15.0);
    for g in 0..16 {
        let scale = (fits[g] * inverse(d)).round().clamp(0.0, 15.0) as u8;
        let min = (mins[g] * inverse(dmin)).round().clamp(0.0, 15.0) as u8;
        out[g] = scale | min << 4;
        for (i, &v) in x.iter().enumerate().skip(g * 16).take(16) {
            let code = offset_code(v, d * f32::from(scale), dmin * f32::from(min), 3.0);
            out[16 + i / 128 * 32 + i % 32] |= code << (2 * (i / 32 % 4));
        }
    }
}

fn encode_q3k(x: &[f32], out: &mut [u8]) {
    let mut fits = [0f32; 16];
    fits.iter_mut().zip(x.chunks_exact(16)).for_each(|(s, x)| *s = fit_symmetric(x, 4.0));
    let d = put_f16(out, 108, extreme(&fits) / -32.0);
    for g in 0..16 {
        let scale = (fits[g] * inverse(d)).round().clamp(-32.0, 31.0);
        let stored = (scale as i8 + 32) as u8;
        out[96 + g % 8] |= (stored & 15) << (4 * (g / 8));
        out[104 + g % 4] |= (stored >> 4) << (2 * (g / 4));
        let inv = inverse(d * scale);
        for (i, &v) in x.iter().enumerate().skip(g * 16).take(16) {
            let code = ((v * inv).round().clamp(-4.0, 3.0) + 4.0) as u8;
            out[32 + i / 128 * 32 + i % 32] |= (code & 3) << (2 * (i / 32 % 4));
            out[i % 32] |= (code >> 2) << (i / 32);
        }
    }
}

fn encode_q6k(x: &[f32], out: &mut [u8]) {
    let mut fits = [0f32; 16];
    fits.iter_mut().zip(x.chunks_exact(16)).for_each(|(s, x)| *s = fit_symmetric(x, 32.0));
    let d = put_f16(out, 208, extreme(&fits) / -128.0);
    for g in 0..16 {
        let scale = (fits[g] * inverse(d)).round().clamp(-128.0, 127.0);
        out[192 + g] = scale as i8 as u8;
        let inv = inverse(d * scale);
        for (i, &v) in x.iter().enumerate().skip(g * 16).take(16) {
            let code = ((v * inv).round().clamp(-32.0, 31.0) + 32.0) as u8;
            let (half, plane, at) = (i / 128, i / 32 % 4, i % 32);
            out[half * 64 + plane % 2 * 32 + at] |= (code & 15) << (4 * (plane / 2));
            out[128 + half * 32 + at] |= (code >> 4) << (2 * plane);
        }
    }
}
