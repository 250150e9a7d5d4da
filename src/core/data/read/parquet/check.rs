//! Checks the footer and pages of a Parquet file before the Parquet library reads it
//! (<https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>). The library
//! recurses into nested columns and allocates the sizes that pages claim, so a few bytes could end the
//! process instead of causing an error.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

use flate2::bufread::MultiGzDecoder;
use parquet::basic::Compression;

use super::thrift::{FALSE, I32, LIST, STRUCT, TRUE, Thrift, broken};

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

/// Most bytes that one compressed byte can stand for.
const MAX_GZIP_RATIO: u64 = 1032;
const MAX_LZ4_RATIO: u64 = 255;

/// Bytes read at a time when a page is measured.
const MEASURED_AT_ONCE: usize = 16 << 10;

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
pub(super) fn pages(file: &File, chunk: Range<u64>, codec: Compression) -> io::Result<()> {
    let mut input = BufReader::new(file);
    let mut at = chunk.start;
    while at < chunk.end {
        input.seek(SeekFrom::Start(at))?;
        let mut header = Thrift::new(&mut input, chunk.end - at);
        let page = page(&mut header)?;
        let compressed =
            u64::try_from(page.compressed).map_err(|_| broken("a page has a negative length"))?;
        if !(0..=MAX_PAGE_BYTES).contains(&page.uncompressed) {
            return Err(broken("a page claims more bytes than allowed"));
        }
        let start = at.saturating_add(header.position());
        at = start.saturating_add(compressed);
        if page.is_plain {
            continue;
        }
        let levels = u64::try_from(page.levels).map_err(|_| broken("a page has a negative length"))?;
        let claimed = page.uncompressed.unsigned_abs().saturating_sub(levels);
        let left = chunk.end.min(at).saturating_sub(start.saturating_add(levels));
        // The library does not unpack a page without values.
        if claimed > 0 && left > 0 {
            input.seek(SeekFrom::Start(start.saturating_add(levels)))?;
            measure(input.by_ref().take(left), left, codec, claimed)?;
        }
    }
    Ok(())
}

/// What a page's header says that matters here.
#[derive(Debug, Default)]
struct Page {
    uncompressed: i64,
    compressed: i64,
    /// Bytes before the values that are not compressed.
    levels: i64,
    /// Whether the values are not compressed either.
    is_plain: bool,
}

