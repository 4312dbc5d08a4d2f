//! What an administrator does with the registry of services: keys, services, tokens.

use async_nats::HeaderMap;
use context_writer::ContextWriter;
use futures::StreamExt;
use runtime::Readiness;
use serde_json::Value;
use testkit::{Fixture, user};

use crate::support::broker::{answer, discovered, send_query};
use crate::support::program::{self, Ended, output};

/// What the program prints, and whether it ended well.
async fn memfleet(fixture: &Fixture, more: &[(&str, &str)], arguments: &[&str]) -> (bool, String, String) {
    let mut command = program::memfleet(fixture, arguments);
    command.envs(more.iter().copied());
    let ended: Ended = output(command).await.into();
    (ended.is_success(), ended.out, ended.err)
}

async fn fine(fixture: &Fixture, more: &[(&str, &str)], arguments: &[&str]) -> String {
    let (well, out, err) = memfleet(fixture, more, arguments).await;
    assert!(well, "{arguments:?}: {err}");
    out
}

async fn failed(fixture: &Fixture, arguments: &[&str], message: &str) {
    let (well, out, err) = memfleet(fixture, &[], arguments).await;
    assert!(!well && err.contains(message), "{arguments:?}: expected {message:?}, got {out}{err}");
}

/// The commands of `memfleet token --help`, from nothing to a request that is written.
#[tokio::test(flavor = "multi_thread")]
async fn from_no_keys_to_a_token_that_works_and_is_revoked() {
    let fixture = Fixture::new().await;
    let grant =
        fixture.key_file("grant.key", &fine(&fixture, &[], &["security", "key", "generate", "main"]).await);
    let key = fixture.key_file("main.key", &fine(&fixture, &[], &["token", "key", "generate", "main"]).await);
    fine(&fixture, &[], &["security", "key", "add", &grant]).await;
    assert_eq!(
        fine(&fixture, &[], &["token", "key", "add", &key]).await,
        "registered signing key main; its tokens are accepted\n"
    );
    let put = [
        "token",
        "service",
        "put",
        "newcomer",
        "--scope",
        "user:*",
        "--scope",
        "context:put",
        "--user-per-second",
        "7",
    ];
    assert_eq!(fine(&fixture, &[], &put).await, "registered newcomer with scopes user:* context:put\n");
    let listed = fine(&fixture, &[], &["token", "service", "list"]).await;
    assert!(
        listed.lines().any(|line| line.trim().starts_with("newcomer ") && line.trim_end().ends_with(" 7")),
        "{listed}"
    );

    let keys = [
        ("MEMFLEET_TRUST__GRANT_KEY_FILE", grant.as_str()),
        ("MEMFLEET_TRUST__TOKEN_KEY_FILE", key.as_str()),
    ];
    let issue =
        ["token", "issue", "--service", "newcomer", "--user", "42", "--scope", "user:put", "--life", "60"];
    let token = fine(&fixture, &keys, &issue).await;
    let token = token.trim();
    let told: Value =
        serde_json::from_str(&fine(&fixture, &[], &["token", "inspect", "--json", token]).await)
            .expect("JSON");
    assert_eq!((told["service"].as_str(), told["user_id"].as_i64()), (Some("newcomer"), Some(42)));
    assert_eq!((told["good"].as_bool(), told["scopes"][0].as_str()), (Some(true), Some("user:put")));
    assert_eq!(told["roles"][0], "w_context_writer");
    let shown = fine(&fixture, &[], &["token", "inspect", token]).await;
    assert!(shown.ends_with("The token is valid now.\n") && !shown.contains(token), "{shown}");

    let mut request = user(42).with_token(token);
    request.subject = request.subject.replace(".test.", ".newcomer.");
    fixture.process(ContextWriter, [request]).await;
    assert_eq!(fixture.count("users WHERE id = 42").await, 1);
    let id = told["id"].as_str().expect("an id");
    let listed = fine(&fixture, &[], &["token", "list", "--service", "newcomer"]).await;
    assert!(listed.contains(id) && listed.contains(" valid") && !listed.contains("never"), "{listed}");

    assert_eq!(fine(&fixture, &[], &["token", "revoke", id]).await, "revoked 1\n");
    assert_eq!(fine(&fixture, &[], &["token", "revoke", id]).await, "revoked 0\n");
    failed(&fixture, &["token", "inspect", token], "the service token was revoked").await;
    assert_eq!(fine(&fixture, &[], &["token", "list", "--user", "42"]).await, "no tokens\n");
    let all: Value =
        serde_json::from_str(&fine(&fixture, &[], &["token", "list", "--all", "--json"]).await).unwrap();
    assert_eq!(all["tokens"].as_array().map(Vec::len), Some(1));
    for _ in 0..3 {
        fine(&fixture, &keys, &issue).await;
    }
    assert_eq!(fine(&fixture, &[], &["token", "revoke", "--service", "newcomer"]).await, "revoked 3\n");

    assert!(fine(&fixture, &[], &["token", "service", "disable", "newcomer"]).await.contains("newcomer"));
    assert!(fine(&fixture, &[], &["token", "key", "list"]).await.contains("main "));
    assert!(
        fine(&fixture, &[], &["token", "key", "retire", "main"]).await.contains("its tokens are rejected")
    );
    assert!(!fine(&fixture, &[], &["token", "key", "list"]).await.contains("main "));
    assert!(fine(&fixture, &[], &["token", "service", "load"]).await.contains("simple-chat"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_named() {
    let fixture = Fixture::new().await;
    fixture.register("narrow", "context:put").await;
    for (arguments, message) in [
        (
            &["token", "issue", "--service", "nobody", "--user", "1"][..],
            "the service nobody is not registered or is disabled",
        ),
        (
            &["token", "issue", "--service", "No Body", "--user", "1"],
            "the service must be 1 to 64 characters",
        ),
        (&["token", "issue", "--service", "test", "--user", "-1"], "unexpected argument"),
        (&["token", "issue", "--service", "test", "--user", "01"], "without leading zeros"),
        (
            &["token", "issue", "--service", "test", "--user", "1", "--scope", "contexts:put"],
            "the scope contexts:put matches no request",
        ),
        (
            &["token", "issue", "--service", "test", "--user", "1", "--scope", "context"],
            "is not a scope; expected noun:verb, noun:* or *:*",
        ),
        (
            &["token", "issue", "--service", "narrow", "--user", "1", "--scope", "context:*"],
            "the service narrow may not have the scope context:*; it may have context:put",
        ),
        (
            &["token", "issue", "--service", "test", "--user", "1", "--life", "86401"],
            "86401 is not in 1..=86400",
        ),
        (&["token", "inspect", "x.y.z"], "the service token cannot be decoded"),
        (&["token", "revoke"], "required arguments were not provided"),
        (&["token", "revoke", "x"], "invalid value 'x'"),
        (&["token", "key", "generate", "Main"], "with a name of 1 to 32 characters out of a-z 0-9 -"),
        (&["token", "key", "add", "/no/such/file"], "/no/such/file cannot be read"),
        (&["token", "key", "retire", "other"], "no signing key other"),
        (&["token", "service", "put", "x"], "--scope <SCOPE>"),
        (&["token", "service", "disable", "nobody"], "the service nobody is not registered"),
        (&["token", "service", "load", "/no/such/file"], "/no/such/file"),
    ] {
        failed(&fixture, arguments, message).await;
    }
    let other = fixture.key_file("other.key", &format!("test private {}\n", "ab".repeat(32)));
    failed(&fixture, &["token", "key", "add", &other], "generate a key with a new name").await;
    let (well, _, err) = memfleet(
        &fixture,
        &[("MEMFLEET_TRUST__GRANT_KEY_FILE", "/no/such/key")],
        &["token", "issue", "--service", "test", "--user", "1"],
    )
    .await;
    assert!(!well && err.contains("/no/such/key cannot be read"), "{err}");
}

/// A service asks over NATS, as `memory.ask.token.issue.<service>`.
async fn ask(fixture: &Fixture, subject: &str, inbox: &str, body: &str) -> Option<(String, Value)> {
    let client = fixture.jetstream.client();
    let (subject, body) = (subject.to_owned(), body.to_owned());
    let mut answers = send_query(&client, subject, inbox, HeaderMap::new(), body).await;
    let message = tokio::time::timeout(std::time::Duration::from_secs(8), answers.next()).await.ok()??;
    let (code, body) = answer(&message);
    Some((code.unwrap_or_default(), body))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_asks_for_its_tokens() {
    let fixture = Fixture::new().await;
    fixture.register("narrow", "user:put context:put").await;
    let stop = tokio_util::sync::CancellationToken::new();
    let (settings, stopped) = (fixture.settings.clone(), stop.clone());
    let running = tokio::spawn(async move {
        token_issuer::run(testkit::token::issuer(), &settings, Readiness::new(token_issuer::NAME), stopped)
            .await
    });
    let on = format!("{}.narrow", contract::TOKEN_ISSUE);
    let client = fixture.jetstream.client();
    discovered(&client, "token-issuer", |info| info["endpoints"][0]["subject"].is_string()).await;

    let asked =
        ask(&fixture, &on, "_INBOX.narrow", r#"{"user_id": 7, "scopes": ["user:put"], "life_s": 60}"#).await;
    let (code, answer) = asked.expect("an answer");
    assert_eq!((code.as_str(), &answer["scopes"]), ("", &serde_json::json!(["user:put"])));
    let mut request = user(7).with_token(answer["token"].as_str().expect("a token"));
    request.subject = request.subject.replace(".test.", ".narrow.");
    fixture.process(ContextWriter, [request]).await;
    assert_eq!(fixture.count("users WHERE id = 7").await, 1);
    assert_eq!(fixture.lines("service FROM cross_service_auth WHERE user_id = 7").await, ["narrow"]);

    for (body, expected, word, field) in [
        ("", "400", "malformed", Value::Null),
        (r#"{"user_id": -1}"#, "400", "malformed", Value::Null),
        (r#"{"user_id": 1, "admin": true}"#, "400", "malformed", Value::Null),
        // What the asker wrote is in the message, and no header can hold it.
        (r#"{"user_id": 1, "a\nb": true}"#, "400", "malformed", Value::Null),
        (r#"{"user_id": 1, "scopes": ["context"]}"#, "400", "malformed", "scopes".into()),
        (r#"{"user_id": 1, "scopes": ["*:*"]}"#, "403", "denied", "scopes".into()),
        (r#"{"user_id": 1, "life_s": 86401}"#, "400", "malformed", "life_s".into()),
    ] {
        let (code, answer) = ask(&fixture, &on, "_INBOX.narrow", body).await.expect("an answer");
        assert_eq!(
            (code.as_str(), &answer["code"], &answer["field"]),
            (expected, &word.into(), &field),
            "{body}"
        );
    }
    let nobody = format!("{}.nobody", contract::TOKEN_ISSUE);
    let (code, _) = ask(&fixture, &nobody, "_INBOX.nobody", r#"{"user_id": 1}"#).await.expect("an answer");
    assert_eq!(code, "403");
    // Nobody is answered whose inbox is not the service's.
    assert!(ask(&fixture, &on, "_INBOX.test", r#"{"user_id": 7}"#).await.is_none());
    assert_eq!(fixture.count("cross_service_auth").await, 1);
    stop.cancel();
    running.await.expect("no panic").expect("a clean end");
}
