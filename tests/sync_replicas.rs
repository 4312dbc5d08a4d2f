//! Several replicas at once, batches of any size, redelivery, and a real corpus.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use context_writer::ContextWriter;
use fastrand::Rng;
use flate2::read::GzDecoder;
use memory_sync::{Job, MemorySync};
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, eventually, set_duplicate_window};

use crate::support::schema_guided_dialogues;
use crate::support::sync::{
    Sync, assert_replays, memory, open, put, syncer, tick, with_sessions, without_wakes, write,
};

/// Processes requests with replicas of this batch size.
async fn with_replicas(fixture: &Fixture, replicas: usize, batch: usize, requests: Vec<RequestMessage>) {
    let mut settings = fixture.settings.clone();
    settings.worker.batch_size = batch;
    let workers: Vec<_> =
        (0..replicas).map(|_| fixture.run_with(syncer(fixture), settings.clone())).collect();
    fixture.publish(requests).await;
    fixture.drained::<MemorySync>().await;
    for worker in workers {
        worker.stop().await.expect("a clean end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_sync_the_same_pair_in_both_directions_at_once() {
    let fixture = with_sessions(&["a", "b"]).await;
    for round in 1..=4 {
        let of = |session: &str, key: usize| {
            let value = json!({ format!("{session}{round}"): round });
            put(session, &format!("k{key}"), value, round)
        };
        write(&fixture, (0..20).flat_map(|key| [of("a", key), of("b", key)])).await;
        let both = (0..30).flat_map(|_| [Sync::new().transfer("a", "b"), Sync::new().transfer("b", "a")]);
        with_replicas(&fixture, 2, 3, both.collect()).await;
        let (a, b) = (memory(&fixture, "a").await, memory(&fixture, "b").await);
        assert_eq!(a, b, "round {round}");
        assert_eq!(a.len(), 20);
        let both = format!("{{\"a{round}\": {round}, \"b{round}\": {round}}}");
        assert!(a.iter().all(|line| line.ends_with(&both)), "{a:?}");
    }
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let syncs = fixture.count("cross_service_memory_sync WHERE sync_status = 'completed'").await;
    assert_eq!(syncs, 4 * 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_result_is_the_same_in_batches_of_any_size() {
    let mut results = BTreeSet::new();
    for batch in [1, 3, 64] {
        let fixture = with_sessions(&["a", "b", "c", "d"]).await;
        let sessions = ["a", "b", "c", "d"];
        for version in 1..=3 {
            for (n, session) in sessions.iter().enumerate() {
                let (n, other) = (i64::try_from(n).expect("a number"), version);
                write(
                    &fixture,
                    [
                        put(session, "count.n", json!(n + other), version),
                        put(session, "set.s", json!([n, other]), version),
                        put(session, "text.t", json!(format!("{session} says {other}\nand more")), version),
                        put(session, "k", json!({ *session: version, "same": n * other }), version),
                    ],
                )
                .await;
            }
            let pairs = [
                ("a", "b"),
                ("b", "c"),
                ("c", "d"),
                ("d", "a"),
                ("a", "c"),
                ("b", "a"),
                ("d", "b"),
                ("c", "b"),
            ];
            let syncs = pairs.map(|(source, target)| Sync::new().transfer(source, target));
            with_replicas(&fixture, 1, batch, syncs.into()).await;
        }
        // Twice round, so that all know all.
        for _ in 0..2 {
            let ring = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")];
            let syncs = ring.map(|(source, target)| Sync::new().transfer(source, target));
            with_replicas(&fixture, 1, batch, syncs.into()).await;
        }
        let all: Vec<Vec<String>> = [
            memory(&fixture, "a").await,
            memory(&fixture, "b").await,
            memory(&fixture, "c").await,
            memory(&fixture, "d").await,
        ]
        .into();
        assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
        results.insert(all);
        assert_replays(&fixture).await;
    }
    assert_eq!(results.len(), 1, "{results:#?}");
}

const SEEDS: std::ops::Range<u64> = 0..3;
const NAMES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 5] = ["count.n", "set.s", "text.t", "fact.f", "k"];

/// One thing that happens in a history.
enum Step {
    /// A session puts a key.
    Put(RequestMessage),
    /// These syncs are requested together.
    Syncs(Vec<RequestMessage>),
    /// The job carries on the live sync.
    Tick,
}

/// The session of a history.
fn name(seed: u64, session: usize) -> String {
    format!("{}{seed}", NAMES[session])
}

fn value(random: &mut Rng, key: &str) -> Value {
    let number = random.u8(0..6);
    match key {
        "count.n" => json!(number),
        "set.s" => json!((0..number).filter(|_| random.bool()).collect::<Vec<_>>()),
        "text.t" => json!((0..number).map(|_| format!("w{}", random.u8(0..9))).collect::<Vec<_>>().join(" ")),
        "fact.f" => json!(format!("fact {number}")),
        _ => json!({ "same": number, format!("m{}", random.u8(0..3)): random.u8(0..3) }),
    }
}

/// What happens to three sessions, of which the second one follows the first.
fn history(seed: u64) -> Vec<Step> {
    let mut random = Rng::with_seed(seed);
    let mut versions: BTreeMap<(usize, &str), i64> = BTreeMap::new();
    let mut steps = vec![Step::Syncs(vec![Sync::new().start("state_sync", &name(seed, 0), &name(seed, 1))])];
    for _ in 0..3 {
        for _ in 0..random.usize(2..5) {
            let (session, key) = (random.usize(0..NAMES.len()), KEYS[random.usize(0..KEYS.len())]);
            let version = versions.entry((session, key)).or_default();
            *version += 1;
            steps.push(Step::Put(put(&name(seed, session), key, value(&mut random, key), *version)));
        }
        let syncs = (0..random.usize(1..5)).map(|_| {
            let (source, further) = (random.usize(0..NAMES.len()), random.usize(1..NAMES.len()));
            Sync::new().transfer(&name(seed, source), &name(seed, (source + further) % NAMES.len()))
        });
        steps.push(Step::Syncs(syncs.collect()));
        if random.bool() {
            steps.push(Step::Tick);
        }
    }
    steps.push(Step::Tick);
    steps
}

/// Publishes a request until the broker stores it, whatever it has stored before.
async fn publish_again(fixture: &Fixture, request: &RequestMessage) {
    eventually("the broker has forgotten the first one", async || {
        let (headers, body) = (request.header_map(), request.body.clone().into());
        let sent = fixture.jetstream.publish_with_headers(request.subject.clone(), headers, body).await;
        let stored = sent.expect("a publish").await.expect("an acknowledged publish");
        (!stored.duplicate).then_some(())
    })
    .await;
}

/// Has a history happen. With a source of chance, some messages come twice, and batches are cut anywhere.
async fn happen(fixture: &Fixture, steps: &[Step], mut chance: Option<Rng>) {
    let mut settings = fixture.settings.clone();
    for step in steps {
        settings.worker.batch_size = chance.as_mut().map_or(64, |random| random.usize(1..=3));
        match step {
            Step::Put(request) => {
                fixture.publish([request.clone()]).await;
                fixture.drained::<ContextWriter>().await;
            }
            Step::Syncs(requests) => {
                let worker = fixture.run_with(syncer(fixture), settings.clone());
                fixture.publish(requests.clone()).await;
                if let Some(random) = &mut chance {
                    let mut again: Vec<_> = requests.iter().filter(|_| random.bool()).collect();
                    random.shuffle(&mut again);
                    for request in again {
                        publish_again(fixture, request).await;
                    }
                }
                fixture.drained::<MemorySync>().await;
                worker.stop().await.expect("a clean end");
            }
            Step::Tick => {
                let worker = fixture.run_with(syncer(fixture), settings.clone());
                tick(fixture, Job::Carry).await;
                if chance.is_some() {
                    tick(fixture, Job::Carry).await;
                }
                worker.stop().await.expect("a clean end");
            }
        }
    }
}

/// What all sessions hold in the end, and what syncs did to their keys.
async fn outcome(fixture: &Fixture) -> [Vec<String>; 2] {
    let held = "concat_ws(' ', session_id, context_key, context_value, version, writes) FROM simple_chat_context ORDER BY 1";
    let done = "concat_ws(' ', target_session_id, context_key, effect, reason, jsonb_array_length(conflicts),
        jsonb_array_length(disputed)) FROM sync_changes ORDER BY 1";
    [fixture.lines(held).await, fixture.lines(done).await]
}

/// The outcome of all histories.
async fn histories(is_random: bool) -> [Vec<String>; 2] {
    let fixture = Fixture::with_topology(|topology| {
        set_duplicate_window(topology, "SYNC", Duration::from_millis(100));
    })
    .await;
    let sessions: Vec<String> =
        SEEDS.flat_map(|seed| (0..NAMES.len()).map(move |session| name(seed, session))).collect();
    let fixture = open(fixture, 1, &sessions.iter().map(String::as_str).collect::<Vec<_>>()).await;
    without_wakes(&fixture).await;
    let writer = fixture.run(ContextWriter);
    for seed in SEEDS {
        happen(&fixture, &history(seed), is_random.then(|| Rng::with_seed(seed + 100))).await;
    }
    writer.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let syncs = fixture.count("cross_service_memory_sync").await;
    let came_twice = i64::try_from(fixture.stored("SYNC").await).expect("a number") > syncs;
    assert_eq!(came_twice, is_random);
    outcome(&fixture).await
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_twice_and_batches_cut_anywhere_change_no_result() {
    let (straight, random) = tokio::join!(histories(false), histories(true));
    let [held, done] = &straight;
    assert!(held.len() > 10 && done.iter().any(|line| line.contains(" merged ")), "{held:#?} {done:#?}");
    assert_eq!(straight, random);
}

/// The slot values of a dialogue, turn by turn: `service.slot` and its values.
fn slots(dialogue: &Value) -> Vec<BTreeMap<String, Vec<String>>> {
    let mut turns = Vec::new();
    for turn in dialogue["turns"].as_array().into_iter().flatten() {
        let mut of_turn = BTreeMap::new();
        for frame in turn["frames"].as_array().into_iter().flatten() {
            let service = frame["service"].as_str().unwrap_or_default();
            for (slot, values) in frame["slot_values"].as_object().into_iter().flatten() {
                let values = values.as_array().into_iter().flatten();
                let values = values.filter_map(|value| value.as_str().map(str::to_owned)).collect();
                of_turn.insert(format!("{service}.{slot}"), values);
            }
        }
        if !of_turn.is_empty() {
            turns.push(of_turn);
        }
    }
    turns
}

/// What of a dialogue's turns is new in each: keys with their values, at the turn in which they are said.
fn said(turns: &[BTreeMap<String, Vec<String>>]) -> Vec<(usize, String, Vec<String>)> {
    let mut known: BTreeMap<&str, &Vec<String>> = BTreeMap::new();
    let mut said = Vec::new();
    for (number, turn) in turns.iter().enumerate() {
        for (key, values) in turn {
            if known.insert(key, values) != Some(values) {
                said.push((number, key.clone(), values.clone()));
            }
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slots_of_real_dialogues_split_over_two_sessions_come_together() {
    let Some(path) = schema_guided_dialogues() else {
        eprintln!("skipped: the Schema-Guided Dialogue data set is not there");
        return;
    };
    let reader = BufReader::new(GzDecoder::new(std::fs::File::open(path).expect("the corpus")));
    let dialogues: Vec<Value> = reader
        .lines()
        .take(60)
        .map(|line| serde_json::from_str(&line.expect("a line")).expect("a dialogue"))
        .collect();
    let names: Vec<[String; 2]> =
        (0..dialogues.len()).map(|n| [format!("d{n}-even"), format!("d{n}-odd")]).collect();
    let all: Vec<&str> = names.iter().flatten().map(String::as_str).collect();
    let fixture = open(Fixture::new().await, 1, &all).await;
    let of: Vec<Vec<BTreeMap<String, Vec<String>>>> = dialogues.iter().map(slots).collect();
    let longest = of.iter().map(Vec::len).max().unwrap_or(0);
    // Even turns are noted in one session, odd ones in the other; every two turns, both are synced in both directions at once.
    for turn in (0..longest).step_by(2) {
        let mut requests = Vec::new();
        for (turns, names) in of.iter().zip(&names) {
            for (number, key, values) in said(turns) {
                if number == turn || number == turn + 1 {
                    let session = &names[number % 2];
                    let version = i64::try_from(number + 1).expect("a version");
                    requests.push(put(session, &key, json!(values), version));
                }
            }
        }
        write(&fixture, requests).await;
        let syncs = names
            .iter()
            .flat_map(|[even, odd]| [Sync::new().transfer(even, odd), Sync::new().transfer(odd, even)]);
        with_replicas(&fixture, 2, 8, syncs.collect()).await;
    }
    let mut keys = 0;
    for (turns, [even, odd]) in of.iter().zip(&names) {
        let last: BTreeMap<String, Vec<String>> =
            said(turns).into_iter().map(|(_, key, values)| (key, values)).collect();
        let (even, odd) = (state(&fixture, even).await, state(&fixture, odd).await);
        assert_eq!(even, odd);
        assert_eq!(even, last, "the dialogue's final state");
        keys += last.len();
    }
    assert!(keys > 200, "{keys}");
}

async fn state(fixture: &Fixture, session: &str) -> BTreeMap<String, Vec<String>> {
    let select = format!(
        "json_build_array(context_key, context_value)::text FROM simple_chat_context WHERE session_id = '{session}' AND removed_at IS NULL"
    );
    let lines = fixture.lines(&select).await;
    lines.iter().map(|line| serde_json::from_str(line).expect("a key and its values")).collect()
}
