//! The field for typing a prompt: several lines, with a history of earlier prompts.

use luthier_core::text;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::widgets::Widget;
use ratatui_textarea::{CursorMove, TextArea, WrapMode};

use crate::command::InputCommand;
use crate::keymap::Key;
use crate::theme::{Role, Theme};
use crate::widgets::text::{Piece, Wrap, layout};

/// A prompt being typed. All input is cleaned first, so that the prompt sent is the one seen.
#[derive(Clone, Debug)]
pub struct PromptField {
    area: TextArea<'static>,
    recalled: Option<usize>,
    draft: String,
}

impl PromptField {
    /// A field that holds `text`, with the cursor at its end.
    pub fn new(text: &str) -> Self {
        Self { area: area(text), recalled: None, draft: String::new() }
    }

    pub fn value(&self) -> String {
        self.area.lines().join("\n")
    }

    /// Types a key; returns whether it is text.
    pub fn key(&mut self, key: Key) -> bool {
        let Some(character) = key.text() else { return false };
        let mut bytes = [0; 4];
        if text::clean(character.encode_utf8(&mut bytes)).is_empty() {
            return false;
        }
        self.area.insert_char(character);
        true
    }

    /// Types pasted text, line ends included.
    pub fn paste(&mut self, pasted: &str) {
        self.area.insert_str(text::clean(&pasted.replace("\r\n", "\n").replace('\r', "\n")));
    }

    /// Edits the text; at the first and last line, moves through `history`, oldest first. Returns whether it did
    /// anything.
    pub fn apply(&mut self, command: InputCommand, history: &[String]) -> bool {
        match command {
            InputCommand::Newline => self.area.insert_newline(),
            InputCommand::Left => self.area.move_cursor(CursorMove::Back),
            InputCommand::Right => self.area.move_cursor(CursorMove::Forward),
            InputCommand::WordLeft => self.area.move_cursor(CursorMove::WordBack),
            InputCommand::WordRight => self.area.move_cursor(CursorMove::WordForward),
            InputCommand::Start => self.area.move_cursor(CursorMove::Head),
            InputCommand::End => self.area.move_cursor(CursorMove::End),
            InputCommand::DeleteBack => return self.area.delete_char(),
            InputCommand::DeleteForward => return self.area.delete_next_char(),
            InputCommand::DeleteWord => return self.area.delete_word(),
            InputCommand::DeleteToStart => return self.area.delete_line_by_head(),
            InputCommand::DeleteToEnd => return self.area.delete_line_by_end(),
            InputCommand::Yank => return self.area.paste(),
            InputCommand::Up => {
                let before = self.area.cursor();
                self.area.move_cursor(CursorMove::Up);
                return self.area.cursor() != before || self.recall(true, history);
            }
            InputCommand::Down => {
                let before = self.area.cursor();
                self.area.move_cursor(CursorMove::Down);
                return self.area.cursor() != before || self.recall(false, history);
            }
            InputCommand::Accept | InputCommand::Cancel | InputCommand::Editor | InputCommand::Complete => {
                return false;
            }
        }
        true
    }

    fn recall(&mut self, older: bool, history: &[String]) -> bool {
        let target = match (self.recalled, older) {
            (None, false) => return false,
            (None, true) => history.len().checked_sub(1),
            (Some(index), true) => Some(index.saturating_sub(1)),
            (Some(index), false) => Some(index + 1).filter(|next| *next < history.len()),
        };
        if self.recalled.is_none() {
            self.draft = self.value();
        }
        let text = target.and_then(|index| history.get(index)).unwrap_or(&self.draft);
        self.area = area(text);
        self.recalled = target;
        true
    }

    /// Rows it needs in `width` columns.
    pub fn height(&self, width: u16) -> u16 {
        // One column less, for the cursor behind the last character.
        let pieces = [Piece::new(self.value(), Style::new())];
        layout(&pieces, width.saturating_sub(1), Wrap::Words).len() as u16
    }

    /// Draws it, its cursor as a reversed cell.
    pub fn draw(&self, area: Rect, buffer: &mut Buffer, theme: &Theme) {
        let area = area.intersection(buffer.area);
        Widget::render(&self.area, area, buffer);
        for position in area.positions() {
            let cell = &mut buffer[position];
            let is_cursor = cell.modifier.contains(Modifier::REVERSED);
            cell.modifier = Modifier::empty();
            cell.set_style(theme.style(if is_cursor { Role::InputCursor } else { Role::Input }));
        }
    }
}

fn area(text: &str) -> TextArea<'static> {
    let lines = text::clean(text).split('\n').map(str::to_owned).collect();
    let mut area = TextArea::new(lines);
    area.set_wrap_mode(WrapMode::WordOrGlyph);
    // The theme's styles are applied afterwards; only the cursor's cell needs a mark here.
    area.set_cursor_line_style(Style::new());
    area.set_cursor_style(Style::new().add_modifier(Modifier::REVERSED));
    area.move_cursor(CursorMove::Bottom);
    area.move_cursor(CursorMove::End);
    area
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::theme::Library;

    fn typed(field: &mut PromptField, text: &str) {
        for character in text.chars() {
            field.key(Key::char(character));
        }
    }

    #[test]
    fn several_lines_are_typed_and_edited() {
        let mut field = PromptField::new("");
        typed(&mut field, "one");
        field.apply(InputCommand::Newline, &[]);
        typed(&mut field, "two three");
        field.apply(InputCommand::DeleteWord, &[]);
        field.paste("a\r\nb\u{1b}[31m\u{202e}c");
        assert_eq!(field.value(), "one\ntwo a\nb[31mc");
        assert!(!field.key(Key::control('o')));
        assert!(!field.key(Key::char('\u{202e}')));
    }

    #[test]
    fn what_was_asked_before_comes_back() {
        let history = ["first".to_owned(), "second\nline".to_owned()];
        let mut field = PromptField::new("draft");
        field.apply(InputCommand::Up, &history);
        assert_eq!(field.value(), "second\nline");
        field.apply(InputCommand::Up, &history);
        assert_eq!(field.value(), "second\nline", "up within the text first");
        field.apply(InputCommand::Up, &history);
        assert_eq!(field.value(), "first");
        field.apply(InputCommand::Down, &history);
        field.apply(InputCommand::Down, &history);
        assert_eq!(field.value(), "draft");
        assert!(!field.apply(InputCommand::Down, &history));
    }

    #[test]
    fn it_wraps_and_shows_where_the_cursor_is() {
        let theme = Library::default().load("luthier").0;
        let field = PromptField::new("the quick brown fox");
        assert_eq!(field.height(11), 2);
        let area = Rect::new(0, 0, 11, 3);
        let mut buffer = Buffer::empty(area);
        field.draw(area, &mut buffer, &theme);
        let row = |y| (0..11).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        assert_eq!([row(0).trim_end().to_owned(), row(1).trim_end().to_owned()], ["the quick", "brown fox"]);
        let cursor = theme.style(Role::InputCursor);
        let marked: Vec<u16> = (0..11).filter(|x| Some(buffer[(*x, 1)].bg) == cursor.bg).collect();
        assert_eq!(marked, [9]);
    }
}
