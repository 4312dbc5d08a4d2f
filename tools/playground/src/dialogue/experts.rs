//! A group of experts in the built-in sample: agents, their conversation, the tasks they are asked, and what becomes knowledge.

use contract::{
    AgentConfigure, AgentProfile, AgentRetire, ExpertConversationEnd, ExpertConversationPhase,
    ExpertConversationStart, KnowledgePropose, RelationPut, RelationRemove, Request, ResponseSubmit,
    SessionId, TaskCancel, TaskDelegate, VerdictGive,
};
use serde_json::{Value, json};

use super::prepare::{Out, id};
use super::sample::read;

/// The service that publishes their requests.
const SERVICE: &str = "expert-group";
const SESSION: &str = "experts";
/// Agents, each with its provider and the family of its model.
const AGENTS: [(&str, &str, &str); 4] = [
    ("geographer", "anthropic", "claude"),
    ("historian", "openai", "gpt"),
    ("local-guide", "ollama", "llama"),
    ("intern", "vllm", "qwen"),
];
/// Questions about the sample's trips: the key of the answer, the question, and what the experts answer, in their order.
const QUESTIONS: [(&str, &str, [&str; 3]); 2] = [
    (
        "bay-area.airport-rail",
        "Which rail service goes from San Francisco to its airport?",
        ["BART", "BART", "bart"],
    ),
    (
        "bay-area.capital",
        "Which city is the capital of California?",
        ["Sacramento", "Sacramento", "San Francisco"],
    ),
];

/// Adds the requests of the group.
pub(super) fn add(out: &mut Out) -> Result<(), String> {
    let before = std::mem::replace(&mut out.service, SERVICE);
    for (agent, provider, family) in AGENTS {
        configure(out, agent, provider, family)?;
    }
    let retire = AgentRetire { agent_id: SessionId::new("intern")? };
    out.add(Request::AgentRetire(retire), &["intern"], false)?;
    let start: ExpertConversationStart =
        read(json!({ "session_id": SESSION, "conversation_title": "Trips in California",
        "participating_agents": ["geographer", "historian", "local-guide"] }))?;
    out.add(Request::ExpertConversationStart(start), &[SESSION], false)?;
    phase(out, "planning")?;
    phase(out, "delegation")?;
    for (key, question, _) in QUESTIONS {
        delegate(out, key, question, Some(key))?;
    }
    delegate(out, "weather", "Will it rain in San Jose tomorrow?", None)?;
    let cancel: TaskCancel = read(
        json!({ "task_id": task(out, "weather"), "session_id": SESSION, "reason": "No expert can know." }),
    )?;
    out.add(Request::TaskCancel(cancel), &["weather"], false)?;
    phase(out, "execution")?;
    for (key, _, answers) in QUESTIONS {
        for ((agent, ..), answer) in AGENTS.iter().zip(answers) {
            respond(out, key, agent, answer)?;
        }
    }
    phase(out, "consensus")?;
    knowledge(out)?;
    phase(out, "synthesis")?;
    let end: ExpertConversationEnd = read(json!({ "session_id": SESSION, "outcome": "completed" }))?;
    out.add(Request::ExpertConversationEnd(end), &[SESSION], false)?;
    out.service = before;
    Ok(())
}

fn configure(out: &mut Out, agent: &str, provider: &str, family: &str) -> Result<(), String> {
    let configure: AgentConfigure =
        read(json!({ "agent_id": agent, "agent_type": "expert", "agent_role": agent,
        "assigned_llm": format!("{family}-sample"), "model_provider": provider, "model_family": family,
        "system_prompt": format!("You are the {agent} of a travel agency."), "capabilities": ["travel"] }))?;
    out.add(Request::AgentConfigure(configure), &[agent], false)?;
    let profile: AgentProfile =
        read(json!({ "agent_id": agent, "display_name": agent, "description": "An expert of the sample.",
        "expertise_areas": ["california"], "current_status": "online" }))?;
    out.add(Request::AgentProfile(profile), &[agent], false)
}

fn phase(out: &mut Out, phase: &str) -> Result<(), String> {
    let request: ExpertConversationPhase = read(json!({ "session_id": SESSION, "phase": phase }))?;
    out.add(Request::ExpertConversationPhase(request), &[phase], false)
}

fn task(out: &Out, name: &str) -> uuid::Uuid {
    id(&[out.corpus.as_str(), &out.user_id.to_string(), "task", name])
}

fn node(out: &Out, name: &str) -> uuid::Uuid {
    id(&[out.corpus.as_str(), &out.user_id.to_string(), "node", name])
}

fn delegate(out: &mut Out, name: &str, question: &str, key: Option<&str>) -> Result<(), String> {
    let request: TaskDelegate = read(
        json!({ "task_id": task(out, name), "session_id": SESSION, "pm_agent_id": "planner",
        "question": question, "agents": ["geographer", "historian", "local-guide"], "quorum": 3, "task_kind": "travel",
        "node_type": "fact", "node_key": key, "semantic_tags": ["california"] }),
    )?;
    out.add(Request::TaskDelegate(request), &[name], false)
}

fn respond(out: &mut Out, name: &str, agent: &str, answer: &str) -> Result<(), String> {
    let response = id(&[out.corpus.as_str(), &out.user_id.to_string(), "response", name, agent]);
    let request: ResponseSubmit = read(
        json!({ "response_id": response, "task_id": task(out, name), "session_id": SESSION,
        "agent_id": agent, "response_text": format!("It is {answer}."), "claim": { "answer": answer }, "confidence": 0.8,
        "evidence": [{ "source": format!("{agent}'s notes") }], "processing_time_seconds": 1.5 }),
    )?;
    out.add(Request::ResponseSubmit(request), &[name, agent], false)
}

/// Two proposals, of which a human confirms one, and relations between them.
fn knowledge(out: &mut Out) -> Result<(), String> {
    let facts = [
        ("ferry", "Ferries cross the bay from the Ferry Building."),
        ("tram", "The F line runs along the Embarcadero."),
    ];
    for (name, answer) in facts {
        let request: KnowledgePropose = read(json!({ "node_id": node(out, name), "node_type": "fact",
            "node_key": format!("bay-area.{name}"), "title": answer, "content": { "answer": answer },
            "semantic_tags": ["california"], "agent_id": "local-guide", "session_id": SESSION }))?;
        out.add(Request::KnowledgePropose(request), &[name], false)?;
    }
    let ends = |relation: &str| -> Value {
        json!({ "source_node_id": node(out, "tram"), "target_node_id": node(out, "ferry"), "relation_type": relation })
    };
    let (near, far) = (ends("leads-to"), ends("replaces"));
    for (relation, value) in [("leads-to", &near), ("replaces", &far)] {
        let put: RelationPut = read(value.clone())?;
        out.add(Request::RelationPut(put), &[relation], false)?;
    }
    let remove: RelationRemove = read(far)?;
    out.add(Request::RelationRemove(remove), &["replaces"], false)?;
    let verdict: VerdictGive =
        read(json!({ "node_id": node(out, "ferry"), "verdict": "confirm", "given_by": "planner",
        "reason": "The timetable says so." }))?;
    out.add(Request::VerdictGive(verdict), &["ferry"], false)
}
