//! Dialogues become requests: valid ones, all of them, the same each time, and they add up to what the file says.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::path::Path;

use contract::{MessageRole, Request, UserId};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use playground::dialogue::{Corpus, Dialogue, Dialogues, Mapper, Prepared, SAMPLE, Speaker};
use serde_json::Value;

use crate::support::schema_guided_dialogues;

fn sample() -> Vec<Dialogue> {
    Dialogues::from_bytes("the sample", SAMPLE).unwrap().map(Result::unwrap).collect()
}

fn map(corpus: Corpus, dialogues: &[Dialogue]) -> Vec<Prepared> {
    let mut mapper = Mapper::new(corpus, 100).unwrap();
    dialogues.iter().flat_map(|dialogue| mapper.requests(dialogue).unwrap()).collect()
}

fn decoded(requests: &[Prepared]) -> Vec<(UserId, Request)> {
    let decode = |request: &Prepared| {
        let subject = request.subject.to_string().parse().unwrap();
        let decoded = Request::decode(&subject, &request.body).unwrap();
        assert_eq!(decoded.kind().name(), request.kind.name());
        (subject.user_id, decoded)
    };
    requests.iter().map(decode).collect()
}

fn count(requests: &[Prepared]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in requests {
        *counts.entry(request.kind.name()).or_insert(0) += 1;
    }
    counts
}

/// The slots of every session after its last turn, read from the file's text without any of our types.
fn final_slots(corpus: Corpus, text: &str) -> BTreeMap<String, Value> {
    let mut slots = BTreeMap::new();
    for line in text.lines() {
        let dialogue: Value = serde_json::from_str(line).unwrap();
        let session = corpus.session_id(dialogue["dialogue_id"].as_str().unwrap());
        let mut latest: BTreeMap<&str, &Value> = BTreeMap::new();
        for turn in dialogue["turns"].as_array().unwrap() {
            for frame in turn["frames"].as_array().into_iter().flatten() {
                latest.insert(frame["service"].as_str().unwrap(), &frame["slot_values"]);
            }
        }
        for (service, values) in latest {
            for (slot, values) in values.as_object().unwrap() {
                slots.insert(format!("{session} {service}.{slot}"), values.clone());
            }
        }
    }
    slots
}

/// What a store that follows the contract holds after the requests: higher versions win.
fn replayed(requests: &[(UserId, Request)]) -> BTreeMap<String, Value> {
    let mut store: BTreeMap<String, (i64, Option<Value>)> = BTreeMap::new();
    for (_, request) in requests {
        #[allow(clippy::wildcard_enum_match_arm, reason = "the rest is no context")]
        let (session, key, version, value) = match request {
            Request::ContextPut(put) => {
                let value = serde_json::from_str(put.context_value.as_str()).unwrap();
                (&put.session_id, &put.context_key, put.version, Some(value))
            }
            Request::ContextRemove(remove) => (&remove.session_id, &remove.context_key, remove.version, None),
            _ => continue,
        };
        let entry = store.entry(format!("{session} {key}")).or_insert((0, None));
        assert!(version.get() > entry.0, "{session} {key}: every request of a key has a higher version");
        *entry = (version.get(), value);
    }
    let kept = store.into_iter().filter_map(|(key, (_, value))| Some((key, value?)));
    kept.filter(|(key, _)| !key.ends_with(".intent")).collect()
}

