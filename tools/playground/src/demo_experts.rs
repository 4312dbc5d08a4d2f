//! The group of experts that `memfleet demo` asks about an allotment, and the dossier of one of their answers.

use anyhow::Context;
use cli::outln;
use cli::table::{Align, Table};
use cli::tokens::Tokens;
use client::{Client, ClientOptions, User};
use config::Settings;
use consensus::{Dossier, render};
use contract::{
    AgentConfigure, ExpertConversationStart, NodeDossier, NodeDossierAnswer, RequestType, ResponseSubmit,
    TaskDelegate, TaskList,
};
use futures::future::try_join_all;
use runtime::broker;
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json};
use uuid::Uuid;

/// Who has the allotment.
const USER: i32 = 1;
/// The service that asks.
const SERVICE: &str = "expert-group";
const SESSION: &str = "garden-experts";
/// The agent that asks the others.
const HEAD: &str = "head-gardener";

/// Agents, and the family of the model that each runs on.
const EXPERTS: [(&str, &str); 10] = [
    ("basil", "gpt"),
    ("thyme", "gpt"),
    ("dill", "gpt"),
    ("chive", "gpt"),
    ("willow", "claude"),
    ("clover", "gemini"),
    ("fern", "llama"),
    ("sorrel", "mistral"),
    ("moss", "qwen"),
    ("yarrow", "deepseek"),
];

/// A question, and who answers what.
struct Question {
    key: &'static str,
    text: &'static str,
    answers: &'static [Answer],
}

/// Agent, text, claim, confidence, source.
struct Answer(&'static str, &'static str, Option<&'static str>, f64, &'static str);

