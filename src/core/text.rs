//! Makes untrusted text safe for a terminal or a log.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// Most combining marks kept on one base character. Real scripts need a few; piles of them only make the
/// screen unreadable.
const MAX_COMBINING: usize = 4;

/// Removes what could control a terminal or hide text: control and escape characters, bidi overrides and
/// isolates, tag characters, zero-width characters, and too many combining marks. Newlines and tabs stay.
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len());
    let mut combining = 0;
    for character in text.chars() {
        if is_combining(character) {
            combining += 1;
            if combining <= MAX_COMBINING {
                cleaned.push(character);
            }
            continue;
        }
        combining = 0;
        if character == '\n' || character == '\t' || !is_unsafe(character) {
            cleaned.push(character);
        }
    }
    Cow::Owned(cleaned)
}

/// As [`clean`], on one line: newlines become `⏎`, tabs a space.
pub fn clean_line(text: &str) -> Cow<'_, str> {
    match clean(text) {
        Cow::Borrowed(same) if !same.contains(['\n', '\t']) => Cow::Borrowed(same),
        cleaned => Cow::Owned(cleaned.replace('\n', "⏎").replace('\t', " ")),
    }
}

/// As [`clean`], with all lines but the first indented by `columns`. If the first line is printed at that
/// column, carets stay below what they point at.
pub fn indented(text: &str, columns: usize) -> String {
    clean(text).trim_end().replace('\n', &format!("\n{:columns$}", ""))
}

fn is_plain(character: char) -> bool {
    character == '\n' || character == '\t' || (!is_unsafe(character) && !is_combining(character))
}

fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

fn is_combining(character: char) -> bool {
    matches!(
        character,
        '\u{300}'..='\u{36f}'
            | '\u{483}'..='\u{489}'
            | '\u{1ab0}'..='\u{1aff}'
            | '\u{1dc0}'..='\u{1dff}'
            | '\u{20d0}'..='\u{20ff}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{fe20}'..='\u{fe2f}'
    )
}

/// Untrusted text made fit for a message: one line, cleaned, cut short.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown(String);

/// Longest untrusted text a message repeats, in characters: enough for a path.
const MAX_SHOWN: usize = 400;

impl Shown {
    /// Cleans `text`.
    pub fn new(text: &str) -> Self {
        // Cut first: the text may be as long as a file.
        let end = text.char_indices().nth(MAX_SHOWN).map_or(text.len(), |(at, _)| at);
        let mut shown = clean_line(&text[..end]).into_owned();
        if end < text.len() {
            shown.push('…');
        }
        Self(shown)
    }
}

impl From<&Path> for Shown {
    fn from(path: &Path) -> Self {
        Self::new(&path.to_string_lossy())
    }
}

impl From<&PathBuf> for Shown {
    fn from(path: &PathBuf) -> Self {
        Self::from(path.as_path())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_borrowed() {
        assert!(matches!(clean("Grüße, 世界\n\tok"), Cow::Borrowed(_)));
    }

    #[test]
    fn escape_sequences_lose_their_introducer() {
        assert_eq!(clean("a\x1b]52;c;ZXZpbA==\x07b"), "a]52;c;ZXZpbA==b");
        assert_eq!(clean("a\u{9b}31mb\rc"), "a31mbc");
    }

    #[test]
    fn hidden_and_reordering_characters_are_removed() {
        assert_eq!(clean("a\u{202e}b\u{2066}c\u{200b}d\u{e0041}e\u{feff}"), "abcde");
    }

    #[test]
    fn combining_marks_are_limited() {
        let flood = format!("e{}x", "\u{301}".repeat(500));
        assert_eq!(clean(&flood).chars().count(), 1 + MAX_COMBINING + 1);
    }

    #[test]
    fn one_line_form_shows_line_ends() {
        assert_eq!(clean_line("a\nb\tc"), "a⏎b c");
    }

    #[test]
    fn untrusted_text_is_cleaned_and_cut() {
        let shown = Shown::new(&format!("a\x1b[2J\n{}", "x".repeat(10_000)));
        let text = shown.to_string();
        assert!(text.starts_with("a[2J⏎x") && text.ends_with('…'), "{text}");
        assert!(text.chars().count() <= MAX_SHOWN + 1);
    }
}
