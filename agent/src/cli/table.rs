//! Columns that line up: a heading, then rows; each column is as wide as its widest cell.
//!
//! Nothing is wrapped and nothing is coloured; the last column is not padded, so that no line ends in spaces.

use std::fmt;

/// Spaces between two columns.
const GAP: usize = 3;

#[derive(Debug)]
pub(super) struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(super) fn new(heading: [&str; COLUMNS]) -> Self {
        Self { rows: vec![heading.map(str::to_owned)] }
    }

    pub(super) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells.map(|cell| printable(&cell)));
    }

    fn widths(&self) -> [usize; COLUMNS] {
        std::array::from_fn(|column| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        })
    }
}

/// A line break or an escape sequence in a container's command must not break the table or reach the terminal.
fn printable(cell: &str) -> String {
    cell.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

impl<const COLUMNS: usize> fmt::Display for Table<COLUMNS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(&format!("{cell:<width$}", width = width + GAP));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", "CPU %", "PIDS"]);
        table.row(["a-long-name".into(), "0.10%".into(), "1".into()]);
        table.row(["web".into(), "100.25%".into(), "12".into()]);
        assert_eq!(
            table.to_string(),
            "NAME          CPU %     PIDS\n\
             a-long-name   0.10%     1\n\
             web           100.25%   12\n"
        );
    }

    #[test]
    fn letters_beyond_ascii_count_once() {
        let mut table = Table::new(["A", "B"]);
        table.row(["é…é".into(), "x".into()]);
        table.row(["abc".into(), "y".into()]);
        assert_eq!(table.to_string(), "A     B\né…é   x\nabc   y\n");
    }

    #[test]
    fn control_characters_do_not_break_a_row() {
        let mut table = Table::new(["A", "B"]);
        table.row(["a\nb\x1b[2J".into(), "x".into()]);
        assert_eq!(table.to_string().lines().count(), 2);
        assert!(!table.to_string().contains('\x1b'));
    }

    #[test]
    fn an_empty_table_is_its_heading() {
        assert_eq!(Table::new(["CONTAINER ID", "IMAGE"]).to_string(), "CONTAINER ID   IMAGE\n");
    }
}
