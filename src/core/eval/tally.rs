//! What verdicts amount to.

use serde::Serialize;

use super::verdict::{Contender, Verdict, VerdictChoice};

/// The normal distribution's 97.5 % point: two-sided 95 %.
const Z_95: f64 = 1.959_963_984_540_054;

/// Counts of verdicts, and how sure they make us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// The tuned model was better.
    pub tuned: u64,
    /// The other side was better.
    pub base: u64,
    /// Neither was better.
    pub tie: u64,
    /// Neither would do.
    pub both_bad: u64,
    /// Not judged.
    pub skipped: u64,
    /// `tuned / (tuned + base)`; missing while nothing is decided.
    pub win_rate: Option<f64>,
    /// 95 % interval of the win rate.
    pub interval: Option<Interval>,
    /// Two-sided p of the sign test: how likely a split this uneven is between equals. 1 while nothing is
    /// decided.
    pub p: f64,
}

/// An interval of a share, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Counts the verdicts between the tuned and the base model; others are left out.
pub fn tally(verdicts: &[Verdict]) -> Tally {
    tally_against(verdicts, Contender::Base)
}

/// Counts the verdicts between the tuned model and `other`. Ties take no part in win rate and p.
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

/// The exact two-sided sign test: the probability that `wins + losses` throws of a fair coin fall at least as
/// unevenly as this, `min(1, 2 · P(X ≤ min(wins, losses)))` with X binomial(n, ½).
pub fn sign_test(wins: u64, losses: u64) -> f64 {
    let n = wins + losses;
    let fewer = wins.min(losses);
    if n == 0 || wins == losses {
        return 1.0;
    }
    // Terms are taken as logarithms, since ½ⁿ alone underflows past n = 1074; from the largest (the last)
    // down, until they no longer count.
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
