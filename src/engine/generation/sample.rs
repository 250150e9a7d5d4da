//! Sampling a token from logits: pure functions, applied in the order temperature, top-k, top-p, draw.

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Keeps only this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps only the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0 };

    /// Whether the result does not depend on the seed.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 || self.top_k == 1
    }
}

/// A token and its unnormalised probability; that of the best token is 1.
type Candidate = (u32, f64);

/// The relative difference that the order of adding probabilities makes, with room to spare.
const ROUNDING: f64 = 1e-9;

/// The token at `draw`, uniform in [0, 1), of the distribution given by `logits` and `sampling`. Ties and
/// non-finite logits are not errors: a NaN is chosen only if there is nothing else.
pub(super) fn sample(logits: &[f32], sampling: &Sampling, draw: f64) -> u32 {
    let logits = logits.iter().map(|&logit| if logit.is_nan() { f32::NEG_INFINITY } else { logit });
    let best = logits.clone().fold(f32::NEG_INFINITY, f32::max);
    let mut candidates = weigh((0..).zip(logits), best, sampling.temperature);
    top_k(&mut candidates, sampling.top_k);
    let total = total(&candidates);
    top_p(&mut candidates, sampling.top_p, total);
    pick(candidates, draw)
}

/// The token that [`sample`] gives for a whole row, if its largest logits decide it: `largest` in descending
/// order, without NaN. `total` is the sum of `exp((logit - best) / temperature)` over the row.
pub(super) fn sample_largest(
    largest: &[(u32, f32)],
    total_of_row: f64,
    sampling: &Sampling,
    draw: f64,
) -> Option<u32> {
    let (&(_, best), &(_, last)) = (largest.first()?, largest.last()?);
    let mut candidates = weigh(largest.iter().copied(), best, sampling.temperature);
    // Tokens that are left out may be as likely as the last.
    let least = share(last, best, sampling.temperature);
    candidates.retain(|candidate| candidate.1 > least);
    let total = match sampling.top_k {
        0 if sampling.top_p < 1.0 => total_of_row,
        k if 0 < k && k <= candidates.len() => {
            top_k(&mut candidates, k);
            total(&candidates)
        }
        _ => return None,
    };
    let margin = top_p(&mut candidates, sampling.top_p, total);
    (margin > ROUNDING * total).then(|| pick(candidates, draw))
}

/// Whether [`sample_largest`] may decide with this many logits.
pub(super) fn is_limited(sampling: &Sampling, count: usize) -> bool {
    if sampling.top_k > 0 { sampling.top_k < count } else { sampling.top_p < 1.0 && count > 0 }
}

/// The share of every token for which it is above 0.
fn weigh(logits: impl Iterator<Item = (u32, f32)>, best: f32, temperature: f64) -> Vec<Candidate> {
    let weighed = logits.map(|(id, logit)| (id, share(logit, best, temperature)));
    weighed.filter(|&(_, share)| share > 0.0).collect()
}

/// `exp((logit - best) / temperature)`
fn share(logit: f32, best: f32, temperature: f64) -> f64 {
    // Infinity minus infinity would be NaN.
    if logit < best { (f64::from(logit - best) / temperature).exp() } else { 1.0 }
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| candidate.1).sum()
}

/// Most likely first; for ties, the lower token id first.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Leaves the `k` most likely, in any order; all if `k` is 0.
fn top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k, order);
        candidates.truncate(k);
    }
}

/// Leaves the smallest set of the most likely tokens that together reach `p` of `total`; all if they do not. Returns
/// by how much the sums would have to differ for another set; below 0 if `p` is not reached.
fn top_p(candidates: &mut Vec<Candidate>, p: f64, total: f64) -> f64 {
    if p >= 1.0 {
        return f64::INFINITY;
    }
    let wanted = p.max(0.0) * total;
    // A few tokens have almost all of the probability, so sorting the best ones is nearly always enough.
    let mut sorted = 0;
    let mut reached = 0.0;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let part = rest.len().min(256.max(sorted * 3));
        if part < rest.len() {
            rest.select_nth_unstable_by(part, order);
        }
        rest[..part].sort_unstable_by(order);
        for place in sorted..sorted + part {
            let before = reached;
            reached += candidates[place].1;
            if reached >= wanted {
                candidates.truncate(place + 1);
                let below = if place == 0 { f64::INFINITY } else { wanted - before };
                return below.min(reached - wanted);
            }
        }
        sorted += part;
    }
    reached - wanted
}

