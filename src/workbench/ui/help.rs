//! Help: the keys that work here, by context.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::boxes::{reading, reading_width};
use crate::app::App;
use crate::command::table;
use crate::keymap::KeyContext;
use crate::keymap::key::sequence_label;
use crate::theme::Role;
use crate::widgets::Scroll;
use crate::widgets::text::{Piece, Wrap, layout, width};

/// Column in which the meanings of the keys begin.
const INDENT: usize = 22;

pub(super) fn help(app: &App, scroll: &Scroll, area: Rect, buffer: &mut Buffer) {
    let theme = &app.theme;
    let popup = theme.style(Role::Popup);
    let style = |role| ratatui::style::Style { bg: popup.bg, ..theme.style(role) };
    let pane = app.context.pane;
    let mut contexts = app.panes[pane].contexts(&app.context);
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
        // In the order of the table, which groups related commands.
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
            pieces.push(Piece::new(format!("\n  {keys}"), style(Role::Key)));
            let reason = app.unavailable_below(entry.command);
            let role = if reason.is_some() { Role::Muted } else { Role::Popup };
            let mut said = vec![Piece::new(entry.doc, style(role))];
            if let Some(reason) = reason {
                said.push(Piece::new(format!(" (not now: {reason})"), style(Role::Muted)));
            }
            let room = reading_width(area).saturating_sub(INDENT as u16);
            for (index, line) in layout(&said, room, Wrap::Words).into_iter().enumerate() {
                let before = if index == 0 && 2 + width(&keys) < INDENT {
                    " ".repeat(INDENT - 2 - width(&keys))
                } else {
                    format!("\n{}", " ".repeat(INDENT))
                };
                pieces.push(Piece::new(before, popup));
                pieces.extend(line.spans.into_iter().map(|span| Piece::new(span.content, span.style)));
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
        KeyContext::Pane(pane) => pane.title(),
    }
}
