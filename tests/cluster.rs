//! The cluster of three NATS servers that is shipped, and what its failures do to the fleet.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use context_writer::ContextWriter;
use contract::{Event, header};
use futures::StreamExt as _;
use runtime::broker;
use serde_json::json;
use testkit::{CANARY, Fixture, RequestMessage, context, eventually, request, session, set_redelivery, user};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use topology::Topology;
use uuid::Uuid;

use crate::support::cluster::{Cluster, leader};
use crate::support::program::{Ended, memfleet, output, start_worker};
use crate::support::publish_until_stored;

const USERS: i32 = 40;
/// Requests that are published at the same time.
const AT_ONCE: usize = 16;
/// Requests that must take effect before, and during, each fault.
const DURING_A_FAULT: i64 = 1_000;

/// What has been published: requests that must take effect, and requests that must be dead letters.
#[derive(Default)]
struct Published {
    good: usize,
    bad: usize,
}

/// Publishes until told to stop, always some requests at the same time.
async fn publish_until(fixture: &Fixture, enough: CancellationToken) -> Published {
    let mut published = Published::default();
    let mut next = 0;
    while !enough.is_cancelled() {
        let mut batch: Vec<RequestMessage> = Vec::new();
        for _ in 0..AT_ONCE {
            next += 1;
            let user = next % USERS + 1;
            if next % 97 == 0 {
                published.bad += 1;
                batch.push(request("context.put", user, json!({ "session_id": "s", "mistake": next })));
            } else {
                published.good += 1;
                batch.push(context(user, "s", &format!("k{next}"), 1));
            }
        }
        futures::stream::iter(batch)
            .for_each_concurrent(AT_ONCE, |request| publish_until_stored(fixture, vec![request]))
            .await;
    }
    published
}

/// Creates the streams of the program on all three servers.
async fn provision(fixture: &Fixture) {
    let ended: Ended = output(memfleet(fixture, &["nats", "apply", "--replicas", "3"])).await.into();
    assert!(ended.is_success() && ended.out.contains("+ stream CONTEXT"), "{}", ended.all());
}

