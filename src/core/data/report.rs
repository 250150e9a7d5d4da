//! The pre-flight report of a dataset: its statistics and problems.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use indexmap::IndexMap;
use indexmap::map::Entry;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::PlacedHead;
use super::alike::pattern;
use crate::text::clean_line;

/// Most findings of one kind that are kept; the rest are counted.
const MAX_OF_A_KIND: usize = 1000;
/// Most findings that say different things, of all kinds, whose rows are counted apart.
const MAX_COUNTED: usize = 1000;
/// Most bars in a length histogram.
const BARS: usize = 20;

/// The pre-flight report of a dataset; `data check --json` prints it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    /// Most severe first, then by kind and row. Of each kind, the first 1000, and one of each that says something
    /// else; `findings` counts all.
    pub problems: Vec<DataProblem>,
    /// How many rows have the findings that say the same, in the order in which they were found.
    pub findings: Vec<FindingRows>,
    /// The rows of each kind of problem, all of them.
    pub rows_of: Vec<KindRows>,
    /// Whether the data is enough for the task, in plain sentences.
    pub advice: Vec<String>,
    pub lengths: LengthStatistics,
    /// How much each role says, the role that says most first.
    pub roles: Vec<RoleLengths>,
    pub template: String,
    pub template_fingerprint: String,
}

impl Report {
    /// Whether a problem prevents training.
    pub fn blocks(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Blocks)
    }

    /// Rows that are neither trained on nor held out.
    pub fn left_out(&self) -> usize {
        // Long texts may be learned in parts.
        self.rows.saturating_sub(self.train_rows + self.eval_rows)
    }

    /// Adds a problem of the dataset as a whole.
    pub(super) fn add(&mut self, problem: Option<DataProblem>) {
        let Some(problem) = problem else { return };
        let place = self.problems.partition_point(|other| other.severity <= problem.severity);
        self.problems.insert(place, problem);
    }

    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// The rows with a kind of problem.
    pub fn rows_of(&self, kind: ProblemKind) -> &[usize] {
        self.rows_of.iter().find(|rows| rows.kind == kind).map_or(&[], |rows| rows.rows.as_slice())
    }

    /// Fraction of tokens that are targets of the loss, 0 to 1; 0 without tokens.
    pub fn trained_share(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.trained_tokens as f64 / self.tokens as f64 }
    }
}

/// How much a role says, before any row is cut; of a preference pair, with the chosen answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoleLengths {
    pub role: String,
    /// Its tokens in all rows.
    pub tokens: u64,
    /// Their share of all tokens, those of the template included, 0 to 1.
    pub share: f64,
    /// Its tokens per row that it speaks in.
    pub lengths: LengthStatistics,
}

/// The rows with one kind of problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindRows {
    pub kind: ProblemKind,
    /// [`super::Row::index`] of each, ascending.
    pub rows: Vec<usize>,
}

/// Findings about rows that differ only in names, numbers and places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingRows {
    pub kind: ProblemKind,
    pub severity: Severity,
    /// What they say, with `#` for what differs: [`pattern`].
    pub what: String,
    pub rows: usize,
}

/// One problem found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataProblem {
    pub kind: ProblemKind,
    pub severity: Severity,
    /// [`super::Row::index`]; `None` if it is about the dataset or a row that could not be read.
    pub row: Option<usize>,
    /// [`super::Row::index`] of the row that this one is like, for problems between two rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<usize>,
    /// What is wrong and what to do. Untrusted text in it is cleaned.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A run must not start.
    Blocks,
    /// A run will work, but perhaps not as intended.
    Warning,
    /// Good to know.
    Note,
}

macro_rules! kinds {
    ($( #[doc = $doc:literal] $kind:ident = $label:literal; )+) => {
        /// Kinds of problems.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, IntoStaticStr, VariantArray)]
        #[serde(rename_all = "snake_case")]
        #[strum(serialize_all = "snake_case")]
        pub enum ProblemKind {
            $( #[doc = $doc] $kind, )+
        }

        impl ProblemKind {
            /// Short name for lists: `no trained tokens`.
            pub fn label(self) -> &'static str {
                match self {
                    $( ProblemKind::$kind => $label, )+
                }
            }

            /// What it is, in one sentence.
            pub fn about(self) -> &'static str {
                match self {
                    $( ProblemKind::$kind => $doc.trim_ascii(), )+
                }
            }
        }
    };
}

