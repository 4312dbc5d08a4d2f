//! `store/src/schema.rs` is what the migrated database has, for Diesel's DSL. `UPDATE_SCHEMA=1` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use testkit::Fixture;

use crate::support::in_repository;

/// Every column of every table that is no partition, in order: schema, table, column, type, whether it may be NULL.
const COLUMNS: &str = "concat_ws(' ', n.nspname, c.relname, a.attname, t.typname, a.attnotnull)
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname IN ('public', 'audit')
    JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relname <> '__diesel_schema_migrations'
    ORDER BY n.nspname DESC, c.relname, a.attnum";
/// The columns of every primary key, in order.
const KEYS: &str = "concat_ws(' ', n.nspname, c.relname, string_agg(a.attname, ', ' ORDER BY k.place))
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indrelid AND NOT c.relispartition
    JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE i.indisprimary GROUP BY n.nspname, c.relname";
/// Our enumerations, by schema, and the one type of PostgreSQL that Diesel does not know.
const TYPES: &str = "concat_ws(' ', CASE WHEN t.typtype = 'e' THEN n.nspname ELSE 'public' END, t.typname)
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE (t.typtype = 'e' AND n.nspname IN ('public', 'audit')) OR t.oid = 'tsvector'::regtype
    ORDER BY n.nspname DESC, t.typname";

fn camel(name: &str) -> String {
    let parts = name.split('_').map(|part| part[..1].to_uppercase() + &part[1..]);
    parts.collect()
}

fn diesel_type(name: &str) -> String {
    match name {
        "uuid" => "Uuid".to_owned(),
        "int4" => "Integer".to_owned(),
        "int8" => "BigInt".to_owned(),
        "float8" => "Double".to_owned(),
        "numeric" => "Numeric".to_owned(),
        "bool" => "Bool".to_owned(),
        "text" | "varchar" | "name" => "Text".to_owned(),
        "jsonb" => "Jsonb".to_owned(),
        "bytea" => "Binary".to_owned(),
        "timestamptz" => "Timestamptz".to_owned(),
        "_text" => "Array<Text>".to_owned(),
        own => format!("crate::schema::sql_types::{}", camel(own)),
    }
}

async fn generate(fixture: &Fixture) -> String {
    let keys: BTreeMap<String, String> = fixture
        .lines(KEYS)
        .await
        .iter()
        .map(|line| {
            let mut parts = line.splitn(3, ' ');
            let table = [parts.next().unwrap(), parts.next().unwrap()].join(" ");
            (table, parts.next().unwrap().to_owned())
        })
        .collect();
    let mut text = "//! The tables of the migrated database, for Diesel's DSL. Made and checked by `tests/schema_file.rs`.\n\n\
                    #![allow(missing_docs, reason = \"the migrations say what everything is\")]\n\n\
                    /// The enumerations.\npub mod sql_types {\n"
        .to_owned();
    for line in fixture.lines(TYPES).await {
        let (schema, name) = line.split_once(' ').unwrap();
        let schema = if schema == "public" { String::new() } else { format!(", schema = {schema:?}") };
        let derives =
            "#[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]";
        writeln!(
            text,
            "    {derives}\n    #[diesel(postgres_type(name = {name:?}{schema}))]\n    pub struct {};\n",
            camel(name)
        )
        .unwrap();
    }
    text.truncate(text.trim_end().len());
    text.push_str("\n}\n");
    let mut tables: Vec<(String, Vec<String>)> = Vec::new();
    for line in fixture.lines(COLUMNS).await {
        let parts: Vec<&str> = line.split(' ').collect();
        let table = parts[..2].join(" ");
        let kind = diesel_type(parts[3]);
        let kind = if parts[4] == "t" { kind } else { format!("Nullable<{kind}>") };
        let column = format!("        {} -> {kind},\n", parts[2]);
        match tables.last_mut() {
            Some((last, columns)) if *last == table => columns.push(column),
            _ => tables.push((table, vec![column])),
        }
    }
    for (table, columns) in tables {
        let key = &keys[&table];
        let name = table.replace("public ", "").replace(' ', ".");
        write!(
            text,
            "\ndiesel::table! {{\n    use diesel::sql_types::*;\n    {name} ({key}) {{\n{}    }}\n}}\n",
            columns.concat()
        )
        .unwrap();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_the_database() {
    let made = generate(&Fixture::new().await).await;
    let path = in_repository("shared/store/src/schema.rs");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &made).expect("the file");
    }
    let written = std::fs::read_to_string(&path).expect("the file");
    assert!(
        written == made,
        "{} is not what the migrations make; UPDATE_SCHEMA=1 writes it anew",
        path.display()
    );
}
