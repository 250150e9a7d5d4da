//! `status.json`: the state of a run, replaced atomically by the engine.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::RunError;
use super::number::Number;
use super::process::{Host, ProcessIdentity};
use super::time::{self, millis, optional_millis};
use crate::files::{self, Access};

/// A run on another machine counts as lost once its heartbeat is older than this.
pub const HEARTBEAT_LIMIT: Duration = Duration::from_mins(1);

/// How often a running engine should renew its heartbeat.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// A status file is small; anything larger is not a status file.
const STATUS_LIMIT: u64 = 1 << 20;

pub const STATUS_FILE: &str = "status.json";

#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RunState {
    /// Created, not started.
    #[default]
    Queued,
    /// The process exists and is preparing.
    Starting,
    Running,
    /// Waiting between two steps, with its memory kept.
    Paused,
    /// Was asked to stop and is saving.
    Stopping,
    /// Reached its planned end.
    Finished,
    /// Ended before its planned end, on request or by early stopping.
    Stopped,
    Failed,
    /// The process is gone and wrote no final status. Never written to the file; see [`Status::observed`].
    Lost,
}

impl RunState {
    /// Whether no process works on the run any more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Stopped | Self::Failed | Self::Lost)
    }

    /// Whether a process should be alive.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    pub class: FailureClass,
    /// What happened, for the user.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Kinds of failure.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FailureClass {
    /// Memory ran out, on the device or the machine.
    Oom,
    /// Loss or gradients were not finite.
    Nan,
    /// The disk was full or failed.
    Disk,
    /// The data cannot be trained on.
    Data,
    /// The configuration, or the model it names, cannot be used.
    Config,
    /// A signal ended the process.
    Killed,
    Device,
    /// A bug in Luthier, or any other unexpected error.
    #[default]
    #[serde(other)]
    Bug,
}

/// The content of `status.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Use [`Status::observed`] before showing it: a dead process cannot report that it is lost.
    pub state: RunState,
    /// Process id of the engine; 0 before there is one.
    pub pid: u32,
    /// When that process started, in clock ticks since boot, so that a reused pid is not mistaken for it.
    pub process_start: u64,
    /// Host name of the machine it runs on.
    pub host: String,
    /// Boot id of that machine.
    pub boot_id: String,
    /// Number of optimiser updates made.
    pub step: u64,
    /// Number of optimiser updates planned; 0 while unknown.
    pub total_steps: u64,
    /// Position in the data: 1.5 is the middle of the second epoch.
    pub epoch: f64,
    /// When the run was first started.
    #[serde(with = "millis")]
    pub started: Timestamp,
    #[serde(with = "optional_millis", skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// When the engine last reported that it is alive. Set by [`Status::write_atomic`].
    #[serde(with = "millis")]
    pub heartbeat: Timestamp,
    /// The control socket, while there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The failure, if the state is `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Why the run is in this state, in words, if that is useful to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Loss of the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<Number>,
    /// Loss of the last evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<Number>,
    /// Lowest loss of any evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_eval_loss: Option<Number>,
    /// Step of the evaluation with the lowest loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_step: Option<u64>,
    /// The objective's scores at the last evaluation, by name.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub scores: IndexMap<String, Number>,
    /// Learning rate of the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<Number>,
    /// Recent throughput.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<Number>,
    /// Seconds spent in steps, without pauses, over all processes of the run.
    pub train_seconds: f64,
    /// Step of the newest checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// `cpu`, `cuda:0` …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// What the engine is doing other than training, in words: `evaluating`, `loading the model` …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activity: Option<String>,
    /// What is wrong with the run's files or its process, in a few words. Never in the file; see [`Status::look`].
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: RunState::Queued,
            pid: 0,
            process_start: 0,
            host: String::new(),
            boot_id: String::new(),
            step: 0,
            total_steps: 0,
            epoch: 0.0,
            started: Timestamp::UNIX_EPOCH,
            ended: None,
            heartbeat: Timestamp::UNIX_EPOCH,
            socket: None,
            failure: None,
            reason: None,
            loss: None,
            eval_loss: None,
            best_eval_loss: None,
            best_step: None,
            scores: IndexMap::new(),
            learning_rate: None,
            tokens_per_second: None,
            train_seconds: 0.0,
            checkpoint: None,
            device: String::new(),
            activity: None,
            remark: None,
        }
    }
}

