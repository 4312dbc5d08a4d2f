//! Rows that are passed to a statement as one array per column, which `unnest` turns into a table (docs/adr/0030).

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::sql_types;
use uuid::Uuid;

/// A statement that rows can be bound to.
pub type Statement<'f> = BoxedSqlQuery<'f, Pg, SqlQuery>;

/// A Rust type that a column of such rows can have.
pub trait ColumnType {
    /// The name of the type in PostgreSQL.
    const NAME: &'static str;
    /// The SQL type in Diesel.
    type SqlType;
}

macro_rules! column_types {
    ($($rust:ty => $name:literal $sql:ident),+ $(,)?) => {
        $(impl ColumnType for $rust {
            const NAME: &'static str = $name;
            type SqlType = sql_types::$sql;
        })+
    };
}

column_types! {
    bool => "boolean" Bool,
    i32 => "integer" Integer,
    i64 => "bigint" BigInt,
    f64 => "float8" Double,
    &str => "text" Text,
    String => "text" Text,
    &[u8] => "bytea" Binary,
    Vec<u8> => "bytea" Binary,
    Uuid => "uuid" Uuid,
    DateTime<Utc> => "timestamptz" Timestamptz,
}

impl<T: ColumnType> ColumnType for Option<T> {
    const NAME: &'static str = T::NAME;
    type SqlType = sql_types::Nullable<T::SqlType>;
}

/// A row of such a table. [`unnest_row!`](crate::unnest_row) implements it.
pub trait UnnestRow: Sized {
    /// The names and PostgreSQL types of the columns, in order.
    const COLUMNS: &'static [(&'static str, &'static str)];

    /// Binds one array per column, in order, after the parameters that are already bound.
    fn bind<'f>(statement: Statement<'f>, rows: Vec<Self>) -> Statement<'f>
    where
        Self: 'f;

    /// The arguments of `unnest`, such as `$1::uuid[], $2::integer[]`, numbered from `first`.
    fn arrays(first: usize) -> String {
        let arrays =
            Self::COLUMNS.iter().zip(first..).map(|((_, kind), number)| format!("${number}::{kind}[]"));
        arrays.collect::<Vec<_>>().join(", ")
    }

    /// The names of the columns: `id, user_id`.
    fn names() -> String {
        Self::COLUMNS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

/// A statement of this SQL text, which must be constant, with these rows as its only parameters. It is prepared once
/// per connection.
pub fn with_rows<'f, R: UnnestRow + 'f>(
    sql: &str,
    rows: Vec<R>,
) -> crate::statement::Prepared<Statement<'f>> {
    crate::prepared(R::bind(diesel::sql_query(sql).into_boxed(), rows))
}

/// Defines a struct whose fields are the columns of a table that `unnest` creates, and derives the arrays and their
/// order from it.
///
/// ```
/// use std::sync::LazyLock;
/// use store::unnest::UnnestRow;
///
/// store::unnest_row! {
///     struct Row<'a> {
///         user_id: i32,
///         note: Option<&'a str>,
///     }
/// }
///
/// static WRITE: LazyLock<String> = LazyLock::new(|| {
///     let (arrays, names) = (Row::arrays(1), Row::names());
///     format!("INSERT INTO notes ({names}) SELECT {names} FROM unnest({arrays}) AS i ({names})")
/// });
///
/// assert_eq!(
///     *WRITE,
///     "INSERT INTO notes (user_id, note) SELECT user_id, note \
///      FROM unnest($1::integer[], $2::text[]) AS i (user_id, note)"
/// );
/// let rows = vec![Row { user_id: 1, note: Some("first") }, Row { user_id: 2, note: None }];
/// let _statement = store::unnest::with_rows(&WRITE, rows);
/// ```
#[macro_export]
macro_rules! unnest_row {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident $(<$life:lifetime>)? {
            $($(#[$field_meta:meta])* $field:ident: $kind:ty),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        $vis struct $name $(<$life>)? {
            $($(#[$field_meta])* $field: $kind),+
        }

        impl $(<$life>)? $crate::unnest::UnnestRow for $name $(<$life>)? {
            const COLUMNS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), <$kind as $crate::unnest::ColumnType>::NAME)),+];

            fn bind<'f>(
                statement: $crate::unnest::Statement<'f>,
                rows: Vec<Self>,
            ) -> $crate::unnest::Statement<'f>
            where
                Self: 'f,
            {
                $(let mut $field = Vec::with_capacity(rows.len());)+
                for row in rows {
                    $($field.push(row.$field);)+
                }
                statement$(.bind::<$crate::unnest::ArrayOf<$kind>, _>($field))+
            }
        }
    };
}

/// The SQL type of an array of values of a Rust type.
pub type ArrayOf<T> = sql_types::Array<<T as ColumnType>::SqlType>;

#[cfg(test)]
mod tests {
    use diesel::debug_query;

    use super::*;

    unnest_row! {
        struct Row<'a> {
            id: Uuid,
            user_id: i32,
            speaker: Option<&'a str>,
            words: String,
            at: DateTime<Utc>,
        }
    }

    #[test]
    fn arrays_and_names_are_derived_from_the_struct() {
        assert_eq!(Row::names(), "id, user_id, speaker, words, at");
        assert_eq!(Row::arrays(2), "$2::uuid[], $3::integer[], $4::text[], $5::text[], $6::timestamptz[]");
    }

    #[test]
    fn columns_are_bound_in_the_order_of_the_fields() {
        let rows = [("a", None), ("b", Some("c"))].map(|(words, speaker)| Row {
            id: Uuid::nil(),
            user_id: 7,
            speaker,
            words: words.to_owned(),
            at: DateTime::UNIX_EPOCH,
        });
        let statement = Row::bind(diesel::sql_query("SELECT").into_boxed(), rows.into());
        let shown = debug_query::<Pg, _>(&statement).to_string();
        let columns = [
            "[00000000-0000-0000-0000-000000000000, 00000000-0000-0000-0000-000000000000]",
            "[7, 7]",
            "[None, Some(\"c\")]",
            "[\"a\", \"b\"]",
            "[1970-01-01T00:00:00Z, 1970-01-01T00:00:00Z]",
        ];
        assert_eq!(shown, format!("SELECT -- binds: [{}]", columns.join(", ")));
    }
}
