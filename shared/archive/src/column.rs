use parquet::basic::{LogicalType, Repetition, TimeUnit, Type as PhysicalType};
use parquet::errors::ParquetError;
use parquet::schema::types::Type;
use serde::{Deserialize, Serialize};

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type in PostgreSQL, as `format_type` names it.
    pub sql_type: String,
    /// How its values are stored.
    pub kind: Kind,
}

/// How the values of a column are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `BOOLEAN`.
    Boolean,
    /// `INT32`.
    Integer,
    /// `INT64`.
    BigInteger,
    /// `DOUBLE`.
    Double,
    /// Text; also enumerations, and numbers of any length.
    Text,
    /// JSON as text.
    Json,
    /// An array, as the text of a JSON array.
    Array,
    /// 16 bytes.
    Uuid,
    /// `INT64`, in microseconds of UTC.
    Time,
    /// Bytes.
    Bytes,
}

impl Kind {
    /// The kind of a type, as `format_type` names it. Arrays have the category `A` in `pg_type`.
    pub fn of(sql_type: &str, category: &str) -> Self {
        match sql_type {
            _ if category == "A" => Self::Array,
            "boolean" => Self::Boolean,
            "smallint" | "integer" => Self::Integer,
            "bigint" => Self::BigInteger,
            "real" | "double precision" => Self::Double,
            "json" | "jsonb" => Self::Json,
            "uuid" => Self::Uuid,
            "timestamp with time zone" => Self::Time,
            "bytea" => Self::Bytes,
            _ => Self::Text,
        }
    }

    /// An SQL expression for the text that [`Value::parse`](crate::Value::parse) reads, of a column expression.
    pub fn text_of(self, expression: &str) -> String {
        match self {
            Self::Time => format!("((extract(epoch FROM {expression}) * 1000000)::bigint)::text"),
            Self::Bytes => format!("encode({expression}, 'hex')"),
            Self::Array => format!("to_json({expression})::text"),
            Self::Boolean
            | Self::Integer
            | Self::BigInteger
            | Self::Double
            | Self::Text
            | Self::Json
            | Self::Uuid => format!("({expression})::text"),
        }
    }

    /// An SQL expression for the value of this type, of an expression for the text that
    /// [`Value::to_text`](crate::Value::to_text) writes.
    pub fn value_of(self, expression: &str, sql_type: &str) -> String {
        match self {
            Self::Bytes => format!("decode({expression}, 'hex')"),
            Self::Array => format!(
                "CASE WHEN {expression} IS NOT NULL THEN ARRAY(SELECT e.value FROM jsonb_array_elements_text(({expression})::jsonb)
                    WITH ORDINALITY AS e (value, place) ORDER BY e.place)::{sql_type} END"
            ),
            Self::Boolean
            | Self::Integer
            | Self::BigInteger
            | Self::Double
            | Self::Text
            | Self::Json
            | Self::Uuid
            | Self::Time => format!("({expression})::{sql_type}"),
        }
    }

    pub(crate) fn physical(self) -> PhysicalType {
        match self {
            Self::Boolean => PhysicalType::BOOLEAN,
            Self::Integer => PhysicalType::INT32,
            Self::BigInteger | Self::Time => PhysicalType::INT64,
            Self::Double => PhysicalType::DOUBLE,
            Self::Text | Self::Json | Self::Array | Self::Bytes => PhysicalType::BYTE_ARRAY,
            Self::Uuid => PhysicalType::FIXED_LEN_BYTE_ARRAY,
        }
    }

    pub(crate) fn logical(self) -> Option<LogicalType> {
        match self {
            Self::Text => Some(LogicalType::String),
            Self::Json | Self::Array => Some(LogicalType::Json),
            Self::Uuid => Some(LogicalType::Uuid),
            Self::Time => Some(LogicalType::timestamp(true, TimeUnit::MICROS)),
            Self::Boolean | Self::Integer | Self::BigInteger | Self::Double | Self::Bytes => None,
        }
    }
}

impl Column {
    pub(crate) fn parquet(&self) -> Result<Type, ParquetError> {
        let builder = Type::primitive_type_builder(&self.name, self.kind.physical())
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(self.kind.logical());
        match self.kind {
            Kind::Uuid => builder.with_length(16).build(),
            Kind::Boolean
            | Kind::Integer
            | Kind::BigInteger
            | Kind::Double
            | Kind::Text
            | Kind::Json
            | Kind::Array
            | Kind::Time
            | Kind::Bytes => builder.build(),
        }
    }
}
