//! The lengths of all rows as a text: bars, marks, and what packing makes of them.

use std::fmt::Write;

use luthier_core::config::Config;
use luthier_core::data::Report;
use luthier_core::units;

use crate::widgets::sparkline::bars;
use crate::widgets::text::{self, fit};

/// Columns of the longest bar.
const BAR: usize = 24;

/// Most columns of a role's name.
const ROLE: usize = 12;

/// The histogram of tokens per row, with what the settings do to long rows.
pub(super) fn text(report: &Report, config: Option<&Config>, sequences: Option<u64>) -> String {
    let lengths = &report.lengths;
    let max_length = config.map(|config| config.data.max_length);
    let mut marks = vec![("p50", lengths.p50), ("p95", lengths.p95), ("max", lengths.max)];
    marks.extend(max_length.map(|length| ("max_length", length)));
    let most = lengths.histogram.iter().map(|bin| bin.rows).max().unwrap_or(0).max(1);
    let mut said = String::from("tokens per row, before any are cut\n\n");
    for bin in &lengths.histogram {
        let bar = bar(bin.rows, most, BAR);
        let here: Vec<&str> = marks
            .iter()
            .filter(|(_, length)| (bin.from..=bin.to).contains(length))
            .map(|(name, _)| *name)
            .collect();
        let note = if here.is_empty() { String::new() } else { format!("  ← {}", here.join(", ")) };
        // Writing to a string cannot fail.
        let _ = writeln!(said, "{:>7} – {:<7} {bar:<BAR$} {:>7}{note}", bin.from, bin.to, bin.rows);
    }
    let _ = write!(
        said,
        "\nshortest {}   p50 {}   p95 {}   longest {}",
        lengths.min, lengths.p50, lengths.p95, lengths.max
    );
    if let Some(max_length) = max_length {
        let _ = write!(said, "\n{}", consequence(report, max_length));
    }
    said.push_str(&roles(report));
    if let (Some(sequences), Some(max_length)) = (sequences, max_length) {
        let rows = units::counted(report.train_rows, "training example makes", "training examples make");
        let made = units::counted(sequences as usize, "sequence", "sequences");
        let _ = write!(said, "\npacking: {rows} {made} of at most {max_length} tokens");
    }
    said
}

/// How much each role says: its share of all tokens, and how its lengths are spread.
fn roles(report: &Report) -> String {
    let width = report.roles.iter().map(|role| text::width(&role.role)).max().unwrap_or(0).min(ROLE);
    let mut lines = String::new();
    for role in &report.roles {
        let lengths = &role.lengths;
        let bins: Vec<f64> = lengths.histogram.iter().map(|bin| bin.rows as f64).collect();
        let name = fit(&role.role, width);
        let pad = " ".repeat(width.saturating_sub(text::width(&name)));
        let share = units::percent(role.share);
        let _ = write!(
            lines,
            "\n{name}{pad}  {share:>5} of tokens   p50 {}   p95 {}   longest {}   {}",
            lengths.p50,
            lengths.p95,
            lengths.max,
            bars(&bins)
        );
    }
    if lines.is_empty() { lines } else { format!("\n{lines}\n") }
}

fn consequence(report: &Report, max_length: usize) -> String {
    if report.lengths.max <= max_length {
        return format!("max_length {max_length}: every row fits");
    }
    let cut = units::counted(report.truncated, "row is cut", "rows are cut");
    let left = units::counted(report.dropped, "row is left out", "rows are left out");
    format!("max_length {max_length}: {cut}, {left}")
}

/// A bar of at most `columns`, for `count` where `most` is the whole; never empty for something.
pub(super) fn bar(count: usize, most: usize, columns: usize) -> String {
    let filled = (count.saturating_mul(columns) / most.max(1)).min(columns);
    match (count, filled) {
        (0, _) => String::new(),
        (_, 0) => "▏".to_owned(),
        _ => "█".repeat(filled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_still_seen() {
        assert_eq!(bar(0, 10, 8), "");
        assert_eq!(bar(1, 1000, 8), "▏");
        assert_eq!(bar(5, 10, 8), "████");
        assert_eq!(bar(5, 0, 8), "████████");
    }
}
