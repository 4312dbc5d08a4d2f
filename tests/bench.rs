//! The benches of the database run, and what they find does not depend on the machine.

use serde_json::Value;
use testkit::DEADLINE;

use crate::support::program::{Ended, bare, output_within};
use crate::support::{in_repository, skipped};

async fn bench(arguments: &[&str]) -> Value {
    let command = bare(&[&["bench"], arguments, &["--json"]].concat());
    let ended: Ended = output_within(2 * DEADLINE, command).await.into();
    assert!(ended.is_success(), "{}", ended.err);
    serde_json::from_str(ended.out.lines().last().expect("a line")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_write_path_is_measured_layer_by_layer() {
    let report = bench(&["write-path", "--batches", "10"]).await;
    for key in [
        "bare_rows_per_second",
        "rls_ratio",
        "events_ratio",
        "full_path_ratio",
        "context_ms_p50",
        "context_ms_p99",
        "audit_ms_p50",
        "audit_ms_p99",
    ] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    let users: Vec<_> =
        report["by_users"].as_array().expect("mixes").iter().map(|mix| &mix["users"]).collect();
    assert_eq!(users, [50, 200, 500]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_deletes_is_measured() {
    let report = bench(&["retention", "--rows", "2000", "--users", "10"]).await;
    for key in [
        "delete_ratio",
        "archive_ratio",
        "writer_p99_ratio",
        "deleted_rows_per_second",
        "bare_rows_per_second",
        "archived_rows_per_second",
        "bare_copied_rows_per_second",
        "bare_moved_rows_per_second",
    ] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_erasure_takes_is_measured() {
    let report = bench(&["erase", "--rows", "400", "--points", "200", "--messages", "20"]).await;
    for key in ["export_seconds", "erase_seconds", "writer_p99_ratio"] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    assert_eq!(report["canaries_found"], 0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_trust_costs_is_measured() {
    let report = bench(&["trust", "--times", "200", "--messages", "500", "--runs", "1"]).await;
    for key in [
        "token_cold_ms_p50",
        "token_cached_us_p50",
        "grant_us_p50",
        "token_bytes",
        "encrypt_1kib_us_p50",
        "decrypt_1kib_us_p50",
        "secured_ratio",
        "all_sensitive_ratio",
    ] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_measured() {
    let report = bench(&["router", "--messages", "1000", "--runs", "1"]).await;
    for key in ["messages_per_second", "ceiling_rows_per_second", "ratio", "peak_rss_mib"] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_measured() {
    let report = bench(&["questions", "--rows", "20000", "--users", "200", "--times", "20"]).await;
    for key in ["session_lookup_ms_p99", "context_get_ms_p99", "analytics_ms_p99", "graph_walk_ms_p99"] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    assert!(report["nats_added_ms_p50"].is_f64(), "{report}");
    let questions = report["questions"].as_array().expect("questions");
    assert_eq!(questions.len(), 5);
    for question in questions {
        assert!(question["in_process_ms_p50"].as_f64() >= question["read_ms_p50"].as_f64(), "{question}");
    }
}

/// With enough rows, every query of the reference document finds its rows by an index under row-level security.
#[tokio::test(flavor = "multi_thread")]
async fn every_read_pattern_uses_indexes_under_row_level_security() {
    let report = bench(&["reads", "--rows", "40000", "--users", "400", "--times", "10"]).await;
    let queries = report["queries"].as_array().expect("queries");
    assert_eq!(queries.len(), 5);
    for query in queries {
        assert_eq!(query["sequential_scans"], Value::Array(vec![]), "{query}");
        assert!(!query["indexes"].as_array().expect("indexes").is_empty(), "{query}");
    }
}

/// An index on JSON serves nobody under row-level security, so that none is made (docs/adr/0016).
#[tokio::test(flavor = "multi_thread")]
async fn an_index_exists_only_where_it_serves_a_query() {
    let report = bench(&["indexes", "--rows", "40000", "--users", "40", "--times", "3"]).await;
    let indexes = report["indexes"].as_array().expect("indexes");
    assert_eq!(indexes.len(), 9);
    for index in indexes {
        assert_eq!(index["serves"], index["made"], "{index}");
        assert!(index["insert_cost"].as_f64() > Some(0.0), "{index}");
    }
}

/// Two sessions, of which every turn is among ten memories.
const RETRIEVAL: &str = r#"{
    "speaker_a": "Ada", "speaker_b": "Bo",
    "session_1_date_time": "1:56 pm on 8 May, 2023",
    "session_1": [
        { "speaker": "Ada", "dia_id": "D1:1", "text": "My sister keeps bees on the roof of her house." },
        { "speaker": "Bo", "dia_id": "D1:2", "text": "Does she sell the honey?", "blip_caption": "a jar on a table" },
        { "speaker": "Ada", "dia_id": "D1:3", "text": "Every Saturday, on the market of Delft." }
    ],
    "session_2_date_time": "10:05 am on 21 June, 2023",
    "session_2": [
        { "speaker": "Bo", "dia_id": "D2:1", "text": "I have learnt to play the cello at last." },
        { "speaker": "Ada", "dia_id": "D2:2", "text": "Who taught you?" },
        { "speaker": "Bo", "dia_id": "D2:3", "text": "My neighbour, who was in an orchestra for years." }
    ],
    "session_3_date_time": "10:05 am on 22 June, 2023",
    "qa": [
        { "question": "Where does Ada's sister sell honey?", "answer": "Delft", "evidence": ["D1:2; D1:3"], "category": 1 },
        { "question": "Who taught Bo the cello?", "answer": "a neighbour", "evidence": ["D:2:3", "D9:9"], "category": 1 },
        { "question": "What does nobody know?", "adversarial_answer": "all", "evidence": ["D"], "category": 5 }
    ]
}"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_searches_find_of_what_answers_a_question_is_measured() {
    use std::io::Write as _;

    let model = stack::Places::of_this_process().home().join("models/all-MiniLM-L6-v2/model.safetensors");
    if !model.is_file() {
        writeln!(std::io::stderr(), "skipped: {} is not there; `make setup` gets it", model.display())
            .expect("standard error");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("tiny.json"), RETRIEVAL).expect("a file");
    let report = bench(&["retrieval", "--dataset", folder.path().to_str().expect("a path")]).await;
    assert_eq!(report["questions"], 2, "{report}");
    assert_eq!(report["memories"], 6, "{report}");
    // As many are asked for as there are, so that whatever compares vectors finds them all.
    for key in ["vector_recall_at_10", "hybrid_recall_at_10"] {
        assert_eq!(report[key], 1.0, "{key}: {report}");
    }
    for key in ["fulltext_recall_at_5", "fulltext_recall_at_10", "vector_recall_at_5", "hybrid_recall_at_5"] {
        assert!(report[key].as_f64().is_some_and(|value| (0.0..=1.0).contains(&value)), "{key}: {report}");
    }
    for key in ["hybrid_ms_p50", "hybrid_ms_p95"] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    let conversations = serde_json::json!([{ "name": "tiny", "questions": 2, "hybrid_recall_at_10": 1.0 }]);
    assert_eq!(report["by_conversation"], conversations);
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_are_measured() {
    let report = bench(&["search", "--points", "2000", "--users", "20", "--questions", "50"]).await;
    for key in [
        "points",
        "users",
        "engine_ms_p50",
        "engine_ms_p95",
        "engine_ms_p99",
        "end_to_end_ms_p50",
        "end_to_end_ms_p95",
        "end_to_end_ms_p99",
        "resident_mib",
        "load_seconds",
    ] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    assert_eq!(report["quantization"], "int8");
    assert!(report["recall_at_10"].as_f64() >= Some(0.9), "{report}");
    // So few points are not quantized, which is said by null.
    for key in ["vector_bytes_per_point", "memory_ratio"] {
        assert!(report.get(key).is_some(), "{key}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indexing_is_measured() {
    let report = bench(&["index", "--texts", "5", "--ready", "50", "--users", "10"]).await;
    for key in ["ready_per_second", "publish_to_searchable_ms_p50", "publish_to_searchable_ms_p95"] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    assert_eq!(report["users"], 10);
    // Texts are measured where `make setup` has fetched the model.
    assert!(report.get("texts_per_second").is_some(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_neighbour_of_a_flood_is_measured() {
    let report = bench(&["fairness", "--percent", "2", "--only", "small-contexts"]).await;
    for key in ["quiet_p99_ms", "flood_p99_ms"] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    assert_eq!(
        (&report["flood"], &report["floods"][0]["flood"]),
        (&"small-contexts".into(), &"small-contexts".into())
    );
}

/// Two good workers and a bad one: the majority is right on seven of eight questions.
const ANSWERS: &str = "question,worker,answer\n\
    q1,a,x\nq1,b,x\nq1,c,y\nq2,a,y\nq2,b,y\nq2,c,x\nq3,a,x\nq3,b,x\nq3,c,y\nq4,a,y\nq4,b,y\nq4,c,x\n\
    q5,a,x\nq5,b,x\nq5,c,y\nq6,a,y\nq6,b,y\nq6,c,x\nq7,a,x\nq7,b,x\nq7,c,y\nq8,a,y\nq8,b,x\nq8,c,x\n";
const TRUTHS: &str = "question,truth\nq1,x\nq2,y\nq3,x\nq4,y\nq5,x\nq6,y\nq7,x\nq8,y\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_each_rule_finds_of_the_truth_is_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("answer.csv"), ANSWERS).expect("a file");
    let dataset = folder.path().to_str().expect("a path");
    let command = bare(&["bench", "consensus", "--dataset", dataset, "--json"]);
    let ended: Ended = output_within(DEADLINE, command).await.into();
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.is_empty() && ended.err.contains("truth.csv cannot be read"), "{}", ended.all());
    std::fs::write(folder.path().join("truth.csv"), TRUTHS).expect("a file");
    // What the fleet does not take is said before servers start.
    let many: String = (0..501).map(|worker| format!("q1,w{worker},x\n")).collect();
    for (answers, problem) in [
        ("q1,a,x\nq2,a,x\n".to_owned(), "the data set has 1 different answers"),
        (many + "q2,a,y\n", "501 workers answered one question"),
    ] {
        let other = tempfile::tempdir().expect("a folder");
        std::fs::write(other.path().join("answer.csv"), format!("question,worker,answer\n{answers}"))
            .expect("a file");
        std::fs::write(other.path().join("truth.csv"), "question,truth\nq1,x\n").expect("a file");
        let path = other.path().to_str().expect("a path");
        let ended: Ended =
            output_within(DEADLINE, bare(&["bench", "consensus", "--dataset", path])).await.into();
        assert_eq!(ended.code, Some(1));
        assert!(ended.err.contains(problem) && !ended.err.contains("starting"), "{}", ended.all());
    }
    let report = bench(&["consensus", "--dataset", dataset]).await;
    assert_eq!((&report["questions"], &report["answers"]), (&8.into(), &24.into()), "{report}");
    assert_eq!(report["majority_accuracy"], 7.0 / 8.0, "{report}");
    // Worker c is always wrong, which every rule but the majority learns.
    for key in ["batch_accuracy", "online_accuracy"] {
        assert_eq!(report[key], 1.0, "{key}: {report}");
    }
    assert_eq!(report["online_questions"], 8, "{report}");
    let sampled = bare(&["bench", "consensus", "--dataset", dataset, "--online-questions", "4"]);
    let ended: Ended = output_within(DEADLINE, sampled).await.into();
    assert!(ended.is_success() && ended.out.contains("majority vote"), "{}", ended.all());
    assert!(ended.out.contains("online, of 4 questions"), "{}", ended.all());
}

/// The goal of the project, on the data that its authors were given: at least the best of majority vote, Dawid–Skene and
/// GLAD as crowd-kit computes them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes three minutes: every answer goes through the worker"]
async fn the_rules_reach_the_best_of_three_on_real_crowds() {
    for (name, goal) in [("dog", 0.843), ("face", 0.640)] {
        let folder = in_repository("../shared/data/crowd").join(name);
        if !folder.is_dir() {
            skipped(&format!("{} is not there", folder.display()));
            continue;
        }
        let report = bench(&["consensus", "--dataset", folder.to_str().expect("a path")]).await;
        for key in ["batch_accuracy", "online_accuracy"] {
            let accuracy = report[key].as_f64().expect("an accuracy");
            assert!((accuracy * 1000.0).round() / 1000.0 >= goal, "{name} {key}: {report}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_closes_and_estimates_are_measured() {
    let arguments =
        ["consensus-stream", "--responses", "500", "--runs", "1", "--closes", "10", "--tasks", "100"];
    let report = bench(&arguments).await;
    for key in
        ["responses_per_second", "ratio", "close_ms_p50", "close_ms_p99", "reestimate_s", "peak_rss_mib"]
    {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn syncs_are_counted_and_timed() {
    let arguments = ["sync", "--syncs", "20", "--runs", "1", "--paced", "10", "--live", "1"];
    let report = bench(&arguments).await;
    for key in [
        "syncs_per_second",
        "ratio",
        "p50_ms",
        "p99_ms",
        "live_lag_ms_p50",
        "live_lag_ms_p99",
        "peak_rss_mib",
    ] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
}
