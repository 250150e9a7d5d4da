//! Reads Parquet files row by row.

mod check;
mod thrift;

use std::fs::File;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};

use super::Sink;
use crate::data::DataError;
use crate::panics::guarded;

/// Largest uncompressed column chunk: a file can make the reader allocate this much.
const MAX_COLUMN_BYTES: i64 = 8 << 30;

pub(super) fn read(file: File, sink: &mut Sink) -> Result<(), DataError> {
    let path = sink.path;
    let fail = |message: String| DataError::file(path, format!("not readable as Parquet: {message}"));
    let size = file.metadata().map_err(|error| DataError::read(path, error))?.len();
    check::columns(&file, size).map_err(|error| fail(error.to_string()))?;
    let pages = file.try_clone().map_err(|error| DataError::read(path, error))?;
    let reader = guarded(|| SerializedFileReader::new(file))
        .map_err(&fail)?
        .map_err(|error| fail(error.to_string()))?;
    for group in reader.metadata().row_groups() {
        for column in group.columns() {
            let claimed = column.uncompressed_size();
            if !(0..=MAX_COLUMN_BYTES).contains(&claimed) {
                return Err(fail(format!("a column chunk claims {claimed} bytes")));
            }
            let (start, length) = guarded(|| column.byte_range()).map_err(&fail)?;
            let end = start.checked_add(length).filter(|&end| end <= size);
            let end = end.ok_or_else(|| fail("a column chunk is beyond the end of the file".to_owned()))?;
            check::pages(&pages, start..end, column.compression())
                .map_err(|error| fail(error.to_string()))?;
        }
    }
    let mut rows =
        guarded(|| reader.get_row_iter(None)).map_err(&fail)?.map_err(|error| fail(error.to_string()))?;
    let mut number = 0;
    loop {
        let row = guarded(|| rows.next()).map_err(&fail)?;
        number += 1;
        match row {
            None => return Ok(()),
            Some(Ok(row)) => sink.row(number, Ok(object(row)))?,
            // The reader is in the middle of a page; later rows cannot be trusted.
            Some(Err(error)) => return Err(fail(format!("row {number}: {error}"))),
        }
    }
}

fn object(row: Row) -> Value {
    row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect::<Map<_, _>>().into()
}

/// Arrow gives each structure all fields that any row has, and fills those that a row lacks with null.
fn structure(row: Row) -> Value {
    let fields = row.into_columns().into_iter().map(|(name, field)| (name, value(field)));
    fields.filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>().into()
}

fn value(field: Field) -> Value {
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::from);
    match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => truth.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float16(number) => float(number.into()),
        Field::Float(number) => float(number.into()),
        Field::Double(number) => float(number),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => Value::Null,
        },
        Field::Group(row) => structure(row),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect::<Vec<_>>().into(),
        Field::MapInternal(map) => map
            .entries()
            .iter()
            .cloned()
            .map(|(key, entry)| match value(key) {
                Value::String(text) => (text, value(entry)),
                other => (other.to_string(), value(entry)),
            })
            .collect::<Map<_, _>>()
            .into(),
        other => other.to_string().into(),
    }
}
