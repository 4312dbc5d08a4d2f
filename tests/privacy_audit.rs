//! What an erasure removes is excused by a signed statement alone, and only as it was sealed; and its row of the trail is proven to lie under
//! a seal.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use audit::{
    Accepted, AuditError, Difference, Excuse, Leaf, Report, Source, Vouch, Voucher, seal_all, verify,
};
use contract::UserId;
use diesel::sql_types::{Array, Binary, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use futures::future::BoxFuture;
use privacy::process::{self, Stores};
use privacy::request::{self, NewRequest};
use privacy::{Advance, Receipts, Removal, Step};
use testkit::{DEADLINE, Fixture};
use trust::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::seal::{anchors, key, seal_everything, sealed, tamper};
use crate::support::erasure::with_receipts;

const ERASURE: Uuid = Uuid::from_u128(0x0193_c0de);

/// A key that signs statements and receipts.
fn receipt_key(digit: &str) -> PrivateKey {
    PrivateKey::parse(&format!("receipt private {}", digit.repeat(64))).expect("a key")
}

/// As if there were a receipt of what is stated now.
#[derive(Debug)]
struct AsStated;

impl Vouch for AsStated {
    fn vouch<'a>(
        &'a self,
        connection: &'a mut AsyncPgConnection,
        erasures: &'a [Uuid],
    ) -> BoxFuture<'a, Result<HashMap<Uuid, Voucher>, AuditError>> {
        Box::pin(async move {
            let mut vouchers = HashMap::new();
            for erasure in erasures {
                let roots: Vec<_> =
                    audit::statements_of(connection, *erasure).await?.iter().map(|one| one.root).collect();
                let receipt = Voucher::Receipt {
                    statements: u64::try_from(roots.len()).expect("a number"),
                    roots: audit::hash_of_roots(&roots),
                };
                vouchers.insert(*erasure, receipt);
            }
            Ok(vouchers)
        })
    }
}

/// What a verification finds that believes these keys of statements, as if each erasure had a receipt.
async fn report(fixture: &Fixture, receipts: &[PublicKey]) -> Report {
    report_by(fixture, receipts, &AsStated).await
}

async fn report_by(fixture: &Fixture, receipts: &[PublicKey], erasures: &dyn Vouch) -> Report {
    let seals = [key(fixture).public()];
    let keys = Accepted { seals: &seals, receipts, erasures: Some(erasures) };
    verify(&mut fixture.connection().await, Some(&anchors(fixture)), keys).await.expect("a report")
}

/// Deletes the events of a user with a statement, and returns their number.
async fn erase_events(fixture: &Fixture, user: i32, key: &PrivateKey) -> usize {
    use diesel_async::RunQueryDsl;
    fixture
        .connection()
        .await
        .transaction(async |connection| {
            let leaves = audit::leaves_of_events(connection, user, 10_000).await?;
            audit::state_erasure(connection, key, ERASURE, &leaves).await?;
            let ids: Vec<Uuid> = leaves.iter().map(|leaf| leaf.id).collect();
            diesel::sql_query("DELETE FROM public.blackboard_events WHERE id = ANY ($1)")
                .bind::<Array<SqlUuid>, _>(ids)
                .execute(connection)
                .await?;
            Ok::<usize, store::Fault>(leaves.len())
        })
        .await
        .expect("an erasure")
}

