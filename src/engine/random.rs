//! Randomness as a pure function of where it is used: nothing to save, nothing to replay.

/// One step of SplitMix64 (Steele, Lea, Flood 2014; constants of `java.util.SplittableRandom`): a bijection that spreads
/// every input bit over all output bits.
const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A seed of its own for everything that has a place: `derive(derive(seed, step), layer)`.
#[must_use]
pub const fn derive(seed: u64, place: u64) -> u64 {
    mix(mix(seed) ^ place)
}

/// A seed of its own for everything that has a name.
#[must_use]
pub fn derive_name(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)))
}

/// Uniform in [0, 1), of 53 bits, a function of `seed` alone.
#[must_use]
pub fn unit(seed: u64) -> f64 {
    (mix(seed) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Normally distributed around 0 with deviation 1, a function of `seed` alone (Box and Muller, 1958).
#[must_use]
pub fn normal(seed: u64) -> f64 {
    let radius = (-2.0 * (1.0 - unit(derive(seed, 0))).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(derive(seed, 1))).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_outputs_are_those_of_splitmix64() {
        // State advances by the increment; seeds 1234567 as in the published test vectors of xoshiro's authors.
        let increment = 0x9E37_79B9_7F4A_7C15_u64;
        let outputs: Vec<u64> =
            (0..3_u64).map(|n| mix(1_234_567_u64.wrapping_add(n.wrapping_mul(increment)))).collect();
        assert_eq!(
            outputs,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
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
