//! Every function of the C++ seam against plain ATen operations, values and gradients.

use std::process::Command;

use luthier_engine::csrc::{Head, Through};
use luthier_engine::{csrc, ops};
use tch::{Device, Kind, Tensor};

use crate::support::distance;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// A leaf of normal numbers; the same for the same seed.
fn leaf(shape: &[i64], seed: u64) -> Tensor {
    let count: i64 = shape.iter().product();
    let unit = |place: u64| luthier_engine::random::unit(seed * 1_000_003 + place);
    let normal =
        |i: u64| (-2.0 * (1.0 - unit(2 * i)).ln()).sqrt() * (std::f64::consts::TAU * unit(2 * i + 1)).cos();
    let values: Vec<f32> = (0..count as u64).map(|i| normal(i) as f32).collect();
    Tensor::from_slice(&values).view(shape).set_requires_grad(true)
}

/// The same leaves again, without gradients yet.
fn again(leaves: &[&Tensor]) -> Vec<Tensor> {
    leaves.iter().map(|leaf| leaf.detach().copy().set_requires_grad(true)).collect()
}

/// Compares two results, and the gradients that one random direction sends through them.
fn assert_alike(name: &str, found: &Tensor, expected: &Tensor, leaves: &[(&Tensor, &Tensor)], bound: f64) {
    let error = distance(found, expected);
    assert!(error <= bound, "{name}: {error}");
    let direction = leaf(&found.size(), 99).detach();
    csrc::backward(&[found], &[Some(&direction)]).unwrap();
    (expected * &direction).sum(Kind::Float).backward();
    for (place, (found, expected)) in leaves.iter().enumerate() {
        let error = distance(&found.grad(), &expected.grad());
        assert!(error <= bound, "{name}: gradient {place}: {error}");
    }
}

#[test]
fn rms_norm() {
    for (rows, width) in [(3, 576), (5, 64), (2, 7), (40, 100)] {
        let (x, weight) = (leaf(&[rows, width], 1), leaf(&[width], 2).detach());
        let twin = again(&[&x]).remove(0);
        let found = csrc::rms_norm(&x, &weight, 1e-5).unwrap();
        let expected = twin.rms_norm([width], Some(&weight), 1e-5);
        assert_alike("rms_norm", &found, &expected, &[(&x, &twin)], 5e-6);
    }
}

#[test]
fn swiglu() {
    for width in [1, 17, 48, 1536] {
        let (gate, up) = (leaf(&[13, width], 1), leaf(&[13, width], 2));
        let gate = (gate * 8.0).detach().set_requires_grad(true);
        let twins = again(&[&gate, &up]);
        let found = csrc::swiglu(&gate, &up).unwrap();
        let expected = twins[0].silu() * &twins[1];
        assert_alike("swiglu", &found, &expected, &[(&gate, &twins[0]), (&up, &twins[1])], 2e-5);
    }
}

#[test]
fn rope() {
    for (size, half) in [(64, 32), (16, 8), (20, 10), (80, 16)] {
        let x = leaf(&[9, 3, size], 1);
        let (cos, sin) = (leaf(&[9, 1, half], 2).detach(), leaf(&[9, 1, half], 3).detach());
        // What does not lie row after row takes the plain path.
        let twin = leaf(&[3, 9, size], 1);
        tch::no_grad(|| twin.shallow_clone().copy_(&x.transpose(0, 1)));
        let found = csrc::rope(&x, &cos, &sin).unwrap();
        let expected = ops::rope(&twin.transpose(0, 1), &cos, &sin).unwrap();
        let error = distance(&found, &expected);
        assert!(error <= 1e-6, "{error}");
        let direction = leaf(&[9, 3, size], 99).detach();
        csrc::backward(&[&found], &[Some(&direction)]).unwrap();
        (expected * &direction).sum(Kind::Float).backward();
        let error = distance(&x.grad(), &twin.grad().transpose(0, 1));
        assert!(error <= 1e-6, "{error}");
    }
}

#[test]
fn attention_of_documents() {
    let lengths = [300_i64, 1, 17, 130, 64];
    let total: i64 = lengths.iter().sum();
    for (heads, groups, size) in [(6, 2, 64), (3, 3, 16), (4, 1, 20)] {
        let shapes = [[total, heads, size], [total, groups, size], [total, groups, size]];
        let [query, key, value] = [1, 2, 3].map(|seed| leaf(&shapes[seed as usize - 1], seed));
        let twins = again(&[&query, &key, &value]);
        let scale = 1.0 / (size as f64).sqrt();
        let found = csrc::attention(&query, &key, &value, &lengths, scale).unwrap();
        let parts: Vec<Vec<Tensor>> = twins.iter().map(|twin| twin.split_with_sizes(lengths, 0)).collect();
        let expected: Vec<Tensor> = (0..lengths.len())
            .map(|document| {
                let part = |which: usize| parts[which][document].transpose(0, 1).unsqueeze(0);
                ops::attention(&part(0), &part(1), &part(2), None, true, scale)
                    .unwrap()
                    .get(0)
                    .transpose(0, 1)
            })
            .collect();
        let expected = Tensor::cat(&expected, 0).reshape([total, heads * size]);
        let pairs = [(&query, &twins[0]), (&key, &twins[1]), (&value, &twins[2])];
        assert_alike("attention", &found, &expected, &pairs, 2e-5);
    }
}

