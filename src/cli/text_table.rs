//! Tables for people: as wide as their content, never wider than the screen.
//!
//! Columns fit what is in them. When all of them together are too wide, the widest are cut, and a
//! cut cell ends with an ellipsis. It knows nothing of what is in a table.

use std::fmt::Write as _;

/// Between two columns.
const GAP: usize = 2;
/// No column is cut to less.
const CUT_MIN: usize = 6;
/// How far notes stand in.
const INDENT: usize = 4;

/// On which side a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

struct Row {
    cells: Vec<String>,
    note: Option<String>,
}

/// A table in the making.
pub(super) struct TextTable {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Row>,
}

impl TextTable {
    /// A table with these columns.
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells that are missing stay empty. The note stands below it.
    pub(super) fn row(&mut self, cells: Vec<String>, note: Option<String>) {
        assert!(cells.len() <= self.columns.len(), "a cell for each column");
        self.rows.push(Row { cells, note });
    }

    /// The lines, none longer than `width` unless the columns cannot be cut that far.
    pub(super) fn render(&self, width: usize) -> String {
        let widths = self.widths(width);
        let mut text = String::new();
        let titles: Vec<&str> = self.columns.iter().map(|(title, _)| *title).collect();
        self.line(&mut text, &widths, &titles);
        for row in &self.rows {
            let cells: Vec<&str> = row.cells.iter().map(String::as_str).collect();
            self.line(&mut text, &widths, &cells);
            for line in row.note.iter().flat_map(|note| wrapped(note, width - INDENT)) {
                let _ = writeln!(text, "{:INDENT$}{line}", "");
            }
        }
        text
    }

    fn widths(&self, width: usize) -> Vec<usize> {
        let widest = |(at, (title, _)): (usize, &(&str, Align))| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(at));
            cells.map(|cell| cell.chars().count()).chain([title.chars().count()]).max()
        };
        let mut widths: Vec<usize> = self.columns.iter().enumerate().filter_map(widest).collect();
        let gaps = GAP * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > width {
            match widths.iter_mut().max() {
                Some(widest) if *widest > CUT_MIN => *widest -= 1,
                _ => break,
            }
        }
        widths
    }

    fn line(&self, text: &mut String, widths: &[usize], cells: &[&str]) {
        let mut line = String::new();
        for (((_, align), width), cell) in self.columns.iter().zip(widths).zip(cells) {
            let (cell, width) = (cut(cell, *width), *width);
            let _ = match align {
                Align::Left => write!(line, "{cell:<width$}"),
                Align::Right => write!(line, "{cell:>width$}"),
            };
            line.push_str(&" ".repeat(GAP));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    cell.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// The text in lines of at most this width, broken between words.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is a line from the start");
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= width {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A count with commas between thousands.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share in percent; a dash if there is nothing to have a share of.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", part as f64 / whole as f64 * 100.0)
}

/// A span of time, with its unit.
pub(super) fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0 => "under 1 s".to_owned(),
        1..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_their_content_and_the_screen() {
        let mut table = TextTable::new(&[("node", Align::Left), ("packets", Align::Right)]);
        table.row(vec!["n1 (id 1)".into(), "7".into()], None);
        table.row(vec!["n2".into()], Some("no answer at all".into()));
        let expected = "node       packets\nn1 (id 1)        7\nn2\n    no answer at\n    all\n";
        assert_eq!(table.render(18), expected);
        table.row(vec!["a".repeat(50), "1".into()], None);
        for width in [20, 40, 59, 100] {
            let text = table.render(width);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            assert_eq!(text.contains('…'), width < 59, "{text}");
        }
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!((percent(0, 0), percent(1, 3)), ("-".into(), "33.3 %".into()));
        let spans = [5, 1_500, 119_999, 120_000, 7_200_000].map(span);
        assert_eq!(spans, ["under 1 s", "1 s", "119 s", "2 min", "2 h"]);
    }
}
