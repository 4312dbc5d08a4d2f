//! `memfleet security validate`: attacks the configured database as each worker's role, and checks in the catalogs that
//! isolation is set up completely. Everything runs in transactions that are rolled back.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use cli::outln;
use cli::output::{out_json, printable};
use cli::table::{Align, Table, grouped};
use config::Settings;
use contract::{Service, UserId};
use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use serde::Serialize;
use trust::{Grant, GrantKey};
use uuid::Uuid;

use super::attack::{self, Attempt, Expected, Target};

/// Attacks the database as each worker's role and reports what succeeds. Needs a superuser's login; changes nothing.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Print one JSON object, on the last line of standard output, instead of a table.
    #[arg(long)]
    json: bool,
}

/// The result.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Number of attempts and checks.
    attempts: u64,
    /// Attempts that succeeded or failed with an unexpected error, and failed checks.
    findings: Vec<Finding>,
    #[serde(skip)]
    kinds: BTreeMap<&'static str, (u64, u64)>,
}

#[derive(Debug, Serialize)]
struct Finding {
    kind: &'static str,
    /// The attacking role; `None` for a check of the catalogs.
    role: Option<String>,
    what: String,
    outcome: String,
}

impl Report {
    fn note(&mut self, kind: &'static str, finding: Option<Finding>) {
        self.attempts += 1;
        let counts = self.kinds.entry(kind).or_default();
        counts.0 += 1;
        counts.1 += u64::from(finding.is_some());
        self.findings.extend(finding);
    }
}

/// Runs `memfleet security validate`.
///
/// # Errors
/// If the database is unreachable, the role is not a superuser, or there are findings.
pub async fn execute(args: &ValidateArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection =
        cli::database::connect(&settings.postgres.url, "postgres.url", "the database to validate").await?;
    if lines(&mut connection, "SELECT 'x' AS line FROM pg_roles WHERE rolname = session_user AND rolsuper")
        .await?
        .is_empty()
    {
        bail!("the role of postgres.url is not a superuser; only a superuser can assume the workers' roles");
    }
    // Attacks must not block other users of the database.
    connection.batch_execute("SET lock_timeout = '1s'; SET statement_timeout = '10s'").await?;
    let mut report = Report::default();
    check_catalogs(&mut connection, &mut report).await?;
    compare_with_migrations(&mut connection, &mut report).await?;
    attack_all(&mut connection, &mut report).await?;
    if args.json {
        out_json(serde_json::to_string(&report)?);
    } else {
        show(&report);
    }
    match report.findings.len() {
        0 => Ok(()),
        count => bail!("{count} findings: isolation is broken"),
    }
}

fn show(report: &Report) {
    let mut table =
        Table::new([("attempt", Align::Left), ("tried", Align::Right), ("findings", Align::Right)]);
    for (kind, (tried, found)) in &report.kinds {
        table.row([(*kind).to_owned(), grouped(*tried), grouped(*found)]);
    }
    let found = u64::try_from(report.findings.len()).unwrap_or(u64::MAX);
    table.row(["total".to_owned(), grouped(report.attempts), grouped(found)]);
    outln!("{table}");
    for Finding { kind, role, what, outcome } in &report.findings {
        outln!(
            "{kind}: {}{}: {}",
            role.as_ref().map_or_else(String::new, |role| format!("{role}: ")),
            printable(what),
            printable(outcome)
        );
    }
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

async fn lines(connection: &mut AsyncPgConnection, sql: &str) -> anyhow::Result<Vec<String>> {
    let rows: Vec<Line> = diesel::sql_query(sql).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.line).collect())
}

/// The tables with rows of users: all with a column `user_id`, and `users`. Except `cross_service_auth`: it registers
/// services, and no worker may read it.
const TARGETS: &str = "
    SELECT c.oid::regclass || ' ' || a.attname AS line FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        AND a.attname = CASE WHEN c.relname = 'users' THEN 'id' ELSE 'user_id' END
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND c.relname <> 'cross_service_auth' ORDER BY 1";
const ROLES: &str = "SELECT DISTINCT role_name::text AS line FROM sec.worker_privileges WHERE 'INSERT' = ANY (privileges) ORDER BY 1";
const PARTITIONS: &str = "SELECT inhrelid::regclass::text AS line FROM pg_inherits
    JOIN pg_class c ON c.oid = inhparent AND c.relkind = 'p' ORDER BY 1";

