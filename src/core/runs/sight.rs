//! What can be seen of a run from outside: its status, whether its process lives, and what is wrong with its files.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::directory::{CONFIG_FILE, FolderLock, JOURNAL_FILE, LARGEST_CONFIG, LOCK_FILE};
use super::error::io_error;
use super::event::{EventBody, JournalEvent};
use super::process::{Host, ProcessIdentity};
use super::socket::control_socket_path;
use super::status::{HEARTBEAT_INTERVAL, RunState, STATUS_FILE, Status};
use super::{RunError, last_words, process};
use crate::{files, machine, units};

/// Bytes read of each end of a journal.
const JOURNAL_PART: u64 = 256 << 10;

impl Status {
    /// The current status as seen from `host`: see [`Status::observed`]. Where `status.json` does not say, it is what the
    /// journal and the lock say. [`Status::remark`] has what is wrong. An error if there is no such folder.
    pub fn look(run: &Path, host: &Host) -> Result<Self, RunError> {
        fs::metadata(run).map_err(io_error("read", run))?;
        let mut seen = seen(run, host);
        if seen.state == RunState::Lost {
            // After we read the file, the process may have written its final status and exited. It is gone
            // now, so a second read is final.
            seen = self::seen(run, host);
        }
        if seen.state == RunState::Lost
            && let Some(words) = last_words::read(run)
        {
            seen.reason = Some(words);
        }
        let remarks: Vec<String> =
            [seen.remark.take(), settings_trouble(run), silence(&seen, host, Timestamp::now())]
                .into_iter()
                .flatten()
                .collect();
        seen.remark = (!remarks.is_empty()).then(|| remarks.join("; "));
        Ok(seen)
    }
}

fn seen(run: &Path, host: &Host) -> Status {
    let trouble = match Status::read(run) {
        // A run with a journal has started, so one that is queued again was written by somebody else.
        Ok(Some(status)) if status.state != RunState::Queued || !has_journal(run) => {
            let status = status.observed(host, Timestamp::now());
            let is_lost = status.state == RunState::Lost;
            let holder = is_lost.then(|| lock_holder(run)).flatten();
            // On another machine nothing says whether it lives.
            if !holder.is_some_and(|holder| holder.host == host.name && holder.pid != status.pid) {
                return status;
            }
            format!("{STATUS_FILE} names a process that is gone")
        }
        Ok(None) if !has_journal(run) => return Status::default(),
        Ok(None) => format!("{STATUS_FILE} is missing"),
        Ok(Some(_)) => format!("{STATUS_FILE} does not say how the run is"),
        Err(_) => format!("{STATUS_FILE} cannot be read"),
    };
    let mut status = recovered(run, host);
    status.remark = Some(format!("{trouble}; this is from the journal"));
    status
}

fn has_journal(run: &Path) -> bool {
    fs::metadata(run.join(JOURNAL_FILE)).is_ok_and(|found| found.len() > 0)
}

/// What the journal and the lock say of a run.
fn recovered(run: &Path, host: &Host) -> Status {
    let mut status = Status::default();
    let mut first = None;
    let mut last = None;
    for event in ends_of_journal(&run.join(JOURNAL_FILE)).unwrap_or_default() {
        first.get_or_insert(event.time);
        last = Some(event.time);
        apply(&mut status, event);
    }
    status.started = first.unwrap_or_default();
    if let Some(holder) = lock_holder(run) {
        if !status.state.is_live() {
            status.state = RunState::Running;
        }
        status.claim(&holder);
        status.socket = control_socket_path(run).ok().filter(|socket| socket.exists());
        // It lives, and nothing says when it last told so.
        status.heartbeat = Timestamp::now();
        if status.host.is_empty() {
            status.host.clone_from(&host.name);
        }
    } else if status.state.is_live() || status.state == RunState::Queued {
        status.state = RunState::Lost;
    }
    if status.state.is_over() {
        status.ended = last;
    }
    status
}

fn apply(status: &mut Status, event: JournalEvent) {
    let at = event.step.unwrap_or(status.step);
    match event.body {
        EventBody::State(state) => {
            status.state = state.state;
            status.reason = state.reason;
            status.failure = state.failure;
        }
        EventBody::Run(run) => {
            status.total_steps = run.total_steps;
            status.device = run.device;
        }
        EventBody::Step(step) => {
            status.loss = Some(step.loss);
            status.learning_rate = Some(step.learning_rate);
            status.tokens_per_second = Some(step.tokens_per_second);
        }
        EventBody::Eval(eval) => {
            status.eval_loss = Some(eval.loss);
            if status.best_eval_loss.is_none_or(|best| eval.loss.get() < best.get()) {
                status.best_eval_loss = Some(eval.loss);
                status.best_step = Some(at);
            }
        }
        EventBody::Checkpoint(_) => status.checkpoint = Some(at),
        _ => {}
    }
    status.step = at;
}

