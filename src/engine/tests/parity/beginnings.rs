//! What rows begin with alike is computed once, and their losses and gradients are those of rows computed each for itself.

use std::collections::BTreeMap;

use luthier_core::data::EncodedRow;
use luthier_engine::csrc;
use luthier_engine::methods::Adapter;
use luthier_engine::models::head::losses;
use luthier_engine::models::{Active, Model, Pass};
use luthier_engine::training::batch::{Beginnings, collate};
use tch::{Device, Kind, Tensor};

use crate::families::FAMILIES;
use crate::methods::{each, open};
use crate::support::distance;

/// Rows of several lengths: two pairs that begin alike, one of them a beginning of the other, and one that shares nothing.
/// Long enough for the windows of the tiny models.
fn rows() -> Vec<EncodedRow> {
    let row = |row: usize, ids: Vec<u32>, from: usize| EncodedRow {
        row,
        trained: (0..ids.len()).map(|place| place >= from).collect(),
        ids,
        rejected: None,
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
    beginnings: Beginnings,
    recompute: bool,
) -> (Tensor, BTreeMap<String, Tensor>) {
    for parameter in adapter.parameters().values() {
        parameter.shallow_clone().zero_grad();
    }
    let batch = collate(&rows(), beginnings, Device::Cpu).unwrap();
    assert_eq!(batch.ids.numel() as u64 == batch.tokens, beginnings == Beginnings::Each);
    let adapters = Active::All(adapter);
    let pass = Pass { positions: &batch.positions, mask: batch.mask(), adapters, noise: None };
    let found = |hidden: &Tensor| losses(model, adapters, hidden, &batch.targets).unwrap();
    let found = if recompute {
        let trace = model.hidden_recomputed(&batch.ids, &pass).unwrap();
        let found = found(&trace.hidden);
        csrc::backward(&[&found.sum(Kind::Float)], &[None]).unwrap();
        model.backward(trace, &batch.ids, &pass).unwrap();
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
fn every_family_learns_the_same_from_rows_that_share_their_beginnings() {
    for family in FAMILIES {
        let model = open(family);
        for (name, adapter) in each(&model) {
            let (apart, gradients) = learned(&model, adapter.as_ref(), Beginnings::Each, false);
            for recompute in [false, true] {
                let (once, others) = learned(&model, adapter.as_ref(), Beginnings::Once, recompute);
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
