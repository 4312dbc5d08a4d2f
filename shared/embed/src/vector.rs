//! Normalization of vectors.

/// The vector with length 1; `None` if a number is not finite, or if all are zero.
pub(crate) fn normalized(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let length = vector.iter().map(|&number| f64::from(number).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() || length <= f64::MIN_POSITIVE {
        return None;
    }
    for number in &mut vector {
        *number = (f64::from(*number) / length) as f32;
    }
    Some(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finite_nonzero_vectors_are_normalized() {
        assert_eq!(normalized(vec![3.0, -4.0]), Some(vec![0.6, -0.8]));
        assert_eq!(normalized(vec![f32::MAX, 0.0]), Some(vec![1.0, 0.0]));
        for nowhere in [vec![], vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![1.0, f32::INFINITY]] {
            assert_eq!(normalized(nowhere), None);
        }
    }
}
