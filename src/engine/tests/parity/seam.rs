//! Compares every function of the C++ interface with plain ATen operations: values and gradients.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use luthier_core::config::Config;
use luthier_core::runs::FailureClass;
use luthier_engine::csrc::{Comparison, CrossEntropy, FewMatrix, Head, Through};
use luthier_engine::error::EngineError;
use luthier_engine::{csrc, device, ops};
use tch::{Device, Kind, Tensor};

use crate::support::distance;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Types of the CPU kernels, and the accepted difference from plain operations, relative to the largest
/// result: sums are taken in another order, which in bf16 may change the rounding of a number.
const KINDS: [(Kind, f64); 2] = [(Kind::Float, 5e-6), (Kind::BFloat16, 8e-3)];

/// Normally distributed numbers, the same for the same seed.
fn normal(shape: &[i64], seed: u64, kind: Kind) -> Tensor {
    let count: i64 = shape.iter().product();
    let unit = |place: u64| luthier_core::random::unit(seed * 1_000_003 + place);
    let normal =
        |i: u64| (-2.0 * (1.0 - unit(2 * i)).ln()).sqrt() * (std::f64::consts::TAU * unit(2 * i + 1)).cos();
    let values: Vec<f32> = (0..count as u64).map(|i| normal(i) as f32).collect();
    Tensor::from_slice(&values).view(shape).to_kind(kind)
}

/// The same as a leaf.
fn leaf(shape: &[i64], seed: u64, kind: Kind) -> Tensor {
    normal(shape, seed, kind).set_requires_grad(true)
}

/// The same leaves again, without gradients.
fn again(leaves: &[&Tensor]) -> Vec<Tensor> {
    leaves.iter().map(|leaf| leaf.detach().copy().set_requires_grad(true)).collect()
}

/// The same values as a leaf, and a view of it that is not contiguous, for which [`ops`] uses plain
/// operations.
fn apart(x: &Tensor) -> (Tensor, Tensor) {
    let twin = x.detach().transpose(0, -1).contiguous().set_requires_grad(true);
    let view = twin.transpose(0, -1);
    assert!(!csrc::is_plain(&view));
    (twin, view)
}

/// The gradient of [`apart`]'s leaf, in the view's layout.
fn seen(twin: &Tensor) -> Tensor {
    twin.grad().transpose(0, -1)
}

/// Difference relative to the largest expected number.
fn share(found: &Tensor, expected: &Tensor) -> f64 {
    let largest = expected.to_kind(Kind::Float).abs().max().double_value(&[]);
    distance(found, expected) / largest.max(f64::MIN_POSITIVE)
}

/// Runs both backward passes with the same random gradient.
fn backward(found: &Tensor, expected: &Tensor) {
    let direction = normal(&found.size(), 99, found.kind());
    csrc::backward(&[found], &[Some(&direction)]).unwrap();
    csrc::backward(&[expected], &[Some(&direction.to_kind(expected.kind()))]).unwrap();
}

/// Compares two results and, with one random gradient, the gradients of their leaves.
fn assert_alike(name: &str, found: &Tensor, expected: &Tensor, leaves: &[(&Tensor, &Tensor)], bound: f64) {
    let error = share(found, expected);
    assert!(error <= bound, "{name}: {error}");
    backward(found, expected);
    for (place, (found, expected)) in leaves.iter().enumerate() {
        let error = share(&found.grad(), &expected.grad());
        assert!(error <= bound, "{name}: gradient {place}: {error}");
    }
}

#[test]
fn rms_norm() {
    for (kind, bound) in KINDS {
        for (rows, width) in [(3, 576), (5, 64), (2, 7), (40, 100)] {
            let (x, weight) = (leaf(&[rows, width], 1, kind), normal(&[width], 2, kind));
            let (twin, view) = apart(&x);
            let found = csrc::rms_norm(&x, &weight, 1e-5).unwrap();
            let expected = ops::rms_norm(&view, &weight, 1e-5).unwrap();
            let error = share(&found, &expected);
            assert!(error <= bound, "{kind:?} {width}: {error}");
            backward(&found, &expected);
            let error = share(&x.grad(), &seen(&twin));
            assert!(error <= bound, "{kind:?} {width}: gradient: {error}");
        }
    }
}

