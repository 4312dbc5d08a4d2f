//! A body that cannot be decoded is rejected with the name of the field at fault.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use contract::{Malformed, REQUESTS, Request, RequestSubject, limit};
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

fn subject(name: &str) -> RequestSubject {
    format!("memory.req.simple-chat.{name}.42").parse().unwrap()
}

fn refusal(name: &str, body: &[u8]) -> Malformed {
    match Request::decode(&subject(name), body) {
        Err(malformed) => malformed,
        Ok(request) => panic!("{name} took {:?} as {request:?}", String::from_utf8_lossy(body)),
    }
}

/// A `context.put` with one field replaced, or removed where the value is null.
fn context(field: &str, value: Value) -> Vec<u8> {
    let mut body = json!({ "session_id": "s", "context_key": "k", "context_value": 1, "version": 1 });
    let fields = body.as_object_mut().unwrap();
    if value.is_null() {
        fields.remove(field);
    } else {
        fields.insert(field.to_owned(), value);
    }
    serde_json::to_vec(&body).unwrap()
}

/// A `context.put` with one field given as JSON text.
fn context_text(field: &str, text: &str) -> Vec<u8> {
    let body = String::from_utf8(context(field, json!("HERE"))).unwrap();
    body.replace("\"HERE\"", text).into_bytes()
}

