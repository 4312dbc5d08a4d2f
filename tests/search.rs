//! Searches: what they find, how they say why, and that they find nothing of anybody else.

use std::time::Instant;

use context_writer::ContextWriter;
use contract::VectorType;
use diesel_async::SimpleAsyncConnection;
use serde_json::{Value, json};
use testkit::request;
use uuid::Uuid;
use vectors::{Point, PointKey, Tenant, VectorQuery};

use crate::support::memories::{MODEL, Memories, index, memory, remove, vector};
use crate::support::reader::Reader;

fn texts(answer: &Value) -> Vec<&str> {
    answer["hits"].as_array().unwrap().iter().map(|hit| hit["content_text"].as_str().unwrap()).collect()
}

fn embedding(number: u64) -> Value {
    json!({ "model": MODEL, "vector": vector(number) })
}

/// Memories of two users, who said much the same.
async fn told() -> (Memories, Reader) {
    let memories = Memories::new().await.with_users(&[1, 2]).await;
    let said = [
        ("query", "Which boat leaves for the island?", "Ada", "2026-03-01T10:00:00Z", 1),
        ("response", "The ferry sails at nine.", "Bo", "2026-03-01T10:01:00Z", 2),
        ("context", "Ada is afraid of deep water.", "Ada", "2026-03-02T10:00:00Z", 3),
        ("knowledge", "Herring gulls nest on roofs.", "Bo", "2026-04-01T10:00:00Z", 4),
    ];
    for user in [1, 2] {
        let all = said.iter().map(|&(vector_type, text, speaker, at, number)| {
            let mut one = memory(Uuid::now_v7(), &format!("{text} ({user})"), number);
            one["vector_type"] = vector_type.into();
            one["speaker"] = speaker.into();
            one["occurred_at"] = at.into();
            one["metadata"] = json!({ "speaker": speaker, "turn": number, "deep": number == 3 });
            one
        });
        memories.process([index(user, all.collect())]).await;
    }
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    let reader = Reader::start(&memories.fixture).await;
    (memories, reader)
}