/// Checks of the catalogs. Each query returns one line per violation.
const CHECKS: [(&str, &str); 12] = [
    (
        "table without forced RLS",
        "SELECT c.oid::regclass::text AS line FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
            AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
            AND c.relname NOT IN ('gpu_resources', 'qdrant_access_control', 'cross_service_auth', 'vector_collections',
                '__diesel_schema_migrations')",
    ),
    (
        "unknown RLS policy",
        "SELECT polrelid::regclass || ' ' || polname AS line FROM pg_policy
            WHERE NOT (polname IN ('evidence', 'own_types') AND NOT polpermissive AND polrelid = 'blackboard_events'::regclass)
            AND (polname <> 'own_rows' OR pg_get_expr(polqual, polrelid) IS DISTINCT FROM pg_get_expr(polwithcheck, polrelid)
            OR pg_get_expr(polqual, polrelid) !~ '^\\((user_id|id) = ANY \\(\\( SELECT sec.current_user_ids\\(\\) AS current_user_ids\\)::integer\\[\\]\\)\\)$')",
    ),
    (
        "privilege granted to PUBLIC",
        "SELECT c.oid::regclass || ' ' || acl.privilege_type AS line FROM pg_class c, aclexplode(c.relacl) AS acl
            WHERE c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit') AND acl.grantee = 0
         UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc p
            WHERE p.pronamespace::regnamespace::text IN ('public', 'sec', 'audit')
            AND has_function_privilege('public', p.oid, 'EXECUTE')
         UNION ALL SELECT 'the database' FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS acl
            WHERE d.datname = current_database() AND acl.grantee = 0",
    ),
    (
        "SECURITY DEFINER function without a fixed search_path",
        "SELECT p.oid::regprocedure::text AS line FROM pg_proc p
            WHERE p.pronamespace::regnamespace::text IN ('public', 'sec', 'audit') AND p.prosecdef
            AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)",
    ),
    (
        "table owner that can log in",
        "SELECT c.oid::regclass || ' of ' || r.rolname AS line FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
            WHERE c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit') AND c.relkind IN ('r', 'p')
            AND c.relname <> '__diesel_schema_migrations' AND r.rolcanlogin",
    ),
    (
        "role memfleet_due with more than column privileges",
        "SELECT 'it can log in' AS line FROM pg_roles WHERE rolname = 'memfleet_due' AND rolcanlogin
         UNION ALL SELECT c.oid::regclass || ' ' || acl.privilege_type FROM pg_class c, aclexplode(c.relacl) AS acl
            WHERE acl.grantee = 'memfleet_due'::regrole
         UNION ALL SELECT a.attrelid::regclass || '.' || a.attname || ' ' || acl.privilege_type
            FROM pg_attribute a, aclexplode(a.attacl) AS acl
            WHERE acl.grantee = 'memfleet_due'::regrole AND acl.privilege_type <> 'SELECT'
         UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE p.proowner = 'memfleet_due'::regrole
            AND NOT EXISTS (SELECT FROM sec.jobs j WHERE j.due_function = format('%I.%I', n.nspname, p.proname))",
    ),
    (
        "view that bypasses RLS",
        "SELECT c.oid::regclass::text AS line FROM pg_class c
            WHERE c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit') AND c.relkind IN ('v', 'm')
            AND NOT coalesce('security_invoker=true' = ANY (c.reloptions), false)",
    ),
    (
        "unknown trigger",
        "SELECT t.tgrelid::regclass || ' ' || t.tgname AS line FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
            JOIN pg_class c ON c.oid = t.tgrelid AND c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit')
            WHERE NOT t.tgisinternal AND p.proowner <> 'memfleet_owner'::regrole",
    ),
    (
        "table without audit trigger",
        "SELECT c.oid::regclass || ' on ' || o.operation AS line FROM pg_policy p
            JOIN pg_class c ON c.oid = p.polrelid AND NOT c.relispartition AND c.oid <> ALL (ARRAY['inbox', 'session_clocks',
                'router_hourly_patterns']::regclass[])
            CROSS JOIN (VALUES ('INSERT', 4), ('DELETE', 8), ('UPDATE', 16)) AS o (operation, bit)
            WHERE NOT (c.oid = 'blackboard_events'::regclass AND o.operation = 'INSERT')
            AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled IN ('O', 'A')
                AND t.tgfoid = 'audit.audit_trigger_function'::regproc AND t.tgtype & o.bit > 0)",
    ),
    (
        "advisory lock function granted to PUBLIC",
        "SELECT p.oid::regprocedure::text AS line FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace
            AND p.proname ~ '^pg_(try_)?advisory_' AND has_function_privilege('public', p.oid, 'EXECUTE')",
    ),
    (
        "large object function granted to PUBLIC",
        "SELECT p.oid::regprocedure::text AS line FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace
            AND p.proname ~ '^(lo_|loread$|lowrite$)' AND has_function_privilege('public', p.oid, 'EXECUTE')",
    ),
    (
        "foreign key without user_id",
        "SELECT conrelid::regclass || ' ' || conname AS line FROM pg_constraint c
            WHERE contype = 'f' AND conparentid = 0 AND connamespace = 'public'::regnamespace
            AND confrelid <> ALL (ARRAY['users', 'gpu_resources']::regclass[])
            AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attname = 'user_id'
                AND a.attnum = ANY (c.conkey))",
    ),
];

async fn check_catalogs(connection: &mut AsyncPgConnection, report: &mut Report) -> anyhow::Result<()> {
    for (kind, sql) in CHECKS {
        let found = lines(connection, sql).await.with_context(|| format!("cannot run the check {kind:?}"))?;
        if found.is_empty() {
            report.note(kind, None);
        }
        for what in found {
            report.note(kind, Some(Finding { kind, role: None, what, outcome: "exists".to_owned() }));
        }
    }
    Ok(())
}