/// The events at both ends of a journal, which may be long.
fn ends_of_journal(path: &Path) -> io::Result<Vec<JournalEvent>> {
    let (mut file, length) = files::open(path)?;
    let mut text = Vec::new();
    (&mut file).take(JOURNAL_PART).read_to_end(&mut text)?;
    if length > JOURNAL_PART {
        file.seek(SeekFrom::Start(length.saturating_sub(JOURNAL_PART).max(JOURNAL_PART)))?;
        // Both parts may end within a line, which then is none.
        text.push(b'\n');
        file.take(JOURNAL_PART).read_to_end(&mut text)?;
    }
    Ok(text.split(|byte| *byte == b'\n').filter_map(|line| JournalEvent::from_line(line).ok()).collect())
}

/// The process that has the run's lock and is not this one. Its pid is 0 where only its work is known. One that ends has
/// the lock until the last of its threads is gone, and counts as gone.
fn lock_holder(run: &Path) -> Option<ProcessIdentity> {
    let path = run.join(LOCK_FILE);
    if !FolderLock::is_held(&path) {
        return None;
    }
    let text = files::read_text(&path, 256).unwrap_or_default();
    let named = text.trim().strip_prefix("process ").and_then(|rest| rest.split_once(" on "));
    let (pid, on) = named.and_then(|(pid, on)| Some((pid.parse().ok()?, on))).unwrap_or_default();
    if pid == std::process::id() {
        return None;
    }
    let host = crate::text::clean_line(on).into_owned();
    let of = ProcessIdentity::of(pid);
    if host == of.host {
        return process::is_alive(of.pid, of.start).then_some(of);
    }
    Some(ProcessIdentity { pid, start: 0, host, boot_id: String::new() })
}

