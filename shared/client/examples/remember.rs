//! Opens a session of a user, stores a context in it, and queries it: `memfleet dev` in one terminal, and in another
//! `cargo run -p client --example remember`.
//!
//! The configuration is the one that `memfleet dev` writes, or the file in `MEMFLEET_CONFIG`.

use std::path::Path;

use client::{Client, ClientOptions};
use contract::{ContextGet, ContextPut, SessionOpen, UserPut};
use serde_json::{from_value, json};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::var("MEMFLEET_CONFIG").unwrap_or(".memfleet/dev/memfleet.toml".to_owned());
    let settings = config::Settings::load(Some(Path::new(&file)))?;
    let nkey_file = settings.nats.nkey_file.map(|file| file.replace("{name}", "simple-chat").into());
    let payload_ring_file = settings.trust.payload_ring_file.map(Into::into);
    let options = ClientOptions::new(settings.nats.url, "simple-chat".parse()?);
    let client = Client::connect(ClientOptions { nkey_file, payload_ring_file, ..options }).await?;

    let ada = client.user(42);
    let user: UserPut = from_value(json!({ "username": "ada", "email": "ada@example.org" }))?;
    println!("user.put: {:?}", ada.send(user).await?.status);
    let open: SessionOpen = from_value(json!({ "session_id": "trip", "chat_mode": "simple" }))?;
    println!("session.open: {:?}", ada.send(open).await?.status);
    let put: ContextPut = from_value(json!({
        "session_id": "trip", "context_key": "hotel.area", "context_value": "Alfama", "version": 1
    }))?;
    println!("context.put: {:?}", ada.send(put).await?.status);
    let get: ContextGet = from_value(json!({ "session_id": "trip", "context_key": "hotel.area" }))?;
    println!("context.get: {}", serde_json::to_string(&ada.query(get).await?)?);
    Ok(())
}
