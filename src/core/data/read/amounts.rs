//! How many rows of an element of `data.train` are used: `rows` and `share`.

use std::ops::Range;

use super::Dataset;
use super::rows::RowHead;
use super::split::rank;
use crate::config::DataSource;
use crate::data::Split;
use crate::units::{count, counted};

/// Leaves out rows from `start` on, the last ones read, where `source` asks for fewer. The choice depends only on the
/// seed and on each row's content.
pub(super) fn limit(dataset: &mut Dataset, start: usize, source: &DataSource, seed: u64) {
    let total = dataset.rows.len().saturating_sub(start);
    let wanted = wanted(total, source).min(total);
    if wanted == total {
        return;
    }
    let rows = dataset.rows.heads_mut().split_off(start);
    let chosen = lowest(&rows, wanted, seed);
    for row in dataset.quarantined.heads_mut().iter_mut().filter(|row| row.index > start) {
        let before = chosen.iter().take(row.index - start).filter(|&&chosen| chosen).count();
        row.index = start + before;
    }
    for (mut row, _) in rows.into_iter().zip(chosen).filter(|(_, chosen)| *chosen) {
        row.index = dataset.rows.len();
        dataset.rows.heads_mut().push(row);
    }
    let rows = counted(total, "row is", "rows are");
    let notice =
        format!("{}: {} of {rows} used ({})", source.path.display(), count(wanted as u64), asked(source));
    dataset.notices.push(notice);
}

/// Repeats training rows whose source asks for more than all of them. `sources` have the range of their rows, in
/// order. Held-out rows are not repeated: they are chosen before.
pub(super) fn repeat(dataset: &mut Dataset, sources: &[(Range<usize>, &DataSource)], seed: u64) {
    if sources.iter().all(|(_, source)| source.share.is_none_or(|share| share <= 1.0)) {
        return;
    }
    let mut left = std::mem::take(dataset.rows.heads_mut());
    // For each source, where its rows end and how many more there are.
    let mut added = Vec::new();
    let mut rows: Vec<RowHead> = Vec::with_capacity(left.len());
    for (range, source) in sources {
        let later = left.split_off(range.len().min(left.len()));
        let own = std::mem::replace(&mut left, later);
        let train: Vec<RowHead> = own.iter().filter(|row| row.split == Split::Train).copied().collect();
        let total = wanted(train.len(), source);
        rows.extend(own);
        let mut more = total.saturating_sub(train.len());
        if more == 0 {
            continue;
        }
        added.push((range.end, more));
        let notice = format!(
            "{}: {} used {} times in all ({})",
            source.path.display(),
            counted(train.len(), "training row is", "training rows are"),
            count(total as u64),
            asked(source)
        );
        dataset.notices.push(notice);
        while more >= train.len() {
            rows.extend_from_slice(&train);
            more -= train.len();
        }
        let chosen = lowest(&train, more, seed);
        rows.extend(train.into_iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(row, _)| row));
    }
    rows.append(&mut left);
    for (index, row) in rows.iter_mut().enumerate() {
        row.index = index;
    }
    for row in dataset.quarantined.heads_mut() {
        let before = added.iter().filter(|(end, _)| *end <= row.index).map(|(_, more)| more);
        row.index += before.sum::<usize>();
    }
    *dataset.rows.heads_mut() = rows;
}

/// How many of `total` rows are used, repeated ones counted each time: none only of none.
fn wanted(total: usize, source: &DataSource) -> usize {
    let share = source.share.map_or(total, |share| (total as f64 * share).round() as usize);
    let most = source.rows.map_or(usize::MAX, |rows| usize::try_from(rows).unwrap_or(usize::MAX));
    share.min(most).max(usize::from(total > 0))
}

/// Whether each row is among the `wanted` ones that the seed favours.
fn lowest(rows: &[RowHead], wanted: usize, seed: u64) -> Vec<bool> {
    let mut order: Vec<(u64, usize)> =
        rows.iter().enumerate().map(|(position, row)| (rank(row, seed), position)).collect();
    order.sort_unstable();
    let mut chosen = vec![false; rows.len()];
    for (_, position) in order.into_iter().take(wanted) {
        if let Some(chosen) = chosen.get_mut(position) {
            *chosen = true;
        }
    }
    chosen
}

