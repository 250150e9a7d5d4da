//! Opening untrusted files: regular ones only, and no more of them than is needed.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::error::{ModelError, Shown};

/// Opens a regular file and tells its size. Anything else (a pipe would block forever) is refused.
pub(super) fn open(path: &Path) -> Result<(File, u64), ModelError> {
    let error = |source| ModelError::Read { file: path.into(), source };
    let metadata = fs::metadata(path).map_err(error)?;
    if !metadata.is_file() {
        let found = if metadata.is_dir() { "a folder" } else { "not a regular file" };
        return Err(ModelError::NotAModel { path: path.into(), found: format!("it is {found}") });
    }
    Ok((File::open(path).map_err(error)?, metadata.len()))
}

/// Reads a whole file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    let (file, size) = open(path)?;
    let too_large = || ModelError::Damaged {
        file: path.into(),
        problem: format!("it is larger than the {limit} bytes such a file may have"),
    };
    if size > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ModelError::Read { file: path.into(), source })?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

/// As [`read`], for JSON objects.
pub(super) fn read_object(
    path: &Path,
    limit: u64,
) -> Result<serde_json::Map<String, serde_json::Value>, ModelError> {
    let bytes = read(path, limit)?;
    serde_json::from_slice(&bytes).map_err(|error| ModelError::Settings {
        file: path.into(),
        problem: format!("not a JSON object: {}", Shown::new(&error.to_string())),
    })
}

/// As [`read`], for UTF-8 text.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String, ModelError> {
    String::from_utf8(read(path, limit)?).map_err(|error| ModelError::Settings {
        file: path.into(),
        problem: format!("not UTF-8 text: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_limit_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, b"{\"a\": 1}").unwrap();
        assert!(read_object(&path, 8).unwrap().contains_key("a"));
        let error = read_object(&path, 7).unwrap_err().to_string();
        assert!(error.contains("larger than the 7 bytes"), "{error}");
    }

    #[test]
    fn pipes_and_folders_are_refused_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("config.json");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        assert!(matches!(read(&pipe, 10), Err(ModelError::NotAModel { .. })));
        assert!(matches!(read(folder.path(), 10), Err(ModelError::NotAModel { .. })));
    }
}
