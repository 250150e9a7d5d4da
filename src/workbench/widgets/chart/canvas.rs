//! Dots of braille cells, two across and four down, each cell owned by the curve painted last.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Bits of a braille cell's dots, by row and column.
const DOTS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];

pub(super) struct Canvas {
    columns: usize,
    rows: usize,
    /// Owner and dots of each cell, row by row.
    cells: Vec<(usize, u8)>,
}

impl Canvas {
    pub(super) fn new(width: u16, height: u16) -> Self {
        let cells = vec![(0, 0); usize::from(width) * usize::from(height)];
        Self { columns: usize::from(width) * 2, rows: usize::from(height) * 4, cells }
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
        let mut owned = vec![false; self.cells.len()];
        for (column, span) in spans.into_iter().enumerate() {
            let Some((top, bottom)) = span else { continue };
            let lowest = (self.rows - 1) as f64;
            let top = top.round().clamp(0.0, lowest) as usize;
            let bottom = bottom.round().clamp(0.0, lowest) as usize;
            for row in top..=bottom {
                let index = row / 4 * (self.columns / 2) + column / 2;
                let cell = &mut self.cells[index];
                if !std::mem::replace(&mut owned[index], true) {
                    *cell = (owner, 0);
                }
                cell.1 |= DOTS[row % 4][column % 2];
            }
        }
    }

    /// Widens the spans of the columns that the line between two points crosses.
    fn join(&self, spans: &mut [Option<(f64, f64)>], from: (f64, f64), to: (f64, f64)) {
        let last_column = (self.columns - 1) as f64;
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
            let width = self.columns / 2;
            let x = area.x + (index % width) as u16;
            let y = area.y + (index / width) as u16;
            if let Some(sign) = char::from_u32(0x2800 + u32::from(*dots)) {
                buffer[(x, y)].set_char(sign).set_style(style(*owner));
            }
        }
    }
}

fn widen(span: &mut Option<(f64, f64)>, value: f64) {
    *span = Some(match *span {
        Some((top, bottom)) => (top.min(value), bottom.max(value)),
        None => (value, value),
    });
}
