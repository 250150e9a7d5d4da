//! [`crate::files`] and [`crate::json`] with the errors of a model.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::ModelError;
use crate::files::{self, Folder, FolderError};
use crate::json;
use crate::text::Shown;

/// Most values in one JSON object. The largest real files describe some 30,000 added tokens with seven values
/// each.
const MAX_VALUES: usize = 1 << 19;

/// Opens a regular file and returns its size.
pub(super) fn open(path: &Path) -> Result<(File, u64), ModelError> {
    files::open(path).map_err(unreadable(path))
}

/// Reads a whole file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    files::read(path, limit).map_err(unreadable(path))
}

/// As [`read`], for JSON objects.
pub(super) fn read_object(path: &Path, limit: u64) -> Result<Map<String, Value>, ModelError> {
    json::from_slice(&read(path, limit)?, MAX_VALUES).map_err(|error| ModelError::Settings {
        file: path.into(),
        problem: format!("not a JSON object: {}", Shown::new(&error.to_string())),
    })
}

/// As [`read`], for UTF-8 text.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String, ModelError> {
    files::read_text(path, limit).map_err(unreadable(path))
}

/// Opens the folder of a model or an adapter.
pub(super) fn folder(path: &Path) -> Result<Folder, ModelError> {
    Folder::open(path).map_err(|error| misplaced(path, error))
}

/// The path of a file in the folder; `None` if it does not exist.
pub(super) fn find(folder: &Folder, name: &str) -> Result<Option<PathBuf>, ModelError> {
    folder.find(name).map_err(|error| misplaced(&folder.path().join(name), error))
}

/// The error for a file that is not inside its folder.
pub(super) fn misplaced(file: &Path, error: FolderError) -> ModelError {
    match error {
        FolderError::Follow { path, source } => ModelError::Read { file: (&path).into(), source },
        FolderError::Link { target } => ModelError::Outside { file: file.into(), target: (&target).into() },
        FolderError::Name => ModelError::Outside { file: file.into(), target: file.into() },
    }
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> ModelError {
    move |source| ModelError::Read { file: path.into(), source }
}
