//! Counter-based randomness: pure functions of their arguments, the same for ever and on every machine.

/// Weyl constant of SplitMix64: 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea and Flood 2014; constants of Vigna's reference implementation).
fn finish(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// A hash of two numbers.
pub(super) fn mix(left: u64, right: u64) -> u64 {
    finish(finish(left.wrapping_add(GAMMA)) ^ right.wrapping_mul(GAMMA))
}

/// SplitMix64.
pub(super) struct Random {
    state: u64,
}

impl Random {
    /// The stream of one `seed` and one `stream` number.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Random { state: mix(seed, stream) }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        finish(self.state)
    }

    /// Below `bound`, which must not be 0; the high half of the product, whose bias of `bound / 2^64` cannot be seen.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Fisher and Yates's shuffle, from the last element down.
    pub(super) fn shuffle<T>(&mut self, elements: &mut [T]) {
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
}
