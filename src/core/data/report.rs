//! The pre-flight: what a dataset is like and what is wrong with it.

use std::collections::HashMap;

use serde::Serialize;

use super::Row;
use crate::text::clean_line;

/// Findings of one kind that are kept; more are counted.
const MAX_OF_A_KIND: usize = 1000;
/// Bars of a length histogram, at most.
const BARS: usize = 20;

/// The pre-flight of a dataset: `data check --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Rows found, quarantined ones not counted.
    pub rows: usize,
    /// Rows that will be trained on.
    pub train_rows: usize,
    /// Held-out rows.
    pub eval_rows: usize,
    /// Rows left out because the project's quarantine lists them.
    pub quarantined: usize,
    /// Tokens of all usable rows, all their sides counted.
    pub tokens: u64,
    /// Those of them that are targets of the loss.
    pub trained_tokens: u64,
    /// Rows cut at `data.max_length`.
    pub truncated: usize,
    /// Rows left out because they are longer.
    pub dropped: usize,
    /// Gravest first, then by kind and row.
    pub problems: Vec<DataProblem>,
    /// Tokens per row.
    pub lengths: LengthStatistics,
    /// Name of the chat template.
    pub template: String,
    /// Its fingerprint.
    pub template_fingerprint: String,
}

impl Report {
    /// Whether a problem forbids training.
    pub fn blocks(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Blocks)
    }

    /// Number of problems of one severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// Share of tokens that are targets of the loss, 0 to 1; 0 without tokens.
    pub fn trained_share(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.trained_tokens as f64 / self.tokens as f64 }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DataProblem {
    /// What sort.
    pub kind: ProblemKind,
    /// How grave.
    pub severity: Severity,
    /// [`super::Row::index`]; `None` where it concerns the dataset or a row that could not be read.
    pub row: Option<usize>,
    /// What is wrong and what to do; untrusted text in it is cleaned.
    pub message: String,
}

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A run must not start.
    Blocks,
    /// A run will work, perhaps not as meant.
    Warning,
    /// Worth knowing.
    Note,
}

/// Sorts of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// No row at all.
    EmptyDataset,
    /// Every row is longer than `data.max_length`.
    AllTooLong,
    /// A row that does not parse or lacks what its format needs.
    UnreadableRow,
    /// A row that the chat template refuses.
    TemplateFailed,
    /// A row that cannot be tokenised.
    TokenizerFailed,
    /// A row whose loss mask cannot be found without doubt.
    MaskUncertain,
    /// A row without a token to learn.
    NoTrainedTokens,
    /// Rows that `train.algorithm` cannot learn from.
    NotForAlgorithm,
    /// A preference pair whose sides are the same.
    SameSides,
    /// Good and bad answers that do not balance.
    UnevenLabels,
    /// A row longer than `data.max_length` under `overflow = "error"`.
    TooLong,
    /// A held-out row that also stands in the training rows.
    EvalInTrain,
    /// A reply whose end-of-turn token is not trained: the model will not learn to stop.
    EndOfTurnNotTrained,
    /// Two begin-of-text tokens.
    DoubleBos,
    /// A row cut at `data.max_length`.
    Truncated,
    /// A row left out because it is longer than `data.max_length`.
    Dropped,
    /// Rows longer than the positions that the model has or was made for.
    BeyondPositions,
    /// A row that stands in the dataset before.
    Duplicate,
    /// A row nearly equal to an earlier one.
    NearDuplicate,
    /// A reply without text.
    EmptyReply,
    /// Replacement or control characters.
    BrokenText,
    /// Text that spells a special token.
    SpecialTokenInText,
    /// An e-mail address.
    EmailAddress,
    /// The split leaves no row to evaluate on.
    NoEvalRows,
    /// The dataset is larger than a check looks at.
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

/// Tokens per row over all usable rows, before truncation where it happened; of a row with several sides, of its longest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LengthStatistics {
    /// Shortest.
    pub min: usize,
    /// Median.
    pub p50: usize,
    /// 95 of 100 rows are at most this long.
    pub p95: usize,
    /// Longest.
    pub max: usize,
    /// Equal-width bins from 0 to the longest row; empty without rows.
    pub histogram: Vec<HistogramBin>,
}

/// One bar of a length histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HistogramBin {
    /// Fewest tokens that fall in.
    pub from: usize,
    /// Most tokens that fall in.
    pub to: usize,
    /// Rows that fall in.
    pub rows: usize,
}

impl LengthStatistics {
    /// Of these lengths.
    pub(super) fn of(mut lengths: Vec<usize>) -> Self {
        lengths.sort_unstable();
        let (Some(&min), Some(&max)) = (lengths.first(), lengths.last()) else { return Self::default() };
        // The nearest rank: the smallest length that at least this share of rows does not exceed.
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

/// Collects problems; keeps the number of each kind in bounds.
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

    /// A finding about one row, which its message names by its place.
    pub(crate) fn row(&mut self, kind: ProblemKind, severity: Severity, row: &Row, what: &str) {
        self.add(kind, severity, Some(row.index), &format!("{}: {what}", row.origin));
    }

    /// Gravest first, then by kind and row, findings without a row last.
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
    fn statistics_are_nearest_ranks() {
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
    fn findings_are_bounded_cleaned_and_sorted() {
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
