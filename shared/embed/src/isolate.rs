//! Finds the texts that a server cannot embed, so that they keep no other text from being embedded.
//!
//! A server may reject a text, or fail on it each time: with a status, an invalid response, a closed connection or none
//! at all. A failure is put down to a text only if the server embeds a harmless text right afterwards, the text fails
//! alone, and it does so several times. If the harmless text fails too, the server is the cause.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::time::sleep;

use crate::answer::Fault;
use crate::client::{AT_ONCE, Client, Effort, delay, unavailable};
use crate::{EmbedError, Refusal};

/// The maximum number of additional requests of a call to find the texts that the server cannot embed.
const SEARCH: usize = 64;
/// How often a text without an answer is tried alone with the whole timeout.
const TRIES_WITHOUT_ANSWER: u32 = 2;
/// While it is searched which text of a batch has no answer, the timeout is that share of the batch, and not less than
/// this share.
const LEAST_SHARE: f64 = 1.0 / 8.0;

/// A call that embeds texts.
pub(crate) struct Isolation<'a> {
    client: &'a Client,
    texts: &'a [String],
    effort: Effort,
    /// Whether the server has embedded something during this call.
    is_up: bool,
    /// Whether the server embedded a harmless text after it had failed on a batch of this call.
    is_searching: bool,
    /// The ranges that are still to be embedded, the next one last.
    left: Vec<Range<usize>>,
    /// The number of additional requests.
    searched: usize,
    vectors: Vec<Vec<f32>>,
    /// The texts that failed alone, while a harmless one did not.
    suspects: BTreeMap<usize, Fault>,
    /// The texts that cannot be embedded.
    refused: BTreeMap<usize, String>,
    /// Whether a text of the call was embedded.
    is_any_embedded: bool,
}

impl<'a> Isolation<'a> {
    /// `is_up`: whether the server has just embedded a harmless text.
    pub(crate) fn new(client: &'a Client, texts: &'a [String], effort: Effort, is_up: bool) -> Self {
        let starts = (0..texts.len()).step_by(client.batch());
        let left = starts.rev().map(|start| start..texts.len().min(start + client.batch())).collect();
        Self {
            client,
            texts,
            effort,
            is_up,
            is_searching: false,
            left,
            searched: 0,
            vectors: vec![Vec::new(); texts.len()],
            suspects: BTreeMap::new(),
            refused: BTreeMap::new(),
            is_any_embedded: false,
        }
    }

    /// The vectors of all texts, or the texts that cannot be embedded.
    pub(crate) async fn run(mut self) -> Result<Vec<Vec<f32>>, EmbedError> {
        while let Some(range) = self.left.pop() {
            self.embed_range(range).await?;
            let is_enough = self.searched >= SEARCH || self.suspects.len() >= AT_ONCE;
            if self.left.is_empty() || is_enough {
                self.try_suspects_alone().await?;
            }
            // One rejected text among 256 is found within 17 requests, so a caller that omits the texts found so far
            // makes progress.
            if is_enough && !self.refused.is_empty() {
                break;
            }
        }
        let Some(reason) = self.refused.values().next().cloned() else { return Ok(self.vectors) };
        if !self.is_any_embedded && !self.is_searching {
            // A server that rejects every text is misconfigured, which is no reason to reject a text.
            self.client.embed_harmless(self.effort).await.map_err(unavailable)?;
        }
        Err(EmbedError::Refused(Refusal { texts: self.refused.into_keys().collect(), reason }))
    }

