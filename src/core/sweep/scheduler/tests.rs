use std::io::Write;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::runs::testing::{config, script, wait_until};
use crate::runs::{EvalEvent, JournalWriter, Number, Reply, Server, Status};
use crate::sweep::{SweepFile, TrialState};

/// The start of every fake engine: wait for the lock, and define how to write a status.
const ENGINE: &str = r#"
run="$2"
exec 9<>"$run/run.lock"
flock 9
echo "$2" >> "$(dirname "$0")/starts"
start=$(sed 's/.*) //' /proc/$$/stat | cut -d' ' -f20)
status() {
    printf '{"state":"%s","pid":%s,"process_start":%s,"host":"%s","boot_id":"%s","step":%s%s}' "$1" $$ "$start" \
        "$(cat /proc/sys/kernel/hostname)" "$(cat /proc/sys/kernel/random/boot_id)" "${2:-0}" "$3" > "$run/.fake.tmp"
    mv "$run/.fake.tmp" "$run/status.json"
}
rate=$(grep '^learning_rate' "$run/config.toml" | cut -d= -f2 | tr -d ' ')
evaluated() {
    printf '{"kind":"eval","time":"2026-08-23T14:02:11.000Z","step":%s,"loss":%s}\n' "$1" "$2" >> "$run/events.jsonl"
}
"#;

struct Project {
    folder: tempfile::TempDir,
    engine: PathBuf,
}

