//! The dossier of an answer: all that its score rests on, in bytes that can be computed again.

use serde::{Deserialize, Serialize};

use crate::{
    Evidence, Frozen, Inputs, Micro, Reason, Rules, RulesId, Status, Uncounted,
    cluster::cluster,
    input::InputError,
    score::{Tally, status, tally},
};

/// The version of the form of a dossier.
const FORMAT: u32 = 1;
/// The longest excerpt of an answer, in characters.
const EXCERPT: usize = 200;

/// Why a dossier cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum DossierError {
    /// The inputs are not as they must be.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Serialization failed.
    #[error("the dossier cannot be serialized: {0}")]
    Serialize(#[from] serde_json::Error),
}

/// What the verification of a dossier found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// The recomputed bytes are the stored ones.
    Same,
    /// It was computed under other rules: verify it with theirs.
    OtherRules(RulesId),
    /// The inputs are not the ones that it was computed from.
    OtherInputs {
        /// The hash in the dossier.
        stored: String,
        /// The hash of the inputs.
        computed: String,
    },
    /// Same inputs, same rules, other bytes: the dossier was changed.
    Changed(Box<Dossier>),
    /// The bytes are no dossier.
    Unreadable,
}

/// All that a score rests on. Numbers are in millionths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dossier {
    /// The version of this form.
    pub format: u32,
    /// The rules that it was computed under.
    pub rules: RulesId,
    /// SHA-256 of the frozen inputs.
    pub inputs_sha256: String,
    /// The task.
    pub task: String,
    /// What was asked.
    pub question: String,
    /// The kind of the task.
    pub task_kind: String,
    /// How many answers were asked for.
    pub quorum: u32,
    /// Score and status.
    pub outcome: Outcome,
    /// The different answers, the heaviest first.
    pub clusters: Vec<Cluster>,
    /// One vote for each agent, sorted by agent.
    pub votes: Vec<Vote>,
    /// Live validated nodes that say something else.
    pub contradicts: Vec<String>,
    /// The node that took this one's place.
    pub superseded_by: Option<String>,
    /// The events that led here, the oldest first.
    pub causality: Vec<String>,
}

/// Score and status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The status.
    pub status: Status,
    /// Every reason for it.
    pub reasons: Vec<Reason>,
    /// The share of the leading answer in all weight and the doubt.
    pub score: Micro,
    /// Its share in all weight.
    pub share: Micro,
    /// Its lead over the runner-up.
    pub margin: Micro,
    /// How scattered the votes are: zero if all agree, one if all answers weigh the same.
    pub entropy: Micro,
    /// The effective number of voters, over all answers.
    pub independent_voters: Micro,
    /// The leading answer; of a tie, all that share the lead.
    pub leaders: Vec<u32>,
}

/// One answer, and who gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The claim in its canonical form.
    pub claim: Option<String>,
    /// The text of its heaviest voter, shortened.
    pub answer: String,
    /// The sum of the weights.
    pub weight: Micro,
    /// Its share in all weight.
    pub share: Micro,
    /// The effective number of voters.
    pub independent_voters: Micro,
    /// The agents, sorted.
    pub agents: Vec<String>,
}

/// The vote of one agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// The agent.
    pub agent: String,
    /// The response that counted: its latest.
    pub response: String,
    /// The answer it gave, by its place in `clusters`; none if it abstained.
    pub cluster: Option<u32>,
    /// The declared family of its model.
    pub family: Option<String>,
    /// The declared prompt.
    pub prompt: Option<String>,
    /// The roots of its evidence.
    pub evidence: Vec<Evidence>,
    /// Right answers in its record.
    pub right: Micro,
    /// Wrong answers in its record.
    pub wrong: Micro,
    /// The confidence that it stated.
    pub confidence: Option<Micro>,
    /// The accuracy by its record.
    pub accuracy: Micro,
    /// The probability that this answer is right, after the stated confidence.
    pub probability: Micro,
    /// The weight by itself, in units of an agent without a record.
    pub weight: Micro,
    /// What it is discounted by for what it shares with heavier voters.
    pub discount: Micro,
    /// What counts.
    pub counted: Micro,
    /// Why it does not count.
    pub uncounted: Option<Uncounted>,
}

impl Dossier {
    /// Computes the dossier of a task.
    ///
    /// # Errors
    /// If the inputs are not as they must be.
    pub fn compute(inputs: &Inputs, rules: &Rules) -> Result<Self, DossierError> {
        let frozen = inputs.freeze(rules)?;
        let tally = tally(&frozen, cluster(&frozen.answers, rules), rules);
        let outcome = Outcome {
            // Both follow from the standing.
            status: Status::Unvalidated,
            reasons: Vec::new(),
            score: tally.score,
            share: tally.clusters.first().map_or(Micro::ZERO, |leader| leader.share),
            margin: tally.margin,
            entropy: tally.entropy,
            independent_voters: tally.independent,
            leaders: (0u32..).take(tally.leaders).collect(),
        };
        let dossier = Self {
            format: FORMAT,
            rules: rules.id.clone(),
            inputs_sha256: String::new(),
            outcome,
            clusters: clusters(&frozen, &tally),
            votes: votes(&frozen, &tally),
            task: frozen.task.clone(),
            question: frozen.question.clone(),
            task_kind: frozen.task_kind.clone(),
            quorum: frozen.quorum,
            contradicts: Vec::new(),
            superseded_by: None,
            causality: frozen.causality.clone(),
        };
        dossier.standing(frozen, rules)
    }

