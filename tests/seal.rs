//! Seals: whoever changes the trail afterwards is found out, also a superuser of the database.

use std::path::Path;
use std::process::Output;

use audit::anchor::Anchors;
use audit::{Accepted, Difference, Excuse, Report, seal_all, verify};
use context_writer::ContextWriter;
use diesel_async::SimpleAsyncConnection;
use testkit::{DEADLINE, Fixture, context, eventually, session, user};
use trust::{PrivateKey, PublicKey};

use crate::support::program::{memfleet, output, text};

/// A fixture whose trail has three seals: of the users, of sessions and contexts, and of more contexts.
pub async fn sealed() -> Fixture {
    let fixture = Fixture::new().await;
    // What migrations have written would have a seal of its own if other tests hold back the rest.
    fixture.execute("DELETE FROM audit.audit_log; DELETE FROM audit.subjects WHERE user_id = 0").await;
    let worker = fixture.run(ContextWriter);
    for requests in [
        vec![user(1), user(2)],
        vec![session(1, "s"), context(1, "s", "a", 1), context(1, "s", "b", 1), context(1, "s", "c", 1)],
        vec![context(1, "s", "a", 2), context(1, "s", "b", 2)],
    ] {
        fixture.publish(requests).await;
        fixture.drained::<ContextWriter>().await;
        seal_everything(&fixture).await;
    }
    worker.stop().await.expect("a clean end");
    let report = report(&fixture).await;
    assert_eq!((report.findings.len(), report.seals, report.anchored, report.unsealed), (0, 3, Some(3), 0));
    // Each request has a row and an event, and each user a subject; the migration's user 0 came before there was a trail.
    assert_eq!(report.rows, 2 * 8 + 2);
    fixture
}

/// The anchors of the fixture's broker.
pub fn anchors(fixture: &Fixture) -> Anchors {
    Anchors::new(fixture.jetstream.clone())
}

/// The key that signs the fixture's seals.
pub fn key(fixture: &Fixture) -> PrivateKey {
    PrivateKey::read(Path::new(fixture.settings.audit.seal_key_file.as_ref().expect("a key"))).expect("a key")
}

/// Seals all rows of the trail, under one seal. Transactions of other tests on the same server would hold back some of them
/// for a second one; they end.
pub async fn seal_everything(fixture: &Fixture) {
    let newest =
        fixture.lines("pg_snapshot_xmax(pg_current_snapshot()) FROM (VALUES (1)) AS one").await.remove(0);
    let all_ended =
        format!("(VALUES (1)) AS one WHERE pg_snapshot_xmin(pg_current_snapshot()) >= '{newest}'::xid8");
    eventually("older transactions have ended", async || {
        (fixture.count(&all_ended).await == 1).then_some(())
    })
    .await;
    eventually("everything is sealed", async || {
        seal_all(&mut fixture.connection().await, &anchors(fixture), &key(fixture), &[])
            .await
            .expect("seals");
        (report(fixture).await.unsealed == 0).then_some(())
    })
    .await;
}

/// What a verification with all keys and anchors finds.
pub async fn report(fixture: &Fixture) -> Report {
    let keys = [key(fixture).public()];
    verify(&mut fixture.connection().await, Some(&anchors(fixture)), Accepted::of_seals(&keys))
        .await
        .expect("a report")
}

/// As the mightiest user of the database would, with no trigger to tell of it.
pub async fn tamper(fixture: &Fixture, sql: &str) {
    fixture.execute(&format!("SET session_replication_role = replica; {sql}")).await;
}