/// The files of a folder and of the folders in it. The server may remove some meanwhile.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_of_the_shipped_file_keep_every_stream_encrypted_on_each() {
    let cluster = Cluster::start().await;
    let fixture = cluster.fixture().await;
    provision(&fixture).await;
    for stream in Topology::shipped().expect("the streams").streams {
        eventually("the stream is on all servers", async || {
            leader(&fixture, &stream.name).await.filter(|(_, is_complete)| *is_complete)
        })
        .await;
    }
    let check: Ended =
        output(memfleet(&fixture, &["nats", "diff", "--check", "--replicas", "3"])).await.into();
    assert!(check.is_success(), "{}", check.all());

    let worker = fixture.run(ContextWriter);
    let body = json!({ "username": CANARY, "email": "u@example.org" });
    fixture.publish([request("user.put", 1, body), session(1, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("blackboard_events").await, 2);
    worker.stop().await.expect("a clean end");
    for number in [1, 2, 3] {
        let is_kept = async || {
            let kept = files(&cluster.data(number));
            kept.iter()
                .any(|file| {
                    file.to_str().is_some_and(|path| path.contains("CONTEXT") && path.ends_with(".blk"))
                })
                .then_some(kept)
        };
        for file in eventually("the server keeps the stream", is_kept).await {
            let bytes = std::fs::read(&file).unwrap_or_default();
            let is_readable = bytes.windows(CANARY.len()).any(|part| part == CANARY.as_bytes());
            assert!(!is_readable, "{}", file.display());
        }
    }

    // A client that does not know the CA does not connect, and neither does one without a key.
    let mut stranger = cluster.settings();
    stranger.ca_file = None;
    assert!(broker::connect_operator(&stranger, "test").await.is_err());
    let mut anonymous = cluster.settings();
    anonymous.nkey_file = None;
    assert!(broker::connect_operator(&anonymous, "test").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_while_the_leader_dies_and_a_server_is_cut_off() {
    let mut cluster = Cluster::start().await;
    let fixture = cluster.fixture().await;
    provision(&fixture).await;
    // What a worker held while its server failed comes back soon.
    let mut topology = Topology::shipped().expect("the streams").with_replicas(3);
    set_redelivery(&mut topology, "context-writer", Duration::from_secs(5), 1_000);
    topology::apply(&fixture.jetstream, &topology).await.expect("a shorter ack_wait");
    let workers = [(); 2].map(|()| start_worker(&fixture, "context-writer", None, &[]));
    fixture.publish((1..=USERS).flat_map(|id| [user(id), session(id, "s")])).await;
    fixture.drained::<ContextWriter>().await;

    let enough = CancellationToken::new();
    let publishing = publish_until(&fixture, enough.clone());
    let failing = async {
        for is_killed in [true, false] {
            written(&fixture, DURING_A_FAULT).await;
            let (victim, _) =
                eventually("there is a leader", async || leader(&fixture, "CONTEXT").await).await;
            match is_killed {
                true => cluster.kill(victim).await,
                false => cluster.cut_off(victim),
            }
            eventually("another server leads", async || {
                leader(&fixture, "CONTEXT").await.filter(|(number, _)| *number != victim)
            })
            .await;
            // The fleet goes on without the server, whichever it was connected to.
            written(&fixture, DURING_A_FAULT).await;
            match is_killed {
                true => cluster.resume(victim),
                false => cluster.reconnect(victim),
            }
            eventually("the server has caught up", async || {
                leader(&fixture, "CONTEXT").await.filter(|(_, is_complete)| *is_complete)
            })
            .await;
        }
        enough.cancel();
    };
    let (published, ()) = tokio::join!(publishing, failing);
    fixture.drained::<ContextWriter>().await;
    check(&fixture, &published).await;
    drop(workers);
}

/// Waits until so many more requests have taken effect.
async fn written(fixture: &Fixture, more: i64) {
    let before = fixture.count("inbox").await;
    eventually("requests take effect", async || {
        (fixture.count("inbox").await >= before + more).then_some(())
    })
    .await;
}

async fn check(fixture: &Fixture, published: &Published) {
    let contexts = i64::try_from(published.good).expect("a count");
    let good = contexts + 2 * i64::from(USERS);
    assert_eq!(fixture.count("inbox").await, good, "every valid request was taken once");
    assert_eq!(fixture.count("blackboard_events").await, good, "and had one effect");
    assert_eq!(fixture.count("simple_chat_context WHERE version = 1").await, contexts);
    let mut letters: BTreeMap<String, usize> = BTreeMap::new();
    for letter in fixture.messages("DEAD").await {
        let id = letter.headers.get(header::DEAD_REQUEST_ID).expect("its request id").to_string();
        *letters.entry(id).or_default() += 1;
    }
    assert_eq!(letters.len(), published.bad, "each invalid request has a dead letter");
    assert!(letters.values().all(|count| *count == 1), "and only one");
    let events = fixture.messages("EVENTS").await;
    let told: HashSet<Uuid> = events
        .iter()
        .map(|message| serde_json::from_slice::<Event>(&message.payload).expect("an event").event_id)
        .collect();
    assert_eq!(i64::try_from(told.len()).expect("a count"), good, "every effect was published");
    assert_eq!(events.len(), told.len(), "and once");
}

/// Passes connections on to a server. Those that are open when the token is cancelled fall silent: they stay open, and
/// nothing passes any more.
async fn forwarder(server: String) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let silence = CancellationToken::new();
    let of_connections = silence.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut upstream = TcpStream::connect(&server).await.expect("a connection to the server");
            let (silence, is_later) = (of_connections.clone(), of_connections.is_cancelled());
            tokio::spawn(async move {
                let falls_silent = async {
                    if is_later {
                        std::future::pending::<()>().await;
                    }
                    silence.cancelled().await;
                };
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut upstream) => {}
                    () = falls_silent => std::future::pending::<()>().await,
                }
            });
        }
    });
    (address, silence)
}

/// A server whose machine or network fails closes no connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_falls_silent_is_given_up() {
    let fixture = Fixture::new().await;
    let server = fixture.nats.url().rsplit_once('@').expect("a user in the URL").1.to_owned();
    let (address, silence) = forwarder(server.clone()).await;
    let mut settings = fixture.settings.clone();
    settings.nats.url = settings.nats.url.replace(&server, &address.to_string());
    let worker = fixture.run_with(ContextWriter, settings);
    fixture.publish([user(1)]).await;
    fixture.drained::<ContextWriter>().await;
    silence.cancel();
    fixture.publish([user(2)]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("blackboard_events").await, 2);
    worker.stop().await.expect("a clean end");
}
