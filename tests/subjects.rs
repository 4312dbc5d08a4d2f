//! Who a token of the trail stands for: whoever changes it afterwards is found out, and the seals reveal nobody.

use audit::{Accepted, Difference, Excuse, Finding, Leaf, Seal, Source, Statement, verify};
use chrono::{SubsecRound, Utc};
use context_writer::ContextWriter;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, SmallInt, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use testkit::{Fixture, context, eventually, session, user};
use uuid::Uuid;

use crate::seal::{anchors, key, program, report, seal_everything, sealed, tamper};
use crate::support::program::text;

/// What a change of the subjects, which is taken back again, lets a verification find of subjects.
async fn found_after(fixture: &Fixture, change: &str) -> Vec<Finding> {
    let mut connection = fixture.connection().await;
    let hidden = format!("SET session_replication_role = replica; BEGIN; {change}");
    connection.batch_execute(&hidden).await.expect("a change");
    let keys = [key(fixture).public()];
    let report =
        verify(&mut connection, Some(&anchors(fixture)), Accepted::of_seals(&keys)).await.expect("a report");
    report.findings.into_iter().filter(|one| one.table == Some("audit.subjects")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_is_changed_swapped_removed_or_added_is_named() {
    use Difference::{Added, Edited, Missing};
    let fixture = sealed().await;
    // Of one transaction.
    fixture.execute("INSERT INTO users (id, username, email) VALUES (11, 'a', 'e'), (12, 'b', 'e')").await;
    seal_everything(&fixture).await;
    let tokens = fixture.lines("token FROM audit.subjects WHERE user_id IN (11, 12) ORDER BY user_id").await;
    let (first, second) = (tokens[0].as_str(), tokens[1].as_str());
    let set = |token: &str, user: i32| {
        format!("UPDATE audit.subjects SET token = '{token}' WHERE user_id = {user};")
    };
    let other = Uuid::new_v4().to_string();
    let other = other.as_str();
    let again =
        "INSERT INTO audit.subjects SELECT (jsonb_populate_record(s, jsonb_build_object('transaction_id',
        pg_current_xact_id()::text::bigint))).* FROM kept s";
    let added = |id: &str| {
        format!(
            "INSERT INTO audit.subjects (user_id, token, transaction_id) SELECT 77, '{id}', transaction_id FROM audit.subjects
             WHERE user_id = 11"
        )
    };
    for (change, expected) in [
        // The trail of user 11 belongs to nobody.
        (set(other, 11), vec![(Missing, first, None), (Added, other, Some(11))]),
        // The trail of each is the other's.
        (
            set(other, 11) + &set(first, 12) + &set(second, 11),
            vec![(Edited, first, Some(12)), (Edited, second, Some(11))],
        ),
        (
            "UPDATE audit.subjects SET user_id = 77 WHERE user_id = 12".to_owned(),
            vec![(Edited, second, Some(77))],
        ),
        (
            "UPDATE audit.subjects SET digest_key = sha256(digest_key) WHERE user_id = 12".to_owned(),
            vec![(Edited, second, Some(12))],
        ),
        (
            "UPDATE audit.subjects SET created_at = 'infinity' WHERE user_id = 12".to_owned(),
            vec![(Edited, second, Some(12))],
        ),
        ("DELETE FROM audit.subjects WHERE user_id = 12".to_owned(), vec![(Missing, second, None)]),
        // Added back, in another transaction as any row is.
        (
            format!(
                "CREATE TEMP TABLE kept AS SELECT * FROM audit.subjects WHERE user_id = 12;
                 DELETE FROM audit.subjects WHERE user_id = 12; {again}"
            ),
            vec![(Missing, second, Some(12))],
        ),
        // As if it had been there.
        (added(other), vec![(Added, other, Some(77))]),
    ] {
        let mut found: Vec<(Difference, String, Option<i32>)> = found_after(&fixture, &change)
            .await
            .into_iter()
            .map(|one| {
                (one.difference.expect("a difference"), one.row.expect("a token").to_string(), one.user)
            })
            .collect();
        let mut expected: Vec<_> =
            expected.into_iter().map(|(difference, id, user)| (difference, id.to_owned(), user)).collect();
        let order = |one: &(Difference, String, Option<i32>)| one.1.clone();
        found.sort_by_key(order);
        expected.sort_by_key(order);
        assert_eq!(found, expected, "{change}");
    }
    assert_eq!(report(&fixture).await.findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_subject_is_told_as_removed_without_proof() {
    let fixture = sealed().await;
    let removed = found_after(&fixture, "DELETE FROM audit.subjects WHERE user_id = 2").await;
    assert_eq!(removed[0].excuse, Some(Excuse::Absent), "{removed:?}");
    // As an erasure would, but with nothing that proves one.
    fixture.execute("DELETE FROM users WHERE id = 2").await;
    tamper(&fixture, "DELETE FROM audit.subjects WHERE user_id = 2").await;
    seal_everything(&fixture).await;
    let broken = program(&fixture, &["verify"]).await;
    let said = text(&broken.stdout);
    assert_eq!(broken.status.code(), Some(1), "{said}");
    assert!(
        said.contains(
            " of audit.subjects: the user of this token was removed, or given another one, without proof of an erasure \
             after it was sealed; excused without proof by an audit row (delete by role memfleet, no service"
        ),
        "{said}"
    );
    assert!(said.contains("excused with proof               0\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_of_a_subject_reveals_nobody_without_the_key() {
    let fixture = sealed().await;
    let content =
        "sha256(convert_to(json_build_array(s.transaction_id, s.token, n, (extract(epoch FROM s.created_at)
        * 1000000)::bigint)::text, 'UTF8'))";
    let sealed_as = |digest: &str| {
        format!(
            "(SELECT DISTINCT s.token, n FROM audit.subjects s, audit.seals l, generate_series(0, 100) AS n
              WHERE position({digest} IN l.leaves) > 0) AS told"
        )
    };
    assert_eq!(fixture.count(&sealed_as(&format!("sha256(s.digest_key || {content})"))).await, 2);
    for known in
        [content.to_owned(), format!("sha256({content})"), format!("sha256(uuid_send(s.token) || {content})")]
    {
        assert_eq!(fixture.count(&sealed_as(&known)).await, 0, "{known}");
    }
}

