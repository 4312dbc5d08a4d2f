use contract::{
    Outcome, OutcomeStatus, QueryKind, QueryType, RequestKind, RequestSubject, RequestType, UserId,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::client::Client;
use crate::error::ClientError;
use crate::publisher::Outgoing;
use crate::query::{QueryOptions, ask};

/// The memory of one user, accessed by a service.
#[derive(Clone)]
pub struct User {
    client: Client,
    /// The user id, or the number if it is not a user id.
    id: Result<UserId, i32>,
}

impl Client {
    /// The memory of a user. An invalid id is reported by the first call that uses it.
    pub fn user(&self, id: i32) -> User {
        User { client: self.clone(), id: UserId::new(id).map_err(|_| id) }
    }
}

impl User {
    fn id(&self) -> Result<UserId, ClientError> {
        self.id.map_err(ClientError::UserId)
    }

    /// Requests the service token in advance, so that the first request or query does not wait for it.
    ///
    /// # Errors
    /// [`ClientError::Token`], or [`ClientError::UserId`] for an invalid user id.
    pub async fn authorize(&self) -> Result<(), ClientError> {
        self.client.shared.tokens.token(self.id()?).await.map(drop)
    }

    /// Publishes a request and waits until a worker has committed it. The outcome is `Applied`, or `Unchanged` with a
    /// reason.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] with the reason if the request was dead-lettered, [`ClientError::NoOutcome`] if there
    /// is no outcome in time, or the reason why the request was not published.
    pub async fn send<R: RequestType>(&self, request: R) -> Result<Outcome, ClientError> {
        let shared = &self.client.shared;
        let (router, request_id) = (shared.outcomes().await?, Uuid::now_v7());
        let mut expected = router.expect(request_id);
        self.store(request_id, R::KIND, &request, Some(router.subject().to_owned())).await?;
        let waited = shared.outcome_timeout;
        let outcome = tokio::time::timeout(waited, expected.outcome()).await.ok().flatten();
        let outcome = outcome.ok_or(ClientError::NoOutcome { request_id, waited })?;
        match outcome.status {
            OutcomeStatus::Applied | OutcomeStatus::Unchanged => Ok(outcome),
            OutcomeStatus::Dead => {
                let reason = outcome.reason.unwrap_or_else(|| "no reason given".to_owned());
                Err(ClientError::Rejected { request_id, reason })
            }
        }
    }

    /// Publishes a request and returns its id as soon as JetStream has stored it.
    ///
    /// # Errors
    /// The reason why it was not published.
    pub async fn publish<R: RequestType>(&self, request: R) -> Result<Uuid, ClientError> {
        let request_id = Uuid::now_v7();
        self.store(request_id, R::KIND, &request, None).await?;
        Ok(request_id)
    }

    async fn store(
        &self,
        id: Uuid,
        kind: &RequestKind,
        request: &impl Serialize,
        reply_to: Option<String>,
    ) -> Result<(), ClientError> {
        let (shared, user_id) = (&self.client.shared, self.id()?);
        let (noun, verb) = (kind.noun.to_owned(), kind.verb.to_owned());
        let subject = RequestSubject { service: shared.service.clone(), noun, verb, user_id }.to_string();
        let body = encode(kind.name(), request)?;
        let outgoing = Outgoing {
            jetstream: shared.jetstream.clone(),
            options: shared.publishing.clone(),
            payload: shared.payload_keys.encrypt(&subject, body.into())?,
            subject,
            id,
            message_id: shared.message_ids.of(id),
            token: Some(shared.tokens.token(user_id).await?),
            reply_to,
        };
        let first = outgoing.publish().await;
        outgoing.acknowledged(first).await.map(drop).map_err(ClientError::NotStored)
    }

    /// Sends a query and waits for its answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the query is rejected; another error if no worker answers in time or the answer
    /// cannot be decoded.
    pub async fn query<Q: QueryType>(&self, query: Q) -> Result<Q::Answer, ClientError> {
        let deadline_ms = self.client.shared.query_deadline_ms;
        self.query_with(Q::KIND, &query, &QueryOptions { deadline_ms, ..QueryOptions::default() }).await
    }

    /// Sends a query of any kind with its own options.
    ///
    /// # Errors
    /// As [`User::query`].
    pub async fn query_with<T: DeserializeOwned>(
        &self,
        kind: &QueryKind,
        query: &impl Serialize,
        options: &QueryOptions,
    ) -> Result<T, ClientError> {
        let shared = &self.client.shared;
        let token = shared.tokens.token(self.id()?).await?;
        let body = encode(kind.name(), query)?;
        ask(&shared.connection, &shared.service, kind, &token, options, body.into()).await
    }
}

fn encode(name: String, body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(body).map_err(|source| ClientError::Encode { name, source })
}
