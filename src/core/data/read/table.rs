//! CSV and TSV with a header line.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::rc::Rc;

use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};

use super::{MAX_ROW_BYTES, Sink};
use crate::data::DataError;

/// Bytes that the reader may read ahead of the current row.
const READ_AHEAD: usize = 1 << 20;

pub(super) fn read(file: File, delimiter: u8, sink: &mut Sink) -> Result<(), DataError> {
    let budget = Rc::new(Cell::new(MAX_ROW_BYTES));
    let bounded = Bounded { inner: file, budget: Rc::clone(&budget) };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(bounded);
    let path = sink.path;
    let fail = |error: csv::Error| DataError::file(path, error.to_string());
    let header: Vec<String> = reader
        .byte_headers()
        .map_err(fail)?
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let name = if index == 0 { name.strip_prefix(b"\xef\xbb\xbf").unwrap_or(name) } else { name };
            String::from_utf8_lossy(name).trim().to_owned()
        })
        .collect();
    let mut record = ByteRecord::new();
    loop {
        budget.set(MAX_ROW_BYTES + READ_AHEAD);
        if !reader.read_byte_record(&mut record).map_err(fail)? {
            return Ok(());
        }
        let line = record.position().map_or(0, |position| position.line() as usize);
        sink.row(line, fields(&header, &record));
    }
}

fn fields(header: &[String], record: &ByteRecord) -> Result<Value, String> {
    if record.len() != header.len() {
        return Err(format!("{} fields, but the header has {}", record.len(), header.len()));
    }
    let mut fields = Map::new();
    for (name, bytes) in header.iter().zip(record) {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| format!("column {name:?} is {}", super::lines::not_utf8(error.valid_up_to())))?;
        fields.insert(name.clone(), Value::from(text));
    }
    Ok(Value::from(fields))
}

/// Fails once more than the budget was read. Otherwise a quote that is never closed would take the rest of
/// the file.
struct Bounded<R> {
    inner: R,
    budget: Rc<Cell<usize>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.budget.get();
        if left == 0 {
            return Err(io::Error::other(format!(
                "a row is longer than {} MiB; is a quote not closed?",
                MAX_ROW_BYTES >> 20
            )));
        }
        let length = buffer.len().min(left);
        let read = self.inner.read(&mut buffer[..length])?;
        self.budget.set(left - read);
        Ok(read)
    }
}
