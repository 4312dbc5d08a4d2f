//! `memfleet retention`

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use cli::output::{out_json, printable};
use cli::table::{Align, Table, grouped};
use cli::{database, outln};
use config::Settings;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use retention_cleaner::{Effect, Line, preview};
use runtime::broker;
use store::Connection;
use uuid::Uuid;

use crate::visibility;

/// The users of one statement of the preview.
const USERS: i64 = 200;

/// Shows retention policies and legal holds, and what they remove.
///
/// Reads the database, with a role that bypasses row-level security. Policies are set by requests: policy.put, policy.remove,
/// policy.hold.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List policies and legal holds: those of the platform, and those of users.
    Policies {
        /// Only policies and holds of this user; 0 is the platform.
        #[arg(long, value_name = "ID")]
        user: Option<UserId>,
        /// Maximum number of policies and holds, 1 to 10000.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Print one JSON object: {"policies": [...]}.
        #[arg(long)]
        json: bool,
    },
    /// Count what is due, by table and policy. Removes nothing and locks nothing.
    Preview(PreviewArgs),
    /// Run the sweep at once, beside its schedule.
    Run {
        /// Only print what runs would remove, as `preview` does.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        preview: PreviewArgs,
    },
}

#[derive(Debug, Args)]
struct PreviewArgs {
    /// Only rows of this user.
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// What is due at this time, such as 2027-01-01T00:00:00Z; now by default.
    #[arg(long, value_name = "TIME")]
    at: Option<DateTime<Utc>>,
    /// Print one JSON object: {"lines": [...]}.
    #[arg(long)]
    json: bool,
}

/// Runs `memfleet retention`.
///
/// # Errors
/// If the database or the broker is unreachable, or row-level security hides rows from the role.
pub async fn execute(args: RetentionArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.what {
        What::Policies { user, limit, json } => {
            let mut connection = connect(settings).await?;
            policies(&mut connection, user, limit, json).await
        }
        What::Preview(args) | What::Run { dry_run: true, preview: args } => {
            show_preview(&args, settings).await
        }
        What::Run { dry_run: false, preview } => {
            ensure!(
                preview.user.is_none() && preview.at.is_none() && !preview.json,
                "a run is of all users, at the present; use --user, --at and --json with --dry-run"
            );
            let client = broker::connect_operator(&settings.nats, "schedule").await?;
            topology::run_now(&jetstream::new(client), "retention-sweep").await?;
            outln!("retention-sweep runs now; `memfleet schedule history` shows what it did");
            Ok(())
        }
    }
}

async fn connect(settings: &Settings) -> anyhow::Result<Connection> {
    let mut connection =
        database::connect(&settings.postgres.url, "postgres.url", "the database with the policies").await?;
    visibility::check_sees_all(&mut connection, &["data_retention_policies"], "policies").await?;
    Ok(connection)
}

#[derive(QueryableByName)]
struct Policy {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Nullable<Text>)]
    table_name: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    chat_mode: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    access_tier: Option<String>,
    #[diesel(sql_type = Nullable<Integer>)]
    keep_days: Option<i32>,
    #[diesel(sql_type = Text)]
    action: String,
    #[diesel(sql_type = Nullable<Text>)]
    reason: Option<String>,
}