fn nested(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

#[test]
fn the_field_at_fault_is_named() {
    let long = "x".repeat(limit::KEY_CHARS + 1);
    let mut bad_utf8 = context("context_key", json!("HERE"));
    let at = bad_utf8.windows(4).position(|window| window == b"HERE").unwrap();
    bad_utf8[at] = 0xff;
    let table: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        (
            "unknown field",
            context("colour", json!("red")),
            "colour",
            "is unknown; expected one of `session_id`",
        ),
        ("wrong type", context("session_id", json!(5)), "session_id", "is an integer; expected a string"),
        (
            "wrong type of a number",
            context("version", json!("1")),
            "version",
            "is a string; expected an integer",
        ),
        ("wrong type of a flag", context("is_persistent", json!(1)), "is_persistent", "is an integer"),
        ("fraction for an integer", context("version", json!(1.5)), "version", "is a number with a fraction"),
        ("missing field", context("version", Value::Null), "version", "is missing"),
        ("missing free-form field", context("context_value", Value::Null), "context_value", "is missing"),
        ("given twice", br#"{"session_id":"a","session_id":"b"}"#.to_vec(), "session_id", "is given twice"),
        ("bad UTF-8", bad_utf8, "context_key", "invalid unicode"),
        ("NUL in a text", context("context_key", json!("a\u{0}b")), "context_key", "NUL"),
        (
            "NUL in nested JSON",
            context("context_value", json!({"a": [{"b": "\u{0}"}]})),
            "context_value",
            "NUL",
        ),
        ("NUL in a nested key", context("context_value", json!({"a": {"\u{0}": 1}})), "context_value", "NUL"),
        ("NUL as it is", context_text("context_key", "\"a\u{0}b\""), "context_key", "control character"),
        ("half a pair in a text", context_text("context_key", r#""\ud83d""#), "context_key", ""),
        (
            "half a pair in JSON",
            context_text("context_value", r#"["\ud83d x"]"#),
            "context_value",
            "surrogate",
        ),
        ("second half alone", context_text("context_value", r#""\ude00""#), "context_value", "surrogate"),
        ("deep nesting", context_text("context_value", &nested(65)), "context_value", "deeper than 64"),
        (
            "very deep nesting",
            context_text("context_value", &nested(100_000)),
            "context_value",
            "deeper than 64",
        ),
        (
            "a huge exponent",
            context_text("context_value", "[1E+99999]"),
            "context_value",
            "65536 further digits",
        ),
        (
            "many large exponents",
            context_text("context_value", &format!("[{}0]", "1e-300,".repeat(219))),
            "context_value",
            "65536 further digits",
        ),
        (
            "a long fraction",
            context_text("context_value", &format!("[0.{}]", "1".repeat(limit::FRACTION_DIGITS + 1))),
            "context_value",
            "16383 after the decimal point",
        ),
        (
            "a small exponent",
            context_text("context_value", "[-1.0e-16383]"),
            "context_value",
            "16383 after the decimal point",
        ),
        (
            "a large number",
            context_text("context_value", &"1".repeat(limit::WHOLE_DIGITS + 1)),
            "context_value",
            "131072 digits before",
        ),
        (
            "a large number with an exponent",
            context_text("context_value", &format!("{}e65536", "1".repeat(65_537))),
            "context_value",
            "131072 digits before",
        ),
        ("broken nesting", context_text("context_value", "[1,"), "context_value", ""),
        (
            "bad enumeration",
            context("access_level", json!("secret")),
            "access_level",
            "expected one of `private`",
        ),
        ("number below", context("version", json!(0)), "version", "is not between 1 and"),
        ("number above", context("priority", json!(101)), "priority", "is not between 0 and 100"),
        (
            "version of the far future",
            context("version", json!(i64::MAX)),
            "version",
            "more than a day ahead",
        ),
        (
            "version in microseconds",
            context("version", json!(1_700_000_000_000_000_i64)),
            "version",
            "more than a day ahead",
        ),
        ("number beyond 64 bits", context("version", json!(u64::MAX)), "version", "is out of range"),
        ("empty id", context("session_id", json!("")), "session_id", "1 to 128 characters"),
        ("id out of its alphabet", context("session_id", json!("@account")), "session_id", "A-Z a-z 0-9"),
        ("empty key", context("context_key", json!("")), "context_key", "is empty"),
        ("long key", context("context_key", json!(long)), "context_key", "longer than 256 characters"),
        ("bad time", context("expires_at", json!("tomorrow")), "expires_at", "is not a time in RFC 3339"),
        (
            "the last leap second",
            context("expires_at", json!("9999-12-31T23:59:60Z")),
            "expires_at",
            "is in the year 10000; it must be from 1 to 9999",
        ),
        (
            "number for a time",
            context("expires_at", json!(5)),
            "expires_at",
            "is an integer; expected a string",
        ),
        (
            "trailing garbage",
            [context("version", json!(2)), b" x".to_vec()].concat(),
            "body",
            "has more after",
        ),
        ("two objects", [context("version", json!(2)), b"{}".to_vec()].concat(), "body", "has more after"),
        (
            "array",
            br#"["s","k",1,"state","private",1,1,null,false]"#.to_vec(),
            "body",
            "must be a JSON object",
        ),
        ("text", b"\"s\"".to_vec(), "body", "must be a JSON object"),
        ("null", b"null".to_vec(), "body", "must be a JSON object"),
        ("nothing", Vec::new(), "body", "is empty"),
        ("no JSON", b"{session_id}".to_vec(), "body", "line 1 column 2"),
        ("no JSON, and said so", b"{session_id}".to_vec(), "body", "is not valid JSON: "),
        ("cut off", br#"{"session_id":"s""#.to_vec(), "body", "EOF"),
        (
            "cut off before a value",
            br#"{"session_id":"#.to_vec(),
            "body",
            "EOF while parsing a value at line 1",
        ),
        ("oversized", vec![b' '; limit::BODY_BYTES + 1], "body", "more than 1048576"),
    ];
    for (case, body, field, problem) in table {
        let malformed = refusal("context.put", &body);
        assert_eq!(malformed.field, field, "{case}: {malformed}");
        assert!(malformed.problem.contains(problem), "{case}: {malformed}");
    }
}

#[test]
fn the_place_in_a_list_is_named() {
    let body = json!({ "session_id": "s", "summary": "x", "key_topics": ["a", "b", ""] });
    let malformed = refusal("summary.put", body.to_string().as_bytes());
    assert_eq!(malformed.field, "key_topics[2]");
    let body = json!({ "session_id": "s", "summary": "x", "key_topics": vec!["t"; 65] });
    let malformed = refusal("summary.put", body.to_string().as_bytes());
    assert_eq!(malformed.to_string(), "key_topics: has 65 items, more than 64");
}

#[test]
fn an_object_is_asked_for_where_one_is_needed() {
    for value in ["[]", "\"{}\"", "null", "1"] {
        let body = format!(r#"{{"session_id":"s","chat_mode":"simple","configuration":{value}}}"#);
        let malformed = refusal("session.open", body.as_bytes());
        assert_eq!(malformed.to_string(), "configuration: must be a JSON object", "{value}");
    }
}

#[test]
fn no_text_of_the_publisher_is_repeated() {
    let second_factor =
        |secret: Value| json!({ "method": secret, "secret_key": secret, "is_enabled": secret });
    for secret in [json!("hunter2, expected"), json!(["hunter2"]), json!({"hunter2": 1})] {
        for field in ["method", "secret_key", "is_enabled"] {
            let mut body = json!({ "method": "totp", "secret_key": "x", "is_enabled": true });
            body[field] = second_factor(secret.clone())[field].clone();
            if let Err(malformed) =
                Request::decode(&subject("second-factor.put"), body.to_string().as_bytes())
            {
                assert_eq!(malformed.field.split('.').next(), Some(field));
                assert!(!malformed.problem.contains("hunter2"), "{malformed}");
            }
        }
    }
}

#[test]
fn a_misspelt_word_in_an_enumeration_is_repeated() {
    const EXPECTED: &str =
        "is not allowed; expected one of `simple`, `smart-router`, `expert-group`, `socratic`";
    let problem = |mode: &str| {
        let malformed =
            refusal("session.open", format!(r#"{{"session_id":"s","chat_mode":{mode}}}"#).as_bytes());
        assert_eq!(malformed.field, "chat_mode", "{mode}: {malformed}");
        malformed.problem
    };
    for word in ["simpel", "Smart_Router-2"] {
        assert_eq!(problem(&format!("{word:?}")), format!("{word:?} {EXPECTED}"));
    }
    // Anything else may be free text, or a secret in the wrong field.
    let long = "x".repeat(41);
    for text in ["", "a word", "hunter2!", "JBSWY3DPEHPK3PXP", "é", "a`b", "x`, expected `y", "a\"b", &long]
    {
        assert_eq!(problem(&json!(text).to_string()), format!("the value {EXPECTED}"), "{text}");
    }
    // Which of two values is at fault cannot be seen, and the key of an object is no value.
    assert_eq!(problem(r#""simpel","chat_mode":"other""#), format!("the value {EXPECTED}"));
    assert_eq!(problem(r#"{"simpel":1}"#), format!("the value {EXPECTED}"));
}

#[test]
fn a_misspelt_word_in_a_list_is_repeated() {
    let memory = json!({ "memory_id": Uuid::nil(), "vector_type": "respnse", "content_text": "x" });
    let malformed = refusal("vector.index", json!({ "memories": [memory] }).to_string().as_bytes());
    assert_eq!(
        malformed.to_string(),
        "memories[0].vector_type: \"respnse\" is not allowed; expected one of `query`, `response`, `context`, `knowledge`"
    );
}

#[test]
fn a_misspelt_field_is_followed_by_the_right_one() {
    let malformed = refusal("context.put", &context("contextKey", json!("k")));
    assert_eq!(malformed.field, "contextKey");
    let expected = "is unknown; did you mean `context_key`? (expected one of `session_id`, ";
    assert!(malformed.problem.starts_with(expected), "{malformed}");
}

#[test]
fn what_is_no_uuid_is_not_repeated() {
    for wrong in ["hunter2", "018f2c5e-7b1a-7c3d-9e4f-5a6b7c8d9e0x"] {
        let body = json!({ "message_id": wrong, "feedback_type": "rating" });
        let malformed = refusal("feedback.put", body.to_string().as_bytes());
        let expected = "message_id: is not a UUID, such as 018f2c5e-7b1a-7c3d-9e4f-5a6b7c8d9e0f";
        assert_eq!(malformed.to_string(), expected);
    }
}

#[test]
fn a_long_unknown_field_is_cut() {
    let malformed = refusal("context.put", &context(&"é".repeat(100_000), json!(1)));
    assert_eq!(malformed.field.chars().count(), limit::KEY_CHARS);
    assert!(malformed.problem.starts_with("is unknown"), "{malformed}");
}

#[test]
fn a_publishers_text_is_escaped() {
    let (hostile, shown) = ("x\n\u{1b}[2J\u{202e}", "x\\u{a}\\u{1b}[2J\\u{202e}");
    assert_eq!(refusal("context.put", &context(hostile, json!(1))).field, shown);
    let subject = RequestSubject { verb: hostile.to_owned(), ..subject("context.put") };
    let malformed = Request::decode(&subject, b"{}").unwrap_err();
    assert_eq!(malformed.problem, format!("no request is named context.{shown}"));
    // An escape is up to ten times as long as its character.
    let long = refusal("context.put", &context(&hostile.repeat(1_000), json!(1)));
    let length = long.field.chars().count();
    assert!((limit::KEY_CHARS - 10..=limit::KEY_CHARS).contains(&length), "{length}");
}

#[test]
fn the_platform_has_settings_only() {
    let decode = |name: &str, body: &Value| {
        let subject = format!("memory.req.simple-chat.{name}.0").parse().unwrap();
        Request::decode(&subject, body.to_string().as_bytes())
    };
    assert!(decode("setting.put", &json!({ "setting_key": "k", "setting_value": 1 })).is_ok());
    let malformed = decode("session.close", &json!({ "session_id": "s" })).unwrap_err();
    assert_eq!(malformed.field, "subject");
}

#[test]
fn a_request_that_does_not_exist_is_a_fault_of_the_subject() {
    for name in ["context.steal", "unicorn.put"] {
        assert_eq!(refusal(name, b"{}").field, "subject");
    }
}

#[test]
fn a_subject_must_be_ours() {
    for wrong in [
        "memory.req.simple-chat.context.put",
        "memory.req.simple-chat.context.put.42.1",
        "memory.req.simple-chat.context.put.-1",
        "memory.req.simple-chat.context.put.042",
        "memory.req.simple-chat.context.put.2147483648",
        "memory.req.Simple_Chat.context.put.42",
        "memory.req..context.put.42",
        "memory.req.simple-chat..put.42",
        "memory.event.simple-chat.context.put.42",
        "",
    ] {
        assert!(wrong.parse::<RequestSubject>().is_err(), "{wrong}");
    }
}

/// A value with the same key twice in one object: one PostgreSQL and a reader of the event would differ about.
const TWICE: &[&str] = &[
    r#"{"a":1,"a":1}"#,
    r#"{ "a" : 1 , "b" : 2 , "a" : 3 }"#,
    r#"{"a":1,"\u0061":2}"#,
    r#"{"\"":1,"\u0022":2}"#,
    r#"{"":1,"":2}"#,
    r#"{"é":1,"x":{},"\u00e9":2}"#,
    r#"[[{"x":{"a":[],"b":{"c":1},"a":[]}}]]"#,
    r#"{"a":{"a":1},"b":"}","a":1}"#,
    r#"{"b":{"x":1,"y":2},"a":"\\","b":1}"#,
];

#[test]
fn a_key_given_twice_is_refused_at_any_depth() {
    let with = |field: &str, body: Value, value: &str| {
        let mut body = body;
        body[field] = json!("HERE");
        body.to_string().replace("\"HERE\"", value).into_bytes()
    };
    let open = json!({ "session_id": "s", "chat_mode": "simple" });
    let decision =
        json!({ "decision_id": Uuid::nil(), "session_id": "s", "user_request": "", "routing_decision": 1 });
    for value in TWICE {
        for (name, body, field) in [
            ("context.put", context_text("context_value", value), "context_value"),
            (
                "setting.put",
                with("setting_value", json!({ "setting_key": "k", "sensitive": true }), value),
                "setting_value",
            ),
            (
                "session.open",
                with("configuration", open.clone(), &format!("{{\"in\":{value}}}")),
                "configuration",
            ),
            (
                "decision.log",
                with("tools_invoked", decision.clone(), &format!("[1,{value}]")),
                "tools_invoked[1]",
            ),
            (
                "vector.index",
                {
                    let memory = json!({ "memory_id": Uuid::nil(), "vector_type": "query", "content_text": "x", "metadata": "HERE" });
                    let body = json!({ "memories": [memory] }).to_string();
                    body.replace("\"HERE\"", &format!("{{\"in\":{value}}}")).into_bytes()
                },
                "memories[0].metadata",
            ),
        ] {
            let malformed = refusal(name, &body);
            let expected = format!("{field}: has an object with the same key twice");
            assert_eq!(malformed.to_string(), expected, "{name} with {value}");
        }
        assert!(contract::Json::new(*value).is_err(), "{value}");
        let query = format!(r#"{{"text":"x","metadata":{{"in":{value}}}}}"#);
        let malformed = contract::Query::decode("search", "similar", query.as_bytes()).unwrap_err();
        assert_eq!(malformed.to_string(), "metadata: has an object with the same key twice");
    }
}

#[test]
fn a_session_does_not_continue_itself() {
    let open = |parent: &str| {
        let body = json!({ "session_id": "s", "parent_session_id": parent, "chat_mode": "simple" });
        Request::decode(&subject("session.open"), body.to_string().as_bytes())
    };
    let malformed = open("s").unwrap_err();
    assert_eq!(malformed.to_string(), "parent_session_id: is the session itself; name another one");
    assert!(open("S").is_ok());
}

#[test]
fn what_is_odd_but_right_is_taken() {
    for text in [
        &nested(64),
        &format!("[{}1]", "[1],".repeat(200)),
        r#""\ud83d\ude00""#,
        r#""\\u0000""#,
        r#""\\\\ud83d""#,
        "null",
        "-0.0e+9",
        "[1e-45,1.7976931348623157E308]",
        &format!("[{}]", "1".repeat(limit::WHOLE_DIGITS)),
        &format!("[-0.{}]", "1".repeat(limit::FRACTION_DIGITS)),
        &format!("{}e65536", "1".repeat(65_536)),
        "[0.5e-16382,1E+65]",
        r#"{"a":1,"A":{"a":[{"a":{}},{"a":"a"}]},"":"a","b":"\":","c":"{\"a\":1,\"a\":1}"}"#,
        r#"{"1e99999":"1e99999","\"1e99999":true}"#,
        r#"{"a":"]["}"#,
    ] {
        let body = context_text("context_value", text);
        let request = Request::decode(&subject("context.put"), &body);
        assert!(request.is_ok(), "{text}: {request:?}");
    }
}

/// A nearly valid body: the fields of a request with arbitrary values.
fn nearly_right() -> impl Strategy<Value = (usize, Value)> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..3_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        "[a-z]{1,8}".prop_map(Value::from),
        prop_oneof!["private", "totp", "simple", "user"].prop_map(Value::from),
        Just(json!("\u{0}")),
    ];
    let value = leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    (0..REQUESTS.len(), prop::collection::vec((value, 0..8_u8), 12)).prop_map(|(at, values)| {
        let schema = (REQUESTS[at].schema)(schemars::SchemaGenerator::default());
        let fields = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        let mut body = serde_json::Map::new();
        for ((field, _), (value, coin)) in fields.into_iter().zip(values) {
            if coin > 0 {
                body.insert(field, value);
            }
        }
        (at, Value::Object(body))
    })
}

/// Decoding what a request encodes to gives the same request.
fn check(name: &str, body: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(request) = Request::decode(&subject(name), body) {
        let encoded = serde_json::to_string(&request).unwrap();
        let escaped = encoded.replace(r"\\", "");
        prop_assert!(!escaped.contains(r"\u0000") && !encoded.contains('\u{0}'), "NUL in {encoded}");
        let again = Request::decode(&subject(name), encoded.as_bytes())
            .map_err(|error| TestCaseError::fail(format!("{encoded}: {error}")))?;
        prop_assert_eq!(serde_json::to_string(&again).unwrap(), encoded);
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(at in 0..REQUESTS.len(), body in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&REQUESTS[at].name(), &body)?;
    }

    #[test]
    fn any_body_is_read_or_refused((at, body) in nearly_right()) {
        check(&REQUESTS[at].name(), body.to_string().as_bytes())?;
    }

    #[test]
    fn any_cut_or_bent_body_is_read_or_refused(
        (at, body) in nearly_right(), cut in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = body.to_string().into_bytes();
        let place = cut.index(bytes.len());
        bytes[place] = byte;
        check(&REQUESTS[at].name(), &bytes)?;
        bytes.truncate(place);
        check(&REQUESTS[at].name(), &bytes)?;
    }
}
