//! Rows of contexts and of memories of agents as cells of `shared/sync`.

use std::collections::HashMap;

use ::store::{Connection, Fault, FaultKind};
use chrono::{DateTime, Utc};
use contract::{AccessLevel, ContextType, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use keys::{Encrypted, OpenKeys};
use secrecy::ExposeSecret;
use sync::{Attributes, Cell, Json, Key, KeyState};
use uuid::Uuid;

use super::cells::{KEPT_BYTES, VALUE_BYTES};
use super::table::Table;

/// A row of either table.
#[derive(QueryableByName)]
pub(crate) struct Row {
    #[diesel(sql_type = SqlUuid)]
    pub(crate) id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    agent_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    memory_tier: Option<String>,
    #[diesel(sql_type = Text)]
    context_key: String,
    #[diesel(sql_type = Nullable<Text>)]
    context_value: Option<String>,
    /// How many bytes a value has that is not here since it is too large, with that of the same key which is compared with it.
    #[diesel(sql_type = BigInt)]
    oversize: i64,
    /// Whether more is kept of it than may be read, or of the row that is compared with it.
    #[diesel(sql_type = Bool)]
    keeps_too_much: bool,
    #[diesel(sql_type = Nullable<Text>)]
    context_type: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    access_level: Option<String>,
    #[diesel(sql_type = Integer)]
    priority: i32,
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    is_persistent: bool,
    #[diesel(sql_type = Bool)]
    is_shareable: bool,
    #[diesel(sql_type = Bool)]
    is_sensitive: bool,
    #[diesel(sql_type = BigInt)]
    writes: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    written_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Timestamptz)]
    updated_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Text>)]
    sync_state: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    sync_values: Option<String>,
}

/// A row as a cell.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) id: Uuid,
    pub(crate) version: i64,
    pub(crate) cell: Cell,
}

/// Why a row cannot be read.
#[derive(Clone, Debug)]
pub(crate) enum Sealed {
    /// It is encrypted, and its key is not open.
    Lacks((UserId, u32)),
    /// It is encrypted, and job grants open no keys.
    Encrypted,
    /// It cannot be read, for this reason.
    Unreadable(String),
}

/// The key of a row of either table.
pub(crate) fn key_of(agent: Option<&str>, tier: Option<&str>, name: &str) -> Result<Key, Fault> {
    let name = name.to_owned();
    match (agent, tier) {
        (Some(agent), Some(tier)) => Ok(Key::Agent { agent: agent.to_owned(), tier: label(tier)?, name }),
        _ => Ok(Key::Context(name)),
    }
}

/// The agent and the tier of a memory of an agent.
pub(crate) fn agent_of(key: &Key) -> (Option<&str>, Option<&'static str>) {
    match key {
        Key::Context(_) => (None, None),
        Key::Agent { agent, tier, .. } => (Some(agent), Some(tier.as_str())),
    }
}

/// Ciphertexts by table, row and column.
pub(crate) type Secrets = HashMap<(Table, Uuid, String), Encrypted>;

/// The ciphertexts of rows.
pub(crate) async fn secrets<'r>(
    connection: &mut Connection,
    rows: impl Iterator<Item = (Table, &'r Row)>,
) -> Result<Secrets, Fault> {
    let mut of_table: HashMap<Table, Vec<Uuid>> = HashMap::new();
    for (table, row) in rows.filter(|(_, row)| row.is_sensitive && !row.keeps_too_much) {
        of_table.entry(table).or_default().push(row.id);
    }
    let mut secrets = Secrets::new();
    for (table, ids) in of_table {
        let fields = keys::load_fields(connection, table.name(), &ids).await?;
        secrets.extend(fields.into_iter().map(|field| ((table, field.row, field.column.clone()), field)));
    }
    Ok(secrets)
}

/// Turns rows into cells, and decrypts those that are encrypted.
pub(crate) struct Opener<'a> {
    pub(crate) secrets: &'a Secrets,
    pub(crate) keys: &'a OpenKeys,
    pub(crate) may_decrypt: bool,
}

