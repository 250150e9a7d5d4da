//! Axes with round numbers.

/// Rows between two ticks of the y axis.
const ROWS_PER_TICK: u16 = 3;

/// Decades that a logarithmic axis shows at most; below that a curve is flat anyway.
const MAX_DECADES: f64 = 40.0;

/// How values are placed between bottom and top of a chart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale {
    bottom: f64,
    top: f64,
    step: f64,
    logarithmic: bool,
}

impl Scale {
    /// A scale between two round numbers that contains all finite `values`; nothing if there are
    /// none. Round ends keep the axis where it is while values move a little.
    pub(super) fn of(values: impl Iterator<Item = f64>, logarithmic: bool, height: u16) -> Option<Self> {
        let (mut least, mut greatest) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite() && (!logarithmic || *value > 0.0)) {
            let value = if logarithmic { value.log10() } else { value };
            least = least.min(value);
            greatest = greatest.max(value);
        }
        if least > greatest {
            return None;
        }
        if logarithmic {
            least = least.max(greatest - MAX_DECADES);
        }
        if greatest - least <= least.abs().max(greatest.abs()) * 1e-9 {
            let room = if least == 0.0 { 1.0 } else { least.abs() * 0.1 };
            least -= room;
            greatest += room;
        }
        let count = f64::from((height / ROWS_PER_TICK).max(1));
        let step = round_step((greatest - least) / count);
        let bottom = (least / step).floor() * step;
        let top = (greatest / step).ceil() * step;
        (bottom.is_finite() && top.is_finite() && top > bottom).then_some(Self {
            bottom,
            top,
            step,
            logarithmic,
        })
    }

    /// Position of `value`, 0 at the top and 1 at the bottom; nothing if the scale cannot show it.
    pub(super) fn down(&self, value: f64) -> Option<f64> {
        let value = match self.logarithmic {
            true if value > 0.0 => value.log10().max(self.bottom),
            true => return None,
            false => value,
        };
        value.is_finite().then(|| ((self.top - value) / (self.top - self.bottom)).clamp(0.0, 1.0))
    }

    /// Values with a number at the axis, lowest first.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let count = ((self.top - self.bottom) / self.step).round().clamp(1.0, 64.0) as u32;
        (0..=count)
            .map(|index| {
                let value = self.bottom + self.step * f64::from(index);
                // What is left of zero after adding up steps would be written as 1e-17.
                let value = if value.abs() < self.step * 1e-6 { 0.0 } else { value };
                if self.logarithmic { 10f64.powf(value) } else { value }
            })
            .collect()
    }
}

/// The round number (1, 2, 2.5 or 5 times a power of ten) at or above `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let rounded = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|round| *round >= step * 0.999);
    rounded.filter(|step| step.is_normal()).unwrap_or(f64::MIN_POSITIVE)
}

/// Round whole numbers between two steps, about `count` of them.
pub(super) fn steps(from: f64, to: f64, count: u16) -> Vec<f64> {
    if from >= to || !(to - from).is_finite() {
        return Vec::new();
    }
    let step = round_step((to - from) / f64::from(count.max(1))).max(1.0);
    let first = (from / step).ceil() as i64;
    let last = (to / step).floor() as i64;
    (first..=last).take(256).map(|index| index as f64 * step).filter(|tick| tick.fract() == 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_round_and_hold_everything() {
        let scale = Scale::of([0.83, 2.41, f64::NAN].into_iter(), false, 9).unwrap();
        assert_eq!((scale.bottom, scale.top), (0.0, 3.0));
        assert_eq!(scale.ticks(), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(scale.down(3.0), Some(0.0));
        assert_eq!(scale.down(f64::NAN), None);
    }

    #[test]
    fn a_little_more_does_not_move_the_axis() {
        let before = Scale::of([0.83, 2.41].into_iter(), false, 9);
        assert_eq!(before, Scale::of([0.80, 2.55].into_iter(), false, 9));
    }

    #[test]
    fn one_value_and_none() {
        let scale = Scale::of([2.0].into_iter(), false, 9).unwrap();
        assert!(scale.bottom < 2.0 && scale.top > 2.0);
        assert_eq!(Scale::of([f64::NAN].into_iter(), false, 9), None);
        assert_eq!(Scale::of([-1.0].into_iter(), true, 9), None);
    }

    #[test]
    fn logarithms_have_powers_of_ten() {
        let scale = Scale::of([1e-5, 1e-1].into_iter(), true, 15).unwrap();
        let ticks = scale.ticks();
        assert!((ticks[0] - 1e-5).abs() < 1e-9 && (ticks[ticks.len() - 1] - 0.1).abs() < 1e-9, "{ticks:?}");
        assert_eq!(scale.down(0.0), None);
    }

    #[test]
    fn step_ticks_are_whole() {
        assert_eq!(steps(0.0, 1200.0, 6), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0, 1200.0]);
        assert_eq!(steps(0.0, 3.0, 10), [0.0, 1.0, 2.0, 3.0]);
        assert!(steps(5.0, 5.0, 3).is_empty());
    }
}
