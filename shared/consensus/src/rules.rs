//! The constants of consensus: one file, with a version and a hash.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Micro;

const CURRENT: &str = include_str!("../rules.toml");

/// Why a rule file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The text is no rule file.
    #[error("the rule file cannot be read: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A constant is outside of its range.
    #[error("the rule file has {name} = {value}; it must be {range}")]
    Range {
        /// The name of the constant.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
}

/// Which rules a result was computed under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RulesId {
    /// The version.
    pub version: u32,
    /// The SHA-256 of the rule file, in hexadecimal.
    pub sha256: String,
}

/// The constants, and the hash of the file that they come from.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Version and hash.
    pub id: RulesId,
    /// How answers become clusters.
    pub cluster: ClusterRules,
    /// What the vote of an agent weighs.
    pub weight: WeightRules,
    /// What voters count that are not independent.
    pub independence: IndependenceRules,
    /// Score and status.
    pub score: ScoreRules,
    /// The estimate over many tasks.
    pub reliability: ReliabilityRules,
    /// The words of the textual guard.
    pub words: Words,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    cluster: ClusterRules,
    weight: WeightRules,
    independence: IndependenceRules,
    score: ScoreRules,
    reliability: ReliabilityRules,
    words: WordLists,
}

/// How answers become clusters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterRules {
    /// The least cosine of two texts of one cluster.
    pub similarity: f64,
    /// The longest replaced part that is taken for another name, in words.
    pub replaced_words: usize,
    /// The same, in characters of a script without spaces.
    pub replaced_characters: usize,
}

/// What the vote of an agent weighs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightRules {
    /// Right answers that an agent is credited with in advance.
    pub prior_right: f64,
    /// Wrong ones.
    pub prior_wrong: f64,
    /// How far stated confidence moves the estimate at most.
    pub confidence_share: f64,
    /// Verified answers after which it moves it by half of that.
    pub confidence_answers: f64,
    /// The accuracy that one agent is credited with at most.
    pub accuracy_limit: f64,
}

/// What the second of two voters counts that share an attribute.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndependenceRules {
    /// The family of models.
    pub family: f64,
    /// The prompt.
    pub prompt: f64,
    /// A root of the evidence.
    pub evidence: f64,
}

/// Score and status.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreRules {
    /// Doubt in units of one new agent.
    pub doubt: f64,
    /// The least score of a validated answer.
    pub validated_score: f64,
    /// Its least number of independent voters.
    pub validated_independence: f64,
    /// Its least weight.
    pub validated_support: f64,
    /// Its least margin.
    pub validated_margin: f64,
    /// The least number of independent voters of any status but unvalidated.
    pub least_independence: f64,
    /// The share of the runner-up that makes an answer disputed.
    pub dissent_share: f64,
}

/// The estimate over many tasks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReliabilityRules {
    /// Pseudo-answers of an agent's accuracy.
    pub accuracy_prior: f64,
    /// Pseudo-answers of each row of its confusion matrix.
    pub confusion_prior: f64,
    /// Pseudo-answers per option in each row of the shared confusion matrix.
    pub crowd_prior: f64,
    /// How much of the frequency of an option comes from the votes.
    pub vote_share: f64,
    /// Most iterations.
    pub iterations: usize,
    /// The largest change of a probability at which they end.
    pub tolerance: f64,
    /// Tasks that are estimated anew after each answer.
    pub revisits: usize,
    /// The growth of the answers after which all tasks are estimated from scratch (online).
    pub growth: f64,
    /// Most tasks of one estimate.
    pub task_limit: usize,
    /// Most answers of one estimate.
    pub answer_limit: usize,
}

