//! Full fine-tuning in bf16 with working copies against the same with f32 leaves, which each forward pass casts to
//! bf16 and whose gradients autograd adds up in f32.

use std::sync::Arc;

use luthier_core::data::EncodedRow;
use luthier_core::model::{ModelFiles, Quantisation};
use luthier_engine::layers::{Active, Adapter, Form, Linear, Parameters};
use luthier_engine::methods::{self, FullMethod, Method, Purpose};
use luthier_engine::models::Model;
use luthier_engine::step::adamw::AdamW;
use luthier_engine::step::{Measured, StepSettings};
use luthier_engine::{csrc, ops};
use tch::{Kind, Tensor};

use crate::references::{families, open};
use crate::runs::{make_step, on_cpu};
use crate::support::{hidden, lora};

/// All weights of a model as f32 leaves.
struct Cast {
    parameters: Parameters,
    used: Parameters,
    files: Arc<ModelFiles>,
}

impl Cast {
    fn of(full: &dyn Adapter, model: &Model) -> Self {
        let files = Arc::new(model.files().clone());
        let mut cast = Self { parameters: Parameters::new(), used: Parameters::new(), files };
        for (name, parameter) in full.parameters() {
            let leaf = ops::leaf(&parameter.copy()).unwrap();
            let is_turned = !full.replacement(name).unwrap().is_contiguous();
            cast.used.insert(name.clone(), if is_turned { leaf.tr() } else { leaf.shallow_clone() });
            cast.parameters.insert(name.clone(), leaf);
        }
        cast
    }
}

impl Adapter for Cast {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn form(&self) -> Form {
        Form::Model(Arc::clone(&self.files))
    }

    fn replacement(&self, tensor: &str) -> Option<&Tensor> {
        self.used.get(tensor)
    }

    fn shares_product(&self, _: &Linear) -> bool {
        false
    }
}

fn row(index: usize) -> EncodedRow {
    let length = 7 + index % 5;
    let ids = (0..length).map(|place| ((index * 131 + place * 37) % 500) as u32).collect();
    EncodedRow::of_one_side(index, ids, (0..length).map(|place| place > 2).collect())
}

fn without_weights(model: &Model) -> Model {
    Model::without_weights(model.files(), model.device(), model.kind()).unwrap()
}

/// Numbers and weights of three steps of so many micro-batches each, of two rows.
fn course(model: &Model, adapter: &dyn Adapter, micro_batches: usize, recompute: bool) -> Vec<Measured> {
    let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
    let step = |number: usize| {
        let rows = |micro: usize| {
            let first = 2 * (number * micro_batches + micro);
            vec![row(first), row(first + 1)]
        };
        let batches = on_cpu(&(0..micro_batches).map(rows).collect::<Vec<_>>());
        let settings = StepSettings {
            adamw: csrc::AdamW { learning_rate: 1e-3, betas: [0.9, 0.99], weight_decay: 0.1, epsilon: 1e-8 },
            // One step is clipped, the next is not clipped, and the last is not to be clipped.
            max_grad_norm: [0.05, 1e6, 0.0][number],
            recompute,
            seed: number as u64,
        };
        make_step(model, adapter, &mut optimizer, &batches, &settings)
    };
    (0..3).map(step).collect()
}

#[test]
fn working_copies_train_bit_for_bit_as_weights_cast_in_each_micro_batch() {
    for family in &families() {
        let model = open(family, Kind::BFloat16, Quantisation::None);
        let without = without_weights(&model);
        for (micro_batches, recompute) in [(1, false), (1, true), (3, false), (3, true)] {
            let full = FullMethod.create(&without, 0).unwrap();
            let cast = Cast::of(full.as_ref(), &model);
            let (ours, theirs) = (
                course(&without, full.as_ref(), micro_batches, recompute),
                course(&model, &cast, micro_batches, recompute),
            );
            let case = format!("{family} {micro_batches} recompute {recompute}");
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let bits = |measured: &Measured| [measured.loss, measured.grad_norm].map(f64::to_bits);
                assert_eq!(bits(ours), bits(theirs), "{case}: {ours:?} {theirs:?}");
            }
            let working = full.working().unwrap();
            assert!(working.len() > full.parameters().len() / 2, "{case}");
            for (name, parameter) in full.parameters() {
                assert_eq!(parameter, &cast.parameters[name], "{case} {name}");
                if let Some(copy) = working.get(name) {
                    assert_eq!(copy.values(), &parameter.to_kind(Kind::BFloat16), "{case} {name}");
                    assert!(!parameter.requires_grad() && !copy.leaf().grad().defined(), "{case} {name}");
                }
            }
        }
    }
}

#[test]
fn gradients_stay_in_bf16_until_a_second_one_is_added() {
    let model = open("qwen3", Kind::BFloat16, Quantisation::None);
    let full = FullMethod.create(&model, 0).unwrap();
    let working = full.working().unwrap();
    let shared = &working["model.embed_tokens.weight"];
    let own = &working["model.layers.0.mlp.up_proj.weight"];
    let give = |leaf: &Tensor| leaf.sum(Kind::Float).backward();
    give(own.leaf());
    give(shared.leaf());
    give(shared.other().unwrap());
    assert!(own.other().is_none());
    assert_eq!(own.take_gradient().unwrap().unwrap().kind(), Kind::BFloat16);
    assert!(own.take_gradient().unwrap().is_none());
    let sum = shared.take_gradient().unwrap().unwrap();
    assert_eq!((sum.kind(), sum.min().double_value(&[])), (Kind::Float, 2.0));
}

#[test]
fn a_restored_parameter_is_written_to_its_working_copy() {
    let model = open("gpt2", Kind::BFloat16, Quantisation::None);
    let full = FullMethod.create(&model, 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    methods::save(full.as_ref(), folder.path(), Purpose::Checkpoint).unwrap();
    let ids = Tensor::arange(9, (Kind::Int64, tch::Device::Cpu)).view([1, 9]);
    let before = hidden(&model, &ids, Active::All(full.as_ref()));
    course(&model, full.as_ref(), 1, false);
    assert_ne!(hidden(&model, &ids, Active::All(full.as_ref())), before);
    methods::restore(full.as_ref(), folder.path()).unwrap();
    assert_eq!(hidden(&model, &ids, Active::All(full.as_ref())), before);
}

#[test]
fn weights_that_were_left_out_are_never_used() {
    for family in &families() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let model = open(family, kind, Quantisation::None);
            let without = without_weights(&model);
            let full = FullMethod.create(&model, 0).unwrap();
            let ids = (Tensor::arange(18, (Kind::Int64, tch::Device::Cpu)) * 37).remainder(509).view([2, 9]);
            let all = Active::All(full.as_ref());
            let states = hidden(&without, &ids, all);
            assert_eq!(states, hidden(&model, &ids, all), "{family}");
            assert_eq!(
                without.logits(&states, all).unwrap(),
                model.logits(&states, all).unwrap(),
                "{family}"
            );

            let adapter = lora(2, &[]).create(&model, 0).unwrap();
            let rows = [Some(full.as_ref()), None];
            for active in [Active::Base, Active::All(adapter.as_ref()), Active::Rows(&rows)] {
                let error = without.logits(&states, active).unwrap_err().to_string();
                assert!(error.contains("not in memory"), "{family}: {error}");
            }
            let numbers = ops::to_floats(without.embedding()).unwrap();
            assert!(numbers.iter().all(|number| number.is_nan()), "{family}");
        }
    }
}
