use std::collections::BTreeSet;
use std::path::Path;
use std::thread;

use super::*;
use crate::runs::FailureClass;
use crate::runs::testing::config;

fn sweep() -> SweepFile {
    let text =
        "sampler = \"grid\"\n[space]\n\"train.learning_rate\" = { choice = [1e-4, 2e-4, 0.0003, 4e-4] }\n";
    SweepFile::parse(text, Path::new("rates.toml"), &config(&[])).unwrap()
}

struct Filled {
    project: tempfile::TempDir,
    queue: Queue,
    trials: Vec<i64>,
}

fn filled() -> Filled {
    let project = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(project.path()).unwrap();
    let (_, trials) = queue.add_sweep(&sweep(), &config(&[])).unwrap();
    Filled { project, queue, trials }
}

fn order(queue: &Queue) -> Vec<u64> {
    queue.trials().unwrap().iter().map(|trial| trial.number).collect()
}

fn state(queue: &Queue, id: i64) -> TrialState {
    queue.trial(id).unwrap().state
}

#[test]
fn a_sweep_is_queued_with_its_trials_and_the_current_configuration() {
    let Filled { project, queue, .. } = filled();
    drop(queue);
    let queue = Queue::open_existing(project.path()).unwrap().unwrap();
    let trials = queue.trials().unwrap();
    let rates: Vec<_> = trials.iter().map(|trial| trial.settings["train.learning_rate"].as_str()).collect();
    assert_eq!(rates, ["1e-4", "2e-4", "3e-4", "4e-4"]);
    assert_eq!(trials[2].label(), "learning_rate=3e-4");
    assert!(trials.iter().all(|trial| trial.state == TrialState::Queued && trial.sweep_name == "rates"));
    let sweep = queue.sweep(trials[0].sweep).unwrap();
    assert_eq!((sweep.sampler.as_str(), sweep.config), ("grid", config(&[]).to_toml()));
    assert_eq!(queue.sweeps().unwrap().len(), 1);
    assert_eq!(queue.trials_of(sweep.id).unwrap(), trials);
}

#[test]
fn a_missing_queue_is_not_created_by_opening() {
    let project = tempfile::tempdir().unwrap();
    assert!(Queue::open_existing(project.path()).unwrap().is_none());
}

#[test]
fn invalid_settings_queue_nothing() {
    let project = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(project.path()).unwrap();
    let settings = Settings::from([("train.learning_rate".to_owned(), "\"fast\"".to_owned())]);
    let error = queue.add_single("odd", &settings, &config(&[])).unwrap_err().to_string();
    assert!(error.contains("train.learning_rate"), "{error}");
    assert!(queue.trials().unwrap().is_empty() && queue.sweeps().unwrap().is_empty());
}

#[test]
fn only_waiting_trials_can_be_moved() {
    let Filled { mut queue, trials, project: _project } = filled();
    queue.move_to(trials[2], Place::Top).unwrap();
    assert_eq!(order(&queue), [2, 0, 1, 3]);
    queue.move_to(trials[2], Place::Up).unwrap();
    queue.move_to(trials[0], Place::Down).unwrap();
    assert_eq!(order(&queue), [2, 1, 0, 3]);
    queue.move_to(trials[2], Place::Bottom).unwrap();
    queue.move_to(trials[3], Place::Up).unwrap();
    assert_eq!(order(&queue), [1, 3, 0, 2]);
    let claimed = queue.claim().unwrap().unwrap();
    assert_eq!(claimed.number, 1);
    let refusal = queue.move_to(claimed.id, Place::Bottom).unwrap_err().to_string();
    assert!(refusal.contains("is running and cannot be moved"), "{refusal}");
    assert!(matches!(queue.move_to(999, Place::Top), Err(SweepError::NoTrial(999))));
    queue.move_to(trials[2], Place::Top).unwrap();
    assert_eq!(order(&queue), [1, 2, 3, 0], "a running trial keeps its place");
}

#[test]
fn held_trials_are_skipped() {
    let Filled { mut queue, trials, project: _project } = filled();
    for id in &trials[..3] {
        queue.hold(*id).unwrap();
    }
    assert!(queue.hold(trials[0]).is_err());
    assert_eq!(queue.claim().unwrap().unwrap().id, trials[3]);
    assert_eq!(queue.claim().unwrap(), None);
    queue.release(trials[1]).unwrap();
    assert!(queue.release(trials[1]).is_err());
    assert_eq!(queue.claim().unwrap().unwrap().id, trials[1]);
}

