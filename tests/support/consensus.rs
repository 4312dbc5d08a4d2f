//! Tasks, agents and responses for the tests of consensus-builder.

use consensus::{Rules, Verification};
use consensus_builder::{ConsensusBuilder, inputs};
use context_writer::ContextWriter;
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, request, user};
use uuid::Uuid;

/// The session of the conversations of agents.
pub const SESSION: &str = "group";

/// A fixture that knows these users.
pub async fn with_users(users: impl IntoIterator<Item = i32>) -> Fixture {
    know(Fixture::new().await, users).await
}

/// Stores these users.
pub async fn know(fixture: Fixture, users: impl IntoIterator<Item = i32>) -> Fixture {
    fixture.process(ContextWriter, users.into_iter().map(user).collect::<Vec<_>>()).await;
    fixture
}

/// The worker, without an embedder unless the settings have one.
pub async fn builder(fixture: &Fixture) -> ConsensusBuilder {
    ConsensusBuilder::open(&fixture.settings).await.expect("the worker")
}

/// Has the worker process requests to their end.
pub async fn process(fixture: &Fixture, requests: impl IntoIterator<Item = RequestMessage>) {
    fixture.process(builder(fixture).await, requests).await;
}

/// Configures an agent of a family.
pub fn agent(user: i32, id: &str, family: &str) -> RequestMessage {
    let body = json!({ "agent_id": id, "agent_type": "expert", "agent_role": "answers", "assigned_llm": "m",
        "model_provider": "other", "model_family": family });
    request("agent.configure", user, body)
}

/// Starts the conversation.
pub fn start(user: i32) -> RequestMessage {
    let body = json!({ "session_id": SESSION, "conversation_title": "Experts" });
    request("expert-conversation.start", user, body)
}

/// A task and the agents that it asks.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its user.
    pub user: i32,
    /// Its id.
    pub id: Uuid,
}

impl Task {
    /// A task of a user.
    pub fn of(user: i32) -> Self {
        Self { user, id: Uuid::now_v7() }
    }

    /// The request that delegates it, with further fields.
    pub fn delegate(&self, agents: &[&str], quorum: usize, more: Value) -> RequestMessage {
        let body = json!({ "task_id": self.id, "session_id": SESSION, "pm_agent_id": "pm",
            "question": "Which river flows through Lisbon?", "agents": agents, "quorum": quorum });
        request("task.delegate", self.user, with(body, more))
    }

    /// The response of an agent, with further fields.
    pub fn respond(&self, agent: &str, text: &str, more: Value) -> RequestMessage {
        let body = json!({ "response_id": Uuid::now_v7(), "task_id": self.id, "session_id": SESSION,
            "agent_id": agent, "response_text": text });
        request("response.submit", self.user, with(body, more))
    }

    /// The same answer of several agents.
    pub fn all_say(&self, agents: &[&str], text: &str) -> Vec<RequestMessage> {
        agents.iter().map(|agent| self.respond(agent, text, json!({}))).collect()
    }

    /// The id of its node.
    pub async fn node(&self, fixture: &Fixture) -> Uuid {
        let found = fixture.lines(&format!("node_id FROM consensus_tasks WHERE id = '{}'", self.id)).await;
        found[0].parse().expect("a closed task")
    }

    /// `status score` of its node, and the reasons for them.
    pub async fn outcome(&self, fixture: &Fixture) -> String {
        let outcome = fixture
            .lines(&format!(
                "concat_ws(' ', validation_status, consensus_score, content -> 'reasons') FROM consensus_memory_nodes
                 WHERE task_id = '{}'",
                self.id
            ))
            .await;
        assert_eq!(outcome.len(), 1, "one node: {outcome:?}");
        outcome[0].clone()
    }
}

/// A verdict on a node.
pub fn verdict(user: i32, node: Uuid, verdict: &str) -> RequestMessage {
    let body = json!({ "node_id": node, "verdict": verdict, "given_by": "ada", "reason": "I looked it up." });
    request("verdict.give", user, body)
}

/// These fields, replaced by and extended with others.
pub fn with(mut body: Value, more: Value) -> Value {
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("fields").clone());
    body
}

/// Three agents of three families, and the conversation.
pub fn three_families(user: i32) -> Vec<RequestMessage> {
    vec![agent(user, "a", "x"), agent(user, "b", "y"), agent(user, "c", "z"), start(user)]
}

/// Every stored dossier is recomputed to the same bytes, and its inputs are those of the rows. Returns how many there are.
pub async fn verified(fixture: &Fixture) -> usize {
    let rules = Rules::current().expect("rules");
    let mut connection = fixture.connection().await;
    let stored = inputs::after(&mut connection, (0, Uuid::nil()), 1_000).await.expect("dossiers");
    for one in &stored {
        let same = consensus::verify(&one.dossier, &one.inputs, &rules).expect("a dossier");
        assert_eq!(same, Verification::Same, "node {}", one.node_id);
        let key = (one.user_id, one.task_id.expect("a task"));
        let rows = inputs::of_tasks(&mut connection, &[key]).await.expect("rows");
        let (_, of_rows) = inputs::stored_form(&rows[&key].inputs).expect("inputs");
        assert_eq!(one.inputs.responses, of_rows.responses);
        assert_eq!(one.inputs.causality, of_rows.causality);
    }
    let nodes = "n.inputs_sha256 = d.inputs_sha256 AND n.rules_version = d.rules_version FROM consensus_memory_nodes n
        JOIN consensus_dossiers d ON d.user_id = n.user_id AND d.id = n.id";
    assert!(fixture.lines(nodes).await.iter().all(|same| same == "true"));
    stored.len()
}
