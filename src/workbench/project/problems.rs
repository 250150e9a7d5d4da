//! Problems of the data, grouped for the reader: one entry for each thing that is wrong, with the rows that have it.

use std::collections::HashSet;
use std::fmt;

use indexmap::IndexMap;
use luthier_core::data::{DataProblem, FindingRows, ProblemKind, Report, Severity, pattern, pieces};

use luthier_core::text::indented;
use luthier_core::units;

/// Rows of a group that are named; the rest is counted.
const NAMED_ROWS: usize = 3;
/// A smaller share of the rows is not put into a number.
const SMALL_SHARE: f64 = 0.005;

/// Problems that differ only in the rows that have them, and in what they count.
#[derive(Debug)]
pub struct Group<'a> {
    pub severity: Severity,
    kind: ProblemKind,
    pattern: String,
    /// What is wrong, without the place of a row: of the first row where rows differ.
    what: String,
    /// Whether other rows are told something else than `what`.
    is_example: bool,
    /// One for each row, the first that was found.
    problems: Vec<&'a DataProblem>,
    /// How many rows have it.
    rows: usize,
    /// Their share of all rows, where that is known.
    share: Option<f64>,
}

/// Groups problems that say the same, in the order of their first ones.
pub fn grouped<'a>(problems: impl IntoIterator<Item = &'a DataProblem>) -> Vec<Group<'a>> {
    let mut groups: IndexMap<(Severity, ProblemKind, String), Vec<&DataProblem>> = IndexMap::new();
    for problem in problems {
        let (_, what) = parts(problem);
        // What is said about the dataset as a whole has numbers and names that matter.
        let key = if is_of_a_row(problem) { pattern(problem.kind, what) } else { what.to_owned() };
        groups.entry((problem.severity, problem.kind, key)).or_default().push(problem);
    }
    let group = |((severity, kind, pattern), problems)| Group::new(severity, kind, pattern, problems);
    groups.into_iter().map(group).collect()
}

/// Groups the problems of a report, with their share of its rows.
pub fn findings(report: &Report) -> Vec<Group<'_>> {
    let mut groups = grouped(&report.problems);
    for group in &mut groups {
        // Of many problems only the first are kept.
        let said = |found: &&FindingRows| {
            (found.severity, found.kind, &found.what) == (group.severity, group.kind, &group.pattern)
        };
        if let Some(found) = report.findings.iter().find(said) {
            group.rows = found.rows;
        }
        group.share = (report.rows > 0).then(|| group.rows as f64 / report.rows as f64);
    }
    groups
}

/// All that the check found, what can be done about it, and whether the data is enough.
pub fn described(report: &Report, allowed: &[String]) -> String {
    let mut lines = Vec::new();
    if report.problems.is_empty() {
        lines.push("no problems".to_owned());
    }
    for group in findings(report) {
        let mark = match group.severity {
            Severity::Blocks => "✗",
            Severity::Warning => "!",
            Severity::Note => "·",
        };
        lines.push(format!("{mark} {}", indented(&group.to_string(), 2)));
    }
    lines.extend(ways_on(report, allowed));
    if !report.advice.is_empty() {
        lines.push("size:".to_owned());
        lines.extend(report.advice.iter().map(|sentence| format!("  {sentence}")));
    }
    lines.join("\n")
}

/// What can be done about the findings of a report.
fn ways_on(report: &Report, allowed: &[String]) -> Vec<String> {
    let mut kinds: Vec<ProblemKind> = report.problems.iter().map(|problem| problem.kind).collect();
    kinds.retain(|kind| !report.rows_of(*kind).is_empty());
    let mut told = HashSet::new();
    kinds.retain(|kind| told.insert(*kind));
    let of_rows: Vec<String> = kinds.into_iter().map(named).collect();
    let mut lines = Vec::new();
    if !of_rows.is_empty() {
        let kinds = of_rows.join(", ");
        lines.push(format!("to set rows aside: luthier data quarantine --kind KIND ({kinds})"));
    }
    let mut allow: Vec<&str> = allowed.iter().map(String::as_str).collect();
    for problem in &report.problems {
        let may_pass = problem.severity == Severity::Blocks && problem.kind.can_be_allowed();
        if may_pass && !allow.contains(&problem.kind.name()) {
            allow.push(problem.kind.name());
        }
    }
    if allow.len() > allowed.len() {
        lines.push(format!("to go on in spite of it: data.allow = {allow:?}"));
    }
    lines
}

/// What to type for a kind, and what its findings are called if that is something else.
fn named(kind: ProblemKind) -> String {
    let (name, label) = (kind.name(), kind.label());
    let is_alike = label.replace([' ', '-'], "_").eq_ignore_ascii_case(name);
    if is_alike { name.to_owned() } else { format!("{name} = {label}") }
}

