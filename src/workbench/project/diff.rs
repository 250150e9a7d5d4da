//! How the settings of two runs, or of a run and the project, differ.

use luthier_core::config::{Config, Edit, FILE_NAME, edit_plan};
use luthier_core::runs::RunDir;

use super::Refusal;

/// What differs, from the older side to the newer one.
#[derive(Debug)]
pub struct Difference {
    /// The older run.
    pub old: String,
    /// The newer run, or `luthier.toml`.
    pub new: String,
    /// Each setting that differs.
    pub edits: Vec<Edit>,
}

/// Compares a run's settings with those of another run, or of the project as it is now.
pub fn diff(run: &RunDir, other: Option<&RunDir>) -> Result<Difference, Refusal> {
    let settings = |run: &RunDir| Config::load_file(&run.config_path(), &[]);
    let (old, new, edits) = if let Some(other) = other {
        // Ids begin with the time at which the run was made.
        let (old, new) = if other.id() < run.id() { (other, run) } else { (run, other) };
        (old.id(), new.id(), edit_plan(&settings(old)?, &settings(new)?).edits)
    } else {
        let file = Config::load(run.project(), &[])?;
        (run.id(), FILE_NAME, edit_plan(&settings(run)?, &file).edits)
    };
    Ok(Difference { old: old.to_owned(), new: new.to_owned(), edits })
}
