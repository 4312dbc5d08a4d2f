//! Signed statements that are not to be believed, and so excuse nothing.

use crate::finding::Finding;

/// How many are named at most.
const MAX_NAMED: usize = 20;

/// Findings about them. Nothing limits how many somebody adds: 20 are named, the others counted.
#[derive(Debug)]
pub(crate) struct Refused {
    /// What they are, such as `retirements`.
    what: &'static str,
    named: Vec<Finding>,
    more: u64,
}

impl Refused {
    pub(crate) const fn new(what: &'static str) -> Self {
        Self { what, named: Vec::new(), more: 0 }
    }

    /// Notes one of them, such as `retirement 7`, and what speaks against it.
    pub(crate) fn note(&mut self, one: &str, problem: &str) {
        if self.named.len() < MAX_NAMED {
            self.named.push(Finding::database(format!("{one} excuses nothing: {problem}")));
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn findings(mut self) -> Vec<Finding> {
        if self.more > 0 {
            let Self { what, more, .. } = self;
            let more = format!("{more} more {what} excuse nothing: somebody added them, or changed them");
            self.named.push(Finding::database(more));
        }
        self.named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_false_statements_is_counted() {
        let mut refused = Refused::new("retirements");
        (0..40_000).for_each(|number| refused.note(&format!("retirement {number}"), "it is false"));
        let findings = refused.findings();
        let last = findings.last().map(ToString::to_string).unwrap_or_default();
        assert_eq!(findings.len(), MAX_NAMED + 1);
        assert!(last.contains("39980 more retirements excuse nothing"), "{last}");
    }
}
