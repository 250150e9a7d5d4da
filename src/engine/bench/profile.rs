//! A table of what a device did while it was recorded.

use std::collections::HashMap;

use luthier_core::text::Shown;
use serde::Serialize;

use crate::csrc::Operation;

/// Lines of the table before the rest.
const LINES: usize = 40;

/// What the device did in the measured steps together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// What took longest, first.
    pub lines: Vec<Line>,
    /// All others together.
    pub rest: Option<Line>,
    /// Kernels and copies that a step launched; on a processor, operations.
    pub launches_per_step: f64,
    /// From the first to the last of them, per step.
    pub microseconds_per_step: f64,
    /// Of these, when none of them ran. On a processor this includes our own kernels, which libtorch does not see.
    pub idle_microseconds_per_step: f64,
}

/// Operations of one name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    pub name: String,
    pub calls: usize,
    /// Without operations within them, of all calls together.
    pub microseconds: f64,
    /// Of the steps' time.
    pub share: f64,
}

impl Profile {
    /// The table of `steps` steps. Operations of a GPU do not nest: where two overlap, both count in full.
    pub fn new(operations: &[Operation], steps: usize, nested: bool) -> Self {
        let own = if nested {
            own_times(operations)
        } else {
            operations.iter().map(Operation::nanoseconds).collect()
        };
        let (span, busy) = span_and_union(operations);
        let line = |name: String, calls: usize, nanoseconds: u64| Line {
            name,
            calls,
            microseconds: nanoseconds as f64 / 1e3,
            share: nanoseconds as f64 / span.max(1) as f64,
        };
        let mut by_name: HashMap<&str, (usize, u64)> = HashMap::new();
        for (operation, own) in operations.iter().zip(own) {
            let (calls, nanoseconds) = by_name.entry(&operation.name).or_default();
            *calls += 1;
            *nanoseconds += own;
        }
        let mut sums: Vec<(&str, usize, u64)> =
            by_name.into_iter().map(|(name, (calls, nanoseconds))| (name, calls, nanoseconds)).collect();
        sums.sort_by(|a, b| b.2.cmp(&a.2).then(a.0.cmp(b.0)));
        let others = sums.split_off(sums.len().min(LINES));
        let rest = (!others.is_empty()).then(|| {
            let calls = others.iter().map(|(_, calls, _)| calls).sum();
            let nanoseconds = others.iter().map(|(_, _, nanoseconds)| nanoseconds).sum();
            line(format!("{} others", others.len()), calls, nanoseconds)
        });
        let per_step = |nanoseconds: u64| nanoseconds as f64 / 1e3 / steps.max(1) as f64;
        Self {
            lines: sums
                .into_iter()
                .map(|(name, calls, nanoseconds)| line(Shown::new(name).to_string(), calls, nanoseconds))
                .collect(),
            rest,
            launches_per_step: operations.len() as f64 / steps.max(1) as f64,
            microseconds_per_step: per_step(span),
            idle_microseconds_per_step: per_step(span - busy),
        }
    }
}

/// Nanoseconds of each operation without those that it contains.
fn own_times(operations: &[Operation]) -> Vec<u64> {
    let mut own: Vec<u64> = operations.iter().map(Operation::nanoseconds).collect();
    let mut order: Vec<usize> = (0..operations.len()).collect();
    order.sort_by_key(|&index| {
        let operation = &operations[index];
        (operation.thread, operation.start, std::cmp::Reverse(operation.end))
    });
    let mut around: Vec<usize> = Vec::new();
    for index in order {
        let inner = &operations[index];
        let contains = |outer: &Operation| outer.thread == inner.thread && outer.end >= inner.end;
        while around.last().is_some_and(|&outer| !contains(&operations[outer])) {
            around.pop();
        }
        if let Some(&outer) = around.last() {
            own[outer] = own[outer].saturating_sub(inner.nanoseconds());
        }
        around.push(index);
    }
    own
}

/// Nanoseconds from the first operation's start to the last one's end, and those of them in which any ran.
fn span_and_union(operations: &[Operation]) -> (u64, u64) {
    let mut intervals: Vec<(u64, u64)> = operations.iter().map(|one| (one.start, one.end)).collect();
    intervals.sort_unstable();
    let Some(&(first, _)) = intervals.first() else { return (0, 0) };
    let (mut until, mut busy) = (first, 0);
    for (start, end) in intervals {
        busy += end.saturating_sub(start.max(until));
        until = until.max(end);
    }
    (until - first, busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(name: &str, start: u64, end: u64, thread: u64) -> Operation {
        Operation { name: name.into(), start, end, thread }
    }

    #[test]
    fn an_operation_counts_without_those_within_it() {
        let operations = [
            operation("inner", 2_000, 5_000, 1),
            operation("outer", 1_000, 9_000, 1),
            operation("inner", 6_000, 8_000, 1),
            operation("innermost", 3_000, 4_000, 1),
            operation("elsewhere", 2_000, 11_000, 2),
        ];
        let profile = Profile::new(&operations, 2, true);
        let found: Vec<(&str, usize, f64)> =
            profile.lines.iter().map(|line| (line.name.as_str(), line.calls, line.microseconds)).collect();
        assert_eq!(
            found,
            [("elsewhere", 1, 9.0), ("inner", 2, 4.0), ("outer", 1, 3.0), ("innermost", 1, 1.0)]
        );
        assert_eq!((profile.launches_per_step, profile.microseconds_per_step), (2.5, 5.0));
        assert!((profile.lines[1].share - 0.4).abs() < 1e-12 && profile.rest.is_none());
        let apart = Profile::new(&operations, 2, false);
        assert_eq!((apart.lines[1].name.as_str(), apart.lines[1].microseconds), ("outer", 8.0));
    }

    #[test]
    fn a_device_is_idle_when_nothing_runs() {
        let operations = [
            operation("a", 1_000, 2_000, 0),
            operation("b", 1_500, 4_000, 0),
            operation("c", 2_000, 3_000, 0),
            operation("d", 7_000, 11_000, 0),
        ];
        let profile = Profile::new(&operations, 1, false);
        assert_eq!((profile.microseconds_per_step, profile.idle_microseconds_per_step), (10.0, 3.0));
        let none = Profile::new(&[], 2, false);
        assert_eq!(
            (none.lines.len(), none.launches_per_step, none.idle_microseconds_per_step),
            (0, 0.0, 0.0)
        );
    }

    #[test]
    fn names_are_cleaned_and_the_rest_is_one_line() {
        let mut operations: Vec<Operation> =
            (0..50).map(|index| operation(&format!("kernel {index}"), 0, 1_000 + index, 0)).collect();
        operations.push(operation("bad\u{1b}[31m\nname", 0, 9_000, 0));
        let profile = Profile::new(&operations, 1, false);
        assert_eq!((profile.lines.len(), profile.lines[0].name.as_str()), (LINES, "bad[31m⏎name"));
        let rest = profile.rest.unwrap();
        assert_eq!((rest.name.as_str(), rest.calls), ("11 others", 11));
        assert!((rest.microseconds - 11.055).abs() < 1e-9, "{rest:?}");
    }
}
