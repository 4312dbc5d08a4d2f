//! `memfleet privacy cancel`

use clap::Args;
use cli::outln;
use config::Settings;
use privacy::request;
use uuid::Uuid;

#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// The id of the request.
    request: Uuid,
    /// Why, 1 to 2048 characters. It is kept with the request.
    #[arg(long, value_name = "TEXT", value_parser = super::reason)]
    reason: String,
}

pub(super) async fn execute(args: &CancelArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let mut key_store = super::connect_to_key_store(settings).await?;
    request::cancel(&mut connection, &mut key_store, args.request, &args.reason).await?;
    outln!("cancelled {}; the person is refused no more", args.request);
    Ok(())
}