#[test]
fn swiglu() {
    for (kind, bound) in KINDS {
        for width in [1, 17, 48, 1536] {
            let gate = (normal(&[13, width], 1, kind) * 8.0).set_requires_grad(true);
            let up = leaf(&[13, width], 2, kind);
            let twins = again(&[&gate, &up]);
            let found = csrc::swiglu(&gate, &up).unwrap();
            let expected = twins[0].silu() * &twins[1];
            assert_alike("swiglu", &found, &expected, &[(&gate, &twins[0]), (&up, &twins[1])], bound);
        }
    }
}

#[test]
fn rope() {
    for (size, half) in [(64, 32), (16, 8), (20, 10), (80, 16), (72, 34)] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let x = leaf(&[9, 3, size], 1, kind);
            let (cos, sin) = (normal(&[9, 1, half], 2, kind), normal(&[9, 1, half], 3, kind));
            let (twin, view) = apart(&x);
            let found = csrc::rope(&x, &cos, &sin).unwrap();
            let expected = ops::rope(&view, &cos, &sin).unwrap();
            backward(&found, &expected);
            if kind == Kind::BFloat16 {
                // Both round at the same points.
                assert_eq!((found, x.grad()), (expected, seen(&twin)));
            } else {
                assert!(distance(&found, &expected) <= 1e-6);
                assert!(distance(&x.grad(), &seen(&twin)) <= 1e-6);
            }
        }
    }
}

#[test]
fn linear() {
    for (kind, bound) in KINDS {
        for (tokens, inner, outer) in
            [(1, 64, 48), (5, 100, 7), (8, 576, 192), (9, 34, 50), (65, 576, 200), (33, 1700, 20), (70, 7, 5)]
        {
            for with_bias in [false, true] {
                let leaves = [
                    leaf(&[tokens, inner], 1, kind),
                    leaf(&[outer, inner], 2, kind),
                    leaf(&[outer], 3, kind),
                ];
                let twins = again(&leaves.each_ref());
                let name = format!("linear {kind:?} {tokens} {inner} {outer} {with_bias}");
                let bias = |of: &[Tensor]| with_bias.then(|| of[2].shallow_clone());
                let found = csrc::linear(&leaves[0], &leaves[1], bias(&leaves).as_ref()).unwrap();
                let expected = twins[0].to_kind(Kind::Float).linear(
                    &twins[1].to_kind(Kind::Float),
                    bias(&twins).map(|bias| bias.to_kind(Kind::Float)).as_ref(),
                );
                let count = if with_bias { 3 } else { 2 };
                let pairs: Vec<_> = leaves.iter().zip(&twins).take(count).collect();
                assert_alike(&name, &found, &expected, &pairs, bound);
                // Without gradients, a few tokens use another kernel.
                let frozen = leaves.each_ref().map(Tensor::detach);
                let alone = csrc::linear(&frozen[0], &frozen[1], bias(&frozen).as_ref()).unwrap();
                let error = share(&alone, &expected);
                assert!(error <= bound, "{name}, frozen: {error}");
            }
        }
    }
}

#[test]
fn attention_of_documents() {
    let lengths = [300_i64, 1, 17, 130, 64];
    let total: i64 = lengths.iter().sum();
    for ((heads, groups, size), (kind, bound)) in
        [(6, 2, 64), (3, 3, 16), (4, 1, 20), (2, 1, 80)].into_iter().flat_map(|s| KINDS.map(|k| (s, k)))
    {
        let shapes = [[total, heads, size], [total, groups, size], [total, groups, size]];
        let [query, key, value] = [1, 2, 3].map(|seed| leaf(&shapes[seed as usize - 1], seed, kind));
        let twins = again(&[&query, &key, &value]);
        let scale = 1.0 / (size as f64).sqrt();
        let apart = csrc::Seen { before: &[0; 5], own: &lengths, rows: &[] };
        let found = csrc::attention(&query, &key, &value, apart, scale).unwrap();
        let parts: Vec<Vec<Tensor>> =
            twins.iter().map(|twin| twin.to_kind(Kind::Float).split_with_sizes(lengths, 0)).collect();
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
        assert_alike(&format!("attention {kind:?} {size}"), &found, &expected, &pairs, bound);
    }
}

