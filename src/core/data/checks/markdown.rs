//! Fenced code and code spans, as CommonMark delimits them.

use std::borrow::Cow;

/// Shortest fence.
const MIN_FENCE: usize = 3;
/// Most columns a fence may be indented, counted from its container.
const MAX_INDENTATION: usize = 3;
/// Longest run of tildes without a language that counts as a fence. Longer ones draw a line or underline a
/// heading.
const MAX_TILDES: usize = 5;

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Prose,
    Opening,
    Code,
    Closing,
}

/// A fenced block of code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block<'text> {
    /// The number of its first line of code, from 1.
    pub(super) line: usize,
    pub(super) code: &'text str,
}

/// The fenced blocks of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Blocks<'text> {
    pub(super) closed: Vec<Block<'text>>,
    /// Whether the last block has no closing fence.
    pub(super) unclosed: bool,
}

struct Fence {
    mark: char,
    length: usize,
    indentation: usize,
    quotes: usize,
}

/// Follows the fences of a text, line by line.
#[derive(Default)]
struct Fences {
    open: Option<Fence>,
    /// Whether there was a list item, in which fences may be indented further.
    in_list: bool,
    /// Characters of the line before.
    previous: usize,
}

impl Fences {
    fn line(&mut self, line: &str) -> Line {
        let (quotes, mut indentation, mut rest) = unquoted(line);
        if let Some(fence) = &self.open
            && quotes >= fence.quotes
        {
            let closes = quotes == fence.quotes
                && indentation <= fence.indentation + MAX_INDENTATION
                && rest.len() - rest.trim_start_matches(fence.mark).len() >= fence.length
                && rest.trim_start_matches(fence.mark).trim().is_empty();
            if !closes {
                return Line::Code;
            }
            self.open = None;
            self.previous = 0;
            return Line::Closing;
        }
        while let Some(inner) = item(rest) {
            self.in_list = true;
            indentation += rest.len() - inner.len();
            rest = inner;
        }
        let allowed = indentation <= MAX_INDENTATION || self.in_list;
        self.open = fence(rest, self.previous).filter(|_| allowed).map(|(mark, length)| Fence {
            mark,
            length,
            indentation,
            quotes,
        });
        self.previous = rest.trim().chars().count();
        if self.open.is_some() { Line::Opening } else { Line::Prose }
    }
}

/// The number of quote marks before a line, the columns it is indented behind them, and the rest.
fn unquoted(line: &str) -> (usize, usize, &str) {
    let mut quotes = 0;
    let mut rest = line;
    loop {
        let trimmed = rest.trim_start_matches([' ', '\t']);
        let Some(inner) = trimmed.strip_prefix('>') else {
            let blank = rest.chars().take_while(|character| matches!(character, ' ' | '\t'));
            let columns = blank.map(|character| if character == '\t' { 4 } else { 1 }).sum();
            return (quotes, columns, trimmed);
        };
        quotes += 1;
        rest = inner.strip_prefix(' ').unwrap_or(inner);
    }
}

/// What follows the mark of a list item.
fn item(line: &str) -> Option<&str> {
    let digits = line.trim_start_matches(|character: char| character.is_ascii_digit());
    let marked = if digits.len() < line.len() {
        digits.strip_prefix(['.', ')'])
    } else {
        line.strip_prefix(['-', '*', '+'])
    };
    let inner = marked?.strip_prefix([' ', '\t'])?;
    Some(inner.trim_start_matches([' ', '\t']))
}

/// The mark and length of an opening fence. `previous` is the number of characters in the line before.
fn fence(line: &str, previous: usize) -> Option<(char, usize)> {
    let mark = line.chars().next().filter(|&mark| mark == '`' || mark == '~')?;
    let language = line.trim_start_matches(mark);
    let length = line.len() - language.len();
    let language = language.trim();
    let opens = length >= MIN_FENCE
        && if mark == '`' {
            !language.contains('`')
        } else if language.is_empty() {
            length <= MAX_TILDES && (previous == 0 || length < previous)
        } else {
            language.starts_with(|first: char| first.is_alphanumeric() || first == '{' || first == '.')
        };
    opens.then_some((mark, length))
}

/// The lines of a text, without their ends.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (Line, &str)> {
    let mut fences = Fences::default();
    text.lines().map(move |line| (fences.line(line), line))
}

