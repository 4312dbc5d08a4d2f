//! The Rust client of a service.
//!
//! [`Client`] publishes requests, waits for their outcomes and sends queries, each for one user and with a service
//! token that it requests and renews automatically:
//!
//! ```no_run
//! # use client::{Client, ClientOptions};
//! # use contract::{SessionClose, SessionId, SessionList};
//! # async fn example(list: SessionList) -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientOptions::new("nats://127.0.0.1:4222", "simple-chat".parse()?)).await?;
//! let user = client.user(42);
//! let outcome = user.send(SessionClose { session_id: SessionId::new("trip")? }).await?;
//! let page = user.query(list).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Its parts can also be used on their own: [`Publisher`] publishes requests in bulk, [`Outcomes`] receives outcomes,
//! [`ask`] sends a query over any connection, [`PayloadKeys`] encrypts bodies, and a [`TokenSource`] supplies service
//! tokens.

mod client;
mod error;
mod message_ids;
mod options;
mod outcomes;
mod payload_keys;
mod publisher;
mod query;
mod tokens;
mod user;

pub use client::Client;
pub use error::ClientError;
pub use message_ids::MessageIds;
pub use options::ClientOptions;
pub use outcomes::Outcomes;
pub use payload_keys::{Payload, PayloadKeys};
pub use publisher::{Published, Publisher, PublisherOptions};
pub use query::{QueryOptions, ask, query_headers};
pub use tokens::{NatsTokens, TokenSource};
pub use user::User;
