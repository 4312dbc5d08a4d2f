//! What a database cannot protect alone: the schemas of PostgreSQL itself, and what the server lets workers' roles do beside
//! this database.

use diesel::QueryableByName;
use diesel::sql_types::{Integer, Nullable, Oid, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::fault::Fault;

/// Objects in PostgreSQL's own schemas that PostgreSQL did not make, and operators, casts and types of its own that were
/// changed. Its changed functions are in `catalog.sql`: the migrations change some.
///
/// Whoever judges a database by its functions and operators must know first that they are the genuine ones. So every
/// operator here is named with its schema and the types that it is made for, which no added one can match better. What
/// PostgreSQL makes when a cluster is created has an id below 16384, and a row of these catalogs that was not changed since
/// has the transaction id 1. Collations may be added at any time (`pg_import_system_collations`) and replace nothing.
const ADDED: &str = "
    WITH system AS (
        SELECT n.oid, n.nspname FROM pg_catalog.pg_namespace n
        WHERE n.nspname OPERATOR(pg_catalog.=) 'pg_catalog'::pg_catalog.name
            OR n.nspname OPERATOR(pg_catalog.=) 'information_schema'::pg_catalog.name
    ), found AS (
        SELECT 'function'::pg_catalog.text AS kind, p.oid, p.pronamespace AS namespace, p.proname AS name FROM pg_catalog.pg_proc p
        UNION ALL SELECT 'operator'::pg_catalog.text, o.oid, o.oprnamespace, o.oprname FROM pg_catalog.pg_operator o
        UNION ALL SELECT 'relation'::pg_catalog.text, c.oid, c.relnamespace, c.relname FROM pg_catalog.pg_class c
        UNION ALL SELECT 'type'::pg_catalog.text, t.oid, t.typnamespace, t.typname FROM pg_catalog.pg_type t
        UNION ALL SELECT 'operator class'::pg_catalog.text, c.oid, c.opcnamespace, c.opcname FROM pg_catalog.pg_opclass c
        UNION ALL SELECT 'operator family'::pg_catalog.text, f.oid, f.opfnamespace, f.opfname FROM pg_catalog.pg_opfamily f
        UNION ALL SELECT 'conversion'::pg_catalog.text, c.oid, c.connamespace, c.conname FROM pg_catalog.pg_conversion c
    )
    SELECT f.kind, s.nspname AS space, f.name, f.oid FROM found f JOIN system s ON s.oid OPERATOR(pg_catalog.=) f.namespace
    WHERE f.oid OPERATOR(pg_catalog.>=) '16384'::pg_catalog.oid
    UNION ALL SELECT 'cast between types of PostgreSQL'::pg_catalog.text, a.typname, b.typname, c.oid FROM pg_catalog.pg_cast c
        JOIN pg_catalog.pg_type a ON a.oid OPERATOR(pg_catalog.=) c.castsource
        JOIN pg_catalog.pg_type b ON b.oid OPERATOR(pg_catalog.=) c.casttarget
    WHERE c.oid OPERATOR(pg_catalog.>=) '16384'::pg_catalog.oid
        AND a.oid OPERATOR(pg_catalog.<) '16384'::pg_catalog.oid AND b.oid OPERATOR(pg_catalog.<) '16384'::pg_catalog.oid
    UNION ALL SELECT 'changed operator'::pg_catalog.text, 'pg_catalog'::pg_catalog.name, o.oprname, o.oid FROM pg_catalog.pg_operator o
    WHERE o.oid OPERATOR(pg_catalog.<) '16384'::pg_catalog.oid AND o.xmin OPERATOR(pg_catalog.<>) '1'::pg_catalog.xid
    UNION ALL SELECT 'changed cast'::pg_catalog.text, a.typname, b.typname, c.oid FROM pg_catalog.pg_cast c
        JOIN pg_catalog.pg_type a ON a.oid OPERATOR(pg_catalog.=) c.castsource
        JOIN pg_catalog.pg_type b ON b.oid OPERATOR(pg_catalog.=) c.casttarget
    WHERE c.oid OPERATOR(pg_catalog.<) '16384'::pg_catalog.oid AND c.xmin OPERATOR(pg_catalog.<>) '1'::pg_catalog.xid
    UNION ALL SELECT 'changed operator class'::pg_catalog.text, 'pg_catalog'::pg_catalog.name, c.opcname, c.oid
    FROM pg_catalog.pg_opclass c
    WHERE c.oid OPERATOR(pg_catalog.<) '16384'::pg_catalog.oid AND c.xmin OPERATOR(pg_catalog.<>) '1'::pg_catalog.xid
    UNION ALL SELECT 'changed operator family'::pg_catalog.text, 'pg_catalog'::pg_catalog.name, f.opfname, a.oid
    FROM pg_catalog.pg_amop a JOIN pg_catalog.pg_opfamily f ON f.oid OPERATOR(pg_catalog.=) a.amopfamily
    WHERE (a.oid OPERATOR(pg_catalog.<) '16384'::pg_catalog.oid OR f.oid OPERATOR(pg_catalog.<) '16384'::pg_catalog.oid)
        AND a.xmin OPERATOR(pg_catalog.<>) '1'::pg_catalog.xid
    UNION ALL SELECT 'changed operator family'::pg_catalog.text, 'pg_catalog'::pg_catalog.name, f.opfname, a.oid
    FROM pg_catalog.pg_amproc a JOIN pg_catalog.pg_opfamily f ON f.oid OPERATOR(pg_catalog.=) a.amprocfamily
    WHERE (a.oid OPERATOR(pg_catalog.<) '16384'::pg_catalog.oid OR f.oid OPERATOR(pg_catalog.<) '16384'::pg_catalog.oid)
        AND a.xmin OPERATOR(pg_catalog.<>) '1'::pg_catalog.xid
    UNION ALL SELECT 'changed type'::pg_catalog.text, 'pg_catalog'::pg_catalog.name, t.typname, t.oid FROM pg_catalog.pg_type t
    WHERE t.oid OPERATOR(pg_catalog.<) '16384'::pg_catalog.oid
        AND (t.typinput::pg_catalog.oid OPERATOR(pg_catalog.>=) '16384'::pg_catalog.oid
            OR t.typoutput::pg_catalog.oid OPERATOR(pg_catalog.>=) '16384'::pg_catalog.oid
            OR t.typreceive::pg_catalog.oid OPERATOR(pg_catalog.>=) '16384'::pg_catalog.oid
            OR t.typsend::pg_catalog.oid OPERATOR(pg_catalog.>=) '16384'::pg_catalog.oid)";

/// What does not belong to PostgreSQL in its own schemas, a line for each thing.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn added_to_system_schemas(connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        kind: String,
        #[diesel(sql_type = Text)]
        space: String,
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = Oid)]
        oid: u32,
    }
    let rows: Vec<Row> = diesel::sql_query(ADDED).load(connection).await?;
    let mut lines: Vec<String> = rows
        .into_iter()
        .map(|Row { kind, space, name, oid }| format!("{kind} {space}.{name} (oid {oid})"))
        .collect();
    lines.sort();
    Ok(lines)
}

