//! Reports what the engine can use on this machine.

use std::time::{Duration, Instant};

use luthier_core::config;
use luthier_core::model::Quantisation;
use serde::Serialize;
use tch::{Device, Kind};

use crate::error::{EngineError, Result};
use crate::step::adamw;
use crate::trials::{self, Missing};
use crate::{csrc, device, ops, weights};

/// Size of the square matrices for measuring speed.
const SIDE: i64 = 768;

/// Duration of one speed measurement.
const MEASURED_FOR: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Doctor {
    pub version: &'static str,
    pub libtorch: &'static str,
    /// CPU threads per operation.
    pub threads: usize,
    /// Whether libtorch's CUDA half is usable.
    pub cuda: bool,
    /// The CPU, then each CUDA device, in the words of `model.device`.
    pub devices: Vec<String>,
    /// The methods, in the words of `method.kind`.
    pub methods: Vec<&'static str>,
    /// Speed of each device.
    pub speeds: Vec<Speed>,
    /// What a GPU computes in more steps than others.
    pub slower: Vec<Missing>,
    /// Problems found, as text.
    pub problems: Vec<String>,
}

/// One device's speed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// As in [`Doctor::devices`].
    pub device: String,
    /// Billions of floating-point operations per second in f32 matrix products.
    pub f32_gflops: f64,
    /// The same in bf16.
    pub bf16_gflops: f64,
    /// `bf16` if it is at least as fast as f32, otherwise `f32`.
    pub faster: &'static str,
    /// Advice for `model.dtype`.
    pub hint: String,
}

/// The methods that the engine can train, in the words of `method.kind`.
pub fn methods() -> impl Iterator<Item = &'static str> {
    config::MethodKind::CHOICES.iter().map(|choice| choice.name)
}

/// Examines every device, which takes about half a second each. A device that fails is a problem, not an
/// error.
pub fn examine() -> Doctor {
    let (mut devices, mut problems, mut speeds) = (Vec::new(), Vec::new(), Vec::new());
    for asked in device::all() {
        match device::choose(asked) {
            Ok(device) => devices.push(device),
            // Which GPUs cannot be used and why, the driver's own answers say.
            Err(EngineError::Gpu(_)) => {}
            Err(error) => problems.push(error.to_string()),
        }
    }
    let cuda = devices.iter().any(|device| device.is_cuda());
    for &device in &devices {
        // The others were tried when the device was chosen.
        let tried = weights::try_kernels(Quantisation::Nf4, device)
            .and_then(|()| weights::try_kernels(Quantisation::AsStored, device))
            .and_then(|()| adamw::try_fused_update(device));
        if let Err(error) = tried {
            problems.push(error.to_string());
        }
        match speed(device) {
            Ok(speed) => speeds.push(speed),
            Err(error) => problems.push(format!("{} does not work: {error}", device::name(device))),
        }
    }
    Doctor {
        version: env!("CARGO_PKG_VERSION"),
        libtorch: csrc::LIBTORCH_VERSION,
        threads: usize::try_from(tch::get_num_threads()).unwrap_or(1),
        cuda,
        devices: devices.into_iter().map(device::name).collect(),
        methods: methods().collect(),
        speeds,
        slower: trials::missing(),
        problems,
    }
}

fn speed(device: Device) -> Result<Speed> {
    let f32_gflops = gflops(device, Kind::Float)?;
    let bf16_gflops = gflops(device, Kind::BFloat16)?;
    let faster = if bf16_gflops >= f32_gflops { "bf16" } else { "f32" };
    let hint = if faster == "bf16" {
        format!("bf16 is {:.1} times as fast as f32 here and takes half the memory", bf16_gflops / f32_gflops)
    } else {
        format!(
            "f32 is {:.1} times as fast as bf16 here; bf16 takes half the memory",
            f32_gflops / bf16_gflops
        )
    };
    Ok(Speed { device: device::name(device), f32_gflops, bf16_gflops, faster, hint })
}

/// Speed of square matrix products, in 10⁹ operations per second.
fn gflops(device: Device, kind: Kind) -> Result<f64> {
    let _guard = tch::no_grad_guard();
    let matrix = ops::zeros(&[SIDE, SIDE], kind, device)?;
    let one = |count: usize| {
        let mut last = ops::linear(&matrix, &matrix, None)?;
        for _ in 1..count {
            last = ops::linear(&matrix, &matrix, None)?;
        }
        // Reading one element waits for the device.
        ops::value(&ops::narrow(&ops::narrow(&last, 0, 0, 1)?, 1, 0, 1)?)
    };
    one(3)?;
    let began = Instant::now();
    let mut products = 0;
    while began.elapsed() < MEASURED_FOR {
        one(8)?;
        products += 8;
    }
    let operations = 2.0 * (SIDE as f64).powi(3) * f64::from(products);
    Ok(operations / began.elapsed().as_secs_f64() / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there() {
        let doctor = examine();
        assert_eq!((doctor.devices[0].as_str(), doctor.problems.len()), ("cpu", 0));
        assert!(doctor.speeds.iter().all(|speed| speed.f32_gflops > 0.0 && speed.bf16_gflops > 0.0));
        assert!(doctor.threads >= 1);
    }
}
