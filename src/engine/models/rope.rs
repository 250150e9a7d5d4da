//! Rotary position embedding (arXiv 2104.09864) in the rotate-half form, with the frequency scaling for
//! longer contexts.

use std::f64::consts::PI;

use luthier_core::model::architecture::{RopeScaling, RopeSpec};
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::ops;

/// The frequencies of one [`RopeSpec`], on the model's device.
#[derive(Debug)]
pub(super) struct Rope {
    pub spec: RopeSpec,
    /// `[rotated / 2]` f32, radians per position, if they do not depend on sequence length.
    frequencies: Tensor,
    /// The same, for sequences beyond the context length of pre-training (LongRoPE).
    beyond: Option<Tensor>,
    device: Device,
}

impl Rope {
    pub fn new(spec: &RopeSpec, device: Device) -> Result<Self> {
        let frequencies = ops::floats(&frequencies(spec), device)?;
        let beyond = match &spec.scaling {
            RopeScaling::Long { long, .. } => Some(ops::floats(&divided(spec, long), device)?),
            _ => None,
        };
        Ok(Self { spec: spec.clone(), frequencies, beyond, device })
    }

    /// Whether [`Rope::rotations`] depends on the longest sequence of the batch.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.spec.scaling, RopeScaling::Dynamic { .. } | RopeScaling::Long { .. })
    }

    /// Whether sequences of `a` and of `b` tokens have the same frequencies.
    pub fn is_equal_at(&self, a: i64, b: i64) -> bool {
        match &self.spec.scaling {
            RopeScaling::Long { original_positions, .. } => {
                let is_beyond = |length: i64| length > *original_positions as i64;
                is_beyond(a) == is_beyond(b)
            }
            RopeScaling::Dynamic { original_positions, .. } => {
                a == b || a.max(b) <= *original_positions as i64
            }
            _ => true,
        }
    }

    /// Cosine and sine for `positions` `[N]` int64, each `[N, 1, rotated / 2]`. `lengths` is the length of
    /// the longest sequence of the batch or, if each row has its own frequencies, the length of every row's
    /// sequence.
    pub fn rotations(&self, positions: &Tensor, lengths: &[i64], kind: Kind) -> Result<(Tensor, Tensor)> {
        let first = lengths.first().copied().unwrap_or_default();
        let chosen = if lengths.iter().all(|&length| self.is_equal_at(first, length)) {
            self.frequencies_at(first)?
        } else {
            let rows = lengths.iter().map(|&length| self.frequencies_at(length));
            let rows = ops::concatenate(&rows.collect::<Result<Vec<_>>>()?, 0)?;
            let rows = ops::reshape(&rows, &[lengths.len() as i64, -1])?; // [rows, rotated / 2]
            let tokens = positions.size().first().copied().unwrap_or_default();
            let columns = tokens / lengths.len() as i64;
            let owners: Vec<i64> = (0..tokens).map(|token| token / columns).collect();
            ops::select_rows(&rows, 0, &ops::integers(&owners, self.device)?)?
        };
        let factor = match self.spec.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Long { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        };
        ops::rotations(positions, &chosen, factor, kind)
    }

    /// `[rotated / 2]`, for sequences of `length` tokens.
    fn frequencies_at(&self, length: i64) -> Result<Tensor> {
        match (&self.spec.scaling, &self.beyond) {
            (RopeScaling::Long { original_positions, .. }, Some(beyond))
                if length > *original_positions as i64 =>
            {
                Ok(beyond.shallow_clone())
            }
            (RopeScaling::Dynamic { factor, original_positions }, _)
                if length > *original_positions as i64 =>
            {
                let share = length as f64 / *original_positions as f64;
                let rotated = self.spec.rotated as f64;
                let theta =
                    self.spec.theta * (factor * share - (factor - 1.0)).powf(rotated / (rotated - 2.0));
                let plain = RopeSpec { theta, scaling: RopeScaling::None, ..self.spec.clone() };
                ops::floats(&frequencies(&plain), self.device)
            }
            _ => Ok(self.frequencies.shallow_clone()),
        }
    }
}

/// Radians per position of each rotated pair, as transformers computes them (`modeling_rope_utils.py`), for sequences
/// within the context length of pre-training.
fn frequencies(spec: &RopeSpec) -> Vec<f32> {
    let plain = plain(spec);
    match &spec.scaling {
        RopeScaling::None | RopeScaling::Dynamic { .. } => plain.map(|frequency| frequency as f32).collect(),
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
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, truncate, .. } => {
            // The dimension pair with this many turns within the original context.
            let pair = |turns: f64| {
                let wavelength = *original_positions as f64 / (turns * 2.0 * PI);
                spec.rotated as f64 * wavelength.ln() / (2.0 * spec.theta.ln())
            };
            let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(spec.rotated as f64 - 1.0));
            let width = if (high - low).abs() < f64::EPSILON { 0.001 } else { high - low };
            plain
                .enumerate()
                .map(|(index, frequency)| {
                    // 0 keeps a frequency, 1 divides it by the factor.
                    let share = ((index as f64 - low) / width).clamp(0.0, 1.0);
                    (share * frequency / factor + (1.0 - share) * frequency) as f32
                })
                .collect()
        }
        RopeScaling::Long { short, .. } => divided(spec, short),
        RopeScaling::Divisors(divisors) => divided(spec, divisors),
    }
}

fn plain(spec: &RopeSpec) -> impl Iterator<Item = f64> {
    let RopeSpec { theta, rotated, .. } = *spec;
    (0..rotated / 2).map(move |pair| 1.0 / theta.powf(2.0 * pair as f64 / rotated as f64))
}

fn divided(spec: &RopeSpec, divisors: &[f32]) -> Vec<f32> {
    plain(spec).zip(divisors).map(|(frequency, &divisor)| (frequency / f64::from(divisor)) as f32).collect()
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
    fn longrope_divides_each_frequency() {
        let found = frequencies(&spec(RopeScaling::Divisors(vec![1.0, 2.0, 4.0, 8.0])));
        for (found, expected) in found.iter().zip([1.0, 0.05, 0.0025, 0.000_125]) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let found = frequencies(&spec(RopeScaling::Linear { factor: 4.0 }));
        assert!((found[0] - 0.25).abs() < 1e-7 && (found[3] - 0.000_25).abs() < 1e-9);
    }
}