kinds! {
    /// There is no row to train on.
    EmptyDataset = "empty dataset";
    /// Every row is longer than `data.max_length`.
    AllTooLong = "all rows too long";
    /// A warm-up that is longer than the run over these rows.
    LongWarmup = "warm-up longer than the run";
    /// A row that does not parse, or lacks a field that its format needs.
    UnreadableRow = "unreadable row";
    /// A row that the chat template refuses.
    TemplateFailed = "template refuses";
    /// A row that cannot be tokenised.
    TokenizerFailed = "tokenizer refuses";
    /// A row whose loss mask is uncertain.
    MaskUncertain = "loss mask uncertain";
    /// A row without a token to learn.
    NoTrainedTokens = "no trained tokens";
    /// A reply of which nothing but the end-of-turn token is learned.
    NothingLearned = "empty reply learned";
    /// Rows that `train.algorithm` cannot learn from.
    NotForAlgorithm = "not for train.algorithm";
    /// An answer that its row labels as bad, and that would be learned as a good one.
    BadAnswer = "bad answer";
    /// A preference pair whose sides are the same.
    SameSides = "chosen equals rejected";
    /// Numbers of good and bad answers that are out of balance.
    UnevenLabels = "good and bad out of balance";
    /// A row longer than `data.max_length` under `overflow = "error"`.
    TooLong = "over max_length";
    /// A row that is left out because `data.max_length` cuts off all its reply.
    ReplyCutOff = "reply cut off";
    /// Something that a row says and the template leaves out.
    NotInText = "not in the text";
    /// A held-out row that is also a training row.
    EvalInTrain = "held-out also in train";
    /// A held-out row whose prompt is also trained on.
    PromptInTrain = "held-out prompt in train";
    /// A reply whose end-of-turn token is not trained: the model will not learn to stop.
    EndOfTurnNotTrained = "end of turn not trained";
    /// Two begin-of-text tokens.
    DoubleBos = "double BOS";
    /// A token that belongs to both prompt and reply.
    TokenAcross = "token across the boundary";
    /// A row truncated to `data.max_length`.
    Truncated = "truncated";
    /// A row left out because it is longer than `data.max_length`.
    Dropped = "dropped, over max_length";
    /// Rows longer than the positions that the model has or was trained for.
    BeyondPositions = "beyond the model's positions";
    /// A row equal to an earlier one.
    Duplicate = "duplicate";
    /// A row nearly equal to an earlier one.
    NearDuplicate = "near-duplicate";
    /// Rows with one prompt and different replies.
    Contradiction = "contradiction";
    /// A reply without text.
    EmptyReply = "empty reply";
    /// A prompt without words.
    EmptyPrompt = "empty prompt";
    /// Every reply thinks nothing before it answers.
    EmptyReasoning = "empty reasoning";
    /// What was decided while reading the files.
    Reading = "reading";
    /// A field of rows or messages that nothing reads.
    UnusedField = "unused field";
    /// A tool call whose arguments are not JSON.
    ToolArguments = "tool arguments not JSON";
    /// Rows with several replies, of which only the last is learned.
    EarlierReplies = "earlier replies not trained";
    /// A reply that declines to answer.
    Refusal = "refusal";
    /// A reply with a phrase or a placeholder that is not meant for the reader.
    Boilerplate = "boilerplate";
    /// A reply with a code fence that is never closed.
    UnclosedFence = "unclosed code fence";
    /// A reply that is not JSON where the objective wants JSON.
    BrokenJson = "broken JSON";
    /// A text that repeats itself without end.
    Repetition = "repetition";
    /// A reply that repeats its prompt.
    EchoedPrompt = "echoed prompt";
    /// Text that was decoded with the wrong character set.
    Mojibake = "wrongly decoded text";
    /// Replacement or control characters.
    BrokenText = "broken text";
    /// Text with escapes that were not undone.
    EscapedText = "escaped text";
    /// Text that contains a special token.
    SpecialTokenInText = "special token in text";
    /// A key, a token or a password.
    Secret = "secret";
    /// An e-mail address, a card or account number, a phone number.
    PersonalData = "personal data";
    /// A row much longer or shorter than the others.
    LengthOutlier = "length outlier";
    /// Preferred replies that are longer on the whole.
    LongerChosen = "chosen replies longer";
    /// System prompts that are put into the first user message.
    SystemMerged = "system prompt merged";
    /// Texts that are learned as several examples.
    TextSplit = "text in parts";
    /// The split leaves no row to evaluate on.
    NoEvalRows = "nothing held out";
    /// The dataset is larger than the limit of a check.
    CheckLimited = "check limited";
}

