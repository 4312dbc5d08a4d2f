//! Answers without a claim: texts that mean the same are one answer, by their vectors.

use config::EmbedderKind;
use serde_json::json;
use testkit::Fixture;

use crate::support::consensus::{Task, process, three_families, with_users};
use crate::vector_embedding::Server;

const DIMENSION: usize = 16;
const ORDERS: [&str; 3] = [
    "The wide river here is called Tagus",
    "Here the wide river is called Tagus",
    "The wide river here is called Tagus",
];

async fn ask(fixture: &Fixture, task: &Task, texts: [&str; 3]) {
    let mut requests = three_families(task.user);
    requests.push(task.delegate(&["a", "b", "c"], 3, json!({})));
    requests.extend(["a", "b", "c"].iter().zip(texts).map(|(id, text)| task.respond(id, text, json!({}))));
    process(fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_one_meaning_are_one_answer_and_a_negation_is_another() {
    let mut fixture = with_users([1, 2, 3]).await;
    let (without, same, negated) = (Task::of(1), Task::of(2), Task::of(3));
    // Without an embedder, texts are the same if they are equal.
    ask(&fixture, &without, ORDERS).await;
    let outcome = without.outcome(&fixture).await;
    assert!(outcome.starts_with("disputed "), "{outcome}");

    // It refuses one text, which is then compared by equality.
    let server = Server::refusing(DIMENSION, Some("unfit")).await;
    fixture.settings.embedder.kind = EmbedderKind::Http;
    fixture.settings.embedder.url = Some(server.url.clone());
    fixture.settings.embedder.model = Some("letters".to_owned());
    fixture.settings.embedder.dimension = Some(DIMENSION);
    ask(&fixture, &same, ORDERS).await;
    assert_eq!(same.outcome(&fixture).await, r#"validated 0.75 ["sufficient"]"#);
    let stored = format!(
        "concat_ws(' ', embedding_model, octet_length(embedding)) FROM agent_responses WHERE task_id = '{}'",
        same.id
    );
    assert_eq!(fixture.lines(&stored).await, vec![format!("letters {}", 4 * DIMENSION); 3]);
    let negation = [ORDERS[0], "The wide river here is not called Tagus", "An unfit text"];
    ask(&fixture, &negated, negation).await;
    let outcome = negated.outcome(&fixture).await;
    assert!(outcome.starts_with("disputed "), "{outcome}");
    let stored =
        format!("embedding IS NULL FROM agent_responses WHERE task_id = '{}' ORDER BY agent_id", negated.id);
    assert_eq!(fixture.lines(&stored).await, ["false", "false", "true"]);
}
