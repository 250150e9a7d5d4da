//! Chooses the held-out rows.

use std::collections::HashMap;

use super::super::{Message, Row, Split};
use super::rows::RowHead;
use crate::hash::fnv1a;
use crate::random::mix_pair;

/// Marks `fraction` of the rows as held out: at least one and never all, if there are two or more. The choice
/// depends only on the seed and on each row's content. Adding, removing or moving rows therefore keeps nearly
/// all others in their part.
///
/// Rows with the same prompt, or the same value of `data.group_by`, stay in one part: otherwise the model is
/// evaluated on prompts that it was trained on. With `by_row` each row is chosen by itself. If all rows are one
/// group, they are split one by one.
pub(super) fn hold_out(rows: &mut [RowHead], fraction: f64, seed: u64, by_row: bool) {
    if fraction <= 0.0 || rows.len() < 2 {
        return;
    }
    let count = ((rows.len() as f64 * fraction).round() as usize).clamp(1, rows.len() - 1);
    let ranks: Vec<u64> = rows.iter().map(|row| rank(row, seed)).collect();
    let groups = if by_row { Vec::new() } else { groups(rows) };
    let is_split = !by_row && groups.len() > 1;
    let mut order: Vec<(u64, Vec<usize>)> = if is_split {
        // A group's place comes from its least row, so that a row with a prompt of its own has the place that it
        // would have without groups.
        let place = |group: &[usize]| group.iter().map(|&row| ranks[row]).min().unwrap_or(0);
        groups.into_iter().map(|group| (place(&group), group)).collect()
    } else {
        ranks.iter().enumerate().map(|(row, &rank)| (rank, vec![row])).collect()
    };
    order.sort_unstable();
    let mut taken = 0;
    for (_, group) in &order {
        // A group that would hold out more than asked is passed over, unless nothing else is left to hold out.
        if taken + group.len() <= count {
            taken += group.len();
            hold(rows, group);
        }
    }
    if taken == 0
        && let Some((_, group)) = order.iter().min_by_key(|(_, group)| group.len())
    {
        hold(rows, group);
    }
}

fn hold(rows: &mut [RowHead], group: &[usize]) {
    for &row in group {
        rows[row].split = Split::Eval;
    }
}

/// The rows of each group, in the order of their first rows.
fn groups(rows: &[RowHead]) -> Vec<Vec<usize>> {
    let mut of_key: HashMap<u64, usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let group = *of_key.entry(row.group).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(index);
    }
    groups
}

/// Equal for rows that stay in one part.
pub(super) fn group_key(row: &Row) -> u64 {
    if let Some(group) = &row.extras.group {
        return fnv1a(group.bytes());
    }
    prompt_key(row).unwrap_or_else(|| fnv1a(row.hash().bytes()))
}

/// Equal for rows whose prompts have the same words; system prompts, case and spacing do not count. `None` if
/// a row has no prompt.
pub(in super::super) fn prompt_key(row: &Row) -> Option<u64> {
    let prompt = row.example.prompt()?;
    let mut words = String::new();
    for text in prompt.iter().filter(|message| !message.is_system()).flat_map(Message::texts) {
        for word in text.split_whitespace() {
            words.extend(word.chars().flat_map(char::to_lowercase));
            words.push(' ');
        }
        words.push('\n');
    }
    (!words.trim().is_empty()).then(|| fnv1a(words.bytes()))
}

/// The place of a row among others in the order that the seed gives to their contents.
pub(super) fn rank(row: &RowHead, seed: u64) -> u64 {
    // An edit moves no row to another part.
    mix_pair(seed, row.number_in_file())
}
