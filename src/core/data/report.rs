//! The pre-flight report of a dataset: its statistics and problems.

use std::collections::HashMap;

use serde::Serialize;

use super::Row;
use crate::text::clean_line;

/// Most findings of one kind that are kept; the rest are counted.
const MAX_OF_A_KIND: usize = 1000;
/// Most bars in a length histogram.
const BARS: usize = 20;

/// The pre-flight report of a dataset; `data check --json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Rows found, without quarantined ones.
    pub rows: usize,
    pub train_rows: usize,
    pub eval_rows: usize,
    /// Rows left out because the project's quarantine lists them.
    pub quarantined: usize,
    /// Tokens of all usable rows, in all their sides.
    pub tokens: u64,
    /// Those tokens that are targets of the loss.
    pub trained_tokens: u64,
    /// Rows truncated to `data.max_length`.
    pub truncated: usize,
    /// Rows left out because they are longer than `data.max_length`.
    pub dropped: usize,
    /// Most severe first, then by kind and row.
    pub problems: Vec<DataProblem>,
    pub lengths: LengthStatistics,
    pub template: String,
    pub template_fingerprint: String,
}

impl Report {
    /// Whether a problem prevents training.
    pub fn blocks(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Blocks)
    }

    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// Fraction of tokens that are targets of the loss, 0 to 1; 0 without tokens.
    pub fn trained_share(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.trained_tokens as f64 / self.tokens as f64 }
    }
}

/// One problem found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DataProblem {
    pub kind: ProblemKind,
    pub severity: Severity,
    /// [`super::Row::index`]; `None` if it is about the dataset or a row that could not be read.
    pub row: Option<usize>,
    /// What is wrong and what to do. Untrusted text in it is cleaned.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A run must not start.
    Blocks,
    /// A run will work, but perhaps not as intended.
    Warning,
    /// Good to know.
    Note,
}

/// Kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    EmptyDataset,
    /// Every row is longer than `data.max_length`.
    AllTooLong,
    /// A row that does not parse, or lacks a field that its format needs.
    UnreadableRow,
    /// A row that the chat template refuses.
    TemplateFailed,
    /// A row that cannot be tokenised.
    TokenizerFailed,
    /// A row whose loss mask is uncertain.
    MaskUncertain,
    /// A row without a token to learn.
    NoTrainedTokens,
    /// Rows that `train.algorithm` cannot learn from.
    NotForAlgorithm,
    /// A preference pair whose sides are the same.
    SameSides,
    /// Numbers of good and bad answers that are out of balance.
    UnevenLabels,
    /// A row longer than `data.max_length` under `overflow = "error"`.
    TooLong,
    /// A held-out row that is also a training row.
    EvalInTrain,
    /// A reply whose end-of-turn token is not trained: the model will not learn to stop.
    EndOfTurnNotTrained,
    /// Two begin-of-text tokens.
    DoubleBos,
    /// A row truncated to `data.max_length`.
    Truncated,
    /// A row left out because it is longer than `data.max_length`.
    Dropped,
    /// Rows longer than the positions that the model has or was trained for.
    BeyondPositions,
    /// A row equal to an earlier one.
    Duplicate,
    /// A row nearly equal to an earlier one.
    NearDuplicate,
    /// A reply without text.
    EmptyReply,
    /// Replacement or control characters.
    BrokenText,
    /// Text that contains a special token.
    SpecialTokenInText,
    /// An e-mail address.
    EmailAddress,
    /// The split leaves no row to evaluate on.
    NoEvalRows,
    /// The dataset is larger than the limit of a check.
    CheckLimited,
}

impl ProblemKind {
    /// Short name for lists: `no trained tokens`.
    pub fn label(self) -> &'static str {
        match self {
            ProblemKind::EmptyDataset => "empty dataset",
            ProblemKind::AllTooLong => "all rows too long",
            ProblemKind::UnreadableRow => "unreadable row",
            ProblemKind::TemplateFailed => "template refuses",
            ProblemKind::TokenizerFailed => "tokenizer refuses",
            ProblemKind::MaskUncertain => "loss mask uncertain",
            ProblemKind::NoTrainedTokens => "no trained tokens",
            ProblemKind::NotForAlgorithm => "not for train.algorithm",
            ProblemKind::SameSides => "chosen equals rejected",
            ProblemKind::UnevenLabels => "good and bad out of balance",
            ProblemKind::TooLong => "over max_length",
            ProblemKind::EvalInTrain => "held-out also in train",
            ProblemKind::EndOfTurnNotTrained => "end of turn not trained",
            ProblemKind::DoubleBos => "double BOS",
            ProblemKind::Truncated => "truncated",
            ProblemKind::Dropped => "dropped, over max_length",
            ProblemKind::BeyondPositions => "beyond the model's positions",
            ProblemKind::Duplicate => "duplicate",
            ProblemKind::NearDuplicate => "near-duplicate",
            ProblemKind::EmptyReply => "empty reply",
            ProblemKind::BrokenText => "broken text",
            ProblemKind::SpecialTokenInText => "special token in text",
            ProblemKind::EmailAddress => "e-mail addresses",
            ProblemKind::NoEvalRows => "nothing held out",
            ProblemKind::CheckLimited => "check limited",
        }
    }
}

