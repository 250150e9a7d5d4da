//! Reads the rows that the data pane shows, looks in them and counts what they have.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use luthier_core::data::{DataError, Row};

use crate::panes::data::{Field, Pool, Search, Table};

/// Rows that are looked at for the fields of their messages.
const ROWS_WITH_FIELDS: usize = 2000;

/// Texts of a dataset up to this size stay in memory between two searches.
const TEXTS_KEPT: u64 = 256 << 20;

/// How often a search that takes long tells what it has found.
const NEWS: Duration = Duration::from_millis(300);

/// Rows between two looks at the clock.
const ROWS_AT_ONCE: usize = 64;

/// The texts of the rows that were searched last.
#[derive(Debug, Default)]
pub(crate) struct Texts(Mutex<Option<(Pool, Vec<Option<String>>)>>);

/// The rows at some positions, each with its position.
pub(crate) fn fetch(pool: &Pool, positions: &[usize]) -> Result<Vec<(usize, Row)>, DataError> {
    let row = |position: &usize| pool.get(*position).map(|row| Some((*position, row?))).transpose();
    positions.iter().filter_map(row).collect()
}

/// What a search has found so far, in the order of the list, and which share of the rows it has looked at.
pub(crate) type Found<'a> = dyn FnMut(Vec<usize>, f64) -> ControlFlow<()> + 'a;

/// Those of the rows `among` that fit. `None` if `news` ends the search.
pub(crate) fn search(
    pool: &Pool,
    among: &[usize],
    search: &Search,
    texts: &Texts,
    news: &mut Found,
) -> Result<Option<Vec<usize>>, DataError> {
    let mut texts = texts.0.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = match texts.take() {
        Some((of, kept)) if of == *pool => kept,
        _ => Vec::new(),
    };
    let is_kept = pool.heads().iter().map(|head| u64::from(head.bytes)).sum::<u64>() <= TEXTS_KEPT;
    let mut looking = Looking { pool, kept };
    if is_kept {
        looking.kept.resize(pool.len(), None);
    }
    let found = looking.find(among, search, news);
    *texts = is_kept.then(|| (pool.clone(), looking.kept));
    found
}

struct Looking<'pool> {
    pool: &'pool Pool,
    /// Texts that stay in memory, by the positions of their rows; empty if none do.
    kept: Vec<Option<String>>,
}

impl Looking<'_> {
    fn find(
        &mut self,
        among: &[usize],
        search: &Search,
        news: &mut Found,
    ) -> Result<Option<Vec<usize>>, DataError> {
        let mut matches = search.matches();
        let mut told = Instant::now();
        for (done, position) in among.iter().enumerate() {
            match self.kept.get_mut(*position) {
                Some(Some(text)) => matches.look_at(*position, text),
                kept => {
                    let Some(row) = self.pool.get(*position)? else { continue };
                    let text = row.example.plain_text();
                    matches.look_at(*position, &text);
                    if let Some(kept) = kept {
                        *kept = Some(text);
                    }
                }
            }
            if done % ROWS_AT_ONCE == 0 && told.elapsed() >= NEWS {
                told = Instant::now();
                if news(matches.found(), done as f64 / among.len() as f64).is_break() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(matches.found()))
    }
}

/// What the rows can be told apart by.
pub(crate) fn fields(pool: &Pool) -> Result<Vec<Field>, DataError> {
    let mut names = BTreeSet::new();
    for row in pool.iter().take(ROWS_WITH_FIELDS) {
        names.extend(Field::names_in(&row?));
    }
    let has_labels = pool.heads().iter().any(|head| head.label.is_some());
    Ok(Field::all(has_labels, names))
}

/// Each value of a field with the positions of the rows that have it, the most frequent first. `None` if `go_on` says to
/// stop.
pub(crate) fn values(
    pool: &Pool,
    field: &Field,
    go_on: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Option<Table>, DataError> {
    let mut found: HashMap<String, Vec<usize>> = HashMap::new();
    for (position, row) in pool.iter().enumerate() {
        if position % ROWS_AT_ONCE == 0 && go_on().is_break() {
            return Ok(None);
        }
        for value in field.values(&row?) {
            found.entry(value).or_default().push(position);
        }
    }
    let mut found: Table = found.into_iter().collect();
    found.sort_by(|(left, left_rows), (right, right_rows)| {
        right_rows.len().cmp(&left_rows.len()).then_with(|| left.cmp(right))
    });
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use luthier_core::data::{Example, Extras, Origin, Split};
    use pretty_assertions::assert_eq;

    use super::*;

    fn pool(texts: &[&str]) -> Pool {
        let row = |(index, text): (usize, &&str)| Row {
            index,
            origin: Origin { file: "a.txt".into(), line: index + 1 },
            split: Split::Train,
            example: Example::Text((*text).to_owned()),
            extras: Extras::default(),
        };
        Pool::from(texts.iter().enumerate().map(row).collect::<Vec<_>>())
    }

    #[test]
    fn a_search_reads_each_text_once_and_looks_only_where_it_is_told() {
        let pool = pool(&["The badge reader", "BADGE 7", "café", "badge"]);
        let texts = Texts::default();
        let find = |typed: &str, among: &[usize]| {
            let made = Search::parse(typed).unwrap().unwrap();
            search(&pool, among, &made, &texts, &mut |_, _| ControlFlow::Continue(())).unwrap().unwrap()
        };
        assert_eq!(find("badge", &[0, 1, 2]), [0, 1]);
        let is_kept = |texts: &Texts| {
            let texts = texts.0.lock().unwrap();
            texts.as_ref().map(|(_, kept)| kept.iter().map(Option::is_some).collect::<Vec<_>>())
        };
        assert_eq!(is_kept(&texts), Some(vec![true, true, true, false]));
        assert_eq!(find("badge", &[3, 1]), [3, 1]);
        let other = self::pool(&["x"]);
        let made = Search::parse("x").unwrap().unwrap();
        let found = search(&other, &[0], &made, &texts, &mut |_, _| ControlFlow::Continue(()));
        assert_eq!(found.unwrap(), Some(vec![0]));
        assert_eq!(is_kept(&texts), Some(vec![true]));
    }

    #[test]
    fn values_are_sorted_by_how_many_rows_have_them() {
        let pool = pool(&["a", "b", "c"]);
        let found = values(&pool, &Field::File, &mut || ControlFlow::Continue(())).unwrap();
        assert_eq!(found, Some(vec![("a.txt".to_owned(), vec![0, 1, 2])]));
        assert_eq!(values(&pool, &Field::File, &mut || ControlFlow::Break(())).unwrap(), None);
        assert!(!fields(&pool).unwrap().contains(&Field::Label));
        assert_eq!(fetch(&pool, &[2, 9]).unwrap().len(), 1);
    }
}
