//! Bounds and ticks that are round numbers and rarely move.

/// Share of the height that values must fill before the bounds shrink to them: less would make axes jump
/// with every value.
const FILLED: f64 = 0.4;

/// How much a domain grows at once where its end is not known before.
const GROWTH: f64 = 1.25;

/// The bounds of a vertical axis, kept between frames.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    bounds: Option<(f64, f64)>,
}

impl Range {
    /// The bounds now: 0 to 1 before there were values.
    pub fn bounds(&self) -> (f64, f64) {
        self.bounds.unwrap_or((0.0, 1.0))
    }

    /// Takes new values into account, given by the lowest and highest of all that are shown. The bounds
    /// move only when values leave them or fill too little of them.
    pub fn follow(&mut self, extremes: Option<(f64, f64)>) {
        let Some((low, high)) =
            extremes.filter(|(low, high)| low.is_finite() && high.is_finite() && low <= high)
        else {
            return;
        };
        if let Some((bottom, top)) = self.bounds {
            let inside = low >= bottom && high <= top;
            if inside && (high - low) >= FILLED * (top - bottom) {
                return;
            }
            let fitted = rounded(low, high);
            // What is inside and as close as round numbers allow would only be moved to the same place.
            if inside && (fitted.1 - fitted.0) > 0.5 * (top - bottom) {
                return;
            }
            self.bounds = Some(fitted);
            return;
        }
        self.bounds = Some(rounded(low, high));
    }
}

/// Lowest and highest finite value of `points` with x in `domain`; with `positive`, only values above 0
/// count, which are those that a logarithmic axis can show.
pub fn extremes(points: &[(f64, f64)], domain: (f64, f64), positive: bool) -> Option<(f64, f64)> {
    let shown = points
        .iter()
        .filter(|(x, y)| (domain.0..=domain.1).contains(x) && y.is_finite() && (!positive || *y > 0.0));
    shown.fold(None, |found: Option<(f64, f64)>, (_, y)| {
        Some(found.map_or((*y, *y), |(low, high)| (low.min(*y), high.max(*y))))
    })
}

/// The smallest extremes that hold both.
pub fn join(left: Option<(f64, f64)>, right: Option<(f64, f64)>) -> Option<(f64, f64)> {
    match (left, right) {
        (Some(left), Some(right)) => Some((left.0.min(right.0), left.1.max(right.1))),
        (one, other) => one.or(other),
    }
}

/// The end of a domain that starts at 0 and must reach `needed`, given the end it has now. It grows by a
/// quarter at once: a domain that moves with each point would redraw the whole chart with each point.
pub fn grown(end: f64, needed: f64) -> f64 {
    if !needed.is_finite() {
        return end;
    }
    let mut end = if end.is_finite() && end >= 1.0 { end } else { 10.0 };
    while end < needed {
        end = (end * GROWTH).ceil();
    }
    end
}

/// Round bounds that hold `low` to `high`.
fn rounded(low: f64, high: f64) -> (f64, f64) {
    let (low, high) = if high - low > high.abs().max(low.abs()) * 1e-9 {
        (low, high)
    } else {
        // A flat line stands in the middle.
        let margin = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        (low - margin, high + margin)
    };
    let step = nice_step((high - low) / 4.0);
    ((low / step).floor() * step, (high / step).ceil() * step)
}

/// The round number — 1, 2 or 5 times a power of ten — that is not below `step`.
fn nice_step(step: f64) -> f64 {
    if !step.is_finite() || step <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(step.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= step * (1.0 - 1e-9));
    nice.unwrap_or(10.0) * power
}

/// Ticks on round numbers within `bounds`, at most `most` of them.
pub fn ticks(bounds: (f64, f64), most: usize) -> Vec<f64> {
    let (low, high) = bounds;
    let span = high - low;
    if most == 0 || !span.is_finite() || span <= 0.0 {
        return Vec::new();
    }
    let step = nice_step(span / most as f64);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).take(most + 1).map(|index| index as f64 * step).collect()
}

/// Ticks on powers of ten within positive `bounds`, thinned to at most `most`; round numbers between where
/// the bounds hold less than one power.
pub fn log_ticks(bounds: (f64, f64), most: usize) -> Vec<f64> {
    let (low, high) = bounds;
    if low <= 0.0 || high <= low || most == 0 {
        return Vec::new();
    }
    let (first, last) = ((low.log10() - 1e-9).ceil() as i32, (high.log10() + 1e-9).floor() as i32);
    let count = usize::try_from(last - first + 1).unwrap_or(0);
    if count < 2 {
        return ticks(bounds, most);
    }
    let stride = count.div_ceil(most);
    (first..=last).step_by(stride).map(|power| 10f64.powi(power)).collect()
}

