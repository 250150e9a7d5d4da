//! Compares models with quantised blocks with their dense form.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use luthier_core::config::{MethodKind, Variant};
use luthier_core::data::EncodedRow;
use luthier_core::model::{Arrangement, ModelFiles, Quantisation, Storage, TensorEntry};
use luthier_engine::algorithms::sft::Sft;
use luthier_engine::csrc;
use luthier_engine::generation::{Row, Sampling, generate};
use luthier_engine::layers::{Active, Adapter, Linear, Mask, Pass};
use luthier_engine::methods::{LoraMethod, Method};
use luthier_engine::models::Model;
use luthier_engine::step::adamw::AdamW;
use luthier_engine::step::batch::{Beginnings, collate};
use luthier_engine::step::{Launch, Learner, Measured, Outcome, StepSettings};
use luthier_engine::weights::{Weight, safetensors};
use tch::{Device, Kind, Tensor};

use crate::references::families;
use crate::runs::micro_batches;
use crate::support::{Merged, columns, copy_files, distance, ids, logits, lora, reference, tensors};

fn files() -> ModelFiles {
    ModelFiles::open(&reference("tiny/llama")).unwrap()
}

fn load(files: &ModelFiles, kind: Kind, quantisation: Quantisation) -> Model {
    Model::load(files, Device::Cpu, kind, quantisation).unwrap()
}

/// All linear layers except the head.
fn in_blocks_of(model: &Model) -> Vec<&Linear> {
    model.linears().filter(|linear| linear.name.contains(".layers.")).collect()
}

/// The tiny llama with its blocks' matrices rounded to NF4 and stored dense.
fn rounded_to_nf4(folder: &Path) -> ModelFiles {
    copy_files(&reference("tiny/llama"), folder);
    let mut weights = tensors("tiny/llama/model.safetensors");
    for linear in in_blocks_of(&load(&files(), Kind::Float, Quantisation::Nf4)) {
        let dense = linear.weight().dense(Kind::Float).unwrap();
        weights.insert(format!("{}.weight", linear.name), dense);
    }
    let weights = weights.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::write(&folder.join("model.safetensors"), weights).unwrap();
    ModelFiles::open(folder).unwrap()
}

/// Q8_0: f16 scale, 32 signed bytes.
fn q8_0(values: &[f32]) -> Vec<u8> {
    let largest = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let scale = half::f16::from_f32(largest / 127.0);
    let code = |value: &f32| (value / scale.to_f32()).round() as i8;
    let codes = values.iter().map(|value| code(value).cast_unsigned());
    scale.to_le_bytes().into_iter().chain(codes).collect()
}

/// Q4_1: f16 scale and minimum, 32 nibbles, element i + 16 in the high one.
fn q4_1(values: &[f32]) -> Vec<u8> {
    let (least, most) = values.iter().fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
    let (scale, minimum) = (half::f16::from_f32((most - least) / 15.0), half::f16::from_f32(least));
    let code = |value: f32| ((value - minimum.to_f32()) / scale.to_f32()).round().clamp(0.0, 15.0) as u8;
    let codes = (0..16).map(|i| code(values[i]) | code(values[i + 16]) << 4);
    scale.to_le_bytes().into_iter().chain(minimum.to_le_bytes()).chain(codes).collect()
}

type Encode = fn(&[f32]) -> Vec<u8>;

