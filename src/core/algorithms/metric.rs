//! What a training algorithm reports in addition to its loss.

use serde::{Deserialize, Serialize};

use crate::units;

/// Which way a figure is better.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, strum::Display, strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Direction {
    /// Less is better.
    #[default]
    Min,
    /// More is better.
    Max,
}

/// How a figure is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// A number in the digits that matter.
    Number,
    /// A share from 0 to 1, in per cent.
    Share,
}

/// A figure that an algorithm reports of a step, of an evaluation, or of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its key in the journal, such as `reward_margin`; a sweep's goal names it with `eval.` before.
    pub name: &'static str,
    /// Its name on the screen.
    pub label: &'static str,
    /// How it is written.
    pub notation: Notation,
    /// Which way it is better.
    pub better: Direction,
    /// Whether it is worth a chart and a place in the line of a running step.
    pub chart: bool,
}

impl Notation {
    /// A value in this notation.
    pub fn write(self, value: f64) -> String {
        match self {
            Self::Number => units::number(value),
            Self::Share => units::percent(value),
        }
    }
}

impl Direction {
    /// Whether `one` is better than `other`. NaN is worse than everything.
    pub fn is_better(self, one: f64, other: f64) -> bool {
        if one.is_nan() || other.is_nan() {
            return !one.is_nan();
        }
        match self {
            Self::Min => one < other,
            Self::Max => one > other,
        }
    }
}

impl Metric {
    /// Reported in numbers, of which less is better.
    pub(super) const fn less(name: &'static str, label: &'static str) -> Self {
        Self { name, label, notation: Notation::Number, better: Direction::Min, chart: false }
    }

    /// Reported in numbers, of which more is better.
    pub(super) const fn more(name: &'static str, label: &'static str) -> Self {
        Self { better: Direction::Max, ..Self::less(name, label) }
    }

    /// The same, as a share from 0 to 1.
    pub(super) const fn as_share(self) -> Self {
        Self { notation: Notation::Share, ..self }
    }

    /// The same, with a chart.
    pub(super) const fn with_chart(self) -> Self {
        Self { chart: true, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_better_than_a_number_by_being_none() {
        for direction in [Direction::Min, Direction::Max] {
            assert!(!direction.is_better(f64::NAN, 1.0));
            assert!(direction.is_better(1.0, f64::NAN));
        }
        assert!(Direction::Min.is_better(0.5, 1.0) && !Direction::Max.is_better(0.5, 1.0));
    }
}
