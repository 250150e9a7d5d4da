//! CSV and TSV with a header line, which tells the separator.

use std::cell::Cell;
use std::io::{self, Cursor, Read};
use std::rc::Rc;

use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};

use super::encoding::{BOM, UTF_16, is_wide};
use super::{MAX_ROW_BYTES, Sink};
use crate::data::DataError;

/// Bytes that the reader may read ahead of the current row.
const READ_AHEAD: usize = 1 << 20;

/// Longest header in which the separator is looked for.
const MAX_HEADER: usize = 1 << 20;

/// Bytes read at a time while looking for the end of the header.
const STEP: u64 = 8 << 10;

/// Separators in use, the most usual last.
const SEPARATORS: [u8; 4] = [b'|', b'\t', b';', b','];

/// Reads a table whose separator is `usual`, unless its header says otherwise.
pub(super) fn read(mut file: impl Read, usual: u8, sink: &mut Sink) -> Result<(), DataError> {
    let path = sink.path;
    let head = head(&mut file).map_err(|error| DataError::read(path, error))?;
    if is_wide(&head) {
        return Err(DataError::file(path, UTF_16));
    }
    let head = head.strip_prefix(BOM).unwrap_or(&head);
    let (separator, lines_before, head) = match declared(head) {
        Some((separator, rest)) => (separator, 1, rest),
        None => (separator(head, usual), 0, head),
    };
    if separator != usual {
        let name =
            if separator == b'\t' { "a tab".to_owned() } else { format!("\"{}\"", char::from(separator)) };
        sink.notice(&format!("fields are separated by {name}"));
    }
    // The reader counts a line end of two characters only after the next row has begun.
    let first = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let ends = usize::from(first.ends_with(b"\r"));
    let budget = Rc::new(Cell::new(MAX_ROW_BYTES));
    let whole = Cursor::new(head.to_vec()).chain(file);
    let bounded = Bounded { inner: whole, budget: Rc::clone(&budget) };
    let mut reader = ReaderBuilder::new().delimiter(separator).flexible(true).from_reader(bounded);
    let fail = |error: csv::Error| DataError::file(path, error.to_string());
    let header: Vec<String> = reader
        .byte_headers()
        .map_err(fail)?
        .iter()
        .map(|name| String::from_utf8_lossy(name).trim().to_owned())
        .collect();
    let mut record = ByteRecord::new();
    loop {
        budget.set(MAX_ROW_BYTES + READ_AHEAD);
        if !reader.read_byte_record(&mut record).map_err(fail)? {
            return Ok(());
        }
        let line = record.position().map_or(0, |position| position.line() as usize + lines_before + ends);
        sink.row(line, fields(&header, &record))?;
    }
}

/// The beginning of a file, with its first line whole unless that is longer than [`MAX_HEADER`].
fn head(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    loop {
        let before = head.len();
        let read = file.take(STEP).read_to_end(&mut head)?;
        let may_end = head.get(before..).is_some_and(|new| new.contains(&b'\n'));
        if read == 0 || head.len() >= MAX_HEADER || may_end && first_line(&head).len() < head.len() {
            return Ok(head);
        }
    }
}

/// The first line without its end; a line end between quotes does not end it.
fn first_line(text: &[u8]) -> &[u8] {
    let mut quoted = false;
    let end = text.iter().position(|&byte| {
        quoted ^= byte == b'"';
        byte == b'\n' && !quoted
    });
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

/// The separator that a first line such as `sep=;` names, as Excel writes it, and what follows that line.
fn declared(head: &[u8]) -> Option<(u8, &[u8])> {
    let line = first_line(head);
    let rest = head.get(line.len() + 1..)?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = line.strip_prefix(b"\"").and_then(|line| line.strip_suffix(b"\"")).unwrap_or(line);
    match line {
        [b's' | b'S', b'e' | b'E', b'p' | b'P', b'=', separator] if SEPARATORS.contains(separator) => {
            Some((*separator, rest))
        }
        _ => None,
    }
}

/// The separator that gives the most fields in the header. Tabs in a `.tsv` file are no accident.
fn separator(head: &[u8], usual: u8) -> u8 {
    let header = first_line(head);
    let count = |separator: u8| {
        let mut quoted = false;
        header
            .iter()
            .filter(|&&byte| {
                quoted ^= byte == b'"';
                byte == separator && !quoted
            })
            .count()
    };
    if usual == b'\t' && count(usual) > 0 {
        return usual;
    }
    let found = SEPARATORS.into_iter().map(|separator| (count(separator), separator == usual, separator));
    match found.max_by_key(|&(count, is_usual, _)| (count, is_usual)) {
        Some((count, _, separator)) if count > 0 => separator,
        _ => usual,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_tells_the_separator() {
        let cases: [(&str, u8, u8); 12] = [
            ("prompt,completion\n", b',', b','),
            ("prompt;completion\r\na,b;c\n", b',', b';'),
            ("prompt\tcompletion", b',', b'\t'),
            ("prompt|completion\n", b',', b'|'),
            ("\"a,b\";\"c,d\";e,f\n", b',', b';'),
            ("a;b,c\n", b',', b','),
            ("text\nx;y;z\n", b',', b','),
            ("", b',', b','),
            ("a\tb;c;d\n", b'\t', b'\t'),
            ("a;b\n", b'\t', b';'),
            ("a,b\n", b'\t', b','),
            ("\"a\nb\";c\n", b',', b';'),
        ];
        for (header, usual, wanted) in cases {
            assert_eq!(char::from(separator(header.as_bytes(), usual)), char::from(wanted), "{header:?}");
        }
        assert_eq!(declared(b"sep=;\r\na;b\n"), Some((b';', &b"a;b\n"[..])));
        assert_eq!(declared(b"\"sep=\t\"\na\tb"), Some((b'\t', &b"a\tb"[..])));
        assert_eq!((declared(b"sep=x\na"), declared(b"sep=;"), declared(b"")), (None, None, None));
    }

    #[test]
    fn the_head_ends_with_a_whole_header() {
        let header = format!("\"{}\",b\n", "a\n".repeat(20_000));
        let text = format!("{header}{}", "1,2\n".repeat(100_000));
        let head = head(&mut text.as_bytes()).unwrap();
        assert!(head.len() > header.len() && head.len() < header.len() + 2 * STEP as usize, "{}", head.len());
        assert_eq!(first_line(&head).len() + 1, header.len());
        let endless = vec![b'x'; 3 * MAX_HEADER];
        assert!(super::head(&mut endless.as_slice()).unwrap().len() <= MAX_HEADER + STEP as usize);
    }
}