/// Tokens per row over all usable rows, before truncation. For a row with several sides, the longest counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LengthStatistics {
    pub min: usize,
    pub p50: usize,
    /// 95 of 100 rows are at most this long.
    pub p95: usize,
    pub max: usize,
    /// Equal-width bins from 0 to the longest row; empty without rows.
    pub histogram: Vec<HistogramBin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HistogramBin {
    /// Fewest tokens of a row in this bin.
    pub from: usize,
    /// Most tokens of a row in this bin.
    pub to: usize,
    /// Number of rows in this bin.
    pub rows: usize,
}

impl LengthStatistics {
    pub(super) fn of(mut lengths: Vec<usize>) -> Self {
        lengths.sort_unstable();
        let (Some(&min), Some(&max)) = (lengths.first(), lengths.last()) else { return Self::default() };
        // Nearest rank: the smallest length that at least this share of rows does not exceed.
        let at = |percent: usize| lengths[(lengths.len() * percent).div_ceil(100).max(1) - 1];
        let width = (max + 1).div_ceil(BARS);
        let mut histogram: Vec<HistogramBin> = (0..=max / width)
            .map(|bar| HistogramBin { from: bar * width, to: (bar + 1) * width - 1, rows: 0 })
            .collect();
        for length in &lengths {
            histogram[length / width].rows += 1;
        }
        LengthStatistics { min, p50: at(50), p95: at(95), max, histogram }
    }
}

/// Collects problems, up to a limit for each kind.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    problems: Vec<DataProblem>,
    counts: HashMap<(ProblemKind, Severity), usize>,
}

impl Findings {
    pub(crate) fn add(&mut self, kind: ProblemKind, severity: Severity, row: Option<usize>, message: &str) {
        let count = self.counts.entry((kind, severity)).or_default();
        *count += 1;
        if *count <= MAX_OF_A_KIND {
            let message = clean_line(message).into_owned();
            self.problems.push(DataProblem { kind, severity, row, message });
        }
    }

    /// A problem of one row; the message begins with the row's place.
    pub(crate) fn row(&mut self, kind: ProblemKind, severity: Severity, row: &Row, what: &str) {
        self.add(kind, severity, Some(row.index), &format!("{}: {what}", row.origin));
    }

    /// Most severe first, then by kind and row; problems without a row last.
    pub(super) fn sorted(mut self) -> Vec<DataProblem> {
        for ((kind, severity), count) in self.counts {
            if count > MAX_OF_A_KIND {
                let message = format!("{}: {} more rows", kind.label(), count - MAX_OF_A_KIND);
                self.problems.push(DataProblem { kind, severity, row: None, message });
            }
        }
        self.problems
            .sort_by_key(|problem| (problem.severity, problem.kind, problem.row.is_none(), problem.row));
        self.problems
    }
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn statistics_use_nearest_ranks() {
        let statistics = LengthStatistics::of((1..=100).rev().collect());
        assert_eq!((statistics.min, statistics.p50, statistics.p95, statistics.max), (1, 50, 95, 100));
        assert_eq!(statistics.histogram.iter().map(|bar| bar.rows).sum::<usize>(), 100);
        assert_eq!(statistics.histogram[0], HistogramBin { from: 0, to: 5, rows: 5 });
        assert!(statistics.histogram.len() <= BARS);
        let one = LengthStatistics::of(vec![7]);
        assert_eq!((one.p50, one.p95, one.histogram.len()), (7, 7, 8));
        assert_eq!(LengthStatistics::of(Vec::new()), LengthStatistics::default());
    }

    #[test]
    fn findings_are_limited_cleaned_and_sorted() {
        let mut findings = Findings::default();
        for row in 0..1500 {
            findings.add(ProblemKind::EmailAddress, Severity::Note, Some(row), "x\u{1b}[0m");
        }
        findings.add(ProblemKind::EmptyDataset, Severity::Blocks, None, "empty");
        let sorted = findings.sorted();
        assert_eq!(sorted.len(), 1002);
        assert_eq!(sorted[0].kind, ProblemKind::EmptyDataset);
        assert_eq!(sorted[1].message, "x[0m");
        assert_eq!(sorted[1001].message, "e-mail addresses: 500 more rows");
    }
}
