//! `memfleet dead replay`
//!
//! A dead letter may be forged by a worker that was taken over, and describes a message that a service chose. So nothing is
//! replayed because a letter says so: the message comes from its stream, and whether it was processed or refused from the
//! database.

use anyhow::{Context, bail, ensure};
use async_nats::HeaderMap;
use bytes::Bytes;
use cli::output::printable;
use cli::table::grouped;
use cli::tokens::Tokens;
use cli::{database, errln, message_ids, outln};
use client::MessageIds;
use config::Settings;
use contract::{DeadLetterClass, RequestSubject, header};
use runtime::broker::StoredMessageError;
use store::{Connection, recovery};

use super::found;
use super::letters::{Letter, Letters, Listed};

/// What is replayed only if the operator says so.
#[derive(Clone, Copy)]
pub(super) struct Allowed {
    pub(super) denied: bool,
    pub(super) unverified: bool,
}

/// What a replay needs.
pub(super) struct Replay {
    letters: Letters,
    allowed: Allowed,
    tokens: Tokens,
    /// The ids for the broker. Nobody else can guess them, and publish something under them first.
    message_ids: MessageIds,
    database: Connection,
}

impl Replay {
    pub(super) async fn open(
        letters: Letters,
        settings: &Settings,
        allowed: Allowed,
    ) -> anyhow::Result<Self> {
        let tokens = Tokens::open(settings, None).await?;
        ensure!(
            !tokens.is_none(),
            "no service token: workers reject requests without one; set trust.token_key_file and trust.grant_key_file"
        );
        let message_ids = message_ids::of(&settings.nats, "operator").await?;
        let what = "the database that says what was processed";
        let mut database = database::connect(&settings.postgres.url, "postgres.url", what).await?;
        let access = recovery::access(&mut database).await.context("cannot read the inbox")?;
        ensure!(
            !access.is_restricted,
            "the role of postgres.url does not see all rows of the inbox; use one that bypasses row-level security"
        );
        Ok(Self { letters, allowed, tokens, message_ids, database })
    }

    /// Replays dead letters, and says what became of each.
    ///
    /// # Errors
    /// If one of them was not replayed.
    pub(super) async fn all(mut self, sequences: Vec<u64>) -> anyhow::Result<()> {
        if sequences.is_empty() {
            outln!("nothing to do: no matching dead letter");
        }
        let (mut replayed, mut refused) = (0, 0_u64);
        for sequence in sequences {
            match self.one(sequence).await {
                Ok(note) => {
                    replayed += 1;
                    outln!("{sequence}  {note}");
                }
                Err(error) => {
                    refused += 1;
                    errln!("{sequence}  not replayed: {}", printable(&format!("{error:#}")));
                }
            }
        }
        outln!("replayed {replayed}, not replayed {refused}");
        ensure!(refused == 0, "{refused} not replayed; the reasons are listed above");
        Ok(())
    }

    async fn one(&mut self, sequence: u64) -> anyhow::Result<String> {
        let mut letter = found(&self.letters, sequence).await?;
        let note = match self.letters.listed(&letter)? {
            Some(listed) => self.listed(&listed).await?,
            None => {
                self.letters.verify(&mut letter, self.allowed.unverified).await?;
                self.message(&letter).await?
            }
        };
        self.letters.delete(sequence).await.context("it was replayed, but could not be deleted from DEAD")?;
        Ok(note)
    }

    /// Replays the messages of a list. If that fails, it can be done again: their ids are the same, so none has a second
    /// effect.
    async fn listed(&mut self, listed: &Listed) -> anyhow::Result<String> {
        let (mut replayed, mut gone) = (0_u64, 0_u64);
        let mut refused = Vec::new();
        for &sequence in &listed.sequences {
            let letter = match self.letters.of_list(listed, sequence).await {
                Ok(letter) => letter,
                Err(StoredMessageError::NotFound { .. }) => {
                    gone += 1;
                    continue;
                }
                Err(error @ StoredMessageError::Failed { .. }) => return Err(error.into()),
            };
            let subject: Option<RequestSubject> = letter.header(header::DEAD_SUBJECT).parse().ok();
            let is_listed_rightly = subject.map(|subject| subject.service.to_string()) == listed.service;
            let published = if is_listed_rightly {
                self.message(&letter).await
            } else {
                Err(anyhow::anyhow!("it is not of the service whose messages are listed: the list is forged"))
            };
            match published {
                Ok(_) => replayed += 1,
                Err(error) => refused.push(format!("{sequence}: {error:#}")),
            }
        }
        let stream = printable(&listed.stream);
        if let Some(first) = refused.first() {
            let count = refused.len();
            bail!(
                "{count} of the messages that it lists in {stream} were not replayed, and it is kept; the first, {first}"
            );
        }
        let note = format!("replayed {} of the messages that it lists to {stream}", grouped(replayed));
        Ok(match gone {
            0 => note,
            _ => format!("{note}; {} are no longer in the stream", grouped(gone)),
        })
    }

    /// Publishes a dead message again.
    async fn message(&mut self, letter: &Letter) -> anyhow::Result<String> {
        let (subject, mut headers) = letter.to_replay()?;
        self.check(letter, &subject).await?;
        if let Some(token) = self.tokens.of(&subject).await? {
            headers.insert(header::AUTHORIZATION, header::bearer(&token));
        }
        let id = letter.replay_id()?;
        headers.insert(header::REQUEST_ID, id.to_string());
        headers.insert(header::MESSAGE_ID, self.message_ids.of(id).to_string());
        let (stream, is_duplicate) = self.publish(&subject, headers, letter.body.clone()).await?;
        let note = if is_duplicate { " (already replayed before)" } else { "" };
        Ok(format!("replayed to {stream}{note} as request {id}"))
    }

    /// Refuses what was processed, and what was denied unless the operator allows it.
    async fn check(&mut self, letter: &Letter, subject: &str) -> anyhow::Result<()> {
        let mut is_denied = letter.header(header::DEAD_CLASS) == DeadLetterClass::Denied.as_str();
        if let (Some(id), Ok(subject)) = (letter.request_id(), subject.parse::<RequestSubject>()) {
            let user = subject.user_id.get();
            let processed = recovery::in_inbox(&mut self.database, letter.worker(), &[(user, id)]).await;
            ensure!(
                processed.context("cannot read the inbox")?.is_empty(),
                "request {id} was processed since; replaying it would have a second effect"
            );
            let refused = recovery::is_denied(&mut self.database, user, id).await;
            is_denied |= refused.context("cannot read the refusals")?;
        }
        ensure!(
            !is_denied || self.allowed.denied,
            "its class is denied; inspect it, and pass --denied to replay it anyway"
        );
        Ok(())
    }

    async fn publish(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> anyhow::Result<(String, bool)> {
        let sent = self.letters.jetstream.publish_with_headers(subject.to_owned(), headers, body).await;
        let acknowledged = match sent {
            Ok(acknowledgement) => acknowledgement.await,
            Err(error) => Err(error),
        };
        let stored =
            acknowledged.with_context(|| format!("no stream stored it on {}", printable(subject)))?;
        Ok((stored.stream, stored.duplicate))
    }
}