impl Status {
    /// A status with the calling process as the one that works on the run.
    pub fn of_this_process(state: RunState) -> Self {
        let mut status = Self { state, started: time::now(), ..Self::default() };
        status.claim(&ProcessIdentity::this());
        status
    }

    /// Sets the process that works on the run.
    pub fn claim(&mut self, process: &ProcessIdentity) {
        self.pid = process.pid;
        self.process_start = process.start;
        self.host.clone_from(&process.host);
        self.boot_id.clone_from(&process.boot_id);
    }

    /// Reads `status.json` of a run directory unchanged. `Ok(None)` if there is none.
    pub fn read(run: &Path) -> Result<Option<Self>, RunError> {
        let path = run.join(STATUS_FILE);
        let text = match files::read(&path, STATUS_LIMIT) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RunError::Io { doing: "read", path, source }),
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| RunError::Status { path, source })
    }

    /// Replaces `status.json` in a run directory, with the heartbeat set to now. A reader sees the old file
    /// or the new one, never a part.
    pub fn write_atomic(&mut self, run: &Path) -> Result<(), RunError> {
        self.heartbeat = time::now();
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|source| RunError::Status { path: run.join(STATUS_FILE), source })?;
        text.push(b'\n');
        replace_file(&run.join(STATUS_FILE), &text)
    }

    /// The status as `host` must see it at `now`: a run whose process is gone without a final status is
    /// `lost`. On the same machine this is decided by the process (pid, start time and boot), on another by
    /// the age of the heartbeat, which a clock that is ahead does not make younger.
    #[must_use]
    pub fn observed(mut self, host: &Host, now: Timestamp) -> Self {
        if self.state.is_live() && !self.is_alive(host, now) {
            // What a live run says of itself holds no longer, but why it held still may be why it ended.
            self.reason = self.reason.filter(|_| self.state == RunState::Paused);
            self.state = RunState::Lost;
            self.socket = None;
            self.activity = None;
        }
        self
    }

    fn is_alive(&self, host: &Host, now: Timestamp) -> bool {
        if self.pid == 0 || self.process_start == 0 {
            return false;
        }
        if self.host != host.name {
            return self.silence(now) <= HEARTBEAT_LIMIT;
        }
        self.boot_id == host.boot_id && super::process::is_alive(self.pid, self.process_start)
    }

    /// How far the last sign of life is from now. One from the future is as far away: a clock was set.
    pub fn silence(&self, now: Timestamp) -> Duration {
        now.duration_since(self.heartbeat).unsigned_abs()
    }
}

