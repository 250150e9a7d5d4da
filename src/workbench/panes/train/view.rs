//! How the train pane looks.

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
        "Runs, their curves and what would run next.",
        area.width.saturating_sub(1).into(),
        theme.style(Role::Muted),
    );
}
