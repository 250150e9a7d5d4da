//! Rows that the user has excluded: `quarantine.json` in the project, a JSON list of row hashes. A hash behind
//! `copies:` excludes all rows that have it but the first.

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
/// Stands before a hash of which the first row is used.
const COPIES: &str = "copies:";

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

    /// Whether all rows with this hash are excluded.
    pub fn contains(&self, hash: &str) -> bool {
        self.hashes.contains(hash)
    }

    /// Whether all rows with this hash but the first are excluded.
    pub fn contains_copies(&self, hash: &str) -> bool {
        self.hashes.contains(&of_copies(hash))
    }

    /// Every hash that is listed, also those of copies.
    pub fn hashes(&self) -> impl Iterator<Item = &str> {
        self.hashes.iter().map(|entry| entry.strip_prefix(COPIES).unwrap_or(entry))
    }

    /// Every entry as it is listed.
    pub(super) fn entries(&self) -> impl Iterator<Item = &str> {
        self.hashes.iter().map(String::as_str)
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Excludes all rows with this hash. Returns whether that changes anything.
    pub fn insert(&mut self, hash: &str) -> bool {
        self.hashes.remove(&of_copies(hash));
        self.hashes.insert(hash.to_owned())
    }

    /// Excludes all rows with this hash but the first. Returns whether that changes anything.
    pub fn insert_copies(&mut self, hash: &str) -> bool {
        !self.contains(hash) && self.hashes.insert(of_copies(hash))
    }

    /// Lets all rows with this hash back. Returns whether it was listed.
    pub fn remove(&mut self, hash: &str) -> bool {
        let copies = self.hashes.remove(&of_copies(hash));
        self.hashes.remove(hash) || copies
    }

    /// Lets all rows back.
    pub fn clear(&mut self) {
        self.hashes.clear();
    }

    /// Replaces the file atomically.
    pub fn save(&self) -> Result<(), DataError> {
        let fail = |source| DataError::Write { path: self.path.clone(), source };
        let mut text = serde_json::to_string_pretty(&self.hashes).map_err(|error| fail(error.into()))?;
        text.push('\n');
        files::replace(&self.path, text.as_bytes(), Access::Shared).map_err(fail)
    }
}

fn of_copies(hash: &str) -> String {
    format!("{COPIES}{hash}")
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
        assert!(quarantine.insert("aa"));
        assert!(quarantine.insert("bb"));
        assert!(quarantine.remove("aa"));
        quarantine.save().unwrap();
        let again = Quarantine::load(project.path()).unwrap();
        assert_eq!(again, quarantine);
        assert!(again.contains("bb") && !again.contains("aa"));
        assert_eq!(fs::read_dir(project.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_hash_is_listed_once_for_all_rows_or_for_copies() {
        let project = tempfile::tempdir().unwrap();
        let mut quarantine = Quarantine::load(project.path()).unwrap();
        assert!(quarantine.insert_copies("aa") && !quarantine.insert_copies("aa"));
        assert!(quarantine.contains_copies("aa") && !quarantine.contains("aa"));
        quarantine.save().unwrap();
        assert_eq!(Quarantine::load(project.path()).unwrap(), quarantine);
        assert!(quarantine.insert("aa") && !quarantine.insert("aa") && !quarantine.insert_copies("aa"));
        assert_eq!(quarantine.hashes().collect::<Vec<_>>(), ["aa"]);
        assert!(quarantine.remove("aa") && !quarantine.remove("aa"));
        assert!(quarantine.insert_copies("bb") && quarantine.remove("bb") && quarantine.is_empty());
        quarantine.insert("cc");
        quarantine.clear();
        assert!(quarantine.is_empty());
    }

    #[test]
    fn a_broken_list_is_reported() {
        let project = tempfile::tempdir().unwrap();
        fs::write(project.path().join(FILE), "{}").unwrap();
        let error = Quarantine::load(project.path()).unwrap_err().to_string();
        assert!(error.contains("quarantine.json") && error.contains("list of row hashes"), "{error}");
    }
}
