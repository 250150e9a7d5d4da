//! Reads an adapter folder in PEFT layout: settings and tensor headers, not weights.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::ModelError;
use super::safetensors::{Header, Tensor};
use super::{files, folder};

pub const CONFIG_FILE: &str = "adapter_config.json";

pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Largest `adapter_config.json` that is read; real ones have a few thousand bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// An adapter on disk: everything its files say about it, without the weights. Not yet checked against a base
/// model.
#[derive(Debug)]
pub struct AdapterFiles {
    pub folder: PathBuf,
    /// Content of `adapter_config.json`.
    pub config: Map<String, Value>,
    /// The tensors of `adapter_model.safetensors`, in file order.
    pub tensors: Vec<Tensor>,
    /// `adapter_model.safetensors`, opened.
    pub weights: File,
}

impl AdapterFiles {
    /// Reads a folder. Both files must be regular files inside it and within their size limits: links out of
    /// the folder and pickles are refused.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let found = files::folder(folder)?;
        let missing = |missing| ModelError::NotAnAdapter { folder: folder.into(), missing };
        let config = files::find(&found, CONFIG_FILE)?.ok_or_else(|| missing(CONFIG_FILE))?;
        let config = files::read_object(&config, MAX_CONFIG)?;
        let Some(weights) = files::find(&found, WEIGHTS_FILE)? else {
            return Err(match pickle(folder) {
                Some(file) => ModelError::AdapterPickle { file: (&file).into(), folder: folder.into() },
                None => missing(WEIGHTS_FILE),
            });
        };
        let (weights, header) = Header::open(&weights)?;
        Ok(Self { folder: folder.to_owned(), config, tensors: header.tensors, weights })
    }
}

/// A pickle in the folder; PEFT's `adapter_model.bin` first if there is one.
fn pickle(root: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension().is_some_and(|found| folder::PICKLES.iter().any(|pickle| found == *pickle))
        })
        .collect();
    found.sort_by_key(|path| (!path.ends_with("adapter_model.bin"), path.clone()));
    found.into_iter().next()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;
    use crate::model::safetensors::Dtype;
    use crate::model::storage::Storage;

    const HEADER: &str = r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;

    fn adapter(config: &[u8], header: &[u8], data: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG_FILE), config).unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes(), header, &vec![0; data]].concat();
        fs::write(folder.path().join(WEIGHTS_FILE), bytes).unwrap();
        folder
    }

    fn good() -> tempfile::TempDir {
        adapter(br#"{"peft_type": "LORA", "r": 8}"#, HEADER.as_bytes(), 24)
    }

    fn refusal(folder: &Path) -> String {
        AdapterFiles::open(folder).unwrap_err().to_string()
    }

    #[test]
    fn settings_and_shapes_are_read() {
        let folder = good();
        let files = AdapterFiles::open(folder.path()).unwrap();
        assert_eq!(files.config["r"], 8);
        let [tensor] = files.tensors.as_slice() else { panic!("{files:?}") };
        assert_eq!((tensor.name.as_str(), tensor.shape.as_slice()), ("a", &[2, 3][..]));
        assert_eq!(tensor.dtype, Dtype::Weight(Storage::F32));
    }

    #[test]
    fn missing_files_and_pickles_are_reported_with_a_remedy() {
        let folder = good();
        fs::rename(folder.path().join(WEIGHTS_FILE), folder.path().join("x.pt")).unwrap();
        assert!(refusal(folder.path()).contains("x.pt is a pickle file"));
        fs::write(folder.path().join("adapter_model.bin"), b"x").unwrap();
        let error = refusal(folder.path());
        for words in ["adapter_model.bin is a pickle file", "weights_only=True", "save_file"] {
            assert!(error.contains(words), "{error}");
        }
        fs::remove_file(folder.path().join("adapter_model.bin")).unwrap();
        fs::remove_file(folder.path().join("x.pt")).unwrap();
        assert!(refusal(folder.path()).contains("holds no adapter_model.safetensors"));
        fs::remove_file(folder.path().join(CONFIG_FILE)).unwrap();
        assert!(refusal(folder.path()).contains("holds no adapter_config.json"));
        assert!(refusal(Path::new("/nowhere/at/all")).contains("/nowhere/at/all"));
    }

    #[test]
    fn pipes_folders_and_endless_files_are_refused_without_waiting() {
        for name in [CONFIG_FILE, WEIGHTS_FILE] {
            let folder = good();
            let path = folder.path().join(name);
            fs::remove_file(&path).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
            assert!(refusal(folder.path()).contains("a pipe"));
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            assert!(refusal(folder.path()).contains("it is a folder"));
            fs::remove_dir(&path).unwrap();
            symlink("/dev/zero", &path).unwrap();
            assert!(refusal(folder.path()).contains("outside of its folder"));
        }
        let folder = good();
        File::create(folder.path().join(CONFIG_FILE)).unwrap().set_len(1 << 30).unwrap();
        assert!(refusal(folder.path()).contains("larger than"));
    }

    #[test]
    fn links_out_of_the_folder_are_not_opened() {
        let outside = good();
        for name in [CONFIG_FILE, WEIGHTS_FILE] {
            let folder = good();
            fs::remove_file(folder.path().join(name)).unwrap();
            symlink(outside.path().join(name), folder.path().join(name)).unwrap();
            let error = refusal(folder.path());
            assert!(error.contains("outside of its folder") && error.contains(name), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_cause_a_panic(
            config in prop::collection::vec(any::<u8>(), 0..100),
            header in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let _ = AdapterFiles::open(adapter(&config, HEADER.as_bytes(), 24).path());
            let _ = AdapterFiles::open(adapter(b"{}", &header, 24).path());
        }
    }
}
