//! The footer: keys that work here and the last message. Above it, while keys are pending, the keys that may
//! follow them.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::boxes::frame;
use crate::app::{App, Flash, Layer, Severity};
use crate::command::{AppCommand, Command, InputCommand, ListCommand, ModalCommand, ViewCommand};
use crate::keymap::key::sequence_label;
use crate::theme::Role;
use crate::widgets::text::{self, Piece, Wrap};

/// Most rows of a message that is too long for the footer. The list of messages has all of it.
const MESSAGE: u16 = 4;

pub(super) fn footer(app: &App, area: Rect, buffer: &mut Buffer) {
    let (theme, y) = (&app.theme, area.y);
    let end = area.right().saturating_sub(1);
    let mut hints_end = end;
    if !app.pending.is_empty() {
        let typed = format!("{} …", sequence_label(&app.pending));
        hints_end = text::put_right(buffer, area.x, y, end, &typed, theme.style(Role::Focus)) - 1;
    } else if let Some(flash) = app.messages.current()
        && let line = spoken(flash)
        && fits(&line, area)
    {
        let start = text::put_right(buffer, area.x + 1, y, end, &line, theme.style(role_of(flash.severity)));
        hints_end = start.saturating_sub(2);
    }
    let contexts = app.contexts();
    let help = app.layers.is_empty().then_some(Command::App(AppCommand::Help));
    let mut x = area.x + 1;
    let reserved = help.and_then(|help| hint_width(app, help)).unwrap_or(0);
    for command in hints(app) {
        let Some(width) = hint_width(app, command) else { continue };
        if x + width + reserved > hints_end {
            break;
        }
        let Some(label) = app.keymap.label_of(&contexts, command) else { continue };
        x = hint(app, buffer, x, y, hints_end, &label, command);
    }
    if let Some(help) = help
        && x + reserved <= hints_end + 2
        && let Some(label) = app.keymap.label_of(&contexts, help)
    {
        hint(app, buffer, x, y, hints_end, &label, help);
    }
}

/// The message as it is shown, with its sign.
fn spoken(flash: &Flash) -> String {
    format!("{} {}", flash.severity.glyph(), flash.text)
}

/// Whether a message fits in the footer. It may take the place of hints.
fn fits(line: &str, footer: Rect) -> bool {
    text::width(line) + 2 <= usize::from(footer.width)
}

/// A message that is too long for the footer, on the last rows of the pane.
pub(super) fn message(app: &App, footer: Rect, body: Rect, buffer: &mut Buffer) {
    let Some(flash) = app.messages.current() else { return };
    let line = spoken(flash);
    if fits(&line, footer) {
        return;
    }
    let (popup, role) = (app.theme.style(Role::Popup), app.theme.style(role_of(flash.severity)));
    let style = Style { bg: popup.bg, ..role };
    let width = body.width.saturating_sub(2);
    let mut lines = text::layout(&[Piece::new(line, style)], width, Wrap::Words);
    let most = usize::from(MESSAGE.min(body.height));
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            *last = format!("{}…", text::fit(last.to_string().trim_end(), usize::from(width) - 1)).into();
            last.style = style;
        }
    }
    let height = lines.len() as u16;
    let area = Rect { y: body.bottom() - height, height, ..body };
    for position in area.positions() {
        buffer[position].reset();
        buffer[position].set_style(app.theme.style(Role::Screen)).set_style(popup);
    }
    for (line, y) in lines.iter().zip(area.top()..) {
        buffer.set_line(area.x + 1, y, line, width);
    }
}

/// The commands worth showing, most useful first: those of the topmost box, or of the pane.
fn hints(app: &App) -> Vec<Command> {
    let commands = match app.layers.last() {
        None => app.panes[app.context.pane].hints(&app.context),
        Some(Layer::Palette(_) | Layer::Pick(..)) => vec![
            Command::Input(InputCommand::Accept),
            Command::Input(InputCommand::Down),
            Command::Input(InputCommand::Up),
            Command::Input(InputCommand::Cancel),
        ],
        Some(Layer::Prompt(asked)) if asked.is_checked() => vec![Command::Input(InputCommand::Cancel)],
        Some(Layer::Prompt(_)) => {
            vec![Command::Input(InputCommand::Accept), Command::Input(InputCommand::Cancel)]
        }
        Some(Layer::Confirm(_)) => {
            vec![Command::Modal(ModalCommand::Yes), Command::Modal(ModalCommand::No)]
        }
        Some(Layer::Help(_) | Layer::Messages(_) | Layer::Message(..)) => vec![
            Command::View(ViewCommand::Back),
            Command::List(ListCommand::Down),
            Command::List(ListCommand::Up),
            Command::List(ListCommand::PageDown),
        ],
    };
    commands.into_iter().filter(|command| app.unavailable(*command).is_none()).collect()
}

fn hint_width(app: &App, command: Command) -> Option<u16> {
    let label = app.keymap.label_of(&app.contexts(), command)?;
    Some((text::width(&label) + 1 + text::width(command.entry().label) + 2) as u16)
}

fn hint(app: &App, buffer: &mut Buffer, x: u16, y: u16, end: u16, keys: &str, command: Command) -> u16 {
    let x = text::put(buffer, x, y, end, keys, app.theme.style(Role::Key));
    let x = text::put(buffer, x + 1, y, end, command.entry().label, app.theme.style(Role::Hint));
    x + 2
}

/// The role that messages of a severity are written in.
pub(super) fn role_of(severity: Severity) -> Role {
    match severity {
        Severity::Note => Role::Note,
        Severity::Success => Role::Success,
        Severity::Warning => Role::Warning,
        Severity::Error => Role::Error,
    }
}

/// The box that shows which keys may follow those pending.
pub(super) fn pending(app: &App, area: Rect, buffer: &mut Buffer) {
    if app.pending.is_empty() {
        return;
    }
    let following = app.keymap.following(&app.contexts(), &app.pending);
    // Keys with the same command share a line, in the place of the first.
    let mut lines: Vec<(String, Option<Command>)> = Vec::new();
    for next in following {
        let same = lines.iter_mut().find(|(_, command)| command.is_some() && *command == next.command);
        match same {
            Some((keys, _)) => *keys = format!("{keys} {}", next.key.label()),
            None => lines.push((next.key.label(), next.command)),
        }
    }
    let lines: Vec<(String, &str)> = lines
        .into_iter()
        .map(|(keys, command)| (keys, command.map_or("…", |command| command.entry().doc)))
        .collect();
    let keys = lines.iter().map(|(key, _)| text::width(key)).max().unwrap_or(0) as u16;
    let docs = lines.iter().map(|(_, doc)| text::width(doc)).max().unwrap_or(0) as u16;
    let width = (keys + docs + 6).min(area.width);
    let height = (lines.len() as u16 + 2).min(area.height);
    let place = Rect { x: area.right() - width, y: area.bottom() - height, width, height };
    let inner = frame(app, place, buffer, &sequence_label(&app.pending), Role::PopupTitle);
    for ((key, doc), y) in lines.iter().zip(inner.top()..inner.bottom()) {
        text::put_right(
            buffer,
            inner.x,
            y,
            inner.x + keys,
            key,
            app.theme.style(Role::Popup).patch(app.theme.style(Role::Key)),
        );
        text::put(buffer, inner.x + keys + 2, y, inner.right(), doc, app.theme.style(Role::Popup));
    }
}
