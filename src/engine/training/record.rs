//! Everything that a run reports while it works: journal, status file, subscribers of its socket.
//!
//! The status is written by its own thread, so that a long step or a slow disk never makes a live run look
//! dead.

use std::fs;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use luthier_core::runs::{
    AlertEvent, AlertKind, EventBody, HEARTBEAT_INTERVAL, JournalEvent, JournalWriter, LAST_WORDS_FILE,
    ProcessIdentity, ROOM, Reserve, RunDir, RunError, RunState, Server, StateEvent, Status, awaited, time,
};
use luthier_core::text::clean;
use luthier_core::units::duration;

use crate::error::EngineError;
use crate::process::bound_log;

/// How long a changed status may wait before it is written, if it is not urgent.
const STATUS_DELAY: Duration = Duration::from_millis(500);

pub struct Record {
    run: RunDir,
    journal: JournalWriter,
    server: Option<Server>,
    step: u64,
    /// While the run holds still.
    held: Option<Held>,
    pulse: Pulse,
}

/// How a run was before it held still.
struct Held {
    state: RunState,
    reason: Option<String>,
    activity: Option<String>,
    awaited: &'static str,
    since: Instant,
}

impl Record {
    /// Opens the journal and takes over the run for this process: its status is `starting` from now on.
    pub fn open(run: &RunDir) -> Result<Self, RunError> {
        let journal = JournalWriter::open(&run.journal_path())?;
        // The words of the process before; there seldom are any.
        let _ = fs::remove_file(run.path().join(LAST_WORDS_FILE));
        // A status that cannot be read is treated as missing: the journal is the truth.
        let mut status = Status::read(run.path()).ok().flatten().unwrap_or_default();
        status.claim(&ProcessIdentity::this());
        status.failure = None;
        status.reason = None;
        status.ended = None;
        status.socket = None;
        status.activity = None;
        if status.started == Status::default().started {
            status.started = time::now();
        }
        let mut record = Self {
            run: run.clone(),
            journal,
            server: None,
            step: status.step,
            held: None,
            pulse: Pulse::start(run.clone(), status),
        };
        record.state(RunState::Starting, None);
        Ok(record)
    }

    /// Publishes every event to the server's subscribers from now on, and names its socket in the status.
    pub fn serve(&mut self, server: Server) {
        let socket = server.path().to_owned();
        self.server = Some(server);
        self.update(|status| status.socket = Some(socket));
        self.write_now();
    }

    pub fn run(&self) -> &RunDir {
        &self.run
    }

    /// The step that events carry from now on: the number of updates made.
    pub fn at_step(&mut self, step: u64) {
        self.step = step;
        self.update(|status| status.step = step);
    }

    /// Writes an event to the journal and sends it to subscribers. While the disk is full it is only kept in memory, so
    /// that the room that is left is for the status.
    pub fn event(&mut self, body: impl Into<EventBody>) {
        let event = JournalEvent::now(Some(self.step), body);
        if self.pulse.shared.lock().reserve.is_spent() {
            self.journal.keep_back(&event);
        } else {
            self.journal.append(&event);
        }
        if let Some(server) = &self.server {
            server.publish(&event);
        }
    }

    /// Reports something that a person should look at.
    pub fn alert(&mut self, alert: AlertKind, message: impl Into<String>, rows: Vec<u64>) {
        let message = clean(&message.into()).into_owned();
        tracing::warn!(step = self.step, %alert, "{message}");
        self.event(AlertEvent { alert, message, rows });
    }

    /// Reports what belongs to an earlier step.
    pub fn of_step(&mut self, step: u64, report: impl FnOnce(&mut Self)) {
        let current = std::mem::replace(&mut self.step, step);
        report(self);
        self.step = current;
    }

