//! Whether the tables of the trail are such that reading them shows what is stored.
//!
//! A view or a foreign table in the place of a table shows what somebody likes, and so does a column of a type whose send
//! function was replaced. The catalogs say whether there is such a thing. They are read as they are ([`crate::catalogs`]), after it is
//! known that they are PostgreSQL's own and that no function which is used here is replaced when a statement is planned
//! ([`store::builtin`]); all comparisons are made here.
//!
//! A change that is made and taken back while the trail is read leaves another transaction id in the catalogs: see [`Form::changed_since`].
//!
//! It does not help against a superuser who changes what a statement in this server answers: see docs/SECURITY.md.

use std::collections::BTreeMap;

use diesel_async::AsyncPgConnection;
use store::Fault;
use store::builtin::{self, Builtins, FIRST_ADDED, Id, Named, PG_CATALOG};

use crate::catalogs::{Catalogs, Class};
use crate::erasure;
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

/// The columns of the statements of erasures that are read, and the oids of their types.
const ERASURE_COLUMNS: [(&str, u32); 7] = [
    ("number", 20),
    ("erasure", 2950),
    ("leaves", 17),
    ("root", 17),
    ("stated_at", 1184),
    ("key_name", 1043),
    ("signature", 17),
];

/// The types of PostgreSQL that are read or bound: oid, send function and receive function. PostgreSQL calls these functions for values as
/// they were compiled, whatever the catalog says of them.
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

/// The operators of the order of rows, their names and their functions.
const OPERATORS: [(u32, &str, u32); 11] = [
    (96, "=", 65),
    (410, "=", 467),
    (412, "<", 469),
    (413, ">", 470),
    (414, "<=", 471),
    (415, ">=", 472),
    (2972, "=", 2956),
    (2974, "<", 2954),
    (2975, ">", 2958),
    (2976, "<=", 2955),
    (2977, ">=", 2957),
];

/// The same in indexes and sorts: operator families of `bigint` and `uuid`, their type and the function that compares.
const ORDERS: [(u32, u32, u32); 2] = [(1976, 20, 842), (2968, 2950, 2960)];

/// Functions that statements call by their names.
const CALLED: [(u32, &str); 5] = [
    (720, "octet_length"),
    (2803, "count"),
    (3089, "pg_advisory_xact_lock"),
    (5061, "pg_current_snapshot"),
    (5062, "pg_snapshot_xmin"),
];

/// `count(*)`, the function that counts a row and the one that adds up.
const COUNT: (u32, u32, u32) = (2803, 1219, 463);

/// The maximum number of things that are named.
const MAX_FAULTS: usize = 100;

/// All functions that reading the trail calls.
fn used() -> Vec<u32> {
    let sent = TYPES.iter().flat_map(|(_, _, send, _, receive)| [*send, *receive]);
    let compared = OPERATORS.iter().map(|one| one.2).chain(ORDERS.iter().map(|one| one.2));
    let called = CALLED.iter().map(|one| one.0).chain([COUNT.1, COUNT.2, ENUM_SEND]);
    sent.chain(compared).chain(called).collect()
}

/// What a look at the catalogs shows.
#[derive(Debug, Default)]
pub(crate) struct Form {
    /// What keeps this database from showing what it stores, at most [`MAX_FAULTS`] things; none if all is as the migrations made it.
    pub(crate) faults: Vec<String>,
    /// What was looked at, and the transaction that changed its row in the catalogs last.
    stamps: BTreeMap<String, u32>,
}

impl Form {
    /// What was changed since an earlier look, even if it is as it was then: what is made while the trail is read and taken back leaves the
    /// id of another transaction. Partitions that were added or dropped do not count.
    pub(crate) fn changed_since(&self, earlier: &Self) -> Vec<String> {
        let is_changed = |one: &(&String, &u32)| earlier.stamps.get(one.0).is_some_and(|xmin| xmin != one.1);
        let line = |one: (&String, &u32)| {
            format!("{} was changed while the trail was verified: verify it again", one.0)
        };
        self.stamps.iter().filter(is_changed).map(line).take(MAX_FAULTS).collect()
    }

    fn stamp(&mut self, what: String, xmin: Id) {
        self.stamps.insert(what, xmin.0);
    }

