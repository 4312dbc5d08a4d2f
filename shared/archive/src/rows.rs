use chrono::{DateTime, Utc};

use crate::column::Column;
use crate::error::ArchiveError;
use crate::value::Value;

/// The most rows of a file.
pub const MAX_ROWS: usize = 100_000;

/// Rows of a table, by column.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// The table.
    pub table: String,
    columns: Vec<Column>,
    values: Vec<Vec<Value>>,
    count: usize,
}

impl Rows {
    /// No rows yet.
    pub fn new(table: &str, columns: Vec<Column>) -> Self {
        let values = columns.iter().map(|_| Vec::new()).collect();
        Self { table: table.to_owned(), columns, values, count: 0 }
    }

    pub(crate) fn from_values(
        table: &str,
        columns: Vec<Column>,
        values: Vec<Vec<Value>>,
        count: usize,
    ) -> Self {
        Self { table: table.to_owned(), columns, values, count }
    }

    /// Adds a row of texts, as [`Kind::text_of`](crate::Kind::text_of) gives them for each column.
    ///
    /// # Errors
    /// [`ArchiveError::Rows`] for a value of another kind, another number of values, or a row too many.
    pub fn push(&mut self, texts: Vec<Option<String>>) -> Result<(), ArchiveError> {
        let wrong = |problem: String| ArchiveError::Rows { table: self.table.clone(), problem };
        if texts.len() != self.columns.len() {
            return Err(wrong(format!("a row has {} values, and not {}", texts.len(), self.columns.len())));
        }
        if self.count >= MAX_ROWS {
            return Err(wrong(format!("a file has at most {MAX_ROWS} rows")));
        }
        let mut row = Vec::with_capacity(texts.len());
        for (column, text) in self.columns.iter().zip(texts) {
            row.push(match text {
                None => Value::Null,
                Some(text) => Value::parse(column.kind, text)
                    .ok_or_else(|| wrong(format!("a value of {} is no {}", column.name, column.sql_type)))?,
            });
        }
        for (values, value) in self.values.iter_mut().zip(row) {
            values.push(value);
        }
        self.count += 1;
        Ok(())
    }

    /// The columns, in their order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The values of each column, in the order of [`columns`](Self::columns).
    pub fn values(&self) -> &[Vec<Value>] {
        &self.values
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The value of a row in the column of this name. [`Value::Null`] if there is no such column or row.
    pub fn get(&self, row: usize, column: &str) -> &Value {
        let place = self.columns.iter().position(|known| known.name == column);
        place.and_then(|place| self.values.get(place)?.get(row)).unwrap_or(&Value::Null)
    }

    /// Keeps the rows of which `keep` is true.
    pub fn retain(&mut self, keep: impl Fn(&Self, usize) -> bool) {
        let kept: Vec<bool> = (0..self.count).map(|row| keep(self, row)).collect();
        for values in &mut self.values {
            let mut place = kept.iter();
            values.retain(|_| place.next().copied().unwrap_or(false));
        }
        self.count = kept.iter().filter(|kept| **kept).count();
    }

    /// The row as a JSON object.
    pub fn to_json(&self, row: usize) -> serde_json::Map<String, serde_json::Value> {
        self.columns
            .iter()
            .zip(&self.values)
            .filter_map(|(column, values)| Some((column.name.clone(), values.get(row)?.to_json(column.kind))))
            .collect()
    }

    /// The earliest and the latest time in a column.
    pub fn times(&self, column: &str) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let times = || (0..self.count).filter_map(|row| self.get(row, column).time());
        Some((times().min()?, times().max()?))
    }

    /// About how much memory they take.
    pub(crate) fn size(&self) -> usize {
        self.values.iter().flatten().map(Value::size).sum()
    }
}
