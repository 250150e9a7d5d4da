//! Invariants of a training step, for any split and after any failure.

use luthier_core::data::EncodedRow;
use luthier_engine::algorithms::sft::Sft;
use luthier_engine::layers::Parameters;
use luthier_engine::ops;
use luthier_engine::step::adamw::AdamW;
use luthier_engine::step::{Launch, Learner, Outcome};
use tch::Kind;

use crate::references::Run;
use crate::runs::{Trajectory, adapter, follow, make_step, micro_batches, on_cpu, settle};
use crate::support::{furthest, relative, tiny};

fn lora() -> Run {
    Run::named("llama", "lora")
}

fn reference() -> Trajectory {
    Trajectory::of(&lora())
}

fn values(parameters: &Parameters) -> Vec<Vec<f32>> {
    parameters.values().map(|parameter| ops::to_floats(parameter).unwrap()).collect()
}

#[test]
fn the_gradient_does_not_depend_on_how_a_step_is_split() {
    let model = tiny(Kind::Float);
    let rows: Vec<EncodedRow> = micro_batches("llama").into_iter().take(3).flatten().collect();
    let reference = reference();
    let mut results = [1, 2, 6].iter().map(|&size| {
        let adapter = adapter(&lora(), "adapter-init", &model);
        let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
        let cut: Vec<Vec<EncodedRow>> = rows.chunks(size).map(<[_]>::to_vec).collect();
        let measured =
            make_step(&model, adapter.as_ref(), &mut optimizer, &on_cpu(&cut), &reference.settings(4));
        (measured, adapter)
    });
    let (first, adapter) = results.next().unwrap();
    for (measured, other) in results {
        assert!(relative(measured.loss, first.loss) <= 1e-6, "{measured:?} {first:?}");
        assert!(relative(measured.grad_norm, first.grad_norm) <= 1e-5, "{measured:?} {first:?}");
        assert!(furthest(other.parameters(), adapter.parameters()) <= 1e-5);
    }
}

#[test]
fn rows_end_to_end_have_the_same_loss_as_alone() {
    let model = tiny(Kind::Float);
    let rows: Vec<EncodedRow> = micro_batches("llama").into_iter().take(4).flatten().collect();
    let loss = |micro_batches: &[Vec<EncodedRow>]| {
        let adapter = adapter(&lora(), "adapter-init", &model);
        let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
        let settings = reference().settings(0);
        make_step(&model, adapter.as_ref(), &mut optimizer, &on_cpu(micro_batches), &settings).loss
    };
    let together = loss(std::slice::from_ref(&rows));
    let alone = loss(&rows.iter().map(|row| vec![row.clone()]).collect::<Vec<_>>());
    assert!((together - alone).abs() <= 1e-5, "{together} {alone}");
}

#[test]
fn a_loss_that_is_not_finite_changes_nothing() {
    let model = tiny(Kind::Float);
    let adapter = adapter(&lora(), "adapter-init", &model);
    let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
    let batches = on_cpu(&micro_batches("llama")[..2]);
    let settings = reference().settings(4);
    make_step(&model, adapter.as_ref(), &mut optimizer, &batches, &settings);

    // One very large factor makes every logit infinite or NaN.
    let mut factor = adapter.parameters().values().next().unwrap().shallow_clone();
    let before = ops::copy(&factor).unwrap();
    tch::no_grad(|| factor.fill_(f64::from(f32::MAX))).size();
    let state =
        |optimizer: &AdamW| (values(adapter.parameters()), values(&optimizer.tensors()), optimizer.updates());
    let untouched = state(&optimizer);
    let outcome = settle(&model, adapter.as_ref(), &mut optimizer, &batches, &settings);
    assert!(matches!(outcome, Outcome::NotFinite(_)), "{outcome:?}");
    assert_eq!(state(&optimizer), untouched);

    // A step that was launched before the failure was known must also change nothing.
    let learner = Learner { model: &model, adapter: adapter.as_ref(), optimizer: &optimizer };
    let launch = |before| match learner.launch(&Sft, &batches, &settings, before, &|| false).unwrap() {
        Launch::Made(step) => step,
        other => panic!("{other:?}"),
    };
    let bad = launch(None);
    let damaged = ops::copy(&factor).unwrap();
    ops::copy_into(&mut factor, &before).unwrap();
    launch(Some(&bad));
    ops::copy_into(&mut factor, &damaged).unwrap();
    assert_eq!(state(&optimizer), untouched);

    // The bad gradient must not leak into the next step.
    ops::copy_into(&mut factor, &before).unwrap();
    let measured = make_step(&model, adapter.as_ref(), &mut optimizer, &batches, &settings);
    assert!(measured.loss.is_finite() && measured.grad_norm.is_finite());
}

#[test]
fn empty_and_cancelled_steps_change_nothing() {
    let model = tiny(Kind::Float);
    let adapter = adapter(&lora(), "adapter-init", &model);
    let optimizer = AdamW::new(adapter.parameters()).unwrap();
    let settings = reference().settings(4);
    let before = values(adapter.parameters());
    let mut rows = micro_batches("llama").swap_remove(0);
    let learner = Learner { model: &model, adapter: adapter.as_ref(), optimizer: &optimizer };
    let given_up = learner.launch(&Sft, &on_cpu(&[rows.clone()]), &settings, None, &|| true).unwrap();
    assert!(matches!(given_up, Launch::Interrupted), "{given_up:?}");
    for row in &mut rows {
        row.sides[0].trained.fill(false);
    }
    let nothing = learner.launch(&Sft, &on_cpu(&[rows]), &settings, None, &|| false).unwrap();
    assert!(matches!(nothing, Launch::NothingTrained), "{nothing:?}");
    assert_eq!((values(adapter.parameters()), optimizer.updates()), (before, 0));
}

#[test]
fn training_over_bf16_weights_is_close_to_f32() {
    let model = tiny(Kind::BFloat16);
    let (adapter, measured) = follow(&lora(), &model, false);
    assert!(adapter.parameters().values().all(|parameter| parameter.kind() == Kind::Float));
    for (ours, expected) in measured.iter().zip(&reference().log) {
        assert!(relative(ours.loss, expected.loss) <= 0.02, "{} instead of {}", ours.loss, expected.loss);
    }
}
