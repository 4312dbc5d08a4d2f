//! Private servers that are stopped and started again in their folder.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use async_nats::jetstream::consumer::PullConsumer;
use config::Settings;
use fleet::{Fleet, WorkerName};
use playground::Local;
use runtime::broker;
use stack::StackOptions;
use testkit::{eventually, lines_on};

use crate::support::folder;
use crate::support::program::{Ended, bare, output_with_input};

async fn start(folder: &tempfile::TempDir) -> Local {
    Local::kept(&Settings::default(), folder.path(), StackOptions::default(), &[]).await.expect("servers")
}

/// Publishes a request of user 1 with a token, encrypted, as services do.
async fn publish(local: &Local, name: &str, body: &str) {
    let subject = format!("memory.req.simple-chat.{name}.1");
    let mut command = bare(&["publish", "--strict", &subject, "-"]);
    command.envs(local.settings.to_environment().expect("an environment"));
    let ended: Ended = output_with_input(command, body).await.into();
    assert!(ended.is_success(), "{}", ended.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_before_a_restart_is_processed_after_it() {
    let folder = folder();
    let local = start(&folder).await;
    let user = r#"{"username":"u","email":"u@example.org","password_hash":"secret"}"#;
    publish(&local, "user.put", user).await;
    publish(&local, "session.open", r#"{"session_id":"s","chat_mode":"simple"}"#).await;
    local.stop().await.expect("a clean end");

    let local = start(&folder).await;
    let fleet = Fleet::start(&[WorkerName::ContextWriter], &local.settings);
    let client = broker::connect_operator(&local.settings.nats, "test").await.expect("a connection");
    let jetstream = async_nats::jetstream::new(client);
    let consumer: PullConsumer =
        jetstream.get_consumer_from_stream("context-writer", "CONTEXT").await.expect("a consumer");
    eventually("both requests are settled", async || {
        let info = consumer.get_info().await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    let dead = jetstream.get_stream("DEAD").await.expect("a stream");
    assert_eq!(dead.cached_info().state.messages, 0, "dead letters");
    let mut admin = store::connect(&local.settings.postgres.url).await.expect("a connection");
    assert_eq!(lines_on(&mut admin, "session_id FROM chat_mode_sessions").await, ["s"]);
    assert_eq!(lines_on(&mut admin, "column_name FROM encrypted_fields").await, ["password_hash"]);
    fleet.stop().await.expect("a clean end");
    local.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_has_a_password_of_its_own() {
    let folder = folder();
    let local = start(&folder).await;
    let passwords = folder.path().join("passwords");
    assert_eq!(passwords.metadata().expect("a folder").permissions().mode() & 0o777, 0o700);
    let mut different = BTreeSet::new();
    let roles: Vec<String> = passwords
        .read_dir()
        .expect("a folder")
        .map(|file| {
            let file = file.expect("a file").path();
            assert_eq!(file.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
            different.insert(std::fs::read_to_string(&file).expect("a password"));
            file.file_name().and_then(|name| name.to_str()).expect("a name").to_owned()
        })
        .collect();
    assert!(roles.len() > 5 && different.len() == roles.len(), "{roles:?}");
    for settings in [&local.settings.postgres.worker_url, &local.settings.keys.worker_url] {
        let url = settings.as_ref().expect("a URL");
        let own = url.replace("{role}", "w_context_writer");
        store::connect(&own).await.expect("a login");
        let others = url.replacen("{role}", "w_context_writer", 1).replace("{role}", "w_router_logger");
        let refused = store::connect(&others).await.map(drop).expect_err("another's password").to_string();
        assert!(refused.contains("password authentication failed"), "{refused}");
    }
    local.stop().await.expect("a clean end");
}
