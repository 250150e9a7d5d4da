//! `-C` and `--set`, which project commands share.

use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{Failure, Outcome};
use crate::project::Project;

/// Which project a command works on.
#[derive(Debug, Args)]
pub struct Folder {
    /// Project folder
    #[arg(short = 'C', value_name = "DIR", default_value = ".", hide_default_value = true)]
    directory: PathBuf,
}

/// Which project a command works on, and what is set over its `luthier.toml`.
#[derive(Debug, Args)]
pub struct Settings {
    #[command(flatten)]
    folder: Folder,
    /// A setting that overrides luthier.toml, such as train.epochs=1; repeatable
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl Folder {
    /// The folder, absolute; it must exist.
    pub fn find(&self) -> Outcome<PathBuf> {
        existing(&self.directory)
    }
}

impl Settings {
    /// What was set over the file, as written.
    pub fn set(&self) -> &[String] {
        &self.set
    }

    /// Finds the project and reads its settings.
    pub fn load(&self) -> Outcome<Project> {
        Ok(Project::open(&self.folder()?, &self.set)?)
    }

    /// The project's folder.
    pub fn folder(&self) -> Outcome<PathBuf> {
        self.folder.find()
    }
}

fn existing(folder: &Path) -> Outcome<PathBuf> {
    let shown = folder.display();
    match folder.canonicalize() {
        Ok(found) if found.is_dir() => Ok(found),
        Ok(_) => Err(Failure::usage(format!("`{shown}` is not a folder; -C takes a project folder"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Failure::usage(format!(
            "there is no folder `{shown}`; `luthier new {shown}` starts a project there"
        ))),
        Err(error) => Err(Failure::usage(format!("`{shown}` cannot be opened: {error}"))),
    }
}
