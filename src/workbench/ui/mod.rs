//! The whole screen, drawn from the state: pure, reads no clock, does no IO.
//!
//! ```text
//!  luthier · tickets        1 Data   2 Train   3 Sweep   4 Review        cpu · 2 cores   header
//! ─────────────────────────────────────────────────────────────────────────────────────
//!                                                                                        the pane's view,
//!                                                                                        boxes over it
//! ─────────────────────────────────────────────────────────────────────────────────────
//!  ↵ open  n new run  ? help                                    ✓ luthier.toml read again  footer
//! ```

mod ascii;
mod boxes;
mod footer;
mod header;
mod help;
pub mod layout;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::app::App;
use crate::theme::{Markers, Role};
use crate::widgets::{rule, text};

/// Smallest screen that is drawn.
pub const SMALLEST: (u16, u16) = (80, 24);

pub fn render(app: &App, area: Rect, buffer: &mut Buffer) {
    buffer.set_style(area, app.theme.style(Role::Screen));
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        too_small(app, area, buffer);
    } else {
        let screen = layout::Screen::new(area);
        header::header(app, screen.header, buffer);
        rule::horizontal(screen.upper_rule, buffer, &app.theme);
        app.panes[app.context.pane].view(&app.context, screen.body, buffer, &app.theme);
        rule::horizontal(screen.lower_rule, buffer, &app.theme);
        footer::footer(app, screen.footer, buffer);
        footer::message(app, screen.footer, screen.body, buffer);
        boxes::boxes(app, screen.body, buffer);
        footer::pending(app, screen.body, buffer);
    }
    if app.theme.markers() == Markers::Ascii {
        ascii::fold(buffer);
    }
}

fn too_small(app: &App, area: Rect, buffer: &mut Buffer) {
    let lines = [
        format!("This terminal has {}×{} cells.", area.width, area.height),
        format!("Luthier needs {}×{}.", SMALLEST.0, SMALLEST.1),
        "Make it larger, or leave with q. Runs continue.".to_owned(),
    ];
    for (line, y) in lines.iter().zip(area.top()..area.bottom()) {
        text::put(buffer, area.x, y, area.right(), line, app.theme.style(Role::Screen));
    }
}

#[cfg(test)]
mod tests;
