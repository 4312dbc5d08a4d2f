//! Which service tokens are accepted, and what they authorize.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use contract::{RequestSubject, UserId};
use data_encoding::BASE64URL_NOPAD as BASE64;
use proptest::prelude::*;
use serde_json::{Value, json};
use trust::{
    Grant, GrantKey, IssueError, MAX_TOKEN_BYTES, MAX_TOKEN_LIFETIME, PrivateKey, PublicKey, Refusal, Scope,
    Token, TokenIssuer, TokenRequest, verify, worker_role,
};

fn signing() -> PrivateKey {
    PrivateKey::parse(&format!("main private {}", "9d".repeat(32))).unwrap()
}

fn grants() -> GrantKey {
    GrantKey::parse(&format!("main {}", "6b".repeat(32))).unwrap()
}

fn issuer() -> TokenIssuer {
    TokenIssuer::new(signing(), grants(), "memfleet")
}

fn request() -> TokenRequest {
    TokenRequest {
        service: "simple-chat".parse().unwrap(),
        user_id: UserId::new(42).unwrap(),
        session: None,
        scopes: Scope::parse_list("context:put session:*").unwrap(),
        life: Duration::from_secs(900),
    }
}

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn read(token: &str) -> Result<Token, Refusal> {
    let key = signing().public();
    verify(token, "memfleet", |name| (name == key.name()).then_some(&key))
}

fn subject(text: &str) -> RequestSubject {
    text.parse().unwrap()
}

/// A correctly signed token with this header and these claims.
fn signed(header: &Value, claims: &Value) -> String {
    let text = format!(
        "{}.{}",
        BASE64.encode(header.to_string().as_bytes()),
        BASE64.encode(claims.to_string().as_bytes())
    );
    format!("{text}.{}", BASE64.encode(&signing().sign(text.as_bytes())))
}

fn header() -> Value {
    json!({ "alg": "EdDSA", "typ": "memfleet+jwt", "kid": "main" })
}

fn claims() -> Value {
    let token = issuer().issue(&request(), now()).unwrap().token;
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64.decode(claims.as_bytes()).unwrap()).unwrap()
}

fn with(mut object: Value, field: &str, value: Value) -> Value {
    object[field] = value;
    object
}

fn without(mut object: Value, field: &str) -> Value {
    object.as_object_mut().unwrap().remove(field);
    object
}

#[test]
fn what_is_issued_is_read_and_carries_the_grant_of_its_worker() {
    let issued = issuer().issue(&request(), now()).unwrap();
    let token = read(&issued.token).unwrap();
    assert_eq!((token.id(), token.key_name(), token.service().as_str()), (issued.id, "main", "simple-chat"));
    assert_eq!((token.user_id().get(), token.not_before(), token.expires()), (42, NOW, NOW + 900));
    let role = worker_role("context-writer");
    // Its scopes cover requests and queries about contexts.
    assert_eq!(token.roles().collect::<Vec<_>>(), [role.as_str(), "w_memory_reader"]);
    let grant = grants().seal(&Grant {
        user_id: token.user_id(),
        session: None,
        service: token.service(),
        role: &role,
        id: issued.id,
        expires_at: issued.grants_expire,
    });
    assert_eq!(**token.grant(&role).unwrap(), grant);
    assert_eq!(token.grant("w_router_logger").unwrap_err(), Refusal::Grant);
    assert!(issued.token.len() < 700, "it travels with every message: {} bytes", issued.token.len());
}

#[test]
fn it_is_good_for_its_service_its_user_its_scopes_and_its_time_only() {
    let token = read(&issuer().issue(&request(), now()).unwrap().token).unwrap();
    let put = "memory.req.simple-chat.context.put.42";
    for (on, at, expected) in [
        (put, NOW, Ok(())),
        (put, NOW - 5, Ok(())),
        (put, NOW - 6, Err(Refusal::NotYetValid)),
        (put, NOW + 904, Ok(())),
        (put, NOW + 905, Err(Refusal::Expired)),
        ("memory.req.simple-chat.session.close.42", NOW, Ok(())),
        ("memory.req.simple-chat.context.remove.42", NOW, Err(Refusal::Scope)),
        ("memory.req.simple-chat.contexts.put.42", NOW, Err(Refusal::Scope)),
        ("memory.req.simple-chat.context.put.43", NOW, Err(Refusal::User)),
        ("memory.req.simple-chat.context.put.0", NOW, Err(Refusal::User)),
        ("memory.req.smart-router.context.put.42", NOW, Err(Refusal::Service)),
    ] {
        assert_eq!(token.check(&subject(on), None, at), expected, "{on} at {at}");
    }
    let of_session = TokenRequest { session: Some(contract::SessionId::new("s").unwrap()), ..request() };
    let token = read(&issuer().issue(&of_session, now()).unwrap().token).unwrap();
    for (session, expected) in
        [(Some("s"), Ok(())), (Some("t"), Err(Refusal::Session)), (None, Err(Refusal::Session))]
    {
        assert_eq!(token.check(&subject(put), session, NOW), expected, "{session:?}");
    }
}

