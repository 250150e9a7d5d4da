//! Checkpoints that a thread writes are those that are written at once.

use super::*;

const READINGS: [Reading; 2] = [Reading::AtOnce, Reading::Late];

/// Works on a run whose checkpoints are all large, so that a thread writes them.
fn work_aside(run: &RunDir, reading: Reading) -> Result<End> {
    work_with(run, Termination::default(), |_| Overlap { reading, checkpoint_bytes: 0 })
}

/// The steps and paths of published checkpoints in the journal.
fn published(run: &RunDir) -> Vec<(Option<u64>, String)> {
    let checkpoint = |event: JournalEvent| match event.body {
        EventBody::Checkpoint(checkpoint) => Some((event.step, checkpoint.path)),
        _ => None,
    };
    events(run).into_iter().filter_map(checkpoint).collect()
}

/// Names and steps of the other events.
fn others(run: &RunDir) -> Vec<(String, Option<u64>)> {
    let events = events(run).into_iter().map(|event| (event.body.kind().to_owned(), event.step));
    events.filter(|(kind, _)| kind != "checkpoint").collect()
}

fn tensors(run: &RunDir, step: u64) -> [Vec<u8>; 2] {
    let folder = run.path().join(format!("checkpoints/step-{step}"));
    ["adapter_model.safetensors", "optimizer.safetensors"].map(|name| fs::read(folder.join(name)).unwrap())
}

#[test]
fn a_run_whose_checkpoints_are_written_by_a_thread_is_the_same_run() {
    let project = Project::new();
    let set = ["train.checkpoint_every=1", "train.eval_every=3"];
    let at_once = project.run(&set);
    assert_eq!(work_on(&at_once, Termination::default()).unwrap(), finished());
    for reading in READINGS {
        let aside = project.run(&set);
        assert_eq!(work_aside(&aside, reading).unwrap(), finished());
        assert_eq!(losses(&aside), losses(&at_once));
        assert_eq!(adapter(&aside), adapter(&at_once));
        assert_eq!(published(&aside), published(&at_once));
        assert_eq!(others(&aside), others(&at_once));
        for step in 1..=8 {
            assert_eq!(tensors(&aside, step), tensors(&at_once, step), "step {step}");
        }
        assert!(alerts(&aside).is_empty(), "{:?}", alerts(&aside));
        assert_eq!(Status::read(aside.path()).unwrap().unwrap().checkpoint, Some(8));
    }
}

#[test]
fn what_follows_does_not_wait_for_a_thread() {
    let project = Project::new();
    let place = |work: &dyn Fn(&RunDir) -> Result<End>| {
        let run = project.run(&["train.sample_every=4"]);
        work(&run).unwrap();
        let events = events(&run);
        ["checkpoint", "sample"].map(|kind| {
            events.iter().position(|event| event.body.kind() == kind && event.step == Some(4)).unwrap()
        })
    };
    // The evaluation of step 4 is the best and is saved; then the suite is sampled.
    let [checkpoint, sample] = place(&|run| work_on(run, Termination::default()));
    assert!(checkpoint < sample);
    let [checkpoint, sample] = place(&|run| work_aside(run, Reading::AtOnce));
    assert!(checkpoint > sample);
}

