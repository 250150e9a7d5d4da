//! Rotary position embedding (arXiv 2104.09864) in the rotate-half form, with the changes of frequencies that longer
//! contexts use.

use std::f64::consts::PI;

use luthier_core::model::architecture::{RopeScaling, RopeSpec};
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::ops;

/// The frequencies of one [`RopeSpec`], on the model's device.
#[derive(Debug)]
pub(super) struct Rope {
    pub spec: RopeSpec,
    /// `[rotated / 2]` f32, radians per position.
    frequencies: Tensor,
}

impl Rope {
    pub fn new(spec: &RopeSpec, device: Device) -> Result<Self> {
        Ok(Self { spec: spec.clone(), frequencies: ops::floats(&frequencies(spec), device)? })
    }

    /// Cosine and sine for `positions` `[N]` int64, each `[N, 1, rotated / 2]`.
    pub fn rotations(&self, positions: &Tensor, kind: Kind) -> Result<(Tensor, Tensor)> {
        ops::rotations(positions, &self.frequencies, kind)
    }
}

/// Radians per position of each rotated pair, as transformers computes them (`modeling_rope_utils.py`).
fn frequencies(spec: &RopeSpec) -> Vec<f32> {
    let half = spec.rotated / 2;
    let plain = (0..half).map(|pair| 1.0 / spec.theta.powf(2.0 * pair as f64 / spec.rotated as f64));
    match &spec.scaling {
        RopeScaling::None => plain.map(|frequency| frequency as f32).collect(),
        RopeScaling::Linear { factor } => plain.map(|frequency| (frequency / factor) as f32).collect(),
        RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => {
            let original = *original_positions as f64;
            plain
                .map(|frequency| {
                    let wavelength = 2.0 * PI / frequency;
                    let turns = original / wavelength;
                    // 1 keeps a frequency, 0 divides it by the factor.
                    let share = ((turns - low_frequency_factor)
                        / (high_frequency_factor - low_frequency_factor))
                        .clamp(0.0, 1.0);
                    ((1.0 - share) * frequency / factor + share * frequency) as f32
                })
                .collect()
        }
        RopeScaling::Divisors(divisors) => {
            plain.zip(divisors).map(|(frequency, &divisor)| (frequency / f64::from(divisor)) as f32).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(scaling: RopeScaling) -> RopeSpec {
        RopeSpec { theta: 10_000.0, rotated: 8, scaling }
    }

    #[test]
    fn plain_frequencies_fall_geometrically() {
        let found = frequencies(&spec(RopeScaling::None));
        for (found, expected) in found.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaled = frequencies(&spec(RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_positions: 256,
        }));
        // Turns within 256 positions: 40.7, 4.07, 0.407, 0.04: the first two beyond 4, the last two below 1.
        for (found, expected) in scaled.iter().zip([1.0, 0.1, 0.01 / 8.0, 0.001 / 8.0]) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
        let between = frequencies(&spec(RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_positions: 1600,
        }));
        let share = (1600.0 * 0.01 / (2.0 * PI) - 1.0) / 3.0;
        let expected = (1.0 - share) * 0.01 / 8.0 + share * 0.01;
        assert!((f64::from(between[2]) - expected).abs() < 1e-8, "{} {expected}", between[2]);
    }

    #[test]
    fn divisors_divide() {
        let found = frequencies(&spec(RopeScaling::Divisors(vec![1.0, 2.0, 4.0, 8.0])));
        for (found, expected) in found.iter().zip([1.0, 0.05, 0.0025, 0.000_125]) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
    }

    #[test]
    fn linear_divides_all() {
        let found = frequencies(&spec(RopeScaling::Linear { factor: 4.0 }));
        assert!((found[0] - 0.25).abs() < 1e-7 && (found[3] - 0.000_25).abs() < 1e-9);
    }
}