/// RFC 8725, point by point.
#[test]
fn no_token_is_believed_that_is_not_exactly_one_of_ours() {
    let good = signed(&header(), &claims());
    read(&good).unwrap();
    let (text, signature) = good.rsplit_once('.').unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let other = PrivateKey::parse(&format!("main private {}", "11".repeat(32))).unwrap();
    let hmac = |key: &[u8]| {
        use hmac::{Hmac, KeyInit, Mac};
        let header = BASE64.encode(with(header(), "alg", json!("HS256")).to_string().as_bytes());
        let text = format!("{header}.{}", parts[1]);
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
        mac.update(text.as_bytes());
        format!("{text}.{}", BASE64.encode(&mac.finalize().into_bytes()))
    };
    let none = BASE64.encode(with(header(), "alg", json!("none")).to_string().as_bytes());
    let public = signing().public().to_bytes();
    let long = "x".repeat(MAX_TOKEN_BYTES);
    let cases = [
        ("nothing", String::new(), Refusal::Malformed),
        ("a word", "token".to_owned(), Refusal::Malformed),
        ("two parts", text.to_owned(), Refusal::Malformed),
        ("four parts", format!("{good}.x"), Refusal::Malformed),
        ("a huge one", format!("{long}.{long}.{long}"), Refusal::Malformed),
        ("huge by a claim", signed(&header(), &with(claims(), "scope", json!(long))), Refusal::Malformed),
        ("padding", format!("{good}=="), Refusal::Malformed),
        ("alg none without a signature", format!("{none}.{}.", parts[1]), Refusal::Algorithm),
        ("alg none with the signature", format!("{none}.{}.{signature}", parts[1]), Refusal::Algorithm),
        ("HMAC under the public key", hmac(&public), Refusal::Algorithm),
        ("HMAC under the public key's text", hmac(signing().public().line().as_bytes()), Refusal::Algorithm),
        ("alg eddsa", signed(&with(header(), "alg", json!("eddsa")), &claims()), Refusal::Algorithm),
        ("no alg", signed(&without(header(), "alg"), &claims()), Refusal::Malformed),
        ("another type", signed(&with(header(), "typ", json!("JWT")), &claims()), Refusal::Type),
        ("no type", signed(&without(header(), "typ"), &claims()), Refusal::Type),
        ("an unknown key", signed(&with(header(), "kid", json!("other")), &claims()), Refusal::UnknownKey),
        ("a path as key", signed(&with(header(), "kid", json!("../main")), &claims()), Refusal::UnknownKey),
        ("no key", signed(&without(header(), "kid"), &claims()), Refusal::UnknownKey),
        ("its own key", signed(&with(header(), "jwk", json!({})), &claims()), Refusal::Malformed),
        ("a critical header", signed(&with(header(), "crit", json!(["exp"])), &claims()), Refusal::Malformed),
        (
            "another key's signature",
            format!("{text}.{}", BASE64.encode(&other.sign(text.as_bytes()))),
            Refusal::Signature,
        ),
        ("half a signature", format!("{text}.{}", BASE64.encode(&[7; 32])), Refusal::Signature),
        ("no signature", format!("{text}."), Refusal::Signature),
        ("another issuer", signed(&header(), &with(claims(), "iss", json!("other"))), Refusal::Issuer),
        ("another audience", signed(&header(), &with(claims(), "aud", json!("staging"))), Refusal::Audience),
        ("two audiences", signed(&header(), &with(claims(), "aud", json!(["memfleet"]))), Refusal::Malformed),
        ("a negative user", signed(&header(), &with(claims(), "uid", json!(-1))), Refusal::Malformed),
        ("a user as text", signed(&header(), &with(claims(), "uid", json!("42"))), Refusal::Malformed),
        (
            "no such service",
            signed(&header(), &with(claims(), "sub", json!("Simple Chat"))),
            Refusal::Malformed,
        ),
        (
            "a session that is none",
            signed(&header(), &with(claims(), "sid", json!("a|b"))),
            Refusal::Malformed,
        ),
        ("a broken time", signed(&header(), &with(claims(), "exp", json!(1.5))), Refusal::Malformed),
        ("a time before 1970", signed(&header(), &with(claims(), "exp", json!(-1))), Refusal::Malformed),
        ("no life", signed(&header(), &with(claims(), "exp", json!(NOW))), Refusal::Lifetime),
        (
            "ends before it begins",
            signed(&header(), &with(claims(), "exp", json!(NOW - 1))),
            Refusal::Lifetime,
        ),
        (
            "a day and a second",
            signed(&header(), &with(claims(), "exp", json!(NOW + MAX_TOKEN_LIFETIME.as_secs() + 1))),
            Refusal::Lifetime,
        ),
        ("for ever", signed(&header(), &with(claims(), "exp", json!(u64::MAX))), Refusal::Lifetime),
        ("no scope", signed(&header(), &with(claims(), "scope", json!(""))), Refusal::Malformed),
        (
            "too many scopes",
            signed(&header(), &with(claims(), "scope", json!(vec!["a:b"; 65].join(" ")))),
            Refusal::Malformed,
        ),
        ("a claim of its own", signed(&header(), &with(claims(), "admin", json!(true))), Refusal::Malformed),
    ];
    for (what, token, expected) in cases {
        assert_eq!(read(&token).unwrap_err(), expected, "{what}");
    }
    for claim in ["iss", "aud", "sub", "uid", "scope", "jti", "nbf", "exp", "grant"] {
        assert_eq!(
            read(&signed(&header(), &without(claims(), claim))).unwrap_err(),
            Refusal::Malformed,
            "{claim}"
        );
    }
    // Every bit of the text is under the signature.
    for at in 0..text.len() {
        let mut changed = good.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(changed == good || read(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn a_key_of_small_order_signs_for_nobody() {
    // The neutral element verifies, loosely taken, a signature of zeros over anything.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    if let Ok(weak) = PublicKey::from_bytes("main", &neutral) {
        let mut signature = [0; 64];
        signature[0] = 1;
        let good = signed(&header(), &claims());
        let text = good.rsplit_once('.').unwrap().0;
        let token = format!("{text}.{}", BASE64.encode(&signature));
        assert_eq!(verify(&token, "memfleet", |_| Some(&weak)).unwrap_err(), Refusal::Signature);
    }
}

/// A scope that only widens what a request may do is of the worker that processes the request.
#[test]
fn a_widening_scope_is_issued() {
    let scopes = Scope::parse_list("sync:private").unwrap();
    let token = read(&issuer().issue(&TokenRequest { scopes, ..request() }, now()).unwrap().token).unwrap();
    assert!(token.scopes().iter().any(|scope| scope.allows("sync", "private")));
    assert!(
        token.grant(&worker_role("memory-sync")).is_ok()
            && token.grant(&worker_role("memory-reader")).is_err()
    );
}

#[test]
fn what_can_be_no_token_is_not_issued() {
    let issue = |change: fn(&mut TokenRequest)| {
        let mut wanted = request();
        change(&mut wanted);
        issuer().issue(&wanted, now()).unwrap_err()
    };
    assert_eq!(issue(|wanted| wanted.life = Duration::ZERO), IssueError::Lifetime(0));
    assert_eq!(
        issue(|wanted| wanted.life = MAX_TOKEN_LIFETIME + Duration::from_secs(1)),
        IssueError::Lifetime(86_401)
    );
    assert_eq!(issue(|wanted| wanted.scopes.clear()), IssueError::Scopes(0));
    let nothing: Scope = "contexts:put".parse().unwrap();
    let told = issue(|wanted| wanted.scopes = vec!["contexts:put".parse().unwrap()]);
    assert!(told.to_string().contains("no query (did you mean context:put?); "), "{told}");
    assert_eq!(told, IssueError::UnmatchedScope(nothing));
    let far: Scope = "unicorn:ride".parse().unwrap();
    assert!(!IssueError::UnmatchedScope(far).to_string().contains("did you mean"));
    assert!(format!("{:?}", issuer()).contains("main") && !format!("{:?}", issuer()).contains("6b6b"));
}

/// RFC 8037, appendix A.4.
#[test]
fn a_known_signature() {
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let key = PrivateKey::parse(&format!("known private {seed}")).unwrap();
    let text = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert_eq!(BASE64.encode(&key.sign(text.as_bytes())), signature);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_no_token_is_believed(text in "\\PC{0,200}") {
        prop_assert!(read(&text).is_err());
    }

    #[test]
    fn no_signed_nonsense_panics(header in "\\PC{0,60}", claims in "\\PC{0,200}") {
        let text = format!("{}.{}", BASE64.encode(header.as_bytes()), BASE64.encode(claims.as_bytes()));
        let token = format!("{text}.{}", BASE64.encode(&signing().sign(text.as_bytes())));
        prop_assert!(read(&token).is_err());
    }
}
