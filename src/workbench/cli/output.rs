//! The command line's only way to stdout and stderr. Everything printed is cleaned of terminal
//! control characters, and a closed pipe ends the command quietly.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use luthier_core::text::clean;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::failure::{Failure, Outcome};

/// Columns that lines for people are made to fit.
const COLUMNS: usize = 80;

/// Writes one or more lines to stdout.
pub fn line(text: &str) -> Outcome {
    let cleaned = clean(text);
    write_out(&format!("{cleaned}\n"))
}

/// Writes to stdout without a line end, and flushes.
pub fn piece(text: &str) -> Outcome {
    write_out(&clean(text))
}

/// Writes one JSON document to stdout.
pub fn document(value: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value).map_err(|error| unwritable(&error))?;
    write_out(&format!("{}\n", escaped_json(&text)))
}

/// Writes one line of a JSON stream to stdout.
pub fn record(value: &impl Serialize) -> Outcome {
    let text = serde_json::to_string(value).map_err(|error| unwritable(&error))?;
    write_out(&format!("{}\n", escaped_json(&text)))
}

/// Writes bytes to stdout as they are.
pub fn raw(bytes: &[u8]) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| unwritten(&error))
}

/// Writes to stderr; a failure to write is ignored.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", clean(text));
}

fn write_out(text: &str) -> Outcome {
    raw(text.as_bytes())
}

fn unwritten(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::unread(),
        _ => Failure::work(format!("cannot write to standard output: {error}")),
    }
}

fn unwritable(error: &serde_json::Error) -> Failure {
    Failure::work(format!("cannot write the answer as JSON: {error}"))
}

/// The same JSON with terminal control characters written as `\uXXXX`. They occur only inside strings, where the
/// escape has the same value.
fn escaped_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    let mut buffer = [0; 4];
    for character in json.chars() {
        if (character as u32) < 0x7f || !clean(character.encode_utf8(&mut buffer)).is_empty() {
            escaped.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
    }
    escaped
}

/// The text with long lines broken between words where stdout is a terminal. What reads from a pipe gets whole lines.
pub fn fitted(text: &str) -> String {
    if !io::stdout().is_terminal() {
        return text.to_owned();
    }
    text.lines().map(|line| wrapped(line, COLUMNS)).collect::<Vec<_>>().join("\n")
}

/// A line broken between words; what follows the first break stands two columns right of where the line begins.
fn wrapped(line: &str, columns: usize) -> String {
    let words = line.trim_start();
    let beginning = line.len() - words.len();
    let indent = " ".repeat(beginning + 2);
    let mut text = " ".repeat(beginning);
    let mut width = beginning;
    for (place, word) in words.split(' ').enumerate() {
        if place > 0 && width + 1 + word.width() > columns {
            text.push('\n');
            text.push_str(&indent);
            width = indent.len();
        } else if place > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += word.width();
    }
    text
}

/// How a column of a table is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Lines of aligned columns, two spaces apart, without a line end after the last. Cells are cleaned to one line.
pub fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let cleaned: Vec<Vec<String>> =
        std::iter::once(columns.iter().map(|(name, _)| (*name).to_owned()).collect())
            .chain(rows.iter().cloned())
            .map(|row: Vec<String>| {
                row.iter().map(|cell| luthier_core::text::clean_line(cell).into_owned()).collect()
            })
            .collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| {
            cleaned.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max().unwrap_or(0)
        })
        .collect();
    let lines: Vec<String> = cleaned
        .iter()
        .map(|row| {
            let mut text = String::new();
            for ((cell, (_, align)), width) in row.iter().zip(columns).zip(&widths) {
                let gap = " ".repeat(width - cell.width().min(*width));
                if !text.is_empty() {
                    text.push_str("  ");
                }
                match align {
                    Align::Left => text.extend([cell.as_str(), &gap]),
                    Align::Right => text.extend([&gap, cell.as_str()]),
                }
            }
            text.trim_end().to_owned()
        })
        .filter(|text| !text.is_empty())
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn json_output_is_escaped() {
        let value = "a\u{9b}2J\u{202e}\u{e0041}\x7f ü 世 e\u{301}";
        let json = escaped_json(&serde_json::to_string(value).unwrap());
        assert_eq!(json, "\"a\\u009b2J\\u202e\\udb40\\udc41\\u007f ü 世 e\u{301}\"");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), value);
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        assert_eq!(wrapped("  one two three", 9), "  one two\n    three");
        assert_eq!(wrapped("世界 世界", 8), "世界\n  世界");
        for whole in ["", "  a  b", "averylongwordindeed"] {
            assert_eq!(wrapped(whole, 9), whole);
        }
    }

    #[test]
    fn columns_are_aligned_by_display_width() {
        let rows =
            vec![vec!["世界".to_owned(), "7".to_owned()], vec!["a\x1b[2J\nb".to_owned(), "1200".to_owned()]];
        let drawn = table(&[("name", Align::Left), ("step", Align::Right)], &rows);
        assert_eq!(drawn, "name    step\n世界       7\na[2J⏎b  1200");
    }
}
