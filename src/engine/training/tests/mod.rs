//! Whole runs of a tiny model, in this process.

mod checkpoints;
mod full;
mod labels;
mod preferences;
mod settings;

use std::fs;
use std::path::Path;
use std::time::Duration;

use luthier_core::runs::{
    AlertKind, EditEvent, EventBody, FailureClass, JournalEvent, JournalReader, ResultForm, RunDir, RunState,
    StateEvent, Status,
};
use tch::Device;

use super::control::Control;
use super::record::Record;
use super::trainer::{Overlap, Reading};
use super::{End, failed, failure_of, work};
use crate::error::Result;
use crate::process::Termination;
use crate::testing::Project;
use crate::weights::safetensors;

/// Works on a run as [`super::train`] does, without its own session and signal handlers.
fn work_on(run: &RunDir, termination: Termination) -> Result<End> {
    work_reading(run, termination, Reading::of)
}

fn work_reading(run: &RunDir, termination: Termination, reading: fn(Device) -> Reading) -> Result<End> {
    work_with(run, termination, |device| Overlap { reading: reading(device), ..Overlap::on(device) })
}

fn work_with(run: &RunDir, termination: Termination, overlap: impl FnOnce(Device) -> Overlap) -> Result<End> {
    let mut record = Record::open(run).unwrap();
    let ended = work(run, &mut record, &Control::new(termination), overlap);
    let end = match &ended {
        Ok(End { state, reason }) => StateEvent { state: *state, reason: reason.clone(), failure: None },
        Err(error) => failed(failure_of(error)),
    };
    record.end(end, &mut || panic!("nothing is in the way"));
    ended
}

fn events(run: &RunDir) -> Vec<JournalEvent> {
    let mut reader = JournalReader::new(&run.journal_path());
    reader.read(10_000, Duration::from_secs(10)).unwrap().events
}

fn losses(run: &RunDir) -> Vec<(u64, f64, f64)> {
    let step = |event: &JournalEvent| match &event.body {
        EventBody::Step(step) => Some((event.step?, step.loss.get(), step.learning_rate.get())),
        _ => None,
    };
    events(run).iter().filter_map(step).collect()
}

fn alerts(run: &RunDir) -> Vec<(AlertKind, String)> {
    let alert = |event: JournalEvent| match event.body {
        EventBody::Alert(alert) => Some((alert.alert, alert.message)),
        _ => None,
    };
    events(run).into_iter().filter_map(alert).collect()
}

fn adapter(run: &RunDir) -> Vec<u8> {
    fs::read(run.result_path(ResultForm::Adapter).join("adapter_model.safetensors")).unwrap()
}

fn copy_checkpoint(from: &RunDir, to: &RunDir, step: u64) {
    let folder = |run: &RunDir| run.path().join(format!("checkpoints/step-{step}"));
    copy_folder(&folder(from), &folder(to));
}

fn finished() -> End {
    End { state: RunState::Finished, reason: None }
}

