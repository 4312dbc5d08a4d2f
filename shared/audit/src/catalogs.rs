//! The catalogs, as they are read: whole columns of tables, without a condition, a function or an operator, so that none of these decides
//! what they show. What is compared is compared here ([`crate::form`]).

use std::collections::HashMap;

use diesel::QueryableByName;
use diesel::sql_types::{Bool, CChar, Oid, SmallInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use store::Fault;
use store::builtin::{Builtins, Function, Id, PG_CATALOG};

/// A schema.
#[derive(Debug, QueryableByName)]
pub(crate) struct Namespace {
    #[diesel(sql_type = Oid)]
    oid: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) xmin: Id,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
}

/// A table, or what may stand in its place.
#[derive(Debug, QueryableByName)]
pub(crate) struct Class {
    #[diesel(sql_type = Oid)]
    oid: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) xmin: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) namespace: Id,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = CChar)]
    pub(crate) kind: u8,
    #[diesel(sql_type = Bool)]
    pub(crate) is_partition: bool,
}

/// What inherits from what.
#[derive(Debug, QueryableByName)]
pub(crate) struct Inherits {
    #[diesel(sql_type = Oid)]
    pub(crate) child: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) parent: Id,
}

/// A rule, or a trigger.
#[derive(Debug, QueryableByName)]
pub(crate) struct Hook {
    #[diesel(sql_type = Oid)]
    pub(crate) relation: Id,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    /// Whether PostgreSQL made the trigger itself.
    #[diesel(sql_type = Bool)]
    pub(crate) is_internal: bool,
}

/// A column.
#[derive(Debug, QueryableByName)]
pub(crate) struct Attribute {
    #[diesel(sql_type = Oid)]
    pub(crate) relation: Id,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Oid)]
    pub(crate) type_id: Id,
    #[diesel(sql_type = SmallInt)]
    pub(crate) number: i16,
    /// 0 if it is not computed.
    #[diesel(sql_type = CChar)]
    pub(crate) generated: u8,
    #[diesel(sql_type = Bool)]
    pub(crate) is_dropped: bool,
    #[diesel(sql_type = Oid)]
    pub(crate) xmin: Id,
}

/// A type.
#[derive(Debug, QueryableByName)]
pub(crate) struct Type {
    #[diesel(sql_type = Oid)]
    oid: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) xmin: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) namespace: Id,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = CChar)]
    pub(crate) kind: u8,
    #[diesel(sql_type = Oid)]
    pub(crate) send: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) receive: Id,
}

/// An operator.
#[derive(Debug, QueryableByName)]
pub(crate) struct Operator {
    #[diesel(sql_type = Oid)]
    oid: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) xmin: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) namespace: Id,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Oid)]
    pub(crate) function: Id,
}

/// A function of an operator family.
#[derive(Debug, QueryableByName)]
pub(crate) struct Order {
    #[diesel(sql_type = Oid)]
    pub(crate) family: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) left: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) right: Id,
    #[diesel(sql_type = SmallInt)]
    pub(crate) number: i16,
    #[diesel(sql_type = Oid)]
    pub(crate) function: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) xmin: Id,
}

/// An aggregate.
#[derive(Debug, QueryableByName)]
pub(crate) struct Aggregate {
    #[diesel(sql_type = Oid)]
    oid: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) xmin: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) step: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) last: Id,
    #[diesel(sql_type = Oid)]
    pub(crate) combine: Id,
}

/// What the catalogs say.
#[derive(Debug, Default)]
pub(crate) struct Catalogs {
    pub(crate) namespaces: HashMap<u32, Namespace>,
    pub(crate) classes: HashMap<u32, Class>,
    pub(crate) inherits: Vec<Inherits>,
    pub(crate) rules: Vec<Hook>,
    pub(crate) triggers: Vec<Hook>,
    /// Of tables by the ids of these and the names of columns, without those of the system and those that were dropped.
    pub(crate) attributes: HashMap<(u32, String), Attribute>,
    pub(crate) types: HashMap<u32, Type>,
    pub(crate) operators: HashMap<u32, Operator>,
    pub(crate) orders: Vec<Order>,
    pub(crate) aggregates: HashMap<u32, Aggregate>,
    pub(crate) functions: HashMap<u32, Function>,
}

const NAMESPACES: &str = "SELECT n.oid, n.xmin, n.nspname AS name FROM pg_catalog.pg_namespace n";
const CLASSES: &str =
    "SELECT c.oid, c.xmin, c.relnamespace AS namespace, c.relname AS name, c.relkind AS kind,
    c.relispartition AS is_partition FROM pg_catalog.pg_class c";
const INHERITS: &str = "SELECT i.inhrelid AS child, i.inhparent AS parent FROM pg_catalog.pg_inherits i";
const RULES: &str =
    "SELECT w.ev_class AS relation, w.rulename AS name, false AS is_internal FROM pg_catalog.pg_rewrite w";