/// The tiny llama as in a GGUF file: its blocks' matrices in 8 bits, one of them in 4 and one not quantised,
/// with rows of queries and keys in llama.cpp's order.
fn in_blocks(folder: &Path) -> ModelFiles {
    let mut files = files();
    let weights = tensors("tiny/llama/model.safetensors");
    let attention = files.architecture.layers[0].attention.clone();
    let file = files.files.len();
    let mut data = Vec::new();
    for module in files.linear_modules().into_iter().filter(|module| module.layer.is_some()) {
        let name = format!("{}.weight", module.name);
        let (storage, encode): (_, Encode) = match name.as_str() {
            "model.layers.1.mlp.up_proj.weight" => (Storage::Q4_1, q4_1),
            "model.layers.2.mlp.gate_proj.weight" => continue,
            _ => (Storage::Q8_0, q8_0),
        };
        let heads = match module.name.rsplit('.').next().unwrap() {
            "q_proj" => Some(attention.heads),
            "k_proj" => Some(attention.key_value_heads),
            _ => None,
        };
        let arrangement = heads.map_or(Arrangement::Plain, |heads| Arrangement::RotaryPairs { heads });
        let (rows, columns) = (module.out_features, module.in_features);
        let mut in_file = vec![0.0; rows * columns];
        for (row, values) in Vec::<Vec<f32>>::try_from(&weights[&name]).unwrap().iter().enumerate() {
            let place = arrangement.source_row(row, rows);
            in_file[place * columns..][..columns].copy_from_slice(values);
        }
        let offset = data.len() as u64;
        data.extend(in_file.chunks(32).flat_map(encode));
        let bytes = data.len() as u64 - offset;
        let entry = TensorEntry { shape: vec![rows, columns], storage, file, offset, bytes, arrangement };
        files.tensors.insert(name, entry);
    }
    let path = folder.join("blocks");
    fs::write(&path, data).unwrap();
    files.files.push(path);
    files
}

/// Some rows of the reference's batches.
fn rows(count: usize) -> Vec<EncodedRow> {
    micro_batches("llama").into_iter().flatten().take(count).collect()
}

/// Trains an adapter on one row per step. Returns its parameters and the measurements of each step.
fn train(
    model: &Model,
    rows: &[EncodedRow],
    variant: Variant,
    recompute: bool,
) -> (Box<dyn Adapter>, Vec<Measured>) {
    let adapter = LoraMethod { variant, ..lora(4, &[]) }.create(model, 7).unwrap();
    let mut optimizer = AdamW::new(adapter.parameters()).unwrap();
    // With the usual epsilon, the first updates would be as large where a gradient is only rounding error as
    // elsewhere.
    let settings = StepSettings {
        adamw: csrc::AdamW { learning_rate: 5e-3, betas: [0.9, 0.999], weight_decay: 0.01, epsilon: 1e-4 },
        max_grad_norm: 1.0,
        recompute,
        seed: 0,
    };
    let measured = rows.iter().map(|row| {
        let batch = collate([row], Beginnings::Each, Device::Cpu).unwrap();
        let learner = Learner { model, adapter: &*adapter, optimizer: &optimizer };
        let launch = learner.launch(&Sft, &[batch], &settings, None, &|| false).unwrap();
        let Launch::Made(step) = launch else { panic!("{launch:?}") };
        match step.settle(&mut optimizer).unwrap() {
            Outcome::Updated(measured) => measured,
            other @ Outcome::NotFinite(_) => panic!("{other:?}"),
        }
    });
    let measured = measured.collect();
    (adapter, measured)
}

/// Forms of LoRA, and whether activations are computed again in the backward pass.
const COURSES: [(Variant, bool); 3] =
    [(Variant::Plain, false), (Variant::Plain, true), (Variant::Dora, false)];

/// Asserts that two models with equal weights take the same steps.
pub fn assert_same_course(
    one: &Model,
    other: &Model,
    rows: &[EncodedRow],
    variant: Variant,
    recompute: bool,
) {
    let [(one, first), (other, second)] = [one, other].map(|model| train(model, rows, variant, recompute));
    for (step, (a, b)) in first.iter().zip(&second).enumerate() {
        assert!((a.loss - b.loss).abs() <= 1e-5, "step {step}: {a:?} {b:?}");
        assert!((a.grad_norm / b.grad_norm - 1.0).abs() <= 1e-4, "step {step}: {a:?} {b:?}");
    }
    for (name, parameter) in one.parameters() {
        let error = distance(parameter, &other.parameters()[name]);
        assert!(error <= 1e-5, "{name}: {error}");
    }
}

