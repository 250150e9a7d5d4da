//! Whole runs that learn from preference pairs.

use std::ops::ControlFlow;

use luthier_core::config::{Config, MethodKind};
use luthier_core::data;
use luthier_core::runs::Metrics;

use super::*;
use crate::algorithms::algorithm_of;
use crate::base::{Base, model_files};

const REFERENCE: &str = "reference.tsv";

fn project() -> Project {
    let project = Project::new();
    project.write_pairs("pairs.jsonl");
    project
}

fn run(project: &Project, more: &[&str]) -> RunDir {
    project.run(&[&["data.train=pairs.jsonl", "train.algorithm=dpo"], more].concat())
}

fn metrics(run: &RunDir) -> Vec<Metrics> {
    let metrics = |event: JournalEvent| match event.body {
        EventBody::Step(step) => Some(step.metrics),
        _ => None,
    };
    events(run).into_iter().filter_map(metrics).collect()
}

#[test]
fn a_run_learns_to_prefer_the_chosen_answers() {
    let project = project();
    let run = run(&project, &[]);
    assert_eq!(work_on(&run, Termination::default()).unwrap(), finished());

    let metrics = metrics(&run);
    assert_eq!(metrics.len(), 8);
    let value = |step: usize, name: &str| metrics[step][name].get();
    assert!(value(0, "reward_margin").abs() < 1e-12, "at first the model is its base");
    assert!(value(7, "reward_margin") > 0.1 && value(7, "reward_accuracy") > 0.9, "{metrics:?}");
    let losses = losses(&run);
    assert!((losses[0].1 - std::f64::consts::LN_2).abs() < 1e-6 && losses[7].1 < losses[0].1, "{losses:?}");

    let evaluations: Vec<_> = events(&run)
        .into_iter()
        .filter_map(|event| match event.body {
            EventBody::Eval(eval) => Some(eval),
            _ => None,
        })
        .collect();
    assert_eq!(evaluations.len(), 3);
    let (first, last) = (&evaluations[0], &evaluations[2]);
    assert!(!first.metrics.contains_key("perplexity"), "{first:?}");
    let margin = |eval: &luthier_core::runs::EvalEvent| eval.metrics["reward_margin"].get();
    assert!(margin(first).abs() < 1e-6 && margin(last) > 0.1, "{evaluations:?}");
    assert!(last.loss.get() < first.loss.get() && last.scores.contains_key("passed"), "{last:?}");
    assert!(alerts(&run).is_empty(), "{:?}", alerts(&run));
    assert!(run.result_path(ResultForm::Adapter).join("adapter_config.json").is_file());
}

#[test]
fn a_resumed_run_reuses_the_reference_and_equals_the_uninterrupted_run() {
    let project = project();
    let whole = run(&project, &[]);
    work_on(&whole, Termination::default()).unwrap();
    let resumed = run(&project, &[]);
    copy_checkpoint(&whole, &resumed, 4);
    fs::copy(whole.path().join(REFERENCE), resumed.path().join(REFERENCE)).unwrap();
    assert_eq!(work_on(&resumed, Termination::default()).unwrap(), finished());
    assert_eq!(losses(&resumed), losses(&whole)[4..]);
    assert_eq!(metrics(&resumed), metrics(&whole)[4..]);
    assert_eq!(adapter(&resumed), adapter(&whole));

    // A lost reference is computed again, possibly in other batches.
    let without = run(&project, &["train.recompute=on"]);
    copy_checkpoint(&whole, &without, 4);
    assert_eq!(work_on(&without, Termination::default()).unwrap(), finished());
    for (ours, expected) in losses(&without).iter().zip(&losses(&whole)[4..]) {
        assert!((ours.1 - expected.1).abs() <= 1e-5 * expected.1, "{ours:?} {expected:?}");
    }
    let lines = |run: &RunDir| fs::read_to_string(run.path().join(REFERENCE)).unwrap().lines().count();
    assert_eq!(lines(&whole), 1 + 24);
}

#[test]
fn the_loss_is_fixed_for_a_run() {
    let project = project();
    let whole = run(&project, &[]);
    work_on(&whole, Termination::default()).unwrap();
    for (setting, told) in [
        ("train.dpo_beta=0.5", ["train.dpo_beta", "it stays 0.1"]),
        ("train.dpo_label_smoothing=0.1", ["train.dpo_label_smoothing", "it stays 0.0"]),
    ] {
        let changed = run(&project, &[setting]);
        copy_checkpoint(&whole, &changed, 4);
        work_on(&changed, Termination::default()).unwrap();
        assert_eq!(losses(&changed), losses(&whole)[4..]);
        let alerts = alerts(&changed);
        let [(AlertKind::EditRefused, message)] = &alerts[..] else { panic!("{alerts:?}") };
        assert!(told.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn full_fine_tuning_computes_the_reference_of_every_pair_first() {
    let project = project();
    let run = run(&project, &[]);
    let config = Config::load_file(&run.config_path(), &[]).unwrap();
    let files = model_files(&config, project.path()).unwrap();
    let prepared =
        data::prepare(&config, project.path(), &files, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let base = Base::load(files, &config, project.path()).unwrap();
    let begin = |method, progress: &mut dyn FnMut(usize) -> ControlFlow<()>| {
        algorithm_of(&run, &base, &config, &prepared)
            .begin(&base.model, method, &prepared, progress)
            .unwrap();
    };
    let file = run.path().join(REFERENCE);
    begin(MethodKind::Lora, &mut |_| panic!("nothing should be computed"));
    assert!(!file.exists());
    begin(MethodKind::Full, &mut |_| ControlFlow::Break(()));
    let mut heard = Vec::new();
    begin(MethodKind::Full, &mut |done| {
        heard.push(done);
        ControlFlow::Continue(())
    });
    assert_eq!(heard.last(), Some(&24));
    assert_eq!(fs::read_to_string(file).unwrap().lines().count(), 1 + 24);
}

#[test]
fn rows_of_the_wrong_kind_are_refused_before_anything_is_computed() {
    let project = project();
    for settings in [&["data.train=pairs.jsonl"][..], &["train.algorithm=dpo"]] {
        let refused = project.run(settings);
        let error = work_on(&refused, Termination::default()).unwrap_err();
        assert_eq!(error.class(), FailureClass::Data, "{error}");
        assert!(error.to_string().contains("train.algorithm"), "{error}");
    }
}
