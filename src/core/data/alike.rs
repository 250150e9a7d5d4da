//! Which findings say the same of different rows.

use std::borrow::Cow;
use std::ops::Range;

use super::ProblemKind;

/// What a finding says without what differs from row to row: places, quoted names and numbers are `#`.
pub fn pattern(kind: ProblemKind, text: &str) -> String {
    let text = without_places(text);
    // Rows that lack different fields have different faults.
    let text = if kind == ProblemKind::UnreadableRow { text.into() } else { Cow::from(without_names(&text)) };
    pieces(&text)
        .into_iter()
        .enumerate()
        .map(|(index, piece)| if index % 2 == 1 { "#" } else { piece })
        .collect()
}

/// A text cut where digits begin and end: digits and other text in turn, other text first.
pub fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut rest, mut digits) = (text, false);
    while !rest.is_empty() {
        let end = rest.find(|character: char| character.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        (rest, digits) = (after, !digits);
    }
    pieces
}

/// A text with every quoted name in it as `"#"`.
fn without_names(text: &str) -> String {
    let (mut kept, mut rest) = (String::new(), text);
    while let Some((before, name)) = rest.split_once('"') {
        let mut is_escaped = false;
        let end = name.find(|character: char| {
            let ends = character == '"' && !is_escaped;
            is_escaped = character == '\\' && !is_escaped;
            ends
        });
        let Some(end) = end else { break };
        kept.push_str(before);
        kept.push_str("\"#\"");
        rest = &name[end + 1..];
    }
    kept.push_str(rest);
    kept
}

/// A text with every place in parentheses, such as `(train.jsonl:4)`, as `(#)`.
fn without_places(text: &str) -> String {
    let (mut kept, mut rest) = (String::new(), text);
    while let Some(place) = place(rest) {
        kept.push_str(&rest[..place.start]);
        kept.push_str("(#)");
        rest = &rest[place.end..];
    }
    kept.push_str(rest);
    kept
}

/// Where the first place in parentheses is.
fn place(text: &str) -> Option<Range<usize>> {
    text.match_indices(')').find_map(|(end, _)| {
        let digits = text[..end].bytes().rev().take_while(u8::is_ascii_digit).count();
        let file = text[..end - digits].strip_suffix(':').filter(|_| digits > 0)?;
        // The name of a file may have parentheses itself.
        let mut open = 0_usize;
        for (start, character) in file.char_indices().rev() {
            match character {
                ')' => open += 1,
                '(' if open == 0 => return Some(start..end + 1),
                '(' => open -= 1,
                _ => {}
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::{ProblemKind, pattern};

    fn of_lost(text: &str) -> String {
        pattern(ProblemKind::NotInText, text)
    }

    #[test]
    fn names_numbers_and_places_do_not_tell_findings_apart() {
        for (one, other) in [
            ("the call of tool \"a\" in message 2", "the call of tool \"b \\\" c\" in message 14"),
            ("says the same as row 1 (my (2) t.jsonl:1)", "says the same as row 22 (other.jsonl:7)"),
            ("the token \"\\\\\" belongs to the end", "the token \" Duck\" belongs to the end"),
        ] {
            assert_eq!(of_lost(one), of_lost(other));
        }
        assert_ne!(of_lost("the call of tool \"a\""), of_lost("the offered tool \"a\""));
        let unread = |text: &str| pattern(ProblemKind::UnreadableRow, text);
        assert_ne!(unread("no \"prompt\""), unread("no \"completion\""));
    }

    #[test]
    fn every_text_has_a_pattern() {
        for text in ["", "\"", "a \"b", "\"\\", "(:1)", "):1)", "((ä:1)", "1)"] {
            assert!(!of_lost(text).contains('1'), "{text}");
        }
    }
}
