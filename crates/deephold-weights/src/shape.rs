//! Shapes from outside.

/// Elements of a shape. `None` where any product of its dimensions, without those that are zero, is beyond `usize`: `[0, 2^40, 2^40]` has no elements, but rows and columns are multiplied on their own too.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    let product = shape.iter().try_fold(1usize, |n, dim| n.checked_mul((*dim).max(1)))?;
    Some(if shape.contains(&0) { 0 } else { product })
}

#[cfg(test)]
mod tests {
    use super::elements;

    #[test]
    fn no_product_of_dimensions_overflows() {
        assert_eq!(elements(&[]), Some(1));
        assert_eq!(elements(&[2, 3, 4]), Some(24));
        assert_eq!(elements(&[2, 0, 4]), Some(0));
        for shape in
            [[0, 1 << 40, 1 << 40], [1 << 40, 1 << 40, 0], [1 << 40, 0, 1 << 40], [1 << 30, 1 << 30, 1 << 4]]
        {
            assert_eq!(elements(&shape), None, "{shape:?}");
        }
    }
}
