//! Performs what the data pane asks for.

pub(crate) mod rows;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use luthier_core::config::Config;
use luthier_core::data::{self, Checked as DataChecked, DataError, ReadProgress, Template, Tokenizer};
use luthier_core::units;

use self::rows::Texts;
use super::{Job, Worker};
use crate::panes::data::{
    Checked, Chosen, DataEffect as Effect, DataEvent as Event, Found, Pool, Rendered, RowSize, Search,
};
use crate::project::{self, Draft, Host, Project, Refusal};

/// How often progress is posted.
const PROGRESS: Duration = Duration::from_millis(250);

/// Rows after which the first ones are shown, while the rest is being read.
const FIRST_ROWS: usize = 256;

/// They are shown again each time that so many times as many are read.
const MORE_ROWS: usize = 4;

/// What rendering a row takes.
#[derive(Debug)]
struct Tools {
    config: Config,
    parts: Result<(Tokenizer, Template), String>,
}

/// What the data pane's work needs to keep between effects.
#[derive(Debug)]
pub struct Performer {
    project: PathBuf,
    tools: Arc<Mutex<Option<Arc<Tools>>>>,
    texts: Arc<Texts>,
}

impl Performer {
    /// For the data of `project`.
    pub fn new(project: PathBuf, _host: Host) -> Self {
        Self { project, tools: Arc::default(), texts: Arc::default() }
    }

    /// Does `effect`, answering through `job`. Returns at once: work goes to `job.spawn`.
    pub fn perform(&mut self, effect: Effect, job: Job<Event>) {
        let project = self.project.clone();
        let tools = Arc::clone(&self.tools);
        let texts = Arc::clone(&self.texts);
        job.spawn(move |worker| {
            let answer = match effect {
                Effect::Load { early } => load(&project, early, &tools, &worker)
                    .map_or_else(|refusal| Some(Event::Rows(Err(refusal.to_string()))), |()| None),
                Effect::Render(pool, position) => {
                    let tools = tools.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    tools.and_then(|tools| render(&tools, pool, position))
                }
                Effect::Quarantine(rows, inside) => Some(Event::Changed(quarantine(&project, &rows, inside))),
                Effect::Splits(rows, quarantined) => {
                    let tools = tools.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    tools.map(|tools| {
                        let choices = project::split_choices(&tools.config, &rows, &quarantined);
                        Event::Splits(rows, choices)
                    })
                }
                Effect::SetSplit(choice) => {
                    let done = project::set_split(&project, &choice);
                    let done = done.map(|()| format!("luthier.toml holds out {}", choice.title));
                    Some(Event::Changed(done.map_err(|refusal| refusal.to_string())))
                }
                Effect::Draft(pool, position) => {
                    Some(Event::Drafted(draft(&pool, position).map_err(|refusal| refusal.to_string())))
                }
                Effect::TakeDraft(draft) => {
                    let taken =
                        Project::open(&project, &[]).and_then(|opened| draft.take(&project, &opened.config));
                    Some(Event::Rewritten(draft, taken.map_err(|refusal| refusal.to_string())))
                }
                Effect::Undo(pool, position) => {
                    let undone = pool.heads().get(position).map(|head| project::undo(&project, head));
                    undone.map(|undone| {
                        let done = undone.map(|()| "the row is as in its file".to_owned());
                        Event::Changed(done.map_err(|refusal| refusal.to_string()))
                    })
                }
                other => look_up(other, &texts, &worker),
            };
            if let Some(answer) = answer {
                worker.send(answer);
            }
        });
    }
}

/// Does what needs nothing but the rows.
fn look_up(effect: Effect, texts: &Texts, worker: &Worker<Event>) -> Option<Event> {
    let of = match &effect {
        Effect::Fetch(pool, _)
        | Effect::Search(pool, ..)
        | Effect::Fields(pool)
        | Effect::Values(pool, _)
        | Effect::Compare(pool, _) => pool.clone(),
        _ => return None,
    };
    let found = match effect {
        Effect::Fetch(pool, positions) => {
            rows::fetch(&pool, &positions).map(|rows| Event::Fetched(pool, rows))
        }
        Effect::Search(pool, among, typed) => {
            // What cannot be read as a search is said while it is typed.
            let search = Search::parse(&typed).ok()??;
            let mut news = |found, share| {
                let found = Found { typed: typed.clone(), rows: found, share: Some(share) };
                worker.send(Event::Found(pool.clone(), found));
                worker.wanted()
            };
            match rows::search(&pool, &among, &search, texts, &mut news) {
                Ok(found) => Ok(Event::Found(pool, Found { typed, rows: found?, share: None })),
                Err(error) => Err(error),
            }
        }
        Effect::Fields(pool) => rows::fields(&pool).map(|fields| Event::Fields(pool, fields)),
        Effect::Values(pool, field) => match rows::values(&pool, &field, &mut || worker.wanted()) {
            Ok(values) => Ok(Event::Values(pool, field, values?)),
            Err(error) => Err(error),
        },
        Effect::Compare(pool, positions) => rows::fetch(&pool, &positions)
            .map(|found| {
                let rows: Vec<_> = found.into_iter().map(|(_, row)| row).collect();
                <[_; 2]>::try_from(rows).ok().map(|rows| Event::Compared(pool, Box::new(rows)))
            })
            .transpose()?,
        _ => return None,
    };
    Some(found.unwrap_or_else(|error: DataError| Event::Broken(of, error.to_string())))
}

