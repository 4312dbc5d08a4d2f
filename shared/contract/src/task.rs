use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts::{Prerequisite, RequestFacts};
use crate::json::Json;
use crate::limit;
use crate::malformed::Malformed;
use crate::number::{Bounded, Real, Score};
use crate::performative::Performative;
use crate::value::{List, Name, NonEmptyList, SessionId, Text};

/// Asks several agents a question. When as many have answered as `quorum` says, when all have responded, or at the deadline,
/// the task closes and a node of the knowledge graph has the answer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskDelegate {
    /// The task id, unique for the user.
    pub task_id: Uuid,
    /// A conversation that was started.
    pub session_id: SessionId,
    /// The agent that asks.
    pub pm_agent_id: SessionId,
    /// The question.
    pub question: Text<1, { limit::RESPONSE_CHARS }>,
    /// The agents that are asked, 1 to 500.
    pub agents: NonEmptyList<SessionId, 500>,
    /// How many answers close the task. Abstentions are no answers.
    pub quorum: Bounded<1, 500>,
    /// The kind of task, for which records of agents are kept. Default: `general`.
    #[serde(default = "general")]
    pub task_kind: Text<1, 64>,
    /// When the task closes with the answers that have come. Absent: never.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub deadline: Option<DateTime<Utc>>,
    /// The fixed answers, if there are some: texts or claims. Tasks of one kind with the same options are estimated together.
    #[serde(default)]
    pub options: List<Name, 100>,
    /// The type of the node that has the answer. Default: `answer`.
    #[serde(default = "answer")]
    pub node_type: Text<1, 128>,
    /// The key of that node: later validated answers of the same type and key supersede it. Absent: the task id.
    #[serde(default)]
    pub node_key: Option<Name>,
    /// The title of that node. Absent: the beginning of the question.
    #[serde(default)]
    pub title: Option<Text<1, 512>>,
    /// The tags of that node.
    #[serde(default)]
    pub semantic_tags: List<Name, 64>,
}

fn general() -> Text<1, 64> {
    Text("general".to_owned())
}

fn answer() -> Text<1, 128> {
    Text("answer".to_owned())
}

/// Cancels a task. Its responses are kept and have no effect.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskCancel {
    /// The task.
    pub task_id: Uuid,
    /// Its conversation.
    pub session_id: SessionId,
    /// Why.
    #[serde(default)]
    pub reason: Option<Text<1, 2048>>,
}

/// What an answer rests on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EvidenceRoot {
    /// A source outside of consensus: a document, the result of a tool, a measurement.
    Source(Text<1, 512>),
    /// A node of consensus that the agent recalled. It is no fresh evidence for that consensus.
    Recalled(Uuid),
}

/// Submits the response of an agent to a task. Of several responses of one agent, the one that JetStream stored last counts. One
/// that comes after the task has closed is recorded and not counted.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseSubmit {
    /// The response id, unique for the user.
    pub response_id: Uuid,
    /// The task.
    pub task_id: Uuid,
    /// Its conversation.
    pub session_id: SessionId,
    /// The agent, which must be one of those that were asked.
    pub agent_id: SessionId,
    /// What it says. Empty: it abstains, unless there is a claim.
    #[serde(default)]
    pub response_text: Text<0, { limit::RESPONSE_CHARS }>,
    /// The same as structured data, at most 16 KiB of JSON. Equal claims are the same answer, whatever the texts say.
    #[serde(default)]
    pub claim: Option<Json>,
    /// How sure the agent says it is, 0 to 1.
    #[serde(default)]
    pub confidence: Option<Score>,
    /// What the answer rests on.
    #[serde(default)]
    pub evidence: List<EvidenceRoot, 64>,
    /// How long the agent worked, in seconds, at most one day.
    #[serde(default)]
    pub processing_time_seconds: Option<Real<86_400>>,
}

impl RequestFacts for TaskDelegate {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn source_agent(&self) -> Option<&str> {
        Some(self.pm_agent_id.as_str())
    }

    fn performative(&self) -> Performative {
        Performative::Request
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Conversation(&self.session_id)
    }

    fn check(&self) -> Result<(), Malformed> {
        let agents = self.agents.as_slice();
        if has_twice(agents) {
            return Err(Malformed::new("agents", "names an agent twice"));
        }
        let asked = agents.len();
        if usize::try_from(self.quorum.get()).is_ok_and(|quorum| quorum > asked) {
            let problem = format!("is {}, more than the {asked} agents that are asked", self.quorum.get());
            return Err(Malformed::new("quorum", problem));
        }
        let options = self.options.as_slice();
        if options.len() == 1 || has_twice(options) {
            return Err(Malformed::new("options", "must be several different answers, or none"));
        }
        Ok(())
    }

    fn unchanged_reason(&self) -> &'static str {
        "a task with this task_id exists already"
    }
}

fn has_twice<T: Ord>(items: &[T]) -> bool {
    let mut sorted: Vec<&T> = items.iter().collect();
    sorted.sort_unstable();
    sorted.windows(2).any(|two| two[0] == two[1])
}

impl RequestFacts for TaskCancel {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn performative(&self) -> Performative {
        Performative::Cancel
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Task { id: self.task_id, session: &self.session_id }
    }

    fn unchanged_reason(&self) -> &'static str {
        "the task is closed or cancelled already"
    }
}

impl RequestFacts for ResponseSubmit {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn source_agent(&self) -> Option<&str> {
        Some(self.agent_id.as_str())
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Task { id: self.task_id, session: &self.session_id }
    }

    fn check(&self) -> Result<(), Malformed> {
        match self.claim.as_ref().map(|claim| claim.as_str().len()) {
            Some(bytes) if bytes > limit::CLAIM_BYTES => {
                let problem = format!("has {bytes} bytes, more than {}", limit::CLAIM_BYTES);
                Err(Malformed::new("claim", problem))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn unchanged_reason(&self) -> &'static str {
        "a response with this response_id exists already"
    }
}
