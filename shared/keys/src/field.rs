//! Encrypted fields in the main database.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Array, Binary, Integer, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use secrecy::{ExposeSecret, SecretString};
use store::unnest::{UnnestRow, with_rows};
use store::{Connection, Fault, FaultKind};
use trust::{AssociatedData, CipherError, CipherKey};
use uuid::Uuid;

use crate::data_key::DataKeys;

/// A field to encrypt.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// The user.
    pub user: UserId,
    /// The table.
    pub table: &'a str,
    /// The column.
    pub column: &'a str,
    /// The primary key of its row.
    pub row: Uuid,
    /// The id of the request that writes it.
    pub request_id: Uuid,
    /// When JetStream stored the request.
    pub stored_at: DateTime<Utc>,
}

/// A row of `encrypted_fields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encrypted {
    /// The user.
    pub user: UserId,
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// The primary key of its row.
    pub row: Uuid,
    /// The ciphertext, as [`trust::CipherKey::seal`] returns it.
    pub ciphertext: Vec<u8>,
}

impl Encrypted {
    /// The version of the data key that decrypts it; none if it is not a ciphertext.
    pub fn key_version(&self) -> Option<u32> {
        trust::key_version(&self.ciphertext).ok()
    }
}

fn encrypt_field(field: Field<'_>, plain: &SecretString, key: &CipherKey) -> Result<Vec<u8>, CipherError> {
    let Field { user, table, column, row, .. } = field;
    key.seal(plain.expose_secret().as_bytes(), AssociatedData::Field { table, column, row, user })
}

/// Encrypts fields and writes them in the transaction of their rows. No field may occur twice.
///
/// # Errors
/// A [`Fault`] of the database; a permanent one if the data key of a user is missing.
pub async fn encrypt_fields(
    connection: &mut Connection,
    secrets: &[(Field<'_>, &SecretString)],
    keys: &DataKeys,
) -> Result<(), Fault> {
    let cannot = |problem: String| Fault {
        kind: FaultKind::Permanent,
        reason: format!("a field cannot be encrypted: {problem}"),
    };
    let mut fields = Vec::with_capacity(secrets.len());
    for (field, value) in secrets {
        // A message is rejected earlier if the data key of its user cannot be unwrapped.
        let key = keys.get(&field.user).and_then(|key| key.as_ref().ok());
        let key = key.ok_or_else(|| cannot("the data key of its user is missing".to_owned()))?;
        fields.push((*field, encrypt_field(*field, value, key).map_err(|error| cannot(error.to_string()))?));
    }
    write(connection, &fields).await
}

store::unnest_row! {
    /// A row of [`WRITE`].
    struct NewRow<'a> {
        id: Uuid,
        user_id: i32,
        table_name: &'a str,
        column_name: &'a str,
        row_id: Uuid,
        ciphertext: &'a [u8],
        request_id: Uuid,
        stored_at: DateTime<Utc>,
    }
}

/// Sorted, so that two workers with the same fields lock them in the same order.
static WRITE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NewRow::arrays(1), NewRow::names());
    format!(
        "INSERT INTO encrypted_fields AS t (id, user_id, table_name, column_name, row_id, ciphertext, request_id, created_at,
            updated_at)
        SELECT id, user_id, table_name, column_name, row_id, ciphertext, request_id, stored_at, stored_at
        FROM unnest({arrays}) AS i ({names})
        ORDER BY user_id, table_name, column_name, row_id
        ON CONFLICT (user_id, table_name, column_name, row_id) DO UPDATE SET ciphertext = excluded.ciphertext,
            request_id = excluded.request_id, updated_at = excluded.updated_at"
    )
});

/// Writes ciphertexts in the transaction of their rows, and replaces earlier ones. No field may occur twice.
///
/// # Errors
/// A [`Fault`] of the database.
async fn write(connection: &mut Connection, fields: &[(Field<'_>, Vec<u8>)]) -> Result<(), Fault> {
    if fields.is_empty() {
        return Ok(());
    }
    let rows = fields.iter().map(|(field, ciphertext)| NewRow {
        id: Uuid::now_v7(),
        user_id: field.user.get(),
        table_name: field.table,
        column_name: field.column,
        row_id: field.row,
        ciphertext,
        request_id: field.request_id,
        stored_at: field.stored_at,
    });
    with_rows(&WRITE, rows.collect()).execute(connection).await?;
    Ok(())
}

#[derive(QueryableByName)]
pub(crate) struct Row {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Text)]
    column_name: String,
    #[diesel(sql_type = SqlUuid)]
    row_id: Uuid,
    #[diesel(sql_type = Binary)]
    ciphertext: Vec<u8>,
}

impl Row {
    /// None for an invalid user id, which the foreign key rules out.
    pub(crate) fn decode(self) -> Option<Encrypted> {
        let Self { user_id, table_name: table, column_name: column, row_id: row, ciphertext } = self;
        Some(Encrypted { user: UserId::new(user_id).ok()?, table, column, row, ciphertext })
    }
}

/// The encrypted fields of rows of a table that the security context of the transaction allows to read. Decrypt them
/// with [`Keys::decrypt`](crate::Keys::decrypt), preferably after the transaction.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn load_fields(
    connection: &mut Connection,
    table: &str,
    rows: &[Uuid],
) -> Result<Vec<Encrypted>, Fault> {
    const LOAD: &str = "
        SELECT user_id, table_name::text, column_name::text, row_id, ciphertext FROM encrypted_fields
        WHERE user_id = ANY ((SELECT sec.current_user_ids())::integer[]) AND table_name = $1 AND row_id = ANY ($2)";
    let query = diesel::sql_query(LOAD).bind::<Text, _>(table).bind::<Array<SqlUuid>, _>(rows.to_vec());
    let found: Vec<Row> = store::prepared(query).load(connection).await?;
    Ok(found.into_iter().filter_map(Row::decode).collect())
}
