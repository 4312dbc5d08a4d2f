//! Service tokens on real servers: what is refused, what is recorded of it, and how soon the registry is heeded.

use std::time::{Duration, Instant, SystemTime};

use context_writer::ContextWriter;
use contract::{RequestSubject, SessionId};
use serde_json::json;
use store::registry;
use testkit::{Fixture, RequestMessage, context, eventually, request, session, token, user};
use trust::{PrivateKey, Scope, TokenIssuer, TokenRequest};
use uuid::Uuid;

fn issue(issuer: &TokenIssuer, change: impl FnOnce(&mut TokenRequest)) -> String {
    let mut wanted = token::request("test", 1);
    change(&mut wanted);
    issuer.issue(&wanted, SystemTime::now()).expect("a token").token
}

fn issued_at(issuer: &TokenIssuer, at: SystemTime) -> String {
    let wanted = TokenRequest { life: Duration::from_secs(60), ..token::request("test", 1) };
    issuer.issue(&wanted, at).expect("a token").token
}

/// What is refused: a name for it, the request, the class and word of the refusal.
fn refused() -> Vec<(RequestMessage, &'static str)> {
    let put = |number: i64| context(1, "s", &format!("k{number}"), number);
    let ours = token::issuer();
    let stranger = TokenIssuer::new(
        PrivateKey::generate("stranger").expect("a key"),
        testkit::attack::grant_key(),
        "memfleet",
    );
    let impostor = TokenIssuer::new(
        PrivateKey::generate("test").expect("a key"),
        testkit::attack::grant_key(),
        "memfleet",
    );
    let staging = TokenIssuer::new(
        PrivateKey::parse(testkit::TOKEN_KEY).expect("a key"),
        testkit::attack::grant_key(),
        "staging",
    );
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3_600));
    let good = format!("Bearer {}", issue(&ours, |_| {}));
    let mut renamed = put(18);
    renamed.subject = renamed.subject.replace(".test.", ".nobody.");
    vec![
        (put(1).without_token(), "token-missing"),
        (put(2).with_token("x"), "token-malformed"),
        (put(3).with("Authorization", good.replace("Bearer", "Basic")), "token-malformed"),
        (put(4).with_token(&issue(&stranger, |_| {})), "token-unknown-key"),
        (put(5).with_token(&issue(&impostor, |_| {})), "token-signature"),
        (put(6).with_token(&issue(&staging, |_| {})), "token-audience"),
        (put(7).with_token(&issued_at(&ours, now - hour)), "token-expired"),
        (put(8).with_token(&issued_at(&ours, now + hour)), "token-not-yet-valid"),
        (
            put(9).with_token(&issue(&ours, |wanted| wanted.user_id = contract::UserId::new(2).unwrap())),
            "token-user",
        ),
        (
            put(10).with_token(&issue(&ours, |wanted| wanted.service = "bench".parse().unwrap())),
            "token-service",
        ),
        (put(11).with_token(&issue(&ours, |wanted| wanted.scopes = scopes("context:remove"))), "token-scope"),
        (
            put(12).with_token(&issue(&ours, |wanted| wanted.session = SessionId::new("t").ok())),
            "token-session",
        ),
        (
            renamed.with_token(&issue(&ours, |wanted| wanted.service = "nobody".parse().unwrap())),
            "service-unknown",
        ),
    ]
}

fn scopes(list: &str) -> Vec<Scope> {
    Scope::parse_list(list).expect("scopes")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_recorded_and_a_dead_letter_and_its_publisher_learns_the_class_only() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    let cases = refused();
    let inbox = "_INBOX.test.outcomes";
    let mut outcomes = fixture.subscribe(inbox).await;
    let asked = cases.iter().map(|(request, _)| request.clone().with("Memfleet-Reply-To", inbox));
    fixture.process(ContextWriter, asked).await;

    let columns = "concat_ws(' ', request_id, role_name, violation_type)";
    let recorded =
        fixture.lines(&format!("{columns} FROM audit.security_violations ORDER BY request_id")).await;
    let mut expected: Vec<String> =
        cases.iter().map(|(request, word)| format!("{} w_context_writer {word}", request.id)).collect();
    expected.sort();
    assert_eq!(recorded, expected);
    assert_eq!(fixture.dead_letters().await.len(), cases.len());
    assert!(fixture.dead_letters().await.iter().all(|letter| letter.starts_with("denied: ")));
    assert_eq!(fixture.count("simple_chat_context").await, 0);
    // One of them names the user whose memory was asked for, and none a value.
    let whose =
        "audit.security_violations v JOIN audit.subjects s ON s.token = v.subject_token WHERE s.user_id = 1";
    assert_eq!(fixture.count(whose).await, i64::try_from(cases.len()).unwrap());
    // The one of service nobody has another inbox.
    for _ in 1..cases.len() {
        let outcome = testkit::next(&mut outcomes).await;
        let told: serde_json::Value = serde_json::from_slice(&outcome.payload).expect("an outcome");
        assert_eq!((&told["status"], &told["reason"]), (&json!("dead"), &json!("denied")), "{told}");
    }
    // Nobody who reads dead letters finds a token in them.
    for letter in fixture.messages("DEAD").await {
        assert!(letter.headers.get("Authorization").is_none(), "{:?}", letter.headers);
    }
}

