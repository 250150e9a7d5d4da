//! Rows that the user has excluded: `quarantine.json` in the project, a JSON list of row hashes.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::DataError;
use crate::files::{self, Access};
use crate::json;
use crate::text::clean_line;

const FILE: &str = "quarantine.json";
/// Largest file that is read; enough for a million rows.
const MAX_BYTES: u64 = 32 << 20;
const MAX_ROWS: usize = 1 << 20;

/// The hashes ([`super::Row::hash`]) of rows that are not used at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quarantine {
    path: PathBuf,
    hashes: BTreeSet<String>,
}

impl Quarantine {
    /// The project's list; empty if there is no file.
    pub fn load(project: &Path) -> Result<Self, DataError> {
        let path = project.join(FILE);
        let text = match files::read(&path, MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Quarantine { path, ..Self::default() });
            }
            Err(error) => return Err(DataError::read(&path, error)),
        };
        let hashes = json::from_slice(&text, MAX_ROWS).map_err(|error| {
            DataError::file(
                &path,
                format!("not a JSON list of row hashes: {}", clean_line(&error.to_string())),
            )
        })?;
        Ok(Quarantine { path, hashes })
    }

    pub fn contains(&self, hash: &str) -> bool {
        self.hashes.contains(hash)
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Adds a hash, or removes it if it is listed. Returns whether it is listed now.
    pub fn toggle(&mut self, hash: &str) -> bool {
        if self.hashes.remove(hash) {
            return false;
        }
        self.hashes.insert(hash.to_owned())
    }

    /// Replaces the file atomically.
    pub fn save(&self) -> Result<(), DataError> {
        let fail = |source| DataError::Write { path: self.path.clone(), source };
        let mut text = serde_json::to_string_pretty(&self.hashes).map_err(|error| fail(error.into()))?;
        text.push('\n');
        files::replace(&self.path, text.as_bytes(), Access::Shared).map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_saved_list_reads_back_equal() {
        let project = tempfile::tempdir().unwrap();
        let mut quarantine = Quarantine::load(project.path()).unwrap();
        assert!(quarantine.is_empty());
        assert!(quarantine.toggle("aa"));
        assert!(quarantine.toggle("bb"));
        assert!(!quarantine.toggle("aa"));
        quarantine.save().unwrap();
        let again = Quarantine::load(project.path()).unwrap();
        assert_eq!(again, quarantine);
        assert!(again.contains("bb") && !again.contains("aa"));
        assert_eq!(fs::read_dir(project.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_broken_list_is_reported() {
        let project = tempfile::tempdir().unwrap();
        fs::write(project.path().join(FILE), "{}").unwrap();
        let error = Quarantine::load(project.path()).unwrap_err().to_string();
        assert!(error.contains("quarantine.json") && error.contains("list of row hashes"), "{error}");
    }
}
