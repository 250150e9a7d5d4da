//! Finding a command by a few letters of its name or of what it does.

use nucleo_matcher::pattern::{CaseMatching, Normalization, Pattern};
use nucleo_matcher::{Config, Matcher, Utf32Str};

/// A candidate that fits what was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Position in the candidates given.
    pub index: usize,
    /// Positions of matched characters in the candidate, ascending.
    pub positions: Vec<u32>,
}

/// The candidates that fit `query`, best first; all of them, in their own order, for an empty query.
pub fn rank<'a>(query: &str, candidates: impl Iterator<Item = &'a str>) -> Vec<Match> {
    if query.trim().is_empty() {
        return candidates.enumerate().map(|(index, _)| Match { index, positions: Vec::new() }).collect();
    }
    let mut matcher = Matcher::new(Config::DEFAULT);
    let pattern = Pattern::parse(query, CaseMatching::Smart, Normalization::Smart);
    let mut characters = Vec::new();
    let mut found = Vec::new();
    for (index, candidate) in candidates.enumerate() {
        let mut positions = Vec::new();
        let haystack = Utf32Str::new(candidate, &mut characters);
        if let Some(score) = pattern.indices(haystack, &mut matcher, &mut positions) {
            positions.sort_unstable();
            positions.dedup();
            found.push((score, Match { index, positions }));
        }
    }
    found.sort_by(|(left, left_match), (right, right_match)| {
        right.cmp(left).then(left_match.index.cmp(&right_match.index))
    });
    found.into_iter().map(|(_, found)| found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_first_and_everything_without_a_query() {
        let names = ["list.down", "quit", "data.quarantine", "pane.data"];
        assert_eq!(rank("", names.into_iter()).len(), 4);
        assert_eq!(rank("qui", names.into_iter())[0].index, 1);
        assert_eq!(rank("pdata", names.into_iter())[0].index, 3);
        assert!(rank("zzz", names.into_iter()).is_empty());
    }
}