const TRIGGERS: &str = "SELECT t.tgrelid AS relation, t.tgname AS name, t.tgisinternal AS is_internal FROM pg_catalog.pg_trigger t";
const ATTRIBUTES: &str =
    "SELECT a.attrelid AS relation, a.attname AS name, a.atttypid AS type_id, a.attnum AS number,
    a.attgenerated AS generated, a.attisdropped AS is_dropped, a.xmin FROM pg_catalog.pg_attribute a";
const TYPES: &str = "SELECT t.oid, t.xmin, t.typnamespace AS namespace, t.typname AS name, t.typtype AS kind, t.typsend AS send,
    t.typreceive AS receive FROM pg_catalog.pg_type t";
const OPERATORS: &str =
    "SELECT o.oid, o.xmin, o.oprnamespace AS namespace, o.oprname AS name, o.oprcode AS function
    FROM pg_catalog.pg_operator o";
const ORDERS: &str = "SELECT a.amprocfamily AS family, a.amproclefttype AS left, a.amprocrighttype AS right, a.amprocnum AS number,
    a.amproc AS function, a.xmin FROM pg_catalog.pg_amproc a";
const AGGREGATES: &str =
    "SELECT a.aggfnoid AS oid, a.xmin, a.aggtransfn AS step, a.aggfinalfn AS last, a.aggcombinefn AS combine
    FROM pg_catalog.pg_aggregate a";

impl Catalogs {
    /// Reads them, in as many statements as there are catalogs.
    ///
    /// # Errors
    /// A [`Fault`] of the database.
    pub(crate) async fn read(connection: &mut AsyncPgConnection, builtins: Builtins) -> Result<Self, Fault> {
        let namespaces: Vec<Namespace> = diesel::sql_query(NAMESPACES).load(connection).await?;
        let classes: Vec<Class> = diesel::sql_query(CLASSES).load(connection).await?;
        let attributes: Vec<Attribute> = diesel::sql_query(ATTRIBUTES).load(connection).await?;
        let types: Vec<Type> = diesel::sql_query(TYPES).load(connection).await?;
        let operators: Vec<Operator> = diesel::sql_query(OPERATORS).load(connection).await?;
        let aggregates: Vec<Aggregate> = diesel::sql_query(AGGREGATES).load(connection).await?;
        let attributes = attributes.into_iter().filter(|one| one.number > 0 && !one.is_dropped);
        Ok(Self {
            namespaces: namespaces.into_iter().map(|one| (one.oid.0, one)).collect(),
            classes: classes.into_iter().map(|one| (one.oid.0, one)).collect(),
            inherits: diesel::sql_query(INHERITS).load(connection).await?,
            rules: diesel::sql_query(RULES).load(connection).await?,
            triggers: diesel::sql_query(TRIGGERS).load(connection).await?,
            attributes: attributes.map(|one| ((one.relation.0, one.name.clone()), one)).collect(),
            types: types.into_iter().map(|one| (one.oid.0, one)).collect(),
            operators: operators.into_iter().map(|one| (one.oid.0, one)).collect(),
            orders: diesel::sql_query(ORDERS).load(connection).await?,
            aggregates: aggregates.into_iter().map(|one| (one.oid.0, one)).collect(),
            functions: builtins.functions.into_iter().map(|one| (one.oid.0, one)).collect(),
        })
    }

    /// The name of an object in a schema, with the schema unless that is `pg_catalog`.
    fn shown(&self, namespace: Id, name: &str) -> String {
        match self.namespaces.get(&namespace.0) {
            Some(_) if namespace.0 == PG_CATALOG => name.to_owned(),
            Some(space) => format!("{}.{name}", space.name),
            None => format!("?.{name}"),
        }
    }

    pub(crate) fn function_name(&self, id: u32) -> String {
        let function = self.functions.get(&id);
        function.map_or_else(|| "nothing".to_owned(), |one| self.shown(one.namespace, &one.name))
    }

    pub(crate) fn type_name(&self, id: u32) -> String {
        let found = self.types.get(&id);
        found.map_or_else(|| "?".to_owned(), |one| self.shown(one.namespace, &one.name))
    }

    pub(crate) fn class_name(&self, class: &Class) -> String {
        self.shown(class.namespace, &class.name)
    }

    /// A relation and all that inherits from it, with their ids. The first one is the relation itself, if it is there.
    pub(crate) fn with_parts(&self, root: u32) -> Vec<(u32, &Class)> {
        let mut ids = vec![root];
        let mut next = 0;
        while let Some(parent) = ids.get(next).copied() {
            let children = self.inherits.iter().filter(|one| one.parent.0 == parent).map(|one| one.child.0);
            let new: Vec<u32> = children.filter(|child| !ids.contains(child)).collect();
            ids.extend(new);
            next += 1;
        }
        ids.into_iter().filter_map(|id| Some((id, self.classes.get(&id)?))).collect()
    }
}
