//! Whether the tables of the trail are such that reading them shows what is stored.
//!
//! A view or a foreign table in the place of a table shows what somebody likes, and so does a column of a type whose send
//! function was replaced. The statement here returns one row for each such thing. That it returns none is the answer: a value
//! that it returned could come from such a function itself.
//!
//! It does not help against whoever runs code of their own inside the server: see docs/SECURITY.md.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use store::Fault;

use crate::leaf::Source;
use crate::record::{Column, EnumType, Types};

/// The table of seals.
const SEALS: &str = "audit.seals";

/// The columns of the seals that are read, and the oids of their types.
const SEAL_COLUMNS: [(&str, u32); 10] = [
    ("number", 20),
    ("previous_hash", 17),
    ("through_transaction", 20),
    ("through_id", 2950),
    ("leaves", 17),
    ("root", 17),
    ("sealed_at", 1184),
    ("key_name", 1043),
    ("signature", 17),
    ("format", 21),
];

/// The types of PostgreSQL that are read or bound: oid, send function and receive function. PostgreSQL calls a function with
/// such an oid as it was compiled, whatever the catalog says of it.
const TYPES: [(u32, &str, u32, &str, u32); 13] = [
    (17, "bytea", 2413, "byteasend", 2412),
    (20, "int8", 2409, "int8send", 2408),
    (21, "int2", 2405, "int2send", 2404),
    (23, "int4", 2407, "int4send", 2406),
    (25, "text", 2415, "textsend", 2414),
    (1009, "text[]", 2401, "array_send", 2400),
    (1043, "varchar", 2433, "varcharsend", 2432),
    (1184, "timestamptz", 2477, "timestamptz_send", 2476),
    (2249, "record", 2403, "record_send", 2402),
    (2278, "void", 3121, "void_send", 3120),
    (2950, "uuid", 2962, "uuid_send", 2961),
    (3802, "jsonb", 3803, "jsonb_send", 3805),
    (5069, "xid8", 5083, "xid8send", 5082),
];

/// The send function of an enumeration.
const ENUM_SEND: u32 = 3533;

/// The operators of the order of rows, and their functions.
const OPERATORS: [(u32, u32); 11] = [
    (96, 65),
    (410, 467),
    (412, 469),
    (413, 470),
    (414, 471),
    (415, 472),
    (2972, 2956),
    (2974, 2954),
    (2975, 2958),
    (2976, 2955),
    (2977, 2957),
];

/// The same in indexes and sorts: operator families of `bigint` and `uuid`, their type and the function that compares.
const ORDERS: [(u32, u32, u32); 2] = [(1976, 20, 842), (2968, 2950, 2960)];

/// The maximum number of things that are named.
const MAX_FAULTS: i64 = 100;

/// After the lists `named`, `expected_column`, `expected_type`, `expected_enum`, `expected_operator` and `expected_order`.
const FAULTS: &str = "
    root AS (SELECT n.name, to_regclass(n.name)::oid AS id FROM named AS n),
    part (name, id, is_root) AS (
        SELECT r.name, r.id, true FROM root AS r WHERE r.id IS NOT NULL
        UNION SELECT p.name, i.inhrelid, false FROM part AS p JOIN pg_inherits AS i ON i.inhparent = p.id
    ),
    relation AS (
        SELECT p.name, p.is_root, c.oid AS id, c.oid::regclass::text AS shown, c.relkind, c.relispartition
        FROM part AS p JOIN pg_class AS c ON c.oid = p.id
    )
    SELECT w.what FROM (
        SELECT format('%s is missing', r.name) AS what FROM root AS r WHERE r.id IS NULL
        UNION ALL
        SELECT format('%s is %s and not a table', r.shown, CASE r.relkind WHEN 'v' THEN 'a view'
            WHEN 'm' THEN 'a materialized view' WHEN 'f' THEN 'a foreign table' ELSE format('of the kind %L', r.relkind) END)
        FROM relation AS r WHERE r.relkind NOT IN ('r', 'p')
        UNION ALL
        SELECT format('%s is partitioned', r.shown) FROM relation AS r WHERE r.relkind = 'p' AND r.name = 'audit.seals'
        UNION ALL
        SELECT format('%s inherits from %s and is not a partition of it', r.shown, r.name)
        FROM relation AS r WHERE NOT r.is_root AND NOT r.relispartition
        UNION ALL
        SELECT format('%s has the rule %I', r.shown, w.rulename) FROM relation AS r JOIN pg_rewrite AS w ON w.ev_class = r.id
        WHERE r.relkind IN ('r', 'p')
        UNION ALL
        SELECT format('%s has the trigger %I', r.shown, t.tgname) FROM relation AS r JOIN pg_trigger AS t ON t.tgrelid = r.id
        WHERE r.name = 'audit.seals' AND NOT t.tgisinternal
        UNION ALL
        SELECT format('the column %I of %s %s', e.name, r.shown, CASE WHEN a.attname IS NULL THEN 'is missing'
            WHEN a.atttypid = e.type THEN 'is computed'
            ELSE format('is of the type %s and not %s', format_type(a.atttypid, NULL), coalesce(format_type(e.type, NULL), '?')) END)
        FROM relation AS r JOIN expected_column AS e ON e.relation = r.name
        LEFT JOIN pg_attribute AS a ON a.attrelid = r.id AND a.attname = e.name AND a.attnum > 0 AND NOT a.attisdropped
        WHERE (a.atttypid = e.type AND a.attgenerated = '') IS NOT TRUE
        UNION ALL
        SELECT format('values of the type %s are sent by %s and not by %s of PostgreSQL', e.name,
            coalesce(t.typsend::oid::regprocedure::text, 'nothing'), e.source)
        FROM expected_type AS e LEFT JOIN pg_type AS t ON t.oid = e.id LEFT JOIN pg_proc AS p ON p.oid = t.typsend::oid
        WHERE (t.typsend::oid = e.send AND p.prolang = 12 AND p.prosrc = e.source) IS NOT TRUE
        UNION ALL
        SELECT format('values of the type %s are received by %s', e.name,
            coalesce(t.typreceive::oid::regprocedure::text, 'nothing'))
        FROM expected_type AS e LEFT JOIN pg_type AS t ON t.oid = e.id WHERE (t.typreceive::oid = e.receive) IS NOT TRUE
        UNION ALL
        SELECT format('the enumeration %s is missing, or its values are sent by a function that is not of PostgreSQL', e.name)
        FROM expected_enum AS e LEFT JOIN pg_type AS t ON t.oid = to_regtype(e.name)::oid
        WHERE (t.typtype = 'e' AND t.typsend::oid = e.send) IS NOT TRUE
        UNION ALL
        SELECT format('the operator %s calls %s', e.id::regoperator, coalesce(o.oprcode::oid::regprocedure::text, 'nothing'))
        FROM expected_operator AS e LEFT JOIN pg_operator AS o ON o.oid = e.id
        WHERE (o.oprcode::oid = e.function) IS NOT TRUE
        UNION ALL
        SELECT format('indexes of the type %s compare with another function', format_type(e.type, NULL))
        FROM expected_order AS e LEFT JOIN pg_amproc AS a ON a.amprocfamily = e.family AND a.amproclefttype = e.type
            AND a.amprocrighttype = e.type AND a.amprocnum = 1
        WHERE (a.amproc::oid = e.function) IS NOT TRUE
    ) AS w (what) LIMIT ";

