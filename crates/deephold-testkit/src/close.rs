//! Closeness of float slices, with a message that says where and by how much.

/// The largest absolute difference; infinite where a value is not finite or lengths differ.
pub fn max_abs_diff(actual: &[f32], expected: &[f32]) -> f32 {
    if actual.len() != expected.len() {
        return f32::INFINITY;
    }
    let mut worst = 0f32;
    for (a, e) in actual.iter().zip(expected) {
        let diff = (a - e).abs();
        if !diff.is_finite() {
            return f32::INFINITY;
        }
        worst = worst.max(diff);
    }
    worst
}

/// Panics where lengths differ or some `|actual - expected| > tol`, naming `what`, the place and both values.
#[track_caller]
pub fn assert_close(actual: &[f32], expected: &[f32], tol: f32, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths differ");
    let mut worst = (0usize, 0f32);
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let diff = (a - e).abs();
        assert!(diff.is_finite(), "{what}: [{i}] is {a}, expected {e}");
        if diff > worst.1 {
            worst = (i, diff);
        }
    }
    let (i, diff) = worst;
    assert!(
        diff <= tol,
        "{what}: [{i}] is {}, expected {} (difference {diff:e} > {tol:e})",
        actual[i],
        expected[i]
    );
}

/// Panics unless both slices hold the same bits.
#[track_caller]
pub fn assert_same_bits(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths differ");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(a.to_bits() == e.to_bits(), "{what}: bits differ first at [{i}]: {a:?} is not {e:?}");
    }
}
