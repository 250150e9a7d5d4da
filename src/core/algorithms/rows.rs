//! The shapes of rows that training algorithms learn from.

use super::Algorithm;
use crate::config::Format;
use crate::data::{Findings, PlacedHead, ProblemKind, Severity};

/// What a row is to an algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowShape {
    /// An answer to learn, or a text.
    Answer,
    /// Two answers to one prompt, one preferred.
    Pair,
    /// An answer with a label that says whether it is a good one.
    LabelledAnswer,
}

impl RowShape {
    /// The shape that a row has.
    fn of(row: &PlacedHead) -> Self {
        if row.is_pair {
            Self::Pair
        } else if row.label.is_some() {
            Self::LabelledAnswer
        } else {
            Self::Answer
        }
    }

    /// Why `data.format` cannot hold such rows, and what to do; nothing where it can.
    pub(crate) fn refused_format(self, algorithm: Algorithm, format: Format) -> Option<(String, String)> {
        match (self, format) {
            (Self::Answer | Self::LabelledAnswer, Format::Preference) => Some((
                format!("preference pairs need `train.algorithm` = \"{}\"", for_pairs().name()),
                "set it, or learn the chosen replies alone: format = \"prompt-completion\" with \
                 columns = { completion = \"chosen\" }"
                    .to_owned(),
            )),
            (Self::Answer, _)
            | (Self::Pair, Format::Auto | Format::Preference)
            | (
                Self::LabelledAnswer,
                Format::Auto
                | Format::Messages
                | Format::ShareGpt
                | Format::Alpaca
                | Format::PromptCompletion,
            ) => None,
            (Self::Pair, _) => Some((
                format!(
                    "`train.algorithm` = \"{algorithm}\" learns from preference pairs, and `data.format` is \"{format}\""
                ),
                "set format = \"preference\", with fields prompt, chosen and rejected".to_owned(),
            )),
            (Self::LabelledAnswer, _) => Some((
                format!(
                    "`train.algorithm` = \"{algorithm}\" learns from answers with a label, and `data.format` is \"{format}\""
                ),
                "set format = \"prompt-completion\", with fields prompt, completion and label".to_owned(),
            )),
        }
    }

    /// Why the algorithm trains on the last reply only; nothing where `data.train_on` decides.
    pub(crate) fn trains_on_completion(self) -> Option<&'static str> {
        match self {
            Self::Answer => None,
            Self::Pair => Some("compares the chosen and the rejected reply alone"),
            Self::LabelledAnswer => Some("learns from the labelled reply alone"),
        }
    }

    /// Adds to `findings` the rows of another shape, which block a run.
    pub(crate) fn check(self, algorithm: Algorithm, rows: &[PlacedHead], findings: &mut Findings) {
        let mut block = |what: &str| {
            findings.add(ProblemKind::NotForAlgorithm, Severity::Blocks, what);
        };
        let count = |shape: Self| rows.iter().filter(|row| Self::of(row) == shape).count();
        let pairs = count(Self::Pair);
        let all = rows.len();
        match self {
            Self::Pair if pairs < all => block(&format!(
                "{} of {all} rows are not preference pairs, and train.algorithm = \"{algorithm}\" learns from those \
                 alone: give each row a prompt, a chosen and a rejected reply",
                all - pairs
            )),
            Self::Answer | Self::LabelledAnswer if pairs > 0 => block(&format!(
                "{pairs} of {all} rows are preference pairs; set train.algorithm = \"{}\". Where prompts and replies are \
                 texts, data.columns = {{ completion = \"chosen\" }} learns the chosen replies alone",
                for_pairs().name()
            )),
            _ => {}
        }
        let without = || rows.iter().filter(|row| Self::of(row) == Self::Answer);
        if self == Self::LabelledAnswer && without().count() == all && all > 0 {
            findings.add(ProblemKind::NotForAlgorithm, Severity::Blocks, &format!(
                "no row has a \"label\" that is true or false, and train.algorithm = \"{algorithm}\" learns from good and bad \
                 answers: give each row a prompt, a completion and a label, true for a good answer; if the label has \
                 another name, say data.columns = {{ label = \"…\" }}"
            ));
        } else if self == Self::LabelledAnswer {
            for row in without() {
                let what = format!(
                    "has no \"label\" that is true or false, and train.algorithm = \"{algorithm}\" needs one: true for a \
                     good answer, false for a bad one"
                );
                findings.row(ProblemKind::NotForAlgorithm, Severity::Blocks, row, &what);
            }
        }
        if self == Self::Answer {
            for row in rows.iter().filter(|row| row.label == Some(false)) {
                findings.row(ProblemKind::BadAnswer, Severity::Blocks, row, &bad_answer(algorithm));
            }
        }
    }
}

/// What to say of a row that labels its answer as bad.
fn bad_answer(algorithm: Algorithm) -> String {
    let other = Algorithm::ALL.iter().find(|other| other.declaration().rows == RowShape::LabelledAnswer);
    let instead = other.map_or_else(String::new, |other| {
        format!("Set train.algorithm = \"{}\", which learns from both, or ", other.name())
    });
    let leave = if instead.is_empty() { "Leave" } else { "leave" };
    format!(
        "its \"label\" is false, which marks a bad answer, and train.algorithm = \"{algorithm}\" would learn it as a good \
         one. {instead}{leave} the row out, or rename the field if it means something else"
    )
}

/// The algorithm that learns from pairs.
fn for_pairs() -> Algorithm {
    let of_pairs = |algorithm: &Algorithm| algorithm.declaration().rows == RowShape::Pair;
    Algorithm::ALL.iter().copied().find(of_pairs).unwrap_or(Algorithm::Dpo)
}