/// Labels for `ticks`, all with the same decimals; large numbers in thousands and millions.
pub fn labels(ticks: &[f64]) -> Vec<String> {
    let largest = ticks.iter().fold(0.0, |largest: f64, tick| largest.max(tick.abs()));
    let step = ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
    let step = if step.is_finite() && step > 0.0 { step } else { largest.max(1e-9) };
    if largest > 0.0 && (largest < 1e-3 || largest >= 1e9 || largest / step > 1e9) {
        return ticks.iter().map(|tick| format!("{tick:.1e}").replace(".0e", "e")).collect();
    }
    let (scale, unit) = match largest {
        1e6.. => (1e6, " M"),
        1e4.. => (1e3, " k"),
        _ => (1.0, ""),
    };
    let decimals = (-(step / scale).log10() - 1e-9).ceil().clamp(0.0, 9.0) as usize;
    ticks
        .iter()
        .map(|tick| if *tick == 0.0 { "0".to_owned() } else { format!("{:.decimals$}{unit}", tick / scale) })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_hold_still_while_values_stay_inside() {
        let mut range = Range::default();
        range.follow(Some((0.9, 2.3)));
        let first = range.bounds();
        assert_eq!(first, (0.5, 2.5));
        range.follow(Some((0.81, 2.31)));
        assert_eq!(range.bounds(), first);
        range.follow(Some((0.4, 2.31)));
        assert!(range.bounds().0 <= 0.4);
        range.follow(Some((0.9, 0.95)));
        let (low, high) = range.bounds();
        assert!(high - low < 0.2, "{low} {high}");
        range.follow(None);
        assert_eq!(range.bounds(), (low, high));
    }

    #[test]
    fn labels_are_short_and_alike() {
        assert_eq!(labels(&[0.0, 0.5, 1.0]), ["0", "0.5", "1.0"]);
        assert_eq!(labels(&[0.0, 200.0, 400.0]), ["0", "200", "400"]);
        assert_eq!(labels(&[0.0, 5000.0, 10_000.0]), ["0", "5 k", "10 k"]);
        assert_eq!(labels(&[1e-4, 2e-4]), ["1e-4", "2e-4"]);
        assert_eq!(labels(&[0.05, 0.10]), ["0.05", "0.10"]);
        assert_eq!(labels(&[]), Vec::<String>::new());
    }

    #[test]
    fn logarithmic_ticks_are_powers_of_ten() {
        assert_eq!(log_ticks((0.001, 10.0), 8).len(), 5);
        assert_eq!(log_ticks((1e-12, 1.0), 4).len(), 4);
        assert!(!log_ticks((1.0, 4.0), 4).is_empty());
        assert!(log_ticks((0.0, 4.0), 4).is_empty());
    }

    #[test]
    fn domains_grow_in_leaps() {
        assert_eq!(grown(100.0, 100.0), 100.0);
        assert_eq!(grown(100.0, 101.0), 125.0);
        assert_eq!(grown(0.0, 3.0), 10.0);
        assert_eq!(grown(100.0, f64::NAN), 100.0);
    }

    proptest! {
        #[test]
        fn bounds_always_hold_the_values(pairs in proptest::collection::vec((-1e9f64..1e9, 0f64..1e9), 1..30)) {
            let mut range = Range::default();
            for (low, span) in pairs {
                range.follow(Some((low, low + span)));
                let (bottom, top) = range.bounds();
                let slack = (top - bottom) * 1e-6;
                prop_assert!(bottom - slack <= low && low + span <= top + slack && bottom < top);
            }
        }

        #[test]
        fn ticks_are_few_and_within(low in -1e9f64..1e9, span in 1e-6f64..1e9, most in 1usize..12) {
            let all = ticks((low, low + span), most);
            prop_assert!(all.len() <= most + 1);
            let slack = span * 1e-6;
            prop_assert!(all.iter().all(|tick| *tick >= low - slack && *tick <= low + span + slack));
            prop_assert!(labels(&all).iter().all(|label| label.len() < 16));
        }
    }
}
