//! Publishes conversations, and waits until all of them are searchable.

use std::sync::Arc;
use std::time::Duration;

use cli::output::step;
use config::Settings;
use contract::{
    ChatMode, JsonObject, Request, RequestSubject, SessionOpen, Text, UserId, UserPut, UserRole, UserStatus,
};
use runtime::Stats;
use uuid::Uuid;

use super::SERVICE;
use super::dataset::Conversation;
use crate::bulk::{Bulk, Prepared, until_settled};

/// The service that publishes account records.
const ACCOUNTS: &str = "account";
/// Workers that commit nothing for this long are considered stuck. A batch contains many texts, which are embedded
/// first.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// A request with its user and publishing service.
type Outgoing = (UserId, &'static str, Request);

/// Publishes conversations, each as the memory of its user.
pub(super) async fn fill(
    settings: &Settings,
    stats: &[Arc<Stats>],
    conversations: &[(UserId, Conversation)],
) -> anyhow::Result<()> {
    let bulk = Bulk::open(settings).await?;
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
    let opened = people.len() as u64;
    step("opening sessions", publish(&bulk, people, stats, opened)).await?;
    let all = opened + memories.len() as u64;
    step("indexing utterances", publish(&bulk, memories, stats, all)).await
}

/// Publishes requests, and waits until `count` messages have been settled since the workers' start.
async fn publish(
    bulk: &Bulk,
    requests: Vec<Outgoing>,
    stats: &[Arc<Stats>],
    count: u64,
) -> anyhow::Result<()> {
    let prepared: Vec<Prepared> = requests.into_iter().map(prepare).collect::<anyhow::Result<_>>()?;
    bulk.publish(prepared).await?;
    until_settled(stats, count, STUCK_AFTER).await
}

fn prepare((user_id, service, request): Outgoing) -> anyhow::Result<Prepared> {
    let kind = request.kind();
    let (noun, verb) = (kind.noun.to_owned(), kind.verb.to_owned());
    let subject = RequestSubject { service: service.parse()?, noun, verb, user_id }.to_string();
    Ok(Prepared { subject, id: Uuid::now_v7(), body: serde_json::to_vec(&request)?.into() })
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
