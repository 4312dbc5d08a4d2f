//! Anonymisation: the person is erased, and what the rows counted is in sums over all who were anonymised.

use context_writer::ContextWriter;
use diesel_async::SimpleAsyncConnection;
use serde_json::Value;
use testkit::{Fixture, session, user};

use crate::support::erasure::{
    audit_verifies, finish, json, killed_at, privacy, receipt, rows_of, rows_of_others, rows_with,
    with_receipts,
};
use crate::support::privacy::fill;

const PERSON: i32 = 77_003;
const CANARY: &str = "canary-of-77003-";

async fn filled(users: &[i32]) -> (Fixture, tempfile::TempDir) {
    let mut fixture = Fixture::new().await;
    let receipts = with_receipts(&mut fixture);
    let accounts = users.iter().flat_map(|id| [user(*id), session(*id, "s")]);
    fixture.process(ContextWriter, accounts.collect::<Vec<_>>()).await;
    for id in users {
        fill(&fixture, *id, &format!("canary-of-{id}-")).await;
    }
    (fixture, receipts)
}

async fn anonymise(fixture: &Fixture, user: i32) -> Value {
    let user = user.to_string();
    json(fixture, &["anonymise", &user, "--reason", "a letter", "--yes", "--wait"]).await
}

/// All sums, also those of few persons.
async fn sums(fixture: &Fixture) -> Vec<String> {
    fixture
        .lines(
            "concat_ws(' ', statistic, month, label, persons, amount) FROM anonymous_statistics ORDER BY 1",
        )
        .await
}