/// Compares roles, functions, policies, triggers and privileges with what the migrations of this program make.
async fn compare_with_migrations(
    connection: &mut AsyncPgConnection,
    report: &mut Report,
) -> anyhow::Result<()> {
    const KIND: &str = "differs from the migrations";
    let difference = store::catalog::difference(connection).await.context("cannot read the catalogs")?;
    let sides = [(difference.missing, "is missing"), (difference.unknown, "exists")];
    let findings: Vec<Finding> = sides
        .into_iter()
        .flat_map(|(lines, outcome)| {
            lines.into_iter().map(move |what| Finding {
                kind: KIND,
                role: None,
                what,
                outcome: outcome.to_owned(),
            })
        })
        .collect();
    if findings.is_empty() {
        report.note(KIND, None);
    }
    for finding in findings {
        report.note(KIND, Some(finding));
    }
    Ok(())
}

async fn attack_all(connection: &mut AsyncPgConnection, report: &mut Report) -> anyhow::Result<()> {
    let target = |line: &String| {
        let (table, owner) = line.split_once(' ')?;
        Some(Target { table: table.to_owned(), owner: owner.to_owned() })
    };
    let targets: Vec<Target> = lines(connection, TARGETS).await?.iter().filter_map(target).collect();
    let (roles, partitions) = (lines(connection, ROLES).await?, lines(connection, PARTITIONS).await?);
    let users =
        lines(connection, "SELECT id::text AS line FROM users WHERE id > 0 ORDER BY random() LIMIT 1")
            .await?;
    let user = users.into_iter().next().and_then(|id| id.parse().ok()).unwrap_or(1);
    for role in &roles {
        let excess = "SELECT excess AS line FROM sec.excess_privileges() AS excess";
        let mut attempts = attack::without_a_grant(&targets);
        attempts.extend(attack::around(role, &roles, &partitions));
        let key = GrantKey::generate("validate")?;
        let sealed = |key: &GrantKey, role: &str, expires_at: SystemTime| seal(key, user, role, expires_at);
        let later = SystemTime::now() + Duration::from_secs(60);
        let good = sealed(&key, role, later)?;
        attempts.extend(attack::bad_grants(
            &good,
            &sealed(&key, "w_nobody", later)?,
            &sealed(&key, role, SystemTime::now() - Duration::from_secs(1))?,
            &sealed(&GrantKey::generate("validate")?, role, later)?,
            user,
        ));
        connection.batch_execute("BEGIN").await?;
        store::security::add_grant_key(connection, key.name(), key.expose()).await?;
        connection.batch_execute(&format!("SET LOCAL SESSION AUTHORIZATION {role}")).await?;
        for what in lines(connection, excess).await? {
            let kind = "excess privilege";
            let finding = Finding { kind, role: Some(role.clone()), what, outcome: "exists".to_owned() };
            report.note(kind, Some(finding));
        }
        for attempt in attempts {
            try_one(connection, role, &attempt, report).await?;
        }
        connection.batch_execute(&format!("SELECT sec.open_context(ARRAY['{good}'])")).await?;
        for attempt in attack::with_a_grant(&targets, user) {
            try_one(connection, role, &attempt, report).await?;
        }
        connection.batch_execute("ROLLBACK").await?;
    }
    Ok(())
}

fn seal(key: &GrantKey, user: i32, role: &str, expires_at: SystemTime) -> anyhow::Result<String> {
    let service: Service = "validate".parse()?;
    Ok(key.seal(&Grant {
        user_id: UserId::new(user)?,
        session: None,
        service: &service,
        role,
        id: Uuid::now_v7(),
        expires_at,
    }))
}

/// Runs one attempt, rolls it back and records the outcome.
async fn try_one(
    connection: &mut AsyncPgConnection,
    role: &str,
    attempt: &Attempt,
    report: &mut Report,
) -> anyhow::Result<()> {
    connection.batch_execute("SAVEPOINT attempt").await?;
    let mut outcome = Ok(0);
    for statement in attempt.sql.split("; ") {
        outcome = diesel::sql_query(statement).execute(connection).await;
        if outcome.is_err() {
            break;
        }
    }
    connection.batch_execute("ROLLBACK TO SAVEPOINT attempt").await?;
    let outcome = outcome.map_err(|error| error.to_string());
    let as_expected = match (attempt.expected, &outcome) {
        (Expected::Nothing | Expected::NotGenuine, Ok(rows)) => *rows == 0,
        (Expected::NotGenuine, Err(error)) => {
            error.contains("the security context is not genuine") || error.contains("permission denied")
        }
        (Expected::Nothing, Err(error)) => error.contains("permission denied"),
        (Expected::Refused(_), Ok(_)) => false,
        (Expected::Refused(by), Err(error)) => by.iter().any(|phrase| error.contains(phrase)),
    };
    let finding = (!as_expected).then(|| Finding {
        kind: attempt.kind,
        role: Some(role.to_owned()),
        what: attempt.sql.clone(),
        outcome: outcome.map_or_else(|error| error, |rows| format!("{rows} rows")),
    });
    report.note(attempt.kind, finding);
    Ok(())
}
