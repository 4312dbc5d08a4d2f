//! Archives in an S3-compatible store: the server of moto, or the one that MEMFLEET_TEST_S3_URL names, which has the bucket `memfleet-test`.
//! Credentials are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

#![cfg(feature = "s3")]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use archive::{Column, Draft, Kind, Rows, Target, read, write};
use chrono::Utc;
use config::ArchiveSettings;
use trust::PrivateKey;
use uuid::Uuid;

/// How long the server may take to begin, and to answer.
const DEADLINE: Duration = Duration::from_secs(60);

/// The server of moto on a free port. It is stopped on drop.
struct Moto {
    process: Child,
    url: String,
}

impl Moto {
    fn start() -> Option<Self> {
        let folder = stack::Places::of_this_process().home().join("moto");
        if !folder.join(".stamp").is_file() {
            let missing = format!("{} is not there; `scripts/setup --tests` gets it", folder.display());
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            // Not by `println!`, whose output is shown for failed tests only.
            let mut shown = std::io::stderr();
            writeln!(shown, "skipped: {missing}").unwrap();
            return None;
        }
        let mut process = Command::new("python3")
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"])
            .env("PYTHONPATH", &folder)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut server = Self { process, url: String::new() };
        let (ready, port) = mpsc::channel();
        thread::spawn(move || {
            // It says so once it accepts connections.
            let port = lines.find_map(|line| {
                let (_, rest) = line.split_once("Running on http://127.0.0.1:")?;
                Some(rest.chars().take_while(char::is_ascii_digit).collect::<String>())
            });
            let _ = ready.send(port);
            // It would wait if nobody read what it says of each request.
            lines.for_each(drop);
        });
        let port = port.recv_timeout(DEADLINE).unwrap();
        server.url = format!("http://127.0.0.1:{}", port.unwrap());
        Some(server)
    }

    fn create_bucket(&self, name: &str) {
        let host = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request =
            format!("PUT /{name} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a test of this program in a process of its own, whose environment names this server and has credentials.
fn run_with(server: &Moto, test: &str) {
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("MEMFLEET_TEST_S3_URL", &server.url)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env_remove("AWS_SESSION_TOKEN")
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&ended.stdout);
    let all = format!("{out}{}", String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && out.contains("1 passed"), "{all}");
}

fn settings(url: &str, s3_url: Option<String>) -> ArchiveSettings {
    let region = Some("us-east-1".to_owned());
    ArchiveSettings { url: Some(url.to_owned()), s3_url, s3_region: region, ..ArchiveSettings::default() }
}

fn rows() -> Rows {
    let names = [
        ("id", "uuid"),
        ("user_id", "integer"),
        ("created_at", "timestamp with time zone"),
        ("value", "jsonb"),
    ];
    let columns = names.map(|(name, sql_type)| Column {
        name: name.to_owned(),
        sql_type: sql_type.to_owned(),
        kind: Kind::of(sql_type, "U"),
    });
    let mut rows = Rows::new("blackboard_events", columns.to_vec());
    for number in 1..=1_000_u128 {
        let texts = [
            Uuid::from_u128(number).to_string(),
            "1".to_owned(),
            number.to_string(),
            "{\"a\": 1}".to_owned(),
        ];
        rows.push(texts.map(Some).to_vec()).unwrap();
    }
    rows
}

#[tokio::test]
async fn archives_come_back_from_an_s3_server() {
    let Ok(url) = std::env::var("MEMFLEET_TEST_S3_URL") else {
        let Some(server) = Moto::start() else { return };
        server.create_bucket("memfleet-test");
        return run_with(&server, "archives_come_back_from_an_s3_server");
    };
    let prefix = format!("some where/{}", Uuid::now_v7());
    let target = Target::open(&settings(&format!("s3://memfleet-test/{prefix}"), Some(url.clone()))).unwrap();
    let key = PrivateKey::generate("main").unwrap();
    let draft = Draft {
        id: Uuid::now_v7(),
        run: Uuid::nil(),
        created_at: Utc::now(),
        policies: Vec::new(),
        tables: vec![rows()],
    };
    let written = write(&target, &key, draft).await.unwrap();
    let contents = read(&target, &[key.public()], &written.location, Some(&written.hash)).await.unwrap();
    assert_eq!(contents.tables, [rows()]);
    let listed = target.list().await.unwrap().files;
    let paths: Vec<&str> = listed.iter().map(|found| found.path.as_str()).collect();
    let path = |file: &str| format!("{}/{file}", written.location);
    assert_eq!(paths, [path("blackboard_events.parquet"), path("manifest.json")]);
    for path in &paths {
        target.delete(path).await.unwrap();
    }
    assert_eq!(target.list().await.unwrap().files, []);
    let missing = read(&target, &[key.public()], &written.location, None).await.unwrap_err().to_string();
    assert!(missing.ends_with("is missing at the archive target"), "{missing}");
    // A bucket that is not there.
    let other = Target::open(&settings("s3://memfleet-nowhere", Some(url))).unwrap();
    other.list().await.unwrap_err();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_in_time() {
    let mut settings = settings("s3://memfleet-test", Some("http://127.0.0.1:1".to_owned()));
    settings.timeout_ms = 2_000;
    let failed = Target::open(&settings).unwrap().list().await.unwrap_err().to_string();
    assert!(failed.starts_with("cannot list files at the archive target"), "{failed}");
}