/// No refusal goes unrecorded: its message waits, and is handed back by a worker that ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_cannot_be_recorded_waits_until_it_can() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    let worker = fixture.run(ContextWriter);
    eventually("it runs", async || {
        (worker.readiness.report().phase == runtime::Phase::Running).then_some(())
    })
    .await;
    let function = "audit.record_refused_tokens(text[], text[], integer[], text[], uuid[])";
    fixture
        .execute(&format!(
            "CREATE SEQUENCE audit.tries;
             ALTER FUNCTION {function} RENAME TO kept;
             CREATE FUNCTION {function} RETURNS integer LANGUAGE plpgsql SECURITY DEFINER AS
             $$ BEGIN PERFORM nextval('audit.tries'); RAISE EXCEPTION 'no room'; END $$;
             GRANT EXECUTE ON FUNCTION {function} TO w_context_writer"
        ))
        .await;
    fixture.publish([context(1, "s", "k", 1).without_token()]).await;
    eventually("it is tried again", async || {
        (fixture.count("audit.tries WHERE last_value >= 4").await == 1).then_some(())
    })
    .await;
    let info = fixture.consumer("CONTEXT", "context-writer").await.get_info().await.expect("a consumer");
    assert_eq!((info.num_redelivered, info.num_ack_pending, fixture.stored("DEAD").await), (0, 1, 0));
    tokio::time::timeout(testkit::DEADLINE, worker.stop()).await.expect("it ends").expect("a clean end");
    assert_eq!(fixture.stored("DEAD").await, 0);
    fixture
        .execute(&format!(
            "DROP FUNCTION {function};
             ALTER FUNCTION audit.kept(text[], text[], integer[], text[], uuid[]) RENAME TO record_refused_tokens"
        ))
        .await;
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("audit.security_violations WHERE violation_type = 'token-missing'").await, 1);
    assert_eq!(fixture.dead_letters().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_session_is_good_for_its_session_only() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s"), session(1, "t")]).await;
    let bound = issue(&token::issuer(), |wanted| wanted.session = SessionId::new("s").ok());
    let requests = [context(1, "s", "k", 1), context(1, "t", "k", 1), user(1)];
    fixture.process(ContextWriter, requests.map(|request| request.with_token(&bound))).await;
    assert_eq!(fixture.lines("session_id FROM simple_chat_context").await, ["s"]);
    let denied = "denied: the service token is for another session";
    assert_eq!(fixture.dead_letters().await, [denied, denied]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_refused_by_every_replica_within_a_second() {
    let fixture = Fixture::new().await;
    let mut operator = fixture.connection().await;
    let replicas = [fixture.run(ContextWriter), fixture.run(ContextWriter)];
    let wanted = token::request("test", 1);
    let (_, issued) =
        registry::issue(&mut operator, &token::issuer(), wanted, SystemTime::now()).await.unwrap();
    let with = |request: RequestMessage| request.with_token(&issued.token);
    fixture.publish([with(user(1)), with(session(1, "s"))]).await;
    fixture.drained::<ContextWriter>().await;

    registry::revoke(&mut operator, &[issued.id]).await.expect("a revocation");
    let revoked = Instant::now();
    // Both replicas take of these. Until they know, the database refuses the grant; then they refuse the token.
    eventually("both replicas refuse the token by themselves", async || {
        let put = |_| with(context(1, "s", &Uuid::now_v7().to_string(), 1));
        fixture.publish((0..20).map(put)).await;
        fixture.drained::<ContextWriter>().await;
        let letters = fixture.dead_letters().await;
        let latest = letters.len().saturating_sub(20);
        letters[latest..].iter().all(|letter| letter == "denied: the service token was revoked").then_some(())
    })
    .await;
    let seen = revoked.elapsed();
    assert!(seen < Duration::from_secs(5), "{seen:?} on a busy machine");
    assert_eq!(fixture.count("simple_chat_context").await, 0, "nothing was written after the revocation");
    assert_eq!(fixture.stored("DEAD").await, fixture.stored("CONTEXT").await - 2);
    for replica in replicas {
        replica.stop().await.expect("a clean end");
    }
    let used = "cross_service_auth JOIN sec.token_uses USING (token_id) WHERE revoked_at IS NOT NULL";
    assert_eq!(fixture.count(used).await, 1, "it says when it was used last");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_change_while_messages_flow_and_none_is_refused() {
    let fixture = Fixture::new().await;
    let mut operator = fixture.connection().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1), session(1, "s")]).await;
    let new = PrivateKey::generate("next").expect("a key");
    assert!(registry::add_token_key(&mut operator, &new.public()).await.expect("a key"));
    // At once, before any replica has asked for news.
    let next = TokenIssuer::new(new.clone(), testkit::attack::grant_key(), "memfleet");
    let token = issue(&next, |_| {});
    fixture.publish((0..50).map(|n| context(1, "s", &format!("new{n}"), 1).with_token(&token))).await;
    fixture.publish((0..50).map(|n| context(1, "s", &format!("old{n}"), 1))).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("simple_chat_context").await, 100);

    assert!(registry::retire_token_key(&mut operator, "test").await.expect("a key"));
    eventually("the old key is believed no more", async || {
        fixture.publish([context(1, "s", "late", 1)]).await;
        fixture.drained::<ContextWriter>().await;
        (!fixture.dead_letters().await.is_empty()).then_some(())
    })
    .await;
    assert_eq!(
        fixture.dead_letters().await,
        ["denied: the service token is signed with an unknown or retired key"]
    );
    // A name stands for one key for ever.
    let other = PrivateKey::generate("next").expect("a key").public();
    assert!(!registry::add_token_key(&mut operator, &other).await.expect("an answer"));
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_may_do_is_what_the_registry_says_now() {
    let fixture = Fixture::new().await;
    let of = |mut request: RequestMessage| {
        request.subject = request.subject.replace(".test.", ".newcomer.");
        request
    };
    let worker = fixture.run(ContextWriter);
    fixture.register("newcomer", "user:put session:open").await;
    // At once: nobody is refused for what a replica has not heard yet.
    fixture.publish([of(user(1)), of(session(1, "s"))]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    // Its tokens say *:*, and it may do two things.
    fixture.publish([of(context(1, "s", "k", 1))]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.dead_letters().await, ["denied: the service may not do this"]);
    fixture.register("newcomer", "user:put session:open context:put").await;
    fixture.publish([of(context(1, "s", "k", 1))]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 1);

    let mut operator = fixture.connection().await;
    let service = "newcomer".parse().expect("a service");
    assert!(registry::disable_service(&mut operator, &service).await.expect("an answer"));
    eventually("it is disabled", async || {
        fixture.publish([of(user(1))]).await;
        fixture.drained::<ContextWriter>().await;
        let letters = fixture.dead_letters().await;
        (letters.last()? == "denied: the service is not registered or is disabled").then_some(())
    })
    .await;
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_waits_and_loses_nothing() {
    let fixture = Fixture::new().await;
    let mut settings = fixture.settings.clone();
    settings.trust.user_per_second = 20;
    let worker = fixture.run_with(ContextWriter, settings);
    let eager =
        [user(1), session(1, "s")].into_iter().chain((0..60).map(|n| context(1, "s", &n.to_string(), 1)));
    fixture.publish(eager).await;
    // Somebody else is not held up by it.
    fixture.publish([user(2)]).await;
    eventually("another user is written", async || {
        (fixture.count("users WHERE id = 2").await == 1).then_some(())
    })
    .await;
    assert!(fixture.count("simple_chat_context").await < 60);
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 60);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let report = worker.stats.report();
    assert!(report.delayed > 0 && report.retried == 0, "{report:?}");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_cannot_be_recorded_waits() {
    let fixture = Fixture::new().await;
    let hide = "REVOKE EXECUTE ON FUNCTION audit.record_refused_tokens FROM w_context_writer";
    fixture.execute(hide).await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1).without_token()]).await;
    let consumer = fixture.consumer("CONTEXT", contract::CONTEXT_WRITER.name).await;
    eventually("the worker holds it", async || {
        (consumer.get_info().await.ok()?.num_ack_pending == 1).then_some(())
    })
    .await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    fixture.execute("GRANT EXECUTE ON FUNCTION audit.record_refused_tokens TO w_context_writer").await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.dead_letters().await.len(), 1);
    assert_eq!(fixture.count("audit.security_violations").await, 1);
    worker.stop().await.expect("a clean end");
}

/// A backlog does not outlive its tokens: a message is judged by when it was stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_judged_by_when_it_was_stored() {
    let fixture = Fixture::new().await;
    let state = registry::trust_state(&mut fixture.connection().await).await.expect("a state");
    let authorizer =
        runtime::authorize::Authorizer::new(&fixture.settings.trust, contract::CONTEXT_WRITER.name, state);
    let published = request("user.put", 1, json!({}));
    let subject: RequestSubject = published.subject.parse().expect("a subject");
    let (then, day) = (SystemTime::now(), Duration::from_secs(86_400));
    let headers = published.with_token(&issued_at(&token::issuer(), then - 3 * day)).header_map();
    let judge = |at: SystemTime| authorizer.grant_for(Some(&headers), &subject, None, at.into()).map(drop);
    assert_eq!(judge(then - 3 * day), Ok(()), "stored in time, read three days later");
    assert_eq!(judge(then), Err(trust::Refusal::Expired));
}