impl ProblemKind {
    /// Its name in reports, in `data.allow` and on the command line: `no_trained_tokens`.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The kind of this name, or of this label.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::VARIANTS.iter().copied().find(|kind| kind.name() == name || kind.label() == name)
    }

    /// Whether a run can start in spite of it: not without rows, with rows that the model cannot read or the algorithm
    /// cannot learn from, or with a warm-up that never ends.
    pub fn can_be_allowed(self) -> bool {
        !matches!(
            self,
            Self::EmptyDataset
                | Self::AllTooLong
                | Self::BeyondPositions
                | Self::LongWarmup
                | Self::NotForAlgorithm
        )
    }

    /// The name of every kind.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::VARIANTS.iter().map(|kind| kind.name())
    }
}

/// Tokens per row over all usable rows, before truncation. For a row with several sides, the longest counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LengthStatistics {
    pub min: usize,
    pub p50: usize,
    /// 95 of 100 rows are at most this long.
    pub p95: usize,
    pub max: usize,
    /// Equal-width bins from 0 to the longest row; empty without rows.
    pub histogram: Vec<HistogramBin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    counts: HashMap<(ProblemKind, Severity), Count>,
    /// For each thing that is said about rows, how many rows there are and which was the last.
    said: IndexMap<(ProblemKind, Severity, String), (usize, usize)>,
    /// The rows of each kind, all of them.
    rows: BTreeMap<ProblemKind, Vec<usize>>,
    /// Kinds that `data.allow` names.
    allowed: Vec<ProblemKind>,
}

/// How a finding is counted with others that say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    First,
    Again,
    /// It is about no row, or there are too many that say different things.
    Not,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    kept: usize,
    /// Neither kept nor counted with others that say the same.
    lost: usize,
}

impl Findings {
    pub(crate) fn allowing(names: &[String]) -> Self {
        let allowed = names.iter().filter_map(|name| ProblemKind::from_name(name)).collect();
        Findings { allowed, ..Findings::default() }
    }

    /// A problem of the dataset, or of a row that could not be read.
    pub(crate) fn add(&mut self, kind: ProblemKind, severity: Severity, what: &str) {
        let (severity, what) = self.worded(kind, severity, what);
        self.push(DataProblem { kind, severity, row: None, other: None, message: what }, Counted::Not);
    }

    /// A problem of one row; the message begins with the row's place.
    pub(crate) fn row(&mut self, kind: ProblemKind, severity: Severity, row: &PlacedHead, what: &str) {
        self.row_at(kind, severity, row.index, row, what);
    }

    /// As [`Self::row`], of the row with an index and at a place.
    pub(super) fn row_at(
        &mut self,
        kind: ProblemKind,
        severity: Severity,
        index: usize,
        place: &dyn fmt::Display,
        what: &str,
    ) {
        let rows = self.rows.entry(kind).or_default();
        if rows.last() != Some(&index) {
            rows.push(index);
        }
        let (severity, what) = self.worded(kind, severity, what);
        let counted = self.count(kind, severity, index, &what);
        let message = format!("{}: {what}", clean_line(&place.to_string()));
        self.push(DataProblem { kind, severity, row: Some(index), other: None, message }, counted);
    }

    /// The severity and the words of a problem that `data.allow` may name.
    fn worded(&self, kind: ProblemKind, severity: Severity, what: &str) -> (Severity, String) {
        let what = clean_line(what);
        if severity == Severity::Blocks && self.allowed.contains(&kind) {
            return (Severity::Warning, format!("{what} (allowed by data.allow)"));
        }
        (severity, what.into_owned())
    }

    /// Counts a row's finding with those that say the same.
    fn count(&mut self, kind: ProblemKind, severity: Severity, row: usize, what: &str) -> Counted {
        let has_room = self.said.len() < MAX_COUNTED;
        match self.said.entry((kind, severity, pattern(kind, what))) {
            Entry::Occupied(mut said) => {
                let (rows, last) = said.get_mut();
                if *last != row {
                    (*rows, *last) = (*rows + 1, row);
                }
                Counted::Again
            }
            Entry::Vacant(said) if has_room => {
                said.insert((1, row));
                Counted::First
            }
            Entry::Vacant(_) => Counted::Not,
        }
    }

