//! The operations of the product, each in one place. The command line and the panes only present them: they
//! pass typed input, show progress, and print or draw the result or the [`Refusal`].

mod control;
mod convert;
mod diff;
mod edits;
mod evaluate;
mod export;
mod plan;
mod problems;
mod pull;
mod quarantine;
mod queue;
mod refusal;
mod serving;
mod split;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use luthier_core::config::Config;
use luthier_core::data::{self, Checked, Dataset, KeptChecks};
use luthier_core::machine::{self, CudaVersion, Sighting};
use luthier_core::model::ModelFiles;
use luthier_core::plan::{Place, PlanError};
use luthier_core::runs::{self, RunError};

use luthier_core::paths::cache_folder;

pub use control::{ask, edit, put_back, resume, undo_edit, write_setting};
pub use convert::{Converted, convert};
pub use diff::{Difference, diff};
pub use edits::{Draft, rewrite, undo};
pub use evaluate::{EvaluationProgress, evaluate};
pub use export::{export_pairs, verdicts};
pub use plan::{Planned, Ready, plan, ready, unblocked};
pub use problems::described;
pub use pull::pull;
pub use quarantine::{Aside, Back, Changed, Entry, bring_back, entries, put, set_aside};
pub use queue::{Change, Queued, SWEEP_EXAMPLE, add, change, sweep};
pub use refusal::Refusal;
pub use serving::{Server, StartServing, Unserved, sampling};
pub use split::{SplitChoice, set_split, split_choices};

/// Hears how many rows of how many are checked, and says whether to go on.
pub type Progress<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

/// A project with its settings.
#[derive(Clone, Debug)]
pub struct Project {
    /// Its folder, absolute.
    pub folder: PathBuf,
    /// `luthier.toml` with what was set over it.
    pub config: Config,
    /// Results of earlier checks; nothing where they are not kept.
    pub kept: Option<KeptChecks>,
}

impl Project {
    /// Reads `luthier.toml` of `folder` and puts `settings`, each `KEY=VALUE`, over it.
    pub fn open(folder: &Path, settings: &[String]) -> Result<Self, Refusal> {
        Ok(Self::with(folder, Config::load(folder, settings)?))
    }

    /// A project with other settings than those of its `luthier.toml`.
    pub fn with(folder: &Path, config: Config) -> Self {
        // Tests leave the user's cache alone.
        let folder_of_checks = cache_folder().filter(|_| !cfg!(test)).map(|folder| folder.join("checks"));
        let kept = folder_of_checks.map(KeptChecks::new);
        Self { folder: folder.to_owned(), config, kept }
    }

    /// Opens the base model's files.
    pub fn model(&self) -> Result<ModelFiles, Refusal> {
        Ok(ModelFiles::find(&self.config.model.path, &self.folder)?)
    }

    /// Reads, tokenises and checks the data. What is wrong with single rows is in the report.
    pub fn check_data(&self, files: &ModelFiles, progress: &mut Progress) -> Result<Checked, Refusal> {
        Ok(data::check(&self.config, &self.folder, files, self.kept.as_ref(), progress)?)
    }

    /// As [`Project::check_data`], of rows that were read.
    pub fn check_dataset(
        &self,
        files: &ModelFiles,
        dataset: &Dataset,
        progress: &mut Progress,
    ) -> Result<Checked, Refusal> {
        let kept = self.kept.as_ref();
        Ok(data::check_dataset(&self.config, &self.folder, files, dataset, kept, progress)?)
    }
}

/// The CUDA of the libtorch that the engine loads: of the first in `LD_LIBRARY_PATH`, or else the one it was built
/// against.
pub fn torch_cuda() -> Option<CudaVersion> {
    let paths = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&paths).chain([PathBuf::from(env!("LUTHIER_LIBTORCH"))]);
    CudaVersion::of_libtorch(&folders.find(|folder| folder.join("libtorch_cpu.so").exists())?)
}

/// What operations need to know about the machine. Tests replace single parts.
#[derive(Clone, Copy)]
pub struct Host {
    /// Finds the engine.
    pub engine: fn() -> Result<PathBuf, RunError>,
    /// Finds the device that a configuration asks for, and its free memory.
    pub place: fn(&Config) -> Result<Place, PlanError>,
    /// Free bytes of the file system that holds a path.
    pub free_disk: fn(&Path) -> io::Result<u64>,
}

impl Host {
    /// The machine this process runs on.
    pub const THIS: Self = Self {
        engine: runs::engine_executable,
        place: |config| Place::of(config, || Sighting::here(torch_cuda())),
        free_disk: machine::free_disk_bytes,
    };
}

impl fmt::Debug for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Host").finish_non_exhaustive()
    }
}
