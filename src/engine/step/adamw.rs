//! AdamW (arXiv 1711.05101, algorithm 2) over tensors we own, so that its state can be saved and restored.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::csrc::{self, Clipping, FusedUpdate, Moments, Program};
use crate::error::{EngineError, Result};
use crate::layers::{Parameters, WorkingCopies, WorkingCopy};
use crate::{ops, trials};

/// Added to the root of the second moment, as in PyTorch and transformers.
pub const EPSILON: f64 = 1e-8;

/// Running moments of every trained parameter, f32, on the parameter's device.
#[derive(Debug)]
pub struct AdamW {
    slots: BTreeMap<String, Slot>,
    updates: u64,
}

#[derive(Debug)]
struct Slot {
    first: Tensor,
    second: Tensor,
    /// Updates made, a 0-dimensional f32 tensor as the fused update expects.
    step: Tensor,
}

impl AdamW {
    /// Zero moments for `parameters`.
    pub fn new(parameters: &Parameters) -> Result<Self> {
        let slots = parameters.iter().map(|(name, parameter)| {
            let zeros = || ops::zeros(&parameter.size(), Kind::Float, parameter.device());
            let step = ops::zeros(&[], Kind::Float, parameter.device())?;
            Ok((name.clone(), Slot { first: zeros()?, second: zeros()?, step }))
        });
        Ok(Self { slots: slots.collect::<Result<_>>()?, updates: 0 })
    }

    /// Updates made so far, without skipped steps.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One update of `parameters` in place, and of their copies in `working`. If `left_out`, a 0-dimensional
    /// f32 tensor on their device, is 1, nothing changes. `gradients` are in the order of `parameters` and may
    /// be overwritten. The caller reports an update that was made to [`AdamW::count_update`].
    pub fn update(
        &self,
        parameters: &Parameters,
        working: Option<&WorkingCopies>,
        gradients: &[Tensor],
        settings: &csrc::AdamW,
        clipping: Option<Clipping>,
        left_out: &Tensor,
    ) -> Result<()> {
        if parameters.len() != gradients.len() || !parameters.keys().eq(self.slots.keys()) {
            return Err(EngineError::torch("adamw", "parameters, gradients and moments do not match"));
        }
        let rows: Vec<Moments> = parameters
            .iter()
            .zip(gradients)
            .zip(self.slots.values())
            .map(|(((name, parameter), gradient), slot)| Moments {
                parameter,
                gradient,
                first: &slot.first,
                second: &slot.second,
                step: &slot.step,
                working: working.and_then(|working| working.get(name)).map(WorkingCopy::values),
            })
            .collect();
        let has = csrc::has_program(Program::AdamW, left_out.device());
        let fused = if has { FusedUpdate::Possible } else { FusedUpdate::No };
        csrc::adamw(&rows, settings, clipping, left_out, fused)
    }

    /// Counts an update that was made.
    pub fn count_update(&mut self) {
        self.updates += 1;
    }

    /// The moments by the names that they are saved under: `first.NAME` and `second.NAME`. The tensors are
    /// the optimizer's own, not copies.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let named = |(name, slot): (&String, &Slot)| {
            [
                (format!("first.{name}"), slot.first.shallow_clone()),
                (format!("second.{name}"), slot.second.shallow_clone()),
            ]
        };
        self.slots.iter().flat_map(named).collect()
    }

    /// Sets every moment and the number of updates to what [`AdamW::tensors`] returned. All mismatches are
    /// reported at once, and then nothing has changed.
    pub fn restore(&mut self, tensors: &BTreeMap<String, Tensor>, updates: u64) -> Result<()> {
        let expected = self.tensors();
        let mut problems: Vec<String> = Vec::new();
        for (name, own) in &expected {
            match tensors.get(name) {
                None => problems.push(format!("{name} is missing")),
                Some(found) if found.size() != own.size() || found.kind() != Kind::Float => {
                    problems.push(format!(
                        "{name} is {:?} {:?} instead of Float {:?}",
                        found.kind(),
                        found.size(),
                        own.size()
                    ));
                }
                Some(_) => {}
            }
        }
        problems.extend(
            tensors
                .keys()
                .filter(|name| !expected.contains_key(*name))
                .map(|name| format!("{name} is not expected")),
        );
        if !problems.is_empty() {
            return Err(EngineError::Config(format!(
                "the optimizer's state does not fit: {}",
                problems.join("; ")
            )));
        }
        for (name, mut own) in expected {
            if let Some(saved) = tensors.get(&name) {
                ops::copy_into(&mut own, saved)?;
            }
        }
        for slot in self.slots.values_mut() {
            let made = ops::floats(&[updates as f32], slot.step.device())?;
            ops::copy_into(&mut slot.step, &ops::reshape(&made, &[])?)?;
        }
        self.updates = updates;
        Ok(())
    }
}

