//! Fewer points than columns can show lose nothing that could be seen.

/// At most two points a column: the lowest and the highest, in the order they came in.
///
/// `points` ascend in x. Points outside of `domain` are left out, but a line that crosses its edge is cut
/// there, so that a closer look shows where lines come from. A value that is not finite is a gap: one point
/// with NaN stands for each gap.
pub fn decimate(points: &[(f64, f64)], domain: (f64, f64), columns: usize) -> Vec<(f64, f64)> {
    let (start, end) = domain;
    if columns == 0 || !(end - start).is_finite() || end <= start {
        return Vec::new();
    }
    let mut kept =
        Kept { start, scale: columns as f64 / (end - start), columns, column: None, done: Vec::new() };
    let mut before: Option<(f64, f64)> = None;
    for &(x, y) in points {
        if !x.is_finite() {
            continue;
        }
        let point = y.is_finite().then_some((x, y));
        if let (Some(from), Some(to)) = (before, point) {
            for edge in [start, end] {
                if from.0 < edge && to.0 > edge {
                    let share = (edge - from.0) / (to.0 - from.0);
                    kept.add((edge, from.1 + share * (to.1 - from.1)));
                }
            }
        }
        match point {
            Some(point) if (start..=end).contains(&x) => kept.add(point),
            None if (start..=end).contains(&x) => kept.gap(x),
            _ => {}
        }
        before = point;
    }
    kept.flush();
    kept.done
}

/// The points of one column that matter.
#[derive(Clone, Copy)]
struct Column {
    index: usize,
    low: (f64, f64),
    high: (f64, f64),
}

struct Kept {
    start: f64,
    scale: f64,
    columns: usize,
    column: Option<Column>,
    done: Vec<(f64, f64)>,
}

impl Kept {
    fn add(&mut self, point: (f64, f64)) {
        let index = (((point.0 - self.start) * self.scale) as usize).min(self.columns - 1);
        match &mut self.column {
            Some(column) if column.index == index => {
                if point.1 < column.low.1 {
                    column.low = point;
                }
                if point.1 > column.high.1 {
                    column.high = point;
                }
            }
            _ => {
                self.flush();
                self.column = Some(Column { index, low: point, high: point });
            }
        }
    }

    fn gap(&mut self, x: f64) {
        self.flush();
        if self.done.last().is_some_and(|(_, y)| !y.is_nan()) {
            self.done.push((x, f64::NAN));
        }
    }

    fn flush(&mut self) {
        let Some(Column { low, high, .. }) = self.column.take() else { return };
        let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
        self.done.push(first);
        if first != second {
            self.done.push(second);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_spike_survives_a_thousand_points_a_column() {
        let mut points: Vec<(f64, f64)> = (0..20_000).map(|x| (f64::from(x), 1.0)).collect();
        points[12_345].1 = 9.0;
        points[777].1 = -3.0;
        let kept = decimate(&points, (0.0, 20_000.0), 40);
        assert!(kept.len() <= 80);
        assert!(kept.contains(&(12_345.0, 9.0)) && kept.contains(&(777.0, -3.0)));
    }

    #[test]
    fn gaps_stay_and_lines_are_cut_at_the_edges() {
        let points =
            [(0.0, 0.0), (10.0, 10.0), (11.0, f64::NAN), (12.0, f64::INFINITY), (13.0, 1.0), (20.0, 8.0)];
        let kept = decimate(&points, (5.0, 14.0), 100);
        assert_eq!(kept[0], (5.0, 5.0));
        assert_eq!(kept[1], (10.0, 10.0));
        assert!(kept[2].1.is_nan());
        assert_eq!(kept[3], (13.0, 1.0));
        assert_eq!(kept[4], (14.0, 2.0));
        assert_eq!(kept.len(), 5);
    }

    #[test]
    fn nothing_in_nothing_out() {
        assert!(decimate(&[], (0.0, 1.0), 10).is_empty());
        assert!(decimate(&[(0.0, 1.0)], (0.0, 0.0), 10).is_empty());
        assert!(decimate(&[(0.0, 1.0)], (0.0, f64::NAN), 10).is_empty());
        assert!(decimate(&[(0.0, 1.0)], (0.0, 1.0), 0).is_empty());
        assert!(decimate(&[(0.0, f64::NAN)], (0.0, 1.0), 10).is_empty());
    }

    proptest! {
        #[test]
        fn extremes_and_order_survive(
            values in proptest::collection::vec(prop_oneof![8 => -1e6f64..1e6, 1 => Just(f64::NAN)], 1..300),
            columns in 1usize..60,
        ) {
            let points: Vec<(f64, f64)> = values.iter().enumerate().map(|(x, y)| (x as f64, *y)).collect();
            let kept = decimate(&points, (0.0, values.len() as f64), columns);
            let finite = |points: &[(f64, f64)]| -> Vec<f64> {
                points.iter().map(|(_, y)| *y).filter(|y| y.is_finite()).collect()
            };
            let extreme = |values: &[f64], pick: fn(f64, f64) -> f64| values.iter().copied().reduce(pick);
            let (all, left) = (finite(&points), finite(&kept));
            prop_assert_eq!(extreme(&all, f64::min), extreme(&left, f64::min));
            prop_assert_eq!(extreme(&all, f64::max), extreme(&left, f64::max));
            prop_assert!(kept.windows(2).all(|pair| pair[0].0 <= pair[1].0));
            let gaps = values.iter().filter(|y| y.is_nan()).count();
            prop_assert!(kept.len() <= 2 * (columns + gaps) + gaps);
        }
    }
}