#[test]
fn attention_against_a_cache() {
    let lengths = [5_i64, 33, 1];
    for (heads, groups, size) in [(6, 2, 64), (4, 4, 20)] {
        let query = leaf(&[3, heads, size], 1).detach();
        let [keys, values] = [2, 3].map(|seed| leaf(&[3, groups, 40, size], seed).detach());
        let found = csrc::attend(&query, &keys, &values, &lengths, 0.2).unwrap();
        for (row, &length) in lengths.iter().enumerate() {
            let pick = |x: &Tensor| x.narrow(0, row as i64, 1);
            let (k, v) = (pick(&keys).narrow(2, 0, length), pick(&values).narrow(2, 0, length));
            let expected = ops::attention(&pick(&query).unsqueeze(2), &k, &v, None, false, 0.2).unwrap();
            let error = distance(&found.get(row as i64), &expected.reshape([heads * size]));
            assert!(error <= 1e-5, "row {row}: {error}");
        }
    }
}

#[test]
fn cross_entropy_with_the_head() {
    for (kind, bound) in [(Kind::Float, 2e-5), (Kind::BFloat16, 8e-2)] {
        for (chunk, with_bias, cap) in
            [(1, false, None), (4, true, None), (100, false, None), (4, true, Some(1.5))]
        {
            let (hidden, weight, bias) = (leaf(&[11, 24], 1), leaf(&[50, 24], 2), leaf(&[50], 3));
            let ids = Tensor::from_slice(&[0_i64, 49, 7, 7, 3, 12, 30, 1, 2, 3, 48]);
            let twins = again(&[&hidden, &weight, &bias]);
            let (weights, biases) = (weight.to_kind(kind), bias.to_kind(kind));
            let head = Head { weight: &weights, bias: with_bias.then_some(&biases), cap };
            let loss =
                csrc::linear_cross_entropy(&hidden.to_kind(kind), &head, &ids, chunk, true, Through::Sum)
                    .unwrap();
            let mut logits = twins[0].matmul(&twins[1].tr());
            if with_bias {
                logits = logits + &twins[2];
            }
            if let Some(cap) = cap {
                logits = (logits / cap).tanh() * cap;
            }
            let rows =
                logits.log_softmax(-1, Kind::Float).gather(1, &ids.unsqueeze(1), false).neg().squeeze_dim(1);
            assert!(distance(&loss.rows, &rows) <= bound, "rows");
            if kind == Kind::Float {
                let correct = logits.argmax(-1, false).eq_tensor(&ids).sum(Kind::Int64);
                assert_eq!(loss.correct, correct);
            }
            let share = Tensor::from(0.5_f32);
            let relative =
                distance(&loss.sum, &rows.sum(Kind::Float)) / rows.sum(Kind::Float).double_value(&[]);
            assert!(relative <= bound, "sum: {relative}");
            csrc::backward(&[&loss.sum], &[Some(&share)]).unwrap();
            (rows.sum(Kind::Float) * 0.5).backward();
            let trained = [(&hidden, &twins[0]), (&weight, &twins[1]), (&bias, &twins[2])];
            for (found, expected) in trained.iter().take(if with_bias { 3 } else { 2 }) {
                let error = distance(&found.grad(), &expected.grad());
                assert!(error <= bound, "{kind:?} gradient: {error}");
            }
        }
    }
}

