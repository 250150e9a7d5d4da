//! The header of a GGUF file, version 2 or 3, checked against the format and the file's size before it is
//! used (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).

use std::collections::HashSet;
use std::io::Read;

use indexmap::IndexMap;
use indexmap::map::Entry;

use super::value::{ARRAY, Array, Number, TEXT, Value};
use crate::model::error::Fault;
use crate::model::storage::Storage;
use crate::text::Shown;

/// Largest header that is read; real ones, vocabulary included, stay below 30 MB.
const MAX_HEADER: u64 = 128 << 20;

/// Most texts and nested arrays in all arrays together; the largest real vocabularies with merges stay below
/// a million. Each takes its own memory, up to three times its bytes in the file.
const MAX_ELEMENTS: u64 = 1 << 22;

/// Most metadata entries, and most tensors.
const MAX_ENTRIES: u64 = 1 << 17;

/// Longest key or tensor name; the format's limit for keys.
const MAX_NAME: u64 = 65_535;

/// Deepest nesting of arrays.
const MAX_DEPTH: usize = 4;

/// Most dimensions a tensor may have (`GGML_MAX_DIMS`).
const MAX_RANK: u32 = 4;

/// Alignment of tensor data if the file does not give one.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Largest alignment accepted. Values near it make no sense, but do no harm.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Smallest metadata entry: key length, type, one byte of value.
const MIN_ENTRY: u64 = 8 + 4 + 1;

/// Smallest tensor description: name length, rank, type, offset.
const MIN_TENSOR: u64 = 8 + 4 + 4 + 8;

#[derive(Debug, Clone, PartialEq)]
pub(in crate::model) struct Header {
    pub(in crate::model) metadata: IndexMap<String, Value>,
    /// In the order of the header.
    pub(in crate::model) tensors: Vec<Tensor>,
}

/// A tensor in the header.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::model) struct Tensor {
    pub(in crate::model) name: String,
    /// Row-major, as in torch; the file lists dimensions in reverse.
    pub(in crate::model) shape: Vec<usize>,
    pub(in crate::model) storage: Storage,
    /// From the start of the file.
    pub(in crate::model) offset: u64,
    pub(in crate::model) bytes: u64,
}

impl Header {
    /// Reads the header of a file of `size` bytes.
    pub(in crate::model) fn read(file: impl Read, size: u64) -> Result<Self, Fault> {
        let mut input = Input { file, position: 0, size, elements: 0 };
        if size < 4 || input.bytes(4)? != b"GGUF" {
            return Err(Fault::Damaged("it does not begin with `GGUF`, so it is no GGUF file".to_owned()));
        }
        let version = input.u32()?;
        match version {
            2 | 3 => {}
            1 => {
                return Err(Fault::Unsupported {
                    feature: "GGUF version 1".to_owned(),
                    remedy: "convert the model again with a llama.cpp of 2024 or later",
                });
            }
            _ if version.swap_bytes() <= 3 => {
                return Err(Fault::Unsupported {
                    feature: "big-endian GGUF".to_owned(),
                    remedy: "convert the model again without --bigendian",
                });
            }
            _ => {
                return Err(Fault::Unsupported {
                    feature: format!("GGUF version {version}"),
                    remedy: "versions 2 and 3 are; convert the model again, or check the download",
                });
            }
        }
        let tensor_count = input.u64()?;
        let entry_count = input.u64()?;
        input.count(tensor_count, MIN_TENSOR, MAX_ENTRIES, "tensors")?;
        input.count(entry_count, MIN_ENTRY, MAX_ENTRIES, "metadata entries")?;
        let metadata = input.metadata(entry_count)?;
        let raw = (0..tensor_count).map(|_| input.tensor()).collect::<Result<Vec<_>, _>>()?;
        let alignment = alignment(&metadata)?;
        let data = input
            .position
            .checked_next_multiple_of(alignment)
            .filter(|&data| data <= size || raw.is_empty())
            .ok_or_else(|| Fault::Damaged("it ends before its tensor data".to_owned()))?;
        let tensors = raw
            .into_iter()
            .map(|tensor| tensor.check(data, alignment, size))
            .collect::<Result<Vec<_>, _>>()?;
        check_overlaps(&tensors)?;
        Ok(Self { metadata, tensors })
    }

