//! Rows as a Parquet file.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{
    AsBytes, BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArray,
    FixedLenByteArrayType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;
use uuid::Uuid;

use crate::column::{Column, Kind};
use crate::rows::{MAX_ROWS, Rows};
use crate::value::Value;

fn wrong(problem: impl Into<String>) -> ParquetError {
    ParquetError::General(problem.into())
}

fn schema(rows: &Rows) -> Result<Type, ParquetError> {
    let fields = rows.columns().iter().map(|column| Ok(Arc::new(column.parquet()?)));
    Type::group_type_builder(&rows.table).with_fields(fields.collect::<Result<_, ParquetError>>()?).build()
}

/// The bytes of the file.
pub(crate) fn encode(rows: &Rows) -> Result<Vec<u8>, ParquetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_created_by("memfleet".to_owned())
        .build();
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, Arc::new(schema(rows)?), Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    for (column, values) in rows.columns().iter().zip(rows.values()) {
        let mut out = group.next_column()?.ok_or_else(|| wrong("a column is missing in the schema"))?;
        write_column(&mut out, column.kind, values)?;
        out.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(file)
}

/// Takes the values of a variant.
macro_rules! of {
    ($variant:ident, $value:ident => $taken:expr) => {
        |value: &Value| if let Value::$variant($value) = value { $taken } else { None }
    };
}

fn write_column(
    out: &mut SerializedColumnWriter<'_>,
    kind: Kind,
    values: &[Value],
) -> Result<(), ParquetError> {
    match kind {
        Kind::Boolean => write::<BoolType>(out, values, of!(Boolean, value => Some(*value))),
        Kind::Integer => write::<Int32Type>(out, values, of!(Integer, value => i32::try_from(*value).ok())),
        Kind::BigInteger => write::<Int64Type>(out, values, of!(Integer, value => Some(*value))),
        Kind::Time => write::<Int64Type>(out, values, of!(Time, value => Some(*value))),
        Kind::Double => write::<DoubleType>(out, values, of!(Double, value => Some(*value))),
        Kind::Text | Kind::Json | Kind::Array => {
            write::<ByteArrayType>(out, values, of!(Text, value => Some(value.as_bytes().to_vec().into())))
        }
        Kind::Bytes => write::<ByteArrayType>(out, values, of!(Bytes, value => Some(value.clone().into()))),
        Kind::Uuid => {
            let bytes = of!(Uuid, value => Some(value.as_bytes().to_vec().into()));
            write::<FixedLenByteArrayType>(out, values, bytes)
        }
    }
}

/// A value of another kind would become NULL, which whoever reads the file back notices.
fn write<T: DataType>(
    out: &mut SerializedColumnWriter<'_>,
    values: &[Value],
    take: impl Fn(&Value) -> Option<T::T>,
) -> Result<(), ParquetError> {
    let taken: Vec<Option<T::T>> = values.iter().map(take).collect();
    let levels: Vec<i16> = taken.iter().map(|value| i16::from(value.is_some())).collect();
    let present: Vec<T::T> = taken.into_iter().flatten().collect();
    out.typed::<T>().write_batch(&present, Some(&levels), None)?;
    Ok(())
}

/// The rows in a file. The columns and the number of rows must be these.
pub(crate) fn decode(
    table: &str,
    columns: &[Column],
    count: usize,
    file: Bytes,
) -> Result<Rows, ParquetError> {
    if count > MAX_ROWS {
        return Err(wrong(format!("it has {count} rows; at most {MAX_ROWS} are read")));
    }
    let reader = SerializedFileReader::new(file)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let is_known = |(column, known): (&Column, &Arc<parquet::schema::types::ColumnDescriptor>)| {
        column.name == known.name()
            && column.kind.physical() == known.physical_type()
            && column.kind.logical().as_ref() == known.logical_type_ref()
    };
    if schema.columns().len() != columns.len() || !columns.iter().zip(schema.columns()).all(is_known) {
        return Err(wrong("its columns are not those of the manifest"));
    }
    let groups: Vec<usize> = reader
        .metadata()
        .row_groups()
        .iter()
        .map(|group| usize::try_from(group.num_rows()).unwrap_or(usize::MAX))
        .collect();
    if groups.iter().fold(0, |sum: usize, rows| sum.saturating_add(*rows)) != count {
        return Err(wrong("its number of rows is not that of the manifest"));
    }
    let mut values: Vec<Vec<Value>> = columns.iter().map(|_| Vec::with_capacity(count)).collect();
    for (number, rows) in groups.into_iter().enumerate() {
        let group = reader.get_row_group(number)?;
        for (place, (column, values)) in columns.iter().zip(&mut values).enumerate() {
            read_column(group.get_column_reader(place)?, column.kind, rows, values)?;
        }
    }
    Ok(Rows::from_values(table, columns.to_vec(), values, count))
}

fn read_column(
    reader: ColumnReader,
    kind: Kind,
    rows: usize,
    values: &mut Vec<Value>,
) -> Result<(), ParquetError> {
    let text = |bytes: ByteArray| {
        let text = String::from_utf8(bytes.data().to_vec());
        text.map(Value::Text).map_err(|_| wrong("a text is not UTF-8"))
    };
    match (kind, reader) {
        (Kind::Boolean, ColumnReader::BoolColumnReader(reader)) => {
            read(reader, rows, |value| Ok(Value::Boolean(value)), values)
        }
        (Kind::Integer, ColumnReader::Int32ColumnReader(reader)) => {
            read(reader, rows, |value| Ok(Value::Integer(value.into())), values)
        }
        (Kind::BigInteger, ColumnReader::Int64ColumnReader(reader)) => {
            read(reader, rows, |value| Ok(Value::Integer(value)), values)
        }
        (Kind::Time, ColumnReader::Int64ColumnReader(reader)) => {
            read(reader, rows, |value| Ok(Value::Time(value)), values)
        }
        (Kind::Double, ColumnReader::DoubleColumnReader(reader)) => {
            read(reader, rows, |value| Ok(Value::Double(value)), values)
        }
        (Kind::Text | Kind::Json | Kind::Array, ColumnReader::ByteArrayColumnReader(reader)) => {
            read(reader, rows, text, values)
        }
        (Kind::Bytes, ColumnReader::ByteArrayColumnReader(reader)) => {
            read(reader, rows, |value| Ok(Value::Bytes(value.data().to_vec())), values)
        }
        (Kind::Uuid, ColumnReader::FixedLenByteArrayColumnReader(reader)) => {
            let uuid = |value: FixedLenByteArray| {
                let uuid = Uuid::from_slice(value.as_bytes());
                uuid.map(Value::Uuid).map_err(|_| wrong("a UUID does not have 16 bytes"))
            };
            read(reader, rows, uuid, values)
        }
        _ => Err(wrong("a column is not of its kind")),
    }
}

fn read<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
    to: impl Fn(T::T) -> Result<Value, ParquetError>,
    values: &mut Vec<Value>,
) -> Result<(), ParquetError> {
    let mut present: Vec<T::T> = Vec::new();
    let mut levels: Vec<i16> = Vec::with_capacity(rows);
    while levels.len() < rows {
        let (records, _, _) =
            reader.read_records(rows - levels.len(), Some(&mut levels), None, &mut present)?;
        if records == 0 {
            return Err(wrong("a column ends too early"));
        }
    }
    let mut present = present.into_iter();
    for level in levels {
        values.push(match level {
            0 => Value::Null,
            _ => to(present.next().ok_or_else(|| wrong("a value is missing"))?)?,
        });
    }
    Ok(())
}
