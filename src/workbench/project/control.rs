//! Control over one run.

use luthier_core::config::{Config, write_key};
use luthier_core::runs::{self, Action, Request, ResumeWay, RunDir, resume_way, start_detached_with};

use super::{Host, Refusal};

/// Asks a live run for something. Returns what it answers.
pub fn ask(run: &RunDir, request: &Request) -> Result<String, Refusal> {
    let action = match request {
        Request::Pause => Some(Action::Pause),
        Request::Resume => Some(Action::Resume),
        Request::Checkpoint => Some(Action::Checkpoint),
        Request::Stop { .. } => Some(Action::Stop),
        Request::Edit { .. } => Some(Action::Edit),
        Request::Evaluate => Some(Action::Evaluate),
        Request::Sample { .. } => Some(Action::Sample),
        _ => None,
    };
    if let Some(action) = action {
        action.check(&run.status()?, newest_checkpoint(run)).map_err(|reason| refused(run, reason))?;
    }
    Ok(runs::ask(run, request)?)
}

/// Changes a setting of a live run, in the name of `who`. Returns what the run answers.
pub fn edit(run: &RunDir, key: &str, value: &str, who: &str) -> Result<String, Refusal> {
    // The run checks it too, but does not know how the setting was typed.
    Config::load_file(&run.config_path(), &[format!("{key}={value}")])?;
    let who = Some(who.to_owned());
    ask(run, &Request::Edit { key: key.to_owned(), value: value.to_owned(), who })
}

/// Changes a setting in the file of a run without a process, which reads it when it is resumed.
pub fn write_setting(run: &RunDir, key: &str, value: &str) -> Result<String, Refusal> {
    write_key(&run.config_path(), key, value)?;
    Ok(format!("{key} = {value} from when the run is resumed"))
}

/// Resumes a paused run, or starts the engine again on one whose process is gone. Returns what happened.
pub fn resume(run: &RunDir, host: &Host) -> Result<String, Refusal> {
    match resume_way(&run.status()?, newest_checkpoint(run)).map_err(|reason| refused(run, reason))? {
        ResumeWay::Ask => Ok(runs::ask(run, &Request::Resume)?),
        ResumeWay::Start { from_step } => {
            let process = start_detached_with(&(host.engine)()?, run, &[])?;
            let from = from_step.map_or_else(|| "the beginning".to_owned(), |step| format!("step {step}"));
            Ok(format!("continues from {from}, process {process}"))
        }
    }
}

fn newest_checkpoint(run: &RunDir) -> Option<u64> {
    run.checkpoints().last().map(|checkpoint| checkpoint.step)
}

fn refused(run: &RunDir, reason: &'static str) -> Refusal {
    Refusal::State { run: run.id().to_owned(), reason }
}
