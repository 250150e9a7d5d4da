//! What the review pane asks in a box.

use luthier_core::eval::Verdict;

use super::target::Target;

/// What the pane asks in a box, so that the answer finds its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum ReviewQuestion {
    /// Which of these to compare.
    Target(Vec<Target>),
    /// Which prompt of the suite.
    Prompt,
    /// The note for the comparison with this number.
    Note(u64),
    /// The file for the preference pairs.
    Export,
    /// Add the edited answer to the training data?
    AddExample(Box<Verdict>),
}
