//! Drawing text into cells: cleaned, measured in terminal columns, cut and wrapped at whole characters.

use std::borrow::Cow;

use luthier_core::text;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use super::Scroll;

/// Spaces a tab is shown as.
const TAB: &str = "    ";

/// The width of `text` in columns.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` on one line, cleaned, in at most `width` columns; what is cut off shows as `…`.
pub fn fit(text: &str, width: usize) -> String {
    let cleaned = text::clean_line(text);
    if cleaned.width() <= width {
        return cleaned.into_owned();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    let mut cut = String::new();
    let mut used = 0;
    for grapheme in cleaned.graphemes(true) {
        let columns = grapheme.width();
        if used + columns > room {
            break;
        }
        used += columns;
        cut.push_str(grapheme);
    }
    cut.push('…');
    cut
}

/// As [`fit`], cutting in the middle, so that both ends stay: for paths and ids.
pub fn fit_middle(text: &str, width: usize) -> String {
    let cleaned = text::clean_line(text);
    if cleaned.width() <= width || width < 5 {
        return fit(&cleaned, width);
    }
    let graphemes: Vec<&str> = cleaned.graphemes(true).collect();
    let head = take(graphemes.iter(), width.div_ceil(2) - 1);
    let tail: Vec<&str> = {
        let mut tail = take(graphemes.iter().rev(), width - 1 - (width.div_ceil(2) - 1));
        tail.reverse();
        tail
    };
    format!("{}…{}", head.concat(), tail.concat())
}

fn take<'a>(graphemes: impl Iterator<Item = &'a &'a str>, width: usize) -> Vec<&'a str> {
    let mut used = 0;
    graphemes
        .copied()
        .take_while(|grapheme| {
            used += grapheme.width();
            used <= width
        })
        .collect()
}

/// Draws `text` on one row from column `x`, cut before column `end`; the column after it.
pub fn put(buffer: &mut Buffer, x: u16, y: u16, end: u16, text: &str, style: Style) -> u16 {
    let area = buffer.area;
    if x >= end || y < area.top() || y >= area.bottom() {
        return x;
    }
    let fitted = fit(text, usize::from(end - x));
    buffer.set_string(x, y, &fitted, style);
    x + fitted.width() as u16
}

/// Draws `text` so that it ends before column `end`, cut at column `start`; the column it starts in.
pub fn put_right(buffer: &mut Buffer, start: u16, y: u16, end: u16, text: &str, style: Style) -> u16 {
    if start >= end {
        return end;
    }
    let fitted = fit(text, usize::from(end - start));
    let x = end - fitted.width() as u16;
    put(buffer, x, y, end, &fitted, style);
    x
}

/// Draws pieces one after the other on one row; the column after them.
pub fn put_pieces(buffer: &mut Buffer, x: u16, y: u16, end: u16, pieces: &[Piece<'_>]) -> u16 {
    pieces.iter().fold(x, |x, piece| put(buffer, x, y, end, &piece.text, piece.style))
}

/// A part of a text in one style.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece<'a> {
    /// The text; may hold line ends and anything else, it is cleaned when it is laid out.
    pub text: Cow<'a, str>,
    pub style: Style,
}

impl<'a> Piece<'a> {
    pub fn new(text: impl Into<Cow<'a, str>>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

/// Where a line may be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// After spaces; within a word only if the word is longer than a line.
    Words,
    /// Anywhere, as a terminal does.
    Anywhere,
    /// As [`Wrap::Words`], but lines of code and the carets below them anywhere, so that both break alike.
    Drawn,
    /// Nowhere: lines are cut, columns keep their place.
    Never,
}

/// Whether a line is one of code in a drawn problem, or of the carets below it: `12 | …`.
fn is_drawn(line: &str) -> bool {
    line.trim_start().trim_start_matches(|digit: char| digit.is_ascii_digit()).trim_start().starts_with('|')
}

/// Lays pieces out in lines of at most `width` columns. Line ends in the text end lines; tabs are four
/// spaces.
pub fn layout(pieces: &[Piece<'_>], width: u16, wrap: Wrap) -> Vec<Line<'static>> {
    let mut lines =
        Lines { width: usize::from(width.max(1)), wrap, done: Vec::new(), line: Vec::new(), used: 0 };
    for piece in pieces {
        let cleaned = text::clean(&piece.text);
        for (index, part) in cleaned.split('\n').enumerate() {
            if index > 0 {
                lines.end();
            }
            let part =
                if part.contains('\t') { Cow::Owned(part.replace('\t', TAB)) } else { Cow::Borrowed(part) };
            if wrap == Wrap::Drawn && lines.line.is_empty() {
                lines.wrap = if is_drawn(&part) { Wrap::Anywhere } else { Wrap::Words };
            }
            lines.add(&part, piece.style);
        }
    }
    lines.end();
    lines.done.into_iter().map(Line::from).collect()
}

struct Lines {
    width: usize,
    wrap: Wrap,
    done: Vec<Vec<Span<'static>>>,
    /// Graphemes of the line so far with their styles, so that a word begun in one piece and ended in the
    /// next can still move to the next line whole.
    line: Vec<(String, Style)>,
    used: usize,
}

impl Lines {
    fn add(&mut self, text: &str, style: Style) {
        for grapheme in text.graphemes(true) {
            let columns = grapheme.width();
            if self.used + columns > self.width {
                match self.wrap {
                    Wrap::Never => continue,
                    Wrap::Anywhere => self.end(),
                    Wrap::Words | Wrap::Drawn if grapheme == " " => {
                        // The line break replaces the space that would begin the next line.
                        self.end();
                        continue;
                    }
                    Wrap::Words | Wrap::Drawn => {
                        self.break_word();
                        // What moved may itself leave no room for a wide character.
                        if self.used + columns > self.width {
                            self.end();
                        }
                    }
                }
            }
            self.used += columns;
            self.line.push((grapheme.to_owned(), style));
        }
    }

    /// Ends the line before the word it ends with, which begins the next one.
    fn break_word(&mut self) {
        let space = self.line.iter().rposition(|(grapheme, _)| grapheme == " ");
        let word = match space {
            Some(space) if space + 1 < self.line.len() => self.line.split_off(space + 1),
            _ => Vec::new(),
        };
        self.end();
        self.used = word.iter().map(|(grapheme, _)| grapheme.width()).sum();
        self.line = word;
    }

    fn end(&mut self) {
        let mut spans: Vec<Span<'static>> = Vec::new();
        for (grapheme, style) in self.line.drain(..) {
            match spans.last_mut() {
                Some(last) if last.style == style => last.content.to_mut().push_str(&grapheme),
                _ => spans.push(Span::styled(grapheme, style)),
            }
        }
        self.used = 0;
        self.done.push(spans);
    }
}

/// Draws lines from the position of `scroll`, with a mark in the last column if more follow.
pub fn draw_lines(buffer: &mut Buffer, area: Rect, lines: &[Line<'_>], scroll: &Scroll, more: Style) {
    let first = scroll.visible(lines.len(), area.height);
    for (line, y) in lines.iter().skip(first).zip(area.top()..area.bottom()) {
        buffer.set_line(area.x, y, line, area.width);
    }
    if scroll.has_more() && area.height > 0 && area.width > 1 {
        put(buffer, area.right() - 1, area.bottom() - 1, area.right(), "↓", more);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(lines: &[Line<'_>]) -> Vec<String> {
        lines.iter().map(Line::to_string).collect()
    }

    #[test]
    fn fits_by_columns_and_never_splits_characters() {
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("abcd", 3), "ab…");
        assert_eq!(fit("世界世界", 5), "世界…");
        assert_eq!(fit("世界世界", 4), "世…");
        assert_eq!(fit("abc", 0), "");
        assert_eq!(fit("a\u{1b}[2Jb\nc", 20), "a[2Jb⏎c");
        assert_eq!(fit_middle("20261123-140200-lora-r16", 11), "20261…a-r16");
    }

    #[test]
    fn words_move_whole_even_across_pieces() {
        let bold = Style::new().bold();
        let pieces = [Piece::new("the quick br", Style::new()), Piece::new("own fox", bold)];
        let lines = layout(&pieces, 10, Wrap::Words);
        assert_eq!(plain(&lines), ["the quick ", "brown fox"]);
        assert_eq!(lines[1].spans[0].content, "br");
        assert_eq!(lines[1].spans[1].style, bold);
    }

    #[test]
    fn carets_stay_below_their_words_and_prose_is_broken_at_spaces() {
        let text = "a long sentence\n1 | abcdef = xy z\n  |          ^^ ^\n  = help: say it";
        let lines = layout(&[Piece::new(text, Style::new())], 10, Wrap::Drawn);
        let expected =
            ["a long ", "sentence", "1 | abcdef", " = xy z", "  |       ", "   ^^ ^", "  = help: ", "say it"];
        assert_eq!(plain(&lines), expected);
    }

    #[test]
    fn line_ends_tabs_and_long_words() {
        let lines = layout(&[Piece::new("a\n\n\tbc\nabcdefgh", Style::new())], 5, Wrap::Words);
        assert_eq!(plain(&lines), ["a", "", "    ", "bc", "abcde", "fgh"]);
        let cut = layout(&[Piece::new("abcdefgh\nxy", Style::new())], 5, Wrap::Never);
        assert_eq!(plain(&cut), ["abcde", "xy"]);
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_asked_and_nothing_is_lost(text in "[a-z世 é\n]{0,80}", width in 2u16..20) {
            let lines = layout(&[Piece::new(text.clone(), Style::new())], width, Wrap::Anywhere);
            prop_assert!(lines.iter().all(|line| line.width() <= usize::from(width)));
            let joined: String = plain(&lines).concat();
            prop_assert_eq!(joined, text.replace('\n', ""));
            let lines = layout(&[Piece::new(text.clone(), Style::new())], width, Wrap::Words);
            prop_assert!(lines.iter().all(|line| line.width() <= usize::from(width)));
            let joined: String = plain(&lines).concat();
            prop_assert_eq!(joined.replace(' ', ""), text.replace(['\n', ' '], ""));
        }

        #[test]
        fn fitting_any_text_stays_within_width(text in ".{0,40}", width in 0usize..30) {
            prop_assert!(super::width(&fit(&text, width)) <= width);
            prop_assert!(super::width(&fit_middle(&text, width)) <= width);
        }
    }
}
