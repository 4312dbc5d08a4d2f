//! `memfleet token issue`

use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use cli::outln;
use config::Settings;
use contract::{Service, SessionId, UserId};
use store::registry;
use trust::{MAX_TOKEN_LIFETIME, Scope, TokenRequest};

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// The service that will use the token.
    #[arg(long)]
    service: Service,
    /// The user that the service may act for.
    #[arg(long, value_name = "ID")]
    user: UserId,
    /// Restrict the token to one session of the user.
    #[arg(long, value_name = "ID", value_parser = |id: &str| SessionId::new(id))]
    session: Option<SessionId>,
    /// A scope, as noun:verb or noun:*; may be repeated. Default: all scopes of the service.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// Lifetime in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=MAX_TOKEN_LIFETIME.as_secs()))]
    life: u64,
}

pub(super) async fn execute(args: &IssueArgs, settings: &Settings) -> anyhow::Result<()> {
    let issuer = token_issuer::issuer(&settings.trust)?.context(
        "trust.token_key_file and trust.grant_key_file are not set; tokens are signed with these keys",
    )?;
    let mut connection = super::registry(settings).await?;
    let request = TokenRequest {
        service: args.service.clone(),
        user_id: args.user,
        session: args.session.clone(),
        scopes: args.scopes.clone(),
        life: Duration::from_secs(args.life),
    };
    let (_, issued) = registry::issue(&mut connection, &issuer, request, SystemTime::now()).await?;
    outln!("{}", issued.token);
    Ok(())
}