/// The settings as they are written.
fn asked(source: &DataSource) -> String {
    let share = source.share.map(|share| format!("share = {share}"));
    let rows = source.rows.map(|rows| format!("rows = {rows}"));
    share.into_iter().chain(rows).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;
    use crate::data::{Example, Extras, Origin, Row};

    fn row(index: usize) -> Row {
        Row {
            index,
            origin: Origin { file: "a.jsonl".into(), line: index + 1 },
            split: Split::Train,
            example: Example::Text(format!("row {index}")),
            extras: Extras::default(),
        }
    }

    fn dataset(rows: usize) -> Dataset {
        Dataset { rows: (0..rows).map(row).collect::<Vec<Row>>().into(), ..Dataset::default() }
    }

    fn source(rows: Option<u64>, share: Option<f64>) -> DataSource {
        DataSource { path: "b.jsonl".into(), rows, share }
    }

    fn lines(dataset: &Dataset) -> Vec<usize> {
        assert!(dataset.rows.heads().iter().enumerate().all(|(index, row)| row.index == index));
        dataset.rows.heads().iter().map(|row| row.line).collect()
    }

    #[test]
    fn fewer_rows_are_a_stable_choice() {
        let chosen = |total: usize, rows, share, seed| {
            let mut dataset = dataset(total);
            limit(&mut dataset, 10, &source(rows, share), seed);
            (lines(&dataset), dataset.notices)
        };
        let (hundred, notices) = chosen(1010, Some(100), None, 0);
        assert_eq!(hundred.len(), 110);
        assert!(hundred.is_sorted() && hundred.starts_with(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
        assert_eq!(notices, ["b.jsonl: 100 of 1,000 rows are used (rows = 100)"]);
        assert_eq!(chosen(1010, None, Some(0.1), 0).0, hundred);
        assert_eq!(chosen(1010, Some(100), Some(0.5), 0).0, hundred);
        assert_ne!(chosen(1010, Some(100), None, 1).0, hundred);
        let more = chosen(1010, Some(200), None, 0).0;
        assert!(hundred.iter().all(|line| more.contains(line)));
        let longer = chosen(1050, Some(100), None, 0).0;
        assert!(hundred.iter().filter(|line| longer.contains(line)).count() >= 100);
        assert_eq!(chosen(1010, Some(1000), Some(3.0), 0), ((1..=1010).collect(), vec![]));
        assert_eq!(chosen(12, None, Some(0.001), 0).0.len(), 11);
        assert_eq!(chosen(10, Some(5), None, 0).0.len(), 10);
    }

    #[test]
    fn rows_in_quarantine_keep_their_place() {
        let mut dataset = dataset(20);
        dataset.quarantined = [5, 10, 15, 20].map(row).to_vec().into();
        limit(&mut dataset, 10, &source(Some(4), None), 0);
        let kept = lines(&dataset);
        let before = |index: usize| kept.iter().filter(|&&line| line <= index).count();
        let places: Vec<usize> = dataset.quarantined.heads().iter().map(|row| row.index).collect();
        assert_eq!(places, [5, 10, before(15), 14]);
    }

    #[test]
    fn more_rows_are_whole_copies_and_a_part() {
        let mut dataset = dataset(30);
        dataset.rows.heads_mut()[11].split = Split::Eval;
        dataset.quarantined = vec![row(5), row(25)].into();
        let (plain, twice) = (source(None, None), source(None, Some(2.5)));
        repeat(&mut dataset, &[(0..10, &plain), (10..21, &twice), (21..25, &plain)], 0);
        let lines = lines(&dataset);
        let own: Vec<usize> = (11..=21).collect();
        let train: Vec<usize> = own.iter().copied().filter(|&line| line != 12).collect();
        assert_eq!(lines.len(), 30 + 10 + 5);
        assert_eq!((&lines[10..21], &lines[21..31]), (own.as_slice(), train.as_slice()));
        assert!(lines[31..36].iter().all(|line| train.contains(line)) && lines[31..36].is_sorted());
        assert_eq!(lines[36..], (22..=30).collect::<Vec<_>>());
        assert_eq!(dataset.quarantined.heads().iter().map(|row| row.index).collect::<Vec<_>>(), [5, 40]);
        assert_eq!(dataset.notices, ["b.jsonl: 10 training rows are used 25 times in all (share = 2.5)"]);
    }

    #[test]
    fn a_limit_holds_for_copies_as_well() {
        let limited = source(Some(15), Some(3.0));
        let mut dataset = dataset(10);
        limit(&mut dataset, 0, &limited, 0);
        repeat(&mut dataset, &[(0..10, &limited)], 0);
        assert_eq!(lines(&dataset).len(), 15);
        let mut none = Dataset::default();
        repeat(&mut none, &[(0..0, &limited)], 0);
        assert!(none.rows.is_empty());
    }
}
