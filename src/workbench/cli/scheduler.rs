//! `luthier scheduler`: the detached process that turns a project's queued trials into runs. Started by the
//! commands that queue trials, and therefore hidden.

use luthier_core::runs::become_session_leader;
use luthier_core::sweep::{Scheduler, SweepError};

use super::failure::Outcome;
use super::output;
use super::project::Folder;

/// Work off the queue of a project
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Arguments {
    #[command(flatten)]
    folder: Folder,
}

/// Works until nothing is queued. A second scheduler of a project ends at once.
pub fn run(arguments: &Arguments) -> Outcome {
    let project = arguments.folder.find()?;
    become_session_leader()?;
    let mut scheduler = match Scheduler::new(&project) {
        Err(SweepError::Busy { .. }) => return Ok(()),
        made => made?,
    };
    scheduler.run(&mut |trial| {
        let run = trial.run.as_deref().unwrap_or("no run");
        output::note(&format!("trial {} ({}): {}, {run}", trial.id, trial.label(), trial.state));
    })?;
    Ok(())
}