    /// The metadata value, if present.
    pub(in crate::model) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }
}

fn alignment(metadata: &IndexMap<String, Value>) -> Result<u64, Fault> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value.unsigned() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => Ok(alignment),
        _ => Err(Fault::Damaged("`general.alignment` is not a power of two".to_owned())),
    }
}

fn check_overlaps(tensors: &[Tensor]) -> Result<(), Fault> {
    let mut names = HashSet::new();
    for tensor in tensors {
        if !names.insert(tensor.name.as_str()) {
            return Err(Fault::Damaged(format!("tensor `{}` appears twice", Shown::new(&tensor.name))));
        }
    }
    let mut order: Vec<&Tensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let overlap = order.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset);
    match overlap {
        Some(pair) => Err(Fault::Damaged(format!(
            "tensors `{}` and `{}` overlap",
            Shown::new(&pair[0].name),
            Shown::new(&pair[1].name)
        ))),
        None => Ok(()),
    }
}

struct RawTensor {
    name: String,
    /// Fastest first.
    dimensions: Vec<u64>,
    kind: u32,
    /// From the start of the tensor data.
    offset: u64,
}

impl RawTensor {
    fn check(self, data: u64, alignment: u64, size: u64) -> Result<Tensor, Fault> {
        let Self { name, dimensions, kind, offset } = self;
        let damaged = |problem: String| Fault::Damaged(format!("tensor `{}` {problem}", Shown::new(&name)));
        let Some(storage) = storage(kind) else {
            return Err(Fault::TensorType { tensor: name, found: kind_name(kind) });
        };
        let block = storage.block().elements as u64;
        let row = dimensions.first().copied().unwrap_or(1);
        if !row.is_multiple_of(block) {
            return Err(damaged(format!("has rows of {row} elements, no multiple of {block}")));
        }
        let elements = dimensions.iter().try_fold(1_u64, |product, &length| product.checked_mul(length));
        let Some(bytes) = elements.and_then(|elements| storage.bytes(elements)) else {
            return Err(damaged(format!("has the impossible shape {dimensions:?}")));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(damaged(format!("begins at {offset}, no multiple of {alignment}")));
        }
        let begin = data.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(bytes));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= size => {
                let shape = dimensions.iter().rev().map(|&length| length as usize).collect();
                Ok(Tensor { name, shape, storage, offset: begin, bytes })
            }
            _ => Err(damaged(format!("needs {bytes} bytes from {offset} on, beyond the end of the file"))),
        }
    }
}

/// `enum ggml_type` of `ggml.h`.
const fn storage(kind: u32) -> Option<Storage> {
    Some(match kind {
        0 => Storage::F32,
        1 => Storage::F16,
        2 => Storage::Q4_0,
        3 => Storage::Q4_1,
        6 => Storage::Q5_0,
        7 => Storage::Q5_1,
        8 => Storage::Q8_0,
        12 => Storage::Q4K,
        13 => Storage::Q5K,
        14 => Storage::Q6K,
        30 => Storage::BF16,
        _ => return None,
    })
}

/// The name of an encoding that Luthier does not read, for messages.
fn kind_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type {kind}"),
    };
    name.to_owned()
}

/// The header's bytes, counted.
struct Input<R> {
    file: R,
    position: u64,
    size: u64,
    /// Texts and nested arrays in arrays so far.
    elements: u64,
}

impl<R: Read> Input<R> {
    /// Refuses lengths for which the file, or the limit on headers, has no room, before anything is
    /// allocated.
    fn room(&self, length: u64) -> Result<usize, Fault> {
        if length > self.size.saturating_sub(self.position) {
            return Err(Fault::Damaged(format!(
                "it ends at {} bytes, in the middle of its header, which asks for {length} more at {}",
                self.size, self.position
            )));
        }
        if length > MAX_HEADER.saturating_sub(self.position) {
            return Err(Fault::Damaged(format!("its header is larger than {MAX_HEADER} bytes")));
        }
        Ok(length as usize)
    }

