//! The kernels that join operations on activations are tried on each GPU before they are used: what a GPU, its driver and
//! its compiler make of them shows only there.

use tch::{Device, Kind, Tensor};

use crate::csrc::{self, Comparison, Program, Through};
use crate::error::{EngineError, Result};
use crate::{ops, trials};

/// Largest relative difference that bf16 explains.
const BOUND: f64 = 2e-2;

/// Compares the kernels on a device with their definitions, and lets later forward passes use those that agree. Errors as
/// [`trials::try_on`].
pub fn try_fused_operations(device: Device) -> Result<()> {
    trials::try_program(Program::Elementwise, device, elementwise_agrees)?;
    trials::try_program(Program::Norm, device, norms_agree)?;
    trials::try_program(Program::CrossEntropy, device, cross_entropy_agrees)
}

/// Numbers from -2 to 2 that bf16 holds exactly.
fn numbers(shape: &[i64], step: f32, device: Device) -> Result<Tensor> {
    let count: i64 = shape.iter().product();
    let all: Vec<f32> = (0..count).map(|index| 2.0 * (index as f32 * step).sin()).collect();
    let x = ops::reshape(&ops::floats(&all, device)?, shape)?;
    ops::to_kind(&ops::to_kind(&x, Kind::BFloat16)?, Kind::Float)
}

/// The results of an operation on `inputs`, f32, that are given to it as `kind`, and their gradients.
fn results(
    inputs: &[Tensor],
    kind: Kind,
    operation: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let leaves =
        inputs.iter().map(|x| ops::leaf(&ops::to_kind(x, kind)?)).collect::<Result<Vec<Tensor>>>()?;
    let found = operation(&leaves)?;
    let weights = found
        .iter()
        .zip([0.19, 0.23])
        .map(|(x, step)| ops::to_kind(&numbers(&x.size(), step, x.device())?, x.kind()))
        .collect::<Result<Vec<Tensor>>>()?;
    csrc::backward(&found.iter().collect::<Vec<_>>(), &weights.iter().map(Some).collect::<Vec<_>>())?;
    let gradients = leaves.iter().map(|leaf| {
        ops::gradient(leaf)?.ok_or_else(|| EngineError::torch("a fused operation", "there is no gradient"))
    });
    found.iter().map(ops::detach).chain(gradients).collect()
}

