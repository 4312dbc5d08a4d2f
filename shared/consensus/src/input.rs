//! What a consensus is computed from, and its frozen form.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    ClaimError, Micro, Rules,
    claim::canonical,
    text::{compatible, is_cut},
};

/// A question, the answers to it, and what is known of those who answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// The id of the task.
    pub task: String,
    /// What was asked.
    pub question: String,
    /// The kind of the task, for which records are kept.
    pub task_kind: String,
    /// How many agents must answer.
    pub quorum: u32,
    /// All responses, in any order, with duplicates.
    pub responses: Vec<Response>,
    /// The agents that answered. One that is missing has no record and no declared family.
    pub agents: BTreeMap<String, Agent>,
    /// What stands about the answer already.
    pub standing: Standing,
    /// The events that led here, the oldest first.
    pub causality: Vec<String>,
}

/// One response of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// The id of the response.
    pub id: String,
    /// The agent.
    pub agent: String,
    /// What orders the responses of an agent, such as the sequence number in the stream.
    pub sequence: u64,
    /// What it says. An empty text without a claim is an abstention.
    pub text: String,
    /// The structured claim, as JSON text.
    pub claim: Option<String>,
    /// How sure the agent says it is, 0 to 1.
    pub confidence: Option<f64>,
    /// The vector of the text under the pinned embedder.
    pub embedding: Option<Vec<f32>>,
    /// What the answer rests on.
    pub evidence: Vec<Evidence>,
}

/// A root of evidence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// A source outside of consensus: a document, a tool's result, a measurement.
    Source(String),
    /// A node of consensus that the agent recalled. It is no fresh evidence.
    Recalled(String),
}

/// What is known of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// The family of its model. Agents that declare none count as one family.
    pub family: Option<String>,
    /// The prompt that it shares with others, such as the hash of its system prompt.
    pub prompt: Option<String>,
    /// Its verified record in this kind of task.
    pub record: Record,
}

/// The verified record of an agent: the counts of a Beta posterior without its prior. Parts of an answer count where the truth
/// is known with a probability only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Right answers.
    pub right: Micro,
    /// Wrong answers.
    pub wrong: Micro,
    /// The sum of the confidences that it stated with these answers.
    pub confidence: Micro,
}

/// What stands about an answer beside the votes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The latest verdict.
    pub verdict: Option<Verdict>,
    /// The node that took its place.
    pub superseded_by: Option<String>,
    /// Live validated nodes that say something else.
    pub contradicts: Vec<String>,
}

/// The verdict of a verifier or a human. A node that was reopened has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The answer is right.
    Confirmed,
    /// The answer is wrong.
    Rejected,
}

/// The inputs as they are computed with: the latest response of each agent, sorted, in numbers that are the same everywhere.
#[derive(Clone, Debug, Serialize)]
pub struct Frozen {
    pub(crate) task: String,
    pub(crate) question: String,
    pub(crate) task_kind: String,
    pub(crate) quorum: u32,
    pub(crate) answers: Vec<Answer>,
    pub(crate) standing: Standing,
    pub(crate) causality: Vec<String>,
}

/// The answer of one agent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answer {
    pub agent: String,
    pub response: String,
    pub sequence: u64,
    pub text: String,
    pub claim: Option<String>,
    pub confidence: Option<Micro>,
    /// Components in millionths.
    pub vector: Option<Vec<i64>>,
    pub evidence: Vec<Evidence>,
    pub family: Option<String>,
    pub prompt: Option<String>,
    pub record: Record,
    pub abstains: bool,
}

/// Most answers of one task. Linkage takes time with their square.
const ANSWERS: usize = 500;

/// Why inputs cannot be computed with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// A claim has no canonical form.
    #[error("response {response}: {fault}")]
    Claim {
        /// The response.
        response: String,
        /// What is wrong.
        fault: ClaimError,
    },
    /// A text, or one in a claim, is much longer in its normal form. What is compared of it is cut.
    #[error(
        "response {response}: a text is much longer in its normal form (NFKC) than it is; spell it in plain characters"
    )]
    Growth {
        /// The response.
        response: String,
    },
    /// A confidence is outside of 0 to 1.
    #[error("response {response}: a confidence must be between 0 and 1")]
    Confidence {
        /// The response.
        response: String,
    },
    /// A vector has a component that is no number of this magnitude.
    #[error("response {response}: a component of the embedding is not a number between -1000 and 1000")]
    Vector {
        /// The response.
        response: String,
    },
    /// More agents answered than a task may have.
    #[error("{0} agents answered; at most {ANSWERS} are counted in one task")]
    TooMany(usize),
    /// Vectors of different embedders.
    #[error("the embeddings have {0} and {1} dimensions; all must be of one embedder")]
    Dimensions(usize, usize),
}

