//! Writes small GGUF files for tests, valid and invalid ones.

use super::value::{ARRAY, TEXT};

/// A file under construction. Nothing is checked.
#[derive(Clone)]
pub(in crate::model) struct Writer {
    version: u32,
    entries: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
}

pub(in crate::model) const ALIGNMENT: usize = 32;

impl Writer {
    pub(in crate::model) fn new() -> Self {
        Self { version: 3, entries: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    pub(in crate::model) fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// A value of any type, already encoded.
    pub(in crate::model) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(value);
        self.entries.push((key.to_owned(), bytes));
        self
    }

    pub(in crate::model) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(in crate::model) fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(in crate::model) fn truth(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub(in crate::model) fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, TEXT, &text(value))
    }

    pub(in crate::model) fn texts<T: AsRef<str>>(self, key: &str, values: &[T]) -> Self {
        let mut bytes = TEXT.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(values.len() as u64).to_le_bytes());
        for value in values {
            bytes.extend_from_slice(&text(value.as_ref()));
        }
        self.raw(key, ARRAY, &bytes)
    }

    pub(in crate::model) fn i32s(self, key: &str, values: &[i32]) -> Self {
        let mut bytes = 5_u32.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(values.len() as u64).to_le_bytes());
        for value in values {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        self.raw(key, ARRAY, &bytes)
    }

    /// A tensor with dimensions in the file's order, fastest first; its data follows that of earlier tensors.
    pub(in crate::model) fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, data: &[u8]) -> Self {
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(data);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.tensor_at(name, dimensions, kind, offset)
    }

    /// A tensor that claims this place in the file.
    pub(in crate::model) fn tensor_at(
        mut self,
        name: &str,
        dimensions: &[u64],
        kind: u32,
        offset: u64,
    ) -> Self {
        self.tensors.push((name.to_owned(), dimensions.to_vec(), kind, offset));
        self
    }

    /// Removes the entry or tensor with this name; a tensor's data stays.
    pub(in crate::model) fn remove(&mut self, name: &str) {
        self.entries.retain(|(key, _)| key != name);
        self.tensors.retain(|(key, ..)| key != name);
    }

    /// The bytes before the tensor data, not yet padded.
    pub(in crate::model) fn header(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            bytes.extend_from_slice(&text(key));
            bytes.extend_from_slice(value);
        }
        for (name, dimensions, kind, offset) in &self.tensors {
            bytes.extend_from_slice(&text(name));
            bytes.extend_from_slice(&(dimensions.len() as u32).to_le_bytes());
            for length in dimensions {
                bytes.extend_from_slice(&length.to_le_bytes());
            }
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&offset.to_le_bytes());
        }
        bytes
    }

    pub(in crate::model) fn build(&self) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend_from_slice(&self.data);
        bytes
    }
}

pub(in crate::model) fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(value.as_bytes());
    bytes
}
