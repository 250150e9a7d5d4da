//! Counts verdicts and computes their statistics.

use serde::Serialize;

use super::verdict::{Contender, Verdict, VerdictChoice};

/// The normal distribution's 97.5 % point: two-sided 95 %.
const Z_95: f64 = 1.959_963_984_540_054;

/// Counts of verdicts, with win rate and significance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// The tuned model was better.
    pub tuned: u64,
    /// The other side was better.
    pub base: u64,
    /// Neither was better.
    pub tie: u64,
    /// Neither was good enough.
    pub both_bad: u64,
    /// Not judged.
    pub skipped: u64,
    /// `tuned / (tuned + base)`; `None` while both are 0.
    pub win_rate: Option<f64>,
    /// 95 % confidence interval of the win rate.
    pub interval: Option<Interval>,
    /// Two-sided p-value of the sign test: the probability of a split at least this uneven if both sides are
    /// equally good. 1 while `tuned` and `base` are 0.
    pub p: f64,
}

/// A confidence interval of a share, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// Counts the verdicts between the tuned and the base model; others are ignored.
pub fn tally(verdicts: &[Verdict]) -> Tally {
    tally_against(verdicts, Contender::Base)
}

/// Counts the verdicts between the tuned model and `other`. Ties do not enter win rate and p.
pub fn tally_against<'a>(verdicts: impl IntoIterator<Item = &'a Verdict>, other: Contender) -> Tally {
    let mut tally = Tally { p: 1.0, ..Tally::default() };
    for verdict in verdicts.into_iter().filter(|verdict| verdict.is_between(Contender::Tuned, other)) {
        match (verdict.choice, verdict.winner()) {
            (_, Some(Contender::Tuned)) => tally.tuned += 1,
            (_, Some(_)) => tally.base += 1,
            (VerdictChoice::Tie, None) => tally.tie += 1,
            (VerdictChoice::BothBad, None) => tally.both_bad += 1,
            (_, None) => tally.skipped += 1,
        }
    }
    let decided = tally.tuned + tally.base;
    if decided > 0 {
        tally.win_rate = Some(tally.tuned as f64 / decided as f64);
        tally.interval = wilson_interval(tally.tuned, decided);
        tally.p = sign_test(tally.tuned, tally.base);
    }
    tally
}

/// Wilson's score interval (1927) of a share at 95 %, without continuity correction; `None` without trials.
pub fn wilson_interval(successes: u64, trials: u64) -> Option<Interval> {
    if trials == 0 || successes > trials {
        return None;
    }
    let n = trials as f64;
    let share = successes as f64 / n;
    let z2 = Z_95 * Z_95;
    let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    Some(Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) })
}

/// The exact two-sided sign test: the probability that `wins + losses` throws of a fair coin are at least as
/// uneven, `min(1, 2 · P(X ≤ min(wins, losses)))` with X binomial(n, ½).
pub fn sign_test(wins: u64, losses: u64) -> f64 {
    let n = wins + losses;
    let fewer = wins.min(losses);
    if n == 0 || wins == losses {
        return 1.0;
    }
    // Terms are computed as logarithms, because ½ⁿ alone underflows beyond n = 1074. They are added from the
    // largest (the last) down, until they no longer change the sum.
    let mut log_last = -(n as f64) * std::f64::consts::LN_2;
    for k in 1..=fewer {
        log_last += ((n - k + 1) as f64 / k as f64).ln();
    }
    let (mut relative, mut sum) = (1.0, 1.0);
    for k in (1..=fewer).rev() {
        relative *= k as f64 / (n - k + 1) as f64;
        sum += relative;
        if relative < sum * f64::EPSILON {
            break;
        }
    }
    (2.0 * log_last.exp() * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::testing::verdict;

    fn close(found: f64, expected: f64, within: f64) {
        assert!((found - expected).abs() <= within, "{found}, expected {expected}");
    }

    /// Computed with R: `binom.test(k, n)$p.value`, `prop.test(k, n, correct = FALSE)$conf.int`.
    #[test]
    fn figures_equal_those_of_r() {
        for (wins, losses, p) in [
            (8, 2, 0.109_375),
            (10, 0, 0.001_953_125),
            (5, 5, 1.0),
            (6, 5, 1.0),
            (0, 1, 1.0),
            (0, 0, 1.0),
            (60, 40, 0.056_887_93),
        ] {
            close(sign_test(wins, losses), p, 1e-8);
            close(sign_test(losses, wins), p, 1e-8);
        }
        for (k, n, low, high) in [
            (8, 10, 0.490_162_5, 0.943_317_8),
            (0, 10, 0.0, 0.277_533_0),
            (10, 10, 0.722_467_0, 1.0),
            (50, 100, 0.403_831_5, 0.596_168_5),
        ] {
            let interval = wilson_interval(k, n).unwrap();
            close(interval.low, low, 1e-6);
            close(interval.high, high, 1e-6);
        }
        assert_eq!(wilson_interval(0, 0), None);
    }

    #[test]
    fn many_verdicts_neither_overflow_nor_take_long() {
        close(sign_test(1_000_000, 1_000_000 - 2_000), 0.157, 2e-3);
        assert!(sign_test(5_000, 0) < 1e-300);
        assert!(sign_test(2_000, 1_000) > 0.0);
    }

    #[test]
    fn choices_are_counted_for_the_right_contender() {
        let mut swapped = verdict("a", "b", VerdictChoice::Left);
        std::mem::swap(&mut swapped.left, &mut swapped.right);
        let mut baseline = verdict("a", "b", VerdictChoice::Left);
        baseline.right.who = Contender::Baseline;
        let mut verdicts = vec![swapped, baseline];
        for choice in [
            VerdictChoice::Left,
            VerdictChoice::Left,
            VerdictChoice::Tie,
            VerdictChoice::BothBad,
            VerdictChoice::Skip,
        ] {
            verdicts.push(verdict("a", "b", choice));
        }
        let found = tally(&verdicts);
        assert_eq!((found.tuned, found.base, found.tie, found.both_bad, found.skipped), (2, 1, 1, 1, 1));
        close(found.win_rate.unwrap(), 2.0 / 3.0, 1e-12);
        assert_eq!(tally_against(&verdicts, Contender::Baseline).tuned, 1);
        let nothing = tally(&[]);
        assert_eq!((nothing.win_rate, nothing.interval), (None, None));
        close(nothing.p, 1.0, 0.0);
    }

    proptest! {
        #[test]
        fn the_sign_test_equals_a_direct_sum(wins in 0_u64..60, losses in 0_u64..60) {
            let n = wins + losses;
            let mut choose = 1_u128;
            let mut tail = 0_u128;
            for k in 0..=wins.min(losses) {
                tail += choose;
                choose = choose * u128::from(n - k) / u128::from(k + 1);
            }
            let plain = (2.0 * tail as f64 / 2_f64.powi(n as i32)).min(1.0);
            prop_assert!((sign_test(wins, losses) - plain).abs() < 1e-9);
        }

        #[test]
        fn the_interval_contains_the_share(trials in 1_u64..10_000, part in 0.0_f64..=1.0) {
            let successes = (trials as f64 * part) as u64;
            let interval = wilson_interval(successes, trials).unwrap();
            let share = successes as f64 / trials as f64;
            prop_assert!((0.0..=share + 1e-12).contains(&interval.low));
            prop_assert!((share - 1e-12..=1.0).contains(&interval.high));
        }
    }
}