/// A list with a name, as a part of a WITH clause.
fn list(head: &str, rows: impl Iterator<Item = String>) -> String {
    format!("{head} AS (VALUES {})", rows.collect::<Vec<_>>().join(", "))
}

/// All values are constants in the text of the statement: it binds nothing.
fn statement() -> String {
    let tables = Source::ALL.map(|source| source.reading().table);
    let columns = Source::ALL.into_iter().flat_map(|source| {
        let reading = source.reading();
        let own = reading.columns.iter().filter(|(_, column)| *column != Column::KeyOfUser);
        own.map(move |(name, column)| {
            let id = match column.built_in() {
                Ok(id) => format!("{id}::oid"),
                Err(name) => format!("to_regtype('{}')::oid", name.name()),
            };
            format!("('{}', '{name}'::name, {id})", reading.table)
        })
    });
    let seals = SEAL_COLUMNS.iter().map(|(name, id)| format!("('{SEALS}', '{name}'::name, {id}::oid)"));
    let lists = [
        list("named (name)", tables.into_iter().chain([SEALS]).map(|name| format!("('{name}')"))),
        list("expected_column (relation, name, type)", columns.chain(seals)),
        list(
            "expected_type (id, name, send, source, receive)",
            TYPES.iter().map(|(id, name, send, source, receive)| {
                format!("({id}::oid, '{name}', {send}::oid, '{source}', {receive}::oid)")
            }),
        ),
        list(
            "expected_enum (name, send)",
            EnumType::ALL.iter().map(|one| format!("('{}', {ENUM_SEND}::oid)", one.name())),
        ),
        list(
            "expected_operator (id, function)",
            OPERATORS.iter().map(|(id, function)| format!("({id}::oid, {function}::oid)")),
        ),
        list(
            "expected_order (family, type, function)",
            ORDERS
                .iter()
                .map(|(family, id, function)| format!("({family}::oid, {id}::oid, {function}::oid)")),
        ),
    ];
    format!("WITH RECURSIVE {}, {FAULTS}{MAX_FAULTS}", lists.join(", "))
}

/// What keeps this database from showing what it stores, at most [`MAX_FAULTS`] things; nothing if all is as the migrations
/// made it. The connection must have a fixed search path.
///
/// # Errors
/// A [`Fault`] of the database.
pub(crate) async fn faults(connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
    #[derive(QueryableByName)]
    struct What {
        #[diesel(sql_type = Text)]
        what: String,
    }
    let found: Vec<What> = diesel::sql_query(statement()).load(connection).await?;
    Ok(found.into_iter().map(|one| one.what).collect())
}

/// The types of the columns that are read.
///
/// # Errors
/// A [`Fault`] of the database.
pub(crate) async fn types(connection: &mut AsyncPgConnection) -> Result<Types, Fault> {
    #[derive(QueryableByName)]
    struct Id {
        #[diesel(sql_type = BigInt)]
        id: i64,
    }
    let mut enums = Vec::new();
    for name in EnumType::ALL {
        let query = format!(
            "SELECT to_regtype('{}')::oid::int8 AS id WHERE to_regtype('{0}') IS NOT NULL",
            name.name()
        );
        let found: Vec<Id> = diesel::sql_query(query).load(connection).await?;
        enums.extend(found.into_iter().filter_map(|one| Some((name, u32::try_from(one.id).ok()?))));
    }
    Ok(Types::new(enums))
}