/// What is wrong with the run's `config.toml`, in a few words.
pub(super) fn settings_trouble(run: &Path) -> Option<String> {
    match files::open(&run.join(CONFIG_FILE)) {
        Ok((_, size)) if size <= LARGEST_CONFIG => None,
        Ok(_) => Some(format!("{CONFIG_FILE} is too large to be one")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(format!("{CONFIG_FILE} is missing")),
        Err(error) => Some(format!("{CONFIG_FILE} cannot be read: {error}")),
    }
}

/// What to say of a live run whose process gives no sign of life.
fn silence(status: &Status, host: &Host, now: Timestamp) -> Option<String> {
    if !status.state.is_live() {
        return None;
    }
    // Of another machine only the heartbeat is known.
    let threads = if status.host == host.name { machine::thread_states(status.pid) } else { String::new() };
    silence_of(status.silence(now), &threads)
}

/// The same of a process that was silent for this long and whose threads are in these states (see proc(5)).
fn silence_of(length: Duration, threads: &str) -> Option<String> {
    let stopped = !threads.is_empty() && threads.chars().all(|state| state == 'T');
    let why = if stopped {
        ": stopped by a signal (SIGCONT lets it go on)"
    } else if threads.contains('D') {
        ": waits for the disk"
    } else {
        ""
    };
    let silent = length > 2 * HEARTBEAT_INTERVAL;
    (silent || stopped).then(|| format!("no sign of life for {}{why}", units::duration(length)))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use jiff::SignedDuration;
    use pretty_assertions::assert_eq;

    use super::*;
    use crate::runs::testing::{run, wait_until};
    use crate::runs::{JournalWriter, RunDir, RunEvent, StateEvent, StepEvent};

    fn journal(run: &RunDir, last: RunState) {
        let mut journal = JournalWriter::open(&run.journal_path()).unwrap();
        let started = RunEvent { total_steps: 90, ..RunEvent::default() };
        journal.append(&JournalEvent::now(Some(0), started));
        journal.append(&JournalEvent::now(
            Some(0),
            StateEvent { state: RunState::Running, ..StateEvent::default() },
        ));
        for step in 1..=2000 {
            let loss = (1.0 / f64::from(step)).into();
            journal.append(&JournalEvent::now(
                Some(u64::from(step as u32)),
                StepEvent { loss, ..StepEvent::default() },
            ));
        }
        journal.append(&JournalEvent::now(Some(2000), StateEvent { state: last, ..StateEvent::default() }));
    }

    /// Things that may stand in the place of a file.
    fn spoil(path: &Path, how: &str) {
        let _ = fs::remove_file(path);
        match how {
            "missing" => {}
            "folder" => fs::create_dir(path).unwrap(),
            "pipe" => rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RUSR).unwrap(),
            "loop" => std::os::unix::fs::symlink(path, path).unwrap(),
            "huge" => fs::File::create(path).unwrap().set_len(3 << 20).unwrap(),
            content => fs::write(path, content).unwrap(),
        }
    }

    #[test]
    fn without_a_status_the_journal_tells() {
        for how in [
            "missing",
            "folder",
            "pipe",
            "loop",
            "huge",
            "",
            "null",
            "{}",
            "[]",
            "{\"state\":\"runn",
            "\0\u{1}",
        ] {
            for (last, state) in [
                (RunState::Running, RunState::Lost),
                (RunState::Paused, RunState::Lost),
                (RunState::Finished, RunState::Finished),
            ] {
                let (_project, run) = run();
                journal(&run, last);
                spoil(&run.path().join(STATUS_FILE), how);
                let seen = run.status().unwrap();
                assert_eq!((seen.state, seen.step, seen.total_steps), (state, 2000, 90), "{how}");
                assert!(
                    (seen.loss.unwrap().get() - 5e-4).abs() < 1e-9 && seen.started > Timestamp::UNIX_EPOCH
                );
                let remark = seen.remark.unwrap();
                assert!(remark.starts_with(STATUS_FILE) && remark.contains("from the journal"), "{remark}");
            }
        }
    }

    #[test]
    fn who_has_the_lock_lives_whatever_the_status_says() {
        let (_project, run) = run();
        journal(&run, RunState::Paused);
        let mut holder = Command::new("flock")
            .arg(run.path().join(LOCK_FILE))
            .arg("cat")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until("the lock is held", || FolderLock::is_held(&run.path().join(LOCK_FILE)));
        assert_eq!(lock_holder(run.path()).unwrap().pid, 0, "it names nobody");
        let gone = Status { state: RunState::Running, pid: u32::MAX, process_start: 1, ..Status::default() };
        let mut gone = Status { host: Host::this().name, boot_id: Host::this().boot_id, ..gone };
        gone.write_atomic(run.path()).unwrap();
        assert_eq!(run.status().unwrap().state, RunState::Lost, "the lock names no living process");
        fs::write(run.path().join(LOCK_FILE), format!("process {} on {}\n", holder.id(), Host::this().name))
            .unwrap();
        for how in ["", "null", "kept"] {
            if how == "kept" {
                gone.write_atomic(run.path()).unwrap();
            } else {
                spoil(&run.path().join(STATUS_FILE), how);
            }
            let seen = run.status().unwrap();
            assert_eq!((seen.state, seen.pid), (RunState::Paused, holder.id()), "{how}");
        }
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert_eq!(run.status().unwrap().state, RunState::Lost);
    }

    #[test]
    fn settings_that_are_not_there_are_said() {
        for (how, said) in [
            ("missing", "is missing"),
            ("folder", "folder"),
            ("pipe", "pipe"),
            ("loop", "cannot be read"),
            ("huge", "large"),
        ] {
            let (project, run) = run();
            let mut status = Status::of_this_process(RunState::Running);
            status.write_atomic(run.path()).unwrap();
            journal(&run, RunState::Running);
            spoil(&run.config_path(), how);
            let seen = RunDir::find(project.path(), "latest").unwrap().status().unwrap();
            assert_eq!(seen.state, RunState::Running);
            assert!(seen.remark.unwrap().contains(said), "{how}");
            let listed = super::super::list(project.path()).unwrap().remove(0);
            assert_eq!((listed.method.as_str(), listed.state), ("unknown", RunState::Running), "{how}");
            assert!(listed.remark.unwrap().contains(CONFIG_FILE), "{how}");
        }
    }

    #[test]
    fn a_silent_process_is_told_by_the_state_of_its_threads() {
        let said = |seconds, threads| silence_of(Duration::from_secs(seconds), threads);
        assert_eq!(said(9, "SSS"), None);
        assert_eq!(said(11, "SSR").unwrap(), "no sign of life for 11 s");
        assert_eq!(said(75, "").unwrap(), "no sign of life for 1 m 15 s");
        assert_eq!(said(75, "SDS").unwrap(), "no sign of life for 1 m 15 s: waits for the disk");
        assert!(said(75, "TTT").unwrap().contains("1 m 15 s: stopped by a signal"));
        assert!(said(1, "TT").is_some(), "it is certain at once");
        assert_eq!(said(1, "TS"), None, "being stopped");
    }

    #[test]
    fn a_live_run_with_an_old_heartbeat_is_running_and_silent() {
        let (_project, run) = run();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut status = Status { state: RunState::Running, ..Status::default() };
        status.claim(&ProcessIdentity::of(child.id()));
        status.heartbeat = Timestamp::now() - SignedDuration::from_secs(100);
        let file = run.path().join(STATUS_FILE);
        fs::write(&file, serde_json::to_vec(&status).unwrap()).unwrap();
        let seen = run.status().unwrap();
        assert_eq!(seen.state, RunState::Running);
        assert!(seen.remark.unwrap().starts_with("no sign of life for 1 m 4"));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        wait_until("it is stopped", || run.status().unwrap().remark.unwrap().contains("stopped by a signal"));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
