//! Evaluation of a tiny run.

use std::ops::ControlFlow;

use luthier_core::config::Config;
use luthier_core::data;

use super::{Request, compare, held_out};
use crate::base::{Base, model_files};
use crate::methods::{self, LoraMethod, Method};
use crate::models::Active;
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
    let method = LoraMethod::from_config(&config.method, "m".as_ref());
    methods::save(method.create(&base.model, 1).unwrap().as_ref(), &run.adapter_path()).unwrap();

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
fn the_held_out_loss_is_a_mean_over_tokens_however_rows_are_cut() {
    let project = Project::new();
    let config = Config::load(project.path(), &[]).unwrap();
    let files = model_files(&config, project.path()).unwrap();
    let prepared = data::prepare(&config, project.path(), &files, &mut |_, _| {}).unwrap();
    let base = Base::load(files, &config, project.path()).unwrap();
    let whole = held_out(&base.model, Active::Base, &prepared.train, &mut go_on).unwrap().unwrap();
    let mut sum = 0.0;
    for row in &prepared.train {
        let one =
            held_out(&base.model, Active::Base, std::slice::from_ref(row), &mut go_on).unwrap().unwrap();
        sum += one.loss * one.trained_tokens as f64;
    }
    assert!((whole.loss - sum / whole.trained_tokens as f64).abs() < 1e-5);
    assert!((whole.perplexity() - whole.loss.exp()).abs() < 1e-9);
    assert!((0.0..=1.0).contains(&whole.token_accuracy));
    assert!(held_out(&base.model, Active::Base, &[], &mut go_on).unwrap().is_none());
}
