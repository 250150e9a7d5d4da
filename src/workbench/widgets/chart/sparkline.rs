//! A curve one row high.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Eighths of a cell, lowest first.
const LEVELS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// Draws the means of `points` between two x in the top row of `area`, each column relative to the least and
/// greatest of all. Columns without values stay empty.
pub fn sparkline(points: &[(f64, f64)], x: (f64, f64), area: Rect, buffer: &mut Buffer, style: Style) {
    let area = area.intersection(buffer.area);
    let columns = usize::from(area.width);
    let width = x.1 - x.0;
    if columns == 0 || area.height == 0 || width <= 0.0 {
        return;
    }
    let mut sums = vec![(0.0, 0u32); columns];
    for (at, value) in points.iter().filter(|(at, value)| value.is_finite() && (x.0..=x.1).contains(at)) {
        let column = (((at - x.0) / width * columns as f64) as usize).min(columns - 1);
        sums[column].0 += value;
        sums[column].1 += 1;
    }
    let means: Vec<Option<f64>> =
        sums.iter().map(|(sum, count)| (*count > 0).then(|| sum / f64::from(*count))).collect();
    let least = means.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    let greatest = means.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = greatest - least;
    for (column, mean) in means.iter().enumerate() {
        let Some(mean) = mean else { continue };
        // A value that hardly moves is a level line, not noise blown up.
        let share = if range <= greatest.abs() * 0.01 { 0.5 } else { (mean - least) / range };
        let level = ((share * 7.0).round() as usize).min(7);
        buffer[(area.x + column as u16, area.y)].set_symbol(LEVELS[level]).set_style(style);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(points: &[(f64, f64)], x: (f64, f64), width: u16) -> String {
        let area = Rect::new(0, 0, width, 1);
        let mut buffer = Buffer::empty(area);
        sparkline(points, x, area, &mut buffer, Style::new());
        (0..width).map(|x| buffer[(x, 0)].symbol().to_owned()).collect()
    }

    #[test]
    fn rises_from_low_to_high_and_leaves_the_future_empty() {
        let points: Vec<(f64, f64)> = (0..8).map(|x| (f64::from(x), f64::from(x))).collect();
        assert_eq!(drawn(&points, (0.0, 16.0), 16), "▁▂▃▄▅▆▇█        ");
    }

    #[test]
    fn level_values_stay_level_and_gaps_stay_gaps() {
        let points = [(0.0, 100.0), (1.0, f64::NAN), (2.0, 100.2), (3.0, 100.0)];
        assert_eq!(drawn(&points, (0.0, 4.0), 4), "▅ ▅▅");
        assert_eq!(drawn(&[], (0.0, 4.0), 4), "    ");
    }
}