/// The id of a row of the trail: of an update, of which there are two.
const UPDATED: &str = "SELECT id FROM audit.audit_log WHERE operation = 'UPDATE' ORDER BY id LIMIT 1";

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_row_is_named() {
    let fixture = sealed().await;
    let row = fixture.lines("id FROM audit.audit_log WHERE operation = 'UPDATE' ORDER BY id LIMIT 1").await;
    for (edit, back) in [
        ("service = 'other'", "service = 'test'"),
        ("role_name = 'nobody'", "role_name = 'w_context_writer'"),
        (
            "changed_columns = changed_columns || '{x}'",
            "changed_columns = array_remove(changed_columns, 'x')",
        ),
        (
            "occurred_at = occurred_at - interval '1 microsecond'",
            "occurred_at = occurred_at + interval '1 microsecond'",
        ),
        ("subject_token = NULL", "subject_token = (SELECT token FROM audit.subjects WHERE user_id = 1)"),
        ("row_digest_after = sha256(row_digest_after)", ""),
    ] {
        tamper(&fixture, &format!("UPDATE audit.audit_log SET {edit} WHERE id = ({UPDATED})")).await;
        let found = report(&fixture).await.findings;
        assert_eq!(found.len(), 1, "{edit}: {found:?}");
        assert_eq!(found[0].seal, Some(3), "{edit}");
        assert_eq!(found[0].row.map(|row| row.to_string()).as_ref(), row.first(), "{edit}");
        assert!(found[0].to_string().contains("was changed after it was sealed"), "{}", found[0]);
        if !back.is_empty() {
            tamper(&fixture, &format!("UPDATE audit.audit_log SET {back} WHERE id = ({UPDATED})")).await;
            assert_eq!(report(&fixture).await.findings, [], "{back}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_row_is_named() {
    let fixture = sealed().await;
    let row = fixture.lines("id FROM audit.audit_log WHERE operation = 'UPDATE' ORDER BY id LIMIT 1").await;
    tamper(&fixture, &format!("DELETE FROM audit.audit_log WHERE id = ({UPDATED})")).await;
    let found = report(&fixture).await.findings;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].row.map(|row| row.to_string()).as_ref(), row.first());
    assert!(
        found[0].leaf.is_some() && found[0].to_string().contains("is missing from its place"),
        "{}",
        found[0]
    );
    // The first broken one comes first, and each broken seal is told of.
    tamper(&fixture, "DELETE FROM audit.audit_log").await;
    let found = report(&fixture).await.findings;
    let mut seals: Vec<i64> = found.iter().filter_map(|finding| finding.seal).collect();
    seals.dedup();
    assert_eq!((seals, found.len()), (vec![1, 2, 3], 8), "user 0 came before there was a trail");
    // Its first leaves are the events, whose ids are made before the effect. Tokens are random.
    assert!(found[0].leaf.is_some_and(|leaf| leaf >= 2), "{:?}", found[0].leaf);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_dated_back_is_named() {
    let fixture = sealed().await;
    let copy = |change: &str| {
        format!(
            "INSERT INTO audit.audit_log SELECT (r).* FROM (SELECT jsonb_populate_record(l, {change}) AS r
             FROM audit.audit_log l WHERE id = ({UPDATED})) AS c"
        )
    };
    // Among the rows of a transaction that is sealed, after its last one, and under another id.
    tamper(&fixture, &copy("jsonb_build_object('id', uuid7_at(now()))")).await;
    let found = report(&fixture).await.findings;
    assert!(found.len() == 1 && found[0].to_string().contains("with an earlier position"), "{found:?}");
    tamper(&fixture, "DELETE FROM audit.audit_log WHERE id = (SELECT max(id::text)::uuid FROM audit.audit_log WHERE id::text LIKE '%-0000-0000-000000000000')").await;
    assert_eq!(report(&fixture).await.findings, []);
    // No transaction has such a number, but nothing keeps a superuser from writing it.
    for transaction in [3, 0, -7, i64::MIN] {
        tamper(&fixture, &copy(&format!("jsonb_build_object('transaction_id', {transaction})"))).await;
        let found = report(&fixture).await.findings;
        assert!(
            found.len() == 1
                && found[0].seal == Some(1)
                && found[0].to_string().contains("with an earlier position"),
            "{transaction}: {found:?}"
        );
        tamper(&fixture, &format!("DELETE FROM audit.audit_log WHERE transaction_id = {transaction}")).await;
    }
    // As a new row that only tells an old time it is sealed with the new ones, and stands out there.
    let old = "jsonb_build_object('occurred_at', now() - interval '1 week', 'transaction_id', pg_current_xact_id()::text::bigint)";
    tamper(&fixture, &copy(old)).await;
    seal_everything(&fixture).await;
    let found = report(&fixture).await.findings;
    assert!(
        found.len() == 1
            && found[0].seal == Some(4)
            && found[0].to_string().contains("its timestamp is more than a day away"),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_changed_places_are_named() {
    let fixture = sealed().await;
    // Two rows swap their ids, and two their transactions: the order of the trail is another one.
    for column in ["id", "transaction_id"] {
        let swap = format!(
            "WITH pair AS (SELECT min({column}::text) AS a, max({column}::text) AS b FROM audit.audit_log WHERE table_name = 'simple_chat_context')
             UPDATE audit.audit_log l SET {column} = (CASE l.{column}::text WHEN pair.a THEN pair.b ELSE pair.a END)::{kind}
             FROM pair WHERE l.{column}::text IN (pair.a, pair.b) AND l.table_name = 'simple_chat_context'",
            kind = if column == "id" { "uuid" } else { "bigint" }
        );
        tamper(&fixture, &swap).await;
        let found = report(&fixture).await.findings;
        assert!(!found.is_empty() && found[0].row.is_some(), "{column}: {found:?}");
        tamper(&fixture, &swap).await;
        assert_eq!(report(&fixture).await.findings, [], "{column} swapped back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trail_cut_off_is_found_out_by_what_the_broker_knows() {
    let fixture = sealed().await;
    tamper(
        &fixture,
        "DELETE FROM audit.audit_log WHERE transaction_id > (SELECT through_transaction FROM audit.seals WHERE number = 2);
         DELETE FROM blackboard_events WHERE transaction_id > (SELECT through_transaction FROM audit.seals WHERE number = 2);
         DELETE FROM audit.seals WHERE number = 3",
    )
    .await;
    let found = report(&fixture).await.findings;
    assert!(found.len() == 1 && found[0].to_string().contains("NATS has anchors up to seal 3"), "{found:?}");
    let keys = [key(&fixture).public()];
    let alone =
        verify(&mut fixture.connection().await, None, Accepted::of_seals(&keys)).await.expect("a report");
    assert_eq!(alone.findings, [], "the database alone cannot know it");
    // Whoever holds the key too makes another third seal; the broker knows the true one.
    fixture.process(ContextWriter, [context(1, "s", "d", 1)]).await;
    let empty = Fixture::new().await;
    eventually("everything is sealed", async || {
        let anchors = anchors(&empty);
        seal_all(&mut fixture.connection().await, &anchors, &key(&fixture), &[]).await.expect("seals");
        (report(&fixture).await.unsealed == 0).then_some(())
    })
    .await;
    let found = report(&fixture).await.findings;
    assert!(found.len() == 1 && found[0].to_string().contains("an anchor of another seal"), "{found:?}");
    let stream = fixture.jetstream.get_stream("SEAL").await.expect("the stream");
    stream.purge().await.expect_err("nothing is ever removed from it");
    stream.delete_message(3).await.expect_err("nothing is ever removed from it");
}

#[tokio::test(flavor = "multi_thread")]
async fn seals_cannot_be_changed_removed_or_made_by_others() {
    let fixture = sealed().await;
    for (change, says) in [
        (
            "UPDATE audit.seals SET root = sha256(root) WHERE number = 2",
            "its signature is not a valid signature of the key test",
        ),
        (
            "UPDATE audit.seals SET sealed_at = sealed_at - interval '1 day' WHERE number = 2",
            "its signature is not",
        ),
        ("UPDATE audit.seals SET leaves = substr(leaves, 50) WHERE number = 2", "its signature is not"),
        (
            "UPDATE audit.seals SET leaves = set_byte(leaves, 39, get_byte(leaves, 39) # 1) WHERE number = 2",
            "its list of rows",
        ),
        (
            "UPDATE audit.seals SET leaves = set_byte(leaves, 0, get_byte(leaves, 0) # 8) WHERE number = 2",
            "its signature is not",
        ),
        (
            "UPDATE audit.seals SET key_name = 'mine' WHERE number = 2",
            "the key mine, which is not among the given public keys",
        ),
        ("DELETE FROM audit.seals WHERE number = 2", "seal 2 is missing"),
        ("DELETE FROM audit.seals WHERE number < 3", "seals 1 to 2 are missing"),
        ("DELETE FROM audit.seals", "the last seals are missing"),
        (
            "DELETE FROM audit.seals WHERE number = 2; UPDATE audit.seals SET number = 2 WHERE number = 3",
            "its signature is not",
        ),
    ] {
        let statement = format!("BEGIN; {change}");
        let mut connection = fixture.connection().await;
        connection.batch_execute(&statement).await.expect("a change");
        let keys = [key(&fixture).public()];
        let report = verify(&mut connection, Some(&anchors(&fixture)), Accepted::of_seals(&keys))
            .await
            .expect("a report");
        let first = report.findings.first().unwrap_or_else(|| panic!("{change} is not found out"));
        assert!(first.to_string().contains(says), "{change}: {first}");
        connection.batch_execute("ROLLBACK").await.expect("its end");
    }
    // A whole trail that is sealed anew with another key has that key's signatures.
    let other = [PrivateKey::generate("test").expect("a key").public()];
    let mut connection = fixture.connection().await;
    let found = verify(&mut connection, None, Accepted::of_seals(&other)).await.expect("a report").findings;
    assert!(found[0].to_string().contains("its signature is not"), "{found:?}");
    let none: [PublicKey; 0] = [];
    assert_eq!(
        verify(&mut connection, None, Accepted::of_seals(&none)).await.expect("a report").findings.len(),
        3
    );
}

/// There is something to seal at any time, and yet each call comes to its end.
#[tokio::test(flavor = "multi_thread")]
async fn sealing_ends_while_others_write() {
    let fixture = sealed().await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut connection = fixture.connection().await;
    let writer = tokio::spawn(async move {
        let mut written = 0;
        while !*stopped.borrow() {
            let id = 100 + written;
            let insert = format!("INSERT INTO users (id, username, email) VALUES ({id}, 'u{id}', 'e{id}')");
            connection.batch_execute(&insert).await.expect("a row");
            written += 1;
        }
        written
    });
    let mut connection = fixture.connection().await;
    for _ in 0..3 {
        let (anchors, key) = (anchors(&fixture), key(&fixture));
        let sealing = seal_all(&mut connection, &anchors, &key, &[]);
        tokio::time::timeout(DEADLINE, sealing).await.expect("an end").expect("seals");
    }
    stop.send(true).expect("a writer");
    assert!(writer.await.expect("no panic") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_sealed_itself() {
    let fixture = sealed().await;
    let target = "id = (SELECT id FROM blackboard_events WHERE user_id = 1 ORDER BY id LIMIT 1)";
    for change in [
        format!("UPDATE blackboard_events SET event_payload = '{{}}' WHERE {target}"),
        format!("UPDATE blackboard_events SET user_id = 2 WHERE {target}"),
        format!("DELETE FROM blackboard_events WHERE {target}"),
        "UPDATE audit.subjects SET digest_key = sha256(digest_key) WHERE user_id = 1".to_owned(),
    ] {
        let mut connection = fixture.connection().await;
        let hidden = format!("SET session_replication_role = replica; BEGIN; {change}");
        connection.batch_execute(&hidden).await.expect("a change");
        let keys = [key(&fixture).public()];
        let found =
            verify(&mut connection, None, Accepted::of_seals(&keys)).await.expect("a report").findings;
        assert!(found.iter().any(|one| one.table == Some("blackboard_events")), "{change}: {found:?}");
    }
    // Nothing of the kind is in the trail.
    tamper(&fixture, &format!("UPDATE blackboard_events SET event_payload = '{{}}' WHERE {target}")).await;
    let report = report(&fixture).await;
    assert_eq!((report.edited, report.missing, report.excused_without_proof), (1, 0, 0));
    assert_eq!(report.findings[0].excuse, Some(Excuse::Absent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_trail_about_an_event_excuses_nothing() {
    let fixture = sealed().await;
    // In the open, so that the triggers write the rows of the trail that once excused it.
    let target = "id IN (SELECT id FROM blackboard_events WHERE user_id = 1 ORDER BY id LIMIT 2)";
    fixture.execute(&format!("UPDATE blackboard_events SET event_payload = '{{}}' WHERE {target}")).await;
    fixture.execute(&format!("DELETE FROM blackboard_events WHERE user_id = 1 AND NOT {target}")).await;
    // One more with no trace of it.
    tamper(&fixture, "DELETE FROM blackboard_events WHERE user_id = 2").await;
    seal_everything(&fixture).await;
    let report = report(&fixture).await;
    assert_eq!(
        (report.edited, report.missing, report.excused_without_proof, report.accounted),
        (2, 6, 7, 0),
        "user 1 had seven events, and user 2 one"
    );
    assert_eq!((report.added, report.misdated, report.broken_seals), (0, 0, 3));
    assert_eq!(report.findings.len(), 8, "{:?}", report.findings);
    let told = |difference, excused: bool| {
        let told = report.findings.iter().filter(|one| {
            one.difference == Some(difference)
                && matches!(one.excuse, Some(Excuse::WithoutProof(_))) == excused
        });
        told.count()
    };
    assert_eq!((told(Difference::Edited, true), told(Difference::Missing, true)), (2, 5));
    assert_eq!((told(Difference::Edited, false), told(Difference::Missing, false)), (0, 1));
    let edited = report.findings.iter().find(|one| one.difference == Some(Difference::Edited));
    let Some(Excuse::WithoutProof(row)) = edited.and_then(|one| one.excuse.clone()) else {
        panic!("{edited:?}");
    };
    assert_eq!((row.operation.as_str(), row.role.as_str()), ("update", "memfleet"));

    let broken = program(&fixture, &["verify"]).await;
    assert_eq!(broken.status.code(), Some(1));
    let said = text(&broken.stdout);
    assert!(
        said.contains("; excused without proof by an audit row (delete by role memfleet, no service"),
        "{said}"
    );
    assert!(said.contains("; no audit row tells of it\n"), "{said}");
    for line in [
        "edited                           2\n",
        "missing                          6\n",
        "excused with proof               0\n",
        "excused without proof            7\n",
    ] {
        assert!(said.contains(line), "{line}{said}");
    }
    let json = text(&program(&fixture, &["verify", "--json"]).await.stdout);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["edited"], &json["accounted"]), (&2.into(), &0.into()));
    let excuses = json["findings"].as_array().expect("findings").iter().map(|one| &one["excuse"]["kind"]);
    assert_eq!(excuses.filter(|kind| *kind == "without_proof").count(), 7, "{json}");

    // Neither can the rows of the trail be taken away again.
    tamper(&fixture, "DELETE FROM audit.audit_log WHERE operation = 'DELETE'").await;
    assert_eq!(self::report(&fixture).await.missing, 6 + 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_not_finished_holds_back_what_comes_after_it() {
    let fixture = sealed().await;
    let mut open = fixture.connection().await;
    open.batch_execute("BEGIN; UPDATE users SET username = 'open' WHERE id = 1").await.expect("a statement");
    fixture.execute("UPDATE users SET username = 'later' WHERE id = 2").await;
    let (seals, rows) = seal_all(&mut fixture.connection().await, &anchors(&fixture), &key(&fixture), &[])
        .await
        .expect("nothing");
    assert_eq!((seals, rows), (0, 0));
    assert_eq!(report(&fixture).await.unsealed, 1);
    open.batch_execute("COMMIT").await.expect("its end");
    seal_everything(&fixture).await;
    let report = report(&fixture).await;
    assert_eq!((report.findings, report.rows), (vec![], 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sealers_make_one_chain_and_large_batches_are_cut() {
    let fixture = sealed().await;
    fixture
        .execute("INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1000, 13499) AS n")
        .await;
    eventually("all are sealed", async || {
        let (fixture, key) = (&fixture, &key(&fixture));
        let sealing = (0..4).map(|_| async move {
            seal_all(&mut fixture.connection().await, &anchors(fixture), key, &[]).await.expect("seals")
        });
        futures::future::join_all(sealing).await;
        (report(fixture).await.unsealed == 0).then_some(())
    })
    .await;
    let report = report(&fixture).await;
    assert_eq!(
        (report.findings, report.rows, report.seals, report.anchored),
        (vec![], 18 + 2 * 12_500, 6, Some(6))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_brokers_stream_nothing_is_sealed() {
    let fixture =
        Fixture::with_topology(|topology| topology.streams.retain(|stream| stream.name != "SEAL")).await;
    fixture.execute("DELETE FROM audit.subjects WHERE user_id = 0").await;
    fixture.execute("INSERT INTO users (id, username, email) VALUES (1, 'u', 'e')").await;
    let error = seal_all(&mut fixture.connection().await, &anchors(&fixture), &key(&fixture), &[])
        .await
        .expect_err("no stream");
    assert!(error.to_string().contains("`memfleet nats apply` creates it"), "{error}");
    assert_eq!(fixture.count("audit.seals").await, 0, "a seal that cannot be anchored is not written");
    let shipped = topology::Topology::shipped().expect("the shipped streams");
    topology::apply(&fixture.jetstream, &shipped).await.expect("streams");
    seal_everything(&fixture).await;
    assert_eq!(report(&fixture).await.anchored, Some(1));
}

/// Runs `memfleet audit`.
pub async fn program(fixture: &Fixture, arguments: &[&str]) -> Output {
    output(memfleet(fixture, &[&["audit"], arguments].concat())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_seals_verifies_and_tells() {
    let mut fixture = sealed().await;
    fixture.execute("UPDATE users SET username = 'x' WHERE id = 1").await;
    eventually("it is sealed", async || {
        let done = program(&fixture, &["seal"]).await;
        assert!(done.status.success(), "{}", text(&done.stderr));
        text(&done.stdout).contains("sealed 1 rows under 1 seals").then_some(())
    })
    .await;
    let fine = program(&fixture, &["verify"]).await;
    let said = text(&fine.stdout);
    assert!(fine.status.success() && said.ends_with("All sealed rows are unchanged.\n"), "{said}");
    assert!(said.contains("rows sealed                     19\n"), "{said}");

    let trail = text(&program(&fixture, &["trail", "--user", "1", "--json"]).await.stdout);
    let trail: serde_json::Value = serde_json::from_str(&trail).expect("JSON");
    let deeds = trail["deeds"].as_array().expect("deeds");
    assert_eq!((&trail["user"], deeds.len()), (&serde_json::json!(1), 15));
    assert_eq!(
        (&deeds[0]["operation"], &deeds[0]["details"]),
        (&"update".into(), &serde_json::json!(["username"]))
    );
    let table = text(&program(&fixture, &["trail", "--user", "1", "--limit", "2"]).await.stdout);
    assert_eq!(table.lines().count(), 4, "{table}");
    let nobody = program(&fixture, &["trail", "--user", "77"]).await;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("the audit trail has no user 77"), "{}", text(&nobody.stderr));

    tamper(&fixture, &format!("DELETE FROM audit.audit_log WHERE id = ({UPDATED})")).await;
    let broken = program(&fixture, &["verify"]).await;
    assert_eq!(broken.status.code(), Some(1));
    assert!(text(&broken.stdout).starts_with("seal 3, leaf "), "{}", text(&broken.stdout));
    assert!(
        text(&broken.stderr).contains("the audit trail was changed after it was sealed"),
        "{}",
        text(&broken.stderr)
    );
    let json = text(&program(&fixture, &["verify", "--json", "--without-broker"]).await.stdout);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["findings"][0]["seal"], &json["anchored"]), (&3.into(), &serde_json::Value::Null));

    // Keys: the public half is enough to verify, and not to seal; a missing or wrong one is named.
    let private = fixture.settings.audit.seal_key_file.take().expect("a key");
    let public = text(&program(&fixture, &["key", "public", &private]).await.stdout);
    assert_eq!(public, key_line(&private));
    for (arguments, says) in [
        (["verify", "--json"].as_slice(), "audit.public_keys_file is not set"),
        (&["seal"], "audit.seal_key_file is not set"),
        (&["key", "generate", "No Name"], "with a name of 1 to 32 characters out of a-z 0-9 -"),
        (&["key", "public", "/nowhere/key"], "/nowhere/key cannot be read"),
    ] {
        let refused = program(&fixture, arguments).await;
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}");
        assert!(text(&refused.stderr).contains(says), "{arguments:?}: {}", text(&refused.stderr));
    }
    let made = text(&program(&fixture, &["key", "generate", "next"]).await.stdout);
    assert!(made.starts_with("next private ") && made.len() == 78, "{}", made.len());
    let both = format!("{public}{}", key_line(&fixture.key_file("next.key", &made)));
    fixture.settings.audit.public_keys_file = Some(fixture.key_file("seal.pub", &both));
    assert!(text(&program(&fixture, &["verify"]).await.stdout).starts_with("seal 3, leaf "));
}

fn key_line(private: &str) -> String {
    PrivateKey::read(Path::new(private)).expect("a key").public().line()
}
