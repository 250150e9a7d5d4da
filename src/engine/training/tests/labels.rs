//! Whole runs that learn from labelled answers.

use luthier_core::runs::Metrics;

use super::*;

fn run(project: &Project) -> RunDir {
    project.run(&["data.train=labelled.jsonl", "train.algorithm=kto"])
}

fn metrics(run: &RunDir) -> Vec<Metrics> {
    let metrics = |event: JournalEvent| match event.body {
        EventBody::Step(step) => Some(step.metrics),
        _ => None,
    };
    events(run).into_iter().filter_map(metrics).collect()
}

#[test]
fn a_run_makes_good_answers_likelier_than_bad_ones_and_resumes_exactly() {
    let project = Project::new();
    project.write_labelled("labelled.jsonl");
    let whole = run(&project);
    assert_eq!(work_on(&whole, Termination::default()).unwrap(), finished());
    let reported = metrics(&whole);
    assert!(reported[0]["kl"].get().abs() < 1e-6, "at first the model is its base: {reported:?}");
    let held_out: Vec<_> = events(&whole)
        .into_iter()
        .filter_map(|event| match event.body {
            EventBody::Eval(eval) => Some(eval),
            _ => None,
        })
        .collect();
    let (first, last) = (&held_out[0], held_out.last().unwrap());
    // With a margin of 0, every answer's loss is 1 - sigmoid(0).
    assert!((first.loss.get() - 0.5).abs() < 1e-6 && last.loss.get() < first.loss.get(), "{held_out:?}");
    assert!(last.metrics["reward_margin"].get() > 0.1, "{last:?}");
    assert!(alerts(&whole).is_empty(), "{:?}", alerts(&whole));

    let resumed = run(&project);
    copy_checkpoint(&whole, &resumed, 4);
    fs::copy(whole.path().join("reference.tsv"), resumed.path().join("reference.tsv")).unwrap();
    assert_eq!(work_on(&resumed, Termination::default()).unwrap(), finished());
    assert_eq!(losses(&resumed), losses(&whole)[4..]);
    assert_eq!(metrics(&resumed), reported[4..]);
    assert_eq!(adapter(&resumed), adapter(&whole));
}
