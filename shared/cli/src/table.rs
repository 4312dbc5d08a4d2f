//! Text tables.

use std::fmt;

use contract::printable;

/// The alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// A heading and rows; each column is as wide as its widest cell.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with a heading for each column.
    pub fn new<const COLUMNS: usize>(columns: [(&str, Align); COLUMNS]) -> Self {
        let heading = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self { columns: columns.iter().map(|(_, align)| *align).collect(), rows: vec![heading] }
    }

    /// Adds a row. Cells are [escaped](contract::printable), because many hold text from outside.
    pub fn row<const COLUMNS: usize>(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells.iter().map(|cell| printable(cell).into_owned()).collect());
    }

    fn width(&self, column: usize) -> usize {
        self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| self.width(column)).collect();
        let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
        for (number, row) in self.rows.iter().enumerate() {
            write_row(f, &self.columns, &widths, row)?;
            if number == 0 {
                write_row(f, &self.columns, &widths, &rule)?;
            }
        }
        Ok(())
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, columns: &[Align], widths: &[usize], row: &[String]) -> fmt::Result {
    let mut line = String::new();
    for ((align, width), cell) in columns.iter().zip(widths).zip(row) {
        match align {
            Align::Left => line.push_str(&format!("  {cell:<width$}")),
            Align::Right => line.push_str(&format!("  {cell:>width$}")),
        }
    }
    writeln!(f, "{}", line.trim_end())
}

/// A number with a comma after every three digits: `38,768`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_right_aligned_and_words_left_aligned() {
        let mut table = Table::new([("table", Align::Left), ("rows", Align::Right)]);
        table.row(["users".to_owned(), grouped(12)]);
        table.row(["chat_messages".to_owned(), grouped(38_768)]);
        let lines = "  table            rows\n  ─────────────  ──────\n  users              12\n  chat_messages  38,768\n";
        assert_eq!(table.to_string(), lines);
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        let mut table = Table::new([("name", Align::Left)]);
        table.row(["a\nb\u{1b}[2J".to_owned()]);
        assert_eq!(table.to_string().lines().last(), Some("  a\\u{a}b\\u{1b}[2J"));
    }

    #[test]
    fn digits_are_grouped_by_three() {
        let written: Vec<String> = [0, 999, 1_000, 1_234_567].into_iter().map(grouped).collect();
        assert_eq!(written, ["0", "999", "1,000", "1,234,567"]);
    }
}
