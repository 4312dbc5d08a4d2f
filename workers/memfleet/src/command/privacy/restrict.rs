//! `memfleet privacy restrict` and `memfleet privacy lift`

use std::time::Duration;

use anyhow::ensure;
use clap::{Args, ValueEnum};
use cli::outln;
use cli::output::out_json;
use config::Settings;
use contract::UserId;
use privacy::restriction::{self, Asked, Change, Lifted, Meanwhile, Restriction};

use super::erase::SERVICE;
use super::requests::time;

#[derive(Debug, Args)]
pub(super) struct RestrictArgs {
    /// The user.
    user: UserId,
    /// What becomes of requests that come meanwhile. Without it: refuse, or as before if the user is restricted already.
    #[arg(long = "while", value_name = "WHAT")]
    meanwhile: Option<While>,
    /// Why, 1 to 2048 characters, such as the letter of the person. It is kept with the request.
    #[arg(long, value_name = "TEXT", value_parser = super::reason)]
    reason: Option<String>,
    /// Print one JSON object: {"request": "...", "since": "...", "while": "...", "status": "...", "due_at": "...", "changed": true or false}.
    #[arg(long)]
    json: bool,
}

/// What becomes of requests while a restriction lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum While {
    /// They are retried until the restriction is lifted, for about a day and a half, and become dead letters after that.
    Wait,
    /// They become dead letters at once, which say so. `memfleet dead replay` publishes them again.
    Refuse,
}

impl While {
    fn meanwhile(self) -> Meanwhile {
        match self {
            Self::Wait => Meanwhile::Wait,
            Self::Refuse => Meanwhile::Refuse,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct LiftArgs {
    /// The user.
    user: UserId,
    /// Why, 1 to 2048 characters. It is kept with the request.
    #[arg(long, value_name = "TEXT", value_parser = super::reason)]
    reason: Option<String>,
    /// Print one JSON object: {"request": "...", "since": "...", "while": "..."}. `since`: when the restriction began.
    #[arg(long)]
    json: bool,
}

/// How long the command waits for transactions that ran when the restriction came. A worker's end within five minutes, and nearly all at once.
const PATIENCE: Duration = Duration::from_secs(30);

fn asked(reason: Option<&String>) -> Asked {
    Asked { service: SERVICE.to_owned(), reason: reason.cloned() }
}

pub(super) async fn restrict(args: &RestrictArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let (user, meanwhile) = (args.user, args.meanwhile.map(While::meanwhile));
    let asked = asked(args.reason.as_ref());
    let restriction = restriction::restrict(&mut connection, user, meanwhile, &asked).await?;
    let open = restriction::complete(&mut connection, user, restriction.request, PATIENCE).await?;
    show(args, &restriction, open.is_empty());
    ensure!(
        open.is_empty(),
        "user {user} is restricted, but transactions that began before are still open: {}; run the command again when they have ended",
        open.join(", ")
    );
    Ok(())
}

fn show(args: &RestrictArgs, restriction: &Restriction, is_complete: bool) {
    let Restriction { request, since, meanwhile, due_at, change } = restriction;
    let (user, name) = (args.user, meanwhile.as_str());
    if args.json {
        let status = if is_complete { "completed" } else { "in_progress" };
        let changed = *change != Change::Nothing;
        let restricted = serde_json::json!({
            "request": request, "since": since, "while": name, "status": status, "due_at": due_at, "changed": changed,
        });
        out_json(restricted.to_string());
        return;
    }
    let requests = match meanwhile {
        Meanwhile::Wait => "requests wait",
        Meanwhile::Refuse => "requests become dead letters",
    };
    match change {
        Change::Restricted => outln!("user {user} is restricted; {requests} (request {request})"),
        Change::Meanwhile => {
            outln!(
                "user {user} is restricted since {}; from now on {requests} (request {request})",
                time(*since)
            );
        }
        Change::Nothing => {
            outln!(
                "user {user} is already restricted, since {}; {requests} (request {request})",
                time(*since)
            );
        }
    }
}

pub(super) async fn lift(args: &LiftArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let asked = asked(args.reason.as_ref());
    let Lifted { request, since, meanwhile } = restriction::lift(&mut connection, args.user, &asked).await?;
    if args.json {
        let lifted = serde_json::json!({ "request": request, "since": since, "while": meanwhile.as_str() });
        out_json(lifted.to_string());
        return Ok(());
    }
    outln!("lifted; user {} was restricted since {} (request {request})", args.user, time(since));
    match meanwhile {
        Meanwhile::Wait => outln!("requests that wait are retried within 45 minutes"),
        Meanwhile::Refuse => outln!("`memfleet dead list` shows the requests that were refused"),
    }
    Ok(())
}