async fn policies(
    connection: &mut Connection,
    user: Option<UserId>,
    limit: u32,
    json: bool,
) -> anyhow::Result<()> {
    const LIST: &str = "
        SELECT * FROM (
            SELECT id, user_id, table_name::text AS table_name, chat_mode::text AS chat_mode, access_tier::text AS access_tier,
                NULL::integer AS keep_days, 'hold' AS action, reason FROM retention_holds WHERE released_at IS NULL
            UNION ALL SELECT id, user_id, table_name::text, chat_mode::text, access_tier::text, keep_days, action::text, NULL
            FROM data_retention_policies WHERE is_active) AS p
        WHERE $1 IS NULL OR user_id = $1 ORDER BY user_id, action <> 'hold', table_name, chat_mode, access_tier, id LIMIT $2";
    let policies: Vec<Policy> = diesel::sql_query(LIST)
        .bind::<Nullable<Integer>, _>(user.map(UserId::get))
        .bind::<BigInt, _>(i64::from(limit))
        .load(connection)
        .await
        .context("cannot read the policies")?;
    if json {
        let listed: Vec<_> = policies
            .iter()
            .map(|one| {
                serde_json::json!({ "id": one.id, "user_id": one.user_id, "table": one.table_name, "chat_mode": one.chat_mode,
                    "access_tier": one.access_tier, "keep_days": one.keep_days, "action": one.action, "reason": one.reason })
            })
            .collect();
        out_json(serde_json::json!({ "policies": listed }).to_string());
        return Ok(());
    }
    let mut table = Table::new([
        ("user", Align::Right),
        ("table", Align::Left),
        ("chat mode", Align::Left),
        ("tier", Align::Left),
        ("days", Align::Right),
        ("action", Align::Left),
        ("reason", Align::Left),
    ]);
    for one in policies {
        let all = |part: Option<String>| part.unwrap_or_else(|| "all".to_owned());
        table.row([
            if one.user_id == 0 { "all".to_owned() } else { one.user_id.to_string() },
            all(one.table_name),
            all(one.chat_mode),
            all(one.access_tier),
            one.keep_days.map(|days| days.to_string()).unwrap_or_default(),
            one.action,
            printable(&one.reason.unwrap_or_default()).to_string(),
        ]);
    }
    outln!("{}", table.to_string().trim_end());
    Ok(())
}

async fn show_preview(args: &PreviewArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = connect(settings).await?;
    let at = args.at.unwrap_or_else(Utc::now);
    let mut counts: BTreeMap<(String, Effect, Option<Uuid>), u64> = BTreeMap::new();
    let mut after = -1;
    loop {
        let users = users(&mut connection, args.user, after).await?;
        let Some(last) = users.last().copied() else { break };
        for line in preview(&mut connection, at, &users).await? {
            *counts.entry((line.table.into_owned(), line.effect, line.policy)).or_default() += line.rows;
        }
        after = last;
    }
    let lines: Vec<Line> = counts
        .into_iter()
        .map(|((table, effect, policy), rows)| Line { table: table.into(), effect, policy, rows })
        .collect();
    if args.json {
        out_json(serde_json::json!({ "lines": lines }).to_string());
        return Ok(());
    }
    if lines.is_empty() {
        outln!("nothing is due");
        return Ok(());
    }
    let mut table = Table::new([
        ("table", Align::Left),
        ("effect", Align::Left),
        ("policy", Align::Left),
        ("rows", Align::Right),
    ]);
    for line in lines {
        let effect = match line.effect {
            Effect::Expired => "expired",
            Effect::Deleted => "deleted",
            Effect::Anonymised => "anonymised",
            Effect::Archived => "archived",
        };
        table.row([
            line.table.into_owned(),
            effect.to_owned(),
            line.policy.map_or_else(|| "expires_at".to_owned(), |id| id.to_string()),
            grouped(line.rows),
        ]);
    }
    outln!("{}", table.to_string().trim_end());
    Ok(())
}

/// The next users.
async fn users(connection: &mut Connection, only: Option<UserId>, after: i32) -> anyhow::Result<Vec<i32>> {
    #[derive(QueryableByName)]
    struct User {
        #[diesel(sql_type = Integer)]
        id: i32,
    }
    const NEXT: &str = "SELECT id FROM users WHERE id > $1 AND ($2 IS NULL OR id = $2) ORDER BY id LIMIT $3";
    let users: Vec<User> = diesel::sql_query(NEXT)
        .bind::<Integer, _>(after)
        .bind::<Nullable<Integer>, _>(only.map(UserId::get))
        .bind::<BigInt, _>(USERS)
        .load(connection)
        .await
        .context("cannot read the users")?;
    Ok(users.into_iter().map(|user| user.id).collect())
}
