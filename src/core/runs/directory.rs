//! Run directories: create, find, list, lock.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustix::fs::{FlockOperation, flock};

use super::RunError;
use super::checkpoint::{Checkpoint, list_checkpoints};
use super::error::io_error;
use super::number::Number;
use super::outcome::ResultForm;
use super::process::Host;
use super::status::{Failure, RunState, Status, replace_file};
use super::time;
use crate::config::{Algorithm, Config};
use crate::files;

/// The folder with a project's runs.
pub const RUNS_FOLDER: &str = "runs";

/// All settings of the run, with defaults written out.
pub const CONFIG_FILE: &str = "config.toml";

pub const JOURNAL_FILE: &str = "events.jsonl";

/// The output of the process and of native libraries.
pub const ENGINE_LOG: &str = "engine.log";

/// Locked by the process that works on the run.
pub(super) const LOCK_FILE: &str = "run.lock";

/// The starter holds the lock only between starting the engine and writing its pid.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Longest slug in a run's id.
const SLUG_LIMIT: usize = 40;

/// How many runs with the same second and slug can exist.
const RUNS_A_SECOND: u32 = 10_000;

/// A larger file is not a configuration.
pub(super) const LARGEST_CONFIG: u64 = 1 << 20;

/// How many runs an error lists.
const NAMED_RUNS: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    id: String,
    path: PathBuf,
    project: PathBuf,
}

impl RunDir {
    /// Creates a run directory with its `config.toml` and a status of `queued`. The id is
    /// `YYYYMMDD-HHMMSS-SLUG` in UTC, with a number appended if the id is taken. Without a slug, the method's
    /// name is used.
    pub fn create(project: &Path, config: &Config, slug: Option<&str>) -> Result<Self, RunError> {
        let text = config.to_toml();
        let label = slug.map_or_else(|| method_label(&text), str::to_owned);
        Self::create_at(project, &text, &label, time::now())
    }

