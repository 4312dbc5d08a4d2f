//! `memfleet dead`

mod letters;
mod replay;
pub(super) mod show;

use std::collections::VecDeque;
use std::path::Path;

use anyhow::Context;
use async_nats::jetstream;
use chrono::{DateTime, Utc};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use cli::confirm::confirm;
use cli::outln;
use cli::table::grouped;
use client::PayloadKeys;
use config::Settings;
use contract::{DeadLetterClass, header};
use letters::{Letter, Letters};
use replay::{Allowed, Replay};
use runtime::broker;

/// Lists, shows, replays or deletes dead letters: messages that a worker could not process, with the reason.
///
/// A dead letter is identified by its sequence number, which `memfleet dead list` shows. Classes: malformed (cannot be
/// decoded), denied (not authorized), permanent (rejected by the database), missing-prerequisite (a prerequisite did
/// not arrive in time), exhausted (transient errors until the last retry), undeliverable (delivered too often without a
/// result; it may have crashed a worker).
#[derive(Debug, Args)]
pub struct DeadArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the newest dead letters, oldest first.
    List {
        /// Maximum number of dead letters, 1 to 10000.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        #[command(flatten)]
        filter: Filter,
        /// Print one JSON array instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter: its headers and its body as JSON, text or hex; long bodies are truncated.
    Show {
        /// The sequence number.
        #[arg(value_name = "SEQ")]
        sequence: u64,
        /// Print only the body, byte for byte, so that it can be corrected and published with `memfleet publish
        /// --whole`.
        #[arg(long)]
        body: bool,
        /// Decrypt an encrypted body with the keys of trust.payload_ring_file.
        #[arg(long)]
        decrypt: bool,
    },
    /// Publish dead letters again on their original subject, and delete each once the stream has stored it.
    ///
    /// Each gets a new request id derived from the place of its message, so replaying twice has a single effect. Each also
    /// gets a new service token, because dead letters are stored without theirs: trust.token_key_file and
    /// trust.grant_key_file must be set. You thereby authorize the request. One that was processed since, according to the
    /// database, is not replayed; one whose refusal is on record needs --denied, whatever the dead letter says.
    Replay {
        #[command(flatten)]
        which: Which,
        /// Also replay dead letters of the class denied. Inspect them first: they may be unauthorized attempts.
        #[arg(long)]
        denied: bool,
        /// Also replay dead letters whose message has left its stream, so that they cannot be compared with it. Inspect
        /// them first: a worker that was taken over may have forged them.
        #[arg(long)]
        unverified: bool,
    },
    /// Delete dead letters permanently.
    Drop {
        #[command(flatten)]
        which: Which,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct Filter {
    /// Only dead letters of this worker, such as context-writer.
    #[arg(long, value_parser = worker_name)]
    worker: Option<String>,
    /// Only dead letters of this class.
    #[arg(long, value_parser = classes())]
    class: Option<DeadLetterClass>,
}

#[derive(Debug, Args)]
struct Which {
    /// Sequence numbers.
    #[arg(value_name = "SEQ", required_unless_present = "all")]
    sequences: Vec<u64>,
    /// All dead letters, or all that match --worker and --class.
    #[arg(long, conflicts_with = "sequences")]
    all: bool,
    /// With --all: only dead letters of this worker.
    #[arg(long, requires = "all", value_parser = worker_name)]
    worker: Option<String>,
    /// With --all: only dead letters of this class.
    #[arg(long, requires = "all", value_parser = classes())]
    class: Option<DeadLetterClass>,
}

/// Accepts only names that are valid as a subject token.
fn worker_name(name: &str) -> Result<String, String> {
    name.parse::<contract::Service>()
        .map(|name| name.to_string())
        .map_err(|_| "a worker name consists of a-z 0-9 -".to_owned())
}

fn classes() -> impl TypedValueParser<Value = DeadLetterClass> {
    PossibleValuesParser::new(DeadLetterClass::ALL.map(DeadLetterClass::as_str))
        .try_map(|word| word.parse::<DeadLetterClass>())
}

/// Runs `memfleet dead`.
///
/// # Errors
/// If the broker is unreachable, a sequence number does not exist, or a dead letter cannot be replayed or deleted.
pub async fn execute(args: DeadArgs, settings: &Settings) -> anyhow::Result<()> {
    if let Action::Drop { which, yes } = &args.action {
        let consequence = if which.all {
            "--all permanently deletes every matching dead letter".to_owned()
        } else {
            let numbers: Vec<String> = which.sequences.iter().map(u64::to_string).collect();
            let noun = if numbers.len() == 1 { "dead letter" } else { "dead letters" };
            format!("this permanently deletes {noun} {}", numbers.join(", "))
        };
        confirm(&consequence, *yes)?;
    }
    let client = broker::connect_operator(&settings.nats, "operator").await?;
    let letters = Letters::open(jetstream::new(client)).await?;
    match args.action {
        Action::List { limit, filter, json } => list(&letters, limit, &filter, json).await,
        Action::Show { sequence, body, decrypt } => {
            let mut letter = found(&letters, sequence).await?;
            if decrypt {
                let ring = settings.trust.payload_ring_file.as_deref().map(Path::new);
                decrypt_body(&mut letter, &PayloadKeys::read(ring)?)?;
            }
            show::show(&letter, body, decrypt)
        }
        Action::Replay { which, denied, unverified } => {
            let allowed = Allowed { denied, unverified };
            let chosen = chosen(&letters, &which).await?;
            Replay::open(letters, settings, allowed).await?.all(chosen).await
        }
        Action::Drop { which, .. } => drop_letters(&letters, &which).await,
    }
}

/// Decrypts the body of a dead letter in place.
fn decrypt_body(letter: &mut Letter, payload_keys: &PayloadKeys) -> anyhow::Result<()> {
    let id = letter.header(header::ENCRYPTION);
    anyhow::ensure!(!id.is_empty(), "the body is not encrypted; omit --decrypt");
    letter.body = payload_keys.decrypt(id, letter.header(header::DEAD_SUBJECT), &letter.body)?.into();
    Ok(())
}

async fn list(letters: &Letters, limit: u32, filter: &Filter, json: bool) -> anyhow::Result<()> {
    let limit = usize::try_from(limit)?;
    let (mut newest, mut count) = (VecDeque::new(), 0_u64);
    letters
        .scan(filter.worker.as_deref(), |letter| {
            if matches_class(&letter, filter.class) {
                count += 1;
                if newest.len() == limit {
                    newest.pop_front();
                }
                newest.push_back(letter);
            }
        })
        .await?;
    if json {
        return show::json(newest.make_contiguous());
    }
    if count == 0 {
        outln!("no dead letters");
        return Ok(());
    }
    show::table(newest.make_contiguous());
    let shown = u64::try_from(newest.len())?;
    if shown < count {
        outln!("showing the newest {} of {}; use --limit for more", grouped(shown), grouped(count));
    }
    Ok(())
}

async fn drop_letters(letters: &Letters, which: &Which) -> anyhow::Result<()> {
    let (mut dropped, mut unknown) = (0, Vec::new());
    for sequence in chosen(letters, which).await? {
        if letters.delete(sequence).await? {
            dropped += 1;
        } else if !which.all {
            unknown.push(sequence.to_string());
        }
    }
    outln!("dropped {dropped}");
    anyhow::ensure!(unknown.is_empty(), "no dead letter {}", unknown.join(", "));
    Ok(())
}

/// The selected sequence numbers: those given, or with --all those of the current matching dead letters.
async fn chosen(letters: &Letters, which: &Which) -> anyhow::Result<Vec<u64>> {
    if !which.all {
        return Ok(which.sequences.clone());
    }
    let mut sequences = Vec::new();
    letters
        .scan(which.worker.as_deref(), |letter| {
            if matches_class(&letter, which.class) {
                sequences.push(letter.sequence);
            }
        })
        .await?;
    Ok(sequences)
}

fn matches_class(letter: &Letter, class: Option<DeadLetterClass>) -> bool {
    class.is_none_or(|class| letter.header(header::DEAD_CLASS) == class.as_str())
}

async fn found(letters: &Letters, sequence: u64) -> anyhow::Result<Letter> {
    let letter = letters.get(sequence).await?;
    letter.with_context(|| format!("no dead letter {sequence}; `memfleet dead list` shows all"))
}

/// Converts nanoseconds since 1970, as the NATS client returns them; `None` if out of range (years 1677 to 2262).
pub(crate) fn time_of(nanoseconds: i128) -> Option<DateTime<Utc>> {
    i64::try_from(nanoseconds).ok().map(DateTime::from_timestamp_nanos)
}
