//! Boxes over the panes.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::footer::role_of;
use super::help;
use super::layout::centered;
use crate::app::{
    App, Chooser, ConfirmBox, Layer, Message, Pick, PromptBox, Severity, Standing, palette_commands,
};
use crate::command::Match;
use crate::theme::Role;
use crate::widgets::Scroll;
use crate::widgets::text::{self, Piece, Wrap};

/// Widest box with text to read.
const READING: u16 = 100;

/// Widest box that asks for a line of text.
const PROMPT: u16 = 72;

pub(super) fn boxes(app: &App, area: Rect, buffer: &mut Buffer) {
    for (index, layer) in app.layers.iter().enumerate() {
        let top = index + 1 == app.layers.len();
        match layer {
            Layer::Palette(chooser) => palette(app, chooser, area, buffer),
            Layer::Help(scroll) => help::help(app, scroll, area, buffer),
            Layer::Messages(scroll) => messages(app, scroll, area, buffer),
            Layer::Confirm(asked) => confirm(app, asked, area, buffer),
            Layer::Message(shown, scroll) => message(app, shown, scroll, area, buffer),
            Layer::Prompt(asked) => prompt(app, asked, top, area, buffer),
            Layer::Pick(offered, chooser) => pick(app, offered, chooser, area, buffer),
        }
    }
}

/// Draws an empty box with a heading; the area inside it.
pub(super) fn frame(app: &App, area: Rect, buffer: &mut Buffer, title: &str, title_role: Role) -> Rect {
    let theme = &app.theme;
    let area = area.intersection(buffer.area);
    let (popup, rule) = (theme.style(Role::Popup), theme.style(Role::PopupRule));
    for position in area.positions() {
        buffer[position].reset();
        buffer[position].set_symbol(" ").set_style(theme.style(Role::Screen)).set_style(popup);
    }
    if area.width < 3 || area.height < 3 {
        return Rect { width: 0, height: 0, ..area };
    }
    let (left, right, top, bottom) = (area.left(), area.right() - 1, area.top(), area.bottom() - 1);
    for x in left..=right {
        for y in [top, bottom] {
            buffer[(x, y)].set_symbol("─").set_style(rule);
        }
    }
    for y in top..=bottom {
        for x in [left, right] {
            buffer[(x, y)].set_symbol("│").set_style(rule);
        }
    }
    for (x, y, corner) in [(left, top, "╭"), (right, top, "╮"), (left, bottom, "╰"), (right, bottom, "╯")]
    {
        buffer[(x, y)].set_symbol(corner);
    }
    if !title.is_empty() {
        let x = text::put(buffer, left + 2, top, right - 1, " ", rule);
        let x = text::put(buffer, x, top, right - 1, title, popup.patch(theme.style(title_role)));
        text::put(buffer, x, top, right, " ", rule);
    }
    Rect { x: left + 2, y: top + 1, width: area.width.saturating_sub(4), height: area.height - 2 }
}

fn on_popup(app: &App, role: Role) -> Style {
    let popup = app.theme.style(Role::Popup);
    let style = app.theme.style(role);
    Style {
        bg: if matches!(role, Role::Selection | Role::ButtonFocus) { style.bg } else { popup.bg },
        ..style
    }
}

/// Columns of the text in a [`reading`] box.
pub(super) fn reading_width(area: Rect) -> u16 {
    READING.min(area.width.saturating_sub(4)).saturating_sub(4)
}

