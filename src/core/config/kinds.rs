//! What a key accepts, and the words for it in messages.

use std::fmt;

use super::choices::Choice;

/// Largest value of a count that sizes nothing in memory.
pub(super) const MOST: u64 = i64::MAX as u64;

/// The values a key accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A file or folder, relative to the project; empty for none.
    Path,
    /// `model.path`: a model folder, a `.gguf` file or a name of the hub.
    Model,
    /// One path or a list of them, at least one.
    Paths,
    /// `data.train`: a path, a table with a path and how many of its rows, or a list of those.
    Sources,
    /// A text or a list of texts; empty for none.
    Texts,
    /// A regular expression; empty for none.
    Pattern,
    /// `true` or `false`.
    Flag,
    /// A whole number within these bounds, both included.
    Whole {
        /// Smallest value.
        least: u64,
        /// Largest value.
        most: u64,
    },
    /// A finite number within bounds.
    Number(Bounds),
    /// One of these names.
    Choice(&'static [Choice]),
    /// `model.device`: `"auto"`, `"cpu"` or a GPU by its number, such as `"cuda:0"`.
    Device,
    /// `data.eval`: a path, a list of paths, or the share held out.
    Eval,
    /// `data.columns`: a table from one of these roles to a column name.
    Columns(&'static [&'static str]),
    /// `data.template_variables`: a table from names to any values.
    Variables,
    /// `method.targets`: `"all-linear"`, a list of module names, or a regular expression.
    Targets,
    /// `train.warmup`: a share of the run, or a whole number of steps.
    Warmup,
    /// `train.betas`: a list of two numbers.
    Betas,
}

/// Bounds of a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Lower bound.
    pub least: f64,
    /// Whether the lower bound itself is allowed.
    pub with_least: bool,
    /// Upper bound.
    pub most: f64,
    /// Whether the upper bound itself is allowed.
    pub with_most: bool,
}

impl Bounds {
    /// `least..=most`.
    pub const fn closed(least: f64, most: f64) -> Self {
        Self { least, with_least: true, most, with_most: true }
    }

    /// `least..=most` without `least`.
    pub const fn above(least: f64, most: f64) -> Self {
        Self { with_least: false, ..Self::closed(least, most) }
    }

    /// `least..most`.
    pub const fn below(least: f64, most: f64) -> Self {
        Self { with_most: false, ..Self::closed(least, most) }
    }

    /// Whether `number` lies within; NaN never does.
    pub fn hold(&self, number: f64) -> bool {
        let low = if self.with_least { number >= self.least } else { number > self.least };
        let high = if self.with_most { number <= self.most } else { number < self.most };
        low && high
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let low = if self.with_least { "at least" } else { "above" };
        let high = if self.with_most { "at most" } else { "below" };
        write!(formatter, "{low} {} and {high} {}", self.least, self.most)
    }
}

impl Kind {
    /// Whether every accepted value is written as one text, so that an unquoted one can only be meant as
    /// such.
    pub(super) fn is_text(&self) -> bool {
        matches!(self, Self::Text | Self::Path | Self::Model | Self::Pattern | Self::Choice(_))
    }
}

impl fmt::Display for Kind {
    /// As in "must be …".
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => formatter.write_str("a text in quotes"),
            Self::Path => formatter.write_str("a path in quotes"),
            Self::Model => formatter.write_str("a model folder, a .gguf file or hf:org/name in quotes"),
            Self::Paths => formatter.write_str("a path in quotes, or a list of them"),
            Self::Sources => formatter.write_str(
                "a file, folder, pattern or hf:org/name in quotes, a table { path, rows, share }, or a list",
            ),
            Self::Texts => formatter.write_str("a text in quotes, or a list of them"),
            Self::Pattern => formatter.write_str("a regular expression in quotes"),
            Self::Flag => formatter.write_str("true or false"),
            Self::Whole { least, most } if *most == MOST => {
                write!(formatter, "a whole number, at least {least}")
            }
            Self::Whole { least, most } => write!(formatter, "a whole number from {least} to {most}"),
            Self::Number(bounds) => write!(formatter, "a number {bounds}"),
            Self::Choice(choices) => {
                let names: Vec<_> = choices.iter().map(|choice| format!("\"{}\"", choice.name)).collect();
                write!(formatter, "one of {}", names.join(", "))
            }
            Self::Device => formatter.write_str("\"auto\", \"cpu\" or \"cuda:0\""),
            Self::Eval => formatter.write_str("a path in quotes, or a share at least 0 and below 1"),
            Self::Columns(_) => formatter.write_str("a table such as { prompt = \"question\" }"),
            Self::Variables => formatter.write_str("a table such as { enable_thinking = false }"),
            Self::Targets => {
                formatter.write_str("\"all-linear\", a list of module names, or one regular expression")
            }
            Self::Warmup => {
                formatter.write_str("a share at least 0.0 and below 1.0, or a whole number of steps")
            }
            Self::Betas => formatter.write_str("two numbers, each at least 0 and below 1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_keep_their_ends_apart() {
        assert!(Bounds::closed(0.0, 1.0).hold(0.0) && Bounds::closed(0.0, 1.0).hold(1.0));
        assert!(!Bounds::above(0.0, 1.0).hold(0.0) && Bounds::above(0.0, 1.0).hold(1.0));
        assert!(Bounds::below(0.0, 1.0).hold(0.0) && !Bounds::below(0.0, 1.0).hold(1.0));
        assert!(!Bounds::closed(0.0, 1.0).hold(f64::NAN));
        assert_eq!(Bounds::above(0.0, 1.0).to_string(), "above 0 and at most 1");
    }

    #[test]
    fn choices_are_listed() {
        let kind = Kind::Choice(super::super::Recompute::CHOICES);
        assert_eq!(kind.to_string(), "one of \"auto\", \"on\", \"off\"");
    }
}
