//! Names of models on a Hugging Face hub: `hf:org/name`.

use std::fmt;
use std::path::Path;

use crate::text::Shown;

/// What the name of a hub's model begins with.
const PREFIX: &str = "hf:";

/// The revision where none is named.
const DEFAULT_REVISION: &str = "main";

/// Most characters of an organisation's or a model's name, as the hub has it.
const LONGEST_NAME: usize = 96;

/// Most characters of a name that becomes a file's: room is left for what is put behind it.
const LONGEST_FILE: usize = 200;

/// Hex digits of a commit.
const COMMIT_DIGITS: usize = 40;

/// A model of a hub: `hf:org/name`, `hf:org/name@revision`, `hf:org/name@revision:file.gguf`. Every part of it is safe
/// within a path and within an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    repository: String,
    revision: Option<String>,
    file: Option<String>,
}

/// Why a text does not name a model of a hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` names no model of the hub: {problem}; write {HUB_NAME_FORM}")]
pub struct HubNameError {
    name: Shown,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// How a name is written.
pub const HUB_NAME_FORM: &str =
    "hf:org/name or hf:org/name@revision, with :file.gguf at the end for a GGUF file of it";

impl HubModel {
    /// Whether a text is meant as the name of a hub's model, rightly written or not.
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Result<Self, HubNameError> {
        let parts = text.strip_prefix(PREFIX).ok_or("it does not begin with `hf:`").and_then(|rest| {
            let (rest, file) = split(rest, ':');
            let (repository, revision) = split(rest, '@');
            check_repository(repository)?;
            revision.map_or(Ok(()), check_revision)?;
            file.map_or(Ok(()), check_file)?;
            Ok((repository, revision, file))
        });
        match parts {
            Ok((repository, revision, file)) => Ok(Self {
                repository: repository.to_owned(),
                revision: revision.map(str::to_owned),
                file: file.map(str::to_owned),
            }),
            Err(problem) => Err(HubNameError { name: Shown::new(text), problem }),
        }
    }

    /// `org/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The branch, tag or commit; `main` where none is named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// The GGUF file, where one is named.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The commit, where the revision is one.
    pub fn commit(&self) -> Option<&str> {
        let is_commit = |text: &&str| {
            text.len() == COMMIT_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        self.revision.as_deref().filter(is_commit)
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}", self.repository)?;
        if let Some(revision) = &self.revision {
            write!(formatter, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(formatter, ":{file}")?;
        }
        Ok(())
    }
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// As `validate_repo_id` of huggingface_hub has it; two hyphens separate the parts in the cache.
fn check_repository(repository: &str) -> Result<(), &'static str> {
    let Some((organisation, name)) = repository.split_once('/') else {
        return Err("it lacks an organisation or a model");
    };
    for part in [organisation, name] {
        if part.is_empty() {
            return Err("it lacks an organisation or a model");
        }
        if !part.bytes().all(is_plain) {
            return Err("organisation and model are written with letters, digits, `-`, `_` and `.` alone");
        }
        if part.len() > LONGEST_NAME {
            return Err("organisation and model have 96 characters at most");
        }
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
            return Err("organisation and model neither begin nor end with `-` or `.`");
        }
        if part.contains("--") || part.contains("..") || has_extension(part, "git") {
            return Err("organisation and model hold neither `--` nor `..`, and do not end with `.git`");
        }
    }
    Ok(())
}

fn check_revision(revision: &str) -> Result<(), &'static str> {
    // Branches and pull requests (`refs/pr/1`) have names with slashes; each part becomes a folder of the cache.
    if revision.len() <= LONGEST_FILE && revision.split('/').all(is_plain_file_name) {
        Ok(())
    } else {
        Err("a revision is a branch, tag or commit of letters, digits, `-`, `_`, `.` and `/`")
    }
}

fn check_file(file: &str) -> Result<(), &'static str> {
    if has_extension(file, "gguf") && is_plain_file_name(file) {
        Ok(())
    } else {
        Err("after the colon stands a .gguf file of the model's topmost folder")
    }
}

fn has_extension(name: &str, wanted: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == wanted)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Whether an untrusted text can name a file within a folder and stand in an address as it is: letters, digits, `-`, `_`
/// and `.`, neither hidden nor leading elsewhere.
pub fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_FILE
        && !name.starts_with(['-', '.'])
        && !name.contains("..")
        && name.bytes().all(is_plain)
}
