//! Runs a command, such as the test runner, with a private PostgreSQL that its tests share, and then searches
//! everything that was logged for secrets.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use stack::{Postgres, PostgresOptions, Programs};
use testkit::{LOGS_VARIABLE, POSTGRES_VARIABLE, logs};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let program = words.next().context("usage: with-servers COMMAND [ARGUMENT…]")?;
    let (folder, kept) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let settings = [("shared_buffers", "512MB"), testkit::PREPARED_TRANSACTIONS];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let options = PostgresOptions { fsync: false, settings, max_connections: 500 };
    let postgres = Postgres::start(&Programs::find()?, folder.path(), options).await?;
    let url = postgres.url("postgres");
    // Signals of the terminal reach the command too. Waits for it to exit, so that no process is left behind.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let running = Command::new(&program)
        .args(words)
        .env(POSTGRES_VARIABLE, &url)
        .env(LOGS_VARIABLE, kept.path())
        .spawn();
    let status = match running {
        Ok(mut child) => loop {
            tokio::select! {
                status = child.wait() => break status.context("cannot wait for the command"),
                _ = terminate.recv() => child.start_kill()?,
                _ = interrupt.recv() => {}
            }
        },
        Err(error) => Err(error).with_context(|| format!("cannot run {}", program.display())),
    };
    postgres.stop().await?;
    let status = status?;
    let clean = search_logs(folder.path(), kept.path(), &url)?;
    Ok(match status.code() {
        Some(0) if clean => ExitCode::SUCCESS,
        Some(0) | None => ExitCode::FAILURE,
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
    })
}

/// Searches the logs and reports whether no secret is in them.
fn search_logs(server: &Path, kept: &Path, url: &str) -> anyhow::Result<bool> {
    let log = std::fs::read(server.join("postgres.log")).context("cannot read the log of PostgreSQL")?;
    // Tests of attacks write grants into their statements, and PostgreSQL logs statements that it refuses. The product
    // passes all values as parameters, which are not logged.
    let log = String::from_utf8_lossy(&log).replace("'v1|test|", "'a test's own grant|");
    std::fs::write(kept.join("postgres.log"), log).context("cannot keep the log of PostgreSQL")?;
    let mut secrets = logs::secrets();
    secrets.extend(url.split_once('@').and_then(|(user, _)| Some(user.rsplit_once(':')?.1.to_owned())));
    let search = logs::search(kept, &secrets).context("cannot read the logs")?;
    let size = search.bytes >> 20;
    eprintln!(
        "searched {} logs ({size} MiB) for {} secrets: {} found",
        search.files,
        secrets.len(),
        search.found.len()
    );
    for found in &search.found {
        eprintln!("  {found}");
    }
    Ok(search.found.is_empty())
}
