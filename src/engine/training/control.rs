//! Requests to a running run. A thread answers the control socket at once, however long a step takes, and
//! records the requests; the loop reads them between steps.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use luthier_core::config::{self, Change, Config, edit_plan};
use luthier_core::runs::{Call, Reply, Request, StopWhen};
use luthier_core::text::clean_line;

use super::edits::AskedEdit;
use crate::process::Termination;

/// How often a waiting loop checks for a signal, which cannot wake it.
const SIGNAL_POLL: Duration = Duration::from_millis(100);

/// How long a run that holds still waits before it tries again. The wait is doubled each time, since a try may write
/// gigabytes before it fails, up to a minute.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_mins(1);

/// Most prompts that may wait for an answer.
const WAITING_PROMPTS: usize = 16;

/// Requests that the training loop has not applied yet.
#[derive(Debug, Default)]
struct Pending {
    paused: bool,
    stop: Option<StopWhen>,
    /// Once the run holds still: how many signals end that.
    patience: Option<usize>,
    /// How often it has waited.
    waits: u32,
    /// Whether a run that holds still should try again at once.
    retry: bool,
    /// Requests that are applied once.
    once: BTreeSet<Once>,
    prompts: VecDeque<String>,
    /// Edits that clients asked for; others were made in the file.
    edits: Vec<AskedEdit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Once {
    Checkpoint,
    Evaluation,
    /// The configuration file may have changed.
    Config,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

/// The pending requests, shared by the loop and the thread that answers.
#[derive(Debug, Clone)]
pub struct Control {
    shared: Arc<Shared>,
    termination: Termination,
}

impl Control {
    pub fn new(termination: Termination) -> Self {
        let shared = Shared { pending: Mutex::new(Pending::default()), changed: Condvar::new() };
        Self { shared: Arc::new(shared), termination }
    }

    /// Answers calls in its own thread until the server that sends them is gone. Edits are written to `file`,
    /// the run's `config.toml`.
    pub fn answer(&self, calls: Receiver<Call>, file: PathBuf) -> std::io::Result<()> {
        let control = self.clone();
        let answering = thread::Builder::new().name("requests".into()).spawn(move || {
            for call in calls {
                let reply = control.take(&call.request, call.peer.pid, &file);
                call.reply(reply);
            }
        });
        answering.map(drop)
    }

    /// Records that the configuration file may have changed.
    pub fn config_changed(&self) {
        self.request(Once::Config);
    }

    /// Records that the run should end.
    pub fn stop(&self, when: StopWhen) {
        self.note(|pending| pending.stop = Some(when));
    }

    /// Ends a pause, or lets a run that holds still try again.
    pub fn resume(&self) {
        self.note(|pending| (pending.paused, pending.retry) = (false, true));
    }

    /// How the run should end, if it should. All signals but one ask for saving.
    pub fn stopping(&self) -> Option<StopWhen> {
        if self.termination.at_once() {
            return Some(StopWhen::Now);
        }
        let asked = self.termination.asked().then_some(StopWhen::Save);
        self.pending().stop.or(asked)
    }

    /// Whether the run should end at once, without saving.
    pub fn abandoned(&self) -> bool {
        self.stopping() == Some(StopWhen::Now)
    }

    /// Why the run should end, as text.
    pub fn stop_reason(&self) -> String {
        match self.termination.signal() {
            Some(signal) if self.pending().stop.is_none() => format!("the process received {signal}"),
            _ => "asked to stop".into(),
        }
    }

    /// Whether there is a pending request.
    pub fn has_requests(&self) -> bool {
        let Pending { paused, stop, once, prompts, .. } = &*self.pending();
        *paused || stop.is_some() || !once.is_empty() || !prompts.is_empty() || self.termination.asked()
    }

    /// Whether the run should pause.
    pub fn paused(&self) -> bool {
        self.pending().paused
    }

    /// Waits until there is a request or a moment has passed.
    pub fn wait(&self) {
        let pending = self.pending();
        // The caller checks everything again, so it does not matter what woke it.
        drop(self.shared.changed.wait_timeout(pending, SIGNAL_POLL));
    }

    /// Waits while the run holds still, until it should try again. `false` if it should give up: it was asked to stop at
    /// once, or a signal came that is at least the second.
    pub fn wait_to_retry(&self) -> bool {
        let patience = (self.termination.count() + 1).max(2);
        let mut pending = self.pending();
        let until = Instant::now() + FIRST_RETRY.saturating_mul(1 << pending.waits.min(8)).min(LONGEST_RETRY);
        pending.waits += 1;
        let patience = *pending.patience.get_or_insert(patience);
        loop {
            let stops = self.termination.at_once() || pending.stop == Some(StopWhen::Now);
            if stops || self.termination.count() >= patience {
                return false;
            }
            if std::mem::take(&mut pending.retry) || Instant::now() >= until {
                return true;
            }
            let woken = self.shared.changed.wait_timeout(pending, SIGNAL_POLL);
            pending = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether a checkpoint was requested since the last call.
    pub fn take_checkpoint(&self) -> bool {
        self.pending().once.remove(&Once::Checkpoint)
    }

    /// Whether an evaluation was requested since the last call.
    pub fn take_evaluation(&self) -> bool {
        self.pending().once.remove(&Once::Evaluation)
    }

    pub fn take_prompt(&self) -> Option<String> {
        self.pending().prompts.pop_front()
    }

    /// If the configuration file may have changed since the last call: the edits that clients asked for.
    pub fn take_config(&self) -> Option<Vec<AskedEdit>> {
        let mut pending = self.pending();
        pending.once.remove(&Once::Config).then(|| std::mem::take(&mut pending.edits))
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, request: Once) {
        self.note(|pending| {
            pending.once.insert(request);
        });
    }

    fn note(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending());
        self.shared.changed.notify_all();
    }

    /// Adds a request to the pending ones. The reply says what it will do.
    pub(super) fn take(&self, request: &Request, pid: u32, file: &Path) -> Reply {
        let holds_still = self.pending().patience.is_some();
        match request {
            Request::Hello { .. } | Request::Subscribe => Reply::ok("already connected"),
            Request::Resume if holds_still => {
                self.resume();
                Reply::ok("tries again to write to the disk")
            }
            Request::Stop { when } if holds_still => {
                self.stop(*when);
                Reply::ok(match when {
                    StopWhen::Now => "stops at once; what the disk has not taken is lost",
                    StopWhen::Save | StopWhen::AfterEval => {
                        "ends as soon as the disk takes what is to be saved"
                    }
                })
            }
            _ if holds_still => Reply::error(
                "it is at its end and waits for room on the disk; `run resume` tries again at once, `run stop --when now` \
                 gives up what is not saved",
            ),
            _ if self.stopping().is_some_and(|when| {
                *request != Request::Stop { when: StopWhen::Now } && when != StopWhen::AfterEval
            }) =>
            {
                Reply::error("the run is stopping")
            }
            Request::Pause if self.paused() => Reply::error("it is already paused"),
            Request::Pause => {
                self.note(|pending| pending.paused = true);
                Reply::ok("pauses after the current step")
            }
            Request::Resume if !self.paused() => Reply::error("it is already running"),
            Request::Resume => {
                self.resume();
                Reply::ok("continues")
            }
            Request::Checkpoint => {
                self.request(Once::Checkpoint);
                Reply::ok("writes a checkpoint after the current step")
            }
            Request::Evaluate => {
                self.request(Once::Evaluation);
                Reply::ok("evaluates after the current step")
            }
            Request::Stop { when } => {
                self.note(|pending| {
                    pending.stop = Some(*when);
                    pending.paused = false;
                });
                Reply::ok(match when {
                    StopWhen::Save => "stops after the current step, with a checkpoint and the adapter saved",
                    StopWhen::AfterEval => {
                        "stops after one more evaluation, with a checkpoint and the adapter saved"
                    }
                    StopWhen::Now => "stops at once; everything after the last checkpoint is lost",
                })
            }
            Request::Sample { prompt } => {
                let mut pending = self.pending();
                if pending.prompts.len() == WAITING_PROMPTS {
                    return Reply::error(format!(
                        "{WAITING_PROMPTS} prompts are already waiting; try again after the current step"
                    ));
                }
                pending.prompts.push_back(prompt.clone());
                drop(pending);
                self.shared.changed.notify_all();
                Reply::ok("answers after the current step; the reply becomes a `sample` event")
            }
            Request::Edit { key, value, who } => {
                let who = who
                    .as_deref()
                    .map_or_else(|| format!("process {pid}"), |who| clean_line(who).into_owned());
                self.edit(key, value, who, file).unwrap_or_else(Reply::error)
            }
        }
    }

    /// Writes an edit into the configuration file. The loop then reads it like any other edit of the file.
    fn edit(&self, key: &str, value: &str, who: String, file: &Path) -> Result<Reply, String> {
        let old = Config::load_file(file, &[])
            .map_err(|error| format!("the run's config.toml is broken: {error}"))?;
        let new = Config::load_file(file, &[format!("{key}={value}")]).map_err(|error| error.to_string())?;
        let plan = edit_plan(&old, &new);
        if let Some(refused) =
            plan.edits.iter().find_map(|edit| refusal(edit.when).map(|why| format!("{} {why}", edit.key)))
        {
            return Err(refused);
        }
        let Some(edit) = plan.edits.first() else {
            return Ok(Reply::ok(format!("{key} already has this value")));
        };
        let said = match edit.when {
            Change::NextEvaluation => "from the next evaluation on",
            Change::Now | Change::NextResume | Change::NewRun | Change::Refused(_) => "from the next step on",
        };
        let said = format!("{}: {} → {}, {said}", edit.key, edit.old, edit.new);
        // Before the file changes, so that the editor is known when the watcher sees the change.
        let asked = AskedEdit { key: edit.key.clone(), new: edit.new.clone(), who };
        self.note(|pending| pending.edits.push(asked));
        config::write_key(file, key, value).map_err(|error| error.to_string())?;
        self.config_changed();
        Ok(Reply::ok(said))
    }
}

/// Why a live run cannot apply a change; `None` if it can.
pub fn refusal(when: Change) -> Option<String> {
    match when {
        Change::Now | Change::NextEvaluation => None,
        Change::NextResume => {
            Some("can only be changed while the run has no process, before it is resumed".into())
        }
        Change::NewRun => Some("can only be changed for a new run".into()),
        Change::Refused(reason) => Some(format!("cannot be changed while a run is live: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> Control {
        Control::new(Termination::default())
    }

    fn project() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(
            &file,
            "# mine\n[model]\npath = \"m\"\n[data]\ntrain = \"t.jsonl\"\n[train]\nlearning_rate = 2e-4\n",
        )
        .unwrap();
        (folder, file)
    }

    #[test]
    fn requests_are_taken_once() {
        let control = control();
        let (_folder, file) = project();
        for request in [Request::Checkpoint, Request::Evaluate, Request::Sample { prompt: "hi".into() }] {
            assert!(matches!(control.take(&request, 1, &file), Reply::Ok { .. }));
        }
        assert!(control.take_checkpoint() && !control.take_checkpoint());
        assert!(control.take_evaluation() && !control.take_evaluation());
        assert_eq!((control.take_prompt(), control.take_prompt()), (Some("hi".into()), None));
    }

    #[test]
    fn a_stop_ends_a_pause_and_only_stop_now_may_follow() {
        let control = control();
        let (_folder, file) = project();
        assert!(matches!(control.take(&Request::Resume, 1, &file), Reply::Error { .. }));
        control.take(&Request::Pause, 1, &file);
        assert!(control.paused());
        control.take(&Request::Stop { when: StopWhen::Save }, 1, &file);
        assert!(!control.paused());
        assert!(matches!(control.take(&Request::Pause, 1, &file), Reply::Error { .. }));
        control.take(&Request::Stop { when: StopWhen::Now }, 1, &file);
        assert!(control.abandoned());
    }

    #[test]
    fn a_run_that_holds_still_can_be_tried_again_and_stopped_but_not_paused() {
        let control = control();
        let (_folder, file) = project();
        control.stop(StopWhen::Save);
        control.resume();
        assert!(control.wait_to_retry());
        assert!(matches!(control.take(&Request::Pause, 1, &file), Reply::Error { .. }));
        assert!(matches!(control.take(&Request::Resume, 1, &file), Reply::Ok { .. }));
        assert!(control.wait_to_retry());
        assert!(matches!(control.take(&Request::Stop { when: StopWhen::Now }, 1, &file), Reply::Ok { .. }));
        assert!(!control.wait_to_retry());
    }

    #[test]
    fn an_edit_is_written_to_the_file_and_remembers_who_asked() {
        let control = control();
        let (_folder, file) = project();
        let edit = |key: &str, value: &str| Request::Edit {
            key: key.into(),
            value: value.into(),
            who: Some("ann".into()),
        };
        let Reply::Ok { message } = control.take(&edit("train.learning_rate", "1e-4"), 1, &file) else {
            panic!("the edit was refused")
        };
        assert!(message.contains("train.learning_rate"), "{message}");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("# mine") && text.contains("1e-4"), "{text}");
        let asked = control.take_config().unwrap();
        let [AskedEdit { key, new, who }] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!([key, new, who], ["train.learning_rate", "1e-4", "ann"]);
        assert!(control.take_config().is_none());

        for (key, value) in [
            ("method.rank", "8"),
            ("train.seed", "7"),
            ("train.learning_rte", "1"),
            ("train.learning_rate", "-1"),
        ] {
            let reply = control.take(&edit(key, value), 1, &file);
            assert!(matches!(reply, Reply::Error { .. }), "{key}: {reply:?}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "{key} must not be written");
        }
        assert!(control.take_config().is_none());
    }
}