    /// Reads the bytes of a dossier. `None` if they are none, or one under other rules: then it has to be computed again.
    #[must_use]
    pub fn read(stored: &[u8], rules: &Rules) -> Option<Self> {
        let dossier: Self = serde_json::from_slice(stored).ok()?;
        (dossier.format == FORMAT && dossier.rules == rules.id).then_some(dossier)
    }

    /// The dossier under another standing. `inputs` are those that it was computed from, with the new standing, and `rules` the same.
    ///
    /// It is the one that [`compute`](Self::compute) returns for them. But answers are not compared in pairs again: what the votes say does
    /// not depend on the standing.
    ///
    /// # Errors
    /// As [`compute`](Self::compute).
    pub fn with_standing(self, inputs: &Inputs, rules: &Rules) -> Result<Self, DossierError> {
        self.standing(inputs.freeze(rules)?, rules)
    }

    fn standing(self, frozen: Frozen, rules: &Rules) -> Result<Self, DossierError> {
        let (status, reasons) = status(&self, &frozen.standing, rules);
        Ok(Self {
            inputs_sha256: frozen.sha256()?,
            outcome: Outcome { status, reasons, ..self.outcome },
            contradicts: frozen.standing.contradicts,
            superseded_by: frozen.standing.superseded_by,
            ..self
        })
    }

    /// The canonical bytes: JSON with members in the order of declaration, all numbers integers.
    ///
    /// # Errors
    /// If serialization fails, which it does not for these types.
    pub fn to_bytes(&self) -> Result<Vec<u8>, DossierError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// The score as a number from 0 to 1 with six decimals.
    #[must_use]
    pub fn score(&self) -> f64 {
        self.outcome.score.to_f64()
    }

    /// The answers that are not the leading one.
    pub fn dissent(&self) -> impl Iterator<Item = &Cluster> {
        self.clusters.iter().skip(self.outcome.leaders.len())
    }
}

/// Computes a dossier again from its inputs and compares the bytes.
///
/// # Errors
/// If the inputs are not as they must be.
pub fn verify(stored: &[u8], inputs: &Inputs, rules: &Rules) -> Result<Verification, DossierError> {
    let Ok(dossier) = serde_json::from_slice::<Dossier>(stored) else { return Ok(Verification::Unreadable) };
    if dossier.rules != rules.id {
        return Ok(Verification::OtherRules(dossier.rules));
    }
    let computed = Dossier::compute(inputs, rules)?;
    Ok(if computed.to_bytes()? == stored {
        Verification::Same
    } else if computed.inputs_sha256 != dossier.inputs_sha256 {
        Verification::OtherInputs { stored: dossier.inputs_sha256, computed: computed.inputs_sha256 }
    } else {
        Verification::Changed(Box::new(computed))
    })
}

fn clusters(frozen: &Frozen, tally: &Tally) -> Vec<Cluster> {
    tally
        .clusters
        .iter()
        .map(|cluster| {
            let agents = || cluster.members.iter().map(|member| &frozen.answers[*member]);
            let weight = |member: &usize| (std::cmp::Reverse(tally.weights[*member].counted), *member);
            let heaviest = cluster.members.iter().min_by_key(|member| weight(member));
            Cluster {
                claim: agents().find_map(|answer| answer.claim.clone()),
                answer: heaviest.map(|member| excerpt(&frozen.answers[*member].text)).unwrap_or_default(),
                weight: cluster.weight,
                share: cluster.share,
                independent_voters: cluster.independent,
                agents: agents().map(|answer| answer.agent.clone()).collect(),
            }
        })
        .collect()
}

fn votes(frozen: &Frozen, tally: &Tally) -> Vec<Vote> {
    let place = |index: usize| tally.clusters.iter().position(|cluster| cluster.members.contains(&index));
    frozen
        .answers
        .iter()
        .zip(&tally.weights)
        .enumerate()
        .map(|(index, (answer, weight))| Vote {
            agent: answer.agent.clone(),
            response: answer.response.clone(),
            cluster: place(index).and_then(|place| u32::try_from(place).ok()),
            family: answer.family.clone(),
            prompt: answer.prompt.clone(),
            evidence: answer.evidence.clone(),
            right: answer.record.right,
            wrong: answer.record.wrong,
            confidence: answer.confidence,
            accuracy: weight.accuracy,
            probability: weight.probability,
            weight: weight.weight,
            discount: weight.discount,
            counted: weight.counted,
            uncounted: weight.uncounted,
        })
        .collect()
}

fn excerpt(text: &str) -> String {
    let text = crate::text::compatible(text);
    match text.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
