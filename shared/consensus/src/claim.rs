//! The canonical form of a structured claim.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::text::fold;

/// How deep a claim may nest.
const DEPTH: usize = 32;
/// How long a claim may be.
const BYTES: usize = 1 << 20;
/// The largest exponent of ten of a number.
const EXPONENT: i64 = 1_000_000;

/// Why a claim has no canonical form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// It is not JSON.
    #[error("the claim is not JSON")]
    Syntax,
    /// It nests too deep.
    #[error("the claim nests deeper than {DEPTH} levels")]
    Depth,
    /// It is too long.
    #[error("the claim has {0} bytes; at most {BYTES} are allowed")]
    Size(usize),
    /// A number has an exponent that is too large.
    #[error("a number of the claim has an exponent beyond {EXPONENT}")]
    Number,
}

/// The canonical form: members sorted by name, members without a value left out, names and texts folded, numbers as shortest
/// decimals. Two claims say the same if their forms are equal. Types differ: `"1"` is not `1`. The order of a list counts.
///
/// `None` if the claim says nothing: `null`, an empty text, list or object.
///
/// # Errors
/// If it is no JSON, or over a limit.
pub fn canonical(json: &str) -> Result<Option<String>, ClaimError> {
    if json.len() > BYTES {
        return Err(ClaimError::Size(json.len()));
    }
    // The raw text keeps all digits of a number. A double would make numbers equal that differ.
    let raw: &RawValue = serde_json::from_str(json).map_err(|_| ClaimError::Syntax)?;
    let form = value(raw.get(), 0)?;
    Ok(Some(form).filter(|form| !matches!(form.as_str(), "null" | "\"\"" | "[]" | "{}")))
}

fn value(json: &str, depth: usize) -> Result<String, ClaimError> {
    if depth > DEPTH {
        return Err(ClaimError::Depth);
    }
    let json = json.trim();
    match json.bytes().next() {
        Some(b'{') => object(json, depth),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| ClaimError::Syntax)?;
            let items: Result<Vec<_>, _> = items.iter().map(|item| value(item.get(), depth + 1)).collect();
            Ok(format!("[{}]", items?.join(",")))
        }
        Some(b'"') => {
            let text: String = serde_json::from_str(json).map_err(|_| ClaimError::Syntax)?;
            Ok(quoted(&fold(&text)))
        }
        Some(b't' | b'f' | b'n') => Ok(json.to_owned()),
        Some(_) | None => number(json),
    }
}

fn object(json: &str, depth: usize) -> Result<String, ClaimError> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(json).map_err(|_| ClaimError::Syntax)?;
    let mut pairs = Vec::with_capacity(members.len());
    for (name, member) in members {
        let form = value(member.get(), depth + 1)?;
        if form != "null" {
            pairs.push(format!("{}:{form}", quoted(&fold(&name))));
        }
    }
    // Names that differ in case only are equal now: both stay, in the order of their values.
    pairs.sort_unstable();
    Ok(format!("{{{}}}", pairs.join(",")))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The shortest spelling of a decimal number: digits without zeros at either end, and an exponent of ten.
pub(crate) fn number(text: &str) -> Result<String, ClaimError> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return Err(ClaimError::Syntax);
    }
    let exponent: i64 = exponent.parse().map_err(|_| ClaimError::Number)?;
    if exponent.abs() > EXPONENT {
        return Err(ClaimError::Number);
    }
    let all = format!("{whole}{fraction}");
    let digits = all.trim_start_matches('0').trim_end_matches('0');
    if digits.is_empty() {
        return Ok("0".to_owned());
    }
    let dropped = all.len() - all.trim_end_matches('0').len();
    let power = exponent - fraction.len() as i64 + dropped as i64;
    let sign = if negative { "-" } else { "" };
    Ok(if power == 0 { format!("{sign}{digits}") } else { format!("{sign}{digits}e{power}") })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn form(json: &str) -> String {
        canonical(json).unwrap().unwrap()
    }

    #[test]
    fn claims_that_say_the_same_are_equal() {
        for (a, b) in [
            (r#"{"city": "Paris", "n": 1.0}"#, r#"{ "n":1, "CITY":"paris " }"#),
            (r#"{"a":1,"b":null}"#, r#"{"a":1e0}"#),
            ("100", "1E2"),
            ("-0.0", "0"),
            ("0.10", "1e-1"),
            (r#""Stra\u00dfe""#, r#""STRASSE""#),
        ] {
            assert_eq!(form(a), form(b), "{a} {b}");
        }
    }

    #[test]
    fn claims_that_differ_stay_different() {
        for (a, b) in [
            ("0.1234567890123456789", "0.1234567890123456788"),
            ("1", "\"1\""),
            ("[1,2]", "[2,1]"),
            (r#"{"a":1}"#, r#"{"b":1}"#),
            (r#""5 mW""#, r#""5 MW""#),
            ("true", "false"),
            ("1e5", "1e6"),
            (r#"{"a":1,"A":2}"#, r#"{"a":2}"#),
        ] {
            assert_ne!(form(a), form(b), "{a} {b}");
        }
    }

    #[test]
    fn nothing_is_said_by_an_empty_claim() {
        for json in ["null", "\"  \"", "[]", "{}", r#"{"a":null}"#] {
            assert_eq!(canonical(json), Ok(None), "{json}");
        }
    }

    #[test]
    fn what_is_over_a_limit_is_refused() {
        assert_eq!(canonical("{"), Err(ClaimError::Syntax));
        assert_eq!(canonical(&format!("{}1{}", "[".repeat(40), "]".repeat(40))), Err(ClaimError::Depth));
        assert_eq!(canonical("1e99999999"), Err(ClaimError::Number));
        assert_eq!(canonical("1e99999999999999999999"), Err(ClaimError::Number));
        assert!(matches!(canonical(&format!("\"{}\"", "a".repeat(BYTES))), Err(ClaimError::Size(_))));
    }

    #[test]
    fn the_form_of_a_form_is_the_same() {
        let once = form(r#"{"b":[1.50,{"X":"É"}],"a":"½ M"}"#);
        assert_eq!(form(&once), once);
    }
}
