use std::borrow::Cow;
use std::fmt;

/// Why a message did not take effect. Its `Display` is for operators, who may read more than the publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    for_publisher: Cow<'static, str>,
    for_operators: Option<String>,
}

impl Reason {
    /// A sentence of this program, for everybody. It names fields, identifiers and numbers, and quotes no server.
    pub fn new(sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { for_publisher: sentence.into(), for_operators: None }
    }

    /// What operators read instead, in the log and the dead letter. It may quote a server, and thus name tables, hosts
    /// and files.
    #[must_use]
    pub fn for_operators(self, text: impl Into<String>) -> Self {
        Self { for_operators: Some(text.into()), ..self }
    }

    /// What the publisher reads, in the outcome.
    pub fn for_publisher(&self) -> &str {
        &self.for_publisher
    }
}

impl From<String> for Reason {
    fn from(sentence: String) -> Self {
        Self::new(sentence)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.for_operators.as_deref().unwrap_or(&self.for_publisher))
    }
}
