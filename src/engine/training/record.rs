//! Everything that a run reports while it works: journal, status file, subscribers of its socket.
//!
//! The status is written by its own thread, so that a long step or a slow disk never makes a live run look
//! dead.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use luthier_core::runs::{
    AlertEvent, AlertKind, EventBody, Failure, HEARTBEAT_INTERVAL, JournalEvent, JournalWriter,
    ProcessIdentity, RunDir, RunError, RunState, Server, StateEvent, Status, time,
};
use luthier_core::text::clean;

/// How long a changed status may wait before it is written, if it is not urgent.
const STATUS_DELAY: Duration = Duration::from_millis(500);

pub struct Record {
    run: RunDir,
    journal: JournalWriter,
    server: Option<Server>,
    step: u64,
    pulse: Pulse,
}

impl Record {
    /// Opens the journal and takes over the run for this process: its status is `starting` from now on.
    pub fn open(run: &RunDir) -> Result<Self, RunError> {
        let journal = JournalWriter::open(&run.journal_path())?;
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
        self.pulse.write_now();
    }

    pub fn run(&self) -> &RunDir {
        &self.run
    }

    /// The step that events carry from now on: the number of updates made.
    pub fn at_step(&mut self, step: u64) {
        self.step = step;
        self.update(|status| status.step = step);
    }

    /// Writes an event to the journal and sends it to subscribers.
    pub fn event(&mut self, body: impl Into<EventBody>) {
        let event = JournalEvent::now(Some(self.step), body);
        self.journal.append(&event);
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
        self.pulse.write_now();
    }

    /// Changes the run's state: journaled, and written to the status at once.
    pub fn state(&mut self, state: RunState, reason: Option<String>) {
        self.change_state(state, reason, None);
    }

    /// Ends the run as failed.
    pub fn fail(&mut self, failure: Failure) {
        tracing::error!(class = %failure.class, "{}", failure.message);
        self.change_state(RunState::Failed, None, Some(failure));
    }

    fn change_state(&mut self, state: RunState, reason: Option<String>, failure: Option<Failure>) {
        self.event(StateEvent { state, reason: reason.clone(), failure: failure.clone() });
        if state.is_over() {
            self.journal.sync();
        }
        self.update(|status| {
            status.state = state;
            status.reason = reason;
            status.failure = failure;
            if state.is_over() {
                status.ended = Some(time::now());
                status.socket = None;
                status.activity = None;
            }
        });
        self.pulse.write_now();
    }

    /// Syncs the journal to the disk.
    pub fn sync(&mut self) {
        self.journal.sync();
    }
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
    ended: bool,
}

impl Pulse {
    fn start(run: RunDir, status: Status) -> Self {
        let beat = Beat { status, changed: true, written: Instant::now(), ended: false };
        let shared = Arc::new(Shared { run, beat: Mutex::new(beat), wake: Condvar::new() });
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

    fn write_now(&self) {
        self.shared.write(&mut self.shared.lock());
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
            self.shared.write(&mut beat);
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
            if age >= HEARTBEAT_INTERVAL || (beat.changed && age >= STATUS_DELAY) {
                self.write(&mut beat);
            }
            beat = self.wake.wait_timeout(beat, STATUS_DELAY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write(&self, beat: &mut Beat) {
        beat.written = Instant::now();
        match beat.status.write_atomic(self.run.path()) {
            Ok(()) => beat.changed = false,
            Err(error) => tracing::warn!(%error, "the status could not be written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::runs::{FailureClass, JournalReader};

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
        record.fail(Failure { class: FailureClass::Nan, message: "loss".into(), remedy: "less".into() });
        drop(record);

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
