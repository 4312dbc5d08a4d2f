//! Reads requests from a file or standard input.

use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;

use anyhow::Context;
use bytes::Bytes;
use contract::{REQUEST_ROOT, Service};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use uuid::Uuid;

use super::PublishArgs;

/// Maximum length of a line, and of a file with `--whole`, in bytes. NATS servers accept no message of this size.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// One line of the input.
pub(super) struct Item {
    /// Counted from 1.
    pub(super) line: u64,
    /// What to publish, or why the line is invalid.
    pub(super) request: Result<ToPublish, String>,
}

pub(super) struct ToPublish {
    pub(super) subject: String,
    pub(super) id: Uuid,
    pub(super) body: Bytes,
}

impl Item {
    /// The service in the subject, even if the rest of the subject is invalid.
    pub(super) fn service(&self) -> Option<String> {
        let subject = &self.request.as_ref().ok()?.subject;
        let token = subject.strip_prefix(REQUEST_ROOT)?.split('.').nth(1)?;
        token.parse::<Service>().ok().map(|service| service.to_string())
    }
}

/// A line with `--requests`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    subject: String,
    #[serde(default)]
    id: Option<Uuid>,
    // Published unchanged, including anything the worker will reject.
    body: Box<RawValue>,
}

pub(super) struct Input {
    reader: Pin<Box<dyn AsyncBufRead + Send>>,
    name: String,
    line: u64,
    mode: Mode,
    subject: String,
    id: Option<Uuid>,
    id_is_used: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Lines,
    Whole,
    Requests,
}

impl Input {
    pub(super) async fn open(args: &PublishArgs) -> anyhow::Result<Self> {
        let name = args.file.display().to_string();
        let reader: Pin<Box<dyn AsyncBufRead + Send>> = if args.file == Path::new("-") {
            let input =
                std::io::stdin().as_fd().try_clone_to_owned().context("cannot open standard input")?;
            Box::pin(BufReader::new(File::from_std(input.into())))
        } else {
            let file = File::open(&args.file).await.with_context(|| format!("cannot open {name}"))?;
            Box::pin(BufReader::new(file))
        };
        let mode = match (args.whole, args.requests) {
            (true, _) => Mode::Whole,
            (false, true) => Mode::Requests,
            (false, false) => Mode::Lines,
        };
        let subject = args.subject.clone().unwrap_or_default();
        Ok(Self { reader, name, line: 0, mode, subject, id: args.id, id_is_used: false })
    }

    /// The next request; `None` at the end of the input. Empty lines are skipped.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Item>> {
        if self.mode == Mode::Whole {
            return self.whole().await;
        }
        loop {
            let mut bytes = Vec::new();
            let mut limited = (&mut self.reader).take(MAX_BYTES);
            let read = limited.read_until(b'\n', &mut bytes).await;
            if read.with_context(|| format!("cannot read {}", self.name))? == 0 {
                return Ok(None);
            }
            self.line += 1;
            self.check_length(&bytes, bytes.ends_with(b"\n"))?;
            let text = bytes.trim_ascii();
            if !text.is_empty() {
                return Ok(Some(self.item(Bytes::copy_from_slice(text))));
            }
        }
    }

    async fn whole(&mut self) -> anyhow::Result<Option<Item>> {
        if self.line > 0 {
            return Ok(None);
        }
        self.line = 1;
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(MAX_BYTES).read_to_end(&mut bytes).await;
        read.with_context(|| format!("cannot read {}", self.name))?;
        self.check_length(&bytes, false)?;
        Ok(Some(self.item(bytes.into())))
    }

    fn check_length(&self, bytes: &[u8], is_complete: bool) -> anyhow::Result<()> {
        let is_truncated = !is_complete && u64::try_from(bytes.len())? >= MAX_BYTES;
        anyhow::ensure!(!is_truncated, "{} line {} is longer than {MAX_BYTES} bytes", self.name, self.line);
        Ok(())
    }

    fn item(&mut self, bytes: Bytes) -> Item {
        let request = if self.mode == Mode::Requests {
            open_envelope(&bytes)
        } else {
            self.next_id().map(|id| ToPublish { subject: self.subject.clone(), id, body: bytes })
        };
        Item { line: self.line, request }
    }

    fn next_id(&mut self) -> Result<Uuid, String> {
        let Some(id) = self.id else { return Ok(Uuid::now_v7()) };
        if std::mem::replace(&mut self.id_is_used, true) {
            return Err("--id allows only one request, and an earlier line used it".to_owned());
        }
        Ok(id)
    }
}

fn open_envelope(bytes: &[u8]) -> Result<ToPublish, String> {
    let envelope: Envelope = serde_json::from_slice(bytes)
        .map_err(|error| format!("expected {{\"subject\", \"id\", \"body\"}}: {error}"))?;
    let body = Bytes::copy_from_slice(envelope.body.get().as_bytes());
    Ok(ToPublish { subject: envelope.subject, id: envelope.id.unwrap_or_else(Uuid::now_v7), body })
}
