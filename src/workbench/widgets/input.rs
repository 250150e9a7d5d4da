//! A line of text being typed.

use luthier_core::text;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use tui_input::{Input, InputRequest};
use unicode_segmentation::UnicodeSegmentation;

use crate::command::InputCommand;
use crate::keymap::Key;
use crate::theme::{Role, Theme};

/// A line of text with a cursor and what was entered before.
#[derive(Clone, Debug, Default)]
pub struct TextLine {
    input: Input,
    history: Vec<String>,
    recalled: Option<usize>,
    draft: String,
}

impl TextLine {
    /// A line that holds `text`, cleaned, with the cursor at its end.
    pub fn new(text: &str) -> Self {
        Self { input: Input::new(text::clean_line(text).into_owned()), ..Self::default() }
    }

    pub fn value(&self) -> &str {
        self.input.value()
    }

    /// Replaces what is typed; the cursor goes to its end.
    pub fn set(&mut self, text: &str) {
        self.input = Input::new(text::clean_line(text).into_owned());
    }

    /// Takes what is typed out, leaving the line empty, and remembers it.
    pub fn take(&mut self) -> String {
        let value = self.input.value_and_reset();
        if !value.is_empty() && self.history.last() != Some(&value) {
            self.history.push(value.clone());
        }
        self.recalled = None;
        value
    }

    /// Types a key; returns whether it is text.
    pub fn key(&mut self, key: Key) -> bool {
        let Some(character) = key.text() else { return false };
        self.input.handle(InputRequest::InsertChar(character));
        true
    }

    /// Types pasted text, cleaned, line ends as spaces.
    pub fn paste(&mut self, pasted: &str) {
        for character in text::clean_line(&pasted.replace(['\r', '\n'], " ")).chars() {
            self.input.handle(InputRequest::InsertChar(character));
        }
    }

    /// Edits; whether the command was one of editing a line.
    pub fn apply(&mut self, command: InputCommand) -> bool {
        let request = match command {
            InputCommand::Left => InputRequest::GoToPrevChar,
            InputCommand::Right => InputRequest::GoToNextChar,
            InputCommand::WordLeft => InputRequest::GoToPrevWord,
            InputCommand::WordRight => InputRequest::GoToNextWord,
            InputCommand::Start => InputRequest::GoToStart,
            InputCommand::End => InputRequest::GoToEnd,
            InputCommand::DeleteBack => InputRequest::DeletePrevChar,
            InputCommand::DeleteForward => InputRequest::DeleteNextChar,
            InputCommand::DeleteWord => InputRequest::DeletePrevWord,
            InputCommand::DeleteToStart => InputRequest::DeleteFromStart,
            InputCommand::DeleteToEnd => InputRequest::DeleteTillEnd,
            InputCommand::Yank => InputRequest::Yank,
            InputCommand::Up => return self.recall(true),
            InputCommand::Down => return self.recall(false),
            InputCommand::Accept
            | InputCommand::Cancel
            | InputCommand::Newline
            | InputCommand::Editor
            | InputCommand::Complete => return false,
        };
        self.input.handle(request);
        true
    }

    fn recall(&mut self, older: bool) -> bool {
        let target = match (self.recalled, older) {
            (None, true) => self.history.len().checked_sub(1),
            (None, false) => return false,
            (Some(index), true) => Some(index.saturating_sub(1)),
            (Some(index), false) => Some(index + 1).filter(|next| *next < self.history.len()),
        };
        if self.recalled.is_none() {
            self.draft = self.input.value().to_owned();
        }
        let text = target.and_then(|index| self.history.get(index)).unwrap_or(&self.draft).clone();
        self.recalled = target;
        self.input = Input::new(text);
        true
    }

    /// Draws the line in the first row of `area`, its cursor as a reversed cell where `focused`.
    pub fn draw(&self, area: Rect, buffer: &mut Buffer, theme: &Theme, focused: bool) {
        if area.is_empty() {
            return;
        }
        let width = usize::from(area.width);
        let scroll = self.input.visual_scroll(width.saturating_sub(1));
        let style = theme.style(Role::Input);
        buffer.set_style(Rect { height: 1, ..area }, style);
        let mut column = 0;
        for grapheme in self.value().graphemes(true) {
            let cells = unicode_width::UnicodeWidthStr::width(grapheme);
            if column >= scroll && column + cells <= scroll + width {
                buffer.set_string(area.x + (column - scroll) as u16, area.y, grapheme, style);
            }
            column += cells;
        }
        let cursor = self.input.visual_cursor().saturating_sub(scroll).min(width - 1);
        if focused {
            let cell = Rect { x: area.x + cursor as u16, width: 1, height: 1, ..area };
            buffer.set_style(cell, theme.style(Role::InputCursor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readline_keys_edit() {
        let mut line = TextLine::new("one two three");
        line.apply(InputCommand::DeleteWord);
        assert_eq!(line.value(), "one two ");
        line.apply(InputCommand::Start);
        line.apply(InputCommand::DeleteToEnd);
        assert_eq!(line.value(), "");
        line.apply(InputCommand::Yank);
        assert_eq!(line.value(), "one two ");
    }

    #[test]
    fn pasted_text_is_cleaned_and_stays_on_one_line() {
        let mut line = TextLine::default();
        line.paste("a\r\nb\u{1b}[31m\u{202e}c");
        assert_eq!(line.value(), "a  b[31mc");
    }

    #[test]
    fn earlier_entries_come_back() {
        let mut line = TextLine::default();
        for text in ["first", "second"] {
            line.set(text);
            line.take();
        }
        line.set("draft");
        line.apply(InputCommand::Up);
        assert_eq!(line.value(), "second");
        line.apply(InputCommand::Up);
        assert_eq!(line.value(), "first");
        line.apply(InputCommand::Down);
        line.apply(InputCommand::Down);
        assert_eq!(line.value(), "draft");
    }
}
