//! Checks the footer and pages of a Parquet file before the Parquet library reads it
//! (<https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>). The library
//! recurses into nested columns and allocates the sizes that pages claim, so a few bytes could end the
//! process instead of causing an error.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

use super::thrift::{I32, LIST, STRUCT, Thrift, broken};

const MAGIC: &[u8; 4] = b"PAR1";

/// Bytes after the metadata: its length and [`MAGIC`].
const TAIL: u64 = 8;

/// Largest metadata; wide files with many row groups have some 20 MB.
const MAX_METADATA: u64 = 64 << 20;

/// Most columns, including groups of columns.
const MAX_COLUMNS: u64 = 1 << 14;

/// Deepest nesting of columns.
const MAX_DEPTH: usize = 32;

/// Largest uncompressed page. A row may not be longer than 64 MiB.
const MAX_PAGE_BYTES: i64 = 256 << 20;

/// Checks the columns in the footer.
pub(super) fn columns(file: &File, size: u64) -> io::Result<()> {
    let end = size.checked_sub(TAIL).ok_or_else(|| broken("it is too short"))?;
    let mut tail = [0; TAIL as usize];
    let mut input = file;
    input.seek(SeekFrom::Start(end))?;
    input.read_exact(&mut tail)?;
    let (length, magic) = tail.split_at(4);
    if magic != MAGIC {
        return Err(broken("it does not end with `PAR1`"));
    }
    let length = length.iter().rev().fold(0, |length, &byte| length << 8 | u64::from(byte));
    let start = end.checked_sub(length).filter(|_| length <= MAX_METADATA);
    let start = start.ok_or_else(|| broken("its metadata is larger than the file, or than the limit"))?;
    input.seek(SeekFrom::Start(start))?;
    let mut metadata = Thrift::new(BufReader::new(input), length);
    let mut seen = false;
    metadata.structure(|input, number, kind| {
        if number != 2 || kind != LIST || seen {
            return Ok(false);
        }
        seen = true;
        schema(input).map(|()| true)
    })
}

/// `list<SchemaElement>`: a tree, each node before its children.
fn schema(input: &mut Thrift<impl Read>) -> io::Result<()> {
    let (count, kind) = input.list()?;
    if count > MAX_COLUMNS || kind != STRUCT {
        return Err(broken("it claims too many columns"));
    }
    // For each node above, the number of children still to come.
    let mut open: Vec<i64> = Vec::new();
    for index in 0..count {
        let mut children = 0;
        input.structure(|input, number, kind| {
            if number != 5 || kind != I32 {
                return Ok(false);
            }
            children = input.integer()?;
            Ok(true)
        })?;
        if !(0..(count - index).cast_signed()).contains(&children) {
            return Err(broken("a column claims more parts than the file has"));
        }
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        if children > 0 {
            open.push(children);
        }
        if open.len() > MAX_DEPTH {
            return Err(broken("its columns are nested too deeply"));
        }
        while open.last() == Some(&0) {
            open.pop();
        }
    }
    Ok(())
}

/// Checks the pages of a column chunk in these bytes of the file.
pub(super) fn pages(file: &File, chunk: Range<u64>) -> io::Result<()> {
    let mut input = BufReader::new(file);
    let mut at = chunk.start;
    while at < chunk.end {
        input.seek(SeekFrom::Start(at))?;
        let mut header = Thrift::new(&mut input, chunk.end - at);
        let (mut uncompressed, mut compressed) = (0, 0);
        header.structure(|input, number, kind| {
            match (number, kind) {
                (2, I32) => uncompressed = input.integer()?,
                (3, I32) => compressed = input.integer()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let compressed = u64::try_from(compressed).map_err(|_| broken("a page has a negative length"))?;
        if !(0..=MAX_PAGE_BYTES).contains(&uncompressed) {
            return Err(broken("a page claims more bytes than allowed"));
        }
        at = at.saturating_add(header.position()).saturating_add(compressed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Zigzag encoding, seven bits per byte, lowest first.
    fn integer(value: i64) -> Vec<u8> {
        let mut left = ((value << 1) ^ (value >> 63)).cast_unsigned();
        let mut bytes = Vec::new();
        while left > 127 {
            bytes.push(left as u8 | 128);
            left >>= 7;
        }
        bytes.push(left as u8);
        bytes
    }

    /// A file whose footer has columns with these numbers of children.
    fn columns_of(children: &[i64]) -> io::Result<()> {
        let count = children.len();
        let mut metadata = vec![0x15, 2, 0x19, 0xfc];
        metadata.extend([(count & 127) as u8 | 128, (count >> 7 & 127) as u8 | 128, (count >> 14) as u8]);
        for &children in children {
            metadata.extend([0x48, 1, b'x', 0x15]);
            metadata.extend(integer(children));
            metadata.push(0);
        }
        metadata.push(0);
        let length = metadata.len() as u32;
        let bytes = [MAGIC, metadata.as_slice(), &length.to_le_bytes(), MAGIC].concat();
        columns(&file(&bytes), bytes.len() as u64)
    }

    #[test]
    fn columns_must_form_a_complete_shallow_tree() {
        assert!(columns_of(&[3, 0, 1, 0, 0]).is_ok());
        assert!(columns_of(&[vec![1; MAX_DEPTH - 1], vec![0]].concat()).is_ok());
        let refusal = |children: &[i64]| columns_of(children).unwrap_err().to_string();
        assert!(refusal(&vec![1; 10_000]).contains("nested too deeply"));
        assert!(refusal(&[i64::from(i32::MAX), 0]).contains("more parts than the file has"));
        assert!(refusal(&[-1, 0]).contains("more parts than the file has"));
        assert!(refusal(&vec![0; MAX_COLUMNS as usize + 1]).contains("too many columns"));
    }

    #[test]
    fn the_footer_must_be_inside_the_file() {
        for bytes in
            [&b""[..], b"PAR1", b"PAR1\xff\xff\xff\xffPAR1", b"PAR1\x10\0\0\0PAR1", b"PAR1\0\0\0\0PARX"]
        {
            assert!(columns(&file(bytes), bytes.len() as u64).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn pages_that_claim_too_much_are_refused() {
        let page = |uncompressed: i64, compressed: i64| {
            [&[0x15, 0, 0x15], integer(uncompressed).as_slice(), &[0x15], &integer(compressed), &[0]].concat()
        };
        let check = |bytes: Vec<u8>| pages(&file(&bytes), 0..bytes.len() as u64);
        let whole = [page(1 << 20, 3), vec![0; 3], page(0, 0)].concat();
        assert!(check(whole.clone()).is_ok());
        for broken in
            [page(i64::from(i32::MAX), 0), page(-1, 0), page(0, -1), vec![0x19, 0xfc, 0xff, 0xff, 0x7f]]
        {
            assert!(check([whole.clone(), broken].concat()).is_err());
        }
    }
}