    fn fault(&mut self, what: String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(what);
        }
    }

    fn judge_tables(&mut self, catalogs: &Catalogs, tables: &[Table]) {
        for table in tables {
            let Some(root) = table.id.filter(|id| catalogs.classes.contains_key(id)) else {
                self.fault(format!("{} is missing", table.name));
                continue;
            };
            for (id, class) in catalogs.with_parts(root) {
                let shown = catalogs.class_name(class);
                if let Some(space) = catalogs.namespaces.get(&class.namespace.0) {
                    self.stamp(format!("the schema {}", space.name), space.xmin);
                }
                self.stamp(shown.clone(), class.xmin);
                self.judge_relation(catalogs, table, (id, class), id == root);
                for (name, type_id) in &table.columns {
                    self.judge_column(catalogs, (id, &shown), name, *type_id);
                }
            }
        }
    }

    fn judge_relation(&mut self, catalogs: &Catalogs, table: &Table, one: (u32, &Class), is_root: bool) {
        let (id, class) = one;
        let shown = catalogs.class_name(class);
        match class.kind {
            b'r' => {}
            b'p' if table.name == SEALS => self.fault(format!("{shown} is partitioned")),
            b'p' => {}
            b'v' => self.fault(format!("{shown} is a view and not a table")),
            b'm' => self.fault(format!("{shown} is a materialized view and not a table")),
            b'f' => self.fault(format!("{shown} is a foreign table and not a table")),
            kind => {
                self.fault(format!("{shown} is of the kind {:?} and not a table", char::from(kind)));
            }
        }
        if !is_root && !class.is_partition {
            self.fault(format!("{shown} inherits from {} and is not a partition of it", table.name));
        }
        if matches!(class.kind, b'r' | b'p') {
            for rule in catalogs.rules.iter().filter(|rule| rule.relation.0 == id) {
                self.fault(format!("{shown} has the rule {}", rule.name));
            }
        }
        if table.name == SEALS {
            for trigger in catalogs.triggers.iter().filter(|one| one.relation.0 == id && !one.is_internal) {
                self.fault(format!("{shown} has the trigger {}", trigger.name));
            }
        }
    }

    /// `type_id` is none if the type does not exist.
    fn judge_column(&mut self, catalogs: &Catalogs, of: (u32, &str), name: &str, type_id: Option<u32>) {
        let (relation, shown) = of;
        let Some(column) = catalogs.attributes.get(&(relation, name.to_owned())) else {
            self.fault(format!("the column {name} of {shown} is missing"));
            return;
        };
        self.stamp(format!("the column {name} of {shown}"), column.xmin);
        let is = catalogs.type_name(column.type_id.0);
        if Some(column.type_id.0) != type_id {
            let expected = type_id.map_or_else(|| "?".to_owned(), |id| catalogs.type_name(id));
            self.fault(format!("the column {name} of {shown} is of the type {is} and not {expected}"));
        } else if column.generated != 0 {
            self.fault(format!("the column {name} of {shown} is computed"));
        }
    }

    fn judge_types(&mut self, catalogs: &Catalogs, types: &Types) {
        for (id, name, send, source, receive) in TYPES {
            let found = catalogs.types.get(&id);
            if let Some(found) = found {
                self.stamp(format!("the type {name}"), found.xmin);
            }
            let (sent, received) = found.map_or((0, 0), |one| (one.send.0, one.receive.0));
            if sent != send {
                let by = catalogs.function_name(sent);
                self.fault(format!(
                    "values of the type {name} are sent by {by} and not by {source} of PostgreSQL"
                ));
            }
            if received != receive {
                let by = catalogs.function_name(received);
                self.fault(format!("values of the type {name} are received by {by}"));
            }
        }
        for one in EnumType::ALL {
            let name = one.name();
            let found = types.of_enum(one).and_then(|id| catalogs.types.get(&id));
            if let Some(found) = found {
                self.stamp(format!("the type {name}"), found.xmin);
            }
            if !found.is_some_and(|found| found.kind == b'e' && found.send.0 == ENUM_SEND) {
                self.fault(format!(
                    "the enumeration {name} is missing, or its values are sent by a function that is not of PostgreSQL"
                ));
            }
        }
    }

    fn judge_comparisons(&mut self, catalogs: &Catalogs) {
        for (id, name, function) in OPERATORS {
            let found = catalogs.operators.get(&id);
            if let Some(found) = found {
                self.stamp(format!("the operator {name} (oid {id})"), found.xmin);
            }
            let calls = found.map_or(0, |one| one.function.0);
            if calls != function {
                let calls = catalogs.function_name(calls);
                self.fault(format!("the operator {name} (oid {id}) calls {calls}"));
            } else if !found.is_some_and(|one| one.name == name && one.namespace.0 == PG_CATALOG) {
                self.fault(format!("the operator {name} (oid {id}) has another name"));
            }
        }
        for (family, type_id, function) in ORDERS {
            let order = catalogs.orders.iter().find(|one| {
                (one.family.0, one.left.0, one.right.0, one.number) == (family, type_id, type_id, 1)
            });
            let name = catalogs.type_name(type_id);
            if let Some(order) = order {
                self.stamp(format!("the order of {name}"), order.xmin);
            }
            if order.map(|one| one.function.0) != Some(function) {
                self.fault(format!("indexes of the type {name} compare with another function"));
            }
        }
    }

    fn judge_functions(&mut self, catalogs: &Catalogs) {
        for id in used() {
            if let Some(one) = catalogs.functions.get(&id) {
                self.stamp(format!("the function {} of PostgreSQL (oid {id})", one.name), one.xmin);
            }
        }
        for (id, name) in CALLED {
            let own = catalogs.functions.get(&id);
            let is_own = own.is_some_and(|one| one.name == name && one.namespace.0 == PG_CATALOG);
            let other = catalogs
                .functions
                .values()
                .find(|one| one.name == name && one.namespace.0 == PG_CATALOG && one.oid.0 >= FIRST_ADDED);
            if !is_own || other.is_some() {
                self.fault(format!("another function has the name pg_catalog.{name}"));
            }
        }
        let (id, step, combine) = COUNT;
        let count = catalogs.aggregates.get(&id);
        if let Some(count) = count {
            self.stamp("the aggregate count".to_owned(), count.xmin);
        }
        if count.map(|one| (one.step.0, one.combine.0, one.last.0)) != Some((step, combine, 0)) {
            self.fault("the aggregate count calls other functions".to_owned());
        }
    }
}