    /// Changes the status, which is written soon.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        self.pulse.change(change);
    }

    /// A copy of the current status.
    pub fn status(&self) -> Status {
        self.pulse.shared.lock().status.clone()
    }

    /// What the engine does apart from training, as text; `None` while it trains. Written at once.
    pub fn activity(&self, activity: Option<&str>) {
        self.update(|status| status.activity = activity.map(str::to_owned));
        self.write_now();
    }

    /// Changes the state of a live run: journaled, and written to the status at once.
    pub fn state(&mut self, state: RunState, reason: Option<String>) {
        self.event(StateEvent { state, reason: reason.clone(), failure: None });
        self.update(|status| {
            status.state = state;
            status.reason = reason;
        });
        self.write_now();
    }

    fn write_now(&self) {
        // Reported there; it is tried again with the next heartbeat.
        let _ = self.pulse.write_now();
    }

    /// Ends the run: journaled, and written to the status, once the journal has all its lines. While the disk refuses one
    /// of the two the run holds still; `wait` returns when to try again, with `false` to give up.
    pub fn end(&mut self, end: StateEvent, wait: &mut dyn FnMut() -> bool) {
        if let Some(failure) = &end.failure {
            tracing::error!(class = %failure.class, "{}", failure.message);
        }
        self.event(end.clone());
        self.journal.sync();
        while let Some(problem) = self.journal.problem()
            && let Some(awaited) = awaited(problem)
        {
            let problem = problem.to_string();
            // The room that was kept is for these lines.
            let spent = self.pulse.shared.lock().reserve.spend();
            let again = spent || {
                self.pulse.show_waiting(awaited, &problem);
                wait()
            };
            self.journal.sync();
            if !again {
                break;
            }
        }
        self.update(|status| {
            status.state = end.state;
            status.reason = end.reason;
            status.failure = end.failure;
            status.ended = Some(time::now());
            status.socket = None;
            status.activity = None;
        });
        while let Err(error) = self.pulse.write_now()
            && error.awaited().is_some()
            && wait()
        {}
    }

    /// Holds the run still until `awaited` comes about, and says so; `problem` is why it must wait.
    pub fn wait_for(&mut self, awaited: &'static str, problem: &str) {
        if self.held.is_none() {
            tracing::warn!("waiting for {awaited}: {problem}");
            let Status { state, reason, activity, .. } = self.status();
            self.held = Some(Held { state, reason, activity, awaited, since: Instant::now() });
            self.state(RunState::Paused, Some(waiting_for(awaited)));
        }
        self.pulse.show_waiting(awaited, problem);
    }

    /// Lets a run that holds still go on, if it does.
    pub fn go_on(&mut self) {
        let Some(Held { state, reason, activity, awaited, since }) = self.held.take() else { return };
        self.pulse.shared.lock().reserve.restore();
        self.update(|status| status.activity = activity);
        self.state(state, reason);
        let waited = duration(since.elapsed());
        self.alert(
            AlertKind::DiskLow,
            format!("the disk works again; the run held still for {waited}, waiting for {awaited}"),
            Vec::new(),
        );
    }

    /// An error while what room is left on the disk is for the status and the last words.
    pub fn room(&self) -> crate::error::Result<()> {
        let mut beat = self.pulse.shared.lock();
        if beat.reserve.is_spent() {
            beat.reserve.restore();
        }
        if !beat.reserve.is_spent() {
            return Ok(());
        }
        let path = self.run.path().to_owned();
        Err(EngineError::File { action: "write to", path, source: io::ErrorKind::StorageFull.into() })
    }

    /// Writes the lines that the journal could not take, if the disk takes them by now.
    pub fn catch_up(&mut self) {
        if self.journal.problem().is_some() {
            self.sync();
        }
    }

    /// Syncs the journal to the disk.
    pub fn sync(&mut self) {
        if !self.pulse.shared.lock().reserve.is_spent() {
            self.journal.sync();
        }
    }
}

fn waiting_for(awaited: &str) -> String {
    format!("waiting for {awaited}")
}

/// Writes the status soon after a change, and every few seconds as a sign of life.
struct Pulse {
    shared: Arc<Shared>,
    beating: Option<JoinHandle<()>>,
}

struct Shared {
    run: RunDir,
    beat: Mutex<Beat>,
    wake: Condvar,
}

struct Beat {
    status: Status,
    changed: bool,
    written: Instant,
    /// Whether the last attempt to write it failed.
    failing: bool,
    reserve: Reserve,
    ended: bool,
}

