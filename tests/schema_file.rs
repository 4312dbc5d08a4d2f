//! `store/src/schema.rs` is what the migrated database has of the tables that Diesel's DSL is used for. `UPDATE_SCHEMA=1` writes
//! it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use store::catalog::Catalog;
use testkit::Fixture;

use crate::support::in_repository;

/// The tables of the file, by schema and name. To use another table in the DSL, add it here.
const TABLES: [&str; 6] = [
    "audit.seals",
    "audit.subjects",
    "public.cross_service_auth",
    "public.encrypted_fields",
    "sec.services",
    "sec.token_keys",
];

/// Every column of every table that is no partition, in order: schema and table, column, type, whether it may be NULL.
const COLUMNS: &str =
    "concat_ws(' ', concat_ws('.', n.nspname, c.relname), a.attname, t.typname, a.attnotnull)
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname IN ('public', 'audit', 'sec')
    JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attnum > 0 AND NOT a.attisdropped
    ORDER BY n.nspname DESC, c.relname, a.attnum";
/// The columns of every primary key, in order.
const KEYS: &str =
    "concat_ws(' ', concat_ws('.', n.nspname, c.relname), string_agg(a.attname, ', ' ORDER BY k.place))
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indrelid AND NOT c.relispartition
    JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE i.indisprimary GROUP BY n.nspname, c.relname";

/// None for a type that the DSL is not used with: an enumeration, whose number Diesel would ask every connection for.
fn diesel_type(name: &str) -> Option<&'static str> {
    Some(match name {
        "uuid" => "Uuid",
        "int2" => "SmallInt",
        "int4" => "Integer",
        "int8" => "BigInt",
        "float8" => "Double",
        "numeric" => "Numeric",
        "bool" => "Bool",
        "text" | "varchar" | "name" => "Text",
        "jsonb" => "Jsonb",
        "bytea" => "Binary",
        "timestamptz" => "Timestamptz",
        "_text" => "Array<Text>",
        _ => return None,
    })
}

async fn generate(fixture: &Fixture) -> String {
    let keys = fixture.lines(KEYS).await;
    let keys: BTreeMap<&str, &str> = keys.iter().map(|line| line.split_once(' ').unwrap()).collect();
    let mut tables: Vec<(String, String)> = Vec::new();
    for line in fixture.lines(COLUMNS).await {
        let parts: Vec<&str> = line.split(' ').collect();
        let &[table, column, kind, not_null] = parts.as_slice() else { panic!("{line}") };
        if !TABLES.contains(&table) {
            continue;
        }
        let kind = diesel_type(kind).unwrap_or_else(|| panic!("{table}.{column} is of the type {kind}"));
        let kind = if not_null == "t" { kind.to_owned() } else { format!("Nullable<{kind}>") };
        let column = format!("        {column} -> {kind},\n");
        match tables.last_mut() {
            Some((last, columns)) if last == table => columns.push_str(&column),
            _ => tables.push((table.to_owned(), column)),
        }
    }
    assert_eq!(tables.len(), TABLES.len(), "a table is missing");
    let mut text =
        "//! The tables of the migrated database that Diesel's DSL reads or writes. Written and checked by \
                    `tests/schema_file.rs`.\n\n\
                    #![allow(missing_docs, reason = \"the migrations say what everything is\")]\n"
            .to_owned();
    for (table, columns) in tables {
        let key = keys[table.as_str()];
        let name = table.strip_prefix("public.").unwrap_or(&table);
        write!(
            text,
            "\ndiesel::table! {{\n    use diesel::sql_types::*;\n    {name} ({key}) {{\n{columns}    }}\n}}\n"
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

/// Asserts that the file has the lines that the migrations make.
async fn assert_file(catalog: &Catalog, database: &str, file: &str) {
    let mut connection = store::connect(database).await.expect("a connection");
    let lines = catalog.lines(&mut connection).await.expect("the catalogs");
    let path = in_repository(file);
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, lines.join("\n") + "\n").expect("the file");
    }
    let written = std::fs::read_to_string(&path).expect("the file");
    let written: Vec<&str> = written.lines().collect();
    assert_eq!(written, lines, "{file} differs; UPDATE_SCHEMA=1 writes it anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_files_are_what_the_migrations_make() {
    let fixture = Fixture::new().await;
    assert_file(&store::catalog::MAIN, &fixture.settings.postgres.url, "shared/store/src/catalog.txt").await;
    assert_file(&keys::CATALOG, &fixture.settings.keys.url, "shared/keys/src/catalog.txt").await;
}
