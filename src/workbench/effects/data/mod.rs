//! Performs what the data pane asks for.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use luthier_core::config::Config;
use luthier_core::data::{self, Prepared, Row, StepOrder, Template, Tokenizer};
use luthier_core::units;

use super::{Job, Worker};
use crate::panes::data::{Checked, Chosen, DataEffect as Effect, DataEvent as Event, Rendered, RowSize};
use crate::project::{self, Host, Project, Refusal};

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
            Effect::Quarantine(rows, inside) => {
                worker.send(Event::Quarantined(quarantine(&project, &rows, inside)));
            }
        });
    }
}

fn load(project: &Path, shared: &Mutex<Option<Arc<Loaded>>>, worker: &Worker<Event>) -> Result<(), Refusal> {
    let project = Project::open(project, &[])?;
    let (config, folder) = (&project.config, &project.folder);
    let dataset = data::read_dataset(config, folder)?;
    let rows = Arc::new(dataset.rows);
    let rows_read = rows.len();
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
    let checked = checked.map(|prepared| {
        let sizes = sizes(&prepared, rows_read);
        let sequences = config.packs().then(|| sequences(&prepared, config));
        Box::new(Checked { report: Arc::new(prepared.report), sizes, sequences })
    });
    worker.send(Event::Checked(checked.map_err(|refusal| refusal.to_string())));
    Ok(())
}

/// The size of each of `rows` rows, in all the parts that it is trained in.
fn sizes(prepared: &Prepared, rows: usize) -> Vec<RowSize> {
    let mut sizes = vec![RowSize::default(); rows];
    for row in prepared.train.iter().chain(&prepared.eval) {
        if let Some(size) = sizes.get_mut(row.row) {
            size.tokens += row.tokens();
            size.trained += row.trained_tokens();
        }
    }
    sizes
}

/// Into how many sequences one epoch is packed: its steps, if each were of one sequence.
fn sequences(prepared: &Prepared, config: &Config) -> u64 {
    let mut config = config.clone();
    config.train.batch_size = 1;
    config.train.accumulate = 1;
    config.train.max_steps = None;
    config.train.epochs = 1.0;
    StepOrder::new(&prepared.summary().train_lengths, &config).total_steps()
}

fn render(loaded: &Loaded, index: usize) -> Option<Rendered> {
    let row = loaded.rows.get(index)?;
    let template = loaded.tools.as_ref().ok().map(|(_, template)| template);
    let messages = template.and_then(|template| data::conversation(row, template, &loaded.config));
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

fn quarantine(folder: &Path, rows: &Chosen, inside: bool) -> Result<String, String> {
    let count = project::put(folder, &rows.pool, &rows.positions, inside);
    let count = count.map_err(|refusal| refusal.to_string())?;
    let (are, what) = (if count == 1 { "is" } else { "are" }, units::counted(count, "row", "rows"));
    Ok(format!("{what} {are} {}", if inside { "in quarantine" } else { "back" }))
}
