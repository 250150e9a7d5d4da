//! Evaluation of a tiny run.

use std::ops::ControlFlow;

use luthier_core::config::Config;
use luthier_core::data::{self, EncodedRow};
use luthier_core::runs::ResultForm;

use super::{Request, compare};
use crate::algorithms::sft::Sft;
use crate::algorithms::{Algorithm, TOKENS_AT_ONCE, parts};
use crate::base::{Base, model_files};
use crate::layers::Active;
use crate::methods::{self, Purpose, method_of};
use crate::testing::Project;

fn go_on(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn a_fresh_adapter_fares_as_its_base_and_the_baseline_is_asked_too() {
    let project = Project::new();
    let run = project.run(&["review.baseline_system=\"be brief\""]);
    let config = Config::load_file(&run.config_path(), &[]).unwrap();
    let files = model_files(&config, project.path()).unwrap();
    let base = Base::load(files, &config, project.path()).unwrap();
    let adapter = method_of(&config).create(&base.model, 1).unwrap();
    methods::save(adapter.as_ref(), &run.result_path(ResultForm::Adapter), Purpose::Result).unwrap();

    let request = Request { run: run.path().to_owned(), checkpoint: None, limit: Some(4) };
    let mut heard = Vec::new();
    let comparison = compare(&request, &mut |progress| {
        heard.push((progress.what.to_owned(), progress.done));
        ControlFlow::Continue(())
    });
    let comparison = comparison.unwrap().unwrap();
    assert_eq!(comparison.rows, 4);
    let (loss, tuned) = (comparison.base.loss.unwrap().get(), comparison.tuned.loss.unwrap().get());
    assert!((loss - tuned).abs() < 1e-6 && loss.is_finite(), "{loss} {tuned}");
    assert_eq!(comparison.base.scores, comparison.tuned.scores);
    assert_eq!((comparison.base.replies, comparison.tuned.replies), (4, 4));
    assert_eq!(comparison.baseline.unwrap().replies, 4);
    assert!(heard.contains(&("replies".to_owned(), 12)), "{heard:?}");

    let broken_off = compare(&request, &mut |_| ControlFlow::Break(())).unwrap();
    assert!(broken_off.is_none());
    let missing = Request { checkpoint: Some(77), ..request };
    assert!(compare(&missing, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string().contains("77"));
}

#[test]
fn a_fresh_adapter_prefers_no_answer_over_its_base() {
    let project = Project::new();
    project.write_pairs("pairs.jsonl");
    let run = project.run(&["data.train=pairs.jsonl", "train.algorithm=dpo"]);
    let config = Config::load_file(&run.config_path(), &[]).unwrap();
    let files = model_files(&config, project.path()).unwrap();
    let base = Base::load(files, &config, project.path()).unwrap();
    let adapter = method_of(&config).create(&base.model, 1).unwrap();
    methods::save(adapter.as_ref(), &run.result_path(ResultForm::Adapter), Purpose::Result).unwrap();
    let request = Request { run: run.path().to_owned(), checkpoint: None, limit: None };
    let comparison = compare(&request, &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
    for side in [&comparison.base, &comparison.tuned] {
        assert!((side.loss.unwrap().get() - std::f64::consts::LN_2).abs() < 1e-6, "{side:?}");
        let margin = side.metrics["reward_margin"].get();
        assert_eq!((margin, side.metrics["reward_accuracy"].get()), (0.0, 0.0), "{side:?}");
    }
    let json = serde_json::to_value(&comparison).unwrap();
    assert_eq!((&json["tuned"]["reward_margin"], json["tuned"].get("perplexity")), (&0.0.into(), None));
    assert_eq!(comparison.tuned.replies, comparison.rows);
}

#[test]
fn the_held_out_loss_does_not_depend_on_how_rows_are_cut() {
    let project = Project::new();
    let config = Config::load(project.path(), &[]).unwrap();
    let files = model_files(&config, project.path()).unwrap();
    let prepared =
        data::prepare(&config, project.path(), &files, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let base = Base::load(files, &config, project.path()).unwrap();
    let whole = Sft.held_out(&base.model, Active::Base, &prepared.train, &mut go_on).unwrap().unwrap();
    let mut sum = 0.0;
    for row in &prepared.train {
        let one =
            Sft.held_out(&base.model, Active::Base, std::slice::from_ref(row), &mut go_on).unwrap().unwrap();
        sum += one.loss * one.trained_tokens as f64;
    }
    assert!((whole.loss - sum / whole.trained_tokens as f64).abs() < 1e-5);
    assert!((whole.metrics["perplexity"].get() - whole.loss.exp()).abs() < 1e-9);
    assert!((0.0..=1.0).contains(&whole.metrics["token_accuracy"].get()));
    assert!(Sft.held_out(&base.model, Active::Base, &[], &mut go_on).unwrap().is_none());
}

#[test]
fn rows_are_evaluated_in_parts_of_limited_size() {
    let row = |row: usize, length: usize| EncodedRow::of_one_side(row, vec![1; length], vec![true; length]);
    let rows: Vec<EncodedRow> = [10, TOKENS_AT_ONCE - 10, 1, TOKENS_AT_ONCE + 5, 7]
        .into_iter()
        .enumerate()
        .map(|(at, length)| row(at, length))
        .collect();
    let parts = parts(&rows);
    let parts: Vec<Vec<usize>> = parts.iter().map(|part| part.iter().map(|row| row.row).collect()).collect();
    assert_eq!(parts, [vec![0, 1], vec![2], vec![3], vec![4]]);
}
