//! `memfleet token revoke`

use clap::Args;
use cli::outln;
use config::Settings;
use contract::{Service, UserId};
use store::registry::{self, TokenFilter};
use uuid::Uuid;

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// Their ids, which `memfleet token list` and `inspect` show.
    #[arg(value_name = "ID", required_unless_present_any = ["service", "user"])]
    ids: Vec<Uuid>,
    /// All good tokens of a service.
    #[arg(long, conflicts_with = "ids")]
    service: Option<Service>,
    /// All good tokens for a user; with --service, those of the service for the user.
    #[arg(long, value_name = "USER", conflicts_with = "ids")]
    user: Option<UserId>,
}

/// How many are revoked in one transaction.
const BATCH: i64 = 10_000;

pub(super) async fn execute(args: &RevokeArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::registry(settings).await?;
    let mut revoked = 0;
    if args.ids.is_empty() {
        // Those whose time is over may still have messages waiting that were stored in time.
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
        revoked = registry::revoke(&mut connection, &args.ids).await?;
    }
    outln!("revoked {revoked}");
    Ok(())
}