impl<'a> Group<'a> {
    fn new(
        severity: Severity,
        kind: ProblemKind,
        pattern: String,
        mut problems: Vec<&'a DataProblem>,
    ) -> Self {
        let first = problems.first().map_or("", |problem| parts(problem).1);
        let differs = problems.iter().any(|problem| parts(problem).1 != first);
        let (what, is_example) =
            if has_lengths(kind) { (ranged(&problems), false) } else { (first.to_owned(), differs) };
        problems.dedup_by(|later, earlier| later.row.is_some() && later.row == earlier.row);
        Group { severity, kind, pattern, what, is_example, rows: problems.len(), problems, share: None }
    }

    fn has_rows(&self) -> bool {
        self.problems.iter().any(|problem| problem.row.is_some())
    }

    /// Whether it only says how many more problems of its kind there are.
    fn counts_the_rest(&self) -> bool {
        let [problem] = self.problems[..] else { return false };
        let rest = problem.message.strip_prefix(self.kind.label());
        let rest = rest.and_then(|rest| rest.strip_prefix(": ")?.strip_suffix(" more rows"));
        problem.row.is_none() && rest.is_some_and(is_number)
    }
}

impl fmt::Display for Group<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = self.kind.label();
        if let [problem] = self.problems[..]
            && self.rows == 1
            && !self.is_example
        {
            return match problem.row {
                Some(row) => write!(formatter, "row {row}: {label}: {}", problem.message),
                None if self.counts_the_rest() => formatter.write_str(&problem.message),
                None => write!(formatter, "{label}: {}", problem.message),
            };
        }
        let rows = units::counted(self.rows, "row", "rows");
        let share = match self.share {
            Some(share) if share < SMALL_SHARE => ", below 1 %".to_owned(),
            Some(share) => format!(", {}", units::percent(share)),
            None => String::new(),
        };
        let example = if self.is_example { "such as: " } else { "" };
        let named: Vec<String> = self.problems.iter().take(NAMED_ROWS).map(|problem| row(problem)).collect();
        let word = match (self.has_rows(), self.rows) {
            (false, _) => "",
            (true, 1) => "row ",
            (true, _) => "rows ",
        };
        write!(formatter, "{label}: {rows}{share}\n  {example}{}\n  {word}{}", self.what, named.join(", "))?;
        match self.rows.saturating_sub(named.len()) {
            0 => Ok(()),
            more => write!(formatter, " and {} more", units::count(more as u64)),
        }
    }
}

/// A row's number and its place in its file, as far as it has them.
fn row(problem: &DataProblem) -> String {
    let (place, _) = parts(problem);
    match (problem.row, place) {
        (Some(row), Some(place)) => format!("{row} ({place})"),
        (Some(row), None) => row.to_string(),
        (None, place) => place.unwrap_or("?").to_owned(),
    }
}

/// The place that a row's message begins with, such as `train.jsonl:31`, and what is wrong there.
fn parts(problem: &DataProblem) -> (Option<&str>, &str) {
    let message = problem.message.as_str();
    let mut ends = message.match_indices(": ").filter(|(end, _)| {
        let place = &message[..*end];
        place.rsplit_once(':').is_some_and(|(file, line)| !file.is_empty() && is_number(line))
    });
    match ends.next().filter(|_| is_of_a_row(problem)) {
        Some((end, separator)) => (Some(&message[..end]), &message[end + separator.len()..]),
        None => (None, message),
    }
}