#[test]
fn attention_of_documents_that_share_their_beginnings() {
    // The second begins like the first, the third with parts of both. The first rows of keys have no queries.
    let before = [2_i64, 72, 93];
    let own = [90_i64, 5, 70];
    let ranges = [0..2, 2..92, 0..2, 2..72, 92..97, 0..2, 2..92, 96..97, 97..167];
    let rows: Vec<i64> = ranges.into_iter().flatten().collect();
    let (queries, keys) = (165, 167);
    for ((heads, groups, size), (kind, bound)) in
        [(6, 2, 64), (3, 3, 16), (2, 1, 80)].into_iter().flat_map(|s| KINDS.map(|k| (s, k)))
    {
        let shapes = [[queries, heads, size], [keys, groups, size], [keys, groups, size]];
        let [query, key, value] = [1, 2, 3].map(|seed| leaf(&shapes[seed as usize - 1], seed, kind));
        let twins = again(&[&query, &key, &value]);
        let scale = 1.0 / (size as f64).sqrt();
        let documents = csrc::Seen { before: &before, own: &own, rows: &rows };
        let found = csrc::attention(&query, &key, &value, documents, scale).unwrap();
        let wide: Vec<Tensor> = twins.iter().map(|twin| twin.to_kind(Kind::Float)).collect();
        let (mut start, mut from, mut expected) = (0, 0, Vec::new());
        for (&before, &own) in before.iter().zip(&own) {
            let length = before + own;
            let seen = Tensor::from_slice(&rows[start..start + length as usize]);
            let head_first = |x: Tensor| x.transpose(0, 1).unsqueeze(0);
            let mask = ops::causal_mask(&[before], own, length, None, Device::Cpu).unwrap();
            let mixed = ops::attention(
                &head_first(wide[0].narrow(0, from, own)),
                &head_first(wide[1].index_select(0, &seen)),
                &head_first(wide[2].index_select(0, &seen)),
                Some(&mask),
                false,
                scale,
            );
            expected.push(mixed.unwrap().get(0).transpose(0, 1));
            start += length as usize;
            from += own;
        }
        let expected = Tensor::cat(&expected, 0).reshape([queries, heads * size]);
        let pairs = [(&query, &twins[0]), (&key, &twins[1]), (&value, &twins[2])];
        assert_alike(&format!("shared attention {kind:?} {size}"), &found, &expected, &pairs, bound);
    }
}

#[test]
fn attention_against_a_cache() {
    let lengths = [5_i64, 33, 1];
    for ((heads, groups, size), (kind, bound)) in
        [(6, 2, 64), (4, 4, 20), (2, 2, 56)].into_iter().flat_map(|s| KINDS.map(|k| (s, k)))
    {
        let query = normal(&[3, heads, size], 1, kind);
        let [keys, values] = [2, 3].map(|seed| normal(&[3, groups, 40, size], seed, kind));
        let found = csrc::attend(&query, &keys, &values, &lengths, 0.2).unwrap();
        for (row, &length) in lengths.iter().enumerate() {
            let pick = |x: &Tensor| x.narrow(0, row as i64, 1).to_kind(Kind::Float);
            let (k, v) = (pick(&keys).narrow(2, 0, length), pick(&values).narrow(2, 0, length));
            let expected = ops::attention(&pick(&query).unsqueeze(2), &k, &v, None, false, 0.2).unwrap();
            let error = share(&found.get(row as i64), &expected.reshape([heads * size]));
            assert!(error <= bound, "{kind:?} row {row}: {error}");
        }
    }
}

fn cross_entropy(
    hidden: &Tensor,
    head: &Head,
    ids: &Tensor,
    chunk: i64,
    through: Through,
) -> Result<CrossEntropy, EngineError> {
    let comparison = Comparison { chunk, count_correct: true, through, fused: false };
    csrc::linear_cross_entropy(hidden, head, ids, comparison)
}

