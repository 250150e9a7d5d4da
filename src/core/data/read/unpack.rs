//! Dataset files compressed as a whole: gzip and Zstandard, unpacked while they are read.

use std::fs::File;
use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder;

use super::kinds::Packing;

/// Bytes that any file may hold unpacked.
const FREE_BYTES: u64 = 256 << 20;
/// Largest ratio of unpacked to packed bytes beyond that. Text reaches some 30.
const MAX_RATIO: u64 = 200;

/// The content of a file of `size` bytes, which stands at its beginning.
pub(super) fn open(file: File, size: u64, packing: Packing) -> io::Result<Box<dyn Read>> {
    let most = FREE_BYTES.saturating_add(size.saturating_mul(MAX_RATIO));
    let packed = BufReader::new(file);
    Ok(match packing {
        Packing::None => Box::new(packed),
        Packing::Gzip => Box::new(Unpacked { inner: MultiGzDecoder::new(packed), left: most, name: "gzip" }),
        Packing::Zstandard => {
            Box::new(Unpacked { inner: Decoder::with_buffer(packed)?, left: most, name: "Zstandard" })
        }
    })
}

/// Says what failed, and ends at a size that no honest file has: a few megabytes can hold a terabyte of rows.
struct Unpacked<R> {
    inner: R,
    left: u64,
    name: &'static str,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.inner.read(buffer) {
            Ok(read) => read,
            // The disk failed, not the content.
            Err(error) if error.raw_os_error().is_some() => return Err(error),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "its {} data is damaged or cut off ({error}); fetch or pack the file again",
                        self.name
                    ),
                ));
            }
        };
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "its {} data holds more than {MAX_RATIO} times its size; if that is meant, unpack it first",
                    self.name
                ),
            )
        })?;
        Ok(read)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use pretty_assertions::assert_eq;

    use super::*;

    pub(in crate::data::read) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    pub(in crate::data::read) fn zstandard(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    fn unpacked(packed: &[u8], packing: Packing) -> io::Result<Vec<u8>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(packed).unwrap();
        let mut bytes = Vec::new();
        open(file.reopen().unwrap(), packed.len() as u64, packing)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let gzip_twice = [gzip(b"one\n"), gzip(b"two\n")].concat();
        assert_eq!(unpacked(&gzip_twice, Packing::Gzip).unwrap(), b"one\ntwo\n");
        let zstandard_twice = [zstandard(b"one\n"), zstandard(b"two\n")].concat();
        assert_eq!(unpacked(&zstandard_twice, Packing::Zstandard).unwrap(), b"one\ntwo\n");
        assert_eq!(unpacked(b"plain", Packing::None).unwrap(), b"plain");
    }

    #[test]
    fn damaged_streams_are_errors() {
        let text = "a line of text that is compressed\n".repeat(1000);
        for (packed, packing) in
            [(gzip(text.as_bytes()), Packing::Gzip), (zstandard(text.as_bytes()), Packing::Zstandard)]
        {
            for broken in [&packed[..packed.len() - 3], &packed[..packed.len() / 2], b"no such data"] {
                let error = unpacked(broken, packing).unwrap_err().to_string();
                assert!(error.contains("damaged or cut off"), "{error}");
            }
        }
    }

    #[test]
    fn a_stream_that_unpacks_without_end_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        io::copy(&mut io::repeat(b'x').take(FREE_BYTES + (64 << 20)), &mut encoder).unwrap();
        let packed = encoder.finish().unwrap();
        assert!((packed.len() as u64) < (64 << 20) / MAX_RATIO, "{}", packed.len());
        let error = unpacked(&packed, Packing::Zstandard).unwrap_err().to_string();
        assert!(error.contains("more than 200 times its size"), "{error}");
    }
}
