//! The connection to NATS.
//!
//! The server stores any bytes as headers and in subjects. The client library closes the connection or panics when it
//! cannot parse them, and reads some subjects differently from the server. Between the two, a [relay](relay) in this
//! process therefore passes on what both read alike, and replaces what they do not: such a message arrives with the
//! header [`UNREADABLE`](contract::header::UNREADABLE), which says what is wrong with it.

mod connect;
mod filter;
mod header_block;
mod relay;
mod servers;
mod stored;

pub use connect::{ConnectError, connect, connect_operator, secret_of};
pub use filter::unreadable;
pub use relay::forwarded;
pub use stored::{StoredMessage, StoredMessageError, stored_message};