impl Opener<'_> {
    pub(crate) fn open(&self, table: Table, row: Row) -> Result<Stored, Sealed> {
        if row.oversize > 0 {
            return Err(Sealed::Unreadable(format!("a value of it takes more than {VALUE_BYTES} bytes")));
        }
        if row.keeps_too_much {
            let reason = format!("what is kept of it takes more than {KEPT_BYTES} bytes");
            return Err(Sealed::Unreadable(reason));
        }
        if !row.is_sensitive {
            return row.stored(None, None);
        }
        if !self.may_decrypt {
            return Err(Sealed::Encrypted);
        }
        let plain = |column: &str| match self.secrets.get(&(table, row.id, column.to_owned())) {
            None => Ok(None),
            Some(field) => match self.keys.lacks(field) {
                Some(key) => Err(Sealed::Lacks(key)),
                None => self.keys.decrypt(field).map(Some).map_err(Sealed::Unreadable),
            },
        };
        let (value, values) = (plain("context_value")?, plain("sync_values")?);
        if value.is_none() && row.context_value.is_some() {
            return Err(Sealed::Unreadable("its encrypted value is missing".to_owned()));
        }
        let text =
            |secret: Option<secrecy::SecretString>| secret.map(|secret| secret.expose_secret().to_owned());
        row.stored(text(value), text(values))
    }
}

fn unreadable(what: &str, problem: impl std::fmt::Display) -> Fault {
    Fault { kind: FaultKind::Permanent, reason: format!("{what} of a key cannot be read: {problem}") }
}

impl Row {
    /// The bytes of its value and of what syncs keep of it, without what is encrypted. A value that is too large counts: it was measured.
    pub(crate) fn bytes(&self) -> usize {
        let read: usize = [&self.context_value, &self.sync_state, &self.sync_values]
            .into_iter()
            .flatten()
            .map(String::len)
            .sum();
        read.saturating_add(usize::try_from(self.oversize).unwrap_or(0))
    }

    pub(crate) fn key(&self) -> Result<Key, Fault> {
        key_of(self.agent_id.as_deref(), self.memory_tier.as_deref(), &self.context_key)
    }

    /// The cell. `value` and `values` are what was encrypted. What cannot be read fails its key; an error may quote what it read, so
    /// it is not among the reasons.
    fn stored(self, value: Option<String>, values: Option<String>) -> Result<Stored, Sealed> {
        let broken = |what: &str| Sealed::Unreadable(format!("{what} is not as it was written"));
        let value = value.or(self.context_value).map(|text| Json::parse(&text)).transpose();
        let value = value.map_err(|_| broken("its value"))?;
        let state = values.or(self.sync_values).or(self.sync_state);
        let state: Option<KeyState> =
            state.map(|text| serde_json::from_str(&text)).transpose().map_err(|_| {
                let reason =
                    "what syncs keep of it is not as it was written; remove the key and put it again";
                Sealed::Unreadable(reason.to_owned())
            })?;
        let writes = u64::try_from(self.writes).unwrap_or(0);
        let attributes = Attributes {
            context_type: self
                .context_type
                .as_deref()
                .map(label::<ContextType>)
                .transpose()
                .map_err(|_| broken("its type"))?,
            access_level: match &self.access_level {
                Some(level) => label(level).map_err(|_| broken("its access level"))?,
                None => AccessLevel::Private,
            },
            priority: self.priority,
            expires_at: self.expires_at,
            is_persistent: self.is_persistent,
            is_shareable: self.is_shareable,
            sensitive: self.is_sensitive,
        };
        let written_at = match writes {
            0 => DateTime::UNIX_EPOCH,
            _ => self.written_at.unwrap_or(self.updated_at),
        };
        Ok(Stored {
            id: self.id,
            version: self.version,
            cell: Cell { value, attributes, writes, written_at, state },
        })
    }
}

/// A value of an enumeration of the contract, by the label that JSON and PostgreSQL share.
fn label<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Fault> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|error| unreadable("an attribute", error))
}
