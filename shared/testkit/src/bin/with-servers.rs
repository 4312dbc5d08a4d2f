//! Runs a command, such as the test runner, beside a private PostgreSQL that its tests share.

use std::process::ExitCode;

use anyhow::Context;
use stack::{Postgres, PostgresOptions, Programs};
use testkit::POSTGRES_VARIABLE;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let program = words.next().context("usage: with-servers COMMAND [ARGUMENT…]")?;
    let folder = tempfile::tempdir()?;
    let settings = vec![("shared_buffers".to_owned(), "512MB".to_owned())];
    let options = PostgresOptions { fsync: false, settings, max_connections: 500 };
    let postgres = Postgres::start(&Programs::find()?, folder.path(), options).await?;
    // A signal of the terminal reaches the command as well; its end is waited for, so that nothing is left behind.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let running = Command::new(&program).args(words).env(POSTGRES_VARIABLE, postgres.url("postgres")).spawn();
    let status = match running {
        Ok(mut child) => loop {
            tokio::select! {
                status = child.wait() => break status.context("its end is unknown"),
                _ = terminate.recv() => child.start_kill()?,
                _ = interrupt.recv() => {}
            }
        },
        Err(error) => Err(error).with_context(|| format!("{} cannot be run", program.display())),
    };
    postgres.stop().await?;
    Ok(match status?.code() {
        Some(0) => ExitCode::SUCCESS,
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => ExitCode::FAILURE,
    })
}
