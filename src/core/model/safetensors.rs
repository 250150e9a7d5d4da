//! The header of a safetensors file, checked against the format and the file's size before it is used
//! (<https://github.com/huggingface/safetensors#format>).

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use indexmap::IndexMap;
use indexmap::map::Entry;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::{Fault, ModelError};
use super::files;
use super::storage::Storage;
use crate::text::Shown;

/// Largest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// Most dimensions a tensor may have.
const MAX_RANK: usize = 8;

/// Most tensors in one file. Each takes some 200 bytes of memory, which is more than it needs in the header.
/// The largest models have some 92,000 in all their files together.
const MAX_TENSORS: usize = 1 << 17;

/// The header of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// In the order of the header. They fill the rest of the file without gaps or overlaps.
    pub tensors: Vec<Tensor>,
    /// Bytes before the data.
    pub bytes: u64,
}

/// A tensor in the header.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Unique in the file.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes, as `shape` and `dtype` require; `offset + bytes` is within the file.
    pub bytes: u64,
}

/// An element type of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// One that weights may have.
    Weight(Storage),
    /// One that Luthier only skips, with its bytes per element.
    Other(&'static str, u64),
}

const OTHER: [(&str, u64); 14] = [
    ("BOOL", 1),
    ("U8", 1),
    ("I8", 1),
    ("F8_E5M2", 1),
    ("F8_E4M3", 1),
    ("F8_E8M0", 1),
    ("I16", 2),
    ("U16", 2),
    ("I32", 4),
    ("U32", 4),
    ("F64", 8),
    ("I64", 8),
    ("U64", 8),
    ("C64", 8),
];

impl Dtype {
    /// The name in the format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weight(storage) => storage.name(),
            Self::Other(name, _) => name,
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Self::Weight(Storage::F32)),
            "F16" => Some(Self::Weight(Storage::F16)),
            "BF16" => Some(Self::Weight(Storage::BF16)),
            _ => OTHER.iter().find(|(other, _)| *other == name).map(|&(name, size)| Self::Other(name, size)),
        }
    }

    fn bytes(self, elements: u64) -> Option<u64> {
        match self {
            Self::Weight(storage) => storage.bytes(elements),
            Self::Other(_, size) => elements.checked_mul(size),
        }
    }
}

impl Header {
    /// Opens a safetensors file and reads its header.
    pub fn open(path: &Path) -> Result<(File, Self), ModelError> {
        let (file, size) = files::open(path)?;
        let header = Self::read(BufReader::new(&file), size).map_err(|fault| fault.at(path))?;
        Ok((file, header))
    }

    /// Reads the header of a file of `size` bytes.
    pub(super) fn read(mut file: impl Read, size: u64) -> Result<Self, Fault> {
        let mut prefix = [0; 8];
        let room = size.checked_sub(8).ok_or_else(|| {
            Fault::Damaged(format!("it has only {size} bytes, fewer than a safetensors header begins with"))
        })?;
        file.read_exact(&mut prefix).map_err(Fault::Read)?;
        let length = u64::from_le_bytes(prefix);
        if length > MAX_HEADER {
            return Err(Fault::Damaged(format!(
                "its header claims {length} bytes; the format allows {MAX_HEADER}. Is it a safetensors file?"
            )));
        }
        if length > room {
            return Err(Fault::Damaged(format!(
                "its header claims {length} bytes, but only {room} follow in the file"
            )));
        }
        let mut json = vec![0; length as usize];
        file.read_exact(&mut json).map_err(Fault::Read)?;
        Self::parse(&json, room - length)
    }

    /// `room` is the number of bytes after the header.
    fn parse(json: &[u8], room: u64) -> Result<Self, Fault> {
        if json.first() != Some(&b'{') {
            return Err(Fault::Damaged("its header does not begin with `{`".to_owned()));
        }
        let raw: RawHeader = serde_json::from_slice(json)
            .map_err(|error| Fault::Damaged(format!("its header: {}", Shown::new(&error.to_string()))))?;
        let start = 8 + json.len() as u64;
        let tensors = raw
            .tensors
            .into_iter()
            .map(|(name, tensor)| tensor.check(name, start, room))
            .collect::<Result<Vec<_>, _>>()?;
        let header = Self { tensors, bytes: start };
        header.check_layout(start, room)?;
        Ok(header)
    }

