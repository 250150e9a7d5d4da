//! The part of Thrift's compact protocol that is needed to check a Parquet file before the Parquet library
//! reads it (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>).

use std::io::{self, Read};

/// Deepest nesting allowed; Parquet's own structures have some eight levels.
const MAX_DEPTH: usize = 32;

/// Types of fields and elements. A truth value is the type of its field.
pub(super) const TRUE: u8 = 1;
pub(super) const FALSE: u8 = 2;
pub(super) const I32: u8 = 5;
pub(super) const LIST: u8 = 9;
pub(super) const STRUCT: u8 = 12;

/// Reads values in order, at most `limit` bytes.
pub(super) struct Thrift<R> {
    input: io::Take<R>,
    limit: u64,
}

impl<R: Read> Thrift<R> {
    pub(super) fn new(input: R, limit: u64) -> Self {
        Self { input: input.take(limit), limit }
    }

    /// Number of bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.limit - self.input.limit()
    }

    /// Reads the fields of a structure. `field` is called with the number and type of each; it reads the
    /// value, or returns `false` to skip it.
    pub(super) fn structure(
        &mut self,
        mut field: impl FnMut(&mut Self, i16, u8) -> io::Result<bool>,
    ) -> io::Result<()> {
        let mut number = 0_i16;
        loop {
            let head = self.byte()?;
            let kind = head & 15;
            if kind == 0 {
                return Ok(());
            }
            let step = i16::from(head >> 4);
            let next = if step == 0 { i16::try_from(self.integer()?).ok() } else { number.checked_add(step) };
            number = next.ok_or_else(|| broken("a field has an impossible number"))?;
            if !field(self, number, kind)? {
                self.skip(kind, MAX_DEPTH)?;
            }
        }
    }

    /// The number of elements of a list, and their type.
    pub(super) fn list(&mut self) -> io::Result<(u64, u8)> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.number()?,
            short => u64::from(short),
        };
        // Each element takes at least one byte.
        if count > self.input.limit() {
            return Err(broken("a list claims more elements than it has bytes"));
        }
        Ok((count, head & 15))
    }

    /// A signed integer.
    pub(super) fn integer(&mut self) -> io::Result<i64> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    fn skip(&mut self, kind: u8, depth: usize) -> io::Result<()> {
        let Some(depth) = depth.checked_sub(1) else { return Err(broken("it is nested too deeply")) };
        match kind {
            TRUE | FALSE => Ok(()),
            3 => self.skip_bytes(1),
            4..=6 => self.number().map(drop),
            7 => self.skip_bytes(8),
            8 => {
                let length = self.number()?;
                self.skip_bytes(length)
            }
            LIST | 10 => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| self.skip_element(kind, depth))
            }
            11 => {
                let count = self.number()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 15, depth)
                })
            }
            STRUCT => self.skip_structure(depth),
            13 => self.skip_bytes(16),
            _ => Err(broken("it contains a value of an unknown type")),
        }
    }

    /// Truth values take one byte as elements, and none as fields.
    fn skip_element(&mut self, kind: u8, depth: usize) -> io::Result<()> {
        if matches!(kind, TRUE | FALSE) { self.skip_bytes(1) } else { self.skip(kind, depth) }
    }

    fn skip_structure(&mut self, depth: usize) -> io::Result<()> {
        loop {
            let head = self.byte()?;
            let (step, kind) = (head >> 4, head & 15);
            if kind == 0 {
                return Ok(());
            }
            if step == 0 {
                self.number()?;
            }
            self.skip(kind, depth)?;
        }
    }

    fn skip_bytes(&mut self, count: u64) -> io::Result<()> {
        if io::copy(&mut self.input.by_ref().take(count), &mut io::sink())? == count {
            return Ok(());
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// An unsigned integer, seven bits per byte, lowest first.
    fn number(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err(broken("a number is too long"))
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

pub(super) fn broken(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Field numbers and types of a structure, with the values of integers.
    fn fields(bytes: &[u8]) -> io::Result<Vec<(i16, u8, Option<i64>)>> {
        let mut found = Vec::new();
        Thrift::new(bytes, bytes.len() as u64).structure(|input, number, kind| {
            let value = if kind == I32 { Some(input.integer()?) } else { None };
            found.push((number, kind, value));
            Ok(value.is_some())
        })?;
        Ok(found)
    }

    #[test]
    fn fields_are_found_after_skipped_ones() {
        // 1: i32 = 1; 3: list of two structures, one with a text; 4: map of one; 40: i32 = -2; 41: true; end.
        let bytes = [
            0x15, 0x02, 0x29, 0x2c, 0x18, 2, b'h', b'i', 0, 0, 0x1b, 1, 0x58, 4, 1, b'x', 0x05, 80, 0x03,
            0x11, 0x00,
        ];
        let found = fields(&bytes).unwrap();
        assert_eq!(
            found,
            [(1, I32, Some(1)), (3, LIST, None), (4, 11, None), (40, I32, Some(-2)), (41, 1, None)]
        );
        for end in 0..bytes.len() {
            assert!(fields(&bytes[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn depth_counts_and_lengths_are_limited() {
        assert!(fields(&vec![0x1c; 100_000]).unwrap_err().to_string().contains("nested too deeply"));
        assert!(fields(&vec![0x19; 100_000]).unwrap_err().to_string().contains("nested too deeply"));
        let endless = [0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x7f, 0];
        assert!(fields(&endless).unwrap_err().to_string().contains("more elements than it has bytes"));
        let long = [0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0];
        assert!(fields(&long).is_err());
        assert!(fields(&[0x05, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = fields(&bytes);
        }
    }
}
