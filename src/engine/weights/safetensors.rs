//! Named tensors in a safetensors file (<https://github.com/huggingface/safetensors#format>).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::error::{EngineError, Result};
use crate::ops;

/// Largest file that [`read`] takes into memory: adapters and training state, never a base model.
const LARGEST: u64 = 64 << 30;

/// All tensors of a file, on the CPU, in memory of their own.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let failed = |source| EngineError::File { action: "read", path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(failed(io::Error::other("it is no ordinary file, or too large")));
    }
    let tensors = Tensor::read_safetensors(path).map_err(|error| EngineError::Model {
        path: path.to_owned(),
        message: format!("not a safetensors file: {}", luthier_core::text::clean_line(&error.to_string())),
    })?;
    Ok(tensors.into_iter().collect())
}

/// Writes tensors in order of their names, with the metadata that Hugging Face libraries look for. Replaces what is
/// there; not atomic.
pub fn write<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let failed = |source| EngineError::File { action: "write", path: path.to_owned(), source };
    let mut tensors: Vec<(&str, &Tensor)> = tensors.into_iter().collect();
    tensors.sort_by_key(|(name, _)| *name);
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for (name, tensor) in &tensors {
        let start = end;
        end += tensor.numel() * tensor.kind().elt_size_in_bytes();
        let dtype = dtype(tensor.kind()).ok_or_else(|| ops::mismatch("write", &[tensor], "no such dtype"))?;
        header.insert(
            (*name).to_owned(),
            json!({ "dtype": dtype, "shape": tensor.size(), "data_offsets": [start, end] }),
        );
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // The format aligns data to 8 bytes, so that readers can map it.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    let mut bytes = Vec::new();
    for (_, tensor) in tensors {
        let plain = ops::contiguous(&ops::to_device(&ops::detach(tensor)?, Device::Cpu)?)?;
        bytes.resize(plain.numel() * plain.kind().elt_size_in_bytes(), 0);
        ops::copy_bytes(&plain, &mut bytes)?;
        file.write_all(&bytes).map_err(failed)?;
    }
    file.flush().map_err(failed)
}

fn dtype(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Float => Some("F32"),
        Kind::BFloat16 => Some("BF16"),
        Kind::Half => Some("F16"),
        Kind::Int64 => Some("I64"),
        Kind::Bool => Some("BOOL"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
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
        assert!(matches!(read(&path), Err(EngineError::File { .. })));
        assert!(matches!(read(folder.path()), Err(EngineError::File { .. })));
        for bytes in [&b"short"[..], &[0xFF; 64], b"\x10\0\0\0\0\0\0\0{\"a\":1}        "] {
            fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("not a safetensors file"), "{error}");
        }
    }
}