/// The rows as programs sealed them that read them by this statement.
const EARLIER: &str = "SELECT r.transaction_id, r.source, r.id,
    CASE WHEN r.key IS NULL THEN sha256(convert_to(r.content, 'UTF8')) ELSE sha256(r.key || sha256(convert_to(r.content, 'UTF8'))) END
        AS digest FROM (
        SELECT transaction_id, 1::smallint AS source, id, occurred_at AS at, json_build_array(transaction_id, id,
            (extract(epoch FROM occurred_at) * 1000000)::bigint, subject_token, role_name, service, request_id, table_name,
            row_id, operation, encode(row_digest_before, 'hex'), encode(row_digest_after, 'hex'), changed_columns)::text
            AS content, NULL::bytea AS key
        FROM audit.audit_log
        UNION ALL
        SELECT transaction_id, 2::smallint, id, occurred_at, json_build_array(transaction_id, id,
            (extract(epoch FROM occurred_at) * 1000000)::bigint, subject_token, role_name, service, request_id,
            violation_type, severity, table_name, reason)::text, NULL
        FROM audit.security_violations
        UNION ALL
        SELECT transaction_id, 3::smallint, id, occurred_at, json_build_array(transaction_id, id,
            (extract(epoch FROM occurred_at) * 1000000)::bigint, subject_token, role_name, service, request_id, access_type,
            object_name, rows_returned)::text, NULL
        FROM audit.data_access_log
        UNION ALL
        SELECT transaction_id, 4::smallint, id, created_at, json_build_array(transaction_id, id, event_sequence, event_type, performative,
            source_agent_id, target_agent_id, user_id, session_id, event_payload::text, semantic_context::text,
            parent_event_id, causality_chain::text, logical_timestamp, (extract(epoch FROM created_at) * 1000000)::bigint,
            request_id)::text, (SELECT s.digest_key FROM audit.subjects s WHERE s.user_id = blackboard_events.user_id)
        FROM blackboard_events
    ) AS r ORDER BY r.transaction_id, r.id";

#[derive(Debug, QueryableByName)]
struct Earlier {
    #[diesel(sql_type = BigInt)]
    transaction_id: i64,
    #[diesel(sql_type = SmallInt)]
    source: i16,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Binary)]
    digest: Vec<u8>,
}

impl Earlier {
    fn leaf(&self) -> Leaf {
        let source = match self.source {
            1 => Source::AuditLog,
            2 => Source::Violations,
            3 => Source::DataAccess,
            _ => Source::Events,
        };
        Leaf { source, id: self.id, digest: self.digest.as_slice().try_into().expect("32 bytes") }
    }
}

async fn earlier(connection: &mut AsyncPgConnection) -> Vec<Earlier> {
    // Imported here only, since it gives every type a method `execute`.
    use diesel_async::RunQueryDsl as _;
    diesel::sql_query(EARLIER).load(connection).await.expect("rows")
}

