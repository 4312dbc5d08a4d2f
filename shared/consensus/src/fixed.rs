//! Fixed-point numbers. Integers give the same bytes on every machine, whatever its `libm` does.

use serde::{Deserialize, Serialize};

/// A number that is not negative, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micro(u64);

impl Micro {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One.
    pub const ONE: Self = Self(1_000_000);
    /// What a number above it is taken for. Sums of as many values as a task may have stay far below `u64::MAX`.
    pub const LIMIT: Self = Self(1_000_000_000_000_000);

    /// From millionths, at most [`Micro::LIMIT`].
    #[must_use]
    pub fn from_millionths(value: u64) -> Self {
        Self(value.min(Self::LIMIT.0))
    }

    /// The nearest millionth. What is not a number, or negative, is zero.
    #[must_use]
    pub fn from_f64(value: f64) -> Self {
        // A product and a rounding of IEEE 754 are exact to the last bit everywhere. The cast saturates; NaN becomes 0.
        Self::from_millionths((value * 1e6).round() as u64)
    }

    /// As millionths.
    #[must_use]
    pub fn millionths(self) -> u64 {
        self.0
    }

    /// The double that is nearest to the decimal fraction.
    #[must_use]
    pub fn to_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// The sum, at most [`Micro::LIMIT`].
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self::from_millionths(self.0.saturating_add(other.0))
    }

    /// The difference, at least zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The product, rounded to the nearest millionth.
    #[must_use]
    pub fn times(self, other: Self) -> Self {
        Self::from_u128((u128::from(self.0) * u128::from(other.0) + 500_000) / 1_000_000)
    }

    /// The quotient, rounded to the nearest millionth; zero if `other` is.
    #[must_use]
    pub fn over(self, other: Self) -> Self {
        if other.0 == 0 {
            return Self::ZERO;
        }
        let divisor = u128::from(other.0);
        Self::from_u128((u128::from(self.0) * 1_000_000 + divisor / 2) / divisor)
    }

    fn from_u128(value: u128) -> Self {
        Self::from_millionths(u64::try_from(value).unwrap_or(u64::MAX))
    }
}

impl std::iter::Sum for Micro {
    fn sum<I: Iterator<Item = Self>>(values: I) -> Self {
        values.fold(Self::ZERO, Self::plus)
    }
}

/// The fractional bits of [`log2`].
pub(crate) const LOG_BITS: u32 = 32;

/// The binary logarithm of `value`, in units of 2^-32, rounded down; of zero, zero.
///
/// Squaring the mantissa yields one bit of the logarithm after the other.
pub(crate) fn log2(value: u64) -> u64 {
    let Some(whole) = value.checked_ilog2() else { return 0 };
    let mut mantissa = u128::from(value) << (63 - whole);
    let mut result = u64::from(whole) << LOG_BITS;
    for bit in (0..LOG_BITS).rev() {
        mantissa = (mantissa * mantissa) >> 63;
        if mantissa >> 64 != 0 {
            mantissa >>= 1;
            result |= 1 << bit;
        }
    }
    result
}

/// The log-odds of `probability` against those of `unit`, which must be above one half. Zero up to one half.
pub(crate) fn log_odds(probability: Micro, unit: Micro) -> Micro {
    let odds = |p: Micro| log2(p.0).saturating_sub(log2(Micro::ONE.minus(p).0.max(1)));
    let (odds, unit) = (odds(probability), odds(unit));
    if unit == 0 {
        return Micro::ZERO;
    }
    Micro::from_u128((u128::from(odds) * 1_000_000 + u128::from(unit) / 2) / u128::from(unit))
}

/// The entropy of shares of a whole, divided by the largest that so many shares can have. Zero for fewer than two shares.
pub(crate) fn normalised_entropy(parts: &[Micro]) -> Micro {
    let positive: Vec<u64> = parts.iter().map(|part| part.0).filter(|part| *part > 0).collect();
    let total: u64 = positive.iter().sum();
    if positive.len() < 2 {
        return Micro::ZERO;
    }
    let weighted: u128 = positive.iter().map(|part| u128::from(*part) * u128::from(log2(*part))).sum();
    let entropy = u128::from(log2(total)).saturating_sub(weighted / u128::from(total));
    let largest = u128::from(log2(positive.len() as u64));
    Micro::from_u128((entropy * 1_000_000 + largest / 2) / largest).min(Micro::ONE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_right_to_nine_digits() {
        for value in [1, 2, 3, 7, 10, 999_999, 1_000_000, u64::MAX] {
            let error = log2(value) as f64 / 2f64.powi(32) - (value as f64).log2();
            assert!(error.abs() < 1e-9, "{value}: {error}");
        }
        assert_eq!(log2(0), 0);
        assert_eq!(log2(8), 3 << 32);
    }

    #[test]
    fn a_quotient_by_zero_is_zero_and_nan_too() {
        assert_eq!(Micro::ONE.over(Micro::ZERO), Micro::ZERO);
        assert_eq!(Micro::from_f64(f64::NAN), Micro::ZERO);
        assert_eq!(Micro::from_f64(-1.0), Micro::ZERO);
        assert_eq!(Micro::from_f64(f64::INFINITY), Micro::LIMIT);
        assert_eq!(Micro::from_f64(0.1), Micro(100_000));
    }

    #[test]
    fn the_entropy_of_equal_parts_is_one() {
        let part = Micro(300_000);
        assert_eq!(normalised_entropy(&[]), Micro::ZERO);
        assert_eq!(normalised_entropy(&[part]), Micro::ZERO);
        assert_eq!(normalised_entropy(&[part, Micro::ZERO]), Micro::ZERO);
        assert_eq!(normalised_entropy(&[part, part]), Micro::ONE);
        assert_eq!(normalised_entropy(&[part, part, part]), Micro::ONE);
        assert_eq!(normalised_entropy(&[Micro(750_000), Micro(250_000)]), Micro(811_278));
    }

    #[test]
    fn log_odds_are_in_units_of_a_new_agent() {
        let unit = Micro(700_000);
        assert_eq!(log_odds(unit, unit), Micro::ONE);
        assert_eq!(log_odds(Micro(500_000), unit), Micro::ZERO);
        assert_eq!(log_odds(Micro::ZERO, unit), Micro::ZERO);
        assert_eq!(log_odds(Micro(300_000), unit), Micro::ZERO);
        assert_eq!(log_odds(Micro(900_000), unit), Micro(2_593_214));
        assert!(log_odds(Micro::ONE, unit) > Micro(10_000_000));
    }
}