impl Inputs {
    /// The latest response of each agent, sorted by agent. The order of arrival and duplicates leave no trace.
    ///
    /// # Errors
    /// If a claim, a confidence or an embedding is not as it must be.
    pub fn freeze(&self, rules: &Rules) -> Result<Frozen, InputError> {
        let mut latest: BTreeMap<&str, &Response> = BTreeMap::new();
        for response in &self.responses {
            let entry = latest.entry(&response.agent).or_insert(response);
            if (response.sequence, &response.id) > (entry.sequence, &entry.id) {
                *entry = response;
            }
        }
        if latest.len() > ANSWERS {
            return Err(InputError::TooMany(latest.len()));
        }
        let answers = latest
            .into_values()
            .map(|response| self.answer(response, rules))
            .collect::<Result<Vec<_>, _>>()?;
        let mut dimensions = answers.iter().filter_map(|answer| answer.vector.as_ref()).map(Vec::len);
        if let Some(first) = dimensions.next()
            && let Some(other) = dimensions.find(|other| *other != first)
        {
            return Err(InputError::Dimensions(first, other));
        }
        let mut standing = self.standing.clone();
        standing.contradicts.sort_unstable();
        standing.contradicts.dedup();
        Ok(Frozen {
            task: self.task.clone(),
            question: self.question.clone(),
            task_kind: self.task_kind.clone(),
            quorum: self.quorum,
            answers,
            standing,
            causality: self.causality.clone(),
        })
    }

    fn answer(&self, response: &Response, rules: &Rules) -> Result<Answer, InputError> {
        let id = || response.id.clone();
        let claim = match &response.claim {
            Some(json) => canonical(json).map_err(|fault| InputError::Claim { response: id(), fault })?,
            None => None,
        };
        if response.confidence.is_some_and(|confidence| !(0.0..=1.0).contains(&confidence)) {
            return Err(InputError::Confidence { response: id() });
        }
        let vector = response.embedding.as_deref().map(fixed_vector).transpose();
        let vector = vector.map_err(|()| InputError::Vector { response: id() })?;
        let says_nothing = |json: &str| {
            serde_json::from_str::<String>(json).is_ok_and(|text| rules.words.says_nothing(&text))
        };
        let abstains = match &claim {
            Some(claim) => says_nothing(claim),
            None => rules.words.says_nothing(&response.text),
        };
        let mut evidence = response.evidence.clone();
        evidence.sort_unstable();
        evidence.dedup();
        let agent = self.agents.get(&response.agent).cloned().unwrap_or_default();
        Ok(Answer {
            agent: response.agent.clone(),
            response: id(),
            sequence: response.sequence,
            text: response.text.clone(),
            claim,
            confidence: response.confidence.map(Micro::from_f64),
            vector,
            evidence,
            family: agent.family,
            prompt: agent.prompt,
            record: agent.record,
            abstains,
        })
    }
}

impl Answer {
    /// Whether its text, or one in its claim, is longer in its normal form than what is compared.
    pub(crate) fn is_cut(&self) -> bool {
        self.claim.as_deref().is_some_and(is_cut) || is_cut(&compatible(&self.text))
    }
}

impl Frozen {
    /// The SHA-256 of the canonical bytes, in hexadecimal: JSON with members in the order of declaration, all numbers integers.
    pub(crate) fn sha256(&self) -> Result<String, serde_json::Error> {
        Ok(HEXLOWER.encode(&Sha256::digest(serde_json::to_vec(self)?)))
    }
}

/// Components in millionths: their products add up in integers, in any order to the same sum.
fn fixed_vector(vector: &[f32]) -> Result<Vec<i64>, ()> {
    vector
        .iter()
        .map(|component| {
            let component = f64::from(*component);
            if component.abs() <= 1000.0 { Ok((component * 1e6).round() as i64) } else { Err(()) }
        })
        .collect()
}