/// Deletes the subject of a user with a statement.
async fn erase_subject(fixture: &Fixture, user: i32, key: &PrivateKey) {
    use diesel_async::RunQueryDsl;
    fixture
        .connection()
        .await
        .transaction(async |connection| {
            let leaf = audit::subject_leaf(connection, user).await?.expect("a subject");
            audit::state_erasure(connection, key, ERASURE, &[leaf]).await?;
            diesel::sql_query("DELETE FROM audit.subjects WHERE token = $1")
                .bind::<SqlUuid, _>(leaf.id)
                .execute(connection)
                .await?;
            Ok::<(), store::Fault>(())
        })
        .await
        .expect("an erasure");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_erased_with_a_statement_is_excused_with_proof() {
    let fixture = sealed().await;
    let key = receipt_key("a");
    let keys = [key.public()];
    let events = erase_events(&fixture, 1, &key).await;
    assert!(events > 1);
    let found = report(&fixture, &keys).await;
    assert_eq!((found.findings.as_slice(), found.missing), ([].as_slice(), 0));
    assert_eq!(found.accounted, u64::try_from(events).expect("a number"));
    erase_subject(&fixture, 1, &key).await;
    seal_all(&mut fixture.connection().await, &anchors(&fixture), &crate::seal::key(&fixture), &[])
        .await
        .expect("seals");
    let found = report(&fixture, &keys).await;
    assert_eq!(found.findings, []);
    assert_eq!(found.accounted, u64::try_from(events + 1).expect("a number"));
    // Of somebody who does not have the key, the statements are findings, and what they excuse, too.
    for others in [&[][..], &[receipt_key("b").public()]] {
        let found = report(&fixture, others).await;
        assert_eq!((found.accounted, found.missing), (0, u64::try_from(events + 1).expect("a number")));
        let statements =
            found.findings.iter().filter(|one| one.problem.contains("of an erasure excuses nothing"));
        assert_eq!(statements.count(), 2, "{:?}", found.findings);
    }
    // The statements themselves are what excuses.
    fixture.execute("DELETE FROM audit.erasures").await;
    assert_eq!(report(&fixture, &keys).await.accounted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_edited_or_moved_before_stays_a_finding() {
    let target = |user: i32| {
        format!("id = (SELECT id FROM blackboard_events WHERE user_id = {user} ORDER BY id LIMIT 1)")
    };
    for change in [
        format!("UPDATE blackboard_events SET event_payload = '{{}}' WHERE {}", target(1)),
        format!("UPDATE blackboard_events SET user_id = 1, session_id = 's' WHERE {}", target(2)),
    ] {
        let fixture = sealed().await;
        tamper(&fixture, &change).await;
        let key = receipt_key("a");
        let events = erase_events(&fixture, 1, &key).await;
        let found = report(&fixture, &[key.public()]).await;
        assert_eq!(found.accounted, u64::try_from(events - 1).expect("a number"), "{change}");
        assert_eq!((found.missing, found.findings.len()), (1, 1), "{change}: {:?}", found.findings);
        let finding = &found.findings[0];
        assert_eq!(finding.difference, Some(Difference::Missing), "{finding}");
        assert!(matches!(finding.excuse, Some(Excuse::WithoutProof(_) | Excuse::Absent)), "{finding}");
    }
}

/// Whoever may write all tables has chosen events removed by the process that signs: the others of the user are elsewhere meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_receipt_an_erasure_excuses_nothing_and_is_named() {
    let mut fixture = sealed().await;
    let _receipts = with_receipts(&mut fixture);
    let key = PrivateKey::read(fixture.settings.privacy.receipt_key_file.as_ref().expect("a key").as_ref());
    let key = key.expect("a key");
    let keys = [key.public()];
    let receipts = Receipts { settings: &fixture.settings, keys: &keys };
    // A request alone has nothing removed.
    let request = format!(
        "INSERT INTO privacy_requests (id, user_id, request_type, request_status, step, progress, service, reason)
         VALUES ('{ERASURE}', 1, 'erase', 'in_progress', 'rows', jsonb_build_object('fenced_at', now()), 'operator', 'r')"
    );
    fixture.execute(&request).await;
    let mut stores = Stores::open(&fixture.settings).await.expect("stores");
    let claimed =
        request::claim(&mut stores.database, Uuid::now_v7(), Some(ERASURE)).await.expect("a request");
    let refused = process::advance(&mut stores, &mut claimed.expect("the request")).await;
    assert!(refused.expect_err("a refusal").to_string().contains("has not put up its fence"));
    assert_eq!(fixture.count("audit.erasures").await, 0);
    // Nor does a statement without a receipt excuse anything; while it seems to be under way, it is named.
    let events = u64::try_from(erase_events(&fixture, 1, &key).await).expect("a number");
    let fence = format!(
        "INSERT INTO sec.fenced_users (user_id, request_id, may_be_cancelled) VALUES (1, '{ERASURE}', false)"
    );
    fixture.execute(&fence).await;
    let found = report_by(&fixture, &keys, &receipts).await;
    let named = found.erasures.get(&ERASURE).map(|erased| (erased.rows, erased.is_under_way));
    assert_eq!((found.findings.as_slice(), named), ([].as_slice(), Some((events, true))));
    for undone in ["DELETE FROM sec.fenced_users", "DELETE FROM privacy_requests"] {
        fixture.execute(undone).await;
        let found = report_by(&fixture, &keys, &receipts).await;
        assert_eq!((found.accounted, found.excused_without_proof), (0, events), "{undone}");
        assert_eq!(found.findings[0].excuse, Some(Excuse::WithoutReceipt { erasure: ERASURE }));
        assert!(found.findings[0].to_string().contains(&ERASURE.to_string()), "{}", found.findings[0]);
    }
}

/// A statement as whoever may write to the database would insert it.
async fn insert(fixture: &Fixture, number: i64, leaves: &[Leaf], signature: &[u8; 64]) {
    use diesel_async::RunQueryDsl;
    const INSERT: &str = "
        INSERT INTO audit.erasures (number, erasure, leaves, root, stated_at, key_name, signature)
        SELECT $1, gen_random_uuid(), $2, $3, now(), 'receipt', $4";
    let root = audit::tree::root(leaves.iter().map(|leaf| audit::tree::leaf_hash(&leaf.to_bytes())));
    diesel::sql_query(INSERT)
        .bind::<diesel::sql_types::BigInt, _>(number)
        .bind::<Binary, _>(leaves.iter().flat_map(Leaf::to_bytes).collect::<Vec<u8>>())
        .bind::<Binary, _>(root.to_vec())
        .bind::<Binary, _>(signature.to_vec())
        .execute(&mut fixture.connection().await)
        .await
        .expect("a row");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_not_genuine_is_a_finding_and_excuses_nothing() {
    let fixture = sealed().await;
    let (key, other) = (receipt_key("a"), receipt_key("b"));
    let keys = [key.public()];
    // Of another key with the same name.
    let events = erase_events(&fixture, 1, &other).await;
    let found = report(&fixture, &keys).await;
    assert_eq!((found.accounted, found.missing), (0, u64::try_from(events).expect("a number")));
    assert!(
        found.findings.iter().any(|one| one.problem.contains("not a valid signature")),
        "{:?}",
        found.findings
    );
    // Without a signature at all.
    fixture.execute("DELETE FROM audit.erasures").await;
    let row = fixture.lines("id FROM audit.audit_log ORDER BY id LIMIT 1").await.remove(0);
    let leaf = Leaf { source: Source::AuditLog, id: row.parse().expect("an id"), digest: [1; 32] };
    insert(&fixture, 1, &[leaf], &[0; 64]).await;
    let found = report(&fixture, &keys).await;
    assert!(
        found.findings.iter().any(|one| one.problem.contains("statement 1 of an erasure")),
        "{:?}",
        found.findings
    );
    // The program states nothing of the trail itself.
    let refused = audit::state_erasure(&mut fixture.connection().await, &key, ERASURE, &[leaf]).await;
    assert!(refused.expect_err("a refusal").reason.contains("audit.audit_log"));
    // A genuine one whose list or root somebody has changed.
    for change in [
        "leaves = overlay(leaves PLACING '\\x00' FROM 20)",
        "root = sha256(root)",
        "erasure = gen_random_uuid()",
        "stated_at = stated_at - interval '1 second'",
    ] {
        fixture.execute("DELETE FROM audit.erasures").await;
        let stated = Leaf { source: Source::Events, ..leaf };
        audit::state_erasure(&mut fixture.connection().await, &key, ERASURE, &[stated])
            .await
            .expect("a statement");
        let is_refused =
            |report: Report| report.findings.iter().any(|one| one.problem.contains("statement 1 "));
        assert!(!is_refused(report(&fixture, &keys).await), "{change}: not yet");
        fixture.execute(&format!("UPDATE audit.erasures SET {change}")).await;
        assert!(is_refused(report(&fixture, &keys).await), "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_row_of_an_erasure_is_proven_to_lie_under_its_seal() {
    let fixture = sealed().await;
    let mut connection = fixture.connection().await;
    let body = [7; 32];
    let row = audit::record_erasure(&mut connection, ERASURE, 1, &body).await.expect("a row");
    assert_eq!(audit::inclusion(&mut connection, row).await.expect("an answer"), None, "not sealed yet");
    seal_everything(&fixture).await;
    let inclusion = audit::inclusion(&mut connection, row).await.expect("an answer").expect("a seal");
    let hash = inclusion.verify(&[key(&fixture).public()]).expect("a genuine one");
    assert_eq!(inclusion.body_of(ERASURE), Some(body));
    assert!(inclusion.verify(&[receipt_key("a").public()]).is_err());
    let number = inclusion.seal.number;
    let fault = audit::fault_of_seal(&mut connection, &anchors(&fixture), number, &hash).await;
    assert_eq!(fault.expect("an answer"), None);
    let fault = audit::fault_of_seal(&mut connection, &anchors(&fixture), number, &[0; 32]).await;
    assert!(fault.expect("an answer").expect("a fault").contains("another seal"));
    assert_eq!(audit::inclusion(&mut connection, Uuid::nil()).await.expect("an answer"), None);
    // Each row of each seal, as far as they are of the audit log.
    for id in fixture.lines("id FROM audit.audit_log ORDER BY id").await {
        let inclusion =
            audit::inclusion(&mut connection, id.parse().expect("an id")).await.expect("an answer");
        inclusion.expect("a seal").verify(&[key(&fixture).public()]).expect("a genuine one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_verifies_after_each_step_of_an_erasure() {
    let mut fixture = sealed().await;
    let _receipts = with_receipts(&mut fixture);
    let keys = privacy::receipt::public_keys(&fixture.settings.privacy).expect("keys");
    let new =
        NewRequest { removal: Removal::Erase, service: "operator".to_owned(), reason: "a letter".to_owned() };
    let user = UserId::new(1).expect("a user");
    let id = request::submit(&mut fixture.connection().await, user, new).await.expect("a request").id;
    let mut stores = Stores::open(&fixture.settings).await.expect("stores");
    let (run, mut steps, since) = (Uuid::now_v7(), Vec::new(), Instant::now());
    let mut is_done = false;
    while !is_done {
        assert!(since.elapsed() < DEADLINE, "the erasure has come to {steps:?}");
        let claimed = request::claim(&mut stores.database, run, Some(id)).await.expect("a request");
        let mut claimed = claimed.expect("the erasure");
        loop {
            let step = claimed.step;
            let advanced = process::advance(&mut stores, &mut claimed).await.expect("a step");
            let receipts = Receipts { settings: &fixture.settings, keys: &keys };
            let found = report_by(&fixture, &keys, &receipts).await;
            assert_eq!(found.findings, [], "after {step}");
            let is_under_way = advanced != Advance::Done;
            assert!(found.erasures.iter().all(|(of, one)| *of == id && one.is_under_way == is_under_way));
            match advanced {
                Advance::Next(_) => steps.push(step),
                Advance::Done => is_done = true,
                Advance::Waiting(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                Advance::Held(ref hold) => panic!("{hold:?}"),
            }
            if !matches!(advanced, Advance::Next(_)) {
                break;
            }
        }
    }
    assert_eq!(steps, Step::ALL[..9]);
    assert!(report(&fixture, &keys).await.accounted > 1);
    assert_eq!(fixture.count("sec.fenced_users").await, 0);
}