    /// Tensors must fill the space after the header without gaps or overlaps: other bytes in the file could
    /// be anything, and bytes that are used twice suggest a crafted file.
    fn check_layout(&self, start: u64, room: u64) -> Result<(), Fault> {
        let mut order: Vec<&Tensor> = self.tensors.iter().collect();
        order.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
        let mut end = start;
        for tensor in order {
            if tensor.offset != end {
                let what =
                    if tensor.offset < end { "overlaps the one before" } else { "leaves a gap before it" };
                return Err(Fault::Damaged(format!("tensor `{}` {what}", Shown::new(&tensor.name))));
            }
            end += tensor.bytes;
        }
        if end != start + room {
            return Err(Fault::Damaged(format!(
                "{room} bytes follow the header, but its tensors take {}",
                end - start
            )));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl RawTensor {
    fn check(self, name: String, start: u64, room: u64) -> Result<Tensor, Fault> {
        let damaged = |problem: String| Fault::Damaged(format!("tensor `{}` {problem}", Shown::new(&name)));
        let Some(dtype) = Dtype::parse(&self.dtype) else {
            return Err(Fault::TensorType { tensor: name, found: self.dtype });
        };
        let Shape(shape) = self.shape;
        let elements = shape.iter().try_fold(1_u64, |product, &length| product.checked_mul(length));
        let needed = elements.and_then(|elements| dtype.bytes(elements));
        let Some(needed) = needed else {
            return Err(damaged(format!("has the impossible shape {shape:?}")));
        };
        let (begin, end) = self.data_offsets;
        if begin > end || end > room {
            return Err(damaged(format!("claims bytes {begin} to {end} of {room}")));
        }
        if end - begin != needed {
            return Err(damaged(format!(
                "of shape {shape:?} and type {} needs {needed} bytes, but claims {}",
                dtype.name(),
                end - begin
            )));
        }
        let shape = shape.into_iter().map(|length| length as usize).collect();
        Ok(Tensor { name, shape, dtype, offset: start + begin, bytes: needed })
    }
}

/// The dimensions of a tensor. Limited while it is read: a list of numbers takes more memory than its text,
/// so a list of millions must not be created.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;

        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Shape, S::Error> {
                let mut shape = Vec::new();
                while let Some(length) = list.next_element()? {
                    if shape.len() == MAX_RANK {
                        return Err(S::Error::custom(format_args!(
                            "a tensor has more than {MAX_RANK} dimensions"
                        )));
                    }
                    shape.push(length);
                }
                Ok(Shape(shape))
            }
        }

        deserializer.deserialize_seq(Dimensions)
    }
}

