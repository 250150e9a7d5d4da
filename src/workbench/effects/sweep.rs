//! Performs what the sweep pane asks for.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indexmap::IndexMap;
use luthier_core::config::{FILE_NAME, write_key};
use luthier_core::files::read_text;
use luthier_core::runs;
use luthier_core::sweep::{Queue, SweepFile, trials_seen};

use super::Job;
use crate::panes::sweep::{Snapshot, SweepEffect as Effect, SweepEvent as Event};
use crate::project::{self, Change, Host, Project, Refusal, SWEEP_EXAMPLE};

/// Interval between reads of the queue.
const INTERVAL: Duration = Duration::from_secs(1);

/// Trials described before a sweep is queued.
const DESCRIBED: usize = 6;

/// Largest sweep file, in bytes.
const LARGEST: u64 = 1 << 20;

/// What the sweep pane's work needs to keep between effects.
#[derive(Debug)]
pub struct Performer {
    project: PathBuf,
    host: Host,
}

impl Performer {
    /// For the queue of `project`.
    pub fn new(project: PathBuf, host: Host) -> Self {
        Self { project, host }
    }

    /// Does `effect`, answering through `job`. Returns at once: work goes to `job.spawn`.
    pub fn perform(&mut self, effect: Effect, job: Job<Event>) {
        let (project, host) = (self.project.clone(), self.host);
        job.spawn(move |worker| {
            let change = |trial, change| in_words(project::change(&project, &host, trial, change));
            let progress = &mut |_, _| worker.wanted();
            let answer = match effect {
                Effect::Watch => return worker.watch(INTERVAL, || snapshot(&project), Event::Queue),
                Effect::Files => Event::Files(files(&project)),
                Effect::Create(name) => Event::Created(create(&project, &name)),
                Effect::Look(file) => {
                    let looked = look(&project, &file);
                    Event::Looked(file, in_words(looked))
                }
                Effect::Start(file) => {
                    let queued = Project::open(&project, &[])
                        .and_then(|project| project::sweep(&project, &host, &file, progress));
                    Event::Done(in_words(
                        queued.map(|queued| format!("{} trials queued", queued.trials.len())),
                    ))
                }
                Effect::Add(settings) => {
                    let added = project::add(&project, &host, "single", &settings, progress);
                    Event::Added(in_words(added.map(|trial| format!("trial {trial} is queued"))))
                }
                Effect::Move(id, place) => Event::Done(change(id, Change::Move(place))),
                Effect::Hold(id) => {
                    let held = change(id, Change::Hold);
                    Event::Done(held.map(|said| format!("{said}; `h` lets it start")))
                }
                Effect::Release(id) => Event::Done(change(id, Change::Release)),
                Effect::Cancel(id) => Event::Done(change(id, Change::Cancel)),
                Effect::Retry(id) => Event::Done(change(id, Change::Retry)),
                Effect::Promote(settings) => Event::Done(promote(&project, &settings)),
            };
            worker.send(answer);
        });
    }
}

fn in_words<T>(result: Result<T, Refusal>) -> Result<T, String> {
    result.map_err(|refusal| refusal.to_string())
}

fn snapshot(project: &Path) -> Result<Snapshot, String> {
    let Some(queue) = Queue::open_existing(project).map_err(|error| error.to_string())? else {
        return Ok(Snapshot::default());
    };
    let trials = trials_seen(project, &queue).map_err(|error| error.to_string())?;
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
        .map_err(|error| format!("{} cannot be created: {error}", path.display()))?;
    file.write_all(SWEEP_EXAMPLE.as_bytes())
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    Ok(path)
}

fn look(project: &Path, file: &Path) -> Result<(String, Vec<String>), Refusal> {
    let project = Project::open(project, &[])?;
    let sweep = SweepFile::load(file, &project.config)?;
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

fn promote(project: &Path, settings: &IndexMap<String, String>) -> Result<String, String> {
    let file = project.join(FILE_NAME);
    for (key, value) in settings {
        write_key(&file, key, value).map_err(|error| error.to_string())?;
    }
    Ok(format!("{} settings are in luthier.toml", settings.len()))
}

#[cfg(test)]
mod tests {
    use luthier_core::config::Config;

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
