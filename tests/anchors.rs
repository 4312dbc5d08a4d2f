//! What is anchored, and what becomes of seals that somebody hides, removes, forges or keeps from being anchored.

use audit::{Accepted, Leaf, Source, Statement, seal_all, verify};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::SimpleAsyncConnection;
use testkit::{Fixture, eventually};
use trust::PrivateKey;
use uuid::Uuid;

use crate::seal::{anchors, key, program, report, seal_everything, sealed, tamper};
use crate::support::program::{memfleet, output, text};

/// What the sealer says instead of sealing.
async fn refused(fixture: &Fixture) -> String {
    let sealed = seal_all(&mut fixture.connection().await, &anchors(fixture), &key(fixture), &[]).await;
    sealed.expect_err("nothing is sealed").to_string()
}

/// What `memfleet audit seal` says, which fails, and the warnings of `memfleet status`.
async fn said(fixture: &Fixture) -> (String, String) {
    let seal = program(fixture, &["seal"]).await;
    assert_eq!(seal.status.code(), Some(1), "{seal:?}");
    let status = output(memfleet(fixture, &["status", "--json"])).await;
    let status: serde_json::Value = serde_json::from_str(&text(&status.stdout)).expect("JSON");
    (text(&seal.stderr), status["postgres"]["warnings"].to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_in_the_place_of_the_seals_stops_the_sealer() {
    let fixture = sealed().await;
    fixture
        .execute(
            "ALTER TABLE audit.seals RENAME TO kept;
             CREATE VIEW audit.seals AS SELECT * FROM audit.kept WHERE number <= 3;
             UPDATE users SET username = 'x' WHERE id = 1",
        )
        .await;
    let (seal, status) = said(&fixture).await;
    for said in [&seal, &status] {
        assert!(said.contains("audit.seals is a view and not a table"), "{said}");
    }
    assert_eq!((fixture.count("audit.kept").await, fixture.stored("SEAL").await), (3, 3));
    let found = report(&fixture).await.findings;
    assert!(found[0].seal.is_none() && found[0].problem.contains("audit.seals is a view"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_or_a_trigger_on_the_seals_stops_the_sealer() {
    let fixture = sealed().await;
    for (change, says) in [
        ("CREATE RULE mine AS ON INSERT TO audit.seals DO INSTEAD NOTHING", "audit.seals has the rule mine"),
        (
            "DROP RULE mine ON audit.seals;
             CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER mine BEFORE INSERT ON audit.seals FOR EACH ROW EXECUTE FUNCTION nothing()",
            "audit.seals has the trigger mine",
        ),
    ] {
        fixture.execute(change).await;
        let error = refused(&fixture).await;
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sealer_adds_nothing_to_a_chain_that_was_cut_off() {
    let fixture = sealed().await;
    tamper(&fixture, "DELETE FROM audit.seals WHERE number = 3").await;
    fixture.execute("UPDATE users SET username = 'x' WHERE id = 1").await;
    let (seal, status) = said(&fixture).await;
    for said in [&seal, &status] {
        assert!(
            said.contains("seal 3 is wrong: NATS has its anchor and the database does not have it"),
            "{said}"
        );
    }
    tamper(&fixture, "DELETE FROM audit.seals").await;
    assert!(refused(&fixture).await.contains("seal 3 is wrong"));
    assert_eq!(fixture.count("audit.seals").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sealers_may_anchor_the_same_seals_at_once() {
    // The broker of the other fixture has no anchors yet.
    let (fixture, other) = (sealed().await, Fixture::new().await);
    let (key, anchors) = (key(&fixture), anchors(&other));
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(fixture.connection().await);
    }
    // Each sees that there is no anchor before it reads the seals.
    let mut open = fixture.connection().await;
    open.batch_execute("BEGIN; LOCK TABLE audit.seals").await.expect("a lock");
    let waits =
        "pg_locks JOIN pg_database d ON d.oid = database WHERE d.datname = current_database() AND NOT granted
        AND relation = 'audit.seals'::regclass";
    let sealing = connections.iter_mut().map(|connection| seal_all(connection, &anchors, &key, &[]));
    let (sealed, ()) = tokio::join!(futures::future::join_all(sealing), async {
        eventually("all wait", async || (fixture.count(waits).await == 4).then_some(())).await;
        open.batch_execute("COMMIT").await.expect("a commit");
    });
    for sealed in sealed {
        sealed.expect("whoever is later finds the anchor of the same seal");
    }
    assert_eq!(other.stored("SEAL").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_seal_is_not_anchored() {
    let fixture = sealed().await;
    let forge = |number: i64, signature: &str| {
        format!(
            "INSERT INTO audit.seals SELECT (jsonb_populate_record(s, jsonb_build_object('number', {number}, 'signature',
                {signature}, 'previous_hash', (SELECT '\\x' || encode(sha256('x'), 'hex'))))).* FROM audit.seals s WHERE number = 3"
        )
    };
    for (forged, says) in [
        (forge(1_003, "s.signature"), "seal 1003 is wrong: seal 4 is missing before it"),
        (forge(4, "s.signature"), "seal 4 is wrong: it does not contain the hash of the previous seal"),
    ] {
        tamper(&fixture, &forged).await;
        let (seal, _) = said(&fixture).await;
        assert!(seal.contains(says), "{seal}");
        assert_eq!(fixture.stored("SEAL").await, 3, "{says}");
        tamper(&fixture, "DELETE FROM audit.seals WHERE number > 3").await;
    }
    // One that follows the last seal, as anybody can make it.
    let mut next = read(&fixture, 3).await;
    next.previous = next.hash();
    next.number = 4;
    let stranger = PrivateKey::generate("test").expect("a key");
    insert(&fixture, &next, &stranger).await;
    let error = refused(&fixture).await;
    assert!(
        error.contains("seal 4 is wrong: its signature is not a valid signature of the key test"),
        "{error}"
    );
    assert_eq!(fixture.stored("SEAL").await, 3);
    tamper(&fixture, "DELETE FROM audit.seals WHERE number > 3").await;
    fixture.execute("UPDATE users SET username = 'x' WHERE id = 1").await;
    seal_everything(&fixture).await;
    assert_eq!((report(&fixture).await.findings, fixture.stored("SEAL").await), (vec![], 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_warns_of_seals_that_are_not_the_sealers() {
    let fixture = sealed().await;
    tamper(
        &fixture,
        "INSERT INTO audit.seals SELECT (jsonb_populate_record(s, '{\"number\": 5}')).* FROM audit.seals s WHERE number = 3",
    )
    .await;
    let (_, status) = said(&fixture).await;
    assert!(status.contains("seal 5 is wrong: NATS has anchors up to seal 3 only"), "{status}");
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Binary)]
    previous_hash: Vec<u8>,
    #[diesel(sql_type = BigInt)]
    through_transaction: i64,
    #[diesel(sql_type = SqlUuid)]
    through_id: Uuid,
    #[diesel(sql_type = Binary)]
    leaves: Vec<u8>,
    #[diesel(sql_type = Timestamptz)]
    sealed_at: DateTime<Utc>,
}

/// The statement of a seal.
async fn read(fixture: &Fixture, number: i64) -> Statement {
    use diesel_async::RunQueryDsl as _;
    let query = diesel::sql_query(
        "SELECT previous_hash, through_transaction, through_id, leaves, sealed_at FROM audit.seals WHERE number = $1",
    );
    let row: Row =
        query.bind::<BigInt, _>(number).get_result(&mut fixture.connection().await).await.expect("a seal");
    let leaves: Vec<Leaf> = row
        .leaves
        .chunks_exact(49)
        .map(|leaf| Leaf {
            source: match leaf[0] {
                1 => Source::AuditLog,
                2 => Source::Violations,
                3 => Source::DataAccess,
                4 => Source::Events,
                _ => Source::Subjects,
            },
            id: Uuid::from_slice(&leaf[1..17]).expect("an id"),
            digest: leaf[17..].try_into().expect("32 bytes"),
        })
        .collect();
    let through = (row.through_transaction, row.through_id);
    let previous = row.previous_hash.as_slice().try_into().expect("32 bytes");
    Statement::new(number, previous, through, &leaves, row.sealed_at)
}

/// Stores a copy of seal 3 with this statement and a signature of this key.
async fn insert(fixture: &Fixture, statement: &Statement, key: &PrivateKey) {
    use diesel_async::RunQueryDsl as _;
    diesel::sql_query(
        "INSERT INTO audit.seals SELECT $1, $2, through_transaction, through_id, leaves, root, sealed_at, key_name, $3, format
         FROM audit.seals WHERE number = 3",
    )
    .bind::<BigInt, _>(statement.number)
    .bind::<Binary, _>(statement.previous.as_slice())
    .bind::<Binary, _>(key.sign(&statement.hash()).as_slice())
    .execute(&mut fixture.connection().await)
    .await
    .expect("a seal");
}

/// Makes this the statement of the only seal, with a signature of this key.
async fn sign_anew(fixture: &Fixture, statement: &Statement, key: &PrivateKey) {
    // Imported here only, since it gives every type a method `execute`.
    use diesel_async::RunQueryDsl as _;
    diesel::sql_query("UPDATE audit.seals SET sealed_at = $1, signature = $2, key_name = $3")
        .bind::<Timestamptz, _>(statement.sealed_at)
        .bind::<Binary, _>(key.sign(&statement.hash()).as_slice())
        .bind::<Text, _>(key.name())
        .execute(&mut fixture.connection().await)
        .await
        .expect("an update");
}

/// A fixture with one seal, which its key signed with this name two hours ago.
async fn sealed_long_ago(name: &str) -> (Fixture, PrivateKey) {
    let fixture = Fixture::new().await;
    let key = PrivateKey::generate(name).expect("a key");
    // What migrations have written would have a seal of its own if other tests hold back the rest.
    fixture.execute("DELETE FROM audit.audit_log; DELETE FROM audit.subjects WHERE user_id = 0").await;
    fixture.execute("INSERT INTO users (id, username, email) VALUES (1, 'u', 'e')").await;
    let elsewhere = Fixture::new().await;
    eventually("everything is sealed", async || {
        let mut connection = fixture.connection().await;
        seal_all(&mut connection, &anchors(&elsewhere), &key, &[]).await.expect("seals");
        (fixture.count("audit.seals").await == 1 && report(&fixture).await.unsealed == 0).then_some(())
    })
    .await;
    let mut statement = read(&fixture, 1).await;
    statement.sealed_at -= TimeDelta::hours(2);
    sign_anew(&fixture, &statement, &key).await;
    (fixture, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_was_kept_from_being_anchored_is_found() {
    let (fixture, old) = sealed_long_ago("old").await;
    let keys = [old.public()];
    let verified = async || {
        let mut connection = fixture.connection().await;
        verify(&mut connection, Some(&anchors(&fixture)), Accepted::of_seals(&keys))
            .await
            .expect("a report")
            .findings
    };
    let found = verified().await;
    assert!(found.len() == 1 && found[0].problem.starts_with("NATS has no anchor of it"), "{found:?}");
    // A sealer with another key does not take it for genuine, unless it has the key's public half.
    let error = refused(&fixture).await;
    assert!(
        error.contains("seal 1 is wrong: it has no anchor yet and is signed with the key old"),
        "{error}"
    );
    assert_eq!(fixture.stored("SEAL").await, 0);
    let mut connection = fixture.connection().await;
    seal_all(&mut connection, &anchors(&fixture), &key(&fixture), &keys).await.expect("it is anchored");
    assert_eq!((fixture.stored("SEAL").await, verified().await), (1, vec![]));
}
