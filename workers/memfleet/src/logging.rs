//! Logging to standard error.

use anyhow::Context;
use config::{LogFormat, LogSettings, may_be_logged};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, registry};

/// Starts logging to standard error. A command that is not `long_running` logs warnings only, unless `log.filter` is
/// set.
///
/// # Errors
/// If `log.filter` is invalid.
pub fn start(settings: &LogSettings, long_running: bool) -> anyhow::Result<()> {
    let quiet = !long_running && settings.filter == LogSettings::default().filter;
    let filter = EnvFilter::try_new(if quiet { "warn" } else { &settings.filter })
        .with_context(|| format!("log.filter {:?} is invalid", settings.filter))?
        .and(filter_fn(may_be_logged));
    let log = fmt::layer().with_writer(std::io::stderr);
    let started = match settings.format {
        LogFormat::Text => {
            let log = log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
            registry().with(log.with_filter(filter)).try_init()
        }
        LogFormat::Json => registry().with(log.json().with_filter(filter)).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
