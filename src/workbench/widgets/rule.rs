//! Lines between parts.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::theme::{Role, Theme};

/// A rule along the top row of `area`.
pub fn horizontal(area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let row = Rect { height: area.height.min(1), ..area }.intersection(buffer.area);
    for position in row.positions() {
        buffer[position].set_symbol("─").set_style(theme.style(Role::Rule));
    }
}

/// A rule along the left column of `area`.
pub fn vertical(area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let column = Rect { width: area.width.min(1), ..area }.intersection(buffer.area);
    for position in column.positions() {
        buffer[position].set_symbol("│").set_style(theme.style(Role::Rule));
    }
}