#[tokio::test(flavor = "multi_thread")]
async fn memories_are_found_by_meaning_by_words_and_by_both() {
    let (memories, reader) = told().await;
    let by_meaning = json!({ "embedding": embedding(2), "mode": "vector", "exact": true });
    let answer = reader.ask("search.similar", 1, by_meaning).await.unwrap();
    assert_eq!(texts(&answer)[0], "The ferry sails at nine. (1)");
    assert_eq!((texts(&answer).len(), &answer["model"]), (4, &json!(MODEL)));
    let first = &answer["hits"][0];
    assert!((first["parts"]["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-3, "{first}");
    assert_eq!((&first["parts"]["vector_rank"], &first["parts"]["fulltext_rank"]), (&json!(1), &Value::Null));
    assert_eq!((&first["speaker"], &first["vector_type"]), (&json!("Bo"), &json!("response")));

    let by_words = json!({ "text": "are gulls nesting?", "mode": "fulltext" });
    let answer = reader.ask("search.similar", 1, by_words).await.unwrap();
    assert_eq!(texts(&answer)[0], "Herring gulls nest on roofs. (1)");
    assert_eq!(answer["model"], Value::Null);

    let both = json!({ "text": "boats to the island", "embedding": embedding(2), "exact": true });
    let answer = reader.ask("search.similar", 1, both).await.unwrap();
    assert_eq!(texts(&answer)[0], "Which boat leaves for the island? (1)");
    assert_eq!(texts(&answer)[1], "The ferry sails at nine. (1)", "it stands beside what was asked");
    let hits = answer["hits"].as_array().unwrap();
    for hit in hits {
        let parts = &hit["parts"];
        let of = |rank: &Value, weight: f64| rank.as_f64().map_or(0.0, |rank| weight / (10.0 + rank));
        let fused = of(&parts["fulltext_rank"], 1.0) + of(&parts["vector_rank"], 0.5);
        assert!((parts["fused"].as_f64().unwrap() - fused).abs() < 1e-9, "{hit}");
        assert_eq!(hit["score"], parts["fused"]);
    }
    let noted = memories
        .fixture
        .lines("concat_ws('|', access_type, object_name, rows_returned) FROM audit.data_access_log WHERE role_name = 'w_memory_reader' ORDER BY 1")
        .await;
    let searched = format!("vector-search|{}|4", memories.collection.collection_name);
    assert_eq!(noted.iter().filter(|line| **line == searched).count(), 2, "{noted:?}");
    assert_eq!(noted.iter().filter(|line| line.starts_with("read|unified_memory_vectors|")).count(), 3);
    reader.end().await;
}

/// PostgreSQL's parser reads these again from nearly every character: as a whole, each would take minutes.
#[tokio::test(flavor = "multi_thread")]
async fn long_texts_without_spaces_are_indexed_in_time() {
    const CHARS: usize = 99_000;
    let memories = Memories::new().await.with_users(&[1]).await;
    let of = |(number, unit): (u64, &str)| {
        memory(Uuid::now_v7(), &format!("tern {}", unit.repeat(CHARS / unit.len())), number)
    };
    memories.process([index(1, (1..).zip(["<!--", "a_", "a@1", "./~"]).map(of).collect())]).await;
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    let found = "unified_memory_vectors WHERE content_words @@ 'tern'";
    assert_eq!(memories.fixture.count(found).await, 4);
}

/// The words of a query are those of memories, also where either is cut.
#[tokio::test(flavor = "multi_thread")]
async fn addresses_names_and_what_is_in_tags_are_found() {
    let memories = Memories::new().await.with_users(&[1]).await;
    let long = "q".repeat(150);
    let said = [
        "Write to ada.lovelace@example.org.",
        "See https://example.com/docs/tern_colony?year=2026 first.",
        "Call count_terns(), then sleep.",
        "A Vec<Puffin> nests in <b>burrows</b>.",
        long.as_str(),
    ];
    let all: Vec<Value> =
        (1..).zip(said).map(|(number, text)| memory(Uuid::now_v7(), text, number)).collect();
    // Without a session, none stands beside another one.
    memories.process([request("vector.index", 1, json!({ "memories": all }))]).await;
    let reader = Reader::start(&memories.fixture).await;
    let queries = [
        ("ada.lovelace@example.org", 0),
        ("https://example.com/docs/tern_colony?year=2026", 1),
        ("count_terns", 2),
        ("puffins", 3),
        ("burrow", 3),
        (long.as_str(), 4),
    ];
    for (text, place) in queries {
        let answer =
            reader.ask("search.similar", 1, json!({ "text": text, "mode": "fulltext" })).await.unwrap();
        assert_eq!(texts(&answer), [said[place]], "{text}");
    }
    reader.end().await;
}

/// The ids of the memories would put others beside the one with the word.
#[tokio::test(flavor = "multi_thread")]
async fn memories_of_one_time_are_neighbours_as_they_were_stored() {
    let memories = Memories::new().await.with_users(&[1]).await;
    let of = |turns: &[(&str, u64)]| {
        let turn = |&(text, id): &(&str, u64)| {
            let mut one = memory(Uuid::from_u64_pair(id, 0), text, id);
            one["occurred_at"] = "2026-03-01T10:00:00Z".into();
            one
        };
        index(1, turns.iter().map(turn).collect())
    };
    let turns = [("the cormorant", 9), ("beside it", 1), ("two away", 8), ("three away", 7)];
    memories.process([of(&turns)]).await;
    memories.process([of(&[("four away", 2)])]).await;
    let reader = Reader::start(&memories.fixture).await;
    let by_words = json!({ "text": "cormorant", "mode": "fulltext" });
    let answer = reader.ask("search.similar", 1, by_words).await.unwrap();
    assert_eq!(texts(&answer), ["the cormorant", "beside it", "two away"]);
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_is_noted_as_a_whole_or_not_told() {
    let (memories, reader) = told().await;
    let fixture = &memories.fixture;
    fixture.execute("REVOKE EXECUTE ON FUNCTION audit.log_vector_operation FROM w_memory_reader").await;
    // Of what is noted together, either may come first.
    for _ in 0..8 {
        let by_meaning = json!({ "embedding": embedding(2), "mode": "vector" });
        let (code, _) = reader.ask("search.similar", 1, by_meaning).await.expect_err("not noted");
        assert_eq!(code, "503");
    }
    let noted = "audit.data_access_log WHERE role_name = 'w_memory_reader'";
    assert_eq!(fixture.count(noted).await, 0);
    let by_words = json!({ "text": "ferry", "mode": "fulltext" });
    reader.ask("search.similar", 1, by_words).await.expect("no vectors are searched");
    assert_eq!(fixture.count(noted).await, 1);
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_hold_for_words_and_vectors() {
    let (_memories, reader) = told().await;
    let with = |filter: Value| {
        let mut body = json!({ "text": "boat ferry deep gulls", "embedding": embedding(2), "exact": true });
        body.as_object_mut().unwrap().extend(filter.as_object().unwrap().clone());
        body
    };
    let cases = [
        (json!({ "vector_types": ["response", "knowledge"] }), 2),
        (json!({ "vector_types": ["knowledge"] }), 1),
        (json!({ "session_id": "s" }), 4),
        (json!({ "session_id": "another" }), 0),
        (json!({ "since": "2026-03-01T10:01:00Z" }), 3),
        (json!({ "until": "2026-03-01T10:01:00Z" }), 1),
        (json!({ "since": "2026-03-01T10:01:00Z", "until": "2026-03-02T10:00:00.001Z" }), 2),
        (json!({ "metadata": { "speaker": "Ada" } }), 2),
        (json!({ "metadata": { "speaker": "Ada", "turn": 3.0 } }), 1),
        (json!({ "metadata": { "deep": true } }), 1),
        (json!({ "metadata": { "deep": "true" } }), 0),
        (json!({ "limit": 2 }), 2),
    ];
    for (filter, expected) in cases {
        for mode in ["hybrid", "vector", "fulltext"] {
            let mut body = with(filter.clone());
            body["mode"] = mode.into();
            let answer = reader.ask("search.similar", 1, body).await.unwrap();
            assert_eq!(texts(&answer).len(), expected, "{mode} {filter}: {answer}");
        }
    }
    // What is recent, or agreed on, comes first if it is wanted so.
    let recent = with(json!({ "recency_boost": 1.0, "recency_half_life_hours": 87600, "mode": "vector" }));
    let answer = reader.ask("search.similar", 1, recent).await.unwrap();
    let factors: Vec<f64> = answer["hits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hit| hit["parts"]["recency"].as_f64().unwrap())
        .collect();
    assert!(factors.iter().all(|factor| *factor > 1.0 && *factor < 2.0), "{factors:?}");
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_finds_or_learns_anything_of_another_user() {
    let (memories, reader) = told().await;
    let theirs = memories.fixture.lines("id FROM unified_memory_vectors WHERE user_id = 2").await;
    for number in 1..=4 {
        for mode in ["vector", "hybrid", "fulltext"] {
            let body = json!({ "text": "boat ferry deep gulls 2", "embedding": embedding(number), "mode": mode, "limit": 100 });
            let answer = reader.ask("search.similar", 1, body).await.unwrap();
            assert!(texts(&answer).iter().all(|text| text.ends_with("(1)")), "{answer}");
            assert!(theirs.iter().all(|id| !answer.to_string().contains(id)), "{answer}");
        }
    }
    // Filters are values, never conditions: neither a tenant nor a digest of somebody else's can be named.
    let tenant = memories
        .fixture
        .lines("encode(substr(sha256(digest_key || 'vector tenant'), 1, 16), 'hex')::uuid FROM audit.subjects WHERE user_id = 2")
        .await;
    for metadata in
        [json!({ "tenant": tenant[0] }), json!({ "tenant": { "$ne": 1 } }), json!({ "user_id": 2 })]
    {
        let body = json!({ "embedding": embedding(1), "mode": "vector", "metadata": metadata });
        match reader.ask("search.similar", 1, body).await {
            Ok(answer) => assert_eq!(texts(&answer).len(), 0),
            Err((code, error)) => assert_eq!((code.as_str(), &error["field"]), ("400", &json!("metadata"))),
        }
    }
    for unknown in ["user_id", "tenant", "filter"] {
        let body = json!({ "embedding": embedding(1), unknown: 2 });
        let (code, error) = reader.ask("search.similar", 1, body).await.unwrap_err();
        assert_eq!((code.as_str(), &error["field"]), ("400", &json!(unknown)));
    }
    // A row that was moved to somebody else yields nothing for a point that stays behind.
    memories.fixture.execute("DELETE FROM unified_memory_vectors WHERE user_id = 1").await;
    let body = json!({ "embedding": embedding(1), "mode": "vector" });
    let answer = reader.ask("search.similar", 1, body).await.unwrap();
    assert_eq!(texts(&answer).len(), 0, "a point without a row says nothing");
    reader.end().await;
}

/// A long text has many points, and all of them may be more alike than anything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_text_leaves_room_for_others() {
    let memories = Memories::new().await.with_users(&[1]).await;
    let tenants = store::vector::all_tenants(&mut memories.fixture.connection().await).await.unwrap();
    let tenant = tenants.into_iter().map(|row| Tenant::new(row.tenant, row.filter_key)).next().unwrap();
    let point = |memory: Uuid, vector: Vec<f32>| Point {
        id: Uuid::now_v7(),
        vector,
        tenant: tenant.clone(),
        key: PointKey {
            memory,
            written: 1,
            session: None,
            vector_type: VectorType::Context,
            time: 0,
            meta: Vec::new(),
        },
    };
    let (long, others) = (Uuid::now_v7(), [vector(2), vector(3), vector(4), vector(5)]);
    let mut points: Vec<Point> = (0..65).map(|_| point(long, vector(1))).collect();
    points.extend(others.map(|vector| point(Uuid::now_v7(), vector)));
    let (vectors, collection) = (memories.vectors(), &memories.collection.collection_name);
    vectors.upsert(collection, points).await.unwrap();
    let query = VectorQuery { vector: vector(1), exact: true, limit: 200, ..VectorQuery::default() };
    for (enough, expected) in [(Some(1), 1), (Some(5), 5), (Some(7), 5), (None, 5)] {
        let found =
            vectors.search(&tenant, collection, &VectorQuery { enough, ..query.clone() }).await.unwrap();
        assert_eq!((found.len(), found[0].memory), (expected, long), "{enough:?}");
    }
}

/// Of so many pairs of queries, in how many the first one took longer, as a share. Each pair is asked back to back, in turns in both
/// orders.
async fn slower(reader: &Reader, user: i32, pairs: u32, [first, second]: &[Value; 2]) -> f64 {
    let ask = async |body: &Value| {
        let since = Instant::now();
        let answer = reader.ask("search.similar", user, body.clone()).await.unwrap();
        (texts(&answer).len(), since.elapsed())
    };
    let mut slower = 0_u32;
    for pair in 0..pairs {
        let (one, other) = match pair % 2 {
            0 => (ask(first).await, ask(second).await),
            _ => {
                let other = ask(second).await;
                (ask(first).await, other)
            }
        };
        assert_eq!(other.0, 0, "the second query has an empty answer");
        assert!(user == 2 || one.0 == 0, "so has the first, of whoever owns nothing that fits it");
        slower += u32::from(one.1 > other.1);
    }
    f64::from(slower) / f64::from(pairs)
}

/// Two queries with empty answers take as long, whether there are points of another user that fit one of them or not.
#[tokio::test(flavor = "multi_thread")]
async fn how_long_an_empty_answer_takes_tells_nothing_of_other_users() {
    let memories = Memories::new().await.with_users(&[1, 2]).await;
    memories.fixture.process(ContextWriter, [testkit::session(2, "theirs")]).await;
    let many = (0..20_u64).map(|message| {
        let some = (0..100).map(|place| {
            let mut one = memory(Uuid::now_v7(), "The boat is theirs.", message * 100 + place);
            one["metadata"] = json!({ "who": "they" });
            one
        });
        request("vector.index", 2, json!({ "session_id": "theirs", "memories": some.collect::<Vec<_>>() }))
    });
    memories.process(many.collect::<Vec<_>>()).await;
    memories.process([index(1, vec![memory(Uuid::now_v7(), "Mine.", 5_000)])]).await;
    assert_eq!((memories.rows().await, memories.points().await), (2_001, 2_001));

    let reader = Reader::start(&memories.fixture).await;
    let asked = |filter: Value| {
        let mut body = json!({ "text": "boat", "embedding": embedding(7), "exact": true, "mode": "hybrid" });
        body.as_object_mut().unwrap().extend(filter.as_object().unwrap().clone());
        body
    };
    let by_session = [json!({ "session_id": "theirs" }), json!({ "session_id": "nobodys" })].map(asked);
    let by_metadata =
        [json!({ "metadata": { "who": "they" } }), json!({ "metadata": { "who": "none" } })].map(asked);
    // Who owns the memories waits for them: the measure sees a difference where work is done.
    let owned = slower(&reader, 2, 20, &by_session).await;
    assert!(owned > 0.9, "{owned}");
    for queries in [by_session, by_metadata] {
        let share = slower(&reader, 1, 80, &queries).await;
        // By chance it is beyond these bounds once in a million runs.
        assert!((0.22..=0.78).contains(&share), "{queries:?}: {share}");
    }
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_searches_what_it_has_a_right_to() {
    let (memories, reader) = told().await;
    memories.grant("test", false, true, true).await;
    let body = json!({ "embedding": embedding(1), "mode": "vector" });
    let (code, error) = reader.ask("search.similar", 1, body).await.unwrap_err();
    assert_eq!((code.as_str(), &error["field"]), ("403", &json!("vector_types")));
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_or_replaced_is_found_no_more() {
    let (memories, reader) = told().await;
    let id = |text: &str| {
        format!("id FROM unified_memory_vectors WHERE user_id = 1 AND content_text LIKE '{text}%'")
    };
    let ferry: Uuid = memories.fixture.lines(&id("The ferry")).await[0].parse().unwrap();
    let gulls: Uuid = memories.fixture.lines(&id("Herring")).await[0].parse().unwrap();
    memories.process([remove(1, &[ferry]), index(1, vec![memory(gulls, "Puffins burrow.", 9)])]).await;
    for mode in ["vector", "hybrid", "fulltext"] {
        let body = json!({ "text": "ferry gulls puffins", "embedding": embedding(2), "mode": mode });
        let answer = reader.ask("search.similar", 1, body).await.unwrap();
        let found = texts(&answer).concat();
        assert!(!found.contains("ferry sails") && !found.contains("gulls"), "{found}");
        assert!(found.contains("Puffins"), "{found}");
    }
    reader.end().await;
}

/// A memory that is removed between the statement that ranks and the one that reads.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_after_ranking_is_not_in_the_answer() {
    let (memories, reader) = told().await;
    let fixture = &memories.fixture;
    // Ranking waits, with its snapshot taken, for as long as the test holds the lock. Reading does not wait.
    fixture
        .execute(
            "CREATE FUNCTION wait_in_ranking() RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
             BEGIN
                 IF current_query() LIKE '%AS agreement%' THEN PERFORM pg_advisory_xact_lock_shared(4711); END IF;
                 RETURN true;
             END $$;
             GRANT EXECUTE ON FUNCTION wait_in_ranking() TO w_memory_reader;
             CREATE POLICY pause ON unified_memory_vectors AS RESTRICTIVE FOR SELECT TO w_memory_reader
                 USING (wait_in_ranking())",
        )
        .await;
    let mut holder = fixture.connection().await;
    holder.batch_execute("SELECT pg_advisory_lock(4711)").await.unwrap();
    let ferry = "id FROM unified_memory_vectors WHERE user_id = 1 AND content_text LIKE 'The ferry%'";
    let ferry: Uuid = fixture.lines(ferry).await[0].parse().unwrap();
    let removing = async {
        let waiting = "pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted";
        testkit::eventually("the search ranks", async || (fixture.count(waiting).await > 0).then_some(()))
            .await;
        memories.process([remove(1, &[ferry])]).await;
        holder.batch_execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
    };
    let body = json!({ "text": "ferry gulls", "mode": "fulltext" });
    let token = testkit::token::with_grant_key(testkit::attack::grant_key(), "test", 1);
    let longest = contract::limit::DEADLINE_MS_MAX.to_string();
    let headers = [(contract::header::DEADLINE_MS, longest.as_str())];
    let (answer, ()) =
        tokio::join!(reader.ask_with("search.similar", Some(&token), body, &headers), removing);
    let answer = answer.unwrap();
    let found: Vec<&str> =
        answer["hits"].as_array().unwrap().iter().map(|hit| hit["memory_id"].as_str().unwrap()).collect();
    assert!(!found.is_empty() && !found.contains(&ferry.to_string().as_str()), "{answer}");
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_search_is_refused_by_its_field() {
    let (memories, reader) = told().await;
    let cases = [
        (json!({}), "text"),
        (json!({ "text": "  " }), "text"),
        (json!({ "embedding": embedding(1), "mode": "fulltext" }), "text"),
        (json!({ "text": "no embedder" }), "embedding"),
        (json!({ "embedding": { "model": MODEL, "vector": [1, 2] } }), "embedding.vector"),
        (json!({ "embedding": { "model": "x", "vector": vector(1) } }), "embedding.model"),
        (json!({ "text": "x", "limit": 0 }), "limit"),
        (json!({ "text": "x", "metadata": { "a": [1] } }), "metadata"),
        (json!({ "text": "x", "since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z" }), "until"),
        (json!({ "text": "x", "recency_boost": 2 }), "recency_boost"),
    ];
    for (body, field) in cases {
        let (code, error) = reader.ask("search.similar", 1, body.clone()).await.unwrap_err();
        assert_eq!((code.as_str(), &error["field"]), ("400", &json!(field)), "{body}: {error}");
    }
    drop(memories.qdrant);
    let body = json!({ "embedding": embedding(1), "mode": "vector" });
    let (code, error) = reader.ask("search.similar", 1, body).await.unwrap_err();
    assert_eq!(code, "503", "{error}");
    let words = json!({ "text": "gulls", "mode": "fulltext" });
    assert_eq!(
        texts(&reader.ask("search.similar", 1, words).await.unwrap()).len(),
        3,
        "it, and what stands beside it"
    );
    reader.end().await;
}
