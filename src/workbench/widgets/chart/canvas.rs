//! Dots finer than cells, each cell owned by the curve painted last.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::theme::Markers;

pub(super) struct Canvas {
    markers: Markers,
    columns: usize,
    rows: usize,
    /// Owner and dots of each cell, row by row.
    cells: Vec<(usize, u8)>,
}

impl Canvas {
    pub(super) fn new(width: u16, height: u16, markers: Markers) -> Self {
        let (across, down) = per_cell(markers);
        let cells = vec![(0, 0); usize::from(width) * usize::from(height)];
        Self { markers, columns: usize::from(width) * across, rows: usize::from(height) * down, cells }
    }

    /// Dots in a row and in a column.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.columns, self.rows)
    }

    /// Paints a curve through points in dots from the upper left; `None` is a gap. However many points fall
    /// into one column of dots, the column gets the span from their least to their greatest.
    pub(super) fn line(&mut self, owner: usize, points: impl Iterator<Item = Option<(f64, f64)>>) {
        let mut spans: Vec<Option<(f64, f64)>> = vec![None; self.columns];
        let mut last: Option<(f64, f64)> = None;
        for point in points {
            let Some((x, y)) = point.filter(|(x, y)| x.is_finite() && y.is_finite()) else {
                last = None;
                continue;
            };
            self.join(&mut spans, last.unwrap_or((x, y)), (x, y));
            last = Some((x, y));
        }
        let (across, down) = per_cell(self.markers);
        let mut owned = vec![false; self.cells.len()];
        for (column, span) in spans.into_iter().enumerate() {
            let Some((top, bottom)) = span else { continue };
            let lowest = self.rows.saturating_sub(1) as f64;
            // Where a line leaves a column exactly between two dots, the next column takes it up.
            let top = ((top - 0.5).floor() + 1.0).clamp(0.0, lowest) as usize;
            let bottom = ((bottom + 0.5).ceil() - 1.0).clamp(0.0, lowest) as usize;
            for row in top..=bottom.max(top) {
                let index = row / down * (self.columns / across) + column / across;
                let Some(cell) = self.cells.get_mut(index) else { continue };
                if !std::mem::replace(&mut owned[index], true) {
                    *cell = (owner, 0);
                }
                cell.1 |= bit(self.markers, column % across, row % down);
            }
        }
    }

    /// Widens the spans of the columns that the line between two points crosses.
    fn join(&self, spans: &mut [Option<(f64, f64)>], from: (f64, f64), to: (f64, f64)) {
        let last_column = self.columns.saturating_sub(1) as f64;
        if to.0 < 0.0 || from.0 > last_column {
            return;
        }
        let first = from.0.round().clamp(0.0, last_column) as usize;
        let last = to.0.round().clamp(0.0, last_column) as usize;
        let width = to.0 - from.0;
        let at = |x: f64| if width > 0.0 { from.1 + (to.1 - from.1) * ((x - from.0) / width) } else { to.1 };
        if first == last {
            widen(&mut spans[first], at(from.0.max(0.0)));
            widen(&mut spans[first], at(to.0.min(last_column)));
            return;
        }
        for (column, span) in spans.iter_mut().enumerate().take(last + 1).skip(first) {
            let edge = |x: f64| at(x.clamp(from.0, to.0));
            widen(span, edge(column as f64 - 0.5));
            widen(span, edge(column as f64 + 0.5));
        }
    }

    /// Puts what was painted into `area`.
    pub(super) fn paint(&self, area: Rect, buffer: &mut Buffer, style: impl Fn(usize) -> Style) {
        for (index, (owner, dots)) in self.cells.iter().enumerate() {
            if *dots == 0 {
                continue;
            }
            let width = self.columns / per_cell(self.markers).0;
            let x = area.x + (index % width) as u16;
            let y = area.y + (index / width) as u16;
            buffer[(x, y)].set_char(sign(self.markers, *dots)).set_style(style(*owner));
        }
    }
}

/// Dots across and down a cell.
fn per_cell(markers: Markers) -> (usize, usize) {
    match markers {
        Markers::Braille => (2, 4),
        Markers::Block => (2, 2),
        Markers::Ascii => (1, 1),
    }
}

fn bit(markers: Markers, column: usize, row: usize) -> u8 {
    /// Bits of a braille cell's dots, by row and column.
    const BRAILLE: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
    match markers {
        Markers::Braille => BRAILLE[row][column],
        Markers::Block => 1 << (2 * row + column),
        Markers::Ascii => 1,
    }
}

fn sign(markers: Markers, dots: u8) -> char {
    const QUADRANTS: [char; 16] =
        [' ', '▘', '▝', '▀', '▖', '▌', '▞', '▛', '▗', '▚', '▐', '▜', '▄', '▙', '▟', '█'];
    match markers {
        Markers::Braille => char::from_u32(0x2800 + u32::from(dots)).unwrap_or(' '),
        Markers::Block => QUADRANTS[usize::from(dots & 0x0f)],
        Markers::Ascii => '*',
    }
}

fn widen(span: &mut Option<(f64, f64)>, value: f64) {
    *span = Some(match *span {
        Some((top, bottom)) => (top.min(value), bottom.max(value)),
        None => (value, value),
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn painted(canvas: &Canvas, width: u16, height: u16) -> Vec<String> {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        canvas.paint(area, &mut buffer, |_| Style::new());
        (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect()).collect()
    }

    #[test]
    fn every_kind_of_marker_draws_a_diagonal() {
        for (markers, expected) in
            [(Markers::Braille, ["⢳ ", " ⢧"]), (Markers::Block, ["▚ ", " ▚"]), (Markers::Ascii, ["* ", " *"])]
        {
            let mut canvas = Canvas::new(2, 2, markers);
            let (columns, rows) = canvas.size();
            let corner = ((columns - 1) as f64, (rows - 1) as f64);
            canvas.line(0, [Some((0.0, 0.0)), Some(corner)].into_iter());
            assert_eq!(painted(&canvas, 2, 2), expected, "{markers:?}");
        }
    }

    #[test]
    fn a_spike_survives_a_thousand_points_a_column() {
        let mut canvas = Canvas::new(10, 4, Markers::Braille);
        let (columns, rows) = canvas.size();
        let place = |index: usize, y: f64| Some((index as f64 / 20_000.0 * (columns - 1) as f64, y));
        let lowest = (rows - 1) as f64;
        canvas.line(0, (0..20_000).map(|index| place(index, if index == 12_345 { 0.0 } else { lowest })));
        let drawn = painted(&canvas, 10, 4);
        assert_eq!(drawn[0].chars().filter(|sign| *sign != ' ').count(), 1, "{drawn:?}");
    }

    proptest! {
        #[test]
        fn every_value_inside_leaves_a_dot_at_its_height(
            values in proptest::collection::vec(0f64..15.0, 1..200)
        ) {
            let mut canvas = Canvas::new(5, 4, Markers::Braille);
            let (columns, _) = canvas.size();
            let scale = (columns - 1) as f64 / values.len() as f64;
            canvas.line(0, values.iter().enumerate().map(|(index, y)| Some((index as f64 * scale, *y))));
            for (index, y) in values.iter().enumerate() {
                let column = (index as f64 * scale).round() as usize;
                let row = y.round() as usize;
                let (_, dots) = canvas.cells[row / 4 * (columns / 2) + column / 2];
                prop_assert!(dots & bit(Markers::Braille, column % 2, row % 4) != 0);
            }
        }
    }
}