    /// Refuses counts that are too large for the file or the limit.
    fn count(&self, count: u64, smallest: u64, most: u64, what: &str) -> Result<(), Fault> {
        if count > most {
            return Err(Fault::Damaged(format!("it claims {count} {what}")));
        }
        self.room(count.saturating_mul(smallest)).map(drop)
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; self.room(length)?];
        self.file.read_exact(&mut bytes).map_err(Fault::Read)?;
        self.position += length;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.room(N as u64)?;
        self.file.read_exact(&mut bytes).map_err(Fault::Read)?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.fixed().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.fixed().map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &str) -> Result<String, Fault> {
        let length = self.u64()?;
        let at = self.position;
        String::from_utf8(self.bytes(length)?)
            .map_err(|_| Fault::Damaged(format!("{what} at byte {at} is not UTF-8 text")))
    }

    fn name(&mut self, what: &str) -> Result<String, Fault> {
        let name = self.text(what)?;
        if name.len() as u64 > MAX_NAME {
            return Err(Fault::Damaged(format!("{what} is {} bytes long", name.len())));
        }
        Ok(name)
    }

    fn metadata(&mut self, count: u64) -> Result<IndexMap<String, Value>, Fault> {
        let mut metadata = IndexMap::new();
        for _ in 0..count {
            let key = self.name("a metadata key")?;
            let kind = self.u32()?;
            let value = match kind {
                TEXT => Value::Text(self.text("a metadata value")?),
                ARRAY => Value::Array(self.array(1)?),
                _ => {
                    let number = number(kind)?;
                    number.decode(&self.bytes(number.size() as u64)?)
                }
            };
            match metadata.entry(key) {
                Entry::Vacant(entry) => entry.insert(value),
                Entry::Occupied(entry) => {
                    let key = Shown::new(entry.key());
                    return Err(Fault::Damaged(format!("metadata key `{key}` appears twice")));
                }
            };
        }
        Ok(metadata)
    }

    fn array(&mut self, depth: usize) -> Result<Array, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Damaged(format!("it nests arrays deeper than {MAX_DEPTH}")));
        }
        let kind = self.u32()?;
        let count = self.u64()?;
        if kind != TEXT && kind != ARRAY {
            let kind = number(kind)?;
            let bytes = self.bytes(count.saturating_mul(kind.size() as u64))?;
            return Ok(Array::Numbers { kind, bytes });
        }
        self.elements = self.elements.saturating_add(count);
        if self.elements > MAX_ELEMENTS {
            return Err(Fault::Damaged(format!("its arrays claim {} elements", self.elements)));
        }
        if kind == TEXT {
            self.room(count.saturating_mul(8))?;
            (0..count).map(|_| self.text("an array element")).collect::<Result<_, _>>().map(Array::Texts)
        } else {
            self.room(count.saturating_mul(12))?;
            (0..count).map(|_| self.array(depth + 1)).collect::<Result<_, _>>().map(Array::Arrays)
        }
    }

    fn tensor(&mut self) -> Result<RawTensor, Fault> {
        let name = self.name("a tensor name")?;
        let rank = self.u32()?;
        if rank > MAX_RANK {
            return Err(Fault::Damaged(format!("tensor `{}` has {rank} dimensions", Shown::new(&name))));
        }
        let dimensions = (0..rank).map(|_| self.u64()).collect::<Result<_, _>>()?;
        Ok(RawTensor { name, dimensions, kind: self.u32()?, offset: self.u64()? })
    }
}

fn number(kind: u32) -> Result<Number, Fault> {
    Number::of(kind).ok_or_else(|| Fault::Damaged(format!("it uses the unknown metadata type {kind}")))
}

#[cfg(test)]
mod tests;