#[test]
fn a_run_learns_evaluates_samples_saves_and_finishes() {
    let project = Project::new();
    let run = project.run(&[]);
    assert_eq!(work_on(&run, Termination::default()).unwrap(), finished());

    let losses = losses(&run);
    assert_eq!(losses.iter().map(|step| step.0).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    assert!(losses[7].1 < losses[0].1, "{losses:?}");
    let events = events(&run);
    let evaluations: Vec<u64> =
        events.iter().filter(|event| event.body.kind() == "eval").filter_map(|event| event.step).collect();
    assert_eq!(evaluations, [0, 4, 8]);
    let last = events.iter().rev().find_map(|event| match &event.body {
        EventBody::Eval(eval) => Some(eval),
        _ => None,
    });
    assert!(last.unwrap().scores.contains_key("passed"), "{last:?}");
    assert_eq!(events.iter().filter(|event| event.body.kind() == "sample").count(), 2);
    let EventBody::Run(started) = &events.iter().find(|event| event.body.kind() == "run").unwrap().body
    else {
        panic!("{events:?}")
    };
    assert_eq!((started.total_steps, started.train_rows + started.eval_rows), (8, 24));
    assert!(started.parameters.trainable > 0 && started.resumed_from.is_none());

    let status = Status::read(run.path()).unwrap().unwrap();
    assert_eq!((status.state, status.step, status.total_steps), (RunState::Finished, 8, 8));
    assert!(status.best_eval_loss.is_some() && status.socket.is_none() && status.activity.is_none());
    assert!(run.result_path(ResultForm::Adapter).join("adapter_config.json").is_file());
    let steps: Vec<u64> = run.checkpoints().iter().map(|checkpoint| checkpoint.step).collect();
    assert_eq!(steps, [4, 8]);
    assert!(alerts(&run).is_empty(), "{:?}", alerts(&run));
}

#[test]
fn a_qlora_run_trains_over_nf4_and_resumes_bit_for_bit() {
    let project = Project::new();
    let [dense, quantised, resumed] =
        ["lora", "qlora", "qlora"].map(|kind| project.run(&[&format!("method.kind={kind}")]));
    for run in [&dense, &quantised] {
        assert_eq!(work_on(run, Termination::default()).unwrap(), finished());
    }
    let (before, after) = (losses(&dense), losses(&quantised));
    assert!(after[7].1 < after[0].1, "{after:?}");
    let rounding = (before[0].1 - after[0].1).abs();
    assert!(rounding > 1e-4 && rounding < 0.2, "{before:?} {after:?}");
    let config =
        fs::read_to_string(quantised.result_path(ResultForm::Adapter).join("adapter_config.json")).unwrap();
    assert!(config.contains("\"LORA\""), "{config}");
    copy_checkpoint(&quantised, &resumed, 4);
    work_on(&resumed, Termination::default()).unwrap();
    assert_eq!(losses(&resumed), after[4..]);
    assert_eq!(adapter(&resumed), adapter(&quantised));
}

#[test]
fn a_resumed_run_equals_the_uninterrupted_one_bit_for_bit() {
    let project = Project::new();
    let whole = project.run(&[]);
    work_on(&whole, Termination::default()).unwrap();
    let resumed = project.run(&[]);
    copy_checkpoint(&whole, &resumed, 4);
    assert_eq!(work_on(&resumed, Termination::default()).unwrap(), finished());
    assert_eq!(losses(&resumed), losses(&whole)[4..]);
    assert_eq!(adapter(&resumed), adapter(&whole));
    let started = events(&resumed).into_iter().find_map(|event| match event.body {
        EventBody::Run(started) => Some(started),
        _ => None,
    });
    assert_eq!(started.unwrap().resumed_from, Some(4));
}

#[test]
fn fixed_settings_cannot_change_when_a_run_resumes() {
    let project = Project::new();
    let whole = project.run(&["train.seed=42"]);
    work_on(&whole, Termination::default()).unwrap();
    let changed = project.run(&["train.seed=7"]);
    copy_checkpoint(&whole, &changed, 4);
    work_on(&changed, Termination::default()).unwrap();
    assert_eq!(losses(&changed), losses(&whole)[4..]);
    assert_eq!(adapter(&changed), adapter(&whole));
    let alerts = alerts(&changed);
    let [(AlertKind::EditRefused, message)] = &alerts[..] else { panic!("{alerts:?}") };
    assert!(message.contains("train.seed") && message.contains("it stays 42"), "{message}");
}

#[test]
fn an_edit_does_not_reach_back_to_steps_before_it() {
    let project = Project::new();
    let whole = project.run(&["train.schedule=constant", "train.max_steps=9"]);
    let edited = project.run(&["train.schedule=constant", "train.max_steps=9", "train.learning_rate=5e-3"]);
    work_on(&whole, Termination::default()).unwrap();
    copy_checkpoint(&whole, &edited, 4);
    let edit = EditEvent {
        key: "train.learning_rate".into(),
        old: "1e-2".into(),
        new: "5e-3".into(),
        who: "ann".into(),
        applied_at_step: 7,
    };
    fs::write(edited.journal_path(), JournalEvent::now(Some(6), edit).to_line()).unwrap();
    work_on(&edited, Termination::default()).unwrap();
    let (before, after) = (losses(&whole), losses(&edited));
    assert_eq!(after[..2], before[4..6], "steps 5 and 6 are made as before");
    assert!(after[2..].iter().all(|step| (step.2 - 5e-3).abs() < 1e-12), "{after:?}");
    let edits = events(&edited).into_iter().filter(|event| matches!(event.body, EventBody::Edit(_)));
    assert_eq!(edits.count(), 1, "it is in the journal already");
}

#[test]
fn a_damaged_checkpoint_is_skipped_for_an_earlier_one() {
    let project = Project::new();
    let whole = project.run(&["train.checkpoint_every=2"]);
    work_on(&whole, Termination::default()).unwrap();
    let resumed = project.run(&["train.checkpoint_every=0"]);
    copy_checkpoint(&whole, &resumed, 2);
    copy_checkpoint(&whole, &resumed, 4);
    let moments = resumed.path().join("checkpoints/step-4/optimizer.safetensors");
    let mut bytes = fs::read(&moments).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&moments, bytes).unwrap();
    work_on(&resumed, Termination::default()).unwrap();
    assert_eq!(losses(&resumed), losses(&whole)[2..]);
    let alerts = alerts(&resumed);
    assert!(
        matches!(&alerts[..], [(AlertKind::Checkpoint, message)] if message.contains("optimizer.safetensors")),
        "{alerts:?}"
    );
}

