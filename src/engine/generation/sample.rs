//! Choosing a token from logits: pure functions, applied in the order temperature, top-k, top-p, draw.

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only the most likely so many; 0 is all.
    pub top_k: usize,
    /// Only the most likely ones that together reach this probability; 1 is all.
    pub top_p: f64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0 };

    /// Whether chance plays no part.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 || self.top_k == 1
    }
}

/// A token and its share: unnormalised, the best has 1.
type Candidate = (u32, f64);

/// The token at `draw`, uniform in [0, 1), of the distribution that `sampling` makes of `logits`. Ties and non-finite
/// logits never fail: what is not a number is never chosen while anything else is there.
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

/// `exp((logit - best) / temperature)` of every token whose share is above 0.
fn weigh(logits: &[f32], temperature: f64) -> Vec<Candidate> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Infinity minus itself is no number.
    let share = |logit: f32| if logit < best { (f64::from(logit - best) / temperature).exp() } else { 1.0 };
    let weighed = logits.iter().enumerate().map(|(id, &logit)| (id as u32, share(logit)));
    weighed.filter(|&(_, share)| share > 0.0).collect()
}

/// Most likely first; of equals, the lower token.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `k` most likely, in order; all of them, in any order, where `k` is 0.
fn top_k(mut candidates: Vec<Candidate>, k: usize) -> Vec<Candidate> {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k, order);
        candidates.truncate(k);
    }
    candidates
}

/// The fewest of the most likely that reach `p` of the whole together.
fn top_p(mut candidates: Vec<Candidate>, p: f64) -> Vec<Candidate> {
    if p >= 1.0 {
        return candidates;
    }
    let wanted = p.max(0.0) * candidates.iter().map(|candidate| candidate.1).sum::<f64>();
    // A few tokens hold almost all of the probability, so sorting the best ones is nearly always enough.
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

/// The candidate at `draw` of the cumulated shares, lowest token first.
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
    fn without_limits_it_is_the_softmax_at_its_temperature() {
        let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        assert_near(&shares(&plain), &softmax(&[1.0, 3.0, 2.0, -1.0, 3.0, 0.0]));
        let cold = Sampling { temperature: 0.5, ..plain };
        assert_near(&shares(&cold), &softmax(&[2.0, 6.0, 4.0, -2.0, 6.0, 0.0]));
    }

    #[test]
    fn top_k_keeps_the_best_and_the_lower_of_equals() {
        let two = Sampling { temperature: 1.0, top_k: 2, top_p: 1.0 };
        assert_near(&shares(&two), &[0.0, 0.5, 0.0, 0.0, 0.5, 0.0]);
        assert_eq!(sample(LOGITS.to_vec(), &Sampling { top_k: 1, ..two }, 0.99), 1);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        // 1 and 4 hold 0.387 each, 2 holds 0.142.
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
    fn what_is_no_number_is_never_chosen() {
        let logits = vec![f32::NAN, 0.0, f32::NAN];
        let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        assert!((0..10).all(|draw| sample(logits.clone(), &plain, f64::from(draw) / 10.0) == 1));
        assert_eq!(sample(vec![f32::NAN], &plain, 0.5), 0);
        assert_eq!(sample(vec![f32::INFINITY, 0.0], &plain, 0.5), 0);
    }
}