#[test]
fn cross_entropy_with_the_head() {
    for (kind, bound) in KINDS {
        for (chunk, with_bias, cap) in
            [(1, false, None), (4, true, None), (100, false, None), (4, true, Some(1.5))]
        {
            let leaves = [leaf(&[11, 24], 1, kind), leaf(&[50, 24], 2, kind), leaf(&[50], 3, kind)];
            let ids = Tensor::from_slice(&[0_i64, 49, 7, 7, 3, 12, 30, 1, 2, 3, 48]);
            let twins = again(&leaves.each_ref());
            let [hidden, weight, bias] = &leaves;
            let head = Head { weight, bias: with_bias.then_some(bias), cap };
            let loss = cross_entropy(hidden, &head, &ids, chunk, Through::Sum).unwrap();
            let mut logits = twins[0].matmul(&twins[1].tr());
            if with_bias {
                logits += &twins[2];
            }
            if let Some(cap) = cap {
                logits = (logits / cap).tanh() * cap;
            }
            // Logits have the model's type; everything after them is f32.
            let logits = logits.to_kind(Kind::Float);
            let rows =
                logits.log_softmax(-1, Kind::Float).gather(1, &ids.unsqueeze(1), false).neg().squeeze_dim(1);
            let error = share(&loss.rows, &rows);
            assert!(error <= bound, "{kind:?} rows: {error}");
            assert_eq!(loss.correct, logits.argmax(-1, false).eq_tensor(&ids).sum(Kind::Int64));
            let part = Tensor::from(0.5_f32);
            let sum = rows.sum(Kind::Float);
            let error = share(&loss.sum, &sum);
            assert!(error <= bound, "{kind:?} sum: {error}");
            csrc::backward(&[&loss.sum], &[Some(&part)]).unwrap();
            csrc::backward(&[&sum], &[Some(&part)]).unwrap();
            for (found, expected) in leaves.iter().zip(&twins).take(if with_bias { 3 } else { 2 }) {
                let error = share(&found.grad(), &expected.grad());
                assert!(error <= bound, "{kind:?} gradient: {error}");
            }
        }
    }
}

#[test]
fn a_share_that_bf16_cannot_represent_scales_the_gradient_exactly() {
    let kind = Kind::BFloat16;
    let gradients = |share: f32| {
        let leaves = [leaf(&[11, 24], 1, kind), leaf(&[50, 24], 2, kind), leaf(&[50], 3, kind)];
        let ids = Tensor::from_slice(&[0_i64, 49, 7, 7, 3, 12, 30, 1, 2, 3, 48]);
        let head = Head { weight: &leaves[1], bias: Some(&leaves[2]), cap: None };
        let loss = cross_entropy(&leaves[0], &head, &ids, 4, Through::Sum).unwrap();
        csrc::backward(&[&loss.sum], &[Some(&Tensor::from(share))]).unwrap();
        leaves.map(|leaf| leaf.grad().to_kind(Kind::Float))
    };
    // 1 / 1.003 is halfway between two bf16 numbers; a step's count can be any number.
    let share = 1.0 / 1.003;
    for (scaled, whole) in gradients(share).iter().zip(&gradients(1.0)) {
        let expected = (whole * f64::from(share)).to_kind(kind).to_kind(Kind::Float);
        assert_eq!(scaled, &expected);
    }
}

