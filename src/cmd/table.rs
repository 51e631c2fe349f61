//! Tables for people: as wide as their cells, and where that is a terminal, not wider than it.

use crate::output;

/// How wide a cell may be, in columns: a UUID fits, and what others wrote cannot push the rest aside.
const WIDEST: usize = 40;
/// What a column that shrinks keeps at least.
const NARROWEST: usize = 6;
const GAP: &str = "  ";
/// Rows that decide how wide the columns of a long table are. Wider cells that come later push what is beside them.
const DECIDING: usize = 100;

/// One column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// Its header.
    pub(super) name: &'static str,
    /// It can be cut where the terminal is too narrow.
    pub(super) shrinks: bool,
}

/// A table that is printed while its rows come.
pub(super) struct Table {
    columns: Vec<Column>,
    /// Of the terminal.
    width: Option<usize>,
    /// Rows that still decide.
    waiting: Vec<Vec<String>>,
    /// Of those columns that there is room for, once that is decided.
    widths: Option<Vec<usize>>,
}

impl Table {
    /// `width`: of the terminal that it goes to, in columns.
    pub(super) fn new(columns: &[Column], width: Option<usize>) -> Self {
        Self { columns: columns.to_vec(), width, waiting: Vec::new(), widths: None }
    }

    /// One more row, of cells that are escaped. Returns the lines that are due.
    pub(super) fn row(&mut self, row: Vec<String>) -> Vec<String> {
        if let Some(widths) = &self.widths {
            return vec![self.render(&row, widths)];
        }
        self.waiting.push(row);
        if self.waiting.len() < DECIDING { Vec::new() } else { self.flush() }
    }

    /// Rows wait to be printed, until others have decided how wide the columns are.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What still waits, with the header before the first row.
    pub(super) fn flush(&mut self) -> Vec<String> {
        let rows = std::mem::take(&mut self.waiting);
        if rows.is_empty() {
            return Vec::new();
        }
        let header: Vec<String> = self.columns.iter().map(|column| column.name.to_owned()).collect();
        let lines = || std::iter::once(&header).chain(&rows);
        let width = |column: usize| {
            lines()
                .filter_map(|row| row.get(column))
                .map(|cell| output::width(cell))
                .max()
                .unwrap_or_default()
        };
        let natural: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let widths = fitted(&self.columns, natural, self.width.unwrap_or(usize::MAX));
        let lines = lines().map(|row| self.render(row, &widths)).collect();
        self.widths = Some(widths);
        lines
    }

    fn render(&self, row: &[String], widths: &[usize]) -> String {
        let cell = |(cell, width): (&String, &usize)| {
            // Where nobody looks through a narrow window, nothing is cut.
            let cell = if self.width.is_some() { output::fit(cell, *width) } else { cell.clone() };
            let padding = " ".repeat(width.saturating_sub(output::width(&cell)));
            cell + &padding
        };
        let cells: Vec<String> = row.iter().zip(widths).map(cell).collect();
        cells.join(GAP).trim_end().to_owned()
    }
}

/// All of a table that is not long.
pub(super) fn whole(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut table = Table::new(columns, width);
    let mut lines: Vec<String> = rows.iter().flat_map(|row| table.row(row.clone())).collect();
    lines.extend(table.flush());
    lines.join("\n")
}

/// A cell of what others wrote: escaped, and not too wide.
pub(super) fn cell(text: &str) -> String {
    output::fit(&output::escape(text), WIDEST)
}

/// How wide the columns are that there is room for: the widest of those that shrink give way first, and then the last ones
/// are left out.
fn fitted(columns: &[Column], mut widths: Vec<usize>, room: usize) -> Vec<usize> {
    let needed = |widths: &[usize]| widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1);
    while widths.len() > 1 && needed(&widths) > room {
        let mut shrunk = widths.clone();
        while needed(&shrunk) > room {
            let can = |(at, width): &(usize, &mut usize)| columns[*at].shrinks && **width > NARROWEST;
            let Some((_, widest)) =
                shrunk.iter_mut().enumerate().filter(can).max_by_key(|(_, width)| **width)
            else {
                break;
            };
            *widest -= 1;
        }
        if needed(&shrunk) <= room {
            return shrunk;
        }
        widths.pop();
    }
    if let [only] = widths.as_mut_slice() {
        *only = (*only).min(room);
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn column(name: &'static str, shrinks: bool) -> Column {
        Column { name, shrinks }
    }

    const COLUMNS: [Column; 4] =
        [column("ID", true), column("KEY", false), column("AGE", false), column("BODY", true)];

    fn row(cells: [&str; 4]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [row(["a", "3f2a9c81d04e", "2s", "x"]), row(["longer", "3f2a9c81d04e", "10s", ""])];
        assert_eq!(
            whole(&COLUMNS, &rows, None),
            "ID      KEY           AGE  BODY\na       3f2a9c81d04e  2s   x\nlonger  3f2a9c81d04e  10s"
        );
        let wide = whole(&COLUMNS, &[row(["全角", "k", "", ""]), row(["four", "k", "", ""])], None);
        assert!(wide.contains("\n全角  k") && wide.contains("\nfour  k"), "{wide}");
        assert_eq!(whole(&COLUMNS, &[], None), "");
    }

    #[test]
    fn on_a_terminal_no_line_is_wider_than_it() {
        let id = "01a204a2-499c-7598-8b3f-bb9077d323e2";
        let body = "a body of some length, with words";
        let rows =
            [row([id, "3f2a9c81d04e", "2s", body]), row(["全角全角全角全角", "3f2a9c81d04e", "10s", body])];
        for columns in 1..120 {
            let text = whole(&COLUMNS, &rows, Some(columns));
            for line in text.lines() {
                assert!(output::width(line) <= columns, "{columns}: {line}");
            }
            assert_eq!(text.lines().count(), 3);
        }
        assert!(whole(&COLUMNS, &rows, Some(60)).contains("3f2a9c81d04e  10s"), "keys are not cut");
        assert!(whole(&COLUMNS, &rows, Some(20)).contains("01a20…  3f2a9c81d04e"));
        assert!(whole(&COLUMNS, &rows, Some(200)).contains(body));
    }

    #[test]
    fn a_long_table_begins_before_it_ends() {
        let mut table = Table::new(&COLUMNS, None);
        let mut lines = Vec::new();
        for _ in 0..DECIDING {
            assert!(lines.is_empty());
            lines = table.row(row(["a", "k", "1s", "x"]));
        }
        assert_eq!(lines.len(), DECIDING + 1);
        assert!(!table.waits() && table.flush().is_empty());
        assert_eq!(table.row(row(["longer", "k", "1s", "x"])), ["longer  k    1s   x"]);
    }

    #[test]
    fn cells_are_cut_and_harmless() {
        assert_eq!(cell("\x1b[2J"), "\\x1b[2J");
        assert_eq!(cell(&"ü".repeat(41)), format!("{}…", "ü".repeat(39)));
        assert_eq!(cell(&"全".repeat(21)), format!("{}…", "全".repeat(19)));
        assert_eq!(cell(&"ü".repeat(40)), "ü".repeat(40));
    }
}
