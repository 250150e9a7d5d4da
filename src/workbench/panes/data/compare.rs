//! Two rows side by side, with the words that differ.

use unicode_segmentation::UnicodeSegmentation;

use luthier_core::data::{Example, Row};

/// Most pairs of words that are compared. Beyond it, all between the common ends counts as changed.
const MAX_PAIRS: usize = 4_000_000;

/// A part of a text, and whether the other text lacks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub text: String,
    pub changed: bool,
}

/// Two rows with what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// [`Row::index`] of both.
    pub rows: [usize; 2],
    /// The texts of both.
    pub sides: [Vec<Stretch>; 2],
}

impl Pair {
    /// Compares two rows word by word.
    pub fn new(left: &Row, right: &Row) -> Self {
        let [left_side, right_side] = differences(&text(left), &text(right));
        Self { rows: [left.index, right.index], sides: [left_side, right_side] }
    }
}

/// All of a row, message by message.
fn text(row: &Row) -> String {
    let Some(messages) = row.example.messages() else { return row.example.plain_text() };
    let mut parts: Vec<String> =
        messages.iter().map(|message| format!("{}\n{}", message.role, message.shown())).collect();
    if let Example::Preference { rejected, .. } = &row.example {
        parts.push(format!("rejected\n{}", rejected.shown()));
    }
    parts.join("\n\n")
}

fn differences(left: &str, right: &str) -> [Vec<Stretch>; 2] {
    let left: Vec<&str> = left.split_word_bounds().collect();
    let right: Vec<&str> = right.split_word_bounds().collect();
    let ahead = left.iter().zip(&right).take_while(|(left, right)| left == right).count();
    let rest = left.len().min(right.len()) - ahead;
    let ends = left.iter().rev().zip(right.iter().rev()).take(rest);
    let behind = ends.take_while(|(left, right)| left == right).count();
    let inner = |words: &[&str]| -> Vec<String> {
        words.iter().skip(ahead).take(words.len() - ahead - behind).map(|word| (*word).to_owned()).collect()
    };
    let [left_kept, right_kept] = common(&inner(&left), &inner(&right));
    [stretches(&left, ahead, &left_kept), stretches(&right, ahead, &right_kept)]
}

/// For each word of both lists, whether it belongs to a longest common subsequence.
fn common(left: &[String], right: &[String]) -> [Vec<bool>; 2] {
    let (rows, columns) = (left.len(), right.len());
    let mut kept = [vec![false; rows], vec![false; columns]];
    if rows.saturating_mul(columns) > MAX_PAIRS {
        return kept;
    }
    let width = columns + 1;
    // At (row, column): the length of the longest common subsequence of what follows in both.
    let mut lengths = vec![0_u32; (rows + 1) * width];
    let at = |lengths: &[u32], row: usize, column: usize| {
        lengths.get(row * width + column).copied().unwrap_or_default()
    };
    for (row, word) in left.iter().enumerate().rev() {
        for (column, other) in right.iter().enumerate().rev() {
            let length = if word == other {
                at(&lengths, row + 1, column + 1) + 1
            } else {
                at(&lengths, row + 1, column).max(at(&lengths, row, column + 1))
            };
            if let Some(slot) = lengths.get_mut(row * width + column) {
                *slot = length;
            }
        }
    }
    let (mut row, mut column) = (0, 0);
    while let (Some(word), Some(other)) = (left.get(row), right.get(column)) {
        if word == other {
            let [left_kept, right_kept] = &mut kept;
            if let (Some(left), Some(right)) = (left_kept.get_mut(row), right_kept.get_mut(column)) {
                (*left, *right) = (true, true);
            }
            row += 1;
            column += 1;
        } else if at(&lengths, row + 1, column) >= at(&lengths, row, column + 1) {
            row += 1;
        } else {
            column += 1;
        }
    }
    kept
}

/// Joins neighbouring words that are alike in being changed or not. `kept` begins at the word `ahead`; what
/// lies outside of it is not changed.
fn stretches(words: &[&str], ahead: usize, kept: &[bool]) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let inside = index.checked_sub(ahead).and_then(|place| kept.get(place));
        let changed = inside.is_some_and(|kept| !kept);
        match stretches.last_mut() {
            Some(last) if last.changed == changed => last.text.push_str(word),
            _ => stretches.push(Stretch { text: (*word).to_owned(), changed }),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changed(side: &[Stretch]) -> Vec<&str> {
        side.iter().filter(|part| part.changed).map(|part| part.text.as_str()).collect()
    }

    #[test]
    fn changed_words_are_marked_and_no_others() {
        let [left, right] = differences("the red fox jumps", "the brown fox jumps high");
        assert_eq!(changed(&left), ["red"]);
        assert_eq!(changed(&right), ["brown", " high"]);
        let [left, right] = differences("same", "same");
        assert!(changed(&left).is_empty() && changed(&right).is_empty());
        let [left, right] = differences("", "new");
        assert!(left.is_empty());
        assert_eq!(changed(&right), ["new"]);
    }

    proptest! {
        #[test]
        fn both_texts_stay_whole_and_what_is_kept_is_equal(left in "[ab ]{0,30}", right in "[ab ]{0,30}") {
            let sides = differences(&left, &right);
            let whole = |side: &[Stretch]| side.iter().map(|part| part.text.as_str()).collect::<String>();
            let kept = |side: &[Stretch]| {
                side.iter().filter(|part| !part.changed).map(|part| part.text.as_str()).collect::<String>()
            };
            prop_assert_eq!(whole(&sides[0]), left);
            prop_assert_eq!(whole(&sides[1]), right);
            prop_assert_eq!(kept(&sides[0]), kept(&sides[1]));
        }
    }
}
