//! Whether the names and the functions that a statement uses are those of PostgreSQL.
//!
//! PostgreSQL calls a built-in function by its id as it was compiled. But before it calls one, it plans, and then the catalogs count: the
//! body of a function whose language is SQL takes the place of its call, and a view may have the name of a catalog. So nothing here is
//! decided by a statement: these read whole columns of tables, without a condition, a function or an operator.
//!
//! It does not help against a superuser who changes PostgreSQL itself: see docs/SECURITY.md.

use diesel::QueryableByName;
use diesel::deserialize::{self, FromSql};
use diesel::pg::{Pg, PgValue};
use diesel::sql_types::{Oid, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::fault::Fault;

/// What PostgreSQL makes when a cluster is created has an id below this one.
pub const FIRST_ADDED: u32 = 16_384;

/// The language of compiled functions.
pub const INTERNAL: u32 = 12;
/// The id of the language SQL.
const SQL: u32 = 14;

/// The schema `pg_catalog`.
pub const PG_CATALOG: u32 = 11;

/// A value of four bytes: the id of an object or of a transaction. One of another type is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u32);

impl FromSql<Oid, Pg> for Id {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        /// `regproc`, `oid`, `xid`, `regclass` and `regtype`.
        const TYPES: [u32; 5] = [24, 26, 28, 2205, 2206];
        if !TYPES.contains(&value.get_oid().get()) {
            return Err("an id is of another type in this database".into());
        }
        Ok(Self(u32::from_be_bytes(value.as_bytes().try_into()?)))
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// A table, or what has its place.
    Relation,
    /// A type.
    Type,
}

/// What PostgreSQL takes this name for, which must be a constant with its schema; none if it does not exist. A constant is read when the
/// statement is parsed, and calls no function that could be replaced. In a transaction, a name that does not exist ends it.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn id_of(
    connection: &mut AsyncPgConnection,
    named: Named,
    name: &'static str,
) -> Result<Option<u32>, Fault> {
    let kind = match named {
        Named::Relation => "regclass",
        Named::Type => "regtype",
    };
    let query = format!("SELECT '{name}'::pg_catalog.{kind} AS id");
    let found: Result<Vec<One>, Fault> = diesel::sql_query(query).load(connection).await.map_err(Fault::from);
    match found {
        Ok(found) => Ok(found.into_iter().next().map(|one| one.id.0)),
        Err(fault) if fault.reason.ends_with("does not exist") => Ok(None),
        Err(fault) => Err(fault),
    }
}

#[derive(QueryableByName)]
struct One {
    #[diesel(sql_type = Oid)]
    id: Id,
}

/// The catalogs that are read, here and elsewhere, and their ids in each version.
const CATALOGS: [(&str, u32); 36] = [
    ("pg_aggregate", 2600),
    ("pg_am", 2601),
    ("pg_amop", 2602),
    ("pg_amproc", 2603),
    ("pg_attrdef", 2604),
    ("pg_attribute", 1249),
    ("pg_auth_members", 1261),
    ("pg_authid", 1260),
    ("pg_cast", 2605),
    ("pg_class", 1259),
    ("pg_collation", 3456),
    ("pg_constraint", 2606),
    ("pg_conversion", 2607),
    ("pg_database", 1262),
    ("pg_db_role_setting", 2964),
    ("pg_default_acl", 826),
    ("pg_depend", 2608),
    ("pg_event_trigger", 3466),
    ("pg_extension", 3079),
    ("pg_foreign_server", 1417),
    ("pg_index", 2610),
    ("pg_inherits", 2611),
    ("pg_init_privs", 3394),
    ("pg_language", 2612),
    ("pg_namespace", 2615),
    ("pg_opclass", 2616),
    ("pg_operator", 2617),
    ("pg_opfamily", 2753),
    ("pg_parameter_acl", 6243),
    ("pg_policy", 3256),
    ("pg_proc", 1255),
    ("pg_rewrite", 2618),
    ("pg_sequence", 2224),
    ("pg_subscription", 6100),
    ("pg_trigger", 2620),
    ("pg_type", 1247),
];