/// What the sums of one person must be, of three statistics that are counted here in another way.
async fn expected(fixture: &Fixture, user: i32) -> Vec<String> {
    let of = |name: &str, sum: &str, label: &str, table: &str| {
        format!(
            "SELECT concat_ws(' ', '{name}', to_char(min(created_at AT TIME ZONE 'UTC'), 'YYYY-MM-01'), {label}, 1, {sum}) AS line
             FROM {table} WHERE user_id = {user} GROUP BY {label}, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM')"
        )
    };
    let outcome = "chat_mode || CASE success WHEN true THEN ' succeeded' ELSE ' failed' END";
    let all = [
        of("sessions", "count(*)", "chat_mode::text", "chat_mode_sessions"),
        of("decision_tokens", "sum(tokens_used)", outcome, "router_decision_log"),
        of("events", "count(*)", "event_type::text", "blackboard_events"),
    ];
    fixture.lines(&format!("line FROM ({}) AS all_of_them ORDER BY 1", all.join(" UNION ALL "))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sums_stay_and_the_person_does_not() {
    let (fixture, receipts) = filled(&[1, 77, PERSON]).await;
    fixture
        .execute(&format!("UPDATE router_decision_log SET tokens_used = 12 WHERE user_id = {PERSON}"))
        .await;
    let expected = expected(&fixture, PERSON).await;
    assert!(
        expected.iter().any(|line| line.starts_with("decision_tokens") && line.ends_with(" 1 12")),
        "{expected:?}"
    );
    let of_person = rows_of(&fixture, PERSON).await;
    let of_others = rows_of_others(&fixture, PERSON).await;

    let done = anonymise(&fixture, PERSON).await;
    assert_eq!(done["status"], "completed");
    let file = receipts.path().join(format!("{}.json", done["request"].as_str().expect("an id")));
    assert_eq!(receipt(&file)["body"]["kind"], "anonymise");
    let verified = privacy(&fixture, &["verify", file.to_str().expect("a path")]).await;
    assert!(verified.is_success(), "{}", verified.all());

    assert!(rows_of(&fixture, PERSON).await.is_empty());
    assert_eq!(rows_with(&fixture, CANARY).await, Vec::<String>::new());
    assert_eq!(rows_of_others(&fixture, PERSON).await, of_others);
    let sums = sums(&fixture).await;
    for line in &expected {
        assert!(sums.contains(line), "{line} is not in {sums:?}");
    }
    let names =
        ["agent_contexts", "consensus_tasks", "contexts", "decisions", "delegations", "feedback", "memories"];
    for name in names {
        assert!(sums.iter().any(|line| line.starts_with(&format!("{name} "))), "{name} is not in {sums:?}");
    }
    assert!(of_person.len() > 20, "{of_person:?}");
    audit_verifies(&fixture).await;
}

/// Whoever has the rows from before finds none of their ids, times and texts in the sums.
#[tokio::test(flavor = "multi_thread")]
async fn no_row_from_before_leads_to_a_sum() {
    let (fixture, _receipts) = filled(&[1, PERSON]).await;
    let values = "SELECT v.value #>> '{}' AS value FROM (
        SELECT to_jsonb(t) AS row FROM chat_mode_sessions t WHERE user_id = 77003
        UNION ALL SELECT to_jsonb(t) FROM simple_chat_context t WHERE user_id = 77003
        UNION ALL SELECT to_jsonb(t) FROM router_decision_log t WHERE user_id = 77003
        UNION ALL SELECT to_jsonb(t) FROM blackboard_events t WHERE user_id = 77003
        UNION ALL SELECT to_jsonb(t) FROM unified_memory_vectors t WHERE user_id = 77003) AS r, jsonb_each(r.row) AS v";
    let values = fixture
        .lines(&format!("value FROM ({values}) AS all_of_them WHERE length(value) >= 16 ORDER BY 1"))
        .await;
    assert!(values.len() > 20, "{values:?}");
    anonymise(&fixture, PERSON).await;
    let sums = sums(&fixture).await;
    assert!(!sums.is_empty());
    for value in values {
        assert!(!sums.iter().any(|line| line.contains(&value)), "{value} is in the sums");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_of_few_persons_are_not_shown() {
    let persons = [1, 2, 3, 4, 5];
    let (fixture, _receipts) = filled(&persons).await;
    for person in &persons[..4] {
        anonymise(&fixture, *person).await;
    }
    let shown = json(&fixture, &["statistics"]).await;
    assert_eq!(shown["statistics"], serde_json::json!([]));
    assert!(shown["left_out"].as_i64() > Some(5), "{shown}");
    anonymise(&fixture, 5).await;
    let shown = json(&fixture, &["statistics"]).await;
    let sessions = shown["statistics"].as_array().expect("sums").iter();
    let sessions: Vec<&Value> = sessions.filter(|one| one["statistic"] == "sessions").collect();
    assert!(sessions.iter().any(|one| one["persons"] == 5), "{shown}");
    let ended = privacy(&fixture, &["statistics"]).await;
    assert!(ended.out.contains("sessions") && ended.out.contains("are not shown"), "{}", ended.all());
}

/// Whenever the process dies, a person is in the sums once.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_counted_twice() {
    let (fixture, _receipts) = filled(&[1, PERSON]).await;
    let user = PERSON.to_string();
    let filed = json(&fixture, &["anonymise", &user, "--reason", "a letter", "--yes"]).await;
    let id = filed["request"].as_str().expect("an id").to_owned();
    for point in ["erase.count.done:1", "erase.count.after:1", "erase.rows.done:1"] {
        killed_at(&fixture, point).await;
    }
    finish(&fixture, &id).await;
    let sessions = "anonymous_statistics WHERE statistic = 'sessions' AND persons <> 1";
    assert_eq!(fixture.count(sessions).await, 0);
    assert!(fixture.count("anonymous_statistics").await > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_erased_or_anonymised_and_not_both() {
    let (fixture, _receipts) = filled(&[1]).await;
    let ended = privacy(&fixture, &["anonymise", "9", "--reason", "a letter", "--yes"]).await;
    assert!(!ended.is_success() && ended.err.contains("there is no user 9"), "{}", ended.all());
    json(&fixture, &["anonymise", "1", "--reason", "a letter", "--yes"]).await;
    for removal in ["erase", "anonymise"] {
        let ended = privacy(&fixture, &[removal, "1", "--reason", "a letter", "--yes"]).await;
        assert!(!ended.is_success() && ended.err.contains("is under way"), "{}", ended.all());
    }
    let listed = json(&fixture, &["list"]).await;
    let requests = listed["requests"].as_array().expect("requests").iter();
    let types: Vec<_> = requests.map(|one| one["request_type"].as_str().expect("a type")).collect();
    assert!(types.contains(&"anonymise") && !types.contains(&"erase"), "{types:?}");
    fixture.execute("DELETE FROM privacy_requests").await;
    assert_eq!(
        fixture.lines("anonymize_user_data(n) IS NOT NULL FROM (VALUES (1)) AS v (n)").await,
        ["true"]
    );
    assert_eq!(fixture.count("privacy_requests WHERE request_type = 'anonymise' AND user_id = 1").await, 1);
    let refused = fixture.connection().await.batch_execute("SELECT anonymize_user_data(9)").await;
    let refused = refused.expect_err("nobody").to_string();
    assert!(refused.contains("there is no user 9"), "{refused}");
}