/// Whether an operation in bf16 gives what its definition in f32 gives, and the same gradients.
fn agrees(
    inputs: &[Tensor],
    fused: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    definition: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<bool> {
    let found = results(inputs, Kind::BFloat16, fused)?;
    let expected = results(inputs, Kind::Float, definition)?;
    for (found, expected) in found.iter().zip(&expected) {
        if !trials::are_close(found, expected, BOUND)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn elementwise_agrees(device: Device) -> Result<bool> {
    let pair = [numbers(&[5, 48], 0.37, device)?, numbers(&[5, 48], 0.71, device)?];
    let swiglu = |x: &[Tensor]| Ok(vec![csrc::fused_swiglu(&x[0], &x[1])?]);
    if !agrees(&pair, &swiglu, &|x| Ok(vec![ops::swiglu(&x[0], &x[1])?]))? {
        return Ok(false);
    }
    // All dimensions of a head, and some of them.
    for half in [16, 8] {
        let x = [numbers(&[6, 3, 32], 0.53, device)?];
        let angles = [numbers(&[6, 1, half], 0.41, device)?, numbers(&[6, 1, half], 0.67, device)?];
        let rope = |x: &[Tensor], by: fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>| {
            let kind = x[0].kind();
            Ok(vec![by(&x[0], &ops::to_kind(&angles[0], kind)?, &ops::to_kind(&angles[1], kind)?)?])
        };
        if !agrees(&x, &|x| rope(x, csrc::fused_rope), &|x| rope(x, ops::rope))? {
            return Ok(false);
        }
    }
    for (equal, half) in [(true, 16), (false, 16), (false, 8)] {
        let [found, expected] = [true, false].map(|fused| cached(equal, half, fused, device));
        for (found, expected) in found?.iter().zip(&expected?) {
            if !trials::are_close(found, expected, BOUND)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Rotated queries, and a cache of two rows with 3 tokens more, 2 heads for 4, which starts at equal places or not.
fn cached(equal: bool, half: i64, fused: bool, device: Device) -> Result<[Tensor; 3]> {
    const ROWS: i64 = 2;
    const WIDTH: i64 = 3;
    const GROUPS: i64 = 2;
    const SIZE: i64 = 32;
    let some = |shape: &[i64], step: f32| ops::to_kind(&numbers(shape, step, device)?, Kind::BFloat16);
    let query = some(&[ROWS * WIDTH, 2 * GROUPS, SIZE], 0.37)?;
    let (key, value) =
        (some(&[ROWS * WIDTH, GROUPS, SIZE], 0.71)?, some(&[ROWS * WIDTH, GROUPS, SIZE], 0.29)?);
    let (cos, sin) = (some(&[ROWS * WIDTH, 1, half], 0.41)?, some(&[ROWS * WIDTH, 1, half], 0.67)?);
    let store = || ops::copy(&some(&[ROWS, GROUPS, 11, SIZE], 0.53)?);
    let (keys, values) = (store()?, store()?);
    let starts = if equal { [4, 4] } else { [0, 7] };
    if fused {
        // As a cache gives them: beside the numbers of the rows.
        let places = starts.iter().flat_map(|&start| std::iter::once(-1).chain(start..start + WIDTH));
        let places = ops::integers(&places.collect::<Vec<i64>>(), device)?;
        let places = ops::narrow(&ops::reshape(&places, &[ROWS, 1 + WIDTH])?, 1, 1, WIDTH)?;
        let places = if equal { csrc::Places::From(starts[0]) } else { csrc::Places::At(&places) };
        let tokens = csrc::NewTokens { query: &query, key: &key, value: &value };
        let query = csrc::fused_rope_into_cache(tokens, [&cos, &sin], [&keys, &values], places)?;
        return Ok([query, keys, values]);
    }
    for (store, new) in [(&keys, &ops::rope(&key, &cos, &sin)?), (&values, &value)] {
        for (row, start) in starts.into_iter().enumerate() {
            let row = row as i64;
            let own = ops::transpose(&ops::narrow(new, 0, row * WIDTH, WIDTH)?, 0, 1)?;
            let place = ops::narrow(&ops::narrow(store, 0, row, 1)?, 2, start, WIDTH)?;
            ops::copy_into(&mut { place }, &ops::reshape(&own, &[1, GROUPS, WIDTH, SIZE])?)?;
        }
    }
    Ok([ops::rope(&query, &cos, &sin)?, keys, values])
}

fn norms_agree(device: Device) -> Result<bool> {
    const EPSILON: f64 = 1e-5;
    // Less than a warp takes at once, and more than all threads of the largest block do.
    for width in [24, 528, 4104] {
        let inputs = [numbers(&[5, width], 0.37, device)?, numbers(&[5, width], 0.71, device)?];
        let weight = numbers(&[width], 0.31, device)?;
        let half = ops::to_kind(&weight, Kind::BFloat16)?;
        let single = [inputs[0].shallow_clone()];
        let alone = |x: &[Tensor]| Ok(vec![csrc::fused_add_norm(&x[0], None, &half, EPSILON)?.1]);
        if !agrees(&single, &alone, &|x| Ok(vec![ops::rms_norm(&x[0], &weight, EPSILON)?]))? {
            return Ok(false);
        }
        let joined = |x: &[Tensor]| {
            let (sum, norm) = csrc::fused_add_norm(&x[0], Some(&x[1]), &half, EPSILON)?;
            Ok(sum.into_iter().chain([norm]).collect())
        };
        let apart = |x: &[Tensor]| {
            let (sum, norm) = ops::add_rms_norm(&x[0], &x[1], &weight, EPSILON)?;
            Ok(vec![sum, norm])
        };
        if !agrees(&inputs, &joined, &apart)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn cross_entropy_agrees(device: Device) -> Result<bool> {
    // Rows that can be read eight numbers at a time, and rows that cannot; small blocks and large ones; more numbers than
    // a block takes at once.
    for vocabulary in [40, 37, 1203, 8200, 8201] {
        let ids: Vec<i64> = (0..9).map(|row| row * 1201 % vocabulary).collect();
        let ids = ops::integers(&ids, device)?;
        let inputs = [numbers(&[9, 32], 0.37, device)?];
        let weight = numbers(&[vocabulary, 32], 0.71, device)?;
        let mut counts = Vec::new();
        let mut run = |fused: bool| {
            let kind = if fused { Kind::BFloat16 } else { Kind::Float };
            let weight = ops::to_kind(&weight, kind)?;
            let head = csrc::Head { weight: &weight, bias: None, cap: None };
            let comparison = Comparison { chunk: 4, count_correct: true, through: Through::Sum, fused };
            let leaf = ops::leaf(&ops::to_kind(&inputs[0], kind)?)?;
            let found = csrc::linear_cross_entropy(&leaf, &head, &ids, comparison)?;
            csrc::backward(&[&found.sum], &[None])?;
            counts.push(ops::value(&found.correct)?);
            let gradient = ops::gradient(&leaf)?;
            Ok::<_, EngineError>([Some(ops::detach(&found.rows)?), gradient])
        };
        for (found, expected) in run(true)?.iter().zip(&run(false)?) {
            let (Some(found), Some(expected)) = (found, expected) else { return Ok(false) };
            if !trials::are_close(found, expected, BOUND)? {
                return Ok(false);
            }
        }
        if (counts[0] - counts[1]).abs() > 1.0 {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_for_cuda_give_what_their_definitions_give() {
        csrc::emulate_kernels();
        assert!(elementwise_agrees(Device::Cpu).unwrap());
        assert!(norms_agree(Device::Cpu).unwrap());
        assert!(cross_entropy_agrees(Device::Cpu).unwrap());
    }

    #[test]
    fn a_kernel_that_differs_from_its_definition_is_found() {
        let inputs = [numbers(&[5, 48], 0.37, Device::Cpu).unwrap()];
        let definition = |x: &[Tensor]| Ok(vec![ops::silu(&x[0])?]);
        let tried =
            |fused: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>| agrees(&inputs, fused, &definition).unwrap();
        assert!(tried(&definition));
        assert!(!tried(&|x| Ok(vec![ops::scale(&ops::silu(&x[0])?, 1.1)?])));
        assert!(!tried(&|x| Ok(vec![ops::scale(&ops::silu(&x[0])?, f64::NAN)?])));
        // The right result with a wrong gradient.
        let wrong_gradient = |x: &[Tensor]| {
            let right = ops::silu(&x[0])?;
            let lost = ops::subtract(&right, &ops::detach(&right)?)?;
            Ok(vec![ops::add(&right, &lost)?])
        };
        assert!(!tried(&wrong_gradient));
    }

    #[test]
    fn an_adapted_product_computes_its_gated_input_again() {
        csrc::emulate_kernels();
        let inputs = [
            numbers(&[5, 48], 0.37, Device::Cpu).unwrap(),
            numbers(&[5, 48], 0.71, Device::Cpu).unwrap(),
            numbers(&[4, 48], 0.29, Device::Cpu).unwrap(),
            numbers(&[16, 4], 0.43, Device::Cpu).unwrap(),
        ];
        // A transposed weight, which our own products for the processor do not take.
        let weight = numbers(&[48, 16], 0.61, Device::Cpu).unwrap().to_kind(Kind::BFloat16).tr();
        let product = |parts: &[Tensor], whole: bool, again: bool| {
            let [gate, up, a, b] = parts else { panic!("four inputs are given") };
            let x = csrc::fused_swiglu(gate, up)?;
            let low_rank = csrc::LowRank { a, b, scale: 0.5, gated: again.then_some([gate, up]) };
            if whole {
                return Ok(vec![csrc::adapted_linear(&x, &weight, None, low_rank)?]);
            }
            let y = ops::contiguous(&ops::transpose(&ops::linear(&x, &weight, None)?, 0, 1)?)?;
            let y = ops::transpose(&y, 0, 1)?;
            csrc::add_low_rank(&y, &x, low_rank)?;
            Ok(vec![y])
        };
        for whole in [true, false] {
            let [kept, again] = [false, true].map(|again| {
                results(&inputs, Kind::BFloat16, &|parts| product(parts, whole, again)).unwrap()
            });
            assert_eq!(kept, again, "{whole}");
            assert!(kept.iter().all(|x| ops::largest_magnitude(x).unwrap() > 0.1));
        }
    }

    /// The loss that the kernel gives for one row of logits.
    fn loss(logits: &[f32], id: i64) -> f64 {
        csrc::emulate_kernels();
        let logits = Tensor::from_slice(logits).to_kind(Kind::BFloat16);
        let zeros = |shape| Tensor::zeros(shape, (Kind::BFloat16, Device::Cpu));
        let weight = zeros([logits.size()[0], 1]);
        let head = csrc::Head { weight: &weight, bias: Some(&logits), cap: None };
        let comparison = Comparison { chunk: 1, count_correct: true, through: Through::Sum, fused: true };
        let ids = Tensor::from_slice(&[id]);
        let found = csrc::linear_cross_entropy(&zeros([1, 1]), &head, &ids, comparison).unwrap();
        ops::value(&found.sum).unwrap()
    }

    #[test]
    fn tokens_that_cannot_come_have_no_part_in_a_loss() {
        // All of a thread's numbers, and one of them.
        let mut logits = vec![0.0; 24];
        logits[..8].fill(f32::NEG_INFINITY);
        logits[20] = f32::NEG_INFINITY;
        let found = loss(&logits, 9);
        assert!((found - 15_f64.ln()).abs() < 1e-3, "{found}");
        assert!(loss(&logits, 0).is_infinite());
        assert!(loss(&[f32::NEG_INFINITY; 24], 3).is_nan());
    }

    #[test]
    fn a_token_outside_the_vocabulary_has_no_loss() {
        for id in [-1, 24, i64::MAX] {
            assert!(loss(&[0.5; 24], id).is_nan(), "{id}");
        }
    }

    #[test]
    fn logits_that_are_not_finite_give_no_loss() {
        csrc::emulate_kernels();
        for odd in [f64::NAN, f64::INFINITY] {
            let hidden = Tensor::full([2, 8], odd, (Kind::BFloat16, Device::Cpu));
            let weight = Tensor::ones([16, 8], (Kind::BFloat16, Device::Cpu));
            let head = csrc::Head { weight: &weight, bias: None, cap: None };
            let ids = Tensor::from_slice(&[0_i64, 15]);
            let comparison = Comparison { chunk: 2, count_correct: true, through: Through::Sum, fused: true };
            let found = csrc::linear_cross_entropy(&hidden, &head, &ids, comparison).unwrap();
            assert!(!ops::value(&found.sum).unwrap().is_finite(), "{odd}");
        }
    }
}