fn page(header: &mut Thrift<impl Read>) -> io::Result<Page> {
    let mut page = Page::default();
    header.structure(|input, number, kind| {
        match (number, kind) {
            (2, I32) => page.uncompressed = input.integer()?,
            (3, I32) => page.compressed = input.integer()?,
            (8, STRUCT) => {
                (page.levels, page.is_plain) = (0, false);
                input.structure(|input, number, kind| {
                    match (number, kind) {
                        (5 | 6, I32) => page.levels = page.levels.saturating_add(input.integer()?),
                        (7, TRUE | FALSE) => page.is_plain = kind == FALSE,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(page)
}

/// Refuses a page that unpacks to more than it claims, with a codec for which the library believes the data
/// rather than the claim. Where so few bytes cannot hold more than a page may have, nothing is unpacked.
fn measure(mut body: impl BufRead, length: u64, codec: Compression, claimed: u64) -> io::Result<()> {
    let most = MAX_PAGE_BYTES.unsigned_abs();
    let unpacked: Box<dyn Read> = match codec {
        Compression::GZIP(_) if length > most / MAX_GZIP_RATIO => Box::new(MultiGzDecoder::new(&mut body)),
        Compression::BROTLI(_) => {
            // Seven bits announce a window of up to 1 GiB, which is no Brotli that Parquet writes.
            if body.fill_buf()?.first().is_some_and(|first| first & 0x7f == 0x11) {
                return Err(broken("a page needs a larger window than Brotli has"));
            }
            Box::new(brotli::Decompressor::new(&mut body, MEASURED_AT_ONCE))
        }
        Compression::LZ4 if length > most / MAX_LZ4_RATIO => {
            // Hadoop's blocks, and blocks without a frame, are unpacked into the bytes claimed.
            let is_frame = body
                .fill_buf()?
                .get(1..4)
                .is_some_and(|magic| matches!(magic, [0x22 | 0x2a, 0x4d, 0x18] | [0x21, 0x4c, 0x18]));
            if is_frame {
                return Err(broken("a page is a larger LZ4 frame than allowed"));
            }
            return Ok(());
        }
        _ => return Ok(()),
    };
    if io::copy(&mut unpacked.take(claimed.saturating_add(1)), &mut io::sink())? > claimed {
        return Err(broken("a page holds more bytes than it claims"));
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
        let check = |bytes: Vec<u8>| pages(&file(&bytes), 0..bytes.len() as u64, Compression::UNCOMPRESSED);
        let whole = [page(1 << 20, 3), vec![0; 3], page(0, 0)].concat();
        assert!(check(whole.clone()).is_ok());
        for broken in
            [page(i64::from(i32::MAX), 0), page(-1, 0), page(0, -1), vec![0x19, 0xfc, 0xff, 0xff, 0x7f]]
        {
            assert!(check([whole.clone(), broken].concat()).is_err());
        }
    }

    /// A page of the first version with this body.
    fn page_of(uncompressed: usize, body: &[u8]) -> Vec<u8> {
        let claim = [integer(uncompressed as i64), integer(body.len() as i64)];
        [&[0x15, 0, 0x15], claim[0].as_slice(), &[0x15], &claim[1], &[0], body].concat()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn brotli(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        brotli::CompressorWriter::new(&mut packed, 4096, 1, 22).write_all(bytes).unwrap();
        packed
    }

    #[test]
    fn pages_that_unpack_to_more_than_they_claim_are_refused() {
        let check = |bytes: &[u8], codec| pages(&file(bytes), 0..bytes.len() as u64, codec);
        let text = b"some text ".repeat(1000);
        let codec = Compression::BROTLI(parquet::basic::BrotliLevel::default());
        assert!(check(&page_of(text.len(), &brotli(&text)), codec).is_ok());
        let error = check(&page_of(text.len() - 1, &brotli(&text)), codec).unwrap_err().to_string();
        assert!(error.contains("more bytes than it claims"), "{error}");
        assert!(check(&page_of(10, &[0x11, 0, 0, 0]), codec).is_err());

        let codec = Compression::GZIP(parquet::basic::GzipLevel::default());
        // Bytes that do not compress, so that the page is large enough to be measured.
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = crate::random::mix(state);
            state as u8
        })
        .take(1 << 20)
        .collect();
        assert!(check(&page_of(noise.len(), &gzip(&noise)), codec).is_ok());
        assert!(check(&page_of(noise.len() - 1, &gzip(&noise)), codec).is_err());
        // Too small to unpack to more than a page may have.
        assert!(check(&page_of(text.len() - 1, &gzip(&text)), codec).is_ok());

        let frame = [&[0x04, 0x22, 0x4d, 0x18][..], &noise, &noise].concat();
        assert!(check(&page_of(10, &frame), Compression::LZ4).is_err());
        assert!(check(&page_of(10, &frame[4..]), Compression::LZ4).is_ok());
        assert!(check(&page_of(10, &frame[..100]), Compression::LZ4).is_ok());
    }

    #[test]
    fn levels_of_the_second_version_are_not_unpacked() {
        let codec = Compression::BROTLI(parquet::basic::BrotliLevel::default());
        let text = b"some text ".repeat(100);
        let page = |compressed: u8, body: &[u8], claimed: usize| {
            // Field 8 with the lengths of both kinds of levels, and whether the values are compressed.
            let version_2 =
                [&[0x5c, 0x55][..], &integer(2), &[0x15], &integer(1), &[0x10 | compressed, 0]].concat();
            let claim = [integer(claimed as i64), integer(body.len() as i64)];
            let bytes =
                [&[0x15, 6, 0x15], claim[0].as_slice(), &[0x15], &claim[1], &version_2, &[0], body].concat();
            pages(&file(&bytes), 0..bytes.len() as u64, codec)
        };
        let body = [&[9, 9, 9], brotli(&text).as_slice()].concat();
        page(TRUE, &body, text.len() + 3).unwrap();
        assert!(page(TRUE, &body, text.len() + 2).is_err());
        page(FALSE, &[&[9, 9, 9], text.as_slice()].concat(), text.len() + 3).unwrap();
    }
}
