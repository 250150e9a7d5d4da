//! Performs what the review pane asks for.

mod asking;
mod files;
mod proof;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use luthier_core::eval::{Suite, VerdictStore};
use luthier_core::runs::{self, RunDir};

use super::Job;
use crate::panes::review::{Candidate, ReviewEffect as Effect, ReviewEvent as Event};
use crate::project::{self, Host, Server, StartServing};

/// How often runs are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What the review pane's work needs to keep between effects.
#[derive(Debug)]
pub struct Performer {
    project: PathBuf,
    server: Arc<Server>,
    given_up: Arc<AtomicU64>,
}

impl Drop for Performer {
    fn drop(&mut self) {
        self.server.close();
    }
}

impl Performer {
    /// For the runs of `project`.
    pub fn new(project: PathBuf, _host: Host) -> Self {
        Self::with(project, Box::new(runs::start_serving))
    }

    /// As [`Performer::new`], with another way to start a serving engine.
    fn with(project: PathBuf, start: StartServing) -> Self {
        Self { server: Arc::new(Server::new(project.clone(), start)), project, given_up: Arc::default() }
    }

    /// Does `effect`, answering through `job`. Returns at once: work goes to `job.spawn`.
    pub fn perform(&mut self, effect: Effect, job: Job<Event>) {
        // Not behind the asking it is meant for.
        if let Effect::Cancel(id) = effect {
            self.given_up.store(id, Ordering::Release);
            return;
        }
        let project = self.project.clone();
        let (server, given_up) = (Arc::clone(&self.server), Arc::clone(&self.given_up));
        job.spawn(move |worker| match effect {
            Effect::Watch => worker.watch(LOOK, || candidates(&project), Event::Candidates),
            Effect::Rest | Effect::Cancel(_) => {}
            Effect::Suite(file) => {
                let suite = Suite::load(&project.join(file));
                let prompts = suite.map(|suite| suite.prompts).map_err(|error| error.to_string());
                worker.send(Event::Suite(prompts));
            }
            Effect::Verdicts => {
                let found = VerdictStore::of(&project).load().map_err(|error| error.to_string());
                worker.send(Event::Verdicts(found));
            }
            Effect::Ask(ask) => asking::ask(&project, &server, &given_up, &ask, &worker),
            Effect::Save(verdict) => {
                let saved = VerdictStore::of(&project).append(&verdict).map_err(|error| error.to_string());
                worker.send(Event::Saved(verdict, saved));
            }
            Effect::Export(file) => {
                let exported = project::export_pairs(&project, None, &project.join(&file));
                let exported = exported.map(|exported| (exported.pairs, file));
                worker.send(Event::Exported(exported.map_err(|refusal| refusal.to_string())));
            }
            Effect::Draft(text) => {
                worker.send(Event::DraftReady(files::write_draft(&text)));
            }
            Effect::ReadDraft(path) => {
                worker.send(Event::Draft(files::read_draft(&path)));
            }
            Effect::AddExample { file, messages } => {
                worker.send(Event::ExampleAdded(files::add_example(&project, &file, &messages)));
            }
        });
    }
}

/// All runs with what they have left behind, newest first.
fn candidates(project: &Path) -> Result<Vec<Candidate>, String> {
    let found = runs::list(project).map_err(|error| error.to_string())?;
    let candidate = |run: runs::RunSummary| {
        let folder = RunDir::open(&run.path).ok();
        let checkpoints = folder.as_ref().map(RunDir::checkpoints).unwrap_or_default();
        Candidate {
            result: folder.as_ref().is_some_and(|folder| folder.result().is_some()),
            best: folder.and_then(|folder| folder.status().ok()).and_then(|status| status.best_step),
            checkpoints: checkpoints.into_iter().map(|checkpoint| checkpoint.step).collect(),
            run: run.id,
            method: run.method,
            state: run.state,
            started: run.started,
        }
    };
    Ok(found.into_iter().map(candidate).collect())
}