    fn create_at(project: &Path, config: &str, slug: &str, now: Timestamp) -> Result<Self, RunError> {
        let project = project.canonicalize().map_err(io_error("find", project))?;
        let runs = project.join(RUNS_FOLDER);
        let mut folders = DirBuilder::new();
        folders.mode(0o700);
        match folders.create(&runs) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.and_then(|()| files::sync_folder(&project)).map_err(io_error("make", &runs))?,
        }
        let stamp = now.to_zoned_datetime(TimeZone::UTC).strftime("%Y%m%d-%H%M%S").to_string();
        let base = format!("{stamp}-{}", slug_of(slug));
        for number in 1..RUNS_A_SECOND {
            let id = if number == 1 { base.clone() } else { format!("{base}_{number}") };
            let path = runs.join(&id);
            match folders.create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(source) => return Err(RunError::Io { doing: "make", path, source }),
            }
            let run = Self { id, path, project };
            let mut status = Status { state: RunState::Queued, started: now, ..Status::default() };
            status.host = Host::this().name;
            status.write_atomic(&run.path)?;
            // Last, because a folder with a `config.toml` counts as a run. See `is_run`.
            replace_file(&run.config_path(), config.as_bytes())?;
            files::sync_folder(&runs).map_err(io_error("sync", &runs))?;
            return Ok(run);
        }
        Err(RunError::Refused(format!("there are {RUNS_A_SECOND} runs named `{base}` already")))
    }

    /// Opens a run directory by its path.
    pub fn open(path: &Path) -> Result<Self, RunError> {
        let path = path.canonicalize().map_err(io_error("find", path))?;
        if !is_run(&path) {
            return Err(RunError::NotARun(path));
        }
        let id = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let project = path.parent().and_then(Path::parent).map(Path::to_owned);
        match (id, project) {
            (Some(id), Some(project)) => Ok(Self { id, path, project }),
            _ => Err(RunError::NotARun(path)),
        }
    }

    /// The run of a project with this id, and no other.
    pub fn named(project: &Path, id: &str) -> Result<Self, RunError> {
        if !ids(project)?.iter().any(|known| known == id) {
            return Err(RunError::Gone(id.to_owned()));
        }
        Self::open(&project.join(RUNS_FOLDER).join(id))
    }

    /// Finds a run of a project by the beginning of its id, by any part of the id that is unique, or as
    /// `latest`.
    pub fn find(project: &Path, wanted: &str) -> Result<Self, RunError> {
        let ids = ids(project)?;
        let named = |known: Vec<&String>| -> Vec<String> {
            let more = known.len().saturating_sub(NAMED_RUNS);
            let newest = known.into_iter().rev().take(NAMED_RUNS).cloned();
            newest.chain((more > 0).then(|| format!("{more} more"))).collect()
        };
        let not_found =
            || RunError::NotFound { wanted: wanted.to_owned(), known: named(ids.iter().collect()) };
        let open = |id: &String| Self::open(&project.join(RUNS_FOLDER).join(id));
        if wanted == "latest" {
            return ids.last().ok_or_else(not_found).and_then(open);
        }
        if wanted.is_empty() {
            return Err(not_found());
        }
        if let Some(id) = ids.iter().find(|id| *id == wanted) {
            return open(id);
        }
        for fits in [|id: &str, part: &str| id.starts_with(part), |id: &str, part: &str| id.contains(part)]
            as [fn(&str, &str) -> bool; 2]
        {
            let fitting: Vec<_> = ids.iter().filter(|id| fits(id, wanted)).collect();
            match fitting.as_slice() {
                [] => {}
                [only] => return open(only),
                _ => return Err(RunError::Ambiguous { wanted: wanted.to_owned(), known: named(fitting) }),
            }
        }
        Err(not_found())
    }

    /// `YYYYMMDD-HHMMSS-SLUG`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The project the run belongs to, absolute.
    pub fn project(&self) -> &Path {
        &self.project
    }

    /// `config.toml`.
    pub fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG_FILE)
    }

    /// `events.jsonl`.
    pub fn journal_path(&self) -> PathBuf {
        self.path.join(JOURNAL_FILE)
    }

    /// `engine.log`.
    pub fn log_path(&self) -> PathBuf {
        self.path.join(ENGINE_LOG)
    }

    /// The folder of the result: `adapter` (PEFT layout) for a parameter-efficient method, `model` (Hugging
    /// Face layout) for full fine-tuning.
    pub fn result_path(&self, form: ResultForm) -> PathBuf {
        self.path.join(form.folder())
    }

    /// The result, if the run has written one.
    pub fn result(&self) -> Option<(ResultForm, PathBuf)> {
        let found = ResultForm::ALL.map(|form| (form, self.result_path(form)));
        found.into_iter().find(|(form, path)| ResultForm::of(path) == Some(*form))
    }

    /// The status as seen from this machine now; the state of a dead run is `lost`.
    pub fn status(&self) -> Result<Status, RunError> {
        Status::look(&self.path, &Host::this())
    }

    /// The published checkpoints by step, unverified.
    pub fn checkpoints(&self) -> Vec<Checkpoint> {
        list_checkpoints(&self.path)
    }

    /// Locks the run for this process. The error names the process that holds the lock.
    pub fn lock(&self) -> Result<RunLock, RunError> {
        self.lock_within(LOCK_PATIENCE)
    }

    fn lock_within(&self, patience: Duration) -> Result<RunLock, RunError> {
        FolderLock::take(&self.path.join(LOCK_FILE), patience)?
            .map(RunLock)
            .map_err(|holder| RunError::Locked { run: self.id.clone(), holder })
    }

    /// The last `lines` whole lines of `engine.log` at most, cleaned for the screen.
    pub fn log_tail(&self, lines: usize) -> Vec<String> {
        const TAIL: u64 = 64 * 1024;
        let Ok((mut file, length)) = files::open(&self.log_path()) else { return Vec::new() };
        let begin = length.saturating_sub(TAIL);
        let mut text = Vec::new();
        if file.seek(SeekFrom::Start(begin)).is_err() || file.take(TAIL).read_to_end(&mut text).is_err() {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&text);
        let mut tail: Vec<_> = text
            .lines()
            .skip(usize::from(begin > 0))
            .filter(|line| !line.trim().is_empty())
            .map(|line| crate::text::clean_line(line).into_owned())
            .collect();
        tail.split_off(tail.len().saturating_sub(lines))
    }
}

/// Keeps other processes from working on the run until dropped. The lock ends with its process.
#[derive(Debug)]
pub struct RunLock(#[expect(dead_code, reason = "held for its flock alone")] FolderLock);

/// An advisory lock on a file; the file's content names the holder.
#[derive(Debug)]
pub(crate) struct FolderLock(File);

impl FolderLock {
    /// Takes the lock, waiting at most `patience`. The inner error names the holder.
    pub(crate) fn take(path: &Path, patience: Duration) -> Result<Result<Self, String>, RunError> {
        let deadline = Instant::now() + patience;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io_error("open", path))?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    // The holder's name is only for the message.
                    let _ = (&mut file).take(256).read_to_string(&mut holder);
                    let holder = crate::text::clean_line(holder.trim()).into_owned();
                    return Ok(Err(if holder.is_empty() { "another process".to_owned() } else { holder }));
                }
                Err(error) => {
                    return Err(RunError::Io { doing: "lock", path: path.to_owned(), source: error.into() });
                }
            }
        }
        // The content is only for people, and for who cannot read the status; the lock works without it.
        let _ = file.set_len(0).and_then(|()| {
            file.write_all(format!("process {} on {}\n", std::process::id(), Host::this().name).as_bytes())
        });
        Ok(Ok(Self(file)))
    }
}