#[test]
fn cross_entropy_with_row_weights() {
    let ids = Tensor::from_slice(&[0_i64, 49, 7, 7, 3, 12, 30, 1, 2, 3, 48]);
    let shares = normal(&[11], 5, Kind::Float);
    for (kind, bound) in [(Kind::Float, 2e-5), (Kind::BFloat16, 8e-2)] {
        for (chunk, trained_head, cap) in
            [(1, true, None), (4, true, Some(1.5)), (100, true, None), (4, false, None)]
        {
            let hidden = leaf(&[11, 24], 1, Kind::Float);
            let [weight, bias] = [normal(&[50, 24], 2, Kind::Float), normal(&[50], 3, Kind::Float)]
                .map(|x| x.set_requires_grad(trained_head));
            let twins = again(&[&hidden, &weight, &bias]);
            let (weights, biases) = (weight.to_kind(kind), bias.to_kind(kind));
            let head = Head { weight: &weights, bias: Some(&biases), cap };
            let low = hidden.to_kind(kind);
            let found = cross_entropy(&low, &head, &ids, chunk, Through::Rows).unwrap();
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
    let (hidden, weight) = (leaf(&[2, 8], 1, Kind::Float), normal(&[5, 8], 2, Kind::Float));
    let head = Head { weight: &weight, bias: None, cap: None };
    for id in [5_i64, -1] {
        let ids = Tensor::from_slice(&[0, id]);
        assert!(cross_entropy(&hidden, &head, &ids, 4, Through::Sum).is_err(), "{id}");
    }
}

#[test]
fn norm_and_clipping() {
    let gradients = [normal(&[4, 3], 1, Kind::Float), normal(&[7], 2, Kind::Float)];
    let flat = Tensor::cat(&[gradients[0].flatten(0, -1), gradients[1].shallow_clone()], 0);
    let norm = csrc::grad_norm(&gradients).unwrap();
    let expected = flat.norm().double_value(&[]);
    assert!((norm.double_value(&[]) - expected).abs() <= 1e-5);
    // The first moment after one update is a tenth of the gradient.
    let clipped = |limit: f64| -> Vec<Tensor> {
        let moments = gradients.each_ref().map(|gradient| {
            (gradient.copy(), gradient.zeros_like(), gradient.zeros_like(), Tensor::from(0.0_f32))
        });
        let rows = gradients.iter().zip(&moments).map(|(gradient, (parameter, first, second, step))| {
            let gradient = gradient.copy();
            (gradient, parameter, first, second, step)
        });
        let rows: Vec<_> = rows.collect();
        let rows: Vec<csrc::Moments> = rows
            .iter()
            .map(|(gradient, parameter, first, second, step)| csrc::Moments {
                parameter,
                gradient,
                first,
                second,
                step,
                working: None,
            })
            .collect();
        let settings =
            csrc::AdamW { learning_rate: 1e-3, betas: [0.9, 0.99], weight_decay: 0.0, epsilon: 1e-8 };
        let left_out = Tensor::zeros([], (Kind::Float, Device::Cpu));
        csrc::adamw(
            &rows,
            &settings,
            Some(csrc::Clipping { norm: &norm, limit }),
            &left_out,
            csrc::FusedUpdate::No,
        )
        .unwrap();
        moments.into_iter().map(|(_, first, ..)| first * 10.0).collect()
    };
    assert!(distance(&clipped(10.0 * expected)[1], &flat.narrow(0, 12, 7)) <= 1e-6);
    let clipped = csrc::grad_norm(&clipped(0.5)).unwrap().double_value(&[]);
    assert!((clipped - 0.5).abs() <= 1e-5, "{clipped}");
    assert_eq!(csrc::grad_norm(&[]).unwrap(), Tensor::from(0.0_f32));
}

#[test]
fn low_rank_updates() {
    let shapes = [(6, 8, 10, 3), (70, 96, 50, 16), (33, 64, 18, 1), (9, 7, 5, 2)];
    // By our own products, and by libtorch's.
    for ((kind, bound), own) in KINDS.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        for (tokens, inner, outer, rank) in shapes {
            let (y, x) = (leaf(&[tokens, outer], 1, kind), leaf(&[tokens, inner], 2, kind));
            // Factors are trained in f32 with any compute type.
            let (a, b) = (leaf(&[rank, inner], 3, Kind::Float), leaf(&[outer, rank], 4, Kind::Float));
            let twins = again(&[&y, &x, &a, &b]);
            let found = if own { &y * 1.0 } else { across(&y) };
            let low_rank = csrc::LowRank { a: &a, b: &b, scale: 0.7, gated: None };
            csrc::add_low_rank(&found, &x, low_rank).unwrap();
            let single = |x: &Tensor| x.to_kind(kind).to_kind(Kind::Float);
            let [base, input, a_twin, b_twin] = [0, 1, 2, 3].map(|place| single(&twins[place]));
            let expected = base + single(&input.matmul(&a_twin.tr())).matmul(&b_twin.tr()) * 0.7;
            let pairs = [(&y, &twins[0]), (&x, &twins[1]), (&a, &twins[2]), (&b, &twins[3])];
            assert_alike(&format!("low rank {kind:?} {tokens} {own}"), &found, &expected, &pairs, bound);
            assert_eq!((a.grad().kind(), b.grad().kind()), (Kind::Float, Kind::Float));
        }
    }
}

#[test]
fn adapted_layers_together_equal_single_ones() {
    for (kind, bound) in KINDS {
        let x = leaf(&[20, 24], 1, kind);
        let shapes = [(16, 4), (8, 2), (8, 2)];
        let weights = shapes.map(|(outer, rank)| normal(&[outer, 24], (outer + rank) as u64, kind));
        let bias = normal(&[16], 9, kind);
        let factors: Vec<[Tensor; 2]> = (0..)
            .zip(shapes)
            .map(|(layer, (outer, rank))| {
                [leaf(&[rank, 24], 20 + layer, Kind::Float), leaf(&[outer, rank], 30 + layer, Kind::Float)]
            })
            .collect();
        let twin = again(&[&x]).remove(0);
        let twins: Vec<Vec<Tensor>> = factors.iter().map(|[a, b]| again(&[a, b])).collect();
        let scales = [0.5, 0.7, 0.9];
        let layers: Vec<csrc::AdaptedLayer> = (0..3)
            .map(|layer| {
                let [a, b] = &factors[layer];
                let low_rank = csrc::LowRank { a, b, scale: scales[layer], gated: None };
                let bias = (layer == 0).then_some(&bias);
                csrc::AdaptedLayer { weight: &weights[layer], bias, low_rank }
            })
            .collect();
        let found = Tensor::cat(&csrc::adapted_linears(&x, &layers).unwrap(), 1);
        let single: Vec<Tensor> = (0..3)
            .map(|layer| {
                let [a, b] = twins[layer].as_slice() else { panic!("two factors") };
                let low_rank = csrc::LowRank { a, b, scale: scales[layer], gated: None };
                csrc::adapted_linear(&twin, &weights[layer], layers[layer].bias, low_rank).unwrap()
            })
            .collect();
        let mut pairs = vec![(&x, &twin)];
        for ([a, b], twins) in factors.iter().zip(&twins) {
            pairs.extend([(a, &twins[0]), (b, &twins[1])]);
        }
        assert_alike(
            &format!("adapted layers {kind:?}"),
            &found,
            &Tensor::cat(&single, 1),
            &pairs,
            2.0 * bound,
        );
    }
}

#[test]
fn products_of_few_tokens_together_equal_single_ones() {
    for (kind, _) in KINDS {
        for tokens in [1, 3, 8] {
            let x = normal(&[tokens, 200], 1, kind);
            let matrices = [(700, 2), (3, 3), (64, 4)].map(|(rows, seed)| normal(&[rows, 200], seed, kind));
            let together = csrc::few_products(&x, &matrices.each_ref().map(FewMatrix::Dense)).unwrap();
            for (found, matrix) in together.iter().zip(&matrices) {
                assert_eq!(found, &csrc::linear(&x, matrix, None).unwrap(), "{kind:?} {tokens}");
            }
            let narrow = normal(&[5, 100], 5, kind);
            assert!(csrc::few_products(&x, &[FewMatrix::Dense(&narrow)]).is_err());
        }
    }
}

/// The same matrix with its columns one after another in memory, which our own products do not take.
fn across(x: &Tensor) -> Tensor {
    x.tr().contiguous().tr()
}

#[test]
fn linear_layers_with_bias_and_low_rank_terms() {
    let shapes = [(9, 8, 10, 3), (70, 96, 50, 16), (33, 64, 18, 1), (12, 7, 5, 2), (40, 1602, 130, 8)];
    for (kind, bound) in KINDS {
        for (tokens, inner, outer, rank) in shapes {
            for (with_bias, own) in [(false, true), (true, true), (false, false), (true, false)] {
                let (x, bias) = (leaf(&[tokens, inner], 2, kind), leaf(&[outer], 5, kind));
                let weight = normal(&[outer, inner], 1, kind) / (inner as f64).sqrt();
                let weight = if own { weight } else { across(&weight) };
                let (a, b) = (leaf(&[rank, inner], 3, Kind::Float), leaf(&[outer, rank], 4, Kind::Float));
                let twins = again(&[&x, &bias, &a, &b]);
                let low_rank = csrc::LowRank { a: &a, b: &b, scale: 0.5, gated: None };
                let shift = with_bias.then_some(&bias);
                let found = csrc::adapted_linear(&x, &weight, shift, low_rank).unwrap();
                let single = |x: &Tensor| x.to_kind(kind).to_kind(Kind::Float);
                let [input, shift, a_twin, b_twin] = [0, 1, 2, 3].map(|place| single(&twins[place]));
                let low = single(&input.matmul(&a_twin.tr())).matmul(&b_twin.tr());
                let expected = input.matmul(&single(&weight).tr()) + low * 0.5;
                let mut pairs = vec![(&x, &twins[0]), (&a, &twins[2]), (&b, &twins[3])];
                let expected = if with_bias {
                    pairs.push((&bias, &twins[1]));
                    expected + shift
                } else {
                    expected
                };
                assert_alike(&format!("adapted {kind:?} {tokens} {own}"), &found, &expected, &pairs, bound);
                let alone =
                    tch::no_grad(|| csrc::adapted_linear(&x, &weight, with_bias.then_some(&bias), low_rank));
                assert_eq!(alone.unwrap(), found);
            }
        }
    }
}

#[test]
fn parallel_work_runs_once_per_index_and_a_panic_is_an_error() {
    let done: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
    csrc::parallel(done.len(), &|index| {
        done[index].fetch_add(1, Ordering::Relaxed);
    })
    .unwrap();
    assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1));
    csrc::parallel(0, &|_| panic!("there is nothing to do")).unwrap();
    let error = csrc::parallel(8, &|index| assert_ne!(index, 5)).unwrap_err();
    assert!(error.to_string().contains("panic"), "{error}");
}