/// Compares the kernel for parameters with working copies with its definition on a device, and lets later updates use it if
/// they agree. Errors as [`trials::try_on`].
pub fn try_fused_update(device: Device) -> Result<()> {
    trials::try_program(Program::AdamW, device, fused_update_agrees)
}

fn fused_update_agrees(device: Device) -> Result<bool> {
    /// Largest relative difference that the order of roundings explains, in f32 and in bf16.
    const BOUNDS: [f64; 4] = [1e-5, 1e-5, 1e-5, 1e-2];
    const COUNT: i64 = 8 * 1031;
    let settings =
        csrc::AdamW { learning_rate: 0.01, betas: [0.9, 0.999], weight_decay: 0.1, epsilon: EPSILON };
    let numbers = |step: f32| {
        let all: Vec<f32> = (0..COUNT).map(|index| (index as f32 * step).sin()).collect();
        ops::floats(&all, device)
    };
    let scalar = |value: f32| ops::reshape(&ops::floats(&[value], device)?, &[]);
    let (norm, in_all, in_none) = (scalar(4.0)?, scalar(0.0)?, scalar(1.0)?);
    let run = |fused: FusedUpdate, kind: Kind, limit: Option<f64>| -> Result<[Tensor; 4]> {
        let parameter = numbers(0.37)?;
        let zeros = || ops::zeros(&[COUNT], Kind::Float, device);
        let (first, second) = (zeros()?, zeros()?);
        let (working, step) = (ops::copy(&ops::to_kind(&parameter, Kind::BFloat16)?)?, scalar(0.0)?);
        // The last changes nothing.
        for (number, left_out) in [0.71, 0.53, 0.29].into_iter().zip([&in_all, &in_all, &in_none]) {
            let gradient = ops::copy(&ops::to_kind(&numbers(number)?, kind)?)?;
            let row = Moments {
                parameter: &parameter,
                gradient: &gradient,
                first: &first,
                second: &second,
                step: &step,
                working: Some(&working),
            };
            let clipping = limit.map(|limit| Clipping { norm: &norm, limit });
            csrc::adamw(&[row], &settings, clipping, left_out, fused)?;
        }
        Ok([parameter, first, second, working])
    };
    for kind in [Kind::BFloat16, Kind::Float] {
        for limit in [None, Some(1.0)] {
            let (found, expected) =
                (run(FusedUpdate::Always, kind, limit)?, run(FusedUpdate::No, kind, limit)?);
            for ((found, expected), bound) in found.iter().zip(&expected).zip(BOUNDS) {
                let distance = ops::distance(found, expected)? / ops::largest_magnitude(expected)?;
                if !(0.0..=bound).contains(&distance) {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_for_cuda_makes_the_same_update() {
        csrc::emulate_kernels();
        assert!(fused_update_agrees(Device::Cpu).unwrap());
    }

    const SETTINGS: csrc::AdamW =
        csrc::AdamW { learning_rate: 0.05, betas: [0.9, 0.99], weight_decay: 0.1, epsilon: EPSILON };

    fn parameters() -> Parameters {
        let ramp = |count: i64| Tensor::arange(count, (Kind::Float, Device::Cpu)) / 10.0 - 0.3;
        [("a".to_owned(), ramp(7)), ("b".to_owned(), ramp(12).reshape([3, 4]))].into()
    }

    fn gradients(step: i64) -> Vec<Tensor> {
        parameters().values().map(|parameter| (parameter * step).sin()).collect()
    }

    fn update(optimizer: &mut AdamW, parameters: &Parameters, step: i64) {
        let left_out = ops::zeros(&[], Kind::Float, Device::Cpu).unwrap();
        optimizer.update(parameters, None, &gradients(step), &SETTINGS, None, &left_out).unwrap();
        optimizer.count_update();
    }

    /// The paper's algorithm, line by line, in f64.
    fn plain(steps: i64) -> Vec<Vec<f64>> {
        let [beta1, beta2] = SETTINGS.betas;
        parameters()
            .into_values()
            .enumerate()
            .map(|(index, parameter)| {
                let mut theta = parameter.to_kind(Kind::Double);
                let (mut m, mut v) = (theta.zeros_like(), theta.zeros_like());
                for t in 1..=steps {
                    let g = gradients(t)[index].to_kind(Kind::Double);
                    m = m * beta1 + &g * (1.0 - beta1);
                    v = v * beta2 + &g * &g * (1.0 - beta2);
                    let m_hat = &m / (1.0 - beta1.powi(t as i32));
                    let v_hat = &v / (1.0 - beta2.powi(t as i32));
                    let decayed = &theta * (1.0 - SETTINGS.learning_rate * SETTINGS.weight_decay);
                    theta = decayed - SETTINGS.learning_rate * m_hat / (v_hat.sqrt() + EPSILON);
                }
                Vec::<f64>::try_from(theta.reshape([-1])).unwrap()
            })
            .collect()
    }

    fn values(parameters: &Parameters) -> Vec<Vec<f32>> {
        parameters.values().map(|parameter| ops::to_floats(parameter).unwrap()).collect()
    }

    #[test]
    fn ten_fused_updates_equal_the_papers() {
        let parameters = parameters();
        let mut optimizer = AdamW::new(&parameters).unwrap();
        for step in 1..=10 {
            update(&mut optimizer, &parameters, step);
        }
        assert_eq!(optimizer.updates(), 10);
        for (ours, expected) in values(&parameters).iter().zip(plain(10)) {
            for (a, b) in ours.iter().zip(expected) {
                assert!((f64::from(*a) - b).abs() < 1e-6, "{a} instead of {b}");
            }
        }
    }

    #[test]
    fn an_update_left_out_changes_nothing() {
        let (with, without) = (parameters(), parameters());
        let mut optimizers = [AdamW::new(&with).unwrap(), AdamW::new(&without).unwrap()];
        let left_out = Tensor::ones([], (Kind::Float, Device::Cpu));
        for step in 1..=4 {
            update(&mut optimizers[0], &with, step);
            update(&mut optimizers[1], &without, step);
            let damaged: Vec<Tensor> = gradients(step).iter().map(|gradient| gradient * f64::NAN).collect();
            optimizers[0].update(&with, None, &damaged, &SETTINGS, None, &left_out).unwrap();
        }
        assert_eq!(values(&with), values(&without));
        let [with, without] = optimizers.map(|optimizer| optimizer.tensors());
        assert_eq!(with, without);
    }

    #[test]
    fn a_restored_optimizer_continues_bit_for_bit() {
        let whole = parameters();
        let mut optimizer = AdamW::new(&whole).unwrap();
        for step in 1..=6 {
            update(&mut optimizer, &whole, step);
        }

        let halves = parameters();
        let mut first = AdamW::new(&halves).unwrap();
        for step in 1..=3 {
            update(&mut first, &halves, step);
        }
        let saved = first.tensors().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
        let mut second = AdamW::new(&halves).unwrap();
        second.restore(&saved, first.updates()).unwrap();
        for step in 4..=6 {
            update(&mut second, &halves, step);
        }
        assert_eq!(values(&whole), values(&halves));
    }

    #[test]
    fn a_state_that_does_not_fit_changes_nothing() {
        let parameters = parameters();
        let mut optimizer = AdamW::new(&parameters).unwrap();
        let mut saved = AdamW::new(&parameters).unwrap().tensors();
        saved.remove("first.a");
        saved.insert("second.c".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        saved.insert("first.b".into(), Tensor::ones([2], (Kind::Float, Device::Cpu)));
        let text = optimizer.restore(&saved, 5).unwrap_err().to_string();
        for part in ["first.a is missing", "second.c is not expected", "first.b is Float [2]"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(optimizer.updates(), 0);
    }
}
