//! Models of a Hugging Face hub, by name, and where the hub's download cache keeps them. Nothing here uses the network.
//!
//! The cache is laid out as `huggingface_hub` lays it out, so that each tool finds what another has downloaded
//! (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>): the files of a commit are links,
//! `models--ORG--NAME/snapshots/COMMIT/FILE`, into `models--ORG--NAME/blobs`, and `models--ORG--NAME/refs/REVISION`
//! holds the commit for which a branch or tag stood when it was last asked for.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::error::{ModelError, Shown};
use super::files;

/// What the name of a hub's model begins with.
const PREFIX: &str = "hf:";

/// The revision where none is named.
const DEFAULT_REVISION: &str = "main";

/// Most characters of an organisation's or a model's name, as the hub has it.
const LONGEST_NAME: usize = 96;

/// Most characters of a name that becomes a file's: room is left for what is put behind it.
const LONGEST_FILE: usize = 200;

/// Largest file below `refs` that is read.
const LARGEST_REFERENCE: u64 = 1024;

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

/// Where tools of the hub keep what they share, as huggingface_hub finds it
/// (<https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFolders {
    /// Downloaded models: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `$XDG_CACHE_HOME/huggingface`, else in
    /// `~/.cache/huggingface`.
    pub cache: PathBuf,
    /// The file that holds the token: `HF_TOKEN_PATH`, else `token` beside the cache's default place.
    pub token: PathBuf,
}

impl HubFolders {
    /// As the variables of this process say.
    pub fn of_environment() -> Result<Self, ModelError> {
        Self::from_variables(&|name| std::env::var_os(name), std::env::home_dir().as_deref())
            .ok_or(ModelError::NoHubCache)
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>, user: Option<&Path>) -> Option<Self> {
        let path = |name| {
            let path = PathBuf::from(variable(name).filter(|value| !value.is_empty())?);
            match (path.strip_prefix("~"), user) {
                (Ok(below), Some(user)) => Some(user.join(below)),
                _ => Some(path),
            }
        };
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(user?.join(".cache/huggingface")));
        let in_home = |name| Some(home.as_ref()?.join(name));
        Some(Self {
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .or_else(|| in_home("hub"))?,
            token: path("HF_TOKEN_PATH").or_else(|| in_home("token"))?,
        })
    }
}

/// The hub's download cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubCache {
    root: PathBuf,
}

impl HubCache {
    /// The cache in this folder, which need not exist.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a model, all of its commits.
    pub fn repository(&self, model: &HubModel) -> PathBuf {
        self.root.join(folder_name(model))
    }

    /// The folder of what is known of a model's revisions.
    pub fn references(&self, model: &HubModel) -> PathBuf {
        self.repository(model).join("refs")
    }

    /// The file that holds the commit for which the model's revision stands.
    pub fn reference(&self, model: &HubModel) -> PathBuf {
        self.references(model).join(model.revision())
    }

    /// The folder of a model's files at a commit.
    pub fn snapshot(&self, model: &HubModel, commit: &str) -> PathBuf {
        self.repository(model).join("snapshots").join(commit)
    }

    /// The content that the hub names `etag`.
    pub fn blob(&self, model: &HubModel, etag: &str) -> PathBuf {
        self.repository(model).join("blobs").join(etag)
    }

    /// The lock file for downloading the content named `etag`.
    pub fn lock(&self, model: &HubModel, etag: &str) -> PathBuf {
        self.root.join(".locks").join(folder_name(model)).join(format!("{etag}.lock"))
    }

    /// Where the model lies: the folder of its commit, or the GGUF file that is named. Errs with what fetches it where it
    /// is not there, or only in parts that make no model, such as a tokenizer alone.
    pub fn find(&self, model: &HubModel) -> Result<PathBuf, ModelError> {
        let found = self.commit(model).and_then(|commit| {
            let snapshot = self.snapshot(model, &commit);
            match model.file() {
                Some(file) => Some(snapshot.join(file)).filter(|file| file.is_file()),
                None => Some(snapshot).filter(|folder| folder.join("config.json").is_file()),
            }
        });
        found.ok_or_else(|| ModelError::NotInCache { model: model.clone(), cache: (&self.root).into() })
    }

    fn commit(&self, model: &HubModel) -> Option<String> {
        if let Some(commit) = model.commit() {
            return Some(commit.to_owned());
        }
        let held = files::read_text(&self.reference(model), LARGEST_REFERENCE).ok()?;
        Some(held.trim().to_owned()).filter(|commit| is_plain_file_name(commit))
    }
}

fn folder_name(model: &HubModel) -> String {
    format!("models--{}", model.repository().replace('/', "--"))
}

/// Where the model lies that `model.path`, or an argument in its place, names: a name of the hub leads into the download
/// cache, a relative path starts at `project`. Whether a model is at the path shows when it is opened.
pub fn locate(path: &Path, project: &Path) -> Result<PathBuf, ModelError> {
    match path.to_str().filter(|name| HubModel::is_meant_by(name)) {
        Some(name) => HubCache::new(HubFolders::of_environment()?.cache)
            .find(&HubModel::parse(name).map_err(ModelError::HubName)?),
        None => Ok(project.join(path)),
    }
}

/// What `model.path` is called in an adapter's folder: other tools know a model of the hub as `org/name`.
pub fn public_name(path: &Path) -> String {
    match path.to_str().and_then(|name| HubModel::parse(name).ok()) {
        Some(model) => model.repository,
        None => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests;
