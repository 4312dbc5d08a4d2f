//! `memfleet consensus explain`: the dossier of a node, and its verification against all that it rests on.

use std::fmt::Write as _;

use consensus::{Agent, Dossier, Evidence, Inputs, Response, Rules, Standing};
use consensus_builder::ConsensusBuilder;
use context_writer::ContextWriter;
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, request, session, user};
use uuid::Uuid;

use crate::support::program::{Ended, memfleet, output};

async fn explain(fixture: &Fixture, arguments: &[&str]) -> Ended {
    output(memfleet(fixture, &[&["consensus", "explain"], arguments].concat())).await.into()
}

fn task_id(user: i32, number: u64) -> Uuid {
    Uuid::from_u64_pair(u64::from(user.unsigned_abs()), number)
}

/// The node of a task. Of both users it is the same.
fn node_id(number: u64) -> Uuid {
    Uuid::from_u64_pair(100, number)
}

fn response_id(user: i32, number: u64, agent: usize) -> Uuid {
    Uuid::from_u64_pair(u64::from(user.unsigned_abs()) + 1_000, number * 100 + agent as u64)
}

/// What three agents of three families answered to a question.
fn inputs(user: i32, number: u64) -> Inputs {
    let agents = ["ada", "bo", "cy"];
    let response = |(place, agent): (usize, &&str)| Response {
        id: response_id(user, number, place).to_string(),
        agent: (*agent).to_owned(),
        sequence: number * 10 + place as u64,
        text: format!("On port 80{number}0, says {agent}."),
        claim: Some(json!({ "port": 8000 + number * 10 }).to_string()),
        confidence: Some(0.75),
        embedding: None,
        evidence: vec![Evidence::Source(format!("doc:{agent}"))],
    };
    let family = |agent: &str| Agent { family: Some(format!("family of {agent}")), ..Agent::default() };
    Inputs {
        task: task_id(user, number).to_string(),
        question: format!("Which port does gateway {number} listen on?"),
        task_kind: "fact".to_owned(),
        quorum: 3,
        responses: agents.iter().enumerate().map(response).collect(),
        agents: agents.iter().map(|agent| ((*agent).to_owned(), family(agent))).collect(),
        standing: Standing::default(),
        causality: vec!["task.delegated".to_owned(), "response.recorded".to_owned()],
    }
}

/// The statements that store them, their dossier and their node.
fn rows(user: i32, number: u64) -> String {
    let (inputs, rules) = (inputs(user, number), Rules::current().unwrap());
    let dossier = Dossier::compute(&inputs, &rules).unwrap();
    let (task, node, quote) = (task_id(user, number), node_id(number), |text: &str| text.replace('\'', "''"));
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        })
    };
    let mut sql = format!(
        "INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title,
            quorum, asked, responded, answered)
            VALUES ('{task}', {user}, 'x', 'pm', '{}', 'fact', 'fact', 'k{number}', 'The port', 3, 3, 3, 3);",
        quote(&inputs.question)
    );
    for (place, response) in inputs.responses.iter().enumerate() {
        let delegation =
            Uuid::from_u64_pair(u64::from(user.unsigned_abs()) + 2_000, number * 100 + place as u64);
        let Response { id, agent, sequence, text, claim, .. } = response;
        write!(
            sql,
            "INSERT INTO task_delegations (id, user_id, session_id, pm_agent_id, target_agent_id, task_description, task_id)
                VALUES ('{delegation}', {user}, 'x', 'pm', '{agent}', 'd', '{task}');
             INSERT INTO agent_responses (id, user_id, task_delegation_id, task_id, agent_id, response_text, claim, evidence,
                confidence_score, stored_sequence)
                VALUES ('{id}', {user}, '{delegation}', '{task}', '{agent}', '{}', '{}', '{}', 0.75, {sequence});",
            quote(text),
            claim.as_deref().unwrap(),
            serde_json::to_string(&response.evidence).unwrap()
        )
        .unwrap();
    }
    write!(
        sql,
        "INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content, validation_status, consensus_score,
            task_id, rules_version, inputs_sha256)
            VALUES ('{node}', {user}, 'fact', 'k{number}', 'The port', '{{}}', 'validated', {}, '{task}', {version}, '{hash}');
         INSERT INTO consensus_dossiers (id, user_id, inputs, standing, dossier, rules_version, inputs_sha256)
            VALUES ('{node}', {user}, '\\x{}', '{}', '\\x{}', {version}, '{hash}');",
        dossier.score(),
        hex(&serde_json::to_vec(&inputs).unwrap()),
        serde_json::to_string(&inputs.standing).unwrap(),
        hex(&dossier.to_bytes().unwrap()),
        version = rules.id.version,
        hash = dossier.inputs_sha256,
    )
    .unwrap();
    sql
}