impl FolderLock {
    /// Whether anybody has the lock. Takes it for a moment, so that who asks for it meanwhile must ask again.
    pub(crate) fn is_held(path: &Path) -> bool {
        let Ok((file, _)) = files::open(path) else { return false };
        let held = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
        if !held {
            let _ = flock(&file, FlockOperation::Unlock);
        }
        held
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child that was forked meanwhile and has not called exec yet would
        // keep the lock.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// One run in a list of runs.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSummary {
    pub id: String,
    pub path: PathBuf,
    /// As seen from this machine now.
    pub state: RunState,
    /// What is trained, in short: `lora r16`.
    pub method: String,
    /// Number of optimiser updates made.
    pub step: u64,
    /// Number of optimiser updates planned; 0 while unknown.
    pub total_steps: u64,
    /// Loss of the last step.
    pub loss: Option<Number>,
    /// Loss of the last evaluation.
    pub eval_loss: Option<Number>,
    /// Lowest loss of any evaluation.
    pub best_eval_loss: Option<Number>,
    /// When the run was first started.
    pub started: Timestamp,
    pub failure: Option<Failure>,
    /// Why it is in this state, in words.
    pub reason: Option<String>,
    /// What is wrong with its files or its process, in a few words.
    pub remark: Option<String>,
}

/// A project's runs, newest first. Reads each run's status and a few lines of its configuration; of its journal both
/// ends where the status cannot be read.
pub fn list(project: &Path) -> Result<Vec<RunSummary>, RunError> {
    let host = Host::this();
    let runs = project.join(RUNS_FOLDER);
    let summarise = |id: String| summary(id, &runs, &host);
    Ok(ids(project)?.into_iter().rev().map(summarise).collect())
}

fn summary(id: String, runs: &Path, host: &Host) -> RunSummary {
    let path = runs.join(&id);
    // It may have been removed a moment ago.
    let status = Status::look(&path, host).unwrap_or_else(|error| Status {
        state: RunState::Lost,
        remark: Some(error.to_string()),
        ..Status::default()
    });
    let config = files::read_text(&path.join(CONFIG_FILE), LARGEST_CONFIG).unwrap_or_default();
    RunSummary {
        method: method_label(&config),
        state: status.state,
        step: status.step,
        total_steps: status.total_steps,
        loss: status.loss,
        eval_loss: status.eval_loss,
        best_eval_loss: status.best_eval_loss,
        started: status.started,
        failure: status.failure,
        reason: status.reason,
        remark: status.remark,
        id,
        path,
    }
}

/// Whether a folder is a run: it has settings, whatever stands in their place, or an engine has worked on it. One that
/// is still being made has neither.
fn is_run(path: &Path) -> bool {
    [CONFIG_FILE, JOURNAL_FILE, LOCK_FILE].iter().any(|name| path.join(name).symlink_metadata().is_ok())
}

/// The ids of a project's runs, oldest first.
fn ids(project: &Path) -> Result<Vec<String>, RunError> {
    let runs = project.join(RUNS_FOLDER);
    let entries = match fs::read_dir(&runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(RunError::Io { doing: "read", path: runs, source }),
    };
    let mut ids: Vec<_> = entries
        .flatten()
        .filter(|entry| is_run(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| crate::text::clean_line(name) == *name)
        .collect();
    ids.sort_by_cached_key(|id| order_of(id));
    let mut of_a_second: HashMap<String, usize> = HashMap::new();
    for id in &ids {
        *of_a_second.entry(stamp_of(id).to_owned()).or_default() += 1;
    }
    // The names of runs of the same second do not say which came first.
    ids.sort_by_cached_key(|id| {
        let shared = of_a_second.get(stamp_of(id)).is_some_and(|&count| count > 1);
        let status = if shared { Status::read(&runs.join(id)).ok().flatten() } else { None };
        (stamp_of(id).to_owned(), status.map(|status| status.started), order_of(id))
    });
    Ok(ids)
}

/// The second in which a run was created.
fn stamp_of(id: &str) -> &str {
    id.get(..STAMP).unwrap_or(id)
}

/// Bytes of `YYYYMMDD-HHMMSS`.
const STAMP: usize = 15;

/// Sort key: ids that differ only in their number sort by it, `_2` before `_10`.
fn order_of(id: &str) -> (String, u32) {
    let (base, number) = id.rsplit_once('_').unwrap_or((id, "1"));
    (base.to_owned(), number.parse().unwrap_or(1))
}

/// What a configuration trains, in short: `lora r16`, `dora r8`, `prefix 20`, `full`, with the algorithm unless it is SFT:
/// `lora r16 kto`. Losses of different algorithms cannot be compared. Does not validate the configuration, because a list
/// must show runs of other versions too.
pub fn method_label(config: &str) -> String {
    let table: toml::Table = config.parse().unwrap_or_default();
    let Some(method) = table.get("method").and_then(toml::Value::as_table) else {
        return "unknown".to_owned();
    };
    let kind = method.get("kind").and_then(toml::Value::as_str).unwrap_or("unknown");
    let kind = crate::text::clean_line(kind).into_owned();
    let whole = |key: &str| method.get(key).and_then(toml::Value::as_integer);
    let label = match kind.as_str() {
        "lora" | "qlora" => {
            let variant = method.get("variant").and_then(toml::Value::as_str).unwrap_or("plain");
            let name = if kind == "qlora" || variant == "plain" { &kind } else { variant };
            let name = crate::text::clean_line(name);
            whole("rank").map_or_else(|| name.to_string(), |rank| format!("{name} r{rank}"))
        }
        "prefix" | "prompt" => {
            whole("virtual_tokens").map_or_else(|| kind.clone(), |tokens| format!("{kind} {tokens}"))
        }
        _ => kind,
    };
    let algorithm = table.get("train").and_then(|train| train.get("algorithm")).and_then(toml::Value::as_str);
    match algorithm.filter(|name| *name != Algorithm::Sft.name()) {
        Some(name) => format!("{label} {}", crate::text::clean_line(name)),
        None => label,
    }
}

/// Lower-case letters, digits and single hyphens.
fn slug_of(text: &str) -> String {
    let mut slug = String::new();
    for character in text.chars() {
        if slug.len() == SLUG_LIMIT {
            break;
        }
        if character.is_ascii_alphanumeric() {
            slug.push(character.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "run".to_owned() } else { slug.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::runs::testing::config;

    const CONFIG: &str = "[method]\nkind = \"lora\"\nrank = 16\n";

    fn at(project: &Path, time: &str, slug: &str) -> RunDir {
        RunDir::create_at(project, CONFIG, slug, time.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_run_has_its_configuration_and_only_its_user_may_read_it() {
        let project = tempfile::tempdir().unwrap();
        let config = config(&["method.rank=8"]);
        let run = RunDir::create(project.path(), &config, None).unwrap();
        assert_eq!(Config::load_file(&run.config_path(), &[]).unwrap(), config);
        assert_eq!(run.status().unwrap().state, RunState::Queued);
        assert_eq!(fs::metadata(run.path()).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(run.id().ends_with("-lora-r8"), "{}", run.id());
        assert_eq!(RunDir::open(run.path()).unwrap(), run);
        assert_eq!(run.project(), project.path().canonicalize().unwrap());
    }

    #[test]
    fn ids_of_one_second_differ_and_sort_by_creation() {
        let project = tempfile::tempdir().unwrap();
        let made: Vec<_> = (0..12)
            .map(|_| at(project.path(), "2026-08-23T14:02:11.9Z", "LoRA, rank 16!").id().to_owned())
            .collect();
        assert_eq!(made[0], "20260823-140211-lora-rank-16");
        assert_eq!(made.iter().collect::<BTreeSet<_>>().len(), 12);
        let later = at(project.path(), "2026-08-23T14:02:12Z", "a").id().to_owned();
        let listed: Vec<_> = list(project.path()).unwrap().into_iter().map(|summary| summary.id).collect();
        let newest_first: Vec<_> = made.into_iter().chain([later]).rev().collect();
        assert_eq!(listed, newest_first);
    }

    #[test]
    fn runs_of_one_second_sort_by_when_they_began() {
        let project = tempfile::tempdir().unwrap();
        let first = at(project.path(), "2026-08-23T14:02:11.3Z", "lora").id().to_owned();
        let second = at(project.path(), "2026-08-23T14:02:11.9Z", "full").id().to_owned();
        assert_eq!(RunDir::find(project.path(), "latest").unwrap().id(), second);
        let listed: Vec<_> = list(project.path()).unwrap().into_iter().map(|summary| summary.id).collect();
        assert_eq!(listed, [second, first]);
    }

    #[test]
    fn methods_have_short_labels() {
        for (set, label) in [
            ("method.variant=rslora", "rslora r16"),
            ("method.variant=plain", "lora r16"),
            ("method.kind=prefix", "prefix 20"),
            ("method.kind=full", "full"),
            ("method.kind=ia3", "ia3"),
            ("train.algorithm=dpo", "lora r16 dpo"),
        ] {
            assert_eq!(method_label(&config(&[set]).to_toml()), label);
        }
        assert_eq!(method_label("[method]\nkind = \"moon\"\n"), "moon");
        assert_eq!(method_label("[method"), "unknown");
    }

    #[test]
    fn slugs_are_plain() {
        for (text, slug) in [
            ("../../etc/passwd", "etc-passwd"),
            ("Ünïcode \u{1b}[31m", "n-code-31m"),
            ("", "run"),
            ("--", "run"),
            (
                "a-very-long-name-that-goes-on-and-on-and-on-and-on",
                "a-very-long-name-that-goes-on-and-on-and",
            ),
        ] {
            assert_eq!(slug_of(text), slug);
        }
    }

    #[test]
    fn runs_are_found_by_part_of_their_id() {
        let project = tempfile::tempdir().unwrap();
        let missing = RunDir::find(project.path(), "latest").unwrap_err().to_string();
        assert!(missing.contains("no runs yet"), "{missing}");
        let first = at(project.path(), "2026-08-23T14:02:11Z", "lora-r8");
        let second = at(project.path(), "2026-08-24T09:00:00Z", "lora-r16");
        fs::create_dir(project.path().join("runs/29990101-000000-no-config")).unwrap();
        let find = |wanted: &str| RunDir::find(project.path(), wanted);
        assert_eq!(find("latest").unwrap(), second);
        assert_eq!(find("20260823").unwrap(), first);
        assert_eq!(find("r16").unwrap(), second);
        assert_eq!(find(first.id()).unwrap(), first);
        assert!(matches!(find("2026"), Err(RunError::Ambiguous { known, .. }) if known.len() == 2));
        assert_eq!(RunDir::named(project.path(), first.id()).unwrap(), first);
        assert!(matches!(RunDir::named(project.path(), "20260823"), Err(RunError::Gone(_))));
        for wanted in ["", "nothing", "../runs", "29990101"] {
            assert!(matches!(find(wanted), Err(RunError::NotFound { .. })), "{wanted}");
        }
    }

    #[test]
    fn a_list_shows_the_status() {
        let project = tempfile::tempdir().unwrap();
        assert!(list(project.path()).unwrap().is_empty());
        let run = at(project.path(), "2026-08-23T14:02:11Z", "a");
        let mut status = Status::of_this_process(RunState::Running);
        status.step = 412;
        status.loss = Some(0.871.into());
        status.write_atomic(run.path()).unwrap();
        let broken = at(project.path(), "2026-08-23T14:02:12Z", "b");
        fs::write(broken.path().join("status.json"), "{").unwrap();
        fs::write(broken.config_path(), "not toml").unwrap();
        let listed = list(project.path()).unwrap();
        assert_eq!((listed[0].state, listed[0].method.as_str()), (RunState::Lost, "unknown"));
        assert!(listed[0].remark.as_ref().unwrap().contains("status.json"));
        assert_eq!(
            (listed[1].state, listed[1].step, listed[1].method.as_str()),
            (RunState::Running, 412, "lora r16")
        );
    }

    #[test]
    fn only_one_process_can_lock_a_run() {
        let project = tempfile::tempdir().unwrap();
        let run = at(project.path(), "2026-08-23T14:02:11Z", "a");
        let lock = run.lock().unwrap();
        let message = run.lock_within(Duration::ZERO).unwrap_err().to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        drop(lock);
        assert!(run.lock().is_ok());
    }

    #[test]
    fn the_end_of_the_log_is_cleaned() {
        let project = tempfile::tempdir().unwrap();
        let run = at(project.path(), "2026-08-23T14:02:11Z", "a");
        assert!(run.log_tail(5).is_empty());
        let mut text = "x".repeat(100_000);
        text.push_str("\none\n\n\u{1b}[31mtwo\u{7}\nthree\n");
        fs::write(run.log_path(), text).unwrap();
        assert_eq!(run.log_tail(2), ["[31mtwo", "three"]);
        assert_eq!(run.log_tail(9).len(), 3);
    }
}