/// A function of this database.
#[derive(Clone, Debug, QueryableByName)]
pub struct Function {
    /// Its id.
    #[diesel(sql_type = Oid)]
    pub oid: Id,
    /// The transaction that changed it last.
    #[diesel(sql_type = Oid)]
    pub xmin: Id,
    /// Its schema.
    #[diesel(sql_type = Oid)]
    pub namespace: Id,
    /// Its language.
    #[diesel(sql_type = Oid)]
    pub language: Id,
    /// The function that tells the planner how it can be replaced; 0 for none.
    #[diesel(sql_type = Oid)]
    pub support: Id,
    /// Its name, without its arguments.
    #[diesel(sql_type = Text)]
    pub name: String,
}

/// The functions of a database, and what is wrong with PostgreSQL's own.
#[derive(Clone, Debug, Default)]
pub struct Builtins {
    /// A line for each thing that is not PostgreSQL's own. If there are any, nothing that this database answers is certain.
    pub faults: Vec<String>,
    /// All functions; none if a catalog is another relation.
    pub functions: Vec<Function>,
}

/// Looks for other relations in the place of catalogs, for functions of PostgreSQL that the planner replaces, and for views of PostgreSQL
/// that were changed. The functions `used` must be compiled, whenever they were changed. The connection must have a fixed search path.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn look(connection: &mut AsyncPgConnection, used: &[u32]) -> Result<Builtins, Fault> {
    const FUNCTIONS: &str =
        "SELECT p.oid, p.xmin, p.pronamespace AS namespace, p.prolang AS language, p.prosupport AS support,
        p.proname AS name FROM pg_catalog.pg_proc p";
    let faults = other_catalogs(connection).await?;
    if !faults.is_empty() {
        return Ok(Builtins { faults, functions: Vec::new() });
    }
    let mark = mark(connection).await?;
    let functions: Vec<Function> = diesel::sql_query(FUNCTIONS).load(connection).await?;
    let mut faults = replaced_functions(&functions, mark, used);
    faults.extend(changed_rules(connection, mark).await?);
    Ok(Builtins { faults, functions })
}

async fn other_catalogs(connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
    let constants: Vec<String> =
        CATALOGS.iter().map(|(name, _)| format!("('pg_catalog.{name}'::pg_catalog.regclass)")).collect();
    let query = format!("SELECT v.id FROM (VALUES {}) AS v (id)", constants.join(", "));
    let found: Vec<One> = diesel::sql_query(query).load(connection).await?;
    // A value that is not there is none of a catalog.
    let mut found = found.into_iter().map(|one| one.id.0);
    Ok(CATALOGS
        .iter()
        .filter(|(_, id)| found.next() != Some(*id))
        .map(|(name, _)| format!("the name pg_catalog.{name} stands for another relation than PostgreSQL's"))
        .collect())
}

/// The first transaction id of rows that were changed since the cluster was created: at the end of that, its template was made. A changed
/// template moves it by little, since the first migrations take it further.
async fn mark(connection: &mut AsyncPgConnection) -> Result<u32, Fault> {
    const MOST: u32 = 1_000;
    #[derive(QueryableByName)]
    struct Database {
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = Oid)]
        xmin: Id,
    }
    const DATABASES: &str = "SELECT d.datname AS name, d.xmin FROM pg_catalog.pg_database d";
    let all: Vec<Database> = diesel::sql_query(DATABASES).load(connection).await?;
    let template = all.into_iter().filter(|one| one.name == "template0").map(|one| one.xmin.0).min();
    Ok(template.unwrap_or(MOST).min(MOST))
}

/// The functions of `pg_catalog` that PostgreSQL itself has in SQL, in each version from 15 on. Who may call one is changed in the same row as
/// its text: a change says nothing.
const IN_SQL: [u32; 50] = [
    879, 880, 1176, 1215, 1216, 1285, 1290, 1296, 1298, 1305, 1306, 1307, 1309, 1310, 1311, 1348, 1384, 1386,
    1426, 1481, 1544, 1708, 1710, 1741, 1810, 1811, 1812, 1848, 1993, 2003, 2004, 2042, 2043, 2044, 2059,
    2074, 2325, 2546, 2547, 2548, 2549, 2550, 2631, 2932, 3050, 3935, 3936, 5023, 6183, 6184,
];

