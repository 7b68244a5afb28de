//! Tables: with the width and colours of a terminal, or plain aligned columns in a pipe.

use comfy_table::{
    Attribute, Cell as TerminalCell, Color, ColumnConstraint, ContentArrangement, Table as TerminalTable, presets,
};

/// Between columns.
const GAP: u16 = 2;
/// A terminal that has no more than this for the columns that may be wrapped does not know its width, or shows lines
/// that run over better than paths in pieces.
const NARROW: u16 = 40;

/// How a cell is shown in a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Care,
    Bad,
    Faint,
}

/// A text and how it is shown in a terminal.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }

    fn in_terminal(&self) -> TerminalCell {
        let cell = TerminalCell::new(&self.text);
        match self.tone {
            Tone::Plain => cell,
            Tone::Good => cell.fg(Color::DarkGreen),
            Tone::Care => cell.fg(Color::DarkYellow),
            Tone::Bad => cell.fg(Color::DarkRed).add_attribute(Attribute::Bold),
            Tone::Faint => cell.add_attribute(Attribute::Dim),
        }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text.to_string(), Tone::Plain)
    }
}

/// Rows under a header.
#[derive(Debug)]
pub(super) struct Table {
    header: Vec<&'static str>,
    /// How many of the first columns a terminal never wraps: names and numbers are of no use in pieces.
    whole: usize,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table of which a terminal may wrap all columns but the first `whole`.
    pub(super) fn new<const N: usize>(header: [&'static str; N], whole: usize) -> Self {
        Self { header: header.to_vec(), whole, rows: Vec::new() }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.to_vec());
    }

    /// The table as text, each line ended. Styles are in it as escapes; a stream without colours takes them out.
    pub(super) fn render(&self, for_terminal: bool) -> String {
        if for_terminal { self.terminal() } else { self.plain() }
    }

    fn terminal(&self) -> String {
        let mut table = TerminalTable::new();
        // Whether colours come out at all is the output stream's decision.
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).enforce_styling();
        table.style_text_only();
        table.set_header(self.header.iter().map(|title| TerminalCell::new(title).add_attribute(Attribute::Bold)));
        for row in &self.rows {
            table.add_row(row.iter().map(Cell::in_terminal));
        }
        let widths = table.column_max_content_widths();
        let whole: u16 = widths.iter().take(self.whole).map(|width| width + GAP).sum();
        if table.width().is_none_or(|width| width < whole + NARROW) {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        for (at, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, GAP));
            if at < self.whole {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n") + "\n"
    }

    /// Columns two spaces apart; an empty cell is `-`, so that a program can count columns.
    fn plain(&self) -> String {
        let header: Vec<&str> = self.header.clone();
        let filled = |cell: &'_ Cell| if cell.text.is_empty() { "-".to_owned() } else { cell.text.clone() };
        let mut lines: Vec<Vec<String>> = vec![header.into_iter().map(str::to_owned).collect()];
        lines.extend(self.rows.iter().map(|row| row.iter().map(filled).collect()));
        let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|t| t.chars().count()).max();
        let widths: Vec<usize> = (0..self.header.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut out = String::new();
        for line in &lines {
            let padded: Vec<String> = line.iter().zip(&widths).map(|(text, width)| format!("{text:width$}")).collect();
            out.push_str(padded.join("  ").trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_plain_table_is_aligned_and_counts_its_empty_cells() {
        let mut table = Table::new(["SERVICE", "PID", "NOTES"], 1);
        table.row(["redis".into(), 7.into(), "".into()]);
        table.row(["a".into(), "".into(), Cell::toned("down", Tone::Bad)]);
        insta::assert_snapshot!(table.render(false), @r"
        SERVICE  PID  NOTES
        redis    7    -
        a        -    down
        ");
    }
}
