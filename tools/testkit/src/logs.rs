//! The logs of the tests' workers, programs and servers are kept, and at the end of the suite they are searched for
//! secrets.
//!
//! The program `with-servers` names a folder in [`LOGS_VARIABLE`], and searches it when the tests have ended.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;

use data_encoding::{BASE64, HEXLOWER};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};
use uuid::Uuid;

use crate::secrets::{CANARY, GRANT_KEY, KEK_RING, PAYLOAD_RING, SEAL_KEY, TOKEN_KEY, WORKER_PASSWORD};
use crate::{grant, token};

/// The environment variable with the folder that keeps the logs of a run of the suite.
pub const LOGS_VARIABLE: &str = "MEMFLEET_TEST_LOGS";

/// All of our own log lines, and those of the libraries that help to find a fault.
const EVERYTHING: &str = "debug,async_nats=trace,audit=trace,context_writer=trace,keys=trace,memfleet=trace,runtime=trace,store=trace,\
                          topology=trace,trust=trace";

/// The log of this process's workers, if logs are kept.
static OWN: LazyLock<Option<PathBuf>> = LazyLock::new(|| new_file("test"));

fn new_file(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(LOGS_VARIABLE)?;
    Some(Path::new(&folder).join(format!("{name}-{}.log", Uuid::now_v7().simple())))
}

/// Starts logging: the lines that RUST_LOG selects go to the test's output, and all go to the kept log.
pub(crate) fn start() {
    let shown = fmt::layer().with_test_writer().with_filter(EnvFilter::from_default_env());
    let kept = OWN.as_ref().and_then(|path| OpenOptions::new().append(true).create(true).open(path).ok());
    // The program itself adds this condition to every filter too.
    let filter = || EnvFilter::new(EVERYTHING).and(filter_fn(config::may_be_logged));
    let kept = kept.map(|file| {
        fmt::layer().with_ansi(false).with_writer(std::sync::Mutex::new(file)).with_filter(filter())
    });
    let _ = tracing_subscriber::registry().with(shown).with(kept).try_init();
}

/// The log of this process so far; empty if logs are not kept.
pub fn own() -> String {
    OWN.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
}

/// Keeps the standard error of a program that has ended.
pub fn keep(name: &str, stderr: &[u8]) {
    if let Some(path) = new_file(name) {
        // A log that could not be kept shows in the number of searched logs.
        let _ = File::create(path).and_then(|mut file| file.write_all(stderr));
    }
}

/// The standard error for a program that is started: a kept log, or else that of the test.
pub fn stderr_for(name: &str) -> Stdio {
    new_file(name).and_then(|path| File::create(path).ok()).map_or_else(Stdio::inherit, Stdio::from)
}

/// Keeps the log of a server that ends.
pub fn keep_file(name: &str, log: &Path) {
    if let (Some(path), true) = (new_file(name), log.exists()) {
        let _ = std::fs::copy(log, path);
    }
}

/// The strings that no log may contain: the canary and every key of the tests, as text and in common byte encodings.
pub fn secrets() -> Vec<String> {
    let digits = |line: &str| line.split_whitespace().last().unwrap_or_default().to_owned();
    let mut secrets: Vec<String> = [GRANT_KEY, TOKEN_KEY, SEAL_KEY, KEK_RING].map(digits).to_vec();
    secrets.extend(PAYLOAD_RING.lines().map(digits));
    secrets.push(format!(":{WORKER_PASSWORD}@"));
    // The beginning of every token and every grant of the tests.
    let token = token::with_grant_key(grant::grant_key(), "test", 1);
    secrets.push(token.split('.').next().unwrap_or_default().to_owned());
    secrets.push("v1|test|".to_owned());
    let canary = CANARY.as_bytes();
    secrets.push(CANARY.to_owned());
    secrets.push(HEXLOWER.encode(canary));
    // In base64, a text has one of three forms, by its offset; the characters at its ends depend on its neighbours.
    for before in 0..3 {
        let padded = [vec![b' '; before], canary.to_vec()].concat();
        let text = BASE64.encode(&padded);
        secrets.push(text[if before == 0 { 0 } else { 4 }..text.len() - 4].to_owned());
    }
    let numbers: Vec<String> = canary.iter().map(ToString::to_string).collect();
    secrets.push(numbers.join(", "));
    secrets
}

/// The result of a search.
#[derive(Debug, Default)]
pub struct Search {
    /// The number of files.
    pub files: usize,
    /// The number of bytes.
    pub bytes: usize,
    /// `file: line` of every secret that was found, at most twenty.
    pub found: Vec<String>,
}

/// Searches every file of a folder for secrets.
///
/// # Errors
/// If the folder or a file of it cannot be read.
pub fn search(folder: &Path, secrets: &[String]) -> io::Result<Search> {
    let mut search = Search::default();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let bytes = std::fs::read(&path)?;
        search.files += 1;
        search.bytes += bytes.len();
        let text = String::from_utf8_lossy(&bytes);
        let leaks = text.lines().filter(|line| secrets.iter().any(|secret| line.contains(secret.as_str())));
        for line in leaks.take(20 - search.found.len().min(20)) {
            let start: String = line.chars().take(400).collect();
            search.found.push(format!("{}: {start}", path.display()));
        }
    }
    Ok(search)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_however_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let sealed = grant::grant(1, "w_context_writer");
        let lines = [
            format!("a body {{\"a\":\"{CANARY}\"}}"),
            format!("bytes {:?}", CANARY.as_bytes()),
            HEXLOWER.encode(CANARY.as_bytes()),
            BASE64.encode(format!("x{CANARY}y").as_bytes()),
            BASE64.encode(format!("xx{CANARY}y").as_bytes()),
            BASE64.encode(format!("xxx{CANARY}y").as_bytes()),
            format!("kek {KEK_RING}"),
            format!("Bearer {}", token::with_grant_key(grant::grant_key(), "simple-chat", 7)),
            format!("grant {sealed}"),
            format!("postgres://w_context_writer:{WORKER_PASSWORD}@127.0.0.1/x"),
        ];
        for line in &lines {
            std::fs::write(folder.path().join("log"), format!("all is well\n{line}\nall is well\n")).unwrap();
            let search = search(folder.path(), &secrets()).unwrap();
            assert_eq!(search.found.len(), 1, "{line}: {search:?}");
        }
        std::fs::write(folder.path().join("log"), "all is well, canary\n").unwrap();
        let search = search(folder.path(), &secrets()).unwrap();
        assert_eq!((search.files, search.bytes, search.found.len()), (1, 20, 0));
    }
}
