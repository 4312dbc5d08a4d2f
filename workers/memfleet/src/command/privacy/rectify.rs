//! `memfleet privacy rectify` and `memfleet privacy reject`

use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;
use cli::confirm::confirm;
use cli::output::{out_json, printable};
use cli::{errln, outln};
use config::Settings;
use contract::{Correction, Json, Text, UserId};
use privacy::rectify::{self, Corrected, Elsewhere, NewRectification, Rectified};
use privacy::reject;
use store::Connection;
use uuid::Uuid;

use super::erase::SERVICE;

#[derive(Debug, Args)]
pub(super) struct RectifyArgs {
    /// The id of a request that a service has filed; or the user, whose data are corrected without one.
    #[arg(value_name = "REQUEST|USER")]
    target: Target,
    /// The table. With a user only.
    #[arg(long)]
    table: Option<String>,
    /// The id of the row. Not in users and user_profiles, where a user has one row.
    #[arg(long, value_name = "ID", requires = "table")]
    row: Option<Uuid>,
    /// A column and the value that is right, as JSON: `email="ada@example.org"`, `timezone=null`. Several are corrected together.
    #[arg(long = "set", value_name = "COLUMN=JSON", requires = "table")]
    values: Vec<String>,
    /// Why, 1 to 2048 characters, such as the letter of the person. It is kept with the request. With a user only.
    #[arg(long, value_name = "TEXT", value_parser = super::reason, requires = "table")]
    reason: Option<String>,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    /// Print one JSON object: {"request": "...", "user": N, "corrected": [{"table", "row", "column", "before", "after"}],
    /// "elsewhere": {"events", "memories", "archives"}}.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RejectArgs {
    /// The id of the request.
    request: Uuid,
    /// Why, 1 to 2048 characters. It is kept with the request. Tell the person, too.
    #[arg(long, value_name = "TEXT", value_parser = super::reason)]
    reason: String,
}

/// What is rectified.
#[derive(Clone, Copy, Debug)]
enum Target {
    Request(Uuid),
    User(UserId),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text.parse(), text.parse()) {
            (Ok(user), _) => Ok(Self::User(user)),
            (Err(_), Ok(request)) => Ok(Self::Request(request)),
            (Err(_), Err(_)) => Err("neither the id of a request nor a user".to_owned()),
        }
    }
}

pub(super) async fn rectify(args: &RectifyArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let rectified = match args.target {
        Target::Request(request) => {
            if args.table.is_some() {
                bail!("the request names the table and the values; omit --table, --row, --set and --reason");
            }
            of_request(&mut connection, request, args).await?
        }
        Target::User(user) => of_user(&mut connection, user, args).await?,
    };
    if args.json {
        out_json(serde_json::to_string(&rectified)?);
        return Ok(());
    }
    let Rectified { request, user, corrected, elsewhere } = rectified;
    outln!("rectified: {} values of user {user} (request {request})", corrected.len());
    warn(elsewhere);
    Ok(())
}

async fn of_request(
    connection: &mut Connection,
    request: Uuid,
    args: &RectifyArgs,
) -> anyhow::Result<Rectified> {
    let (user, corrected) = rectify::preview(connection, request).await?;
    ask(user, &corrected, args)?;
    Ok(rectify::carry_out(connection, request).await?)
}

async fn of_user(connection: &mut Connection, user: UserId, args: &RectifyArgs) -> anyhow::Result<Rectified> {
    let Some(table) = &args.table else {
        bail!("name what is wrong and what is right: --table, --set COLUMN=JSON and --reason");
    };
    let Some(reason) = &args.reason else { bail!("give --reason") };
    let corrections = args.values.iter().map(|value| correction(table, args.row, value));
    let new = NewRectification {
        user,
        service: SERVICE.to_owned(),
        reason: reason.clone(),
        corrections: corrections.collect::<Result<_, _>>()?,
    };
    let corrected = rectify::preview_new(connection, &new).await?;
    ask(user, &corrected, args)?;
    Ok(rectify::rectify(connection, &new).await?)
}

fn correction(table: &str, row: Option<Uuid>, value: &str) -> anyhow::Result<Correction> {
    let Some((column, json)) = value.split_once('=') else {
        bail!("--set: expected COLUMN=JSON, such as 'timezone=\"Europe/Lisbon\"'");
    };
    let wrong = |problem: String| anyhow::anyhow!("--set {}: {problem}", printable(column));
    let json = Json::new(json)
        .map_err(wrong)
        .context("the value is JSON: a text has quotes, 'email=\"ada@example.org\"'")?;
    let table = Text::new(table).map_err(|problem| anyhow::anyhow!("--table: {problem}"))?;
    Ok(Correction { table, row, column: Text::new(column).map_err(wrong)?, value: json, was: None })
}

/// Shows what is corrected, and asks.
fn ask(user: UserId, corrected: &[Corrected], args: &RectifyArgs) -> anyhow::Result<()> {
    if !args.json {
        for one in corrected {
            outln!("{}", line(one));
        }
    }
    let count = corrected.len();
    confirm(
        &format!("this corrects {count} values of user {user}, as above; the old ones are not kept"),
        args.yes,
    )
}

/// A value before and after.
fn line(one: &Corrected) -> String {
    let Corrected { table, row, column, before, after } = one;
    let row = row.map(|row| format!(" of {row}")).unwrap_or_default();
    format!("{table}.{column}{row}: {} -> {}", printable(&before.to_string()), printable(&after.to_string()))
}

fn warn(elsewhere: Elsewhere) {
    let Elsewhere { events, memories, archives } = elsewhere;
    if events > 0 {
        errln!(
            "warning: {events} events have an old value; they record what was requested, and retention removes them"
        );
    }
    if memories > 0 {
        errln!(
            "warning: the texts of {memories} memories have an old value; their service must index them again (vector.index)"
        );
    }
    if archives > 0 {
        errln!(
            "warning: {archives} archives have rows of the person, and may have an old value; they are not changed"
        );
    }
    errln!(
        "the platform's own record must be corrected, too: its next user.put or profile.put replaces what is stored here"
    );
}

pub(super) async fn execute_reject(args: &RejectArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    reject::reject(&mut connection, args.request, &args.reason).await?;
    outln!(
        "rejected {}; tell the person why, and that a complaint is possible (GDPR, article 12 (4))",
        args.request
    );
    Ok(())
}