#[test]
fn a_remade_weight_is_made_for_each_use_and_freed() {
    let (x, weight) = (leaf(&[5, 8], 1, Kind::Float), leaf(&[3, 8], 2, Kind::Float).detach());
    let twin = again(&[&x]).remove(0);
    let made = Arc::new(AtomicUsize::new(0));
    let (counter, kept) = (Arc::clone(&made), weight.shallow_clone());
    let found = csrc::remade_linear(&x, move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(kept.shallow_clone())
    })
    .unwrap();
    assert_eq!(made.load(Ordering::Relaxed), 1);
    assert_alike("remade", &found, &twin.matmul(&weight.tr()), &[(&x, &twin)], 1e-6);
    assert_eq!(made.load(Ordering::Relaxed), 2);
    assert_eq!(Arc::strong_count(&made), 2);
    drop(found);
    assert_eq!(Arc::strong_count(&made), 1, "the weight's closure outlived its graph");
}

#[test]
fn a_weight_that_cannot_be_made_keeps_its_error_class() {
    let x = leaf(&[5, 8], 1, Kind::Float);
    let full = || EngineError::torch("decoding", "CUDA out of memory. Tried to allocate 2.00 GiB.");
    let error = csrc::remade_linear(&x, move || Err(full())).unwrap_err();
    assert_eq!(error.class(), FailureClass::Oom, "{error}");
    let error = csrc::remade_linear(&x, || panic!("no weight")).unwrap_err();
    assert!(error.to_string().contains("panic"), "{error}");
    // Also in the backward pass, where C++ calls it.
    let first = AtomicUsize::new(0);
    let y = csrc::remade_linear(&x, move || match first.fetch_add(1, Ordering::Relaxed) {
        0 => Ok(Tensor::zeros([3, 8], CPU)),
        _ => Err(full()),
    })
    .unwrap();
    let error = csrc::backward(&[&y], &[Some(&Tensor::zeros([5, 3], CPU))]).unwrap_err();
    assert_eq!(error.class(), FailureClass::Oom, "{error}");
}