#[test]
fn cancelling_and_retrying() {
    let Filled { mut queue, trials, project: _project } = filled();
    assert_eq!(queue.cancel(trials[1]).unwrap(), Cancelled::Done);
    assert!(queue.cancel(trials[1]).unwrap_err().to_string().contains("retry"));
    let running = queue.claim().unwrap().unwrap();
    queue.set_run(running.id, "20260823-140211-a").unwrap();
    assert_eq!(queue.cancel(running.id).unwrap(), Cancelled::Running { run: "20260823-140211-a".to_owned() });
    assert!(queue.trial(running.id).unwrap().cancelling);
    let failure = Failure { class: FailureClass::Oom, message: "full".into(), remedy: "less".into() };
    queue.end(running.id, TrialState::Failed, Some(Number(f64::NAN)), Some(&failure)).unwrap();
    let failed = queue.trial(running.id).unwrap();
    assert_eq!(
        (failed.state, failed.result, failed.failure),
        (TrialState::Failed, Some(Number(f64::NAN)), Some(failure))
    );
    assert!(failed.ended.is_some());
    queue.retry(running.id).unwrap();
    let again = queue.trial(running.id).unwrap();
    assert_eq!(
        (again.state, again.run, again.failure, again.cancelling),
        (TrialState::Queued, None, None, false)
    );
    assert!(queue.retry(running.id).is_err());
}

#[test]
fn a_trial_ends_only_once() {
    let Filled { mut queue, trials, project: _project } = filled();
    queue.claim().unwrap();
    queue.end(trials[0], TrialState::Finished, Some(Number(0.5)), None).unwrap();
    queue.end(trials[0], TrialState::Failed, None, None).unwrap();
    assert_eq!(state(&queue, trials[0]), TrialState::Finished);
}

#[test]
fn concurrent_processes_take_each_trial_once() {
    let Filled { project, mut queue, trials } = filled();
    let project = project.path();
    let claimed: Vec<i64> = thread::scope(|scope| {
        let claims: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| std::iter::from_fn(|| Queue::open(project).unwrap().claim().unwrap()).count())
            })
            .collect();
        let counts: usize = claims.into_iter().map(|claim| claim.join().unwrap()).sum();
        assert_eq!(counts, trials.len());
        queue.running().unwrap().iter().map(|trial| trial.id).collect()
    });
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), trials.len());
    assert_eq!(queue.claim().unwrap(), None);
}

#[test]
fn a_change_by_another_process_is_detected() {
    let Filled { project, queue, trials } = filled();
    let before = queue.version().unwrap();
    assert_eq!(queue.version().unwrap(), before);
    Queue::open(project.path()).unwrap().hold(trials[0]).unwrap();
    assert_ne!(queue.version().unwrap(), before);
}

#[test]
fn an_interrupted_change_leaves_nothing() {
    let Filled { project, mut queue, trials } = filled();
    let transaction = queue.connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    transaction.execute("UPDATE trials SET state = 'cancelled'", []).unwrap();
    // What a kill would leave on disk: the files in the middle of the change.
    let remains = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(project.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), remains.path().join(entry.file_name())).unwrap();
    }
    let after = Queue::open(remains.path()).unwrap();
    assert!(trials.iter().all(|id| state(&after, *id) == TrialState::Queued));
}

#[test]
fn a_newer_or_foreign_file_is_not_changed() {
    let Filled { project, queue, .. } = filled();
    queue.connection.pragma_update(None, "user_version", 99).unwrap();
    drop(queue);
    let error = Queue::open(project.path()).err().unwrap().to_string();
    assert!(error.contains("newer version") && error.contains("99"), "{error}");

    let foreign = tempfile::tempdir().unwrap();
    let file = foreign.path().join(QUEUE_FILE);
    std::fs::write(&file, "this is not a database, despite its name".repeat(50)).unwrap();
    let error = Queue::open(foreign.path()).err().unwrap().to_string();
    assert!(error.contains("move it away"), "{error}");
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("this is not a database"));
}

#[test]
fn ranking_puts_diverged_trials_last() {
    let Filled { mut queue, trials, project: _project } = filled();
    for (id, result) in trials.iter().zip([Some(0.5), Some(f64::NAN), None, Some(0.25)]) {
        queue.claim().unwrap();
        queue.end(*id, TrialState::Finished, result.map(Number), None).unwrap();
    }
    let all = queue.trials().unwrap();
    let numbers =
        |direction| super::super::rank(&all, direction).iter().map(|trial| trial.number).collect::<Vec<_>>();
    assert_eq!(numbers(crate::algorithms::Direction::Min), [3, 0, 1]);
    assert_eq!(numbers(crate::algorithms::Direction::Max), [0, 3, 1]);
}
