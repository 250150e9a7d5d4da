//! Where the download cache of a Hugging Face hub keeps models. Nothing here uses the network.
//!
//! The cache is laid out as `huggingface_hub` lays it out, so that each tool finds what another has downloaded
//! (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>): the files of a commit are links,
//! `models--ORG--NAME/snapshots/COMMIT/FILE`, into `models--ORG--NAME/blobs`, and `models--ORG--NAME/refs/REVISION`
//! holds the commit for which a branch or tag stood when it was last asked for.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::error::ModelError;
use super::files;
use crate::hub::{HubModel, is_plain_file_name};

/// Largest file below `refs` that is read.
const LARGEST_REFERENCE: u64 = 1024;

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

    /// The folder of a dataset, all of its commits.
    pub fn dataset(&self, name: &HubModel) -> PathBuf {
        self.root.join(format!("datasets--{}", joined(name)))
    }

    /// The folder of a dataset's files at its revision, if it is in the cache.
    pub fn find_dataset(&self, name: &HubModel) -> Option<PathBuf> {
        let repository = self.dataset(name);
        let commit = commit_in(&repository.join("refs").join(name.revision()), name)?;
        Some(repository.join("snapshots").join(commit)).filter(|folder| folder.is_dir())
    }

    fn commit(&self, model: &HubModel) -> Option<String> {
        commit_in(&self.reference(model), model)
    }
}

/// The commit that a name means: itself, or what the file of its revision holds.
fn commit_in(reference: &Path, name: &HubModel) -> Option<String> {
    if let Some(commit) = name.commit() {
        return Some(commit.to_owned());
    }
    let held = files::read_text(reference, LARGEST_REFERENCE).ok()?;
    Some(held.trim().to_owned()).filter(|commit| is_plain_file_name(commit))
}

fn folder_name(model: &HubModel) -> String {
    format!("models--{}", joined(model))
}

/// Organisation and name as one part of a folder's name.
fn joined(name: &HubModel) -> String {
    name.repository().replace('/', "--")
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
        Some(model) => model.repository().to_owned(),
        None => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests;
