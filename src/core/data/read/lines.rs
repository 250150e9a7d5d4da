//! Files of lines: JSON Lines and plain text. The length of a line is limited, so that no file can fill
//! memory.

use std::io::{self, BufRead};

use serde_json::{Map, Value};

use super::encoding::{BOM, UTF_16, is_wide};
use super::nan::{without_nan, words};
use super::{MAX_ROW_BYTES, MAX_ROW_VALUES, Sink};
use crate::data::DataError;
use crate::json;
use crate::units::counted;

/// What was read as the next line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// A line, in the buffer without its line end.
    Text,
    /// A line longer than [`MAX_ROW_BYTES`], which was skipped.
    TooLong,
}

/// One JSON object per line; blank lines are skipped.
pub(super) fn read_json_lines(reader: impl BufRead, sink: &mut Sink) -> Result<(), DataError> {
    let mut replaced = 0;
    each_line(reader, sink, |line| {
        json::from_slice(line, MAX_ROW_VALUES).or_else(|error| {
            let row = without_nan(line).and_then(|(line, _)| json::from_slice(&line, MAX_ROW_VALUES).ok());
            replaced += usize::from(row.is_some());
            row.ok_or_else(|| describe(&error))
        })
    })?;
    if replaced > 0 {
        sink.notice(&words(&counted(replaced, "row", "rows"), replaced));
    }
    Ok(())
}

/// One text per line; blank lines are skipped.
pub(super) fn read_text_lines(reader: impl BufRead, sink: &mut Sink) -> Result<(), DataError> {
    each_line(reader, sink, |line| {
        let text = std::str::from_utf8(line).map_err(|error| not_utf8(error.valid_up_to()))?;
        let mut fields = Map::new();
        fields.insert("text".to_owned(), Value::from(text));
        Ok(Value::from(fields))
    })
}

pub(super) fn not_utf8(column: usize) -> String {
    format!("not UTF-8 at byte {}", column + 1)
}

/// A JSON error without its line number, which the row's place already gives.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((reason, _)) => format!("not JSON: {reason}, column {}", error.column()),
        None => format!("not JSON: {text}"),
    }
}

fn each_line(
    mut reader: impl BufRead,
    sink: &mut Sink,
    mut parse: impl FnMut(&[u8]) -> Result<Value, String>,
) -> Result<(), DataError> {
    let mut buffer = Vec::new();
    let mut number = 0;
    loop {
        let line = next_line(&mut reader, &mut buffer).map_err(|error| DataError::read(sink.path, error))?;
        let Some(line) = line else { return Ok(()) };
        number += 1;
        if number == 1 {
            if is_wide(&buffer) {
                return Err(DataError::file(sink.path, UTF_16));
            }
            if buffer.starts_with(BOM) {
                buffer.drain(..BOM.len());
            }
        }
        if line == Line::TooLong {
            sink.row(number, Err(format!("longer than {} MiB", MAX_ROW_BYTES >> 20)));
            continue;
        }
        let text = buffer.strip_suffix(b"\r").unwrap_or(&buffer);
        if !text.trim_ascii().is_empty() {
            sink.row(number, parse(text));
        }
    }
}

/// Reads the next line into `buffer`; `None` at the end of the file.
fn next_line(reader: &mut impl BufRead, buffer: &mut Vec<u8>) -> io::Result<Option<Line>> {
    buffer.clear();
    let mut any = false;
    let mut too_long = false;
    loop {
        let available = match reader.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let line = if too_long { Line::TooLong } else { Line::Text };
        if available.is_empty() {
            return Ok(any.then_some(line));
        }
        any = true;
        let end = available.iter().position(|&byte| byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        if buffer.len() + part.len() > MAX_ROW_BYTES {
            too_long = true;
            buffer.clear();
        } else if !too_long {
            buffer.extend_from_slice(part);
        }
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(if too_long { Line::TooLong } else { Line::Text }));
        }
    }
}