/// The most likely 24 tokens after each prompt.
pub fn greedy(model: &Model, prompts: &[Vec<u32>], adapter: Option<&dyn Adapter>) -> Vec<Vec<u32>> {
    let row =
        |prompt| Row { prompt, adapter, sampling: Sampling::GREEDY, seed: 0, stop: &[], max_new_tokens: 24 };
    let rows: Vec<Row> = prompts.iter().map(|prompt| row(prompt)).collect();
    let replies = generate(model, &rows, &mut |_, _| ControlFlow::Continue(())).unwrap();
    replies.into_iter().map(|reply| reply.tokens).collect()
}

fn prompts() -> Vec<Vec<u32>> {
    let stored = tensors("tiny/llama/ref.safetensors");
    // Both longer and shorter than the limit of the kernels for few tokens.
    vec![ids(&stored["gen0.prompt"]), ids(&stored["gen1.prompt"]), vec![5, 6], (20..60).collect()]
}

#[test]
fn every_family_runs_over_nf4() {
    for family in families() {
        let files = ModelFiles::open(&reference(&format!("tiny/{family}"))).unwrap();
        let dense = load(&files, Kind::Float, Quantisation::None);
        let quantised = load(&files, Kind::Float, Quantisation::Nf4);
        assert_eq!(quantised.weight_bytes(), Quantisation::Nf4.held(&files).bytes(4), "{family}");
        let ids = &tensors(&format!("tiny/{family}/ref.safetensors"))["input_ids"];
        let held = Merged::of(None, &quantised);
        let found = logits(&quantised, ids, Active::Base);
        let error = distance(&found, &logits(&dense, ids, Active::All(&held)));
        assert!(error <= 1e-4, "{family}: {error}");
        let rounding = distance(&found, &logits(&dense, ids, Active::Base));
        assert!(rounding > 1e-3, "{family}: nothing is quantised");
    }
}

#[test]
fn training_over_nf4_equals_training_over_its_dense_form() {
    let folder = tempfile::tempdir().unwrap();
    let dense = load(&rounded_to_nf4(folder.path()), Kind::Float, Quantisation::None);
    let quantised = load(&files(), Kind::Float, Quantisation::Nf4);
    for (variant, recompute) in COURSES {
        assert_same_course(&quantised, &dense, &rows(8), variant, recompute);
    }
}

#[test]
fn training_over_a_files_own_blocks_equals_training_over_their_dense_form() {
    let folder = tempfile::tempdir().unwrap();
    let files = in_blocks(folder.path());
    let stored = load(&files, Kind::Float, Quantisation::AsStored);
    let kinds: Vec<&str> = in_blocks_of(&stored)
        .iter()
        .map(|linear| match linear.weight() {
            Weight::Dense(_) => "dense",
            Weight::Nf4(_) => "nf4",
            Weight::Stored(_) => "stored",
        })
        .collect();
    assert_eq!(kinds.iter().filter(|&&kind| kind == "stored").count(), 20);
    assert_eq!(kinds[18], "dense", "matrices that the file does not quantise stay dense");
    let dense = load(&files, Kind::Float, Quantisation::None);
    for (variant, recompute) in COURSES {
        assert_same_course(&stored, &dense, &rows(8), variant, recompute);
    }
}