#[test]
fn errors_of_the_interface_say_what_failed() {
    let error = csrc::rms_norm(&Tensor::zeros([2, 4], CPU), &Tensor::zeros([3], CPU), 1e-5).unwrap_err();
    assert!(error.to_string().contains("rms_norm"), "{error}");
    let error = csrc::attention(
        &Tensor::zeros([4, 2, 8], CPU),
        &Tensor::zeros([4, 3, 8], CPU),
        &Tensor::zeros([4, 3, 8], CPU),
        csrc::Seen { before: &[0], own: &[4], rows: &[] },
        1.0,
    );
    assert!(error.is_err());
    let x = Tensor::zeros([4, 2, 8], CPU);
    let refused = |before: &[i64], own: &[i64], rows: &[i64]| {
        csrc::attention(&x, &x, &x, csrc::Seen { before, own, rows }, 1.0).is_err()
    };
    assert!(refused(&[0], &[3], &[]));
    assert!(refused(&[0, 1], &[3, 1], &[0, 1, 2, 0]));
    assert!(refused(&[0, 1], &[3, 1], &[0, 1, 2, 0, 4]));
    assert!(refused(&[0, 1], &[3, 1], &[0, 1, 2, -1, 3]));
    assert!(refused(&[0, i64::MAX], &[3, 1], &[0, 1, 2, 0, 3]));
    assert!(refused(&[0], &[3, 1], &[0, 1, 2, 0, 3]));
    assert!(!refused(&[0, 1], &[3, 1], &[0, 1, 2, 0, 3]));
}

