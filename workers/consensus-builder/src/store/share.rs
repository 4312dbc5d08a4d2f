//! The share of a task that each of its agents may use.

use contract::{EvidenceRoot, ResponseSubmit, limit};

/// The most responses of an agent to a task. All that came before the close are read then, although the latest one alone counts.
pub(crate) const RESPONSES_OF_AGENT: i64 = 100;

/// Checks that a response leaves room for those of the other agents: all of them are compared with each other when the task closes, in
/// one transaction, and its dossier repeats their evidence.
pub(crate) fn fits(request: &ResponseSubmit, asked: i32, responses: i64) -> Result<(), String> {
    if responses >= RESPONSES_OF_AGENT {
        return Err(format!(
            "response_id: agent {} has given {responses} responses, the most to a task",
            request.agent_id
        ));
    }
    let agents = usize::try_from(asked).unwrap_or(1).max(1);
    let part = limit::TASK_CHARS / agents;
    let claim = request.claim.as_ref().map_or(0, |claim| claim.as_str().chars().count());
    let length = request.response_text.as_str().chars().count() + claim;
    if length > part {
        return Err(format!(
            "response_text: text and claim have {length} characters; of {asked} agents that are asked, each may use {part}"
        ));
    }
    let part = limit::TASK_EVIDENCE_CHARS / agents;
    let evidence: usize = request.evidence.as_slice().iter().map(characters).sum();
    if evidence > part {
        return Err(format!(
            "evidence: it has {evidence} characters; of {asked} agents that are asked, each may use {part}"
        ));
    }
    Ok(())
}

fn characters(root: &EvidenceRoot) -> usize {
    match root {
        EvidenceRoot::Source(source) => source.as_str().chars().count(),
        EvidenceRoot::Recalled(_) => uuid::fmt::Hyphenated::LENGTH,
    }
}