fn replaced_functions(functions: &[Function], mark: u32, used: &[u32]) -> Vec<String> {
    let is_replaced = |one: &&Function| {
        let is_compiled = one.language == Id(INTERNAL);
        let is_own =
            one.language == Id(SQL) && (IN_SQL.contains(&one.oid.0) || one.namespace != Id(PG_CATALOG));
        let is_changed = one.xmin.0 >= mark && (!is_compiled && !is_own || one.support != Id(0));
        one.oid.0 < FIRST_ADDED && (is_changed || !is_compiled && used.contains(&one.oid.0))
    };
    let line = |one: &Function| {
        let Function { oid, name, .. } = one;
        format!("the function {name} of PostgreSQL (oid {}) was replaced", oid.0)
    };
    functions.iter().filter(is_replaced).map(line).collect()
}

/// Views that PostgreSQL's own releases have administrators make again (CVE-2024-4317). Nothing here reads them.
const MADE_AGAIN: [&str; 2] = ["pg_catalog.pg_stats_ext", "pg_catalog.pg_stats_ext_exprs"];

/// Rules of PostgreSQL's own relations. Those of its views are made when the cluster is.
async fn changed_rules(connection: &mut AsyncPgConnection, mark: u32) -> Result<Vec<String>, Fault> {
    #[derive(QueryableByName)]
    struct Rule {
        #[diesel(sql_type = Oid)]
        relation: Id,
        #[diesel(sql_type = Oid)]
        xmin: Id,
        #[diesel(sql_type = Text)]
        name: String,
    }
    const RULES: &str =
        "SELECT w.ev_class AS relation, w.xmin, w.rulename AS name FROM pg_catalog.pg_rewrite w";
    let rules: Vec<Rule> = diesel::sql_query(RULES).load(connection).await?;
    let mut made_again = Vec::with_capacity(MADE_AGAIN.len());
    for name in MADE_AGAIN {
        made_again.extend(id_of(connection, Named::Relation, name).await?);
    }
    let is_changed = |rule: &Rule| {
        rule.relation.0 < FIRST_ADDED && rule.xmin.0 >= mark && !made_again.contains(&rule.relation.0)
    };
    let line = |Rule { relation, name, .. }: Rule| {
        format!("the rule {name} of a relation of PostgreSQL (oid {}) was added or changed", relation.0)
    };
    Ok(rules.into_iter().filter(is_changed).map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(oid: u32, xmin: u32, language: u32, support: u32) -> Function {
        let name = "f".to_owned();
        let namespace = Id(PG_CATALOG);
        Function {
            oid: Id(oid),
            xmin: Id(xmin),
            namespace,
            language: Id(language),
            support: Id(support),
            name,
        }
    }

    #[test]
    fn a_function_that_the_planner_replaces_is_named() {
        for (one, used, expected) in [
            (function(3495, 1, INTERNAL, 0), true, false),
            // Who may call a function is changed in the same row.
            (function(3495, 900, INTERNAL, 0), true, false),
            (function(3495, 900, 14, 0), false, true),
            (function(3495, 900, INTERNAL, 1219), false, true),
            (function(2803, 1, INTERNAL, 1219), true, false),
            // PostgreSQL itself has some. A transaction id may come round again.
            (function(12_422, 552, 14, 0), false, false),
            (function(879, 900, 14, 0), false, false),
            (function(879, 900, 14, 0), true, true),
            (function(3495, 552, 14, 0), true, true),
            (function(FIRST_ADDED, 900, 14, 0), true, false),
        ] {
            let used = if used { vec![one.oid.0] } else { Vec::new() };
            let found = replaced_functions(std::slice::from_ref(&one), 748, &used);
            assert_eq!(!found.is_empty(), expected, "{one:?}");
        }
    }
}