/// The first is answered by four agents of one family alone, the second evenly, the third by many with one dissenter.
const QUESTIONS: [Question; 3] = [
    Question {
        key: "walnut-compost",
        text: "May walnut leaves go into the lowest third of the beds?",
        answers: &[
            Answer("basil", "Yes, if they are half rotten.", Some("true"), 0.9, "forum:allotments"),
            Answer("thyme", "Yes.", Some("true"), 0.9, "forum:allotments"),
            Answer("dill", "Yes, after some months in a heap.", Some("true"), 0.8, "forum:compost"),
            Answer("chive", "They may.", Some("true"), 0.9, "forum:allotments"),
        ],
    },
    Question {
        key: "sow-peas",
        text: "In which month are the peas to be sown?",
        answers: &[
            Answer("willow", "In March, under fleece.", Some(r#"{"month": 3}"#), 0.7, "book:the-pea"),
            Answer("fern", "Peas stand frost: March.", Some(r#"{"month": 3}"#), 0.8, "leaflet:seed-packet"),
            Answer("clover", "Wait for April.", Some(r#"{"month": 4}"#), 0.8, "calendar:2026"),
            Answer(
                "sorrel",
                "The soil is too cold before April.",
                Some(r#"{"month": 4}"#),
                0.6,
                "record:soil",
            ),
        ],
    },
    Question {
        key: "soil",
        text: "How many cubic metres of soil fill four beds of 1.2 by 2.4 metres, 30 cm deep, if the lowest third is twigs and leaves?",
        answers: &[
            Answer("basil", "About 2.3 cubic metres.", Some(r#"{"soil": "2.3 m³"}"#), 0.9, "sum:basil"),
            Answer("thyme", "2.3, as basil says.", Some(r#"{"soil": "2.3 m³"}"#), 0.9, "sum:basil"),
            Answer("willow", "3.456 less a third: 2.3.", Some(r#"{"soil": "2.3 m³"}"#), 0.9, "sum:willow"),
            Answer("clover", "Order 2.3 cubic metres.", Some(r#"{"soil": "2.3 m³"}"#), 0.8, "sum:clover"),
            Answer("fern", "Some 2.3.", Some(r#"{"soil": "2.3 m³"}"#), 0.7, "sum:fern"),
            Answer("sorrel", "2.3, and a wheelbarrow.", Some(r#"{"soil": "2.3 m³"}"#), 0.9, "sum:sorrel"),
            Answer("moss", "3.5 cubic metres.", Some(r#"{"soil": "3.5 m³"}"#), 1.0, "sum:moss"),
            Answer("yarrow", "I do not know.", None, 0.1, "garden:yarrow"),
        ],
    },
];

/// What became of the questions.
pub struct Consulted {
    answers: Vec<Answered>,
}

struct Answered {
    question: &'static str,
    /// The status of its node.
    status: String,
    /// None if it cannot be read.
    dossier: Option<Dossier>,
}

/// Configures the agents, asks them the questions, submits their answers, and reads the dossiers of the nodes these became.
/// Done again, it changes nothing.
///
/// # Errors
/// If a request or a query fails.
pub async fn consult(settings: &Settings) -> anyhow::Result<Consulted> {
    let connection = broker::connect(&settings.nats, SERVICE).await?;
    let options = ClientOptions::new(&settings.nats.url, SERVICE.parse().context("invalid service name")?);
    let tokens = Tokens::open(settings, None).await?.of_service(options.service.clone());
    let user = Client::over(connection, tokens, &options)?.user(USER);
    user.authorize().await?;
    let configured = EXPERTS.iter().map(|(agent, family)| configure(&user, agent, family));
    try_join_all(configured).await?;
    let agents: Vec<&str> = EXPERTS.iter().map(|(agent, _)| *agent).collect();
    let title = "Experts about Marlene's allotment";
    let start = json!({ "session_id": SESSION, "conversation_title": title, "participating_agents": agents });
    send::<ExpertConversationStart>(&user, start).await?;
    let mut answers = Vec::with_capacity(QUESTIONS.len());
    for question in &QUESTIONS {
        ask(&user, question).await?;
        let NodeDossierAnswer { node, dossier, .. } = read(&user, question).await?;
        let dossier = dossier.and_then(|dossier| serde_json::from_str(dossier.content.as_str()).ok());
        answers.push(Answered {
            question: question.text,
            status: node.validation_status.to_string(),
            dossier,
        });
    }
    Ok(Consulted { answers })
}

/// Sends a request and waits until it is committed.
async fn send<R: RequestType + DeserializeOwned>(user: &User, body: Value) -> anyhow::Result<()> {
    user.send(from_value::<R>(body)?).await?;
    Ok(())
}

async fn configure(user: &User, agent: &str, family: &str) -> anyhow::Result<()> {
    let body = json!({
        "agent_id": agent, "agent_type": "expert", "agent_role": "gardener", "assigned_llm": format!("{family}-large"),
        "model_provider": "other", "model_family": family,
    });
    send::<AgentConfigure>(user, body).await
}

/// The same for the same name, so that a demo on running servers can be repeated.
fn id(name: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("memfleet demo {name}").as_bytes())
}

async fn ask(user: &User, question: &Question) -> anyhow::Result<()> {
    let Question { key, text, answers } = question;
    let agents: Vec<&str> = answers.iter().map(|answer| answer.0).collect();
    let body = json!({
        "task_id": id(key), "session_id": SESSION, "pm_agent_id": HEAD, "question": text, "agents": agents,
        // Whoever abstains gives no answer: such a task closes when all have responded.
        "quorum": answers.iter().filter(|answer| answer.2.is_some()).count(), "task_kind": "gardening",
        "node_type": "garden", "node_key": key, "semantic_tags": ["allotment"],
    });
    send::<TaskDelegate>(user, body).await?;
    // The one who abstains responds first, so that the last answer does not come after the close.
    let (silent, speaking): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.2.is_none());
    for answers in [silent, speaking] {
        try_join_all(answers.into_iter().map(|answer| respond(user, key, answer))).await?;
    }
    Ok(())
}

async fn respond(user: &User, key: &str, answer: &Answer) -> anyhow::Result<()> {
    let Answer(agent, text, claim, confidence, source) = answer;
    let claim: Option<Value> = claim.map(serde_json::from_str).transpose()?;
    let body = json!({
        "response_id": id(&format!("{key} {agent}")), "task_id": id(key), "session_id": SESSION, "agent_id": agent,
        "response_text": text, "claim": claim, "confidence": confidence, "evidence": [{ "source": source }],
    });
    send::<ResponseSubmit>(user, body).await
}

/// The node that the answers became, with its dossier.
async fn read(user: &User, question: &Question) -> anyhow::Result<NodeDossierAnswer> {
    let task = id(question.key);
    let listed = user.query(from_value::<TaskList>(json!({ "session_id": SESSION }))?).await?;
    let node = listed.tasks.into_iter().find(|listed| listed.task_id == task).and_then(|task| task.node_id);
    let node = node.with_context(|| format!("the question {:?} has no answer", question.text))?;
    Ok(user.query(NodeDossier { node_id: node }).await?)
}

impl Consulted {
    /// Questions without a dossier that can be read.
    pub fn problems(&self) -> Vec<String> {
        let unanswered = self.answers.iter().filter(|answered| answered.dossier.is_none());
        unanswered.map(|answered| format!("no dossier for {:?}", answered.question)).collect()
    }

    /// Prints the questions with their answers, and the dossier of the last.
    pub fn show(&self) {
        outln!("{}", self.text());
    }

    fn text(&self) -> String {
        let mut table = Table::new([
            ("status", Align::Left),
            ("score", Align::Right),
            ("question", Align::Left),
            ("leading answers", Align::Left),
        ]);
        for Answered { question, status, dossier } in &self.answers {
            let Some(dossier) = dossier else { continue };
            let leaders = dossier.clusters.iter().take(dossier.outcome.leaders.len());
            let leaders: Vec<&str> = leaders.map(|cluster| cluster.answer.as_str()).collect();
            table.row([
                status.clone(),
                format!("{:.3}", dossier.score()),
                shortened(question),
                shortened(&leaders.join(" / ")),
            ]);
        }
        let (experts, questions) = (EXPERTS.len(), self.answers.len());
        let dossier = self.answers.last().and_then(|answered| answered.dossier.as_ref());
        let dossier = dossier.map(render).unwrap_or_default();
        format!(
            "A group of {experts} experts was asked {questions} questions:\n\n{table}\nThe dossier of the last answer, which \
             `memfleet consensus explain NODE` prints:\n\n{dossier}"
        )
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeMap;

    use consensus::{Agent, Evidence, Inputs, Response, Rules};

    use super::*;

    /// What consensus-builder makes of a question, of agents without a record.
    fn answered(question: &Question) -> Answered {
        let families: BTreeMap<&str, &str> = EXPERTS.into_iter().collect();
        let response = |answer: &Answer, sequence| {
            let Answer(agent, text, claim, confidence, source) = *answer;
            Response {
                id: agent.to_owned(),
                agent: agent.to_owned(),
                sequence,
                text: text.to_owned(),
                claim: claim.map(str::to_owned),
                confidence: Some(confidence),
                embedding: None,
                evidence: vec![Evidence::Source(source.to_owned())],
            }
        };
        let known = |answer: &Answer| {
            let family = Some(families[answer.0].to_owned());
            (answer.0.to_owned(), Agent { family, ..Agent::default() })
        };
        let speaking = question.answers.iter().filter(|answer| answer.2.is_some()).count();
        let inputs = Inputs {
            task: id(question.key).to_string(),
            question: question.text.to_owned(),
            task_kind: "gardening".to_owned(),
            quorum: speaking.try_into().unwrap(),
            responses: question.answers.iter().zip(1..).map(|(answer, at)| response(answer, at)).collect(),
            agents: question.answers.iter().map(known).collect(),
            ..Inputs::default()
        };
        let dossier = Dossier::compute(&inputs, &Rules::current().unwrap()).unwrap();
        let status = dossier.outcome.status.as_str().to_owned();
        Answered { question: question.text, status, dossier: Some(dossier) }
    }

    #[test]
    fn the_questions_and_the_dossier_of_the_last_are_shown() {
        let consulted = Consulted { answers: QUESTIONS.iter().map(answered).collect() };
        assert!(consulted.problems().is_empty());
        let text = consulted.text();
        let words = |start: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(start));
            line.unwrap_or_default().split_whitespace().collect::<Vec<_>>()
        };
        // Four agents of one family count as little more than one; two against two is a tie.
        for (status, score, question) in
            [("unvalidated", "0.570", "May"), ("disputed", "0.400", "In"), ("validated", "0.724", "How")]
        {
            assert_eq!(words(status)[..3], [status, score, question], "{text}");
        }
        let (table, dossier) = text.split_once("`memfleet consensus explain NODE` prints:\n\n").unwrap();
        assert!(table.contains("10 experts was asked 3 questions") && table.contains(" / "), "{text}");
        assert!(dossier.starts_with("How many cubic metres of soil"), "{text}");
        for line in
            ["  VALIDATED ", "score 0.72413", "  5.25 independent voters agree, with a lead of 68.0 %."]
        {
            assert!(dossier.contains(line), "{line}: {text}");
        }
        // thyme repeats basil, being of its family and resting on its sum; yarrow abstains.
        let thyme = ["thyme", "1", "new", "0.70", "0.90", "1.00", "0.25", "0.25", "gpt"];
        assert_eq!(words("thyme"), thyme, "{text}");
        assert_eq!(words("moss")[..3], ["moss", "2", "new"], "{text}");
        assert_eq!(words("yarrow").last(), Some(&"abstained"), "{text}");
        assert!(dossier.contains("sum:basil") && dossier.contains(&id("soil").to_string()), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 160), "{text}");
    }

    #[test]
    fn a_question_without_a_dossier_is_a_problem() {
        let unread = Answered { question: "Why?", status: "pending".to_owned(), dossier: None };
        let consulted = Consulted { answers: vec![unread] };
        assert_eq!(consulted.problems(), [r#"no dossier for "Why?""#]);
    }
}
