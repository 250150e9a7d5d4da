//! Help: the keys that work here, by where they hold.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::boxes::reading;
use crate::app::App;
use crate::command::table;
use crate::keymap::KeyContext;
use crate::keymap::key::sequence_label;
use crate::theme::Role;
use crate::widgets::Scroll;
use crate::widgets::text::{Piece, Wrap, width};

/// Columns of the keys.
const KEYS: usize = 20;

pub(super) fn help(app: &App, scroll: &Scroll, area: Rect, buffer: &mut Buffer) {
    let theme = &app.theme;
    let popup = theme.style(Role::Popup);
    let style = |role| ratatui::style::Style { bg: popup.bg, ..theme.style(role) };
    let pane = app.context.pane;
    let mut contexts = app.panes.contexts(pane, &app.context);
    contexts.push(KeyContext::Global);
    let mut pieces = Vec::new();
    for context in contexts {
        let bindings = app.keymap.bindings(context);
        if bindings.is_empty() {
            continue;
        }
        if !pieces.is_empty() {
            pieces.push(Piece::new("\n\n", popup));
        }
        pieces.push(Piece::new(heading(context), style(Role::Title)));
        // In the order of the table, which puts what belongs together beside each other.
        for entry in table() {
            let keys: Vec<String> = bindings
                .iter()
                .filter(|(_, command)| *command == entry.command)
                .map(|(keys, _)| sequence_label(keys))
                .collect();
            if keys.is_empty() {
                continue;
            }
            let keys = keys.join("  ");
            let padding = " ".repeat(KEYS.saturating_sub(width(&keys)).max(2));
            pieces.push(Piece::new(format!("\n  {keys}{padding}"), style(Role::Key)));
            let reason = app.unavailable(entry.command);
            let role = if reason.is_some() { Role::Muted } else { Role::Popup };
            pieces.push(Piece::new(entry.doc, style(role)));
            if let Some(reason) = reason {
                pieces.push(Piece::new(format!(" (not now: {reason})"), style(Role::Muted)));
            }
        }
    }
    let title = format!("Keys · {}", pane.title());
    reading(app, (&title, Role::PopupTitle), &pieces, Wrap::Words, scroll, area, buffer);
}

fn heading(context: KeyContext) -> &'static str {
    match context {
        KeyContext::Global => "Everywhere",
        KeyContext::List => "Lists and texts",
        KeyContext::Chart => "Chart",
        KeyContext::Input => "While typing",
        KeyContext::Modal => "Boxes",
        KeyContext::Search => "Search",
        KeyContext::Data => "Data",
        KeyContext::Train => "Train",
        KeyContext::Sweep => "Sweep",
        KeyContext::Review => "Review",
    }
}
