//! Named tensors in a safetensors file (<https://github.com/huggingface/safetensors#format>).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use luthier_core::model::Storage;
use luthier_core::model::safetensors::{Dtype, Header, Tensor as Entry};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::error::{EngineError, Result};
use crate::ops;

/// The tensors of an open file, read one at a time on request: the sizes that a file claims allocate nothing
/// before that.
#[derive(Debug)]
pub struct Stored {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Entry>,
}

impl Stored {
    /// Opens a file and reads its header.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, header) = Header::open(path)?;
        Ok(Self::new(path, file, header.tensors))
    }

    /// From an open file and its parsed header.
    pub fn new(path: &Path, file: File, tensors: Vec<Entry>) -> Self {
        let entries = tensors.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        Self { path: path.to_owned(), file, entries }
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// A tensor's header entry; `None` if there is no such tensor.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Reads a tensor into its own memory on the CPU.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let wrong = |message: String| EngineError::Model {
            path: self.path.clone(),
            message: format!("tensor {} {message}", luthier_core::text::clean_line(name)),
        };
        let entry = self.entries.get(name).ok_or_else(|| wrong("is missing".into()))?;
        let kind = kind(entry.dtype).ok_or_else(|| wrong(format!("is of type {}", entry.dtype.name())))?;
        let shape: Vec<i64> = entry.shape.iter().map(|&length| length as i64).collect();
        let mut bytes = vec![0; entry.bytes as usize];
        self.file.read_exact_at(&mut bytes, entry.offset).map_err(|source| EngineError::File {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        ops::from_bytes(&bytes, &shape, kind)
    }
}

/// Reads all tensors of a file into their own memory on the CPU.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let stored = Stored::open(path)?;
    stored.names().map(|name| Ok((name.to_owned(), stored.read(name)?))).collect()
}

/// Writes tensors in order of their names, with the metadata that Hugging Face libraries look for. Replaces
/// an existing file; not atomic.
pub fn write<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    write_as(path, tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor, tensor.kind())))
}

/// As [`write`], with each tensor converted to a type, one after another.
pub fn write_as<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, &'a Tensor, Kind)>,
) -> Result<()> {
    let failed = |source| EngineError::File { action: "write", path: path.to_owned(), source };
    let mut tensors: Vec<(String, &Tensor, Kind)> = tensors.into_iter().collect();
    tensors.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for (name, tensor, kind) in &tensors {
        let start = end;
        end += tensor.numel() * kind.elt_size_in_bytes();
        let dtype = dtype(*kind).ok_or_else(|| EngineError::mismatch("write", &[tensor], "no such dtype"))?;
        header.insert(
            name.clone(),
            json!({ "dtype": dtype, "shape": tensor.size(), "data_offsets": [start, end] }),
        );
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // The format aligns data to 8 bytes so that readers can map it.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    let mut bytes = Vec::new();
    for (_, tensor, kind) in tensors {
        let plain = ops::to_kind(&ops::detach(tensor)?, kind)?;
        let plain = ops::contiguous(&ops::to_device(&plain, Device::Cpu)?)?;
        bytes.resize(plain.numel() * plain.kind().elt_size_in_bytes(), 0);
        ops::copy_bytes(&plain, &mut bytes)?;
        file.write_all(&bytes).map_err(failed)?;
    }
    file.flush().map_err(failed)
}

fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::Weight(Storage::F32) => Some(Kind::Float),
        Dtype::Weight(Storage::BF16) => Some(Kind::BFloat16),
        Dtype::Weight(Storage::F16) => Some(Kind::Half),
        Dtype::Weight(_) => None,
        Dtype::Other(name, _) => match name {
            "I64" => Some(Kind::Int64),
            "U8" => Some(Kind::Uint8),
            "BOOL" => Some(Kind::Bool),
            _ => None,
        },
    }
}

fn dtype(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Float => Some("F32"),
        Kind::BFloat16 => Some("BF16"),
        Kind::Half => Some("F16"),
        Kind::Int64 => Some("I64"),
        Kind::Uint8 => Some("U8"),
        Kind::Bool => Some("BOOL"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_tensors_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let a = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]);
        let b = Tensor::from_slice(&[1_i64, -2]);
        let c = a.tr().to_kind(Kind::BFloat16);
        let none = Tensor::zeros([0, 4], (Kind::Half, Device::Cpu));
        write(&path, [("b", &b), ("a", &a), ("c", &c), ("none", &none)]).unwrap();
        let back = read(&path).unwrap();
        assert_eq!(back.keys().collect::<Vec<_>>(), ["a", "b", "c", "none"]);
        assert_eq!((&back["a"], &back["b"], &back["c"]), (&a, &b, &c));
        assert_eq!((back["none"].size(), back["none"].kind()), (vec![0, 4], Kind::Half));
    }

    #[test]
    fn damaged_and_missing_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        assert!(read(&path).unwrap_err().to_string().contains("No such file"));
        assert!(read(folder.path()).unwrap_err().to_string().contains("it is a folder"));
        for bytes in [&b"short"[..], &[0xFF; 64], b"\x10\0\0\0\0\0\0\0{\"a\":1}        "] {
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("x.safetensors is damaged"), "{error}");
        }
    }

    #[test]
    fn an_unsupported_type_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let header = r#"{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#;
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat();
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("tensor a is of type F64"), "{error}");
    }
}