/// The fenced blocks of a text.
pub(super) fn blocks(text: &str) -> Blocks<'_> {
    let mut found = Blocks::default();
    if !may_have_fences(text) {
        return found;
    }
    let mut fences = Fences::default();
    let mut start = (0, 0);
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let end = at + line.len();
        match fences.line(line.trim_end_matches(['\r', '\n'])) {
            Line::Opening => start = (number + 2, end),
            Line::Closing => {
                let code = text.get(start.1..at).unwrap_or_default();
                found.closed.push(Block { line: start.0, code });
            }
            Line::Prose | Line::Code => {}
        }
        at = end;
    }
    found.unclosed = fences.open.is_some();
    found
}

/// A text without its fenced code; code spans become a single backtick.
pub(super) fn prose(text: &str) -> Cow<'_, str> {
    let without_fences = if may_have_fences(text) {
        let mut kept = String::with_capacity(text.len());
        for (_, line) in lines(text).filter(|&(line, _)| line == Line::Prose) {
            kept.push_str(line);
            kept.push('\n');
        }
        Cow::Owned(kept)
    } else {
        Cow::Borrowed(text)
    };
    if without_fences.contains('`') { Cow::Owned(without_spans(&without_fences)) } else { without_fences }
}

fn may_have_fences(text: &str) -> bool {
    text.contains("```") || text.contains("~~~")
}

fn without_spans(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, _)) = rest.split_once('`') {
        kept.push_str(before);
        let from = rest.split_at(before.len()).1;
        let inner = from.trim_start_matches('`');
        let length = from.len() - inner.len();
        if let Some(end) = span_end(inner, length) {
            kept.push('`');
            rest = inner.split_at(end).1;
        } else {
            kept.extend(std::iter::repeat_n('`', length));
            rest = inner;
        }
    }
    kept.push_str(rest);
    kept
}

/// Where the code span ends that was opened by `length` backticks.
fn span_end(text: &str, length: usize) -> Option<usize> {
    let mut run = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte == b'`' {
            run += 1;
        } else if run == length {
            return Some(at);
        } else {
            run = 0;
        }
    }
    (run == length).then_some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_what_is_left_without_code() {
        assert_eq!(prose("no code"), "no code");
        assert_eq!(prose("a\n```rust\nb\n```\nc"), "a\nc\n");
        assert_eq!(prose("call `f(x)` or ``a`b`` now"), "call ` or ` now");
        assert_eq!(prose("a lone ` stays, as `` does"), "a lone ` stays, as `` does");
        assert_eq!(prose("a\n```\nnever closed"), "a\n");
    }

    #[test]
    fn blocks_are_found_with_their_lines() {
        let found = blocks("one\r\n```json\r\n{}\r\n```\r\n~~~\nx\n```\n~~~~\n");
        assert_eq!(found.closed, [Block { line: 3, code: "{}\r\n" }, Block { line: 6, code: "x\n```\n" }]);
        assert!(!found.unclosed);
        assert_eq!(blocks("nothing"), Blocks::default());
    }

    #[test]
    fn fences_close_as_in_commonmark() {
        let unclosed = |text: &str| blocks(text).unclosed;
        for text in [
            "```\ncode",
            "```python\nprint(1)```",
            "````\n```\n",
            "~~~\n```\n",
            "```\n``` rust\n",
            "- item\n      ```\n      code\n",
            "> ```\n> code",
            "```\ncode\n    ```",
            "1. first\n   ```sh\n   ls\n   ```\n2. second\n   ```sh\n   ls\n",
        ] {
            assert!(unclosed(text), "{text:?}");
        }
        for text in [
            "```\ncode\n```",
            "```\ncode\n````  \n",
            "````md\n```\n````",
            "- ```js\n  code\n  ```\n",
            "10. a\n\n    ```\n    b\n    ```\n",
            "> ```\n> code\n\ntext",
            "> quote\n> ```\n> a\n> ```",
            "inline ```code``` here",
            "```code``` at the start",
            "    ```\n    indented code",
            "Title\n~~~~~\n\ntext",
            "~~~~~~~~~~~~~~~~",
            "TypeError\n~~~~^^^^",
            "```python\ndef f():\n    \"\"\"\n    ```\n    f()\n    \"\"\"\n```",
            "~~struck~~",
        ] {
            assert!(!unclosed(text), "{text:?}");
        }
    }
}
