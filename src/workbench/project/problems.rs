//! Problems of the data, grouped for the reader: equal ones once, with the rows that have them.

use std::fmt;

use indexmap::IndexMap;
use luthier_core::data::{DataProblem, ProblemKind, Severity};

use luthier_core::units;

/// Rows of a group that are named; the rest is counted.
const NAMED_ROWS: usize = 3;

/// Problems that differ only in the rows that have them.
#[derive(Debug)]
pub struct Group<'a> {
    pub severity: Severity,
    kind: ProblemKind,
    /// What is wrong, without the place of a row.
    what: String,
    problems: Vec<&'a DataProblem>,
}

/// Groups equal problems, in the order of their first ones.
pub fn grouped<'a>(problems: impl IntoIterator<Item = &'a DataProblem>) -> Vec<Group<'a>> {
    let mut groups: IndexMap<(Severity, ProblemKind, String), Vec<&DataProblem>> = IndexMap::new();
    for problem in problems {
        let (_, what) = parts(problem);
        let key = if has_lengths(problem.kind) { pattern(what) } else { what.to_owned() };
        groups.entry((problem.severity, problem.kind, key)).or_default().push(problem);
    }
    let group =
        |((severity, kind, key), problems): ((Severity, ProblemKind, String), Vec<&'a DataProblem>)| {
            let what = if has_lengths(kind) { ranged(&problems) } else { key };
            Group { severity, kind, what, problems }
        };
    groups.into_iter().map(group).collect()
}

impl fmt::Display for Group<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = self.kind.label();
        if let [problem] = self.problems[..] {
            return match problem.row {
                Some(row) => write!(formatter, "row {row}: {label}: {}", problem.message),
                None => write!(formatter, "{label}: {}", problem.message),
            };
        }
        let count = self.problems.len();
        let named: Vec<String> = self.problems.iter().take(NAMED_ROWS).map(|problem| row(problem)).collect();
        let rows = units::counted(count, "row", "rows");
        write!(formatter, "{label}: {}\n  {rows}: {}", self.what, named.join(", "))?;
        match count - named.len() {
            0 => Ok(()),
            more => write!(formatter, " and {more} more"),
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
    let of_a_row = problem.row.is_some() || problem.kind == ProblemKind::UnreadableRow;
    let mut ends = message.match_indices(": ").filter(|(end, _)| {
        let place = &message[..*end];
        place.rsplit_once(':').is_some_and(|(file, line)| !file.is_empty() && is_number(line))
    });
    match ends.next().filter(|_| of_a_row) {
        Some((end, separator)) => (Some(&message[..end]), &message[end + separator.len()..]),
        None => (None, message),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether messages of this kind say how long each row is.
fn has_lengths(kind: ProblemKind) -> bool {
    matches!(kind, ProblemKind::Truncated | ProblemKind::Dropped | ProblemKind::TooLong)
}

/// A text cut where digits begin and end: digits and other text in turn, other text first.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut rest, mut digits) = (text, false);
    while !rest.is_empty() {
        let end = rest.find(|character: char| character.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        (rest, digits) = (after, !digits);
    }
    pieces
}

/// A text with every number in it as `#`.
fn pattern(text: &str) -> String {
    pieces(text)
        .into_iter()
        .enumerate()
        .map(|(place, piece)| if place % 2 == 1 { "#" } else { piece })
        .collect()
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
        DataProblem { kind, severity: Severity::Warning, row, message: message.to_owned() }
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
                "empty reply: its reply is empty\n  6 rows: 0 (train.jsonl:1), 1 (train.jsonl:2), \
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
            ["unreadable row: no \"prompt\": see 1: 2\n  2 rows: train.jsonl:31, train.jsonl:32"]
        );
    }

    #[test]
    fn lengths_become_a_range_and_other_numbers_keep_problems_apart() {
        let cut = |row, length| {
            let message = format!("t.jsonl:{row}: cut from {length} tokens to data.max_length");
            problem(ProblemKind::Truncated, Some(row), &message)
        };
        let same = |row, other| {
            problem(
                ProblemKind::Duplicate,
                Some(row),
                &format!("t.jsonl:{row}: says the same as row {other}"),
            )
        };
        assert_eq!(
            shown(&[cut(3, 150), cut(4, 97), same(5, 1), same(6, 2)]),
            [
                "truncated: cut from 97–150 tokens to data.max_length\n  2 rows: 3 (t.jsonl:3), 4 (t.jsonl:4)",
                "row 5: duplicate: t.jsonl:5: says the same as row 1",
                "row 6: duplicate: t.jsonl:6: says the same as row 2",
            ]
        );
    }

    #[test]
    fn any_message_can_be_shown() {
        for message in ["", ": ", ":1: ", "7", "ä:9: ", "99999999999999999999999"] {
            let problems = [1, 2].map(|row| problem(ProblemKind::TooLong, Some(row), message));
            assert_eq!(shown(&problems).len(), 1, "{message}");
        }
    }
}