/// The databases of the server, other than this one, to which every role may connect.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn open_databases(connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
    const OPEN: &str = "
        SELECT d.datname::text AS name FROM pg_catalog.pg_database d
        WHERE d.datallowconn AND d.datname <> current_database() AND EXISTS (
            SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS a
            WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT')
        ORDER BY d.datname";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        name: String,
    }
    let rows: Vec<Row> = diesel::sql_query(OPEN).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}

/// A worker's role that may take all connections of the server.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct UnlimitedRole {
    /// The role.
    #[diesel(sql_type = Text)]
    pub role: String,
    /// Its limit, none if there is none.
    #[diesel(sql_type = Nullable<Integer>)]
    pub limit: Option<i32>,
    /// How many connections the server has for roles that are no superusers.
    #[diesel(sql_type = Integer)]
    pub connections: i32,
}

/// The workers' roles that may take all connections of the server.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn unlimited_roles(connection: &mut AsyncPgConnection) -> Result<Vec<UnlimitedRole>, Fault> {
    // PostgreSQL 15 has no reserved_connections.
    const UNLIMITED: &str = "
        SELECT r.rolname::text AS role, nullif(r.rolconnlimit, -1) AS limit, s.connections
        FROM pg_catalog.pg_roles r
        CROSS JOIN (SELECT current_setting('max_connections')::integer
            - current_setting('superuser_reserved_connections')::integer
            - coalesce(current_setting('reserved_connections', true)::integer, 0) AS connections) AS s
        WHERE r.rolname IN (SELECT w.role_name FROM sec.worker_privileges w)
            AND (r.rolconnlimit = -1 OR r.rolconnlimit >= s.connections)
        ORDER BY r.rolname";
    Ok(diesel::sql_query(UNLIMITED).load(connection).await?)
}

/// Who and what can change anything in this server, beside the role of this connection: other superusers, extensions, and
/// libraries that the server loads. A line for each.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn powers(connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
    const POWERS: &str = "
        SELECT 'the role ' || r.rolname || ' is a superuser' AS name FROM pg_catalog.pg_roles r
        WHERE r.rolsuper AND r.rolcanlogin AND r.rolname <> session_user
        UNION ALL SELECT 'the extension ' || x.extname || ' is installed' FROM pg_catalog.pg_extension x WHERE x.oid >= 16384
        UNION ALL SELECT s.name || ' has ' || s.reset_val FROM pg_catalog.pg_settings s
        WHERE s.name LIKE '%\\_preload\\_libraries' AND s.reset_val <> ''
        ORDER BY 1";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        name: String,
    }
    let rows: Vec<Row> = diesel::sql_query(POWERS).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}
