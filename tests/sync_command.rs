//! `memfleet sync`: what an operator sees of syncs, and how one is taken back.

use serde_json::{Value, json};
use testkit::Fixture;
use uuid::Uuid;

use crate::support::program::{Ended, memfleet, output};
use crate::support::sync::{Sync, memory, process, put, syncer, with_sessions, write};
use crate::support::sync_history::{filled, sync_id};

async fn sync(fixture: &Fixture, arguments: &[&str]) -> Ended {
    output(memfleet(fixture, &[&["sync"], arguments].concat())).await.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn syncs_are_listed_as_a_table_and_as_json() {
    let fixture = filled().await;
    let first = sync_id(&fixture, 1, 1).await.to_string();
    let ended = sync(&fixture, &["list", "--user", "1"]).await;
    assert!(ended.is_success(), "{}", ended.all());
    let lines: Vec<&str> = ended.out.lines().collect();
    assert_eq!(lines.len(), 2 + 3, "{}", ended.out);
    let words: Vec<&str> = lines[4].split_whitespace().collect();
    let expected = [
        first.as_str(),
        "1",
        "x",
        "y",
        "context_transfer",
        "completed",
        "4",
        "3",
        "1",
        "2026-11-01T11:00:00Z",
    ];
    assert_eq!(words, expected);
    assert!(lines[2].contains("knowledge_share") && lines[2].contains("completed (undone)"), "{}", lines[2]);
    for (arguments, expected) in [
        (vec![], 6),
        (vec!["--session", "z"], 2),
        (vec!["--status", "in_progress", "--user", "2"], 1),
        (vec!["--user", "3"], 0),
    ] {
        let ended = sync(&fixture, &[&["list", "--json"], arguments.as_slice()].concat()).await;
        let listed: Value = serde_json::from_str(&ended.out).expect("JSON");
        assert_eq!(
            (listed["syncs"].as_array().unwrap().len(), &listed["more"]),
            (expected, &json!(false)),
            "{arguments:?}"
        );
    }
    let ended = sync(&fixture, &["list", "--limit", "2", "--json"]).await;
    let listed: Value = serde_json::from_str(&ended.out).expect("JSON");
    assert_eq!((listed["syncs"].as_array().unwrap().len(), &listed["more"]), (2, &json!(true)));
    assert!(sync(&fixture, &["list", "--limit", "2"]).await.out.contains("showing the latest 2"));
    assert_eq!(sync(&fixture, &["list", "--user", "3"]).await.out, "no syncs\n");
    assert_eq!(sync(&fixture, &["list", "--status", "done"]).await.code, Some(2));
}

/// The role of memory-sync writes what it likes of the syncs of a user.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_whose_row_no_program_can_read_keeps_no_other_from_being_listed() {
    let fixture = filled().await;
    let id = sync_id(&fixture, 2, 2).await.to_string();
    fixture
        .execute(&format!(
            "UPDATE cross_service_memory_sync SET data_transferred = '{{\"created\":\"no number\"}}' WHERE user_id = 2 AND id = '{id}'"
        ))
        .await;
    let ended = sync(&fixture, &["list", "--json"]).await;
    assert!(ended.is_success(), "{}", ended.all());
    let listed: Value = serde_json::from_str(&ended.out).expect("JSON");
    assert_eq!(listed["syncs"].as_array().map(Vec::len), Some(5), "{listed}");
    let unreadable = listed["unreadable"].as_array().expect("a list");
    assert!(unreadable.len() == 1 && unreadable[0]["sync_id"] == json!(id), "{listed}");
    let warning = format!("warning: the sync {id} of user 2 is not readable");
    assert!(ended.err.contains(&warning), "{}", ended.err);
    let ended = sync(&fixture, &["list"]).await;
    assert!(ended.is_success() && ended.err.contains(&warning), "{}", ended.all());
    assert_eq!(ended.out.lines().count(), 2 + 5, "{}", ended.out);
    let shown = sync(&fixture, &["show", &id]).await;
    assert!(!shown.is_success() && shown.err.contains("of user 2 is not readable"), "{}", shown.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_is_shown_with_what_was_decided_and_lost() {
    let fixture = filled().await;
    let first = sync_id(&fixture, 1, 1).await.to_string();
    let ended = sync(&fixture, &["show", &first]).await;
    assert!(ended.is_success(), "{}", ended.all());
    for part in [
        "sessions   x into y",
        "keys       1 created, 3 merged\n",
        "stayed     2 private\n",
        "conflicts  2 by a rule, 1 disputed, 1 cannot be merged\n",
        "a: created\n",
        "b of agent ada (shared): merged\n    /theme: edited by both, rule preference; kept \"blue\"\n        lost \"dark\", of session x at 2026-11-01T10:59:00Z\n",
        "c: failed\n    the counter at \"\" would be too large; lower it in one session\n",
        "fact.d: merged\n    disputed; each session keeps its own value:\n        \"vegan\", of session x",
        "the removal, of session y",
        "e: merged\n    the value: edited by both, rule preference; kept \"$encrypted\"\n",
    ] {
        assert!(ended.out.contains(part), "{part}: {}", ended.out);
    }
    let conflicts = sync(&fixture, &["show", &first, "--conflicts", "--json"]).await;
    let shown: Value = serde_json::from_str(&conflicts.out).expect("JSON");
    let keys: Vec<&Value> =
        shown["changes"].as_array().unwrap().iter().map(|one| &one["context_key"]).collect();
    assert_eq!(keys, ["e", "fact.d", "c", "b"]);
    assert_eq!((&shown["sync"]["user_id"], &shown["sync"]["transferred"]["merged"]), (&json!(1), &json!(3)));
    let some = sync(&fixture, &["show", &first, "--limit", "1"]).await;
    assert!(some.out.ends_with("showing the latest 1 key; use --limit for more\n"), "{}", some.out);
    let undone = sync_id(&fixture, 1, 3).await.to_string();
    let ended = sync(&fixture, &["show", &undone]).await;
    assert!(ended.out.contains("port: referenced, undone 2026-11-01T13:02:00Z\n"), "{}", ended.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_is_not_there_or_not_seen_is_named() {
    let fixture = filled().await;
    let first = sync_id(&fixture, 1, 1).await.to_string();
    let nobody = Uuid::nil().to_string();
    for (arguments, problem) in [
        (
            vec!["show", nobody.as_str()],
            "there is no sync 00000000-0000-0000-0000-000000000000; `memfleet sync list` shows all",
        ),
        (vec!["show", first.as_str(), "--user", "2"], "of user 2"),
        (vec!["undo", nobody.as_str()], "there is no sync"),
    ] {
        let ended = sync(&fixture, &arguments).await;
        assert_eq!(ended.code, Some(1), "{arguments:?}: {}", ended.out);
        assert!(ended.err.contains(problem), "{arguments:?}: {}", ended.err);
    }
    // Of both users one has this id now.
    fixture
        .execute(&format!(
            "INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, data_transferred)
             VALUES ('{first}', 2, 'x', 'y', 'state_sync', '{{}}')"
        ))
        .await;
    let ended = sync(&fixture, &["show", &first]).await;
    assert!(ended.err.contains("such as") && ended.err.contains("name one with --user"), "{}", ended.err);
    assert!(sync(&fixture, &["show", &first, "--user", "1"]).await.is_success());
    let mut command = memfleet(&fixture, &["sync", "list"]);
    command.env("MEMFLEET_POSTGRES__URL", fixture.settings.postgres.url_of("w_memory_reader"));
    let ended: Ended = output(command).await.into();
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
    assert!(ended.err.contains("row-level security hides syncs"), "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_restores_keys_and_names_those_that_stay() {
    let fixture = with_sessions(&["x", "y"]).await;
    let of_x = ["new", "both", "written"].map(|key| put("x", key, json!(1), 1));
    write(&fixture, of_x.into_iter().chain([put("y", "both", json!(2), 1)])).await;
    let done = Sync::new();
    process(&fixture, [done.transfer("x", "y")]).await;
    write(&fixture, [put("y", "written", json!(3), 2)]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(memory(&fixture, "y").await, ["both=2", "new=1", "written=3"]);
    let running = fixture.run(syncer(&fixture));
    let id = done.id.to_string();
    let ended = sync(&fixture, &["undo", &id, "--reason", "the wrong session"]).await;
    assert!(ended.is_success(), "{}", ended.all());
    assert!(
        ended
            .out
            .starts_with(&format!("2 keys of session y restored as before sync {id}\n1 key not restored")),
        "{}",
        ended.out
    );
    assert!(ended.out.contains("key \"written\": the session has written it since"), "{}", ended.out);
    assert_eq!(memory(&fixture, "y").await, ["both=2", "written=3"]);
    let again = sync(&fixture, &["undo", &id]).await;
    assert_eq!(again.code, Some(1), "{}", again.out);
    assert!(again.err.contains(&format!("nothing of sync {id} was undone: ")), "{}", again.err);
    running.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_without_a_worker_says_that_there_is_no_outcome() {
    let fixture = filled().await;
    let first = sync_id(&fixture, 1, 1).await.to_string();
    let ended = sync(&fixture, &["undo", &first, "--timeout", "1"]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    assert!(ended.err.contains("within 1 s (timed out); is the worker running?"), "{}", ended.err);
}