/// Replaces a small file of a run, readable by the user alone.
pub fn replace_file(path: &Path, content: &[u8]) -> Result<(), RunError> {
    files::replace(path, content, Access::Private).map_err(|source| RunError::Io {
        doing: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use jiff::SignedDuration;
    use pretty_assertions::assert_eq;
    use proptest::prelude::*;

    use super::*;
    use crate::runs::testing::wait_until;
    use crate::testing::{changes, damage, damaged, spoilt};

    #[test]
    fn it_reads_back_equal_and_leaves_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Status::read(folder.path()).unwrap(), None);
        let mut status = Status::of_this_process(RunState::Running);
        status.loss = Some(f64::NAN.into());
        status.best_step = Some(40);
        status.failure = Some(Failure { class: FailureClass::Oom, message: "m".into(), remedy: "r".into() });
        for step in 0..3 {
            status.step = step;
            status.write_atomic(folder.path()).unwrap();
            assert_eq!(Status::read(folder.path()).unwrap(), Some(status.clone()));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_half_written_replacement_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut status = Status { step: 7, ..Status::default() };
        status.write_atomic(folder.path()).unwrap();
        fs::write(folder.path().join(".status.json.1.tmp"), b"{\"state\":\"runn").unwrap();
        assert_eq!(Status::read(folder.path()).unwrap().unwrap().step, 7);
    }

    #[test]
    fn a_broken_status_is_an_error_and_other_versions_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(STATUS_FILE);
        fs::write(&file, b"{\"state\":\"runn").unwrap();
        let message = Status::read(folder.path()).unwrap_err().to_string();
        assert!(message.contains("is not a status file") && message.contains("events.jsonl"), "{message}");
        fs::write(
            &file,
            br#"{"state":"paused","pid":4,"moon":"full","failure":{"class":"flood","message":"wet"}}"#,
        )
        .unwrap();
        let status = Status::read(folder.path()).unwrap().unwrap();
        assert_eq!((status.state, status.pid, status.step), (RunState::Paused, 4, 0));
        assert_eq!(status.failure.unwrap().class, FailureClass::Bug);
    }

    fn seen(status: &Status) -> RunState {
        status.clone().observed(&Host::this(), Timestamp::now()).state
    }

    #[test]
    fn only_the_same_process_counts_as_alive() {
        let status = Status::of_this_process(RunState::Running);
        assert_eq!(seen(&status), RunState::Running);
        assert_eq!(
            seen(&Status { process_start: status.process_start + 1, ..status.clone() }),
            RunState::Lost
        );
        assert_eq!(seen(&Status { boot_id: "before".into(), ..status.clone() }), RunState::Lost);
        for host in [status.host.clone(), "elsewhere".into()] {
            let fresh = Status { host, heartbeat: Timestamp::now(), ..status.clone() };
            assert_eq!(seen(&Status { process_start: 0, ..fresh.clone() }), RunState::Lost);
            assert_eq!(seen(&Status { pid: 0, ..fresh }), RunState::Lost);
        }
        for state in [RunState::Queued, RunState::Finished, RunState::Stopped, RunState::Failed] {
            assert_eq!(
                seen(&Status { state, process_start: 0, boot_id: "before".into(), ..status.clone() }),
                state
            );
        }
    }

    #[test]
    fn a_zombie_counts_as_lost() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut status = Status { state: RunState::Paused, ..Status::default() };
        status.claim(&ProcessIdentity::of(child.id()));
        assert_eq!(seen(&status), RunState::Paused);
        child.kill().unwrap();
        wait_until("the zombie counts as gone", || seen(&status) == RunState::Lost);
        child.wait().unwrap();
        assert_eq!(seen(&status), RunState::Lost);
    }

    #[test]
    fn on_another_machine_the_heartbeat_decides() {
        let mut status = Status::of_this_process(RunState::Running);
        status.host = "elsewhere".into();
        let now = Timestamp::now();
        for (age, state) in [
            (0, RunState::Running),
            (59, RunState::Running),
            (61, RunState::Lost),
            (-59, RunState::Running),
            (-3600, RunState::Lost),
        ] {
            status.heartbeat = now - SignedDuration::from_secs(age);
            assert_eq!(status.clone().observed(&Host::this(), now).state, state, "{age} s old");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_damaged_status_is_refused_or_observed(changes in changes(), damage in damage()) {
            let run = tempfile::tempdir().unwrap();
            let path = run.path().join(STATUS_FILE);
            let mut whole = Status::of_this_process(RunState::Running);
            whole.failure = Some(Failure::default());
            whole.write_atomic(run.path()).unwrap();
            let text = fs::read(&path).unwrap();
            let spoilt = spoilt(&serde_json::from_slice(&text).unwrap(), &changes).to_string();
            for content in [spoilt.into_bytes(), damaged(&text, &damage)] {
                fs::write(&path, content).unwrap();
                if let Ok(Some(status)) = Status::read(run.path()) {
                    let elsewhere = Host { name: "elsewhere".into(), boot_id: String::new() };
                    for host in [Host::this(), elsewhere] {
                        let seen = status.clone().observed(&host, Timestamp::now());
                        prop_assert!(seen.state == status.state || seen.state == RunState::Lost);
                    }
                }
            }
        }
    }

    #[test]
    fn a_pipe_as_status_does_not_block() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join(STATUS_FILE);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert!(Status::read(run.path()).unwrap_err().to_string().contains("a pipe"));
    }
}
