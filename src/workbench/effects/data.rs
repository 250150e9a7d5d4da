//! Performs what the data pane asks for.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use luthier_core::config::Config;
use luthier_core::data::{self, Quarantine, Row, Template, Tokenizer};
use luthier_core::model::ModelFiles;

use super::{Job, Worker};
use crate::panes::data::{Effect, Event, Rendered};

/// How often progress is told.
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
    pub fn new(project: PathBuf) -> Self {
        Self { project, loaded: Arc::default() }
    }

    /// Does `effect`, answering through `job`. Returns at once: work goes to `job.spawn`.
    pub fn perform(&mut self, effect: Effect, job: Job<Event>) {
        let project = self.project.clone();
        let shared = Arc::clone(&self.loaded);
        job.spawn(move |worker| match effect {
            Effect::Load => {
                if let Err(problem) = load(&project, &shared, &worker) {
                    worker.send(Event::Rows(Err(problem)));
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

fn load(project: &Path, shared: &Mutex<Option<Arc<Loaded>>>, worker: &Worker<Event>) -> Result<(), String> {
    let config = Config::load(project, &[]).map_err(|error| error.to_string())?;
    let dataset = data::read_dataset(&config, project).map_err(|error| error.to_string())?;
    let rows = Arc::new(dataset.rows);
    let files = ModelFiles::find(&config.model.path, project).map_err(|error| error.to_string());
    let tools = files.as_ref().map_err(Clone::clone).and_then(|files| {
        let tokenizer = Tokenizer::open(files).map_err(|error| error.to_string())?;
        let template = Template::resolve(&config, project, files).map_err(|error| error.to_string())?;
        Ok((tokenizer, template))
    });
    let loaded = Loaded { config: config.clone(), rows: Arc::clone(&rows), tools };
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(loaded));
    if !worker.send(Event::Rows(Ok((rows, Arc::new(dataset.quarantined))))) {
        return Ok(());
    }
    let checked = files.and_then(|files| {
        let mut told = Instant::now();
        let prepared = data::prepare(&config, project, &files, &mut |done, total| {
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                worker.send(Event::Checking(done, total));
            }
        });
        prepared.map(|prepared| Arc::new(prepared.report)).map_err(|error| error.to_string())
    });
    worker.send(Event::Checked(checked));
    Ok(())
}

fn render(loaded: &Loaded, index: usize) -> Option<Rendered> {
    let row = loaded.rows.get(index)?;
    let messages = data::conversation(row, &loaded.config);
    let encoded = match &loaded.tools {
        Ok((tokenizer, template)) => {
            data::encode(row, tokenizer, template, &loaded.config).map_err(|problem| problem.to_string())
        }
        Err(problem) => Err(problem.clone()),
    };
    let other = encoded.as_ref().ok().and_then(|encoded| encoded.rejected.as_deref());
    let truncated = encoded.iter().chain(other).any(|side| side.truncated);
    let rejected = other.map(data::row_tokens);
    let tokens = encoded.map(|encoded| data::row_tokens(&encoded));
    Some(Rendered { row: index, messages, tokens, rejected, truncated })
}

fn quarantine(project: &Path, hash: &str) -> Result<String, String> {
    let mut quarantine = Quarantine::load(project).map_err(|error| error.to_string())?;
    let inside = quarantine.toggle(hash);
    quarantine.save().map_err(|error| error.to_string())?;
    Ok(if inside { "the row is in quarantine" } else { "the row is back" }.to_owned())
}
