//! Lengths that are far out of the rest.

use crate::units::median;

/// Fewest rows whose spread says what is usual.
const MIN_ROWS: usize = 30;
/// Fewest pairs for an effect size: with 20, one of 0.5 is at the edge of what chance brings about.
const MIN_PAIRS: usize = 20;
/// Spreads from the median at which a length is far out.
const SPREADS: f64 = 5.0;
/// The standard deviation of a normal distribution in units of its median absolute deviation.
const DEVIATION: f64 = 1.4826;
/// A length less than this many times longer or shorter than the median is never far out.
const MIN_RATIO: f64 = 8.0;
/// An effect of this size is called medium; smaller ones hardly teach a model to write longer.
const MIN_EFFECT: f64 = 0.5;
/// Largest effect reported: ratios that are all the same would have an infinite one.
const MAX_EFFECT: f64 = 10.0;

/// Rows whose lengths are far out, and the bounds that they are beyond.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::data) struct Outliers {
    pub(in crate::data) median: f64,
    /// A length at or below it is far out.
    pub(in crate::data) low: f64,
    /// A length at or above it is far out.
    pub(in crate::data) high: f64,
    /// Positions in the list of lengths, in ascending order.
    pub(in crate::data) rows: Vec<usize>,
}

/// The rows whose length is far out of the rest; `None` if there are none, or too few rows to tell.
///
/// The bounds come from the median and the median absolute deviation of the logarithms, which outliers hardly
/// move.
pub(in crate::data) fn outliers(lengths: &[usize]) -> Option<Outliers> {
    if lengths.len() < MIN_ROWS {
        return None;
    }
    let length = |length: usize| length.max(1) as f64;
    let middle = median(lengths.iter().map(|&row| length(row)));
    let spread = DEVIATION * median(lengths.iter().map(|&row| (length(row) / middle).ln().abs()));
    let ratio = (SPREADS * spread).exp().max(MIN_RATIO);
    let (low, high) = (middle / ratio, middle * ratio);
    let far = |row: usize| length(row) <= low || length(row) >= high;
    let rows: Vec<usize> =
        lengths.iter().enumerate().filter(|&(_, &row)| far(row)).map(|(row, _)| row).collect();
    (!rows.is_empty()).then_some(Outliers { median: middle, low, high, rows })
}

/// How the lengths of chosen and rejected replies differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::data) struct LengthPreference {
    /// Share of pairs whose chosen reply is the longer one.
    pub(in crate::data) longer: f64,
    /// Share of pairs whose chosen reply is the shorter one.
    pub(in crate::data) shorter: f64,
    /// Mean of ln(chosen / rejected) over its standard deviation; positive if chosen replies are longer.
    pub(in crate::data) effect: f64,
}

/// Whether replies were chosen by their length, from the lengths of chosen and rejected replies; `None` if
/// hardly, or if there are too few pairs to tell.
pub(in crate::data) fn length_preference(pairs: &[(usize, usize)]) -> Option<LengthPreference> {
    if pairs.len() < MIN_PAIRS {
        return None;
    }
    let number = pairs.len() as f64;
    let ratios: Vec<f64> = pairs
        .iter()
        .map(|&(chosen, rejected)| (chosen.max(1) as f64 / rejected.max(1) as f64).ln())
        .collect();
    let mean = ratios.iter().sum::<f64>() / number;
    let variance = ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum::<f64>() / (number - 1.0);
    if mean == 0.0 {
        return None;
    }
    let effect = (mean / variance.sqrt()).clamp(-MAX_EFFECT, MAX_EFFECT);
    let share = |counts: fn(&(usize, usize)) -> bool| {
        pairs.iter().filter(|pair| counts(pair)).count() as f64 / number
    };
    (effect.abs() >= MIN_EFFECT).then(|| LengthPreference {
        longer: share(|(chosen, rejected)| chosen > rejected),
        shorter: share(|(chosen, rejected)| chosen < rejected),
        effect,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Random, normal};

    fn log_normal(rows: usize, deviation: f64) -> Vec<usize> {
        (0..rows as u64).map(|row| (200.0 * (deviation * normal(row)).exp()) as usize).collect()
    }

    #[test]
    fn planted_lengths_are_found() {
        let mut lengths = log_normal(500, 0.4);
        lengths[17] = 20_000;
        lengths[300] = 3;
        lengths[301] = 0;
        let found = outliers(&lengths).unwrap();
        assert_eq!(found.rows, [17, 300, 301]);
        assert!((150.0..250.0).contains(&found.median), "{found:?}");
        assert!(found.low > 3.0 && found.high < 20_000.0, "{found:?}");
    }

    #[test]
    fn ordinary_spread_is_not_far_out() {
        assert_eq!(outliers(&log_normal(5000, 0.4)), None);
        assert_eq!(outliers(&log_normal(5000, 1.2)), None);
        assert_eq!(outliers(&[2; 100]), None);
        assert_eq!(outliers(&[0; 100]), None);
        let half: Vec<usize> = (0..100).map(|row| if row % 2 == 0 { 5 } else { 2000 }).collect();
        assert_eq!(outliers(&half), None);
        let mut few = vec![10; 28];
        few.push(100_000);
        assert_eq!(outliers(&few), None);
        few.push(79);
        assert_eq!(outliers(&few).unwrap().rows, [28]);
        few.push(80);
        assert_eq!(outliers(&few).unwrap().rows, [28, 30]);
    }

    #[test]
    fn longer_chosen_replies_are_found() {
        let pairs = |shift: f64| -> Vec<(usize, usize)> {
            let length = |seed: u64| 300.0 * (0.5 * normal(seed)).exp();
            (0..400).map(|row| ((length(row) * shift) as usize, length(row + 1000) as usize)).collect()
        };
        let longer = length_preference(&pairs(2.0)).unwrap();
        assert!((0.7..1.3).contains(&longer.effect), "{longer:?}");
        assert!(longer.longer > 0.7 && longer.longer + longer.shorter <= 1.0, "{longer:?}");
        let shorter = length_preference(&pairs(0.5)).unwrap();
        assert!(shorter.effect < -0.7 && shorter.shorter > 0.7, "{shorter:?}");
        assert_eq!(length_preference(&pairs(1.0)), None);
        assert_eq!(length_preference(&pairs(1.1)), None);
        assert_eq!(length_preference(&pairs(2.0)[..19]), None);
    }

    #[test]
    fn ratios_without_spread_have_a_finite_effect() {
        assert_eq!(length_preference(&[(5, 5); 30]), None);
        assert_eq!(length_preference(&[(0, 0); 30]), None);
        let same = length_preference(&[(10, 5); 30]).unwrap();
        assert_eq!((same.longer, same.shorter), (1.0, 0.0));
        assert!(same.effect >= MIN_EFFECT && same.effect <= MAX_EFFECT);
    }

    #[test]
    fn chance_in_few_pairs_is_seldom_reported() {
        let mut alarms = 0;
        for seed in 0..200 {
            let mut random = Random::new(seed, 0);
            let mut lengths: Vec<usize> = (100..140).collect();
            random.shuffle(&mut lengths);
            let pairs: Vec<_> = lengths.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            alarms += usize::from(length_preference(&pairs).is_some());
        }
        assert!(alarms <= 12, "{alarms}");
    }
}