fn assert_well_mapped(corpus: Corpus, dialogues: &[Dialogue], text: &str) -> BTreeMap<String, usize> {
    let requests = map(corpus, dialogues);
    let counts = count(&requests);
    let turns: usize = dialogues.iter().map(|dialogue| dialogue.turns.len()).sum();
    for once in ["session.close", "conversation.put", "summary.put"] {
        assert_eq!(counts[once], dialogues.len(), "{once} comes once a dialogue");
    }
    let of_syncs = 2 * counts.get("sync.start").copied().unwrap_or_default();
    assert_eq!(counts["session.open"], dialogues.len() + of_syncs, "once a dialogue, and two for a sync");
    assert_eq!(counts["message.add"], turns, "every turn is a message");

    let decoded = decoded(&requests);
    let expected = final_slots(corpus, text);
    assert!(!expected.is_empty());
    let replayed = replayed(&decoded);
    assert!(replayed == expected, "{} slots of {} are as in the file", replayed.len(), expected.len());

    let ids: HashSet<_> = requests.iter().map(|request| request.id).collect();
    assert_eq!(ids.len(), requests.len(), "ids are unique");
    let again = map(corpus, dialogues);
    assert!(
        again.iter().zip(&requests).all(|(a, b)| (a.id, &a.body) == (b.id, &b.body)),
        "and the same each time"
    );
    let messages: HashSet<_> =
        decoded.iter().filter_map(|(user, request)| message_id(*user, request)).collect();
    assert_eq!(messages.len(), turns, "so are message ids");
    counts
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the rest is no message")]
fn message_id(user: UserId, request: &Request) -> Option<(UserId, uuid::Uuid)> {
    match request {
        Request::MessageAdd(message) => Some((user, message.message_id)),
        _ => None,
    }
}

#[test]
fn the_sample_becomes_requests_of_every_kind() {
    let dialogues = sample();
    let counts = assert_well_mapped(Corpus::Sample, &dialogues, std::str::from_utf8(SAMPLE).unwrap());
    assert!(counts["message.add"] >= 300);
    assert!(counts["user.put"] >= 10);
    assert_eq!(counts["user.put"], counts["profile.put"]);
    // A person of the sample who was restricted or erased would be missing from the demonstration.
    let shown = contract::REQUESTS.iter().filter(|kind| kind.noun != "privacy").map(|kind| kind.name());
    let unseen: Vec<String> = shown.filter(|name| !counts.contains_key(name)).collect();
    assert!(unseen.is_empty(), "the sample lacks {unseen:?}");
}

#[test]
fn what_the_sample_refers_to_came_before() {
    let (mut users, mut sessions, mut messages) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (user, request) in decoded(&map(Corpus::Sample, &sample())) {
        if let Request::UserPut(_) = request {
            users.insert(user);
        }
        assert!(user == UserId::PLATFORM || users.contains(&user), "user {user} is known first");
        #[allow(clippy::wildcard_enum_match_arm, reason = "the rest refers to nothing")]
        match request {
            Request::SessionOpen(open) => {
                assert!(open.parent_session_id.is_none_or(|parent| sessions.contains(&(user, parent))));
                sessions.insert((user, open.session_id));
            }
            Request::ContextPut(put) => assert!(sessions.contains(&(user, put.session_id))),
            Request::ContextRemove(remove) => assert!(sessions.contains(&(user, remove.session_id))),
            Request::SummaryPut(put) => assert!(sessions.contains(&(user, put.session_id))),
            Request::MessageAdd(message) => {
                assert!(matches!(message.role, MessageRole::User | MessageRole::Assistant));
                messages.insert((user, message.message_id));
            }
            Request::FeedbackPut(put) => assert!(messages.contains(&(user, put.message_id))),
            _ => {}
        }
    }
}

#[test]
fn schema_guided_dialogues_become_requests() {
    let Some(path) = schema_guided_dialogues() else { return };
    let dialogues: Vec<Dialogue> = Dialogues::open(&path).unwrap().map(Result::unwrap).collect();
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(&path).unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(dialogues.len(), 2_098);
    let counts = assert_well_mapped(Corpus::Sgd, &dialogues, &text);
    assert_eq!(counts["message.add"], 38_768);
    assert_eq!(counts["user.put"], 100);
}

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

const DIALOGUE: &str =
    r#"{"dialogue_id":"a","services":["S"],"turns":[{"speaker":"USER","utterance":"Hi"}]}"#;

#[test]
fn plain_and_compressed_files_are_told_apart() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(format!("\n{DIALOGUE}\n").as_bytes()).unwrap();
    for content in [DIALOGUE.as_bytes().to_vec(), gzip.finish().unwrap()] {
        let file = file(&content);
        let read: Vec<Dialogue> = Dialogues::open(file.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].turns[0].speaker, Speaker::User);
    }
}

#[test]
fn a_line_that_is_no_dialogue_is_named() {
    let too_long = format!("{DIALOGUE}\n{}", " ".repeat(playground::dialogue::LINE_BYTES + 1));
    let cases = [
        (format!("{DIALOGUE}\n{{\"dialogue_id\":3}}"), "line 2: invalid dialogue: invalid type"),
        (too_long, "line 2: is longer than"),
    ];
    for (content, expected) in cases {
        let file = file(content.as_bytes());
        let mut dialogues = Dialogues::open(file.path()).unwrap();
        dialogues.next().unwrap().unwrap();
        let error = dialogues.next().unwrap().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(dialogues.next().is_none(), "nothing follows an error");
    }
    let error = Dialogues::open(Path::new("/nowhere")).err().unwrap().to_string();
    assert!(error.starts_with("/nowhere: cannot be opened"), "{error}");
}

#[test]
fn a_dialogue_that_cannot_be_carried_is_named() {
    let refused = |json: &str| {
        let dialogue: Dialogue = serde_json::from_str(json).unwrap();
        Mapper::new(Corpus::Sgd, 1).unwrap().requests(&dialogue).unwrap_err().to_string()
    };
    let nul = DIALOGUE.replace("Hi", r"Hi\u0000");
    assert!(
        refused(&nul).starts_with("dialogue \"a\": turns[0].utterance contains a NUL"),
        "{}",
        refused(&nul)
    );
    let platform = DIALOGUE.replace("\"services\"", "\"user\":0,\"services\"");
    assert!(refused(&platform).contains("user is 0; it must be from 1"), "{}", refused(&platform));
    let blank = DIALOGUE.replace("\"a\"", "\"a b\"");
    assert!(refused(&blank).contains("must be 1 to 128 characters"), "{}", refused(&blank));

    let dialogue: Dialogue = serde_json::from_str(DIALOGUE).unwrap();
    let mut mapper = Mapper::new(Corpus::Sgd, 1).unwrap();
    mapper.requests(&dialogue).unwrap();
    let error = mapper.requests(&dialogue).unwrap_err().to_string();
    assert_eq!(error, "dialogue \"a\": is a duplicate in the same file");
}
