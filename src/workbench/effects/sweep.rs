//! Performs what the sweep pane asks for.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use luthier_core::config::{Config, FILE_NAME, write_key};
use luthier_core::files::read_text;
use luthier_core::runs;
use luthier_core::sweep::{self, Queue, SweepError, SweepFile};

use super::{Job, Worker};
use crate::panes::sweep::{Effect, Event, Snapshot};

/// How often the queue is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Between two looks at whether an answer is still wanted.
const NAP: Duration = Duration::from_millis(50);

/// Trials described before a sweep is queued.
const DESCRIBED: usize = 6;

/// Larger files are no sweeps.
const LARGEST: u64 = 1 << 20;

/// What a new sweep file begins with.
const EXAMPLE: &str = "\
# A search over settings. Each trial is one run with luthier.toml's settings and those below over them.
name = \"learning rate and rank\"
sampler = \"random\"                    # or \"grid\": every combination
trials = 6
seed = 1

[goal]
metric = \"eval.loss\"                  # or eval.perplexity, eval.token_accuracy, or a score of the objective
direction = \"min\"

[space]
train.learning_rate = { log_uniform = [1e-4, 2e-3] }
method.rank = { choice = [8, 16, 32] }
train.max_steps = 20                  # the same for every trial
";

/// What the sweep pane's work needs to keep between effects.
#[derive(Debug)]
pub struct Performer {
    project: PathBuf,
}

impl Performer {
    /// For the queue of `project`.
    pub fn new(project: PathBuf) -> Self {
        Self { project }
    }

    /// Does `effect`, answering through `job`. Returns at once: work goes to `job.spawn`.
    pub fn perform(&mut self, effect: Effect, job: Job<Event>) {
        let project = self.project.clone();
        job.spawn(move |worker| {
            let answer = match effect {
                Effect::Watch => {
                    watch(&project, &worker);
                    return;
                }
                Effect::Files => Event::Files(files(&project)),
                Effect::Create(name) => Event::Created(create(&project, &name)),
                Effect::Look(file) => {
                    let looked = look(&project, &file);
                    Event::Looked(file, looked)
                }
                Effect::Start(file) => Event::Done(start(&project, &file)),
                Effect::Add(settings) => Event::Added(add(&project, &settings)),
                Effect::Move(id, place) => change(&project, |queue| {
                    queue.move_to(id, place)?;
                    Ok(format!("trial {id} moved"))
                }),
                Effect::Hold(id) => change(&project, |queue| {
                    queue.hold(id)?;
                    Ok(format!("trial {id} is held; `h` lets it start"))
                }),
                Effect::Release(id) => change_and_work(&project, |queue| {
                    queue.release(id)?;
                    Ok(format!("trial {id} waits for its turn"))
                }),
                Effect::Cancel(id) => change(&project, |queue| sweep::cancel(&project, queue, id)),
                Effect::Retry(id) => change_and_work(&project, |queue| {
                    queue.retry(id)?;
                    Ok(format!("trial {id} is queued again"))
                }),
                Effect::Promote(settings) => Event::Done(promote(&project, &settings)),
            };
            worker.send(answer);
        });
    }
}

fn watch(project: &Path, worker: &Worker<Event>) {
    let mut told = None;
    loop {
        let found = snapshot(project);
        if told.as_ref() != Some(&found) {
            told = Some(found.clone());
            if !worker.send(Event::Queue(found)) {
                return;
            }
        }
        let end = Instant::now() + INTERVAL;
        while Instant::now() < end {
            if worker.is_stale() {
                return;
            }
            std::thread::sleep(NAP);
        }
    }
}

fn snapshot(project: &Path) -> Result<Snapshot, String> {
    let Some(queue) = Queue::open_existing(project).map_err(|error| error.to_string())? else {
        return Ok(Snapshot::default());
    };
    let trials = queue.trials().map_err(|error| error.to_string())?;
    let sweeps = queue.sweeps().map_err(|error| error.to_string())?;
    let runs = runs::list(project).map_err(|error| error.to_string())?;
    let progress = runs
        .into_iter()
        .filter(|run| trials.iter().any(|trial| trial.run.as_ref() == Some(&run.id)))
        .map(|run| (run.id, (run.step, run.total_steps)))
        .collect();
    Ok(Snapshot { trials, sweeps, progress })
}

/// The TOML files of the project folder that have a search space.
fn files(project: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(project) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .filter(|path| path.file_name().is_some_and(|name| name != FILE_NAME))
        .filter(|path| read_text(path, LARGEST).is_ok_and(|text| text.contains("[space]")))
        .collect();
    files.sort();
    files
}

fn create(project: &Path, name: &str) -> Result<PathBuf, String> {
    let named = Path::new(name);
    if named.components().count() != 1 || named.extension().is_none_or(|extension| extension != "toml") {
        return Err(format!("{name} is not the name of a TOML file in the project; try sweep.toml"));
    }
    let path = project.join(named);
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(|error| format!("{} cannot be made: {error}", path.display()))?;
    file.write_all(EXAMPLE.as_bytes())
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    Ok(path)
}

