//! 8-bit floats with 4 exponent and 3 mantissa bits (OCP E4M3 "fn": no infinities, NaN 0x7f and 0xff, maximum 448).

/// Value of an E4M3 code.
pub fn f8e4m3_to_f32(code: u8) -> f32 {
    let exponent = i32::from(code >> 3 & 15);
    let mantissa = f32::from(code & 7);
    let magnitude = if code & 0x7f == 0x7f {
        f32::NAN
    } else if exponent == 0 {
        mantissa * 2f32.powi(-9)
    } else {
        (8.0 + mantissa) * 2f32.powi(exponent - 10)
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// Nearest E4M3 code, ties to even; beyond the range (infinities included) the largest finite code.
pub fn f32_to_f8e4m3(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if value.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= 448.0 {
        return sign | 0x7e;
    }
    // The step between neighbors is 2^-9 for subnormals and 2^(exponent - 3) above.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round_ties_even() as i32;
    // `steps` is 8..=16 for normal numbers; 16 carries into the exponent by plain addition.
    let code = if steps < 8 { steps } else { ((exponent + 7) << 3) + steps - 8 };
    sign | code.min(0x7e) as u8
}