/// A trail with rows of all kinds, and whatever is written in an unusual way.
async fn unusual() -> Fixture {
    let fixture = Fixture::new().await;
    fixture
        .process(ContextWriter, [user(1), session(1, "s"), context(1, "s", "k", 1), context(1, "s", "k", 2)])
        .await;
    fixture
        .execute(
            "INSERT INTO audit.security_violations (role_name, violation_type, severity, table_name, reason)
                 VALUES ('r', 't', 'low', NULL, E'\"\\\\ / \\b\\f\\n\\r\\t \\u0001\\u001f\\u007f \u{e9}\u{1f600}');
             INSERT INTO audit.data_access_log (role_name, service, request_id, access_type, object_name, rows_returned)
                 VALUES ('r', 's', gen_random_uuid(), 'read', '', 9223372036854775807);
             UPDATE users SET username = 'x', email = 'y' WHERE id = 1;
             UPDATE audit.audit_log SET changed_columns = ARRAY['a', NULL, E'\\n', '\"'] WHERE operation = 'UPDATE';
             INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, target_agent_id, user_id,
                session_id, event_payload, semantic_context, parent_event_id, causality_chain, logical_timestamp)
             SELECT uuid7(), 'user.stored', 'inform', E'a\\tb', 't', u, '@account', jsonb_build_object('n', 1e-20, 'a', '[1,
                {\"b\": \"\\\\u0001\"}]'::jsonb), '[]', uuid7(), '[\"x\"]', 7 FROM unnest(ARRAY[0, 1, 4711]) AS u",
        )
        .await;
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_are_those_of_earlier_programs() {
    let fixture = unusual().await;
    seal_everything(&fixture).await;
    let earlier = earlier(&mut fixture.connection().await).await;
    let mut kinds: Vec<i16> = earlier.iter().map(|row| row.source).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, [1, 2, 3, 4]);
    for row in &earlier {
        let leaf: String = row.leaf().to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let sealed = format!("audit.seals WHERE position('\\x{leaf}'::bytea IN leaves) > 0");
        assert_eq!(fixture.count(&sealed).await, 1, "{row:?}");
    }
    assert_eq!(report(&fixture).await.findings, []);
}

/// A seal as an earlier program made it, of all rows but the subjects.
async fn seal_as_an_earlier_program(fixture: &Fixture) {
    use diesel_async::RunQueryDsl as _;
    let mut connection = fixture.connection().await;
    let rows = earlier(&mut connection).await;
    let leaves: Vec<Leaf> = rows.iter().map(Earlier::leaf).collect();
    let last = rows.last().expect("a row");
    let finished = format!(
        "(VALUES (1)) AS one WHERE pg_snapshot_xmin(pg_current_snapshot())::text::bigint > {}",
        last.transaction_id
    );
    eventually("no other test holds it back", async || (fixture.count(&finished).await == 1).then_some(()))
        .await;
    let through = (last.transaction_id, last.id);
    let statement = Statement::new(1, [0; 32], through, &leaves, Utc::now().trunc_subsecs(6));
    let signature = key(fixture).sign(&statement.hash());
    let seal = Seal { statement, leaves, key_name: key(fixture).name().to_owned(), signature };
    let leaves: Vec<u8> = seal.leaves.iter().flat_map(Leaf::to_bytes).collect();
    diesel::sql_query(
        "INSERT INTO audit.seals (number, previous_hash, through_transaction, through_id, leaves, root, sealed_at, key_name,
            signature) VALUES (1, $1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind::<Binary, _>(seal.statement.previous.as_slice())
    .bind::<BigInt, _>(seal.statement.through_transaction)
    .bind::<SqlUuid, _>(seal.statement.through_id)
    .bind::<Binary, _>(leaves)
    .bind::<Binary, _>(seal.statement.root.as_slice())
    .bind::<diesel::sql_types::Timestamptz, _>(seal.statement.sealed_at)
    .bind::<diesel::sql_types::Text, _>(&seal.key_name)
    .bind::<Binary, _>(seal.signature.as_slice())
    .execute(&mut connection)
    .await
    .expect("a seal");
}

#[tokio::test(flavor = "multi_thread")]
async fn seals_from_before_subjects_were_sealed_still_verify() {
    let fixture = unusual().await;
    let all = store::migration::MAIN.status(fixture.connection().await).await.expect("a status");
    let place = all.iter().position(|state| state.name.ends_with("what_is_sealed")).expect("the migration");
    store::migration::MAIN.down(fixture.connection().await, all.len() - place).await.expect("down");
    // Longer ago than a timestamp may be wrong.
    fixture.execute("UPDATE audit.subjects SET created_at = created_at - interval '1 year'").await;
    seal_as_an_earlier_program(&fixture).await;
    store::migration::MAIN.up(fixture.connection().await).await.expect("up");
    seal_everything(&fixture).await;
    let whole = report(&fixture).await;
    assert_eq!((whole.findings, whole.seals), (vec![], 2));
    assert_eq!(fixture.lines("format FROM audit.seals ORDER BY number").await, ["1", "2"]);
    let found =
        found_after(&fixture, "UPDATE audit.subjects SET token = gen_random_uuid() WHERE user_id = 1").await;
    assert_eq!(found.iter().map(|one| one.seal).collect::<Vec<_>>(), [Some(2), Some(2)], "{found:?}");
    // Neither does a subject hide in the earlier seal.
    let hidden = "INSERT INTO audit.subjects (user_id, transaction_id) SELECT 77, min(transaction_id) FROM audit.audit_log";
    assert_eq!(found_after(&fixture, hidden).await[0].seal, Some(1));
    // An earlier program seals nothing more: it would leave the subjects out.
    let refused = fixture
        .connection()
        .await
        .batch_execute(
            "INSERT INTO audit.seals (number, previous_hash, through_transaction, through_id, leaves, root, sealed_at,
                key_name, signature) SELECT 3, previous_hash, through_transaction, through_id, leaves, root, sealed_at,
                key_name, signature FROM audit.seals WHERE number = 2",
        )
        .await;
    assert!(refused.expect_err("no format").to_string().contains("\"format\""));
}
