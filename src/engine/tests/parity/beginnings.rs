//! Shared beginnings of rows are computed once, and losses and gradients equal those of rows computed
//! separately.

use std::collections::BTreeMap;

use luthier_core::data::EncodedRow;
use luthier_core::model::Quantisation;
use luthier_engine::csrc;
use luthier_engine::layers::{Active, Adapter, Mask, Pass};
use luthier_engine::models::Model;
use luthier_engine::models::head::losses;
use luthier_engine::ops;
use luthier_engine::step::batch::{Beginnings, collate};
use tch::{Device, Kind, Tensor};

use crate::methods::each;
use crate::references::{families, open};
use crate::support::{distance, variant};

const ONCE: Beginnings = Beginnings::Once { worth: 16 };

/// Rows of several lengths: two pairs with shared beginnings, one row that is a beginning of another, and one
/// that shares nothing. Long enough for the windows of the tiny models.
fn rows() -> Vec<EncodedRow> {
    let row = |row: usize, ids: Vec<u32>, from: usize| {
        let trained = (0..ids.len()).map(|place| place >= from).collect();
        EncodedRow::of_one_side(row, ids, trained)
    };
    let ids = |seed: u32, length: u32| (0..length).map(move |place| (seed + place * 37) % 509);
    let system: Vec<u32> = ids(3, 21).collect();
    let with = |rest: Vec<u32>| system.iter().copied().chain(rest).collect::<Vec<u32>>();
    vec![
        row(0, with(ids(100, 9).collect()), 19),
        row(1, with(ids(200, 5).collect()), 21),
        row(2, ids(77, 12).collect(), 0),
        row(3, with(ids(100, 4).chain(ids(300, 7)).collect()), 10),
        row(4, with(Vec::new()), 18),
    ]
}

/// The loss of every target, and every parameter's gradient.
fn learned(
    model: &Model,
    adapter: &dyn Adapter,
    rows: &[EncodedRow],
    beginnings: Beginnings,
    recompute: bool,
) -> (Tensor, BTreeMap<String, Tensor>) {
    for parameter in adapter.parameters().values() {
        parameter.shallow_clone().zero_grad();
    }
    let batch = collate(rows, beginnings, Device::Cpu).unwrap();
    assert_eq!(batch.ids.numel() as u64 == batch.tokens, beginnings == Beginnings::Each);
    let adapters = Active::All(adapter);
    let pass = Pass { positions: &batch.positions, mask: batch.mask(), adapters, noise: None };
    let found = |hidden: &Tensor| losses(model, adapters, hidden, &batch.targets).unwrap();
    let found = if recompute {
        let trace = model.hidden_recomputed(&batch.ids, &pass).unwrap();
        let found = found(&trace.hidden);
        csrc::backward(&[&found.sum(Kind::Float)], &[None]).unwrap();
        model.backward(trace, &batch.ids, &pass, &mut || Ok(())).unwrap();
        found
    } else {
        let found = found(&model.hidden(&batch.ids, &pass, None).unwrap());
        csrc::backward(&[&found.sum(Kind::Float)], &[None]).unwrap();
        found
    };
    let gradients = adapter.parameters().iter().filter(|(_, parameter)| parameter.grad().defined());
    (found.detach(), gradients.map(|(name, parameter)| (name.clone(), parameter.grad().copy())).collect())
}

#[test]
fn every_family_learns_the_same_with_shared_beginnings() {
    // Of the variants, those with attention that no tiny model has: scores with a linear bias.
    let models = families()
        .into_iter()
        .map(|family| (family.clone(), open(&family, Kind::Float, Quantisation::None), None));
    let variants = ["falcon-rw", "qwen2-mixed"].map(|name| (name.to_owned(), variant(name)));
    let models = models.chain(variants.map(|(name, (model, folder))| (name, model, Some(folder))));
    let rows = rows();
    for (family, model, _folder) in models {
        for (name, adapter) in each(&model) {
            let learned =
                |beginnings, recompute| learned(&model, adapter.as_ref(), &rows, beginnings, recompute);
            let (apart, gradients) = learned(Beginnings::Each, false);
            for recompute in [false, true] {
                let (once, others) = learned(ONCE, recompute);
                let error = distance(&once, &apart);
                assert!(error <= 1e-4, "{family} {name}: {error}");
                assert_eq!(others.keys().collect::<Vec<_>>(), gradients.keys().collect::<Vec<_>>());
                for (parameter, gradient) in &gradients {
                    let largest = gradient.abs().max().double_value(&[]).max(1e-3);
                    let error = distance(&others[parameter], gradient) / largest;
                    assert!(error <= 1e-4, "{family} {name} {parameter}: {error}");
                }
            }
        }
    }
}