#[test]
fn an_edited_learning_rate_wins_over_that_of_the_checkpoint() {
    let project = Project::new();
    let whole = project.run(&["train.schedule=constant"]);
    work_on(&whole, Termination::default()).unwrap();
    let resumed = project.run(&["train.schedule=constant", "train.learning_rate=5e-3"]);
    copy_checkpoint(&whole, &resumed, 4);
    work_on(&resumed, Termination::default()).unwrap();
    assert!(losses(&whole).iter().all(|step| (step.2 - 1e-2).abs() < 1e-12));
    assert!(losses(&resumed).iter().all(|step| (step.2 - 5e-3).abs() < 1e-12));
}

#[test]
fn other_base_weights_are_refused_and_other_data_are_reported() {
    let project = Project::new();
    let whole = project.run(&[]);
    work_on(&whole, Termination::default()).unwrap();
    let resumed = project.run(&[]);
    copy_checkpoint(&whole, &resumed, 4);
    let rows = fs::read_to_string(project.path().join("train.jsonl")).unwrap();
    fs::write(project.path().join("train.jsonl"), rows.replace("word", "number")).unwrap();
    work_on(&resumed, Termination::default()).unwrap();
    assert!(matches!(&alerts(&resumed)[..], [(AlertKind::Data, _)]), "{:?}", alerts(&resumed));

    let model = project.path().join("model");
    copy_folder(&crate::testing::model(), &model);
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let half = (bytes.len() / 2) & !3;
    bytes[half..].iter_mut().step_by(4).for_each(|lowest| *lowest ^= 1);
    fs::write(&weights, bytes).unwrap();
    let other = project.run(&["model.path=model"]);
    copy_checkpoint(&whole, &other, 4);
    let error = work_on(&other, Termination::default()).unwrap_err();
    assert_eq!(error.class(), FailureClass::Config, "{error}");
}