    fn push(&mut self, problem: DataProblem, counted: Counted) {
        let count = self.counts.entry((problem.kind, problem.severity)).or_default();
        if count.kept < MAX_OF_A_KIND || counted == Counted::First {
            count.kept += 1;
            self.problems.push(problem);
        } else if counted == Counted::Not {
            count.lost += 1;
        }
    }

    /// A problem between a row and another one, which is like it.
    pub(crate) fn row_like(
        &mut self,
        kind: ProblemKind,
        severity: Severity,
        row: &PlacedHead,
        other: usize,
        what: &str,
    ) {
        let index = self.problems.len();
        self.row(kind, severity, row, what);
        // Nothing was kept if there are too many of its kind.
        if let Some(problem) = self.problems.get_mut(index) {
            problem.other = Some(other);
        }
    }

    /// The rows of each kind, in order.
    pub(super) fn rows(&mut self) -> Vec<KindRows> {
        let rows = std::mem::take(&mut self.rows);
        let rows = rows.into_iter().map(|(kind, mut rows)| {
            rows.sort_unstable();
            rows.dedup();
            KindRows { kind, rows }
        });
        rows.collect()
    }

    /// How many rows have the findings that say the same.
    pub(super) fn counted(&mut self) -> Vec<FindingRows> {
        let said = std::mem::take(&mut self.said).into_iter();
        said.map(|((kind, severity, what), (rows, _))| FindingRows { kind, severity, what, rows }).collect()
    }

    /// Most severe first, then by kind and row; problems without a row last.
    pub(super) fn sorted(mut self) -> Vec<DataProblem> {
        for ((kind, severity), count) in self.counts {
            if count.lost > 0 {
                let message = format!("{}: {} more rows", kind.label(), count.lost);
                self.problems.push(DataProblem { kind, severity, row: None, other: None, message });
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
    use crate::data::{Example, Extras, Origin, Row, Rows, Split};

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

    fn rows(count: usize) -> Rows {
        let row = |index: usize| Row {
            index,
            origin: Origin { file: "a.jsonl".into(), line: index + 1 },
            split: Split::Train,
            example: Example::Text(String::new()),
            extras: Extras::default(),
        };
        Rows::from((0..count).map(row).collect::<Vec<_>>())
    }

    #[test]
    fn findings_that_are_neither_kept_nor_counted_are_told() {
        let mut findings = Findings::default();
        let rows = rows(MAX_COUNTED + 10);
        for row in rows.places() {
            let word: String = format!("{:b}", row.index).replace('0', "a").replace('1', "b");
            findings.row(ProblemKind::TemplateFailed, Severity::Warning, &row, &word);
        }
        assert_eq!(findings.counted().len(), MAX_COUNTED);
        let sorted = findings.sorted();
        assert_eq!(sorted.last().unwrap().message, "template refuses: 10 more rows");
    }

    #[test]
    fn findings_are_limited_cleaned_counted_and_sorted() {
        let mut findings = Findings::default();
        let rows = rows(1501);
        let places: Vec<PlacedHead> = rows.places().collect();
        let (last, others) = places.split_last().unwrap();
        for row in others {
            let what = format!("x\u{1b}[0m \"{}\"", row.index);
            findings.row(ProblemKind::PersonalData, Severity::Note, row, &what);
        }
        for number in 1..=2 {
            findings.row(ProblemKind::PersonalData, Severity::Note, last, &format!("y {number}"));
        }
        findings.add(ProblemKind::EmptyDataset, Severity::Blocks, "empty");
        let counted =
            findings.counted().into_iter().map(|found| (found.what, found.rows)).collect::<Vec<_>>();
        assert_eq!(counted, [("x[#m \"#\"".to_owned(), 1500), ("y #".to_owned(), 1)]);
        let sorted = findings.sorted();
        assert_eq!(sorted[0].kind, ProblemKind::EmptyDataset);
        assert_eq!(sorted[1].message, "a.jsonl:1: x[0m \"0\"");
        assert_eq!(sorted[1001].message, "a.jsonl:1501: y 1");
        assert_eq!(sorted.len(), 1002);
    }
}
