//! The report for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::row::{Bound, Compared, Row, Unit, Verdict};

/// The table, and below it what is to be said of its lines.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["goal", "what", "baseline", "ours", "result", "middle half", "bound", "met"]);
    for row in rows {
        table.add_row(line(row));
    }
    for column in 2..=6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.to_string();
    text.push('\n');
    for row in rows {
        let why = match &row.verdict {
            Verdict::Skipped(reason) => Some(format!("not measured: {reason}")),
            Verdict::Failed(reason) => Some(format!("failed: {reason}")),
            Verdict::Met | Verdict::NotMet | Verdict::Shown => None,
        };
        for note in why.iter().chain(&row.notes) {
            text.push_str(&format!("\n{}, {}: {note}", row.goal, row.what));
        }
    }
    text
}

fn line(row: &Row) -> [String; 8] {
    let met = match &row.verdict {
        Verdict::Met => "yes",
        Verdict::NotMet => "NO",
        Verdict::Shown => "",
        Verdict::Skipped(_) => "skipped",
        Verdict::Failed(_) => "FAILED",
    };
    let result = |value: f64| match row.compared {
        Compared::Ratio => format!("{value:.2} ×"),
        Compared::Difference => format!("{}{}", if value < 0.0 { "-" } else { "+" }, figure(row.unit, value.abs())),
        Compared::Itself => figure(row.unit, value),
    };
    let shown = |value: f64, shown: &dyn Fn(f64) -> String| if value.is_nan() { String::new() } else { shown(value) };
    let spread = match row.rounds > 1 {
        true => format!("{} … {}", result(row.result.lower_quartile), result(row.result.upper_quartile)),
        false => String::new(),
    };
    let bound = match row.bound {
        Bound::AtMost(most) => format!("≤ {}", result(most).trim_start_matches('+')),
        Bound::AtLeast(least) => format!("≥ {}", result(least).trim_start_matches('+')),
        Bound::None => String::new(),
    };
    let plain = |value: f64| figure(row.unit, value);
    [
        row.goal.to_string(),
        row.what.clone(),
        row.baseline.map(|baseline| shown(baseline.median, &plain)).unwrap_or_default(),
        shown(row.ours.median, &plain),
        if row.compared == Compared::Itself { String::new() } else { shown(row.result.median, &result) },
        spread,
        bound,
        met.to_owned(),
    ]
}

fn figure(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Time if value < 1e6 => format!("{:.1} µs", value / 1e3),
        Unit::Time => format!("{:.2} ms", value / 1e6),
        Unit::PerSecond => format!("{:.1} k/s", value / 1e3),
        Unit::Bytes if value < 100.0 * 1024.0 => format!("{:.2} KB", value / 1024.0),
        Unit::Bytes => format!("{:.2} MB", value / 1024.0 / 1024.0),
        Unit::Count if value.fract() == 0.0 => format!("{value}"),
        Unit::Count => format!("{value:.2}"),
        Unit::Percent => format!("{value:.1} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_it_should() {
        let row = Row::ratio(1, "connect", Unit::Time, &[50_000.0, 50_000.0], &[55_000.0, 60_000.0]);
        let cells = line(&row.bound(Bound::AtMost(1.2)));
        assert_eq!(
            cells,
            ["1", "connect", "50.0 µs", "57.5 µs", "1.15 ×", "1.12 × … 1.18 ×", "≤ 1.20 ×", "yes"].map(str::to_owned)
        );
        let row = Row::difference(4, "cold", Unit::Time, &[1e6], &[3e6]).bound(Bound::AtMost(5e5));
        assert_eq!(
            line(&row),
            ["4", "cold", "1.00 ms", "3.00 ms", "+2.00 ms", "", "≤ 500.0 µs", "NO"].map(str::to_owned)
        );
        let text = table(&[Row::skipped(9, "calls", "there is no strace")]);
        assert!(text.contains("skipped") && text.ends_with("9, calls: not measured: there is no strace"), "{text}");
    }
}
