//! Rules that detect trouble in a run's numbers. They only report it; nothing here stops a run.

use std::collections::VecDeque;

use luthier_core::units::median;
use serde::{Deserialize, Serialize};

/// Number of past losses that a new loss is compared with.
const WINDOW: usize = 32;
/// With fewer losses than this, no spike is reported.
const ENOUGH: usize = 8;
/// A spike lies at least this many robust standard deviations above the median …
const DEVIATIONS: f64 = 6.0;
/// … and at least this share of the median, so that a run with hardly any noise raises no false alarm.
const SHARE: f64 = 0.5;
/// Scales the median absolute deviation to the standard deviation of a normal distribution.
const ROBUST_DEVIATION: f64 = 1.4826;

/// Detects a training loss far above the median of the steps before it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SpikeWatch {
    recent: VecDeque<f64>,
    spiking: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spike {
    pub loss: f64,
    /// The median of the steps before it.
    pub usual: f64,
}

impl SpikeWatch {
    /// Takes the loss of the next step. Reports a spike when it begins, and only once while it lasts.
    /// Non-finite losses are handled elsewhere.
    pub fn observe(&mut self, loss: f64) -> Option<Spike> {
        if !loss.is_finite() {
            return None;
        }
        let spike = self.measure(loss);
        let begins = spike.is_some() && !self.spiking;
        self.spiking = spike.is_some();
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
        spike.filter(|_| begins)
    }

    fn measure(&self, loss: f64) -> Option<Spike> {
        if self.recent.len() < ENOUGH {
            return None;
        }
        let usual = median(self.recent.iter().copied());
        let deviation = ROBUST_DEVIATION * median(self.recent.iter().map(|each| (each - usual).abs()));
        let limit = usual + (DEVIATIONS * deviation).max(SHARE * usual.abs());
        (loss > limit).then_some(Spike { loss, usual })
    }
}

/// Evaluations in a row whose loss has to rise before a run is reported as overfitting.
const RISES: u32 = 3;

/// Detects a held-out loss that rises from evaluation to evaluation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct OverfitWatch {
    previous: Option<f64>,
    best: Option<f64>,
    rises: u32,
}

impl OverfitWatch {
    /// Takes the held-out loss of the next evaluation. True when it has just risen for the third time in a
    /// row and lies above the best one.
    pub fn observe(&mut self, loss: f64) -> bool {
        let rising = self.previous.is_some_and(|previous| loss > previous);
        self.rises = if rising { self.rises + 1 } else { 0 };
        self.previous = Some(loss);
        let above_best = self.best.is_some_and(|best| loss > best);
        if !above_best {
            self.best = Some(loss);
        }
        self.rises == RISES && above_best
    }
}

/// A run reports that the disk is nearly full if the free space falls below this (256 MiB) plus what its next
/// checkpoint needs.
const RESERVE: u64 = 256 << 20;

/// Detects a file system without room for two more checkpoints. Reports once until there is room again.
#[derive(Debug, Default)]
pub struct DiskWatch {
    low: bool,
}

impl DiskWatch {
    /// Takes the free bytes and the size of a checkpoint. True when space has just become low.
    pub fn observe(&mut self, free: u64, checkpoint: u64) -> bool {
        let low = free < RESERVE.saturating_add(checkpoint.saturating_mul(2));
        let begins = low && !self.low;
        self.low = low;
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_reported_once_and_noise_is_not() {
        let mut watch = SpikeWatch::default();
        for step in 0..40 {
            let noisy = 2.0 + 0.2 * f64::from(step % 3);
            assert_eq!(watch.observe(noisy), None, "step {step}");
        }
        let spike = watch.observe(5.0).expect("a loss of 5 is a spike after 2.0 to 2.4");
        assert!((spike.usual - 2.2).abs() < 1e-9);
        assert_eq!(watch.observe(5.1), None);
        assert_eq!(watch.observe(2.1), None);
        assert!(watch.observe(6.0).is_some());
    }

    #[test]
    fn the_first_steps_and_a_steady_loss_are_not_spikes() {
        let mut watch = SpikeWatch::default();
        for loss in [9.0, 1.0, 20.0, 1.0] {
            assert_eq!(watch.observe(loss), None);
        }
        let mut steady = SpikeWatch::default();
        for _ in 0..20 {
            steady.observe(1.0);
        }
        assert_eq!(steady.observe(1.4), None, "40 % above a loss without noise is not a spike");
        assert!(steady.observe(1.6).is_some());
        assert_eq!(steady.observe(f64::NAN), None);
    }

    #[test]
    fn overfitting_is_three_rises_in_a_row_above_the_best() {
        let mut watch = OverfitWatch::default();
        let alerts: Vec<bool> = [1.0, 0.9, 0.95, 0.94, 0.96, 0.97, 0.98, 0.99]
            .into_iter()
            .map(|loss| watch.observe(loss))
            .collect();
        assert_eq!(alerts, [false, false, false, false, false, false, true, false]);
    }

    #[test]
    fn low_disk_is_reported_when_it_begins() {
        let mut watch = DiskWatch::default();
        assert!(!watch.observe(RESERVE + 300, 100));
        assert!(watch.observe(RESERVE + 100, 100));
        assert!(!watch.observe(RESERVE, 100));
        assert!(!watch.observe(u64::MAX, 100));
        assert!(watch.observe(0, u64::MAX));
    }
}
