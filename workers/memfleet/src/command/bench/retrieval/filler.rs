//! Publishes conversations, and waits until all of them can be found.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use async_nats::Client;
use config::Settings;
use contract::{
    ChatMode, JsonObject, Request, RequestSubject, SessionOpen, Text, UserId, UserPut, UserRole, UserStatus,
};
use runtime::{Stats, StatsReport, broker};
use tokio::time::sleep;
use uuid::Uuid;

use super::SERVICE;
use super::dataset::Conversation;
use crate::carry::step;
use crate::payloads::Payloads;
use crate::publisher::{Publisher, PublisherOptions};
use crate::tokens::Tokens;

/// The service that publishes account records.
const ACCOUNTS: &str = "account";
/// How often is looked whether the workers are done.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Workers that commit nothing for so long are stuck. A batch is many texts, which become vectors first.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// Whose, by which service, what.
type Outgoing = (UserId, &'static str, Request);

/// Publishes conversations, each as the memory of its user.
pub(super) async fn fill(
    settings: &Settings,
    stats: &[Arc<Stats>],
    conversations: &[(UserId, Conversation)],
) -> anyhow::Result<()> {
    let client = broker::connect_operator(&settings.nats, "bench").await?;
    let tokens = Tokens::open(settings, None).await?;
    let mut filler = Filler { settings, stats, client, tokens, stored: 0 };
    let (mut people, mut memories) = (Vec::new(), Vec::new());
    for (user, conversation) in conversations {
        people.push((*user, ACCOUNTS, Request::UserPut(person(*user)?)));
        for session in &conversation.sessions {
            let open = SessionOpen {
                session_id: session.id.clone(),
                chat_mode: ChatMode::Simple,
                configuration: JsonObject::default(),
                parent_session_id: None,
                session_metadata: JsonObject::default(),
            };
            people.push((*user, SERVICE, Request::SessionOpen(open)));
            let indexes = session.indexes.iter().cloned();
            memories.extend(indexes.map(|index| (*user, SERVICE, Request::VectorIndex(index))));
        }
    }
    step("opening sessions", filler.carry(people)).await?;
    step("making what was said findable", filler.carry(memories)).await
}

fn person(user: UserId) -> anyhow::Result<UserPut> {
    Ok(UserPut {
        username: Text::new(format!("user-{user}")).map_err(anyhow::Error::msg)?,
        email: Text::new(format!("user-{user}@example.org")).map_err(anyhow::Error::msg)?,
        password_hash: None,
        role: UserRole::default(),
        status: UserStatus::default(),
    })
}

struct Filler<'a> {
    settings: &'a Settings,
    stats: &'a [Arc<Stats>],
    client: Client,
    tokens: Tokens,
    /// How many requests the broker has stored so far.
    stored: u64,
}

impl Filler<'_> {
    /// Publishes requests and waits until they are committed.
    async fn carry(&mut self, requests: Vec<Outgoing>) -> anyhow::Result<()> {
        let payloads = Payloads::open(&self.settings.trust)?;
        let publisher = Publisher::new(self.client.clone(), PublisherOptions::default());
        let mut publisher = publisher.with_payloads(payloads);
        for (user_id, service, request) in requests {
            let kind = request.kind();
            let (noun, verb) = (kind.noun.to_owned(), kind.verb.to_owned());
            let subject = RequestSubject { service: service.parse()?, noun, verb, user_id }.to_string();
            let body = serde_json::to_vec(&request)?;
            let token = self.tokens.of(&subject).await?;
            publisher.send(subject, Uuid::now_v7(), body.into(), token).await;
        }
        let published = publisher.finish().await;
        let (refused, reasons) = (published.refused, published.reasons.join("\n  "));
        ensure!(refused == 0, "the broker refused {refused} requests; the first of them:\n  {reasons}");
        self.stored += published.stored;
        self.settled().await
    }

    async fn settled(&self) -> anyhow::Result<()> {
        let (mut last_seen, mut moved_at) = (None, Instant::now());
        loop {
            let reports: Vec<StatsReport> = self.stats.iter().map(|stats| stats.report()).collect();
            let dead: Vec<String> = reports
                .iter()
                .flat_map(|report| &report.dead)
                .filter(|(_, count)| **count > 0)
                .map(|(class, count)| format!("{count} {class}"))
                .collect();
            ensure!(dead.is_empty(), "requests became dead letters: {}", dead.join(", "));
            let settled: u64 =
                reports.iter().map(|report| report.applied + report.unchanged + report.repeated).sum();
            if settled >= self.stored {
                return Ok(());
            }
            if last_seen != Some(settled) {
                (last_seen, moved_at) = (Some(settled), Instant::now());
            }
            if moved_at.elapsed() > STUCK_AFTER {
                let (stored, seconds) = (self.stored, STUCK_AFTER.as_secs());
                bail!(
                    "nothing was committed for {seconds} s: {settled} of {stored} requests are; the workers' log \
                     says why"
                );
            }
            sleep(LOOK_EVERY).await;
        }
    }
}