impl ReliabilityRules {
    /// The same for a data set that is estimated once: time and memory grow with its answers.
    #[must_use]
    pub fn without_limits(&self) -> Self {
        Self { task_limit: usize::MAX, answer_limit: usize::MAX, ..self.clone() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WordLists {
    negations: Vec<String>,
    negation_marks: Vec<String>,
    abstentions: Vec<String>,
    opposites: Vec<[Vec<String>; 2]>,
    openers: Vec<String>,
    numbers: BTreeMap<String, String>,
    units: BTreeMap<String, Vec<String>>,
}

/// The words of the textual guard, by their folded form.
#[derive(Clone, Debug)]
pub struct Words {
    negations: Vec<String>,
    pub(crate) negation_marks: Vec<String>,
    abstentions: Vec<String>,
    /// Word, then the pair and the side that it belongs to. Sorted.
    opposites: Vec<(String, usize, usize)>,
    openers: Vec<String>,
    pub(crate) numbers: BTreeMap<String, String>,
    /// Spelling, then the unit.
    pub(crate) units: BTreeMap<String, String>,
}

impl Rules {
    /// The rules that this version of the program computes with.
    ///
    /// # Errors
    /// Never with the file that is compiled in; a test reads it.
    pub fn current() -> Result<Self, RulesError> {
        Self::parse(CURRENT)
    }

    /// Reads a rule file, such as an earlier version.
    ///
    /// # Errors
    /// If it is not one, or a constant is outside of its range.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let file: File = toml::from_str(text)?;
        let sha256 = data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
        let rules = Self {
            id: RulesId { version: file.version, sha256 },
            cluster: file.cluster,
            weight: file.weight,
            independence: file.independence,
            score: file.score,
            reliability: file.reliability,
            words: Words::from(file.words),
        };
        rules.check()?;
        Ok(rules)
    }

    fn check(&self) -> Result<(), RulesError> {
        let (w, i, s, r) = (&self.weight, &self.independence, &self.score, &self.reliability);
        let unit = "between 0 and 1";
        let positive = "between 0.001 and 1000";
        let in_unit = |v: f64| (0.0..=1.0).contains(&v);
        let in_positive = |v: f64| (0.001..=1000.0).contains(&v);
        let mut checks = vec![
            (
                "weight.accuracy_limit",
                w.accuracy_limit,
                "from 0.5 to 0.999",
                (0.5..=0.999).contains(&w.accuracy_limit),
            ),
            // The weight of a new agent is the unit of weight, so it must not be zero.
            ("weight.prior_right", w.prior_right, "above prior_wrong", w.prior_right > w.prior_wrong),
            ("reliability.vote_share", r.vote_share, unit, in_unit(r.vote_share)),
            ("reliability.growth", r.growth, "from 0.01 to 10", (0.01..=10.0).contains(&r.growth)),
            ("reliability.tolerance", r.tolerance, "above 0", r.tolerance > 0.0),
        ];
        for (name, value) in [
            ("cluster.similarity", self.cluster.similarity),
            ("weight.confidence_share", w.confidence_share),
            ("independence.family", i.family),
            ("independence.prompt", i.prompt),
            ("independence.evidence", i.evidence),
            ("score.validated_score", s.validated_score),
            ("score.validated_margin", s.validated_margin),
            ("score.dissent_share", s.dissent_share),
        ] {
            checks.push((name, value, unit, in_unit(value)));
        }
        for (name, value) in [
            ("weight.prior_right", w.prior_right),
            ("weight.prior_wrong", w.prior_wrong),
            ("weight.confidence_answers", w.confidence_answers),
            ("score.doubt", s.doubt),
            ("score.validated_independence", s.validated_independence),
            ("score.validated_support", s.validated_support),
            ("score.least_independence", s.least_independence),
            ("reliability.accuracy_prior", r.accuracy_prior),
            ("reliability.confusion_prior", r.confusion_prior),
            ("reliability.crowd_prior", r.crowd_prior),
        ] {
            checks.push((name, value, positive, in_positive(value)));
        }
        match checks.into_iter().find(|(.., holds)| !holds) {
            Some((name, value, range, _)) => Err(RulesError::Range { name, value, range }),
            None => Ok(()),
        }
    }

    /// The accuracy of an agent without a record.
    pub(crate) fn prior_accuracy(&self) -> Micro {
        let right = Micro::from_f64(self.weight.prior_right);
        right.over(right.plus(Micro::from_f64(self.weight.prior_wrong)))
    }
}

impl From<WordLists> for Words {
    fn from(lists: WordLists) -> Self {
        let sorted = |mut words: Vec<String>| {
            words.sort_unstable();
            words
        };
        let mut opposites: Vec<_> = lists
            .opposites
            .into_iter()
            .enumerate()
            .flat_map(|(pair, sides)| {
                sides
                    .into_iter()
                    .enumerate()
                    .flat_map(move |(side, words)| words.into_iter().map(move |word| (word, pair, side)))
            })
            .collect();
        opposites.sort_unstable();
        let units = lists
            .units
            .into_iter()
            .flat_map(|(unit, spellings)| spellings.into_iter().map(move |spelling| (spelling, unit.clone())))
            .collect();
        Self {
            negations: sorted(lists.negations),
            negation_marks: lists.negation_marks,
            abstentions: sorted(lists.abstentions.iter().map(|text| crate::text::fold(text)).collect()),
            opposites,
            openers: sorted(lists.openers),
            numbers: lists.numbers,
            units,
        }
    }
}

impl Words {
    pub(crate) fn is_negation(&self, word: &str) -> bool {
        contains(&self.negations, word)
    }

    /// Whether a text says that there is no answer.
    pub(crate) fn says_nothing(&self, text: &str) -> bool {
        // At most four letters and marks become one character, so that a text with so many is longer than any abstention. It is not folded.
        let longest = self.abstentions.iter().map(|listed| listed.chars().count()).max().unwrap_or_default();
        let limit = 8 * longest;
        let letters = text.chars().filter(|character| character.is_alphanumeric()).take(limit + 1).count();
        letters <= limit && self.is_abstention(&crate::text::fold(text))
    }

    /// Whether a folded text says so.
    fn is_abstention(&self, folded: &str) -> bool {
        let trimmed = folded.trim_end_matches(['.', '!', '。']);
        trimmed.is_empty() || contains(&self.abstentions, trimmed)
    }

    pub(crate) fn is_opener(&self, word: &str) -> bool {
        contains(&self.openers, word)
    }

    /// The pairs and sides that a word stands for.
    pub(crate) fn sides<'a>(&'a self, word: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
        let start = self.opposites.partition_point(|(entry, ..)| entry.as_str() < word);
        self.opposites[start..]
            .iter()
            .take_while(move |(entry, ..)| entry == word)
            .map(|(_, pair, side)| (*pair, *side))
    }
}

fn contains(sorted: &[String], word: &str) -> bool {
    sorted.binary_search_by(|entry| entry.as_str().cmp(word)).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_rules_are_valid() {
        let rules = Rules::current().unwrap();
        assert_eq!(rules.id.version, 1);
        assert_eq!(rules.id.sha256.len(), 64);
        assert_eq!(rules.prior_accuracy(), Micro::from_f64(0.7));
        assert!(rules.words.is_negation("not"));
        assert_eq!(rules.words.sides("right").count(), 2);
    }

    #[test]
    fn a_constant_out_of_range_is_refused() {
        for (from, to) in [
            ("similarity = 0.82", "similarity = 1.5"),
            ("prior_wrong = 3.0", "prior_wrong = 7.0"),
            ("prior_wrong = 3.0", "prior_wrong = 0.0"),
            ("doubt = 1.0", "doubt = 0.0"),
            ("family = 0.25", "family = nan"),
            ("accuracy_limit = 0.95", "accuracy_limit = 1.0"),
        ] {
            let text = CURRENT.replacen(from, to, 1);
            assert_ne!(text, CURRENT, "{from}");
            assert!(matches!(Rules::parse(&text), Err(RulesError::Range { .. })), "{to}");
        }
        assert!(matches!(Rules::parse("version = 1"), Err(RulesError::Syntax(_))));
    }
}