impl Project {
    /// A project with trials of these learning rates, and an engine that continues with `body`.
    fn new(rates: &str, body: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = script(folder.path(), "engine", &format!("{ENGINE}\n{body}"));
        let project = Self { folder, engine };
        let text =
            format!("sampler = \"grid\"\n[space]\n\"train.learning_rate\" = {{ choice = [{rates}] }}\n");
        let sweep = SweepFile::parse(&text, Path::new("rates.toml"), &config(&[])).unwrap();
        project.queue().add_sweep(&sweep, &config(&[])).unwrap();
        project
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn queue(&self) -> Queue {
        Queue::open(self.path()).unwrap()
    }

    fn trials(&self) -> Vec<Trial> {
        self.queue().trials().unwrap()
    }

    fn states(&self) -> Vec<TrialState> {
        self.trials().iter().map(|trial| trial.state).collect()
    }

    fn starts(&self) -> usize {
        fs::read_to_string(self.path().join("starts")).unwrap_or_default().lines().count()
    }

    fn scheduler(&self) -> Scheduler {
        let mut scheduler = Scheduler::new(self.path()).unwrap();
        scheduler.engine = Some(self.engine.clone());
        scheduler.poll = Duration::from_millis(2);
        scheduler
    }

    /// Runs a scheduler to its end. Returns the states it reported, by trial number.
    fn schedule(&self) -> Vec<(u64, TrialState)> {
        let mut told = Vec::new();
        self.scheduler().run(&mut |trial| told.push((trial.number, trial.state))).unwrap();
        told
    }
}

#[test]
fn trials_run_one_by_one_in_the_order_of_the_queue() {
    use TrialState::{Finished, Running};

    let project = Project::new(
        "0.1, 0.2, 0.3",
        "status running 1; evaluated 1 \"$rate\"; evaluated 2 0.9; status finished 2",
    );
    let first = project.trials()[0].id;
    project.queue().move_to(first, crate::sweep::Place::Bottom).unwrap();
    let told = project.schedule();
    assert_eq!(told, [(1, Running), (1, Finished), (2, Running), (2, Finished), (0, Running), (0, Finished)]);
    let mut trials = project.trials();
    trials.sort_by_key(|trial| trial.number);
    let results: Vec<_> = trials.iter().map(|trial| trial.result).collect();
    assert_eq!(results, [Some(Number(0.1)), Some(Number(0.2)), Some(Number(0.3))]);
    for trial in &trials {
        let run = RunDir::find(project.path(), trial.run.as_deref().unwrap()).unwrap();
        assert!(run.id().contains(&format!("rates-{}", trial.number)), "{}", run.id());
        let rate = Config::load_file(&run.config_path(), &[]).unwrap().train.learning_rate;
        assert_eq!(Some(Number(rate)), trial.result);
    }
}

#[test]
fn a_failed_run_fails_only_its_trial() {
    let body = r#"
        if [ "$rate" = 0.1 ]; then
            status failed 3 ',"failure":{"class":"oom","message":"out of memory","remedy":"lower batch_size"}'
        else
            evaluated 1 0.5; status finished 1
        fi"#;
    let project = Project::new("0.1, 0.2", body);
    project.schedule();
    let trials = project.trials();
    assert_eq!(project.states(), [TrialState::Failed, TrialState::Finished]);
    assert_eq!(trials[0].failure.as_ref().unwrap().class, FailureClass::Oom);
    project.queue().retry(trials[0].id).unwrap();
    project.schedule();
    assert_eq!(project.starts(), 3);
    assert_ne!(project.trials()[0].run, trials[0].run, "a retry is a new run");
}

#[test]
fn a_process_that_dies_silently_is_restarted_on_the_same_run() {
    let body = r#"
        status running 1
        [ -e "$run/died" ] || { touch "$run/died"; kill -9 $$; }
        evaluated 2 0.5; status finished 2"#;
    let project = Project::new("0.1", body);
    project.schedule();
    let trial = project.trials().remove(0);
    assert_eq!((trial.state, trial.attempts, trial.result), (TrialState::Finished, 2, Some(Number(0.5))));
    let runs: Vec<_> =
        fs::read_to_string(project.path().join("starts")).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn a_process_that_keeps_dying_fails_its_trial_with_its_log() {
    let project = Project::new(
        "0.1, 0.2",
        "[ \"$rate\" = 0.1 ] && { echo cannot load libtorch >&2; exit 127; }; status finished 1",
    );
    project.schedule();
    assert_eq!(project.states(), [TrialState::Failed, TrialState::Finished]);
    let failure = project.trials()[0].failure.clone().unwrap();
    assert_eq!(failure.class, FailureClass::Killed);
    assert!(failure.message.contains("cannot load libtorch"), "{}", failure.message);
    assert_eq!(project.starts(), 3 + 1);
}

#[test]
fn a_missing_engine_fails_trials_with_a_remedy() {
    let mut project = Project::new("0.1", "");
    project.engine = project.path().join("gone");
    project.schedule();
    let failure = project.trials()[0].failure.clone().unwrap();
    assert!(failure.message.contains("gone"), "{}", failure.message);
}

#[test]
fn held_trials_do_not_keep_the_scheduler_alive() {
    let project = Project::new("0.1, 0.2", "status finished 1");
    let first = project.trials()[0].id;
    project.queue().hold(first).unwrap();
    project.schedule();
    assert_eq!(project.states(), [TrialState::Held, TrialState::Finished]);
}

#[test]
fn a_project_has_only_one_scheduler() {
    let project = Project::new("0.1", "status finished 1");
    let scheduler = project.scheduler();
    let busy = Scheduler::new(project.path()).err().unwrap().to_string();
    assert!(busy.contains(&format!("process {}", std::process::id())), "{busy}");
    assert_eq!(start_scheduler(project.path(), Path::new("/bin/false")).unwrap(), None);
    drop(scheduler);
    let program = script(project.path(), "luthier", "echo \"$@\" > \"$(dirname \"$0\")/asked\"");
    assert!(start_scheduler(project.path(), &program).unwrap().is_some());
    wait_until("the scheduler is started", || {
        fs::read_to_string(project.path().join("asked"))
            .is_ok_and(|asked| asked.starts_with("scheduler -C /"))
    });
}

#[test]
fn after_a_killed_scheduler_nothing_is_started_twice() {
    let body = r#"
        status running 1
        read -r _ < "$(dirname "$0")/gate"
        evaluated 2 0.5; status finished 2"#;
    let project = Project::new("0.1, 0.2", body);
    let gate = project.path().join("gate");
    assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
    // Open at both ends, so that neither side waits for the other to open it.
    let mut gate = fs::File::options().read(true).write(true).open(&gate).unwrap();
    let mut first = project.scheduler();
    assert!(first.tick(&mut |_| {}).unwrap());
    drop(first);
    wait_until("the engine runs", || project.starts() == 1);
    let mut second = project.scheduler();
    assert!(second.tick(&mut |_| {}).unwrap());
    assert_eq!(project.states(), [TrialState::Running, TrialState::Queued]);
    gate.write_all(b"go\ngo\n").unwrap();
    second.run(&mut |_| {}).unwrap();
    assert_eq!(project.states(), [TrialState::Finished, TrialState::Finished]);
    assert_eq!(project.starts(), 2);
}

#[test]
fn a_kill_during_a_launch_loses_and_repeats_nothing() {
    for moment in 0..3 {
        let project = Project::new("0.1", "evaluated 1 0.5; status finished 1");
        let trial = project.queue().claim().unwrap().unwrap();
        if moment >= 1 {
            let run = RunDir::create(project.path(), &config(&[]), None).unwrap();
            if moment >= 2 {
                project.queue().set_run(trial.id, run.id()).unwrap();
            }
        }
        project.schedule();
        assert_eq!((project.states(), project.starts()), (vec![TrialState::Finished], 1), "moment {moment}");
    }
}

#[test]
fn a_run_directory_that_was_removed_fails_the_trial() {
    let project = Project::new("0.1", "status finished 1");
    let trial = project.queue().claim().unwrap().unwrap();
    project.queue().set_run(trial.id, "20260101-000000-gone").unwrap();
    project.schedule();
    assert_eq!(project.states(), [TrialState::Failed]);
    assert_eq!(project.starts(), 0);
}

/// A trial whose run is this process, with a control socket.
fn live_run(project: &Project) -> (RunDir, Status, i64) {
    let trial = project.queue().claim().unwrap().unwrap();
    let run = RunDir::create(project.path(), &config(&[]), None).unwrap();
    project.queue().set_run(trial.id, run.id()).unwrap();
    let mut status = Status::of_this_process(RunState::Running);
    status.write_atomic(run.path()).unwrap();
    let mut journal = JournalWriter::open(&run.journal_path()).unwrap();
    journal.append(&crate::runs::JournalEvent::now(
        Some(5),
        EvalEvent { loss: 0.7.into(), ..EvalEvent::default() },
    ));
    (run, status, trial.id)
}

#[test]
fn cancelling_a_running_trial_stops_its_run() {
    for with_scheduler in [false, true] {
        let project = Project::new("0.1", "");
        let (run, mut status, trial) = live_run(&project);
        let socket = project.path().join("run.sock");
        if with_scheduler {
            // The run cannot be asked yet when the user cancels.
            let said = cancel(project.path(), &mut project.queue(), trial).unwrap();
            assert!(said.contains("as soon as"), "{said}");
        }
        let (_server, calls) = Server::start_at(&socket, run.id(), "0.1.0").unwrap();
        status.socket = Some(socket);
        status.write_atomic(run.path()).unwrap();
        let (asked, heard) = mpsc::channel();
        let engine = thread::spawn(move || {
            let call = calls.recv().unwrap();
            asked.send(call.request.clone()).unwrap();
            call.reply(Reply::ok("stopping"));
            status.state = RunState::Stopped;
            status.write_atomic(run.path()).unwrap();
        });
        if !with_scheduler {
            let said = cancel(project.path(), &mut project.queue(), trial).unwrap();
            assert!(said.contains("saves and stops"), "{said}");
        }
        project.schedule();
        engine.join().unwrap();
        assert_eq!(heard.recv().unwrap(), Request::Stop { when: StopWhen::Save });
        let trial = project.trials().remove(0);
        assert_eq!((trial.state, trial.result), (TrialState::Cancelled, Some(Number(0.7))));
    }
}

#[test]
fn without_a_scheduler_a_trial_is_what_its_run_is() {
    let project = Project::new("0.1", "");
    let (run, mut status, _) = live_run(&project);
    let seen = || trials_seen(project.path(), &project.queue()).unwrap().remove(0).state;
    assert_eq!(seen(), TrialState::Running);
    for (state, process_start, expected) in [
        (RunState::Running, 1, TrialState::Lost),
        (RunState::Finished, 1, TrialState::Finished),
        (RunState::Queued, 0, TrialState::Lost),
    ] {
        status.state = state;
        status.process_start = process_start;
        status.write_atomic(run.path()).unwrap();
        assert_eq!(seen(), expected, "{state}");
        let _scheduler = project.scheduler();
        assert_eq!(seen(), TrialState::Running, "who works on the queue finds out");
    }
    fs::remove_dir_all(run.path()).unwrap();
    assert_eq!(seen(), TrialState::Lost);
}

#[test]
fn a_run_stopped_by_the_user_stops_its_trial() {
    let project = Project::new("0.1", "");
    let (run, mut status, _) = live_run(&project);
    status.state = RunState::Stopped;
    status.write_atomic(run.path()).unwrap();
    project.schedule();
    assert_eq!(project.states(), [TrialState::Stopped]);
}