fn load(
    project: &Path,
    early: bool,
    tools: &Mutex<Option<Arc<Tools>>>,
    worker: &Worker<Event>,
) -> Result<(), Refusal> {
    let project = Project::open(project, &[])?;
    let (config, folder) = (&project.config, &project.folder);
    let files = project.model();
    let parts = match &files {
        Ok(files) => Tokenizer::open(files)
            .and_then(|tokenizer| Ok((tokenizer, Template::resolve(config, folder, files)?)))
            .map_err(|error| error.to_string()),
        Err(refusal) => Err(refusal.to_string()),
    };
    let parts = Tools { config: config.clone(), parts };
    *tools.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(parts));
    // Of a part of a file, rows are chosen when it is read: what is shown before would not stay where it is.
    let stays = config.data.train.iter().all(|source| source.rows.is_none() && source.share.is_none());
    let mut posted = Instant::now();
    let mut shown_from = FIRST_ROWS;
    let mut heard = |progress: &ReadProgress| {
        let share = if progress.total == 0 { 0.0 } else { progress.bytes as f64 / progress.total as f64 };
        if early && stays && progress.rows.len() >= shown_from {
            shown_from = progress.rows.len() * MORE_ROWS;
            worker.send(Event::Reading(share, Some(Pool::from(progress.rows.clone()))));
        } else if posted.elapsed() >= PROGRESS {
            posted = Instant::now();
            worker.send(Event::Reading(share, None));
        }
        worker.wanted()
    };
    let dataset = data::read_dataset_heard(config, folder, &mut heard)?;
    let rows_read = dataset.rows.len();
    let read = (dataset.rows.clone().into(), dataset.quarantined.clone().into());
    if !worker.send(Event::Rows(Ok(read))) {
        return Ok(());
    }
    let checked = files.and_then(|files| {
        let mut posted = Instant::now();
        project.check_dataset(&files, &dataset, &mut |done, total| {
            if posted.elapsed() >= PROGRESS {
                posted = Instant::now();
                worker.send(Event::Checking(done, total));
            }
            worker.wanted()
        })
    });
    let checked = checked.map(|checked| {
        let sizes = sizes(&checked, rows_read);
        let sequences = config.packs().then(|| sequences(&checked, config));
        Box::new(Checked { report: Arc::new(checked.report), sizes, sequences })
    });
    worker.send(Event::Checked(checked.map_err(|refusal| refusal.to_string())));
    Ok(())
}

/// The size of each of `rows` rows, in all the parts that it is trained in.
fn sizes(checked: &DataChecked, rows: usize) -> Vec<RowSize> {
    let mut sizes = vec![RowSize::default(); rows];
    for row in checked.train.iter().chain(&checked.eval) {
        if let Some(size) = sizes.get_mut(row.row) {
            size.tokens += row.tokens;
            size.trained += row.trained;
        }
    }
    sizes
}

/// Into how many sequences one epoch is packed: its steps, if each were of one sequence.
fn sequences(checked: &DataChecked, config: &Config) -> u64 {
    let mut config = config.clone();
    config.train.batch_size = 1;
    config.train.accumulate = 1;
    config.train.max_steps = None;
    config.train.epochs = 1.0;
    checked.order(&config).total_steps()
}

fn render(tools: &Tools, pool: Pool, position: usize) -> Option<Event> {
    let row = match pool.get(position) {
        Ok(row) => row?,
        Err(error) => return Some(Event::Broken(pool, error.to_string())),
    };
    let template = tools.parts.as_ref().ok().map(|(_, template)| template);
    let messages = template.and_then(|template| data::conversation(&row, template, &tools.config));
    let sides = match &tools.parts {
        Ok((tokenizer, template)) => {
            data::encode(&row, tokenizer, template, &tools.config).map_err(|problem| problem.to_string())
        }
        Err(problem) => Err(problem.clone()),
    };
    let truncated = sides.iter().flatten().any(|side| side.truncated);
    let sides = sides.map(|sides| sides.iter().map(data::row_tokens).collect());
    Some(Event::Rendered(pool, Box::new(Rendered { position, messages, sides, truncated })))
}

fn draft(pool: &Pool, position: usize) -> Result<Draft, Refusal> {
    let head = pool.heads().get(position).ok_or_else(|| Refusal::NoRow("the row is gone".to_owned()))?;
    Draft::of(&pool.row(head)?, head)
}

fn quarantine(folder: &Path, rows: &Chosen, inside: bool) -> Result<String, String> {
    let count = project::put(folder, &rows.pool, &rows.positions, inside);
    let count = count.map_err(|refusal| refusal.to_string())?;
    let what = units::counted(count, "row", "rows");
    Ok(format!("{what} {}", if inside { "set aside" } else { "brought back" }))
}
