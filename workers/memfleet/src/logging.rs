//! Logging to standard error.

use std::fmt::Debug;
use std::io::{self, IsTerminal, Write, stderr};

use anyhow::Context;
use config::{LogFormat, LogSettings, may_be_logged};
use contract::{printable, printable_json};
use tracing::Subscriber;
use tracing::field::Field;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
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
    let started = match settings.format {
        LogFormat::Text => {
            registry().with(text(stderr, stderr().is_terminal()).with_filter(filter)).try_init()
        }
        LogFormat::Json => registry().with(json(stderr).with_filter(filter)).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// One line for each event. Messages and values may be text from outside, so they are [escaped](printable).
fn text<S, W>(writer: W, ansi: bool) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    fmt::layer().with_writer(writer).with_ansi(ansi).fmt_fields(debug_fn(write_field).delimited(" "))
}

fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let text = format!("{value:?}");
    let shown = printable(&text);
    match field.name() {
        "message" => write!(writer, "{shown}"),
        name if writer.has_ansi_escapes() => {
            write!(writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{shown}")
        }
        name => write!(writer, "{name}={shown}"),
    }
}

/// One JSON object for each event.
fn json<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    fmt::layer().json().with_writer(JsonLines(writer))
}

/// Writes whole lines of JSON, [escaped](printable_json) beyond what JSON itself requires.
struct JsonLines<W>(W);

impl<'writer, W: MakeWriter<'writer>> MakeWriter<'writer> for JsonLines<W> {
    type Writer = JsonLines<W::Writer>;

    fn make_writer(&'writer self) -> Self::Writer {
        JsonLines(self.0.make_writer())
    }
}

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0.write_all(printable_json(&String::from_utf8_lossy(lines)).as_bytes())?;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap();
            std::str::from_utf8(&bytes).unwrap().split_terminator('\n').map(str::to_owned).collect()
        }
    }

    /// A publisher's text that forges a line, clears the terminal and reverses what follows.
    const HOSTILE: &str = "x\nINFO forged\r\u{1b}[2J\u{9b}2J\u{202e}\u{200b}y";
    const ESCAPED: &str = "x\\u{a}INFO forged\\u{d}\\u{1b}[2J\\u{9b}2J\\u{202e}\\u{200b}y";

    fn write_events() {
        let _span = tracing::warn_span!("span", subject = %HOSTILE).entered();
        tracing::warn!("{HOSTILE}");
        tracing::warn!(display = %HOSTILE, "message");
        tracing::warn!(debug = ?format_args!("{HOSTILE}"), "message");
        tracing::warn!(text = HOSTILE, "message");
        tracing::warn!(error = %io::Error::other(HOSTILE), count = 3, "message");
    }

    #[test]
    fn text_from_outside_stays_on_its_line() {
        let log = Log::default();
        let output = log.clone();
        tracing::subscriber::with_default(registry().with(text(move || output.clone(), false)), write_events);
        let lines = log.lines();
        assert_eq!(lines.len(), 5, "{lines:#?}");
        for line in &lines {
            assert!(line.chars().all(|character| !character.is_control()), "{line:?}");
            assert!(!line.contains(['\u{202e}', '\u{200b}']), "{line:?}");
            assert!(line.contains(&format!("span{{subject={ESCAPED}}}")), "{line}");
        }
        for (line, end) in lines.iter().zip([
            format!(" {ESCAPED}"),
            format!(" message display={ESCAPED}"),
            format!(" message debug={ESCAPED}"),
            // The representation of a string in Rust.
            r#" message text="x\nINFO forged\r\u{1b}[2J\u{9b}2J\u{202e}\u{200b}y""#.to_owned(),
            format!(" message error={ESCAPED} count=3"),
        ]) {
            assert!(line.ends_with(&end), "expected {end}: {line}");
        }
    }

    #[test]
    fn only_the_log_itself_colours_a_terminal() {
        let log = Log::default();
        let output = log.clone();
        tracing::subscriber::with_default(registry().with(text(move || output.clone(), true)), write_events);
        for line in log.lines() {
            assert!(line.contains(ESCAPED) && line.contains("\u{1b}[3msubject\u{1b}[0m"), "{line:?}");
            assert!(!line.contains("\u{1b}[2J"), "{line:?}");
        }
    }

    #[test]
    fn json_is_printable_and_has_the_same_values() {
        let log = Log::default();
        let output = log.clone();
        tracing::subscriber::with_default(registry().with(json(move || output.clone())), write_events);
        let lines = log.lines();
        assert_eq!(lines.len(), 5, "{lines:#?}");
        for line in &lines {
            assert_eq!(printable(line), *line);
        }
        let first: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(first["fields"]["message"], HOSTILE);
    }
}
