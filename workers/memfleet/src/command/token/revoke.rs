//! `memfleet token revoke`

use anyhow::ensure;
use clap::Args;
use cli::outln;
use config::Settings;
use contract::{Service, UserId};
use store::registry::{self, TokenFilter};
use uuid::Uuid;

use crate::command::revocations;

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// Token ids, as shown by `memfleet token list` and `inspect`.
    #[arg(value_name = "ID", required_unless_present_any = ["service", "user"])]
    ids: Vec<Uuid>,
    /// Revoke all tokens of this service.
    #[arg(long, conflicts_with = "ids")]
    service: Option<Service>,
    /// Revoke all tokens for this user; with --service, only those of the service.
    #[arg(long, value_name = "USER", conflicts_with = "ids")]
    user: Option<UserId>,
}

/// Tokens revoked per transaction.
const BATCH: i64 = 10_000;

pub(super) async fn execute(args: &RevokeArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::registry(settings).await?;
    if let Some(service) = &args.service {
        ensure!(
            registry::is_registered(&mut connection, service).await?,
            "the service {service} is not registered; `memfleet token service list` shows all"
        );
    }
    let (mut revoked, mut unknown) = (0, Vec::new());
    if args.ids.is_empty() {
        // Expired tokens are included: messages stored before their expiry may still be waiting.
        let which = TokenFilter {
            service: args.service.clone(),
            user_id: args.user,
            limit: BATCH,
            ..TokenFilter::default()
        };
        loop {
            let ids = registry::revocable(&mut connection, &which).await?;
            if ids.is_empty() {
                break;
            }
            revoked += registry::revoke(&mut connection, &ids).await?;
        }
    } else {
        unknown = registry::unregistered(&mut connection, &args.ids).await?;
        let known: Vec<Uuid> = args.ids.iter().copied().filter(|id| !unknown.contains(id)).collect();
        revoked = registry::revoke(&mut connection, &known).await?;
        registry::revoke(&mut connection, &unknown).await?;
    }
    outln!("revoked {revoked}");
    revocations::sync_after(&mut connection, settings).await?;
    let unknown: Vec<String> = unknown.iter().map(Uuid::to_string).collect();
    ensure!(
        unknown.is_empty(),
        "no token {} is registered; `memfleet token list --all` shows all. A token with such an id is rejected all the same",
        unknown.join(", ")
    );
    Ok(())
}