impl Pulse {
    fn start(run: RunDir, status: Status) -> Self {
        let reserve = Reserve::take(run.path());
        let beat =
            Beat { status, changed: true, written: Instant::now(), failing: false, reserve, ended: false };
        let shared = Arc::new(Shared { run, beat: Mutex::new(beat), wake: Condvar::new() });
        shared.bound_log();
        let beating = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("heartbeat".into()).spawn(move || shared.beat())
        };
        let beating = beating
            .inspect_err(
                |error| tracing::error!(%error, "no thread for the heartbeat; the run may be shown as lost"),
            )
            .ok();
        Self { shared, beating }
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        let mut beat = self.shared.lock();
        change(&mut beat.status);
        beat.changed = true;
    }

    /// The error is that of the disk.
    fn write_now(&self) -> Result<(), RunError> {
        self.shared.write(&mut self.shared.lock())
    }

    /// Says in the status that the run holds still, and why.
    fn show_waiting(&self, awaited: &str, problem: &str) {
        self.change(|status| {
            status.state = RunState::Paused;
            status.reason = Some(waiting_for(awaited));
            status.activity = Some(format!("{}: {}", waiting_for(awaited), clean(problem)));
        });
        // Reported there; it is tried again with the next heartbeat.
        let _ = self.write_now();
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.wake.notify_all();
        if let Some(beating) = self.beating.take() {
            // The panic hook has already reported the panic.
            let _ = beating.join();
        }
        let mut beat = self.shared.lock();
        if beat.changed {
            // Reported there, and this was the last attempt.
            let _ = self.shared.write(&mut beat);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beat(&self) {
        let mut beat = self.lock();
        while !beat.ended {
            let age = beat.written.elapsed();
            if age >= HEARTBEAT_INTERVAL {
                beat.reserve.restore();
                self.bound_log();
            }
            if age >= HEARTBEAT_INTERVAL || (beat.changed && age >= STATUS_DELAY) {
                // Reported there; it is tried again.
                let _ = self.write(&mut beat);
            }
            beat = self.wake.wait_timeout(beat, STATUS_DELAY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn bound_log(&self) {
        if let Err(error) = bound_log(&self.run.log_path()) {
            tracing::debug!(%error, "the log cannot begin anew");
        }
    }

    fn write(&self, beat: &mut Beat) -> Result<(), RunError> {
        beat.written = Instant::now();
        let mut written = beat.status.write_atomic(self.run.path());
        if let Err(error) = &written
            && error.awaited() == Some(ROOM)
            && beat.reserve.spend()
        {
            written = beat.status.write_atomic(self.run.path());
        }
        beat.changed &= written.is_err();
        let failed_before = std::mem::replace(&mut beat.failing, written.is_err());
        // Each line would take some of the room that it needs.
        written.inspect_err(|error| {
            if !failed_before {
                tracing::warn!(%error, "the status cannot be written");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::runs::{Failure, FailureClass, JournalReader, RESERVE_FILE};

    use super::*;

    fn run(project: &std::path::Path) -> RunDir {
        RunDir::create(project, &luthier_core::config::Config::default(), Some("test")).unwrap()
    }

    #[test]
    fn states_are_in_journal_and_status_and_the_socket_is_removed_at_the_end() {
        let project = tempfile::tempdir().unwrap();
        let run = run(project.path());
        let mut record = Record::open(&run).unwrap();
        record.at_step(3);
        record.alert(AlertKind::Spike, "loss\u{1b}[31m jumped", vec![4, 7]);
        let failure = Failure { class: FailureClass::Nan, message: "loss".into(), remedy: "less".into() };
        let end = StateEvent { state: RunState::Failed, reason: None, failure: Some(failure) };
        record.end(end, &mut || panic!("nothing is in the way"));
        assert!(run.path().join(RESERVE_FILE).exists());
        drop(record);
        assert!(!run.path().join(RESERVE_FILE).exists());

        let status = Status::read(run.path()).unwrap().unwrap();
        assert_eq!((status.state, status.step), (RunState::Failed, 3));
        assert!(status.ended.is_some() && status.socket.is_none());
        assert_eq!(status.failure.unwrap().class, FailureClass::Nan);
        assert_eq!(status.pid, std::process::id());

        let mut reader = JournalReader::new(&run.journal_path());
        let events = reader.read(100, Duration::from_secs(5)).unwrap().events;
        let kinds: Vec<&str> = events.iter().map(|event| event.body.kind()).collect();
        assert_eq!(kinds, ["state", "alert", "state"]);
        let EventBody::Alert(alert) = &events[1].body else { panic!("{events:?}") };
        assert_eq!((events[1].step, &alert.rows), (Some(3), &vec![4, 7]));
        assert!(!alert.message.contains('\u{1b}'), "{}", alert.message);
    }

    #[test]
    fn an_end_that_the_disk_refuses_is_waited_for_and_seen() {
        let project = tempfile::tempdir().unwrap();
        let run = run(project.path());
        std::os::unix::fs::symlink("/dev/full", run.journal_path()).unwrap();
        let mut record = Record::open(&run).unwrap();
        let mut seen = Vec::new();
        let end = StateEvent { state: RunState::Stopped, reason: Some("asked".into()), failure: None };
        record.end(end, &mut || {
            let status = Status::read(run.path()).unwrap().unwrap();
            assert!(status.activity.unwrap().contains("No space left"), "why it waits");
            seen.push((status.state, status.reason.unwrap()));
            seen.len() < 3
        });
        assert_eq!(seen, vec![(RunState::Paused, "waiting for room on the disk".to_owned()); 3]);
        let status = Status::read(run.path()).unwrap().unwrap();
        assert_eq!((status.state, status.reason.as_deref()), (RunState::Stopped, Some("asked")));
        assert!(status.activity.is_none());
    }

    #[test]
    fn lines_are_kept_back_while_the_room_for_the_last_words_is_spent() {
        let project = tempfile::tempdir().unwrap();
        let run = run(project.path());
        let mut record = Record::open(&run).unwrap();
        let kinds = || {
            let mut reader = JournalReader::new(&run.journal_path());
            let events = reader.read(100, Duration::from_secs(5)).unwrap().events;
            events.iter().map(|event| event.body.kind().to_owned()).collect::<Vec<_>>()
        };
        let mut beat = record.pulse.shared.lock();
        assert!(beat.reserve.spend());
        drop(beat);
        record.alert(AlertKind::Other, "a", Vec::new());
        record.catch_up();
        assert_eq!(kinds(), ["state"]);
        record.pulse.shared.lock().reserve.restore();
        record.catch_up();
        assert_eq!(kinds(), ["state", "alert", "alert"]);
    }

    #[test]
    fn a_changed_status_is_written_on_its_own() {
        let project = tempfile::tempdir().unwrap();
        let run = run(project.path());
        let record = Record::open(&run).unwrap();
        record.update(|status| status.total_steps = 77);
        let deadline = Instant::now() + Duration::from_secs(20);
        while Status::read(run.path()).unwrap().unwrap().total_steps != 77 {
            assert!(Instant::now() < deadline, "the status was never written");
            thread::yield_now();
        }
    }
}