    async fn embed_range(&mut self, range: Range<usize>) -> Result<(), EmbedError> {
        let effort = if self.is_searching { self.effort_of_search(range.len()) } else { self.effort };
        let fault = match self.client.embed_batch(&self.texts[range.clone()], effort).await {
            Ok(made) => {
                self.embedded(range.zip(made));
                return Ok(());
            }
            Err(busy @ Fault::Busy { .. }) => return Err(unavailable(busy)),
            Err(Fault::Refused(reason)) if range.len() == 1 => {
                self.refused.insert(range.start, reason);
                return Ok(());
            }
            Err(fault) => fault,
        };
        let is_rejected = matches!(fault, Fault::Refused(_));
        if !is_rejected && (!self.is_searching || range.len() == 1) {
            self.check_server(&fault).await?;
            self.is_searching = true;
        }
        if range.len() == 1 {
            self.suspects.insert(range.start, fault);
        } else {
            let middle = range.start + range.len() / 2;
            self.left.extend([middle..range.end, range.start..middle]);
            self.searched += 2;
        }
        Ok(())
    }

    /// Tries every suspect alone until it is embedded or has failed often enough to be the cause.
    async fn try_suspects_alone(&mut self) -> Result<(), EmbedError> {
        let effort = self.effort.once();
        for round in 0..self.effort.rounds {
            if self.suspects.is_empty() {
                return Ok(());
            }
            sleep(delay(round, None)).await;
            let (client, texts) = (self.client, self.texts);
            let suspects: Vec<usize> = std::mem::take(&mut self.suspects).into_keys().collect();
            let tried = stream::iter(suspects)
                .map(|at| async move { (at, client.embed_batch(&texts[at..=at], effort).await) })
                .buffered(AT_ONCE);
            for (at, embedded) in tried.collect::<Vec<_>>().await {
                match embedded {
                    Ok(made) => self.embedded(std::iter::once(at).zip(made)),
                    Err(busy @ Fault::Busy { .. }) => return Err(unavailable(busy)),
                    Err(fault) => {
                        self.suspects.insert(at, fault);
                    }
                }
            }
            if let Some(fault) = self.suspects.values().next().cloned() {
                self.check_server(&fault).await?;
            }
            let is_last = |fault: &Fault| match fault {
                Fault::NoAnswer(_) => round + 1 >= TRIES_WITHOUT_ANSWER,
                Fault::Refused(_) => true,
                Fault::Busy { .. } | Fault::Failed { .. } | Fault::Misconfigured(_) => false,
            };
            for (at, fault) in std::mem::take(&mut self.suspects) {
                if is_last(&fault) || round + 1 == self.effort.rounds {
                    self.refused.insert(at, fault.into_reason());
                } else {
                    self.suspects.insert(at, fault);
                }
            }
        }
        Ok(())
    }

    fn embedded(&mut self, made: impl Iterator<Item = (usize, Vec<f32>)>) {
        for (at, vector) in made {
            self.vectors[at] = vector;
        }
        (self.is_any_embedded, self.is_up) = (true, true);
    }

    /// Checks after a failure that the server embeds a harmless text.
    async fn check_server(&mut self, fault: &Fault) -> Result<(), EmbedError> {
        match self.client.embed_harmless(self.effort).await {
            Ok(()) => {
                self.is_up = true;
                Ok(())
            }
            Err(busy @ Fault::Busy { .. }) => Err(unavailable(busy)),
            Err(Fault::Failed { .. } | Fault::NoAnswer(_)) if self.is_up => {
                Err(EmbedError::Stopped(fault.clone().into_reason()))
            }
            Err(_) => Err(unavailable(fault.clone())),
        }
    }

    /// A batch that failed is not retried as it is. A part without an answer is waited for no longer than its share of
    /// the batch; a single text then gets the whole timeout when it is tried alone.
    fn effort_of_search(&self, count: usize) -> Effort {
        let count = u32::try_from(count).map_or(1.0, f64::from);
        let batch = u32::try_from(self.client.batch()).map_or(1.0, f64::from);
        let timeout = self.effort.timeout.mul_f64((count / batch).clamp(LEAST_SHARE, 1.0));
        Effort { timeout: timeout.max(Duration::from_millis(1)), ..self.effort.once() }
    }
}
