//! JSON files: an array of objects, objects one after the other, or one object whose only list holds the
//! rows.

use std::borrow::Cow;
use std::io::Read;

use serde::de::DeserializeOwned;
use serde_json::{Deserializer, Value};

use super::Sink;
use super::digits::{self, loses_digits};
use super::encoding::{UTF_16, is_wide};
use super::nan::{without_nan, words};
use crate::data::DataError;
use crate::json::{self, Distinct, REPEATED};
use crate::units::counted;

/// Largest `.json` file, which must fit into memory, and most values in it. JSON Lines has no such limits.
const MAX_FILE_BYTES: u64 = 2 << 30;
const MAX_FILE_VALUES: usize = 1 << 26;

pub(super) fn read(file: impl Read, sink: &mut Sink) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| DataError::read(sink.path, error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(DataError::file(
            sink.path,
            format!("larger than {} GiB; write it as .jsonl, one object per line", MAX_FILE_BYTES >> 30),
        ));
    }
    if is_wide(&bytes) {
        return Err(DataError::file(sink.path, UTF_16));
    }
    let too_many = "contains too many values; write it as .jsonl, one object per line";
    json::check(&bytes, MAX_FILE_VALUES).map_err(|_| DataError::file(sink.path, too_many))?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| DataError::file(sink.path, super::lines::not_utf8(error.valid_up_to())))?;
    let (text, replaced) = replaced(text.strip_prefix('\u{feff}').unwrap_or(text));
    if replaced > 0 {
        sink.notice(&words(&counted(replaced, "place", "places"), replaced));
    }
    if loses_digits(text.as_bytes()) {
        sink.notice(&digits::words("a row has"));
    }
    let mut rows = Rows { text: &text, at: 0, line: 1 };
    match rows.next_byte() {
        None => Ok(()),
        Some(b'[') => {
            rows.at += 1;
            read_array(&mut rows, sink)
        }
        Some(_) => read_objects(&mut rows, sink),
    }
}

/// The text with null where it had numbers that JSON has not, and how many those were.
fn replaced(text: &str) -> (Cow<'_, str>, usize) {
    let found = without_nan(text.as_bytes());
    match found.and_then(|(bytes, count)| Some((String::from_utf8(bytes).ok()?, count))) {
        Some((text, count)) => (Cow::Owned(text), count),
        None => (Cow::Borrowed(text), 0),
    }
}

/// A position in the text, with its line.
struct Rows<'text> {
    text: &'text str,
    at: usize,
    line: usize,
}

impl Rows<'_> {
    /// Moves to the next byte that is not white space, and returns it.
    fn next_byte(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let blank = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.advance(blank);
        self.text.as_bytes().get(self.at).copied()
    }

    fn advance(&mut self, bytes: usize) {
        self.line += self.text[self.at..self.at + bytes].matches('\n').count();
        self.at += bytes;
    }

    /// Reads the value at this position and moves past it: the value, or why its row cannot be used.
    fn value(&mut self) -> Result<Result<Value, String>, serde_json::Error> {
        match self.next::<Distinct>() {
            Ok(value) => Ok(Ok(value.map_or(Value::Null, |Distinct(value)| value))),
            Err(error) if error.to_string().starts_with(REPEATED) => {
                self.next::<Value>()?;
                let text = error.to_string();
                Ok(Err(text.split(" at line ").next().unwrap_or_default().to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, serde_json::Error> {
        let mut stream = Deserializer::from_str(&self.text[self.at..]).into_iter::<T>();
        let value = stream.next().transpose()?;
        let length = stream.byte_offset();
        self.advance(length);
        Ok(value)
    }

    /// The error with its line in the file.
    fn broken(&self, error: &serde_json::Error) -> String {
        let text = error.to_string();
        let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
        format!("not JSON from line {} on: {reason}", self.line + error.line().saturating_sub(1))
    }
}

fn read_array(rows: &mut Rows, sink: &mut Sink) -> Result<(), DataError> {
    if rows.next_byte() == Some(b']') {
        return Ok(());
    }
    loop {
        rows.next_byte();
        let line = rows.line;
        let value = rows.value().map_err(|error| DataError::file(sink.path, rows.broken(&error)))?;
        sink.row(line, value)?;
        match rows.next_byte() {
            Some(b',') => rows.at += 1,
            Some(b']') => return Ok(()),
            _ => {
                return Err(DataError::file(
                    sink.path,
                    format!("not JSON from line {} on: expected `,` or `]`", rows.line),
                ));
            }
        }
    }
}

fn read_objects(rows: &mut Rows, sink: &mut Sink) -> Result<(), DataError> {
    let mut objects = Vec::new();
    while rows.next_byte().is_some() {
        let line = rows.line;
        let value = rows.value().map_err(|error| DataError::file(sink.path, rows.broken(&error)))?;
        objects.push((line, value));
    }
    if let [(line, Ok(Value::Object(fields)))] = &mut objects[..] {
        let is_list = |value: &Value| {
            value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_object))
        };
        let lists: Vec<&String> =
            fields.iter().filter(|(_, value)| is_list(value)).map(|(key, _)| key).collect();
        let known = [
            "messages",
            "conversations",
            "conversation",
            "prompt",
            "completion",
            "chosen",
            "rejected",
            "tools",
            "functions",
        ];
        if let [only] = lists[..]
            && !known.contains(&only.as_str())
        {
            let only = only.clone();
            if let Some(Value::Array(list)) = fields.remove(&only) {
                for value in list {
                    sink.row(*line, Ok(value))?;
                }
                return Ok(());
            }
        }
    }
    for (line, value) in objects {
        sink.row(line, value)?;
    }
    Ok(())
}
