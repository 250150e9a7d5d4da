//! Performs what the data pane asks for.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use luthier_core::config::Config;
use luthier_core::data::{self, Quarantine, Row, Template, Tokenizer};

use super::{Job, Worker};
use crate::panes::data::{DataEffect as Effect, DataEvent as Event, Rendered};
use crate::project::{Host, Project, Refusal};

/// How often progress is posted.
const PROGRESS: Duration = Duration::from_millis(250);

/// What rendering a row takes.
#[derive(Debug)]
struct Loaded {
    config: Config,
    rows: Arc<Vec<Row>>,
    tools: Result<(Tokenizer, Template), String>,
}

/// What the data pane's work needs to keep between effects.
#[derive(Debug)]
pub struct Performer {
    project: PathBuf,
    loaded: Arc<Mutex<Option<Arc<Loaded>>>>,
}

impl Performer {
    /// For the data of `project`.
    pub fn new(project: PathBuf, _host: Host) -> Self {
        Self { project, loaded: Arc::default() }
    }

    /// Does `effect`, answering through `job`. Returns at once: work goes to `job.spawn`.
    pub fn perform(&mut self, effect: Effect, job: Job<Event>) {
        let project = self.project.clone();
        let shared = Arc::clone(&self.loaded);
        job.spawn(move |worker| match effect {
            Effect::Load => {
                if let Err(refusal) = load(&project, &shared, &worker) {
                    worker.send(Event::Rows(Err(refusal.to_string())));
                }
            }
            Effect::Render(row) => {
                let loaded = shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(rendered) = loaded.and_then(|loaded| render(&loaded, row)) {
                    worker.send(Event::Rendered(Box::new(rendered)));
                }
            }
            Effect::Quarantine(hash) => {
                worker.send(Event::Quarantined(quarantine(&project, &hash)));
            }
        });
    }
}

fn load(project: &Path, shared: &Mutex<Option<Arc<Loaded>>>, worker: &Worker<Event>) -> Result<(), Refusal> {
    let project = Project::open(project, &[])?;
    let (config, folder) = (&project.config, &project.folder);
    let dataset = data::read_dataset(config, folder)?;
    let rows = Arc::new(dataset.rows);
    let files = project.model();
    let tools = match &files {
        Ok(files) => Tokenizer::open(files)
            .and_then(|tokenizer| Ok((tokenizer, Template::resolve(config, folder, files)?)))
            .map_err(|error| error.to_string()),
        Err(refusal) => Err(refusal.to_string()),
    };
    let loaded = Loaded { config: config.clone(), rows: Arc::clone(&rows), tools };
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(loaded));
    if !worker.send(Event::Rows(Ok((rows, Arc::new(dataset.quarantined))))) {
        return Ok(());
    }
    let checked = files.and_then(|files| {
        let mut posted = Instant::now();
        project.check_data(&files, &mut |done, total| {
            if posted.elapsed() >= PROGRESS {
                posted = Instant::now();
                worker.send(Event::Checking(done, total));
            }
            worker.wanted()
        })
    });
    let report = checked.map(|prepared| Arc::new(prepared.report));
    worker.send(Event::Checked(report.map_err(|refusal| refusal.to_string())));
    Ok(())
}

fn render(loaded: &Loaded, index: usize) -> Option<Rendered> {
    let row = loaded.rows.get(index)?;
    let messages = data::conversation(row, &loaded.config);
    let sides = match &loaded.tools {
        Ok((tokenizer, template)) => {
            data::encode(row, tokenizer, template, &loaded.config).map_err(|problem| problem.to_string())
        }
        Err(problem) => Err(problem.clone()),
    };
    let truncated = sides.iter().flatten().any(|side| side.truncated);
    let sides = sides.map(|sides| sides.iter().map(data::row_tokens).collect());
    Some(Rendered { row: index, messages, sides, truncated })
}

fn quarantine(project: &Path, hash: &str) -> Result<String, String> {
    let mut quarantine = Quarantine::load(project).map_err(|error| error.to_string())?;
    let inside = quarantine.toggle(hash);
    quarantine.save().map_err(|error| error.to_string())?;
    Ok(if inside { "the row is in quarantine" } else { "the row is back" }.to_owned())
}