/// Settings of runs that take one row of six per step, in order, from `file`. The model gives NaN for token
/// 511.
fn poisoned(project: &Project, file: &str, rows: &[usize]) -> Vec<String> {
    let model = project.path().join("poisoned");
    if !model.exists() {
        copy_folder(&crate::testing::model(), &model);
        let weights = model.join("model.safetensors");
        let mut tensors = safetensors::read(&weights).unwrap();
        let embedding = tensors.get_mut("model.embed_tokens.weight").unwrap();
        drop(embedding.narrow(0, 511, 1).fill_(f64::NAN));
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        safetensors::write(&weights, named).unwrap();
    }
    let mut text = String::new();
    for row in 0..6 {
        let last = if rows.contains(&row) { 511 } else { 40 + row };
        let ids = [10 + row, 20, 30 + row, last, 50];
        text += &serde_json::json!({ "input_ids": ids, "labels": ids }).to_string();
        text.push('\n');
    }
    fs::write(project.path().join(file), text).unwrap();
    [
        "model.path=poisoned",
        &format!("data.train={file}"),
        "data.eval=0.0",
        "data.shuffle=false",
        "data.packing=false",
        "train.batch_size=1",
        "train.accumulate=1",
        "train.schedule=constant",
        "train.checkpoint_every=3",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::write(to.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
}

#[test]
fn a_loss_that_is_not_a_number_stops_is_skipped_or_rolled_back_as_configured() {
    for reading in [Reading::AtOnce, Reading::Late] {
        let work_on = |run: &RunDir| match reading {
            Reading::AtOnce => work_reading(run, Termination::default(), |_| Reading::AtOnce),
            Reading::Late => work_reading(run, Termination::default(), |_| Reading::Late),
        };
        let project = Project::new();
        let settings = poisoned(&project, "one.jsonl", &[4]);
        let run = |more: &str| {
            let set: Vec<&str> = settings.iter().map(String::as_str).chain([more]).collect();
            project.run(&set)
        };
        let bad_steps = |run: &RunDir| -> Vec<u64> {
            let bad = |event: &JournalEvent| matches!(&event.body, EventBody::Alert(alert) if alert.alert == AlertKind::Nan);
            events(run).iter().filter(|event| bad(event)).filter_map(|event| event.step).collect()
        };
        let stopped = run("train.on_nan=stop");
        let error = work_on(&stopped).unwrap_err();
        assert!(error.to_string().contains("step 5"), "{error}");
        let status = Status::read(stopped.path()).unwrap().unwrap();
        assert_eq!((status.state, status.step), (RunState::Failed, 4));
        assert_eq!(status.failure.unwrap().class, FailureClass::Nan);
        assert_eq!((bad_steps(&stopped), losses(&stopped).last().unwrap().0), (vec![5], 5));

        let skipping = run("train.on_nan=skip");
        assert_eq!(work_on(&skipping).unwrap(), finished());
        assert_eq!(bad_steps(&skipping), [5]);
        let rolling = run("train.on_nan=rollback");
        assert_eq!(work_on(&rolling).unwrap(), finished());
        assert_eq!(bad_steps(&rolling), [5]);

        // Both made the same steps up to the bad one. Then one continues from there, the other from the
        // checkpoint of step 3.
        let (skipped, rolled) = (losses(&skipping), losses(&rolling));
        assert_eq!(skipped[..4], rolled[..4]);
        assert!(skipped[4].1.is_nan() && rolled[4].1.is_nan());
        assert!(skipped[5].1.is_finite() && rolled[5].1.is_finite());
        assert_ne!(skipped[5].1.to_bits(), rolled[5].1.to_bits());
    }
}

#[test]
fn a_run_whose_numbers_are_read_late_is_the_same_run() {
    let project = Project::new();
    let set = ["train.max_steps=9", "train.eval_every=4", "train.checkpoint_every=5"];
    let [at_once, late] = [project.run(&set), project.run(&set)];
    assert_eq!(work_reading(&at_once, Termination::default(), |_| Reading::AtOnce).unwrap(), finished());
    assert_eq!(work_reading(&late, Termination::default(), |_| Reading::Late).unwrap(), finished());
    assert_eq!(losses(&late), losses(&at_once));
    assert_eq!(adapter(&late), adapter(&at_once));
    let order = |run: &RunDir| -> Vec<(String, Option<u64>)> {
        events(run).iter().map(|event| (event.body.kind().to_owned(), event.step)).collect()
    };
    assert_eq!(order(&late), order(&at_once));
    for step in [5, 9] {
        let moments = |run: &RunDir| {
            fs::read(run.path().join(format!("checkpoints/step-{step}/optimizer.safetensors")))
        };
        assert_eq!(moments(&late).unwrap(), moments(&at_once).unwrap());
    }
}

#[test]
fn too_many_bad_steps_in_a_row_end_the_run() {
    let project = Project::new();
    let mut settings = poisoned(&project, "all.jsonl", &[0, 1, 2, 3, 4, 5]);
    settings.extend(["train.on_nan=skip".to_owned(), "train.max_steps=30".to_owned()]);
    let run = project.run(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    let error = work_on(&run, Termination::default()).unwrap_err();
    assert!(error.to_string().contains("10 steps in a row"), "{error}");
    assert_eq!(losses(&run).len(), 10);
}

#[test]
fn a_signal_saves_and_the_run_can_be_resumed() {
    let project = Project::new();
    let whole = project.run(&[]);
    work_on(&whole, Termination::default()).unwrap();
    let run = project.run(&[]);
    copy_checkpoint(&whole, &run, 4);
    let termination = Termination::default();
    termination.raise();
    let end = work_on(&run, termination).unwrap();
    assert_eq!(end.state, RunState::Stopped);
    assert_eq!(work_on(&run, Termination::default()).unwrap(), finished());
    assert_eq!(adapter(&run), adapter(&whole));
}

#[test]
fn early_stop_keeps_the_best_adapter() {
    let project = Project::new();
    let run = project.run(&[
        "train.learning_rate=1.0",
        "train.eval_every=1",
        "train.max_steps=60",
        "train.early_stop.patience=3",
        "train.schedule=constant",
    ]);
    let end = work_on(&run, Termination::default()).unwrap();
    assert_eq!(end.state, RunState::Stopped, "{end:?}");
    assert!(end.reason.unwrap().contains("held-out loss has not improved"));
    let best = Status::read(run.path()).unwrap().unwrap().best_step.unwrap();
    let kept = run.path().join(format!("checkpoints/step-{best}/adapter_model.safetensors"));
    assert_eq!(adapter(&run), fs::read(kept).unwrap());
}

#[test]
fn missing_files_have_a_failure_class_and_a_remedy() {
    let project = Project::new();
    for (set, class) in [
        ("model.path=\"nowhere\"", FailureClass::Config),
        ("data.train=\"nowhere.jsonl\"", FailureClass::Data),
    ] {
        let run = project.run(&[set]);
        let error = work_on(&run, Termination::default()).unwrap_err();
        assert_eq!(error.class(), class, "{set}: {error}");
        let failure = Status::read(run.path()).unwrap().unwrap().failure.unwrap();
        assert!(!failure.remedy.is_empty() && !failure.message.is_empty());
    }
    let broken = project.run(&[]);
    fs::write(broken.config_path(), "[train\n").unwrap();
    let error = work_on(&broken, Termination::default()).unwrap_err();
    assert!(error.to_string().contains("config.toml:1"), "{error}");
    assert!(Path::new(&broken.path().join("events.jsonl")).exists());
}
