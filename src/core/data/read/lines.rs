//! Files of lines: JSON Lines and plain text. The length of a line is limited, so that no file can fill
//! memory.

use std::io::{self, BufRead};

use serde_json::{Map, Value};

use super::digits::{self, loses_digits};
use super::encoding::{BOM, UTF_16, is_wide};
use super::nan::{without_nan, words};
use super::rows::Line;
use super::{MAX_ROW_BYTES, MAX_ROW_VALUES, Sink};
use crate::data::DataError;
use crate::json::{self, Distinct};
use crate::units::counted;

/// The length of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    /// The line is in the buffer.
    Usual,
    /// The line is longer than [`MAX_ROW_BYTES`], which was skipped.
    TooLong,
}

/// A line as fields.
#[derive(Debug)]
pub(super) struct ParsedLine {
    pub(super) value: Value,
    /// Whether it had numbers that JSON has not, which count as null.
    replaced: bool,
    /// Whether it had whole numbers that lose digits.
    loses_digits: bool,
}

/// Turns a line without its end into fields.
pub(super) type Parse = fn(&[u8]) -> Result<ParsedLine, String>;

/// A line that is a JSON object.
pub(super) fn json(line: &[u8]) -> Result<ParsedLine, String> {
    let loses_digits = loses_digits(line);
    let parsed = |value, replaced| ParsedLine { value, replaced, loses_digits };
    match json::from_slice(line, MAX_ROW_VALUES) {
        Ok(Distinct(value)) => Ok(parsed(value, false)),
        Err(error) => {
            let row = without_nan(line).and_then(|(line, _)| json::from_slice(&line, MAX_ROW_VALUES).ok());
            row.map(|Distinct(value)| parsed(value, true)).ok_or_else(|| describe(&error))
        }
    }
}

/// A line that is a text.
pub(super) fn text(line: &[u8]) -> Result<ParsedLine, String> {
    let text = std::str::from_utf8(line).map_err(|error| not_utf8(error.valid_up_to()))?;
    let mut fields = Map::new();
    fields.insert("text".to_owned(), Value::from(text));
    Ok(ParsedLine { value: Value::from(fields), replaced: false, loses_digits: false })
}

/// One row per line; blank lines are skipped.
pub(super) fn read(reader: impl BufRead, parse: Parse, sink: &mut Sink) -> Result<(), DataError> {
    let (mut replaced, mut with_lost_digits) = (0, 0);
    each_line(reader, sink, |line| {
        let parsed = parse(line)?;
        replaced += usize::from(parsed.replaced);
        with_lost_digits += usize::from(parsed.loses_digits);
        Ok(parsed.value)
    })?;
    if replaced > 0 {
        sink.notice(&words(&counted(replaced, "row", "rows"), replaced));
    }
    if with_lost_digits > 0 {
        sink.notice(&digits::words(&counted(with_lost_digits, "row has", "rows have")));
    }
    Ok(())
}

pub(super) fn not_utf8(column: usize) -> String {
    format!(
        "not UTF-8 at byte {}; if the file is Latin-1, convert it with iconv -f latin1 -t utf-8",
        column + 1
    )
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
    let (mut number, mut offset) = (0, 0);
    loop {
        let line = next_line(&mut reader, &mut buffer).map_err(|error| DataError::read(sink.path, error))?;
        let Some((length, used)) = line else { return Ok(()) };
        let start = offset;
        offset += used;
        number += 1;
        if number == 1 && is_wide(&buffer) {
            return Err(DataError::file(sink.path, UTF_16));
        }
        if length == Length::TooLong {
            sink.row(number, Err(format!("longer than {} MiB", MAX_ROW_BYTES >> 20)))?;
            continue;
        }
        let mark = if number == 1 && buffer.starts_with(BOM) { BOM.len() } else { 0 };
        let text = &buffer[mark..];
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if !text.trim_ascii().is_empty() {
            let place = Line { offset: start + mark as u64, bytes: text.len() };
            sink.line(number, Some(place), parse(text))?;
        }
    }
}

/// Reads the next line into `buffer`, without its end. Returns also how many bytes it takes in the file; `None` at the
/// end of the file.
fn next_line(reader: &mut impl BufRead, buffer: &mut Vec<u8>) -> io::Result<Option<(Length, u64)>> {
    buffer.clear();
    let mut bytes = 0;
    let mut too_long = false;
    loop {
        let available = match reader.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let length = if too_long { Length::TooLong } else { Length::Usual };
        if available.is_empty() {
            return Ok((bytes > 0).then_some((length, bytes)));
        }
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
        bytes += used as u64;
        if end.is_some() {
            return Ok(Some((if too_long { Length::TooLong } else { Length::Usual }, bytes)));
        }
    }
}
