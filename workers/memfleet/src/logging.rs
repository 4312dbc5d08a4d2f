//! The log, on standard error.

use anyhow::Context;
use runtime::settings::{LogFormat, LogSettings, NEVER_LOGGED};
use tracing_subscriber::EnvFilter;

/// Starts logging. Standard output stays free for what a command prints, and so does standard error as far as
/// possible for one that does not stay: it shows warnings only, unless the configuration asks for more.
///
/// # Errors
/// If `log.filter` cannot be read.
pub fn start(settings: &LogSettings, stays: bool) -> anyhow::Result<()> {
    let quiet = !stays && settings.filter == LogSettings::default().filter;
    let filter = EnvFilter::try_new(if quiet { "warn" } else { &settings.filter })
        .with_context(|| format!("log.filter {:?} cannot be read", settings.filter))?
        .add_directive(NEVER_LOGGED.parse().context("what is never logged cannot be read")?);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match settings.format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("the log cannot be started: {error}"))
}
