//! Connections to databases.

use anyhow::Context;
use config::without_password;
use store::Connection;

/// Connects to a database. Errors name its purpose, such as "the audit trail", its address, and `option`, the
/// configuration option that contains the URL.
///
/// # Errors
/// If the server is unreachable or rejects the connection.
pub async fn connect(url: &str, option: &str, purpose: &str) -> anyhow::Result<Connection> {
    // Only a URL is printed: the password in another form of connection string would not be recognized.
    let address = if url.contains("://") { format!(" at {}", without_password(url)) } else { String::new() };
    store::connect(url).await.with_context(|| {
        format!("cannot connect to {purpose}{address} ({option}; for local servers, run `memfleet dev`)")
    })
}
