//! Chooses the held-out rows.

use super::super::{Row, Split};
use crate::random::mix_pair;

/// Marks `fraction` of the rows as held out: at least one and never all, if there are two or more. The choice
/// depends only on the seed and on each row's content. Adding, removing or moving rows therefore keeps nearly
/// all others in their part. Equal rows are kept in the same part if the numbers allow it.
pub(super) fn hold_out(rows: &mut [Row], fraction: f64, seed: u64) {
    if fraction <= 0.0 || rows.len() < 2 {
        return;
    }
    let count = ((rows.len() as f64 * fraction).round() as usize).clamp(1, rows.len() - 1);
    let mut order: Vec<(u64, usize)> = rows
        .iter()
        .enumerate()
        .map(|(position, row)| {
            let content = u64::from_str_radix(&row.hash(), 16).unwrap_or(0);
            (mix_pair(seed, content), position)
        })
        .collect();
    order.sort_unstable();
    for &(_, position) in &order[..count] {
        rows[position].split = Split::Eval;
    }
}