/// The candidate at `draw` of the cumulative distribution, lowest token id first.
fn pick(mut candidates: Vec<Candidate>, draw: f64) -> u32 {
    candidates.sort_unstable_by_key(|candidate| candidate.0);
    let mut left = draw * total(&candidates);
    for &(token, share) in &candidates {
        left -= share;
        if left < 0.0 {
            return token;
        }
    }
    candidates.last().map_or(0, |candidate| candidate.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, -1.0, 3.0, 0.0];

    fn shares(sampling: &Sampling) -> Vec<f64> {
        let draws = 100_000;
        let mut counts = [0; 6];
        for draw in 0..draws {
            counts[sample(&LOGITS, sampling, (f64::from(draw) + 0.5) / f64::from(draws)) as usize] += 1;
        }
        counts.iter().map(|&count| f64::from(count) / f64::from(draws)).collect()
    }

    fn softmax(logits: &[f64]) -> Vec<f64> {
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        logits.iter().map(|logit| logit.exp() / total).collect()
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn without_limits_tokens_follow_the_softmax_at_the_temperature() {
        let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        assert_near(&shares(&plain), &softmax(&[1.0, 3.0, 2.0, -1.0, 3.0, 0.0]));
        let cold = Sampling { temperature: 0.5, ..plain };
        assert_near(&shares(&cold), &softmax(&[2.0, 6.0, 4.0, -2.0, 6.0, 0.0]));
    }

    #[test]
    fn top_k_keeps_the_best_and_for_ties_the_lower_id() {
        let two = Sampling { temperature: 1.0, top_k: 2, top_p: 1.0 };
        assert_near(&shares(&two), &[0.0, 0.5, 0.0, 0.0, 0.5, 0.0]);
        assert_eq!(sample(&LOGITS, &Sampling { top_k: 1, ..two }, 0.99), 1);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        // 1 and 4 have 0.387 each, 2 has 0.142.
        let p = |top_p| Sampling { temperature: 1.0, top_k: 0, top_p };
        assert_near(&shares(&p(0.5)), &[0.0, 0.5, 0.0, 0.0, 0.5, 0.0]);
        let third = (-1.0_f64).exp();
        assert_near(
            &shares(&p(0.8)),
            &[0.0, 1.0 / (2.0 + third), third / (2.0 + third), 0.0, 1.0 / (2.0 + third), 0.0],
        );
        assert_eq!(sample(&LOGITS, &p(0.0), 0.99), 1);
    }

    #[test]
    fn top_p_over_many_tokens_equals_a_full_sort() {
        let logits: Vec<f32> = (0..5000).map(|i| (luthier_core::random::unit(i) * 2.0) as f32).collect();
        let mut candidates = weigh((0..).zip(logits), 2.0, 1.0);
        let mut sorted = candidates.clone();
        sorted.sort_by(order);
        let total: f64 = sorted.iter().map(|candidate| candidate.1).sum();
        let mut reached = 0.0;
        let count = 1 + sorted
            .iter()
            .position(|candidate| {
                reached += candidate.1;
                reached >= 0.9 * total
            })
            .unwrap();
        assert!(count > 3000, "{count}");
        top_p(&mut candidates, 0.9, total);
        assert_eq!(candidates, sorted[..count]);
    }

    #[test]
    fn the_largest_logits_decide_unless_the_cut_is_beyond_or_beside_them() {
        let logits: Vec<f32> = (0..1000_u64)
            .map(|id| 6.0 * luthier_core::random::unit(luthier_core::random::derive(3, id)) as f32)
            .collect();
        let mut largest: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        largest.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total = total(&weigh((0..).zip(logits.iter().copied()), largest[0].1, 0.5));
        let decide = |count: usize, top_k, top_p| {
            let sampling = Sampling { temperature: 0.5, top_k, top_p };
            let found = sample_largest(&largest[..count], total, &sampling, 0.6);
            assert!(found.is_none_or(|token| token == sample(&logits, &sampling, 0.6)));
            found.is_some()
        };
        assert!(decide(100, 99, 1.0) && !decide(100, 100, 1.0) && !decide(100, 101, 0.1));
        assert!(decide(100, 50, 0.9));
        // 300 tokens have about 0.97 of the probability, 30 have about a third.
        assert!(decide(300, 0, 0.9) && !decide(300, 0, 0.999) && !decide(30, 0, 0.9));
        assert!(!decide(1000, 0, 1.0));
        // Exactly at the end of a token's share, rounding would decide.
        let first = 1.0 / total;
        assert!(!decide(100, 0, first) && decide(100, 0, first + 1e-6) && decide(100, 0, first - 1e-6));
        // One of two equal tokens may be missing.
        largest[99].1 = largest[98].1;
        let found = sample_largest(
            &largest[..100],
            total,
            &Sampling { temperature: 0.5, top_k: 99, top_p: 1.0 },
            0.6,
        );
        assert!(found.is_none());
    }

    #[test]
    fn nan_is_never_chosen() {
        let logits = [f32::NAN, 0.0, f32::NAN];
        let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        assert!((0..10).all(|draw| sample(&logits, &plain, f64::from(draw) / 10.0) == 1));
        assert_eq!(sample(&[f32::NAN], &plain, 0.5), 0);
        assert_eq!(sample(&[f32::INFINITY, 0.0], &plain, 0.5), 0);
    }
}
