//! The benches of the database run, and what they find does not depend on the machine.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Stdio;

use serde_json::Value;
use testkit::DEADLINE;
use tokio::process::Command;
use tokio::time::timeout;

async fn bench(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memfleet"));
    command.arg("bench").args(arguments).arg("--json").env_remove("MEMFLEET_CONFIG");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output =
        timeout(2 * DEADLINE, command.output()).await.expect("it ends in time").expect("the program");
    testkit::logs::keep("bench", &output.stderr);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let text = String::from_utf8(output.stdout).expect("text");
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
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
    assert_eq!(indexes.len(), 10);
    for index in indexes {
        assert_eq!(index["serves"], index["made"], "{index}");
        assert!(index["insert_cost"].as_f64() > Some(0.0), "{index}");
    }
}