/// Distance between gradients, relative to the exact ones.
fn relative(found: &BTreeMap<String, Tensor>, exact: &BTreeMap<String, Tensor>) -> f64 {
    let square = |x: &Tensor| x.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
    let error: f64 = exact.iter().map(|(name, gradient)| square(&(&found[name] - gradient))).sum();
    (error / exact.values().map(square).sum::<f64>()).sqrt()
}

#[test]
fn bf16_is_as_exact_when_many_rows_share_their_beginning() {
    // So many rows that a bf16 sum would lose the last of them.
    let begin: Vec<u32> = (0..24).map(|place| (5 + place * 37) % 509).collect();
    let row = |row: usize| {
        let ids = begin.iter().copied().chain([(row as u32 * 11) % 509, 3]).collect();
        EncodedRow::of_one_side(row, ids, vec![true; 26])
    };
    let rows: Vec<EncodedRow> = (0..200).map(row).collect();
    for family in ["llama", "gemma2", "falcon-7b"] {
        let [full, half] = [Kind::Float, Kind::BFloat16].map(|kind| open(family, kind, Quantisation::None));
        let gradients = |model: &Model, beginnings| {
            let (_, adapter) = each(model).swap_remove(0);
            learned(model, adapter.as_ref(), &rows, beginnings, false).1
        };
        let exact = gradients(&full, Beginnings::Each);
        let [apart, once] =
            [Beginnings::Each, ONCE].map(|beginnings| relative(&gradients(&half, beginnings), &exact));
        assert!(once <= 1.2 * apart + 1e-3, "{family}: {once} where rows apart are {apart} away");
    }
}

#[test]
fn gradients_of_repeated_rows_are_summed_in_f32() {
    let x = Tensor::ones([3, 2], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true);
    let index =
        Tensor::cat(&[Tensor::zeros([1000], (Kind::Int64, Device::Cpu)), Tensor::from_slice(&[2_i64])], 0);
    let y = ops::gather(&x, &index).unwrap();
    csrc::backward(&[&y.sum(Kind::Float)], &[None]).unwrap();
    // A bf16 sum of one after another would stop at 256.
    let expected = Tensor::from_slice(&[1000.0_f32, 1000.0, 0.0, 0.0, 1.0, 1.0]).view([3, 2]);
    assert_eq!(x.grad().to_kind(Kind::Float), expected);
}

#[test]
fn longrope_switches_at_the_exact_length_of_the_longest_document() {
    let (model, _folder) = variant("phi3-long-short");
    // `original_max_position_embeddings`; beyond it, other frequencies are used.
    let original = 32;
    for (name, adapter) in each(&model) {
        let own = adapter.virtual_tokens() as i64;
        for length in [original - 1, original, original + 1].map(|length| length - own) {
            let ids = Tensor::arange(2 * length, (Kind::Int64, Device::Cpu)).remainder(300).view([2, length]);
            let positions = crate::support::columns(2, length);
            let counts = Tensor::ones([2, length], (Kind::Bool, Device::Cpu));
            let adapters = Active::All(adapter.as_ref());
            let hidden = |mask: Mask| {
                let pass = Pass { positions: &positions, mask, adapters, noise: None };
                model.hidden(&ids, &pass, None).unwrap()
            };
            // The first reads the positions, the others use the known lengths.
            let looked = hidden(Mask::Columns(&counts));
            for mask in [Mask::Causal, Mask::Documents(&[length, length])] {
                let error = distance(&hidden(mask), &looked);
                assert!(error <= 1e-4, "{name} {length}: {error}");
            }
        }
    }
}
