//! What a planned run would be, or why it cannot start.

/// What a run would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanSummary {
    /// The method in two words: `lora r16`.
    pub method: String,
    /// Parameters, steps, memory and what there is to know, a line each.
    pub lines: Vec<String>,
}

/// Why a run cannot be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In a few words.
    pub title: String,
    /// With all problems, lines and carets.
    pub text: String,
}
