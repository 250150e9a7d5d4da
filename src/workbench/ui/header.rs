//! The header: project, panes, and the state of the machine.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use strum::IntoEnumIterator;

use crate::app::App;
use crate::panes::PaneId;
use crate::theme::Role;
use crate::ui::layout::WIDE;
use crate::widgets::text;

pub(super) fn header(app: &App, area: Rect, buffer: &mut Buffer) {
    let (theme, y) = (&app.theme, area.y);
    let (tabs_start, gap) = if area.width >= WIDE { (35, "   ") } else { (21, "  ") };
    let tabs_start = area.x + tabs_start;
    let mut x = text::put(buffer, area.x + 1, y, tabs_start, "luthier", theme.style(Role::Project));
    x = text::put(buffer, x, y, tabs_start, " · ", theme.style(Role::Muted));
    text::put(buffer, x, y, tabs_start - 1, &app.context.project_name, theme.style(Role::Strong));
    x = tabs_start;
    for pane in PaneId::iter() {
        let role = if pane == app.context.pane { Role::TabActive } else { Role::Tab };
        let title = format!("{} {}", pane.number(), pane.title());
        x = text::put(buffer, x, y, area.right(), &title, theme.style(role));
        x = text::put(buffer, x, y, area.right(), gap, theme.style(Role::Screen));
    }
    let status = app.panes[app.context.pane].status(&app.context);
    let status = status.unwrap_or_else(|| app.context.device.clone());
    text::put_right(buffer, x, y, area.right().saturating_sub(1), &status, theme.style(Role::Muted));
}
