//! Screens for terminals that only show ASCII: each sign is replaced by a similar one.

use ratatui::buffer::Buffer;
use unicode_width::UnicodeWidthStr;

const TABLE: &[(&str, &str)] = &[
    ("─", "-"),
    ("━", "="),
    ("│", "|"),
    ("╭", "+"),
    ("╮", "+"),
    ("╰", "+"),
    ("╯", "+"),
    ("┤", "+"),
    ("├", "+"),
    ("┬", "+"),
    ("┴", "+"),
    ("┼", "+"),
    ("└", "+"),
    ("┘", "+"),
    ("▸", ">"),
    ("◂", "<"),
    ("‹", "<"),
    ("›", ">"),
    ("▶", ">"),
    ("→", ">"),
    ("←", "<"),
    ("↑", "^"),
    ("↓", "v"),
    ("↵", "~"),
    ("⏎", "~"),
    ("✓", "+"),
    ("✗", "x"),
    ("✂", "%"),
    ("·", "."),
    ("…", "."),
    ("×", "x"),
    ("◆", "o"),
    ("▲", "^"),
    ("■", "#"),
    ("◌", "o"),
    ("○", "o"),
    ("●", "*"),
    ("█", "#"),
    ("▉", "#"),
    ("▊", "#"),
    ("▋", "#"),
    ("▌", "|"),
    ("▐", "|"),
    ("▍", "|"),
    ("▎", "|"),
    ("▏", "|"),
    ("░", "."),
    ("▇", "#"),
    ("▆", "="),
    ("▅", "="),
    ("▄", "-"),
    ("▃", "-"),
    ("▂", "_"),
    ("▁", "_"),
    ("–", "-"),
    ("±", "~"),
    ("≈", "~"),
    ("²", "2"),
    ("°", "'"),
];

/// Replaces every sign in `buffer` that is not ASCII.
pub(super) fn fold(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        let symbol = cell.symbol();
        // Cells of letters keep their text: a terminal that cannot show them is not helped by `?`, and one
        // that can is.
        let letter = symbol.chars().next().is_some_and(char::is_alphanumeric);
        if symbol.is_ascii() || letter || symbol.width() != 1 {
            continue;
        }
        let relative = TABLE.iter().find(|(sign, _)| *sign == symbol).map_or("?", |(_, relative)| relative);
        cell.set_symbol(relative);
    }
}

#[cfg(test)]
mod tests {
    use ratatui::layout::Rect;

    use super::*;

    #[test]
    fn signs_become_ascii_and_letters_stay() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 8, 1));
        buffer.set_string(0, 0, "▶é✓⠿世─", ratatui::style::Style::new());
        fold(&mut buffer);
        let text: String = buffer.content.iter().map(ratatui::buffer::Cell::symbol).collect();
        assert_eq!(text, ">é+?世 - ");
    }
}
