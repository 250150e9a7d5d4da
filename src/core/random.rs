//! Randomness as pure functions of their arguments: nothing to save or replay, and the same on every machine.

/// Weyl constant of SplitMix64: 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// One output of SplitMix64 for the state `value` (Steele, Lea and Flood 2014; constants of Vigna's reference
/// implementation): a bijection that spreads every input bit over all output bits.
pub const fn mix(value: u64) -> u64 {
    finish(value.wrapping_add(GAMMA))
}

const fn finish(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// A hash of two numbers. The order of rows and the held-out split of a dataset depend on its values.
pub const fn mix_pair(left: u64, right: u64) -> u64 {
    finish(mix(left) ^ right.wrapping_mul(GAMMA))
}

/// A seed for each numbered place: `derive(derive(seed, step), layer)`.
pub const fn derive(seed: u64, place: u64) -> u64 {
    mix(mix(seed) ^ place)
}

/// A seed for each name.
pub fn derive_name(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)))
}

/// Uniform in [0, 1) with 53 random bits.
pub fn unit(seed: u64) -> f64 {
    (mix(seed) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Normally distributed with mean 0 and standard deviation 1 (Box and Muller, 1958).
pub fn normal(seed: u64) -> f64 {
    let radius = (-2.0 * (1.0 - unit(derive(seed, 0))).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(derive(seed, 1))).cos()
}

/// A stream of SplitMix64.
pub struct Random {
    state: u64,
}

impl Random {
    /// The stream of one `seed` and one `stream` number.
    pub fn new(seed: u64, stream: u64) -> Self {
        Random { state: mix_pair(seed, stream) }
    }

    fn next(&mut self) -> u64 {
        let output = mix(self.state);
        self.state = self.state.wrapping_add(GAMMA);
        output
    }

    /// Below `bound`, which must not be 0; the high half of the product, whose bias of `bound / 2^64` cannot be seen.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Fisher and Yates's shuffle, from the last element down.
    pub fn shuffle<T>(&mut self, elements: &mut [T]) {
        for last in (1..elements.len()).rev() {
            let other = self.below(last + 1);
            elements.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_splitmix64() {
        // First outputs of Vigna's splitmix64.c for the state 1234567.
        let mut random = Random { state: 1_234_567 };
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn shuffles_permute_and_depend_on_seed_and_stream() {
        let shuffled = |seed, stream| {
            let mut numbers: Vec<usize> = (0..100).collect();
            Random::new(seed, stream).shuffle(&mut numbers);
            numbers
        };
        let mut sorted = shuffled(1, 0);
        assert_eq!(sorted, shuffled(1, 0));
        assert_ne!(sorted, shuffled(2, 0));
        assert_ne!(sorted, shuffled(1, 1));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn units_fill_the_interval_evenly() {
        let values: Vec<f64> = (0..10_000).map(|place| unit(derive(7, place))).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!(values.iter().all(|value| (0.0..1.0).contains(value)));
        assert!(values.iter().any(|&value| value < 0.001) && values.iter().any(|&value| value > 0.999));
    }

    #[test]
    fn normal_numbers_have_their_mean_deviation_and_tails() {
        let values: Vec<f64> = (0..20_000).map(|place| normal(derive(3, place))).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
        let beyond = values.iter().filter(|value| value.abs() > 2.0).count() as f64 / values.len() as f64;
        assert!((beyond - 0.0455).abs() < 0.006, "{beyond}");
    }

    #[test]
    fn places_and_names_do_not_collide() {
        assert_ne!(derive(derive(1, 2), 3), derive(derive(1, 3), 2));
        assert_ne!(derive_name(1, "ab"), derive_name(1, "ba"));
    }
}
