//! Consensus of many agents: arithmetic, explained and computable again.
//!
//! [`Dossier::compute`] takes the responses to one question and says which answer leads, how far it can be believed, and why:
//!
//! 1. the latest response of each agent is frozen ([`Inputs::freeze`]);
//! 2. equal claims, or texts that are similar and differ in no number, name or negation, form a cluster;
//! 3. a vote weighs as much as its agent's record shows, less what it shares with other voters;
//! 4. the weights give a share, a margin, an entropy, a score and a [`Status`].
//!
//! The same inputs give the same bytes on every machine: the order of arrival has no influence, all arithmetic of a dossier
//! is on integers, and all constants are in one file with a version and a hash ([`Rules`]). [`verify`] recomputes a dossier.
//!
//! [`reliability`] estimates from many closed tasks how often each agent is right. Nothing here reads a clock, a database or
//! the network.

mod claim;
mod cluster;
pub mod dataset;
mod dossier;
mod fixed;
mod guard;
mod input;
pub mod reliability;
mod render;
mod rules;
mod score;
mod text;
mod weight;

pub use claim::{ClaimError, canonical};
pub use cluster::Likeness;
pub use dossier::{Cluster, Dossier, DossierError, Outcome, Verification, Vote, verify};
pub use fixed::Micro;
pub use guard::{Difference, Signature, Vocabulary};
pub use input::{Agent, Evidence, Frozen, InputError, Inputs, Record, Response, Standing, Verdict};
pub use render::render;
pub use rules::{
    ClusterRules, IndependenceRules, ReliabilityRules, Rules, RulesError, RulesId, ScoreRules, WeightRules,
    Words,
};
pub use score::{Reason, Status};
pub use weight::Uncounted;

/// How two answers relate, such as a new one and that of a validated node: whether it repeats or contradicts it.
///
/// # Errors
/// If a claim or an embedding is not as it must be.
pub fn likeness(a: &Response, b: &Response, rules: &Rules) -> Result<Likeness, InputError> {
    let frozen = |response: &Response| {
        let inputs = Inputs { responses: vec![response.clone()], ..Inputs::default() };
        inputs.freeze(rules)
    };
    let (a, b) = (frozen(a)?, frozen(b)?);
    Ok(match (a.answers.first(), b.answers.first()) {
        (Some(a), Some(b)) => cluster::likeness(a, b, rules),
        _ => Likeness::Apart,
    })
}

/// Whether a response says nothing: no claim, and a text that is empty or says so.
///
/// # Errors
/// If its claim or its embedding is not as it must be; [`InputError::Growth`] if what is compared of it would be cut.
pub fn abstains(response: &Response, rules: &Rules) -> Result<bool, InputError> {
    let inputs = Inputs { responses: vec![response.clone()], ..Inputs::default() };
    let answers = inputs.freeze(rules)?.answers;
    if answers.iter().any(input::Answer::is_cut) {
        return Err(InputError::Growth { response: response.id.clone() });
    }
    Ok(answers.iter().all(|answer| answer.abstains))
}