fn is_of_a_row(problem: &DataProblem) -> bool {
    problem.row.is_some() || problem.kind == ProblemKind::UnreadableRow
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether messages of this kind say how long each row is.
fn has_lengths(kind: ProblemKind) -> bool {
    matches!(kind, ProblemKind::Truncated | ProblemKind::Dropped | ProblemKind::TooLong)
}

/// What messages of one pattern say, with the range of a number in which they differ.
fn ranged(problems: &[&DataProblem]) -> String {
    let texts: Vec<Vec<&str>> = problems.iter().map(|problem| pieces(parts(problem).1)).collect();
    let Some(first) = texts.first() else { return String::new() };
    let piece = |(place, piece): (usize, &&str)| {
        let numbers = || texts.iter().filter_map(|text| text.get(place)?.parse::<u64>().ok());
        match (numbers().min(), numbers().max()) {
            (Some(least), Some(most)) if least < most => format!("{least}–{most}"),
            _ => (*piece).to_owned(),
        }
    };
    first.iter().enumerate().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    fn problem(kind: ProblemKind, row: Option<usize>, message: &str) -> DataProblem {
        DataProblem { kind, severity: Severity::Warning, row, other: None, message: message.to_owned() }
    }

    fn shown(problems: &[DataProblem]) -> Vec<String> {
        grouped(problems).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equal_problems_are_shown_once_with_their_rows() {
        let mut problems: Vec<_> = (0..5)
            .map(|row| {
                problem(
                    ProblemKind::EmptyReply,
                    Some(row),
                    &format!("train.jsonl:{}: its reply is empty", row + 1),
                )
            })
            .collect();
        problems.push(problem(ProblemKind::EmptyReply, Some(9), "a: b.csv:10: its reply is empty"));
        problems.push(problem(ProblemKind::BrokenText, Some(2), "train.jsonl:3: control characters"));
        assert_eq!(
            shown(&problems),
            [
                "empty reply: 6 rows\n  its reply is empty\n  rows 0 (train.jsonl:1), 1 (train.jsonl:2), \
                 2 (train.jsonl:3) and 3 more",
                "row 2: broken text: train.jsonl:3: control characters",
            ]
        );
    }

    #[test]
    fn rows_that_could_not_be_read_are_named_by_their_places() {
        let problems = [31, 32].map(|line| {
            problem(ProblemKind::UnreadableRow, None, &format!("train.jsonl:{line}: no \"prompt\": see 1: 2"))
        });
        assert_eq!(
            shown(&problems),
            ["unreadable row: 2 rows\n  no \"prompt\": see 1: 2\n  train.jsonl:31, train.jsonl:32"]
        );
    }

    #[test]
    fn lengths_become_a_range_and_other_numbers_an_example() {
        let cut = |row, length| {
            let message = format!("t.jsonl:{row}: cut from {length} tokens to data.max_length");
            problem(ProblemKind::Truncated, Some(row), &message)
        };
        let same = |row, other| {
            let message = format!("t.jsonl:{row}: says the same as row {other} (my (2) t.jsonl:{other})");
            problem(ProblemKind::Duplicate, Some(row), &message)
        };
        assert_eq!(
            shown(&[cut(3, 150), cut(4, 97), same(5, 1), same(6, 2)]),
            [
                "truncated: 2 rows\n  cut from 97–150 tokens to data.max_length\n  rows 3 (t.jsonl:3), 4 (t.jsonl:4)",
                "duplicate: 2 rows\n  such as: says the same as row 1 (my (2) t.jsonl:1)\n  \
                 rows 5 (t.jsonl:5), 6 (t.jsonl:6)",
            ]
        );
    }

    #[test]
    fn a_row_counts_once_and_settings_are_not_grouped() {
        let lost = |number| {
            let message = format!("a.jsonl:8: the content of message {number} is not in the text");
            problem(ProblemKind::NotInText, Some(7), &message)
        };
        let unused =
            |name| problem(ProblemKind::UnusedField, None, &format!("nothing reads the field {name}"));
        assert_eq!(
            shown(&[lost(1), lost(3), unused("\"a1\""), unused("\"a2\"")]),
            [
                "not in the text: 1 row\n  such as: the content of message 1 is not in the text\n  row 7 (a.jsonl:8)",
                "unused field: nothing reads the field \"a1\"",
                "unused field: nothing reads the field \"a2\"",
            ]
        );
    }

    #[test]
    fn the_share_counts_rows_whose_problems_were_not_kept() {
        let kind = ProblemKind::PersonalData;
        let holds = |what: &str, rows| FindingRows {
            kind,
            severity: Severity::Warning,
            what: format!("holds {what}"),
            rows,
        };
        let of_row =
            |row, what: &str| problem(kind, Some(row), &format!("a.jsonl:{}: holds {what}", row + 1));
        let report = |rows, problems, findings| Report { rows, problems, findings, ..Report::default() };
        let all = report(
            40,
            vec![
                of_row(0, "a card"),
                of_row(1, "a card"),
                of_row(2, "an address"),
                problem(kind, None, "personal data: 28 more rows"),
            ],
            vec![holds("a card", 30), holds("an address", 1)],
        );
        let shown = findings(&all).iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected = [
            "personal data: 30 rows, 75 %\n  holds a card\n  rows 0 (a.jsonl:1), 1 (a.jsonl:2) and 28 more",
            "row 2: personal data: a.jsonl:3: holds an address",
            "personal data: 28 more rows",
        ];
        assert_eq!(shown, expected);
        let few = report(1000, vec![of_row(0, "a card"), of_row(3, "a card")], vec![holds("a card", 2)]);
        assert!(findings(&few)[0].to_string().starts_with("personal data: 2 rows, below 1 %\n"));
    }

    #[test]
    fn calls_of_different_tools_are_one_finding() {
        let lost = |row, name: &str| {
            problem(
                ProblemKind::NotInText,
                Some(row),
                &format!("a.jsonl:{row}: leaves out the tool {name:?}"),
            )
        };
        let expected = "not in the text: 2 rows\n  such as: leaves out the tool \"a\"\n  rows 1 (a.jsonl:1), 2 (a.jsonl:2)";
        assert_eq!(shown(&[lost(1, "a"), lost(2, "b \"c\"")]), [expected]);
    }

    #[test]
    fn any_message_can_be_shown() {
        for message in
            ["", ": ", ":1: ", "7", "ä:9: ", "99999999999999999999999", "(:1)", "):1)", "((ä:1)", "1)"]
        {
            for kind in [ProblemKind::TooLong, ProblemKind::Duplicate] {
                let problems = [1, 2].map(|row| problem(kind, Some(row), message));
                assert_eq!(shown(&problems).len(), 1, "{message}");
            }
        }
    }
}
