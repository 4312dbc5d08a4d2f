//! The duration of `@every`, as the NATS server writes durations: `90s`, `1h30m`, `1.5h`.

/// The server takes no shorter one.
const LEAST: f64 = 1.0;
/// A leap year. What comes less often is better a date.
const MOST: f64 = 8_784.0 * 3_600.0;

const UNITS: [(&str, f64); 7] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3_600.0)];

/// Refuses what is no duration, or one out of bounds.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let seconds =
        seconds(text).ok_or_else(|| format!("{text:?} is no duration; expected one such as 30s or 1h30m"))?;
    if seconds < LEAST {
        return Err(format!("@every {text} is too often; expected at least 1s"));
    }
    if seconds > MOST {
        return Err(format!("@every {text} is too seldom; expected at most 8784h"));
    }
    Ok(())
}

fn seconds(text: &str) -> Option<f64> {
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|part: char| !part.is_ascii_digit() && part != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|part: char| part.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number.parse::<f64>().ok()? * factor;
        rest = after;
    }
    (!text.is_empty()).then_some(seconds)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn durations_are_between_a_second_and_a_year() {
        for fine in ["1s", "1000ms", "30s", "1h30m", "1.5h", "5m0.5s", "8784h"] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        for (wrong, reason) in [
            ("0s", "at least 1s"),
            ("999ms", "at least 1s"),
            ("999999µs", "at least 1s"),
            ("8784h1s", "at most 8784h"),
            ("99999999999999999999h", "at most 8784h"),
            ("-5s", "is no duration"),
            ("5", "is no duration"),
            ("s", "is no duration"),
            ("1d", "is no duration"),
            ("1.2.3s", "is no duration"),
            ("", "is no duration"),
        ] {
            let refused = check(wrong).unwrap_err();
            assert!(refused.contains(reason), "{wrong}: {refused}");
        }
    }
}
