//! What a run would be, whether it may start, and its start.

use std::path::PathBuf;

use luthier_core::config::MethodKind;
use luthier_core::data::{Checked, Report, Severity};
use luthier_core::eval::{Objective, Suite};
use luthier_core::model::{AdapterFiles, ModelFiles};
use luthier_core::plan::{Place, Plan, plan_at};
use luthier_core::runs::{RunDir, start_detached_with};

use super::{Host, Progress, Project, Refusal};

/// What a run would train and need.
#[derive(Debug)]
pub struct Planned {
    /// The forecast.
    pub plan: Plan,
    /// What the data check found.
    pub report: Report,
    /// Tokens of the training rows.
    pub train_tokens: u64,
}

/// A run that was checked and may start.
#[derive(Debug)]
pub struct Ready {
    /// The project, with the settings that were checked.
    pub project: Project,
    /// What the run would be.
    pub planned: Planned,
    engine: PathBuf,
}

/// Forecasts a run. Rows with problems are in the report, and do not keep it from being forecast.
pub fn plan(project: &Project, host: &Host, progress: &mut Progress) -> Result<Planned, Refusal> {
    let files = project.model()?;
    let checked = project.check_data(&files, progress)?;
    project.planned(&files, &checked, host)
}

/// Checks everything that a run needs.
pub fn ready(project: Project, host: &Host, progress: &mut Progress) -> Result<Ready, Refusal> {
    // First, since the rest takes time.
    let engine = (host.engine)()?;
    let files = project.model()?;
    let checked = project.check_data(&files, progress)?;
    project.check_blocks(&checked)?;
    let planned = project.planned(&files, &checked, host)?;
    project.check_disk(&planned.plan, host)?;
    Ok(Ready { project, planned, engine })
}

impl Ready {
    /// Makes the run's directory and starts the engine on it. Returns the run and the engine's process.
    pub fn start(&self) -> Result<(RunDir, u32), Refusal> {
        let run = RunDir::create(&self.project.folder, &self.project.config, None)?;
        let process = start_detached_with(&self.engine, &run, &[])?;
        Ok((run, process))
    }
}

/// Refuses data that would break training.
pub fn unblocked(report: &Report) -> Result<(), Refusal> {
    if !report.blocks() {
        return Ok(());
    }
    let blocks = report.problems.iter().filter(|problem| problem.severity == Severity::Blocks);
    Err(Refusal::Blocked(blocks.cloned().collect()))
}

impl Project {
    /// Refuses data and settings that would break training.
    pub(super) fn check_blocks(&self, checked: &Checked) -> Result<(), Refusal> {
        // A setting is not for the data to answer for.
        checked.check_warmup(&self.config)?;
        unblocked(&checked.report)
    }

    fn planned(&self, files: &ModelFiles, checked: &Checked, host: &Host) -> Result<Planned, Refusal> {
        let place = (host.place)(&self.config)?;
        let plan = self.check_settings(files, checked, place)?;
        let train_tokens = checked.summary().train_tokens;
        Ok(Planned { plan, report: checked.report.clone(), train_tokens })
    }

    /// Checks the settings against the data, the model and the files they name.
    pub(super) fn check_settings(
        &self,
        files: &ModelFiles,
        checked: &Checked,
        place: Place,
    ) -> Result<Plan, Refusal> {
        checked.check_warmup(&self.config)?;
        let plan = plan_at(files, &self.config, &checked.summary(), place)?;
        self.check_init()?;
        // The run needs these only at its first evaluation: too late to learn that they are wrong.
        Objective::from_config(&self.config, &self.folder)?;
        if let Some(suite) = &self.config.review.suite {
            Suite::load(&self.folder.join(suite)).map_err(Refusal::Suite)?;
        }
        Ok(plan)
    }

    fn check_init(&self) -> Result<(), Refusal> {
        let Some(init) = &self.config.method.init else { return Ok(()) };
        let folder = self.folder.join(init);
        match self.config.method.kind {
            MethodKind::Full => ModelFiles::open(&folder).map(drop),
            _ => AdapterFiles::open(&folder).map(drop),
        }
        .map_err(Refusal::Init)
    }

    fn check_disk(&self, plan: &Plan, host: &Host) -> Result<(), Refusal> {
        let train = &self.config.train;
        let written = plan.steps.checked_div(train.checkpoint_every).unwrap_or(0) + 1;
        let kept = match train.keep_checkpoints {
            0 => written,
            kept => written.min(kept as u64 + 1),
        };
        // One more for the result, which is smaller than a checkpoint; the journal is smaller still.
        let needed = plan.checkpoint_bytes.saturating_mul(kept + 1);
        match (host.free_disk)(&self.folder) {
            Ok(free) if free < needed => Err(Refusal::DiskFull { free, needed, folder: self.folder.clone() }),
            // Where the file system does not say, the run finds out.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
