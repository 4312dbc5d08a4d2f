//! What protects the database, a line for each thing: roles, functions, policies, triggers, constraints and privileges.
//!
//! The file `catalog.txt` has the lines that the migrations make. A line that a live database lacks was changed or
//! taken away; one that it has beyond them was added.

use std::collections::BTreeSet;

use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use crate::fault::Fault;

/// The lines that the migrations make. Written and checked by `tests/schema_file.rs`.
const EXPECTED: &str = include_str!("catalog.txt");

/// Roles count if a worker has them, or if they own something here. The owner that migrates has a name of its own
/// everywhere. Partitions count if they differ from what their parent gives them, and those by month as one, since their
/// number grows. What an extension brings does not count.
const LINES: &str = "
    WITH kept AS (
        SELECT r.oid, r.rolname FROM pg_roles r
        WHERE r.rolname LIKE 'memfleet\\_%' OR r.rolname IN (SELECT w.role_name FROM sec.worker_privileges w)
    ), named AS (
        SELECT r.oid, CASE WHEN k.oid IS NULL AND (r.rolsuper OR r.oid = (SELECT d.datdba FROM pg_database d
            WHERE d.datname = current_database())) THEN 'an administrator' ELSE r.rolname::text END AS name
        FROM pg_roles r LEFT JOIN kept k ON k.oid = r.oid UNION ALL SELECT 0, 'PUBLIC'
    ), space AS (
        SELECT n.oid, n.nspname, n.nspacl, n.nspowner FROM pg_namespace n
        WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
    ), relation AS (
        SELECT c.*, s.nspname, format('%I.%I', s.nspname, CASE WHEN c.relispartition
                THEN regexp_replace(c.relname, '_\\d{4}_\\d{2}$', '_month') ELSE c.relname END) AS name
        FROM pg_class c JOIN space s ON s.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND NOT EXISTS (SELECT FROM pg_depend d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ), granted AS (
        SELECT 'schema ' || s.nspname AS what, s.nspowner AS owner, a.* FROM space s, aclexplode(s.nspacl) AS a
        UNION ALL SELECT 'relation ' || r.name, r.relowner, a.* FROM relation r, aclexplode(r.relacl) AS a
        UNION ALL SELECT format('column %s.%I', r.name, t.attname), r.relowner, a.* FROM relation r
            JOIN pg_attribute t ON t.attrelid = r.oid AND NOT t.attisdropped, aclexplode(t.attacl) AS a
        UNION ALL SELECT format('default privilege in %s', d.defaclnamespace), d.defaclrole, a.*
            FROM pg_default_acl d, aclexplode(d.defaclacl) AS a
    )
    SELECT line FROM (SELECT DISTINCT line FROM (
        SELECT concat_ws(' ', 'role', r.rolname, CASE WHEN r.rolcanlogin THEN 'login' END,
            CASE WHEN r.rolsuper THEN 'superuser' END, CASE WHEN r.rolbypassrls THEN 'bypassrls' END,
            CASE WHEN r.rolinherit THEN 'inherit' END, CASE WHEN r.rolcreaterole THEN 'createrole' END,
            CASE WHEN r.rolcreatedb THEN 'createdb' END, CASE WHEN r.rolreplication THEN 'replication' END) AS line
        FROM pg_roles r JOIN kept k ON k.oid = r.oid
        UNION ALL SELECT format('role %s is a member of %s', k.rolname, g.rolname)
        FROM pg_auth_members m JOIN kept k ON k.oid = m.member JOIN pg_roles g ON g.oid = m.roleid
        UNION ALL SELECT format('role %s has the member %s', k.rolname, g.rolname)
        FROM pg_auth_members m JOIN kept k ON k.oid = m.roleid JOIN pg_roles g ON g.oid = m.member AND NOT g.rolsuper
        UNION ALL SELECT format('setting of the role %s: %s', k.rolname, split_part(one, '=', 1))
        FROM pg_db_role_setting s JOIN kept k ON k.oid = s.setrole, unnest(s.setconfig) AS one
        WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
        UNION ALL SELECT format('setting %s of %s', split_part(one, '=', 1), coalesce(r.rolname, 'the database'))
        FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) AS one
        WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
            AND split_part(one, '=', 1) IN ('search_path', 'session_replication_role', 'row_security')
        UNION ALL SELECT format('constraint %I on %s: %s', c.conname, r.name, pg_get_constraintdef(c.oid))
        FROM pg_constraint c JOIN relation r ON r.oid = c.conrelid WHERE c.contype = 'c' AND NOT r.relispartition
        UNION ALL SELECT format('events of the type %s are appended by %s', w.event_type, w.role_name) FROM sec.event_writers w
        UNION ALL SELECT format('partition %s without a policy', r.name)
        FROM relation r JOIN pg_inherits i ON i.inhrelid = r.oid JOIN pg_class parent ON parent.oid = i.inhparent
        WHERE parent.relrowsecurity AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = r.oid)
        UNION ALL SELECT concat_ws(' ', 'function', format('%I.%I(%s)', s.nspname, p.proname,
                pg_get_function_identity_arguments(p.oid)), 'of', o.name, CASE WHEN p.prosecdef THEN 'definer' END,
            p.provolatile::text, array_to_string(p.proconfig, ', '),
            md5(CASE WHEN p.prokind IN ('f', 'p') THEN pg_get_functiondef(p.oid) ELSE p.prosrc END))
        FROM pg_proc p JOIN space s ON s.oid = p.pronamespace JOIN named o ON o.oid = p.proowner
        WHERE NOT EXISTS (SELECT FROM pg_depend d
            WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
        UNION ALL SELECT format('function %I.%I(%s) may be called by %s', s.nspname, p.proname,
            pg_get_function_identity_arguments(p.oid), g.name)
        FROM pg_proc p JOIN space s ON s.oid = p.pronamespace
        CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
        JOIN named g ON g.oid = a.grantee
        WHERE a.grantee <> p.proowner AND NOT EXISTS (SELECT FROM pg_depend d
            WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
        UNION ALL SELECT concat_ws(' ', 'relation', r.name, r.relkind::text, 'of', o.name,
            CASE WHEN r.relrowsecurity THEN 'row security' END, CASE WHEN r.relforcerowsecurity THEN 'forced' END,
            array_to_string(array_remove(r.reloptions, 'fillfactor=70'), ', '))
        FROM relation r JOIN named o ON o.oid = r.relowner WHERE NOT r.relispartition
        UNION ALL SELECT concat_ws(' ', g.what, 'grants', g.privilege_type, 'to', n.name,
            CASE WHEN g.is_grantable THEN 'with grant option' END)
        FROM granted g JOIN named n ON n.oid = g.grantee WHERE g.grantee <> g.owner
        UNION ALL SELECT concat_ws(' ', 'policy', p.polname, 'on', r.name, p.polcmd::text,
            CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END, p.polroles::text,
            pg_get_expr(p.polqual, p.polrelid), '|', pg_get_expr(p.polwithcheck, p.polrelid))
        FROM pg_policy p JOIN relation r ON r.oid = p.polrelid
        UNION ALL SELECT concat_ws(' ', 'trigger', t.tgname, 'on', r.name, t.tgenabled::text,
            regexp_replace(pg_get_triggerdef(t.oid), '^CREATE TRIGGER \\S+ ', ''))
        FROM pg_trigger t JOIN relation r ON r.oid = t.tgrelid
        WHERE NOT t.tgisinternal AND (t.tgparentid = 0 AND NOT r.relispartition OR t.tgenabled <> 'O')
        UNION ALL SELECT concat_ws(' ', 'rule', w.rulename, 'on', r.name) FROM pg_rewrite w JOIN relation r ON r.oid = w.ev_class
        WHERE w.rulename <> '_RETURN'
        UNION ALL SELECT concat_ws(' ', 'view', r.name, md5(pg_get_viewdef(r.oid))) FROM relation r WHERE r.relkind IN ('v', 'm')
        UNION ALL SELECT concat_ws(' ', 'event trigger', e.evtname) FROM pg_event_trigger e
    ) AS all_lines) AS once ORDER BY line COLLATE \"C\"";

/// The difference between a database and what the migrations make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What the migrations make and the database lacks.
    pub missing: Vec<String>,
    /// What the database has beyond that.
    pub unknown: Vec<String>,
}

/// What protects this database, sorted. For a superuser.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn lines(connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        line: String,
    }
    // Names in definitions are written as the search path has them.
    let rows: Vec<Row> = connection
        .transaction(async |connection| {
            connection.batch_execute("SET LOCAL search_path = pg_catalog, pg_temp").await?;
            Ok::<_, Fault>(diesel::sql_query(LINES).load(connection).await?)
        })
        .await?;
    Ok(rows.into_iter().map(|row| row.line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
}

/// Compares this database with what this program's migrations make. For a superuser.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn difference(connection: &mut AsyncPgConnection) -> Result<Difference, Fault> {
    let expected: BTreeSet<&str> = EXPECTED.lines().collect();
    let found = lines(connection).await?;
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    let owned = |lines: Vec<&&str>| lines.into_iter().map(|line| (*line).to_owned()).collect();
    Ok(Difference {
        missing: owned(expected.difference(&found).collect()),
        unknown: owned(found.difference(&expected).collect()),
    })
}