fn read(project: &Path, file: &Path) -> Result<(SweepFile, Config), String> {
    let config = Config::load(project, &[]).map_err(|error| error.to_string())?;
    let sweep = SweepFile::load(file, &config).map_err(|error| error.to_string())?;
    Ok((sweep, config))
}

fn look(project: &Path, file: &Path) -> Result<(String, Vec<String>), String> {
    let (sweep, _) = read(project, file)?;
    let trials = sweep.expand();
    let described = trials.iter().take(DESCRIBED).map(|settings| {
        let parts: Vec<String> = settings
            .iter()
            .map(|(key, value)| format!("{} = {value}", key.rsplit('.').next().unwrap_or(key)))
            .collect();
        parts.join("  ")
    });
    let mut lines: Vec<String> = described.collect();
    if trials.len() > DESCRIBED {
        lines.push(format!("… and {} more", trials.len() - DESCRIBED));
    }
    lines.push(format!("goal: {} {}", sweep.goal.metric, sweep.goal.direction));
    lines.push("They run one after the other, also when you leave.".to_owned());
    Ok((format!("Queue {} trials of {}?", trials.len(), sweep.name), lines))
}

fn work_off(project: &Path) -> Result<(), String> {
    let program =
        std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    runs::engine_executable().map_err(|error| error.to_string())?;
    sweep::start_scheduler(project, &program).map_err(|error| error.to_string())?;
    Ok(())
}

fn start(project: &Path, file: &Path) -> Result<String, String> {
    let (sweep, config) = read(project, file)?;
    runs::engine_executable().map_err(|error| error.to_string())?;
    let mut queue = Queue::open(project).map_err(|error| error.to_string())?;
    let (_, trials) = queue.add_sweep(&sweep, &config).map_err(|error| error.to_string())?;
    work_off(project)?;
    Ok(format!("{} trials queued", trials.len()))
}

fn add(project: &Path, settings: &[String]) -> Result<String, String> {
    let config = Config::load(project, &[]).map_err(|error| error.to_string())?;
    Config::load(project, settings).map_err(|error| error.to_string())?;
    let settings: IndexMap<String, String> = settings
        .iter()
        .filter_map(|setting| setting.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let mut queue = Queue::open(project).map_err(|error| error.to_string())?;
    let id = queue.add_single("single", &settings, &config).map_err(|error| error.to_string())?;
    work_off(project)?;
    Ok(format!("trial {id} is queued"))
}

fn change(project: &Path, work: impl FnOnce(&mut Queue) -> Result<String, SweepError>) -> Event {
    let done = Queue::open(project).and_then(|mut queue| work(&mut queue));
    Event::Done(done.map_err(|error| error.to_string()))
}

/// As [`change`], where a trial waits afterwards that someone must start.
fn change_and_work(project: &Path, work: impl FnOnce(&mut Queue) -> Result<String, SweepError>) -> Event {
    match change(project, work) {
        Event::Done(Ok(said)) => Event::Done(work_off(project).map(|()| said)),
        other => other,
    }
}

fn promote(project: &Path, settings: &IndexMap<String, String>) -> Result<String, String> {
    let file = project.join(FILE_NAME);
    for (key, value) in settings {
        write_key(&file, key, value).map_err(|error| error.to_string())?;
    }
    Ok(format!("{} settings are in luthier.toml", settings.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> tempfile::TempDir {
        let project = tempfile::tempdir().unwrap();
        let text = "[model]\npath = \"model\"\n[data]\ntrain = \"train.jsonl\"\neval = \"eval.jsonl\"\n";
        fs::write(project.path().join(FILE_NAME), text).unwrap();
        project
    }

    #[test]
    fn the_example_is_a_sweep() {
        let project = project();
        let path = create(project.path(), "sweep.toml").unwrap();
        let (title, lines) = look(project.path(), &path).unwrap();
        assert!(title.contains("6 trials") && lines[0].contains("rank = "), "{title} {lines:?}");
        assert_eq!(files(project.path()), std::slice::from_ref(&path));
        assert!(
            create(project.path(), "sweep.toml").unwrap_err().contains("sweep.toml"),
            "never over a file"
        );
        assert!(create(project.path(), "../sweep.toml").is_err());
    }

    #[test]
    fn the_best_settings_go_into_the_file() {
        let project = project();
        let settings = [("method.rank".to_owned(), "8".to_owned())].into_iter().collect();
        promote(project.path(), &settings).unwrap();
        assert_eq!(Config::load(project.path(), &[]).unwrap().method.rank, 8);
    }

    #[test]
    fn without_a_queue_there_is_nothing() {
        let project = project();
        assert_eq!(snapshot(project.path()), Ok(Snapshot::default()));
    }
}