#[test]
fn greedy_replies_equal_those_of_the_dense_form() {
    let (nf4, blocks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (rounded, stored) = (rounded_to_nf4(nf4.path()), in_blocks(blocks.path()));
    for (quantisation, files, dense) in
        [(Quantisation::Nf4, &files(), &rounded), (Quantisation::AsStored, &stored, &stored)]
    {
        let model = load(files, Kind::Float, quantisation);
        let dense = load(dense, Kind::Float, Quantisation::None);
        let (adapter, _) = train(&dense, &rows(2), Variant::Plain, false);
        for adapter in [None, Some(&*adapter)] {
            let found = greedy(&model, &prompts(), adapter);
            assert_eq!(found, greedy(&dense, &prompts(), adapter), "{quantisation:?}");
        }
    }
}

#[test]
fn bf16_over_quantised_weights_is_close_to_f32() {
    let folder = tempfile::tempdir().unwrap();
    let stored = in_blocks(folder.path());
    for (quantisation, files) in [(Quantisation::Nf4, &files()), (Quantisation::AsStored, &stored)] {
        let (single, half) =
            (load(files, Kind::Float, quantisation), load(files, Kind::BFloat16, quantisation));
        let (rows, ids) = (rows(6), &tensors("tiny/llama/ref.safetensors")["input_ids"]);
        let error = distance(&logits(&single, ids, Active::Base), &logits(&half, ids, Active::Base));
        assert!(error <= 0.2, "{quantisation:?}: {error}");
        let (single, half) =
            (train(&single, &rows, Variant::Plain, false).1, train(&half, &rows, Variant::Plain, false).1);
        for (a, b) in single.iter().zip(&half) {
            assert!((a.loss / b.loss - 1.0).abs() <= 0.02, "{quantisation:?}: {a:?} {b:?}");
        }
        let replies = greedy(&load(files, Kind::BFloat16, quantisation), &prompts(), None);
        assert!(replies.iter().all(|reply| reply.len() == 24));
    }
}

#[test]
fn an_adapter_folds_into_the_dense_form_of_quantised_weights() {
    let folder = tempfile::tempdir().unwrap();
    let stored = in_blocks(folder.path());
    for (quantisation, files) in [(Quantisation::Nf4, &files()), (Quantisation::AsStored, &stored)] {
        let model = load(files, Kind::Float, quantisation);
        let (adapter, _) = train(&model, &rows(3), Variant::Plain, false);
        let positions = columns(1, 5);
        for linear in in_blocks_of(&model) {
            let dense = linear.weight().dense(Kind::Float).unwrap();
            let merged = adapter.fold(linear, dense, None).unwrap().weight;
            let x = Tensor::randn([5, linear.in_features as i64], (Kind::Float, Device::Cpu));
            let adapters = Active::All(&*adapter);
            let pass = Pass { positions: &positions, mask: Mask::Causal, adapters, noise: None };
            let error = distance(&x.matmul(&merged.tr()), &linear.forward(&x, &pass).unwrap());
            assert!(error <= 1e-5, "{quantisation:?} {}: {error}", linear.name);
        }
    }
}

#[test]
fn weights_take_the_forecast_number_of_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let stored = in_blocks(folder.path());
    assert_eq!(Quantisation::of(MethodKind::Qlora, &files()), Quantisation::Nf4);
    assert_eq!(Quantisation::of(MethodKind::Qlora, &stored), Quantisation::AsStored);
    for (kind, element) in [(Kind::Float, 4), (Kind::BFloat16, 2)] {
        let mut taken = Vec::new();
        for (quantisation, files) in [
            (Quantisation::None, &files()),
            (Quantisation::Nf4, &files()),
            (Quantisation::AsStored, &stored),
            (Quantisation::None, &stored),
        ] {
            let model = load(files, kind, quantisation);
            assert_eq!(model.weight_bytes(), quantisation.held(files).bytes(element), "{quantisation:?}");
            let blocks: u64 = in_blocks_of(&model).iter().map(|linear| linear.weight().bytes()).sum();
            taken.push(blocks);
        }
        let [dense, nf4, in_blocks, dense_blocks] = taken[..] else { panic!("{taken:?}") };
        assert_eq!(dense, dense_blocks);
        assert!(nf4 * 7 < dense * 4 / element && in_blocks < dense * 10 / 15, "{taken:?}");
    }
}

#[test]
fn a_nan_weight_cannot_be_quantised() {
    let folder = tempfile::tempdir().unwrap();
    copy_files(&reference("tiny/llama"), folder.path());
    let mut weights = tensors("tiny/llama/model.safetensors");
    let name = "model.layers.1.mlp.down_proj.weight";
    let _ = weights.get_mut(name).unwrap().get(3).fill_(f64::NAN);
    let weights = weights.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::write(&folder.path().join("model.safetensors"), weights).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    let Err(error) = Model::load(&files, Device::Cpu, Kind::Float, Quantisation::Nf4) else {
        panic!("it was accepted")
    };
    assert!(error.to_string().contains(name) && error.to_string().contains("not finite"), "{error}");
}