#[test]
fn the_end_of_a_run_waits_for_its_checkpoint() {
    let project = Project::new();
    let run = project.run(&["train.checkpoint_every=8"]);
    work_aside(&run, Reading::AtOnce).unwrap();
    let events = events(&run);
    let [.., before, last] = &events[..] else { panic!("{events:?}") };
    assert_eq!((before.body.kind(), before.step), ("checkpoint", Some(8)));
    assert!(matches!(&last.body, EventBody::State(state) if state.state == RunState::Finished), "{last:?}");
    assert!(run.checkpoints().last().unwrap().verify().is_ok());

    let mut settings = poisoned(&project, "one.jsonl", &[4]);
    settings.extend(["train.on_nan=stop", "train.checkpoint_every=4"].map(str::to_owned));
    let failing = project.run(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    work_aside(&failing, Reading::AtOnce).unwrap_err();
    assert_eq!(published(&failing), [(Some(4), "checkpoints/step-4".to_owned())]);
    assert_eq!(Status::read(failing.path()).unwrap().unwrap().checkpoint, Some(4));
}

#[test]
fn a_thread_removes_older_checkpoints_and_keeps_the_best() {
    let project = Project::new();
    let set = ["train.checkpoint_every=1", "train.eval_every=2", "train.keep_checkpoints=2"];
    let [at_once, aside] = [project.run(&set), project.run(&set)];
    work_on(&at_once, Termination::default()).unwrap();
    work_aside(&aside, Reading::AtOnce).unwrap();
    let steps = |run: &RunDir| run.checkpoints().iter().map(|found| found.step).collect::<Vec<_>>();
    assert_eq!(steps(&aside), steps(&at_once));
    assert!(steps(&aside).len() < 4);
}

#[test]
fn a_thread_that_cannot_write_is_reported_like_a_failure_at_once() {
    let project = Project::new();
    let told = |work: &dyn Fn(&RunDir) -> Result<End>| {
        let run = project.run(&["train.checkpoint_every=3", "train.eval_every=0"]);
        fs::write(run.path().join("checkpoints"), "not a folder").unwrap();
        assert_eq!(work(&run).unwrap(), finished());
        assert!(Status::read(run.path()).unwrap().unwrap().checkpoint.is_none());
        assert!(published(&run).is_empty());
        let folder = run.path().display().to_string();
        let alert = |event: JournalEvent| match event.body {
            EventBody::Alert(alert) => Some((event.step, alert.alert, alert.message.replace(&folder, ""))),
            _ => None,
        };
        events(&run).into_iter().filter_map(alert).collect::<Vec<_>>()
    };
    let at_once = told(&|run| work_on(run, Termination::default()));
    let steps: Vec<_> = at_once.iter().map(|alert| alert.0).collect();
    assert_eq!(steps, [3, 6, 8, 8, 8].map(Some));
    assert!(at_once[0].2.contains("the checkpoint could not be written"), "{at_once:?}");
    assert_eq!(told(&|run| work_aside(run, Reading::AtOnce)), at_once);
}

#[test]
fn a_roll_back_waits_for_the_checkpoint_that_is_being_written() {
    let project = Project::new();
    let mut settings = poisoned(&project, "one.jsonl", &[4]);
    settings.extend(["train.on_nan=rollback", "train.checkpoint_every=4"].map(str::to_owned));
    let set: Vec<&str> = settings.iter().map(String::as_str).collect();
    let at_once = project.run(&set);
    work_on(&at_once, Termination::default()).unwrap();
    let steps = |run: &RunDir| losses(run).iter().map(|step| (step.0, step.1.to_bits())).collect::<Vec<_>>();
    for reading in READINGS {
        // The step after the checkpoint is the bad one.
        let aside = project.run(&set);
        work_aside(&aside, reading).unwrap();
        assert_eq!(steps(&aside), steps(&at_once));
        assert_eq!(alerts(&aside), alerts(&at_once));
    }
}

#[test]
fn an_early_stop_finds_the_best_checkpoint() {
    let project = Project::new();
    let run = project.run(&[
        "train.learning_rate=1.0",
        "train.eval_every=1",
        "train.max_steps=60",
        "train.early_stop.patience=1",
        "train.schedule=constant",
    ]);
    let end = work_aside(&run, Reading::AtOnce).unwrap();
    let best = Status::read(run.path()).unwrap().unwrap().best_step.unwrap();
    assert!(end.reason.unwrap().contains(&format!("the result is that of step {best}")));
    assert_eq!(adapter(&run), tensors(&run, best)[0]);
}
