//! Learning rate as a pure function of the step, so that nothing has to be saved and an edited setting
//! applies from the next step on.
//!
//! The formulae are those of transformers' `optimization.py`: `get_cosine_schedule_with_warmup` (with
//! `min_lr`: `get_cosine_with_min_lr_schedule_with_warmup`), `get_linear_schedule_with_warmup`,
//! `get_constant_schedule_with_warmup` and `get_wsd_schedule` (linear warm-up, cosine decay).

use std::f64::consts::PI;

use luthier_core::config::{Schedule, TrainSection, Warmup};

/// Share of all steps that the `wsd` schedule spends decaying (the 10 % of arXiv 2404.06395).
const WSD_DECAY: f64 = 0.1;

/// Steps of linear warm-up in a run of `total` steps. A fraction is rounded up, as in transformers.
pub fn warmup_steps(warmup: Warmup, total: u64) -> u64 {
    match warmup {
        Warmup::Steps(steps) => steps,
        Warmup::Fraction(fraction) => (fraction * total as f64).ceil().max(0.0) as u64,
    }
}

/// The learning rate of `step` (counted from 0) in a run of `total` steps. Past the end it keeps the
/// schedule's last value.
pub fn learning_rate(settings: &TrainSection, step: u64, total: u64) -> f64 {
    let floor =
        if settings.learning_rate > 0.0 { settings.min_learning_rate / settings.learning_rate } else { 0.0 };
    let warmup = warmup_steps(settings.warmup, total);
    settings.learning_rate * factor(settings.schedule, step, total, warmup, floor)
}

/// The factor of the peak learning rate at `step`. `floor` is the share of the peak that decaying schedules
/// end at.
fn factor(schedule: Schedule, step: u64, total: u64, warmup: u64, floor: f64) -> f64 {
    let above_floor = |share: f64| (share * (1.0 - floor) + floor).max(0.0);
    if step < warmup {
        let progress = ratio(step, warmup);
        return match schedule {
            Schedule::Wsd => above_floor(progress),
            Schedule::Cosine | Schedule::Linear | Schedule::Constant => progress,
        };
    }
    let progress = ratio(step - warmup, total.saturating_sub(warmup)).min(1.0);
    match schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => above_floor(1.0 - progress),
        Schedule::Cosine => above_floor(half_cosine(progress)),
        Schedule::Wsd => {
            let decay = ((WSD_DECAY * total as f64).ceil() as u64).min(total.saturating_sub(warmup));
            let stable_until = total.saturating_sub(decay);
            if step < stable_until {
                1.0
            } else {
                above_floor(half_cosine(ratio(step - stable_until, decay).min(1.0)))
            }
        }
    }
}

fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(schedule: Schedule, total: u64, warmup: u64, floor: f64) -> Vec<f64> {
        (0..=total).map(|step| factor(schedule, step, total, warmup, floor)).collect()
    }

    fn assert_close(ours: &[f64], expected: &[f64]) {
        assert_eq!(ours.len(), expected.len());
        for (step, (a, b)) in ours.iter().zip(expected).enumerate() {
            assert!((a - b).abs() < 1e-12, "step {step}: {a} instead of {b}");
        }
    }

    #[test]
    fn cosine_equals_the_table_of_get_cosine_schedule_with_warmup() {
        let root = 0.5 * (1.0 + std::f64::consts::FRAC_1_SQRT_2);
        assert_close(&factors(Schedule::Cosine, 6, 2, 0.0), &[0.0, 0.5, 1.0, root, 0.5, 1.0 - root, 0.0]);
    }

    #[test]
    fn cosine_with_a_floor_equals_the_table_of_cosine_with_min_lr() {
        let root = 0.5 * (1.0 + std::f64::consts::FRAC_1_SQRT_2);
        let blend = |x: f64| 0.8f64.mul_add(x, 0.2);
        assert_close(
            &factors(Schedule::Cosine, 6, 2, 0.2),
            &[0.0, 0.5, 1.0, blend(root), blend(0.5), blend(1.0 - root), 0.2],
        );
    }

    #[test]
    fn linear_and_constant_equal_their_tables() {
        assert_close(&factors(Schedule::Linear, 6, 2, 0.0), &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_close(
            &factors(Schedule::Constant, 6, 3, 0.3),
            &[0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0, 1.0, 1.0],
        );
        assert_close(&factors(Schedule::Linear, 4, 0, 0.0), &[1.0, 0.75, 0.5, 0.25, 0.0]);
    }

    #[test]
    fn wsd_warms_up_holds_and_decays_over_the_last_tenth() {
        let ours = factors(Schedule::Wsd, 20, 2, 0.0);
        let mut expected = vec![0.0, 0.5];
        expected.extend([1.0; 16]);
        expected.extend([1.0, 0.5, 0.0]);
        assert_close(&ours, &expected);
        let floored = factors(Schedule::Wsd, 20, 2, 0.1);
        assert_close(&[floored[0], floored[1], floored[19], floored[20]], &[0.1, 0.55, 0.55, 0.1]);
    }

    #[test]
    fn a_fraction_of_warm_up_is_rounded_up() {
        assert_eq!(warmup_steps(Warmup::Fraction(0.03), 100), 3);
        assert_eq!(warmup_steps(Warmup::Fraction(0.03), 101), 4);
        assert_eq!(warmup_steps(Warmup::Steps(7), 3), 7);
    }

    #[test]
    fn every_schedule_stays_finite_at_the_edges() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::Constant, Schedule::Wsd] {
            for (total, warmup) in [(0, 0), (1, 0), (1, 1), (1, 5), (3, 3)] {
                for step in 0..8 {
                    let value = factor(schedule, step, total, warmup, 0.1);
                    assert!((0.0..=1.0).contains(&value), "{schedule:?} {total} {warmup} {step}: {value}");
                }
            }
        }
    }
}