#[test]
fn cross_entropy_whose_rows_weigh_differently() {
    let ids = Tensor::from_slice(&[0_i64, 49, 7, 7, 3, 12, 30, 1, 2, 3, 48]);
    let shares = leaf(&[11], 5).detach();
    for (kind, bound) in [(Kind::Float, 2e-5), (Kind::BFloat16, 8e-2)] {
        for (chunk, trained_head, cap) in
            [(1, true, None), (4, true, Some(1.5)), (100, true, None), (4, false, None)]
        {
            let hidden = leaf(&[11, 24], 1);
            let [weight, bias] =
                [leaf(&[50, 24], 2), leaf(&[50], 3)].map(|x| x.set_requires_grad(trained_head));
            let twins = again(&[&hidden, &weight, &bias]);
            let (weights, biases) = (weight.to_kind(kind), bias.to_kind(kind));
            let head = Head { weight: &weights, bias: Some(&biases), cap };
            let low = hidden.to_kind(kind);
            let found = csrc::linear_cross_entropy(&low, &head, &ids, chunk, false, Through::Rows).unwrap();
            assert!(found.rows.requires_grad() && !found.sum.requires_grad());
            let mut logits = twins[0].matmul(&twins[1].tr()) + &twins[2];
            if let Some(cap) = cap {
                logits = (logits / cap).tanh() * cap;
            }
            let rows =
                logits.log_softmax(-1, Kind::Float).gather(1, &ids.unsqueeze(1), false).neg().squeeze_dim(1);
            assert!(distance(&found.rows, &rows) <= bound, "rows");
            csrc::backward(&[&found.rows], &[Some(&shares)]).unwrap();
            (rows * &shares).sum(Kind::Float).backward();
            for (found, expected) in [&hidden, &weight, &bias].into_iter().zip(&twins) {
                if found.requires_grad() {
                    let error = distance(&found.grad(), &expected.grad());
                    assert!(error <= bound, "{kind:?} gradient, {chunk} rows at once: {error}");
                }
            }
        }
    }
}

#[test]
fn cross_entropy_of_a_token_beyond_the_vocabulary_is_an_error() {
    let (hidden, weight) = (leaf(&[2, 8], 1), leaf(&[5, 8], 2).detach());
    let head = Head { weight: &weight, bias: None, cap: None };
    for id in [5_i64, -1] {
        let ids = Tensor::from_slice(&[0, id]);
        assert!(csrc::linear_cross_entropy(&hidden, &head, &ids, 4, false, Through::Sum).is_err(), "{id}");
    }
}

#[test]
fn norm_and_clipping() {
    let gradients = [leaf(&[4, 3], 1).detach(), leaf(&[7], 2).detach()];
    let flat = Tensor::cat(&[gradients[0].flatten(0, -1), gradients[1].shallow_clone()], 0);
    let norm = csrc::grad_norm(&gradients).unwrap();
    let expected = flat.norm().double_value(&[]);
    assert!((norm.double_value(&[]) - expected).abs() <= 1e-5);
    csrc::clip(&gradients, &norm, 10.0 * expected).unwrap();
    assert_eq!(gradients[1], flat.narrow(0, 12, 7));
    csrc::clip(&gradients, &norm, 0.5).unwrap();
    let clipped = csrc::grad_norm(&gradients).unwrap().double_value(&[]);
    assert!((clipped - 0.5).abs() <= 1e-5, "{clipped}");
    assert_eq!(csrc::grad_norm(&[]).unwrap(), Tensor::from(0.0_f32));
}

#[test]
fn low_rank_updates() {
    let (y, x) = (leaf(&[6, 10], 1), leaf(&[6, 8], 2));
    let (a, b) = (leaf(&[3, 8], 3), leaf(&[10, 3], 4));
    let twins = again(&[&y, &x, &a, &b]);
    let found = &y * 1.0;
    csrc::add_low_rank(&found, &x, &a, &b, 0.7).unwrap();
    let expected = &twins[0] + twins[1].matmul(&twins[2].tr()).matmul(&twins[3].tr()) * 0.7;
    let pairs = [(&y, &twins[0]), (&x, &twins[1]), (&a, &twins[2]), (&b, &twins[3])];
    assert_alike("low rank", &found, &expected, &pairs, 1e-5);
}

#[test]
fn errors_of_the_seam_say_what_failed() {
    let error = csrc::rms_norm(&Tensor::zeros([2, 4], CPU), &Tensor::zeros([3], CPU), 1e-5).unwrap_err();
    assert!(error.to_string().contains("rms_norm"), "{error}");
    let error = csrc::attention(
        &Tensor::zeros([4, 2, 8], CPU),
        &Tensor::zeros([4, 3, 8], CPU),
        &Tensor::zeros([4, 3, 8], CPU),
        &[4],
        1.0,
    );
    assert!(error.is_err());
}

#[test]
fn every_instruction_set_of_this_machine_computes_the_same() {
    const CHOICE: &str = "LUTHIER_INSTRUCTIONS";
    if std::env::var_os(CHOICE).is_some() {
        return;
    }
    for instructions in ["base", "avx2"] {
        let outcome = Command::new(std::env::current_exe().unwrap())
            .args(["seam::", "tiny::logits", "sample_model::greedy"])
            .env(CHOICE, instructions)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&outcome.stdout);
        assert!(
            outcome.status.success() && output.contains("seam::swiglu ... ok"),
            "{instructions}: {output}"
        );
    }
}
