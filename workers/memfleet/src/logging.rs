//! The log, on standard error.

use anyhow::Context;
use config::{LogFormat, LogSettings, may_be_logged};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, registry};

/// Starts logging. Standard output stays free for what a command prints, and so does standard error as far as
/// possible for one that does not stay: it shows warnings only, unless the configuration asks for more.
///
/// # Errors
/// If `log.filter` cannot be read.
pub fn start(settings: &LogSettings, stays: bool) -> anyhow::Result<()> {
    let quiet = !stays && settings.filter == LogSettings::default().filter;
    let filter = EnvFilter::try_new(if quiet { "warn" } else { &settings.filter })
        .with_context(|| format!("log.filter {:?} cannot be read", settings.filter))?
        .and(filter_fn(may_be_logged));
    let log = fmt::layer().with_writer(std::io::stderr);
    let started = match settings.format {
        LogFormat::Text => {
            let log = log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
            registry().with(log.with_filter(filter)).try_init()
        }
        LogFormat::Json => registry().with(log.json().with_filter(filter)).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("the log cannot be started: {error}"))
}