/// Runs tests of this program in a new process, which may change process-wide settings.
fn elsewhere(tests: &[&str], variable: (&str, &str)) -> (bool, String) {
    let outcome = Command::new(std::env::current_exe().unwrap())
        .args(tests)
        .env(variable.0, variable.1)
        .output()
        .unwrap();
    (outcome.status.success(), String::from_utf8_lossy(&outcome.stdout).into_owned())
}

#[test]
fn flags_hold_for_the_process_and_can_be_taken_back() {
    const ALONE: &str = "LUTHIER_TEST_FLAGS";
    if std::env::var_os(ALONE).is_none() {
        let (passed, output) = elsewhere(&["seam::flags_hold"], (ALONE, "1"));
        assert!(passed && output.contains("1 passed"), "{output}");
        return;
    }
    // Which of two values is written to one place depends on the order, so in deterministic mode libtorch
    // refuses it.
    let twice = || {
        let index = Tensor::from_slice(&[0_i64, 0]);
        Tensor::zeros([2], CPU).f_put_(&index, &Tensor::from_slice(&[1.0_f32, 2.0]), false)
    };
    let prepare = |setting: &str| {
        let set = ["model.path=m", "data.train=t", setting].map(str::to_owned);
        let config = Config::parse("", Path::new("luthier.toml"), &set).unwrap();
        device::prepare(&config, Device::Cuda(0)).unwrap();
    };
    assert!(twice().is_ok());
    prepare("train.deterministic=true");
    assert!(twice().unwrap_err().to_string().contains("deterministic"));
    prepare("train.deterministic=false");
    assert!(twice().is_ok());
    // TF32 is a GPU setting: results of a CPU stay exact.
    let (a, b) = (normal(&[64, 64], 1, Kind::Float), normal(&[64, 64], 2, Kind::Float));
    let exact = a.matmul(&b);
    assert!(!csrc::tf32().unwrap());
    prepare("model.tf32=true");
    assert!(csrc::tf32().unwrap());
    assert!(distance(&a.matmul(&b), &exact) <= 1e-5);
    prepare("model.tf32=false");
    assert!(!csrc::tf32().unwrap());
    assert_eq!(a.matmul(&b), exact);
}

#[test]
fn events_measure_the_time_on_a_device() {
    let first = csrc::Event::record(Device::Cpu).unwrap();
    let since = std::time::Instant::now();
    drop(normal(&[300, 300], 1, Kind::Float).matmul(&normal(&[300, 300], 2, Kind::Float)));
    let took = since.elapsed().as_secs_f64();
    let second = csrc::Event::record(Device::Cpu).unwrap();
    assert!(second.seconds_since(&first).unwrap() >= took);
    // Without such a device there is an error, not a crash.
    if !tch::Cuda::is_available() {
        assert!(csrc::Event::record(Device::Cuda(0)).is_err());
        assert!(csrc::upload(&Tensor::zeros([2], CPU), 0).is_err());
        assert!(csrc::device_memory(0).is_err());
    }
}

#[test]
fn every_instruction_set_passes_the_same_tests() {
    const CHOICE: &str = "LUTHIER_INSTRUCTIONS";
    if std::env::var_os(CHOICE).is_some() {
        return;
    }
    for instructions in ["base", "avx2", "avx512"] {
        let tests = ["seam::", "models::every_family", "sample_model::greedy"];
        let (passed, output) = elsewhere(&tests, (CHOICE, instructions));
        assert!(passed && output.contains("seam::swiglu ... ok"), "{instructions}: {output}");
    }
}
