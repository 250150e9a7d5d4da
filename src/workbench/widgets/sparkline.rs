//! A curve one row high.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::text;

const LEVELS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// Draws `values` over the width of `area`, oldest left; a column shows the last of its values.
/// A value that is not finite leaves a gap. The scale goes from the lowest to the highest value; where
/// `from_zero`, from 0.
pub fn sparkline(values: &[f64], from_zero: bool, area: Rect, buffer: &mut Buffer, style: Style) {
    let width = usize::from(area.width);
    if width == 0 || area.height == 0 || values.is_empty() {
        return;
    }
    for (column, level) in levels(values, from_zero, width).into_iter().enumerate() {
        if let Some(level) = level {
            text::put(buffer, area.x + column as u16, area.y, area.right(), level, style);
        }
    }
}

/// As [`sparkline`] from 0, as a text of a column for each value.
pub fn bars(values: &[f64]) -> String {
    levels(values, true, values.len()).into_iter().map(|level| level.unwrap_or(" ")).collect()
}

/// What stands in each column; nothing for a value that is not finite.
fn levels(values: &[f64], from_zero: bool, width: usize) -> Vec<Option<&'static str>> {
    let finite = || values.iter().copied().filter(|value| value.is_finite());
    let high = finite().fold(f64::NEG_INFINITY, f64::max);
    let low = if from_zero { 0.0 } else { finite().fold(f64::INFINITY, f64::min) };
    let level = |column: usize| {
        let index = if values.len() <= width { column } else { (column + 1) * values.len() / width - 1 };
        let value = values.get(index).copied().filter(|value| value.is_finite())?;
        let share = if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 };
        LEVELS.get((share * (LEVELS.len() - 1) as f64).round() as usize).copied()
    };
    (0..width.min(values.len())).map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(values: &[f64], from_zero: bool, width: u16) -> String {
        let area = Rect::new(0, 0, width, 1);
        let mut buffer = Buffer::empty(area);
        sparkline(values, from_zero, area, &mut buffer, Style::new());
        (0..width).map(|x| buffer[(x, 0)].symbol().to_owned()).collect()
    }

    #[test]
    fn scales_gaps_and_many_values() {
        assert_eq!(drawn(&[0.0, 1.0, f64::NAN, 2.0], false, 6), "▁▅ █  ");
        assert_eq!(drawn(&[5.0, 5.0], false, 2), "▅▅");
        assert_eq!(drawn(&[5.0, 10.0], true, 2), "▅█");
        let many: Vec<f64> = (0..1000).map(f64::from).collect();
        assert_eq!(drawn(&many, false, 8), "▂▃▄▄▅▆▇█");
        assert_eq!(drawn(&[], false, 2), "  ");
        assert_eq!(drawn(&[f64::NAN], false, 2), "  ");
    }
}