/// The header object in its order, with duplicate keys as errors.
struct RawHeader {
    tensors: IndexMap<String, RawTensor>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<RawHeader, M::Error> {
                let twice =
                    |name: &str| M::Error::custom(format_args!("`{}` appears twice", Shown::new(name)));
                let mut has_metadata = false;
                let mut tensors = IndexMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        if std::mem::replace(&mut has_metadata, true) {
                            return Err(twice(METADATA));
                        }
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if tensors.len() == MAX_TENSORS {
                        return Err(M::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
                    }
                    match tensors.entry(name) {
                        Entry::Vacant(entry) => entry.insert(map.next_value()?),
                        Entry::Occupied(entry) => return Err(twice(entry.key())),
                    };
                }
                Ok(RawHeader { tensors })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// The key that is not a tensor.
const METADATA: &str = "__metadata__";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{damage, damaged};

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Header, Fault> {
        Header::read(bytes, bytes.len() as u64)
    }

    fn refusal(bytes: &[u8]) -> String {
        match read(bytes).unwrap_err() {
            Fault::Damaged(problem) => problem,
            other => panic!("{other:?}"),
        }
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
        "b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]},"c":{"dtype":"I64","shape":[0,7],"data_offsets":[26,26]}}  "#;

    #[test]
    fn a_good_header_lists_its_tensors_in_order() {
        let header = read(&file(GOOD, 26)).unwrap();
        let start = 8 + GOOD.len() as u64;
        let [a, b, c] = header.tensors.as_slice() else { panic!("{header:?}") };
        assert_eq!((a.name.as_str(), a.shape.as_slice(), a.offset, a.bytes), ("a", &[2, 3][..], start, 24));
        assert_eq!((b.dtype, b.offset, b.bytes), (Dtype::Weight(Storage::BF16), start + 24, 2));
        assert_eq!((c.dtype, c.bytes), (Dtype::Other("I64", 8), 0));
    }

    #[test]
    fn a_truncated_file_is_refused() {
        assert!(refusal(b"abc").contains("only 3 bytes"));
        assert!(refusal(&file(GOOD, 26)[..40]).contains("but only 32 follow"));
        assert!(refusal(&file(GOOD, 25)).contains("claims bytes 24 to 26 of 25"));
    }

    #[test]
    fn huge_lengths_are_refused_before_allocation() {
        assert!(refusal(&u64::MAX.to_le_bytes()).contains("the format allows"));
        assert!(refusal(&99_999_999_u64.to_le_bytes()).contains("only 0 follow"));
    }

    #[test]
    fn other_text_than_json_is_refused() {
        assert!(refusal(&file("[1]", 0)).contains("does not begin"));
        assert!(refusal(&file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0)).contains("its header"));
        assert!(
            refusal(&file(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4)).contains("-1")
        );
    }

    #[test]
    fn duplicate_names_are_refused() {
        let one = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        assert!(refusal(&file(&format!(r#"{{"a":{one},"a":{one}}}"#), 4)).contains("twice"));
    }

    #[test]
    fn shapes_that_overflow_are_refused() {
        let json = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        assert!(refusal(&file(json, 0)).contains("impossible shape"));
        let json = r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}}"#;
        assert!(refusal(&file(json, 0)).contains("impossible shape"));
    }

    #[test]
    fn more_dimensions_or_tensors_than_fit_the_memory_are_refused() {
        let shape = format!("{}0", "0,".repeat(8));
        let json = format!(r#"{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,0]}}}}"#);
        assert!(refusal(&file(&json, 0)).contains("more than 8 dimensions"));
        let tensor = |n: usize| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
        let many: Vec<String> = (0..=MAX_TENSORS).map(tensor).collect();
        assert!(refusal(&file(&format!("{{{}}}", many.join(",")), 0)).contains("more than 131072 tensors"));
        assert!(read(&file(&format!("{{{}}}", many[1..].join(",")), 0)).is_ok());
    }

    #[test]
    fn overlaps_gaps_and_leftovers_are_refused() {
        let two = |b: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
            )
        };
        assert!(read(&file(&two("[4,8]"), 8)).is_ok());
        assert!(refusal(&file(&two("[2,6]"), 8)).contains("`b` overlaps"));
        assert!(refusal(&file(&two("[5,9]"), 9)).contains("`b` leaves a gap"));
        assert!(refusal(&file(&two("[4,8]"), 9)).contains("9 bytes follow the header"));
        assert!(refusal(&file(&two("[8,4]"), 9)).contains("claims bytes 8 to 4"));
    }

    #[test]
    fn a_size_that_contradicts_shape_and_type_is_refused() {
        let json = r#"{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,4]}}"#;
        assert!(refusal(&file(json, 4)).contains("needs 8 bytes, but claims 4"));
    }

    #[test]
    fn unknown_types_name_their_tensor() {
        let json = r#"{"a":{"dtype":"F3","shape":[4],"data_offsets":[0,4]}}"#;
        match read(&file(json, 4)).unwrap_err() {
            Fault::TensorType { tensor, found } => assert_eq!((tensor.as_str(), found.as_str()), ("a", "F3")),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }

        #[test]
        fn mutated_headers_are_refused_or_consistent(at in 0..GOOD.len() + 34, value in any::<u8>()) {
            let mut bytes = file(GOOD, 26);
            bytes[at] = value;
            if let Ok(header) = read(&bytes) {
                for tensor in header.tensors {
                    prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
                }
            }
        }

        #[test]
        fn damaged_headers_are_refused_or_fill_the_file(damage in damage()) {
            let json = damaged(GOOD.as_bytes(), &damage);
            let bytes = file(&String::from_utf8_lossy(&json), 26);
            if let Ok(header) = read(&bytes) {
                let data: u64 = header.tensors.iter().map(|tensor| tensor.bytes).sum();
                prop_assert_eq!(header.bytes + data, bytes.len() as u64);
            }
        }

        #[test]
        fn truncated_files_are_refused(length in 0..GOOD.len() + 33) {
            prop_assert!(read(&file(GOOD, 26)[..length]).is_err());
        }
    }
}
