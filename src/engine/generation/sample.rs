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

/// The token at `draw`, uniform in [0, 1), of the distribution given by `logits` and `sampling`. Ties and
/// non-finite logits are not errors: a NaN is chosen only if there is nothing else.
pub(super) fn sample(mut logits: Vec<f32>, sampling: &Sampling, draw: f64) -> u32 {
    for logit in &mut logits {
        if logit.is_nan() {
            *logit = f32::NEG_INFINITY;
        }
    }
    let candidates = weigh(&logits, sampling.temperature);
    let candidates = top_k(candidates, sampling.top_k);
    let candidates = top_p(candidates, sampling.top_p);
    pick(&candidates, draw)
}

/// `exp((logit - best) / temperature)` of every token for which it is above 0.
fn weigh(logits: &[f32], temperature: f64) -> Vec<Candidate> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Infinity minus infinity would be NaN.
    let share = |logit: f32| if logit < best { (f64::from(logit - best) / temperature).exp() } else { 1.0 };
    let weighed = logits.iter().enumerate().map(|(id, &logit)| (id as u32, share(logit)));
    weighed.filter(|&(_, share)| share > 0.0).collect()
}

/// Most likely first; for ties, the lower token id first.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `k` most likely, in order. All of them, in any order, if `k` is 0.
fn top_k(mut candidates: Vec<Candidate>, k: usize) -> Vec<Candidate> {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k, order);
        candidates.truncate(k);
    }
    candidates
}

/// The smallest set of the most likely tokens that together reach `p` of the total.
fn top_p(mut candidates: Vec<Candidate>, p: f64) -> Vec<Candidate> {
    if p >= 1.0 {
        return candidates;
    }
    let wanted = p.max(0.0) * candidates.iter().map(|candidate| candidate.1).sum::<f64>();
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
            reached += candidates[place].1;
            if reached >= wanted {
                candidates.truncate(place + 1);
                return candidates;
            }
        }
        sorted += part;
    }
    candidates
}

/// The candidate at `draw` of the cumulative distribution, lowest token id first.
fn pick(candidates: &[Candidate], draw: f64) -> u32 {
    let mut candidates = candidates.to_vec();
    candidates.sort_unstable_by_key(|candidate| candidate.0);
    let mut left = draw * candidates.iter().map(|candidate| candidate.1).sum::<f64>();
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
            counts[sample(LOGITS.to_vec(), sampling, (f64::from(draw) + 0.5) / f64::from(draws)) as usize] +=
                1;
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
        assert_eq!(sample(LOGITS.to_vec(), &Sampling { top_k: 1, ..two }, 0.99), 1);
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
        assert_eq!(sample(LOGITS.to_vec(), &p(0.0), 0.99), 1);
    }

    #[test]
    fn top_p_over_many_tokens_equals_a_full_sort() {
        let logits: Vec<f32> = (0..5000).map(|i| (luthier_core::random::unit(i) * 2.0) as f32).collect();
        let candidates = weigh(&logits, 1.0);
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
        assert_eq!(top_p(candidates, 0.9), sorted[..count]);
    }

    #[test]
    fn nan_is_never_chosen() {
        let logits = vec![f32::NAN, 0.0, f32::NAN];
        let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        assert!((0..10).all(|draw| sample(logits.clone(), &plain, f64::from(draw) / 10.0) == 1));
        assert_eq!(sample(vec![f32::NAN], &plain, 0.5), 0);
        assert_eq!(sample(vec![f32::INFINITY, 0.0], &plain, 0.5), 0);
    }
}