/// Two nodes of user 1, one of user 2, and one that is no answer to a task.
async fn filled() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), user(2), session(1, "x"), session(2, "x")]).await;
    fixture
        .execute(
            "INSERT INTO multi_agent_conversations (id, user_id, session_id, conversation_title)
                SELECT md5(u::text)::uuid, u, 'x', 'Ports' FROM unnest(ARRAY[1, 2]) AS u;
             INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content)
                VALUES ('00000000-0000-0000-0000-000000000009', 1, 'memory', 'm', 'A memory', '{}')",
        )
        .await;
    for (user, number) in [(1, 1), (1, 2), (2, 1)] {
        fixture.execute(&rows(user, number)).await;
    }
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dossier_is_shown_as_text_and_as_json() {
    let fixture = filled().await;
    let (one, two) = (node_id(1).to_string(), node_id(2).to_string());
    let shown = explain(&fixture, &[&two]).await;
    assert!(shown.is_success(), "{}", shown.err);
    for part in
        ["Which port does gateway 2 listen on?", "VALIDATED", "ANSWERS", "VOTES", "ORIGIN", "ada", "doc:bo"]
    {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
    let json = explain(&fixture, &[&two, "--json"]).await;
    let dossier: Dossier = serde_json::from_str(&json.out).expect("a dossier");
    assert_eq!(dossier, Dossier::compute(&inputs(1, 2), &Rules::current().unwrap()).unwrap());
    // Two users have a node of this id.
    let both = explain(&fixture, &[&one]).await;
    assert_eq!((both.code, both.out.as_str()), (Some(1), ""));
    assert!(both.err.contains("such as 1 and 2; name one with --user"), "{}", both.err);
    let second = explain(&fixture, &[&one, "--user", "2", "--json"]).await;
    assert!(second.out.contains(&task_id(2, 1).to_string()), "{}", second.all());
    for (arguments, problem) in [
        (vec![two.as_str(), "--user", "2"], "of user 2"),
        (vec!["00000000-0000-0000-0000-000000000008"], "there is no node"),
        (vec!["00000000-0000-0000-0000-000000000009"], "has no dossier: it is no answer of agents to a task"),
    ] {
        let ended = explain(&fixture, &arguments).await;
        assert_eq!(ended.code, Some(1), "{arguments:?}");
        assert!(ended.err.contains(problem), "{}", ended.err);
    }
    // Without a node there is nothing to show.
    assert_eq!(explain(&fixture, &[]).await.code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_dossier_or_all_are_verified() {
    let fixture = filled().await;
    let two = node_id(2).to_string();
    let one = explain(&fixture, &[&two, "--verify"]).await;
    assert!(one.is_success(), "{}", one.all());
    assert!(one.out.contains("VALIDATED"), "it is shown too: {}", one.out);
    assert!(one.out.ends_with("All dossiers are what their inputs and rules give.\n"), "{}", one.out);
    for (arguments, nodes) in
        [(vec!["--verify"], 3), (vec!["--verify", "--user", "1"], 2), (vec![&two, "--verify"], 1)]
    {
        let ended = explain(&fixture, &[arguments.as_slice(), &["--json"]].concat()).await;
        let report: Value = serde_json::from_str(&ended.out).expect("JSON");
        assert!(ended.is_success(), "{}", ended.err);
        assert_eq!(report, json!({ "nodes": nodes, "differing": 0, "findings": [] }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_is_found_and_named() {
    let fixture = filled().await;
    let (task, response) = (task_id(1, 2), response_id(1, 2, 1));
    let node = node_id(2);
    let of_row = format!("response {response}: ");
    let flip = |column: &str| {
        format!(
            "UPDATE consensus_dossiers SET {column} = set_byte({column}, 300, get_byte({column}, 300) # 1) WHERE user_id = 1 AND id = '{node}'"
        )
    };
    let on_node = |change: &str| {
        format!("UPDATE consensus_memory_nodes SET {change} WHERE user_id = 1 AND id = '{node}'")
    };
    let on_response =
        |change: &str| format!("UPDATE agent_responses SET {change} WHERE user_id = 1 AND id = '{response}'");
    let changes = [
        (flip("dossier"), "the dossier".to_owned()),
        (flip("inputs"), "inputs".to_owned()),
        (
            on_node("consensus_score = 0.999"),
            "the node has consensus_score 0.999, recomputed 0.75".to_owned(),
        ),
        (on_node("validation_status = 'rejected'"), "the node has validation_status".to_owned()),
        (on_node("inputs_sha256 = repeat('0', 64)"), "the node has inputs_sha256 0000".to_owned()),
        (on_response("response_text = 'On 9.'"), format!("{of_row}response_text")),
        (on_response("claim = '{\"port\": 9}'"), format!("{of_row}claim")),
        (on_response("evidence = '[]'"), format!("{of_row}evidence")),
        (on_response("confidence_score = 0.5"), format!("{of_row}confidence_score")),
        (on_response("is_counted = false"), format!("{of_row}is in the inputs, but has no row that counts")),
        (
            format!("UPDATE consensus_tasks SET question = 'Why?' WHERE user_id = 1 AND id = '{task}'"),
            format!("task {task}: question"),
        ),
        (
            format!("DELETE FROM consensus_dossiers WHERE user_id = 1 AND id = '{node}'"),
            "its dossier is gone".to_owned(),
        ),
    ];
    let kept = ["consensus_dossiers", "consensus_memory_nodes", "agent_responses", "consensus_tasks"];
    for (change, expected) in changes {
        for table in kept {
            fixture
                .execute(&format!(
                    "DROP TABLE IF EXISTS kept_{table}; CREATE TABLE kept_{table} AS SELECT * FROM {table}"
                ))
                .await;
        }
        fixture.execute(&change).await;
        let ended = explain(&fixture, &["--verify"]).await;
        assert_eq!(ended.code, Some(1), "{change}: {}", ended.out);
        assert!(ended.out.contains(&format!("user 1, node {node}: ")), "{change}: {}", ended.out);
        assert!(ended.out.contains(&expected), "{change}: {}", ended.out);
        assert!(ended.err.contains("the dossier of 1 node differs from what was recorded"), "{}", ended.err);
        // Of others nothing was changed.
        assert!(
            !ended.out.contains("user 2") && !ended.out.contains(&node_id(1).to_string()),
            "{}",
            ended.out
        );
        assert!(explain(&fixture, &["--verify", "--user", "2"]).await.is_success());
        restore(&fixture, &kept).await;
        assert!(explain(&fixture, &["--verify"]).await.is_success(), "{change} is taken back");
    }
}

/// Puts the rows back that were kept.
async fn restore(fixture: &Fixture, tables: &[&str]) {
    let mut sql = "SET session_replication_role = replica;".to_owned();
    for table in tables {
        write!(sql, "DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table};").unwrap();
    }
    sql.push_str("SET session_replication_role = origin");
    fixture.execute(&sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_see_everything_verifies_nothing() {
    let fixture = filled().await;
    let mut command = memfleet(&fixture, &["consensus", "explain", "--verify"]);
    command.env("MEMFLEET_POSTGRES__URL", fixture.settings.postgres.url_of("w_memory_reader"));
    let ended: Ended = output(command).await.into();
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
    assert!(
        ended.err.contains("row-level security hides dossiers from the role of postgres.url"),
        "{}",
        ended.err
    );
}

/// Three agents answer a question about a key.
fn answered(task: u64, key: &str, port: u32) -> Vec<RequestMessage> {
    let id = Uuid::from_u64_pair(7, task);
    let delegate = json!({
        "task_id": id, "session_id": "x", "pm_agent_id": "pm", "question": "Which port?", "agents": ["ada", "bo", "cy"],
        "quorum": 3, "node_type": "fact", "node_key": key,
    });
    let response = |(place, agent): (u64, &str)| {
        request(
            "response.submit",
            1,
            json!({
                "response_id": Uuid::from_u64_pair(8, task * 10 + place), "task_id": id, "session_id": "x", "agent_id": agent,
                "response_text": format!("On {port}, says {agent}."), "claim": { "port": port, "of": ["gateway"] },
                "confidence": 0.872_345_678_901_234_5, "evidence": [{ "source": format!("doc:{agent}") }],
            }),
        )
    };
    let responses = (0..).zip(["ada", "bo", "cy"]).map(response);
    [request("task.delegate", 1, delegate)].into_iter().chain(responses).collect()
}

/// What consensus-builder writes: answers that are superseded, disputed and rejected.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_worker_writes_is_what_it_recomputes_to() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "x")]).await;
    let configure = |agent: &str| {
        let body = json!({
            "agent_id": agent, "agent_type": "expert", "agent_role": "engineer", "assigned_llm": "large",
            "model_provider": "other", "model_family": format!("family of {agent}"),
        });
        request("agent.configure", 1, body)
    };
    let start = json!({ "session_id": "x", "conversation_title": "Ports" });
    let mut requests: Vec<RequestMessage> = ["ada", "bo", "cy"].map(configure).into();
    requests.push(request("expert-conversation.start", 1, start));
    // The second answer of a key takes the place of the first; a third contradicts it.
    requests.extend(
        [(1, "port", 8080), (2, "port", 8080), (3, "port", 9090), (4, "other", 80)]
            .into_iter()
            .flat_map(|(task, key, port)| answered(task, key, port)),
    );
    let builder = async || ConsensusBuilder::open(&fixture.settings).await.expect("a worker");
    fixture.process(builder().await, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let other =
        fixture.lines("id::text FROM consensus_memory_nodes WHERE node_key = 'other'").await.remove(0);
    let verdict = json!({ "node_id": other, "verdict": "reject", "given_by": "vera", "reason": "It moved." });
    fixture.process(builder().await, [request("verdict.give", 1, verdict)]).await;
    let statuses =
        fixture.lines("validation_status::text FROM consensus_memory_nodes ORDER BY validation_status").await;
    assert_eq!(statuses, ["validated", "disputed", "rejected", "superseded"]);
    let ended = explain(&fixture, &["--verify", "--json"]).await;
    let report: Value = serde_json::from_str(&ended.out).expect("JSON");
    assert_eq!(report, json!({ "nodes": 4, "differing": 0, "findings": [] }), "{}", ended.err);
    let shown = explain(&fixture, &[&other]).await;
    assert!(shown.out.contains("A verdict rejected this answer."), "{}", shown.all());
    // And what was changed by hand is found.
    fixture.execute("UPDATE agent_responses SET response_text = 'On 1.' WHERE agent_id = 'bo'").await;
    let ended = explain(&fixture, &["--verify"]).await;
    assert_eq!(
        ended.out.matches("response_text in the inputs is not that of its row").count(),
        4,
        "{}",
        ended.out
    );
    assert!(ended.err.contains("the dossiers of 4 nodes differ"), "{}", ended.err);
}
