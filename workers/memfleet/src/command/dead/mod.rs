//! `memfleet dead`

mod letters;
pub(super) mod show;

use std::collections::VecDeque;
use std::path::Path;

use anyhow::Context;
use async_nats::jetstream;
use chrono::{DateTime, Utc};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use cli::output::printable;
use cli::table::grouped;
use cli::tokens::Tokens;
use cli::{errln, outln};
use client::PayloadKeys;
use config::Settings;
use contract::{DeadLetterClass, header};
use letters::{Letter, Letters};
use runtime::broker;

/// Looks at, replays or drops dead letters: messages that a worker gave up, with the reason.
///
/// Each is known by its sequence, which `memfleet dead list` shows. Classes: malformed (cannot be read), denied
/// (may not do that), permanent (the database refuses it for good), missing_prerequisite (what it needs did not appear in time),
/// exhausted (kept failing for passing reasons), undeliverable (a worker may have died of it).
#[derive(Debug, Args)]
pub struct DeadArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the newest dead letters, oldest first.
    List {
        /// How many at most, 1 to 10000.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        #[command(flatten)]
        filter: Filter,
        /// Print one JSON array instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter: its headers, and its body as JSON, text or bytes, cut where it is long.
    Show {
        /// Its sequence.
        #[arg(value_name = "SEQ")]
        sequence: u64,
        /// Print the body alone, byte for byte, to be mended and published again with
        /// `memfleet publish --whole`.
        #[arg(long)]
        body: bool,
        /// Decrypt a body that travelled encrypted, with the keys of trust.payload_ring_file.
        #[arg(long)]
        decrypt: bool,
    },
    /// Publish dead letters again as they were published before, and delete each once the stream has taken it.
    ///
    /// Each gets a new request id, derived from its own, so that replaying the same one twice has one effect, and a new
    /// service token, since a dead letter keeps none: the configuration must name the keys (trust.token_key_file,
    /// trust.grant_key_file). Whoever replays vouches for the request.
    Replay {
        #[command(flatten)]
        which: Which,
        /// Also those that were denied. Look at them first: somebody may have tried what is not allowed.
        #[arg(long)]
        denied: bool,
    },
    /// Delete dead letters. They are gone for good.
    Drop {
        #[command(flatten)]
        which: Which,
        /// Yes, really all of them.
        #[arg(long, requires = "all")]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct Filter {
    /// Only those of a worker, such as context-writer.
    #[arg(long, value_parser = worker_name)]
    worker: Option<String>,
    /// Only those of a class.
    #[arg(long, value_parser = classes())]
    class: Option<DeadLetterClass>,
}

#[derive(Debug, Args)]
struct Which {
    /// Their sequences.
    #[arg(value_name = "SEQ", required_unless_present = "all")]
    sequences: Vec<u64>,
    /// All of them, or with --worker or --class all that fit.
    #[arg(long, conflicts_with = "sequences")]
    all: bool,
    /// With --all: only those of a worker.
    #[arg(long, requires = "all", value_parser = worker_name)]
    worker: Option<String>,
    /// With --all: only those of a class.
    #[arg(long, requires = "all", value_parser = classes())]
    class: Option<DeadLetterClass>,
}

/// It becomes a token of a subject.
fn worker_name(name: &str) -> Result<String, String> {
    name.parse::<contract::Service>()
        .map(|name| name.to_string())
        .map_err(|_| "a worker's name is made of a-z 0-9 -".to_owned())
}

fn classes() -> impl TypedValueParser<Value = DeadLetterClass> {
    PossibleValuesParser::new(DeadLetterClass::ALL.map(DeadLetterClass::as_str))
        .try_map(|word| word.parse::<DeadLetterClass>())
}

/// Carries out `memfleet dead`.
///
/// # Errors
/// If the broker cannot be reached, a sequence is unknown, or a dead letter cannot be replayed or dropped.
pub async fn execute(args: DeadArgs, settings: &Settings) -> anyhow::Result<()> {
    if let Action::Drop { which, yes: false } = &args.action {
        anyhow::ensure!(
            !which.all,
            "--all drops every dead letter that fits for good; add --yes if you mean it"
        );
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
        Action::Replay { which, denied } => {
            let tokens = Tokens::open(settings, None).await?;
            anyhow::ensure!(
                !tokens.is_none(),
                "without a service token the workers refuse every request; set trust.token_key_file and trust.grant_key_file"
            );
            replay(&letters, &which, denied, &tokens).await
        }
        Action::Drop { which, .. } => drop_letters(&letters, &which).await,
    }
}

/// Replaces the ciphertext of a letter's body by the body.
fn decrypt_body(letter: &mut Letter, payload_keys: &PayloadKeys) -> anyhow::Result<()> {
    let id = letter.header(header::ENCRYPTION);
    anyhow::ensure!(!id.is_empty(), "its body did not travel encrypted; leave out --decrypt");
    letter.body = payload_keys.decrypt(id, letter.header(header::DEAD_SUBJECT), &letter.body)?.into();
    Ok(())
}

async fn list(letters: &Letters, limit: u32, filter: &Filter, json: bool) -> anyhow::Result<()> {
    let limit = usize::try_from(limit)?;
    let (mut newest, mut count) = (VecDeque::new(), 0_u64);
    letters
        .scan(filter.worker.as_deref(), |letter| {
            if fits(&letter, filter.class) {
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
        outln!("the newest {} of {}; --limit shows more", grouped(shown), grouped(count));
    }
    Ok(())
}

async fn replay(letters: &Letters, which: &Which, denied: bool, tokens: &Tokens) -> anyhow::Result<()> {
    let sequences = chosen(letters, which).await?;
    if sequences.is_empty() {
        outln!("nothing to do: there is no such dead letter");
    }
    let (mut replayed, mut refused) = (0, 0_u64);
    for sequence in sequences {
        match replay_one(letters, sequence, denied, tokens).await {
            Ok(note) => {
                replayed += 1;
                outln!("{sequence}  {note}");
            }
            Err(error) => {
                refused += 1;
                errln!("{sequence}  not replayed: {error:#}");
            }
        }
    }
    outln!("replayed {replayed}, not replayed {refused}");
    anyhow::ensure!(refused == 0, "{refused} not replayed; see above why");
    Ok(())
}

async fn replay_one(
    letters: &Letters,
    sequence: u64,
    denied: bool,
    tokens: &Tokens,
) -> anyhow::Result<String> {
    let letter = found(letters, sequence).await?;
    if !denied && letter.header(header::DEAD_CLASS) == DeadLetterClass::Denied.as_str() {
        anyhow::bail!("it was denied; look at it, and add --denied if it shall have its effect all the same");
    }
    if let Some(reason) = letter.left_behind() {
        anyhow::bail!("its body stayed behind ({})", printable(reason));
    }
    let (subject, mut headers) = letter.revived()?;
    if let Some(token) = tokens.of(&subject).await? {
        headers.insert(header::AUTHORIZATION, header::bearer(&token));
    }
    let request_id = headers.get(header::MESSAGE_ID).map(ToString::to_string).unwrap_or_default();
    let published = letters.jetstream.publish_with_headers(subject.clone(), headers, letter.body).await;
    let acknowledged = match published {
        Ok(acknowledgement) => acknowledgement.await,
        Err(error) => Err(error),
    };
    let acknowledged =
        acknowledged.with_context(|| format!("no stream took it on {}", printable(&subject)))?;
    letters.delete(sequence).await.context("it was replayed, and stays a dead letter")?;
    let note = if acknowledged.duplicate { ", which had taken it before" } else { "" };
    Ok(format!("replayed to {}{note} as request {request_id}", acknowledged.stream))
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
    anyhow::ensure!(unknown.is_empty(), "there is no dead letter {}", unknown.join(", "));
    Ok(())
}

/// The sequences that the command line means. Of --all, those that are there now.
async fn chosen(letters: &Letters, which: &Which) -> anyhow::Result<Vec<u64>> {
    if !which.all {
        return Ok(which.sequences.clone());
    }
    let mut sequences = Vec::new();
    letters
        .scan(which.worker.as_deref(), |letter| {
            if fits(&letter, which.class) {
                sequences.push(letter.sequence);
            }
        })
        .await?;
    Ok(sequences)
}

fn fits(letter: &Letter, class: Option<DeadLetterClass>) -> bool {
    class.is_none_or(|class| letter.header(header::DEAD_CLASS) == class.as_str())
}

async fn found(letters: &Letters, sequence: u64) -> anyhow::Result<Letter> {
    let letter = letters.get(sequence).await?;
    letter.with_context(|| format!("there is no dead letter {sequence}; `memfleet dead list` shows them"))
}

/// A time in nanoseconds since 1970, as the broker's client has it; none far outside of this era.
pub(crate) fn time_of(nanoseconds: i128) -> Option<DateTime<Utc>> {
    i64::try_from(nanoseconds).ok().map(DateTime::from_timestamp_nanos)
}