/// Text in a box as tall as it needs.
pub(super) fn reading(
    app: &App,
    (title, title_role): (&str, Role),
    pieces: &[Piece<'_>],
    wrap: Wrap,
    scroll: &Scroll,
    area: Rect,
    buffer: &mut Buffer,
) {
    let width = READING.min(area.width.saturating_sub(4));
    let lines = text::layout(pieces, reading_width(area), wrap);
    let height = (lines.len() as u16).saturating_add(2).min(area.height.saturating_sub(2));
    let inner = frame(app, centered(area, width, height), buffer, title, title_role);
    text::draw_lines(buffer, inner, &lines, scroll, on_popup(app, Role::Focus));
}

fn message(app: &App, shown: &Message, scroll: &Scroll, area: Rect, buffer: &mut Buffer) {
    let role = role_of(shown.severity);
    let title = if shown.severity == Severity::Note {
        shown.title.clone()
    } else {
        format!("{} {}", shown.severity.glyph(), shown.title)
    };
    let title_role = if shown.severity == Severity::Note { Role::PopupTitle } else { role };
    let pieces = [Piece::new(shown.text.as_str(), on_popup(app, Role::Popup))];
    reading(app, (&title, title_role), &pieces, Wrap::Drawn, scroll, area, buffer);
}

fn messages(app: &App, scroll: &Scroll, area: Rect, buffer: &mut Buffer) {
    let mut pieces = Vec::new();
    for flash in app.messages.all() {
        if !pieces.is_empty() {
            pieces.push(Piece::new("\n", Style::new()));
        }
        let time = format!("{}  ", app.context.clock(flash.time));
        pieces.push(Piece::new(time, on_popup(app, Role::Muted)));
        let sign = format!("{} ", flash.severity.glyph());
        pieces.push(Piece::new(sign, on_popup(app, role_of(flash.severity))));
        pieces.push(Piece::new(flash.text.as_str(), on_popup(app, Role::Popup)));
    }
    if pieces.is_empty() {
        pieces.push(Piece::new("No messages yet.", on_popup(app, Role::Muted)));
    }
    reading(app, ("Messages", Role::PopupTitle), &pieces, Wrap::Words, scroll, area, buffer);
}

fn confirm(app: &App, asked: &ConfirmBox, area: Rect, buffer: &mut Buffer) {
    let confirm = &asked.confirm;
    let longest = confirm.lines.iter().map(|line| text::width(line)).max().unwrap_or(0);
    let width =
        (longest.max(text::width(&confirm.title) + 4).max(30) as u16 + 4).min(area.width.saturating_sub(4));
    let pieces = [Piece::new(confirm.lines.join("\n"), on_popup(app, Role::Popup))];
    let lines = text::layout(&pieces, width.saturating_sub(4), Wrap::Words);
    let height = lines.len() as u16 + 4;
    let inner = frame(app, centered(area, width, height), buffer, &confirm.title, Role::PopupTitle);
    let text_area = Rect { height: inner.height.saturating_sub(2), ..inner };
    text::draw_lines(buffer, text_area, &lines, &Scroll::default(), on_popup(app, Role::Focus));
    if inner.height == 0 {
        return;
    }
    let y = inner.bottom() - 1;
    let mut end = inner.right();
    for (word, focused) in [(confirm.yes.as_str(), asked.yes), ("No", !asked.yes)] {
        let (label, role) = if focused {
            (format!("[ {word} ]"), Role::ButtonFocus)
        } else {
            (format!("  {word}  "), Role::Button)
        };
        end = text::put_right(buffer, inner.x, y, end, &label, on_popup(app, role)).saturating_sub(2);
    }
}

fn prompt(app: &App, asked: &PromptBox, focused: bool, area: Rect, buffer: &mut Buffer) {
    let (widest, pieces, wrap) = match &asked.standing {
        Standing::Open => {
            let hint = Piece::new(asked.prompt.hint.as_str(), on_popup(app, Role::Muted));
            (PROMPT, vec![hint], Wrap::Words)
        }
        Standing::Checked => {
            (PROMPT, vec![Piece::new("checking …", on_popup(app, Role::Muted))], Wrap::Words)
        }
        Standing::Refused(reason) => {
            let title = format!("{} {}\n", reason.severity.glyph(), reason.title);
            let pieces = vec![
                Piece::new(title, on_popup(app, role_of(reason.severity))),
                Piece::new(reason.text.as_str(), on_popup(app, Role::Popup)),
            ];
            (READING, pieces, Wrap::Drawn)
        }
    };
    let width = widest.min(area.width.saturating_sub(4));
    let below = if pieces.iter().all(|piece| piece.text.is_empty()) {
        Vec::new()
    } else {
        text::layout(&pieces, width.saturating_sub(4), wrap)
    };
    let place = centered(area, width, (below.len() as u16).saturating_add(3));
    let inner = frame(app, place, buffer, &asked.prompt.title, Role::PopupTitle);
    asked.line.draw(
        Rect { height: inner.height.min(1), ..inner },
        buffer,
        &app.theme,
        focused && !asked.is_checked(),
    );
    let rest = Rect { y: inner.y + 1, height: inner.height.saturating_sub(1), ..inner };
    text::draw_lines(buffer, rest, &below, &Scroll::default(), on_popup(app, Role::Focus));
}

/// A row of a list that is narrowed by typing.
struct Choice {
    /// What matched letters are counted in.
    label: String,
    detail: String,
    keys: String,
    dimmed: bool,
}

fn palette(app: &App, chooser: &Chooser, area: Rect, buffer: &mut Buffer) {
    // Keys of the pane below, not of this box.
    let mut contexts = app.panes[app.context.pane].contexts(&app.context);
    contexts.push(crate::keymap::KeyContext::Global);
    let commands: Vec<_> = palette_commands().collect();
    let choice = |index: usize| {
        let command = commands.get(index)?;
        let reason = app.unavailable_below(*command);
        Some(Choice {
            label: command.name().to_owned(),
            dimmed: reason.is_some(),
            detail: reason.unwrap_or_else(|| command.entry().doc.to_owned()),
            keys: app.keymap.label_of(&contexts, *command).unwrap_or_default(),
        })
    };
    choose(app, "Commands", chooser, 24, choice, area, buffer);
}

fn pick(app: &App, offered: &Pick, chooser: &Chooser, area: Rect, buffer: &mut Buffer) {
    let longest = offered.items.iter().map(|item| text::width(&item.label)).max().unwrap_or(0);
    let choice = |index: usize| {
        let item = offered.items.get(index)?;
        Some(Choice {
            label: item.label.clone(),
            detail: item.detail.clone(),
            keys: String::new(),
            dimmed: false,
        })
    };
    choose(app, &offered.title, chooser, longest.min(50) as u16, choice, area, buffer);
}

fn choose(
    app: &App,
    title: &str,
    chooser: &Chooser,
    label_width: u16,
    choice: impl Fn(usize) -> Option<Choice>,
    area: Rect,
    buffer: &mut Buffer,
) {
    let width = 96.min(area.width.saturating_sub(4));
    let height = 24.min(area.height.saturating_sub(2)).min(chooser.total().saturating_add(4) as u16);
    let inner = frame(app, centered(area, width, height), buffer, title, Role::PopupTitle);
    if inner.height < 3 {
        return;
    }
    let field = Rect { x: inner.x + 2, width: inner.width.saturating_sub(2), height: 1, ..inner };
    text::put(buffer, inner.x, inner.y, inner.right(), ">", on_popup(app, Role::Focus));
    chooser.line.draw(field, buffer, &app.theme, true);
    let list = Rect { y: inner.y + 2, height: inner.height - 2, ..inner };
    if chooser.matches.is_empty() {
        text::put(
            buffer,
            list.x,
            list.y,
            list.right(),
            "no matches; ctrl-u clears",
            on_popup(app, Role::Muted),
        );
    }
    let visible = chooser.list.visible(list.height);
    for (position, y) in visible.zip(list.top()..) {
        let Some(found) = chooser.matches.get(position) else { break };
        let Some(row) = choice(found.index) else { continue };
        let selected = chooser.list.selected() == Some(position);
        let style = |role| if selected { on_popup(app, Role::Selection) } else { on_popup(app, role) };
        buffer.set_style(Rect { y, height: 1, ..list }, style(Role::Popup));
        let marker = if selected { "▸" } else { " " };
        let x = text::put(buffer, list.x, y, list.right(), marker, style(Role::Focus)) + 1;
        let label_end = (x + label_width).min(list.right());
        text::put(
            buffer,
            x,
            y,
            label_end,
            &row.label,
            style(if row.dimmed { Role::Muted } else { Role::Strong }),
        );
        highlight(app, found, &row.label, (x, y, label_end), buffer);
        let keys = text::put_right(buffer, label_end, y, list.right(), &row.keys, style(Role::Key));
        let detail_end = if row.keys.is_empty() { list.right() } else { keys.saturating_sub(2) };
        text::put(buffer, label_end + 2, y, detail_end, &row.detail, style(Role::Muted));
    }
}

/// Underlines the letters of a label that were typed.
fn highlight(app: &App, found: &Match, label: &str, (x, y, end): (u16, u16, u16), buffer: &mut Buffer) {
    let style = app.theme.style(Role::Focus).add_modifier;
    for position in &found.positions {
        let before: String = label.chars().take(*position as usize).collect();
        let column = x + text::width(&before) as u16;
        if (*position as usize) < label.chars().count() && column < end {
            let area = Rect { x: column, y, width: 1, height: 1 };
            buffer.set_style(area, Style::new().add_modifier(style).underlined());
        }
    }
}
