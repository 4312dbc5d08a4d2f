//! Scopes of tokens: nouns and verbs of subjects.

use std::fmt;
use std::str::FromStr;

/// The maximum number of scopes of a token or a service.
pub const MAX_SCOPES: usize = 64;
/// The maximum number of characters of a noun or a verb.
const WORD_CHARS: usize = 32;

/// A scope: `noun:verb`, `noun:*` for every verb, or `*:*` for everything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    noun: Option<String>,
    verb: Option<String>,
}

/// A text that is not a scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a scope; expected noun:verb, noun:* or *:*, with words of a-z and -")]
pub struct ScopeError(String);

impl Scope {
    /// Whether it allows a request or query of this noun and verb.
    pub fn allows(&self, noun: &str, verb: &str) -> bool {
        self.noun.as_deref().is_none_or(|own| own == noun)
            && self.verb.as_deref().is_none_or(|own| own == verb)
    }

    /// Whether it allows everything that the other one allows.
    pub fn contains(&self, other: &Self) -> bool {
        let covers = |own: &Option<String>, theirs: &Option<String>| own.is_none() || own == theirs;
        covers(&self.noun, &other.noun) && covers(&self.verb, &other.verb)
    }

    /// Reads a list of scopes, separated by single spaces (RFC 6749, section 3.3).
    ///
    /// # Errors
    /// [`ScopeError`] for the first invalid one, or if there are none or more than [`MAX_SCOPES`].
    pub fn parse_list(text: &str) -> Result<Vec<Self>, ScopeError> {
        let scopes: Vec<Self> =
            text.split(' ').take(MAX_SCOPES + 1).map(str::parse).collect::<Result<_, _>>()?;
        if scopes.len() > MAX_SCOPES {
            Err(ScopeError(format!("more than {MAX_SCOPES}")))
        } else {
            Ok(scopes)
        }
    }

    /// The list that [`Scope::parse_list`] reads.
    pub fn list(scopes: &[Self]) -> String {
        scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let shown = || ScopeError(text.chars().take(2 * WORD_CHARS).collect());
        let word = |word: &str| match word {
            "*" => Some(None),
            _ if is_word(word) => Some(Some(word.to_owned())),
            _ => None,
        };
        let (noun, verb) = text.split_once(':').ok_or_else(shown)?;
        let scope = Self { noun: word(noun).ok_or_else(shown)?, verb: word(verb).ok_or_else(shown)? };
        // `*:verb` has no useful meaning: the same verb means different things for different nouns.
        if scope.noun.is_none() && scope.verb.is_some() { Err(shown()) } else { Ok(scope) }
    }
}

fn is_word(word: &str) -> bool {
    (1..=WORD_CHARS).contains(&word.len())
        && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "*".to_owned());
        write!(f, "{}:{}", word(&self.noun), word(&self.verb))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn scopes_allow_and_contain() {
        let scope = |text: &str| text.parse::<Scope>().unwrap();
        assert!(scope("context:put").allows("context", "put"));
        assert!(!scope("context:put").allows("context", "remove"));
        assert!(!scope("context:put").allows("session", "put"));
        assert!(
            scope("context:*").allows("context", "remove") && !scope("context:*").allows("session", "open")
        );
        assert!(scope("*:*").allows("session", "open"));
        assert!(scope("context:*").contains(&scope("context:put")));
        assert!(!scope("context:put").contains(&scope("context:*")));
        assert!(scope("*:*").contains(&scope("context:*")) && !scope("context:*").contains(&scope("*:*")));
    }

    #[test]
    fn a_list_round_trips_and_its_length_is_limited() {
        let text = "context:put second-factor:* *:*";
        assert_eq!(Scope::list(&Scope::parse_list(text).unwrap()), text);
        let many = vec!["a:b"; MAX_SCOPES];
        assert_eq!(Scope::parse_list(&many.join(" ")).unwrap().len(), MAX_SCOPES);
        assert!(Scope::parse_list(&format!("{} a:b", many.join(" "))).is_err());
    }

    #[test]
    fn invalid_scopes_are_rejected() {
        let long = format!("{}:put", "a".repeat(WORD_CHARS + 1));
        for text in [
            "",
            " ",
            "context",
            "context:",
            ":put",
            "*:put",
            "Context:put",
            "context:put:put",
            "a  b",
            "context:p*",
            &long,
        ] {
            assert!(Scope::parse_list(text).is_err(), "{text:?}");
        }
        // It is shown as far as a scope can be long.
        let shown = format!("{}:{}", "A".repeat(WORD_CHARS), "b".repeat(WORD_CHARS - 1));
        assert_eq!(format!("{shown}and more").parse::<Scope>(), Err(ScopeError(shown)));
    }
}