/// A table that is read.
struct Table {
    name: &'static str,
    id: Option<u32>,
    /// Its columns and their types.
    columns: Vec<(&'static str, Option<u32>)>,
}

async fn tables(connection: &mut AsyncPgConnection, types: &Types) -> Result<Vec<Table>, Fault> {
    let mut all = Vec::new();
    for source in Source::ALL {
        let reading = source.reading();
        // The key is a column of another table.
        let own = reading.columns.iter().filter(|(_, column)| *column != Column::KeyOfUser);
        let columns = own.map(|(name, column)| (*name, types.oid(*column)));
        let id = builtin::id_of(connection, Named::Relation, reading.table).await?;
        all.push(Table { name: reading.table, id, columns: columns.collect() });
    }
    let known =
        |columns: &[(&'static str, u32)]| columns.iter().map(|(name, id)| (*name, Some(*id))).collect();
    let id = builtin::id_of(connection, Named::Relation, SEALS).await?;
    all.push(Table { name: SEALS, id, columns: known(&SEAL_COLUMNS) });
    // The trail may be of a version without it.
    if let Some(id) = builtin::id_of(connection, Named::Relation, erasure::TABLE).await? {
        all.push(Table { name: erasure::TABLE, id: Some(id), columns: known(&ERASURE_COLUMNS) });
    }
    Ok(all)
}

/// Looks at the catalogs. The connection must have a fixed search path and be in no transaction.
///
/// # Errors
/// A [`Fault`] of the database.
pub(crate) async fn look(connection: &mut AsyncPgConnection) -> Result<Form, Fault> {
    let builtins = builtin::look(connection, &used()).await?;
    if !builtins.faults.is_empty() {
        // What the catalogs say is then anything.
        let mut faults = builtins.faults;
        faults.truncate(MAX_FAULTS);
        return Ok(Form { faults, ..Form::default() });
    }
    judge(connection, builtins).await
}

async fn judge(connection: &mut AsyncPgConnection, builtins: Builtins) -> Result<Form, Fault> {
    let types = types(connection).await?;
    let tables = tables(connection, &types).await?;
    let catalogs = Catalogs::read(connection, builtins).await?;
    let mut form = Form::default();
    form.judge_tables(&catalogs, &tables);
    form.judge_types(&catalogs, &types);
    form.judge_comparisons(&catalogs);
    form.judge_functions(&catalogs);
    Ok(form)
}

/// What keeps this database from showing what it stores. As [`look`].
///
/// # Errors
/// A [`Fault`] of the database.
pub(crate) async fn faults(connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
    Ok(look(connection).await?.faults)
}

/// The types of the columns that are read. One that does not exist ends a transaction.
///
/// # Errors
/// A [`Fault`] of the database.
pub(crate) async fn types(connection: &mut AsyncPgConnection) -> Result<Types, Fault> {
    let mut enums = Vec::new();
    for name in EnumType::ALL {
        let id = builtin::id_of(connection, Named::Type, name.name()).await?;
        enums.extend(id.map(|id| (name, id)));
    }
    Ok(Types::new(enums))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_and_taken_back_is_named() {
        let form = |stamps: &[(&str, u32)]| Form {
            stamps: stamps.iter().map(|(what, xmin)| ((*what).to_owned(), *xmin)).collect(),
            ..Form::default()
        };
        let earlier = form(&[("audit.seals", 7), ("audit.audit_log", 7), ("audit.audit_log_2026_01", 7)]);
        // A month was dropped and another one added.
        let later = form(&[("audit.seals", 7), ("audit.audit_log", 9), ("audit.audit_log_2026_02", 9)]);
        let changed = later.changed_since(&earlier);
        assert_eq!(changed.len(), 1, "{changed:?}");
        assert!(changed.iter().all(|line| line.starts_with("audit.audit_log was changed while")));
        assert_eq!(earlier.changed_since(&earlier), Vec::<String>::new());
    }
}
