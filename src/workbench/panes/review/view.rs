//! How the review pane looks.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::state::State;
use crate::app::Context;
use crate::theme::{Role, Theme};

/// Draws the pane. Pure: reads nothing but its arguments.
pub fn view(_state: &State, _context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    buffer.set_stringn(
        area.x + 1,
        area.y,
        "Base and tuned answers side by side.",
        area.width.saturating_sub(1).into(),
        theme.style(Role::Muted),
    );
}
