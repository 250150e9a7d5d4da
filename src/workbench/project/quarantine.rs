//! Rows set aside and brought back.

use std::collections::BTreeSet;
use std::path::Path;

use indexmap::IndexMap;
use luthier_core::data::{self, Dataset, Origin, PlacedHead, ProblemKind, Quarantine, RowHead, Rows, Split};

use super::{Progress, Project, Refusal};

/// Kinds of findings that say of a row that it is there before: one of the rows stays.
const REPEATED: [ProblemKind; 2] = [ProblemKind::Duplicate, ProblemKind::EvalInTrain];

/// Which rows to set aside.
#[derive(Clone, Copy, Debug)]
pub enum Aside<'a> {
    /// Those with findings of these kinds.
    Kinds(&'a [ProblemKind]),
    /// Those of these numbers.
    Rows(&'a [usize]),
}

/// Which rows to bring back.
#[derive(Clone, Copy, Debug)]
pub enum Back<'a> {
    /// All of them.
    All,
    /// Those with these hashes.
    Hashes(&'a [String]),
}

/// What a change of the quarantine comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Rows that were in quarantine before.
    pub before: usize,
    /// Rows that are in quarantine now.
    pub now: usize,
    /// Rows left to train on.
    pub train: usize,
    /// Rows left to hold out.
    pub eval: usize,
    /// Rows that went into quarantine or came back.
    pub rows: Vec<Origin>,
}

/// An entry of the quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The hash of its rows.
    pub hash: String,
    /// Whether the first row with this hash is used.
    pub copies: bool,
    /// How many rows it keeps out; none where the data no longer has them.
    pub rows: usize,
    /// The place of the first of them.
    pub origin: Option<Origin>,
    /// What that row says.
    pub text: String,
}

/// Sets rows aside. With `dry` nothing is written.
pub fn set_aside(
    project: &Project,
    which: Aside,
    dry: bool,
    progress: &mut Progress,
) -> Result<Changed, Refusal> {
    let (config, folder) = (&project.config, &project.folder);
    let dataset = data::read_dataset(config, folder)?;
    let (mut chosen, mut repeated) = (BTreeSet::new(), BTreeSet::new());
    match which {
        Aside::Rows(rows) => {
            for &row in rows {
                if row >= dataset.rows.len() {
                    return Err(no_row(row, &dataset));
                }
                chosen.insert(row);
            }
        }
        Aside::Kinds(kinds) => {
            let report = project.check_data(&project.model()?, progress)?.report;
            for kind in kinds {
                let rows = if REPEATED.contains(kind) { &mut repeated } else { &mut chosen };
                rows.extend(report.rows_of(*kind).iter().copied());
            }
        }
    }
    let mut equal: IndexMap<String, Vec<&RowHead>> = IndexMap::new();
    for row in dataset.rows.heads() {
        equal.entry(row.hash()).or_default().push(row);
    }
    let mut quarantine = Quarantine::load(folder)?;
    for (hash, rows) in &equal {
        let all_repeated = rows.iter().all(|row| repeated.contains(&row.index));
        if all_repeated || rows.iter().any(|row| chosen.contains(&row.index)) {
            quarantine.insert(hash);
        } else if rows.iter().any(|row| repeated.contains(&row.index)) {
            quarantine.insert_copies(hash);
        }
    }
    finish(project, &dataset, &quarantine, dry)
}

/// Brings rows back. With `dry` nothing is written.
pub fn bring_back(project: &Project, which: Back, dry: bool) -> Result<Changed, Refusal> {
    let dataset = data::read_dataset(&project.config, &project.folder)?;
    let mut quarantine = Quarantine::load(&project.folder)?;
    match which {
        Back::All => quarantine.clear(),
        Back::Hashes(hashes) => {
            // The same hash may be named twice.
            for hash in hashes.iter().collect::<BTreeSet<_>>() {
                if !quarantine.remove(hash) {
                    return Err(Refusal::NoRow(format!(
                        "`{hash}` is not in quarantine; `luthier data quarantine --list` shows what is"
                    )));
                }
            }
        }
    }
    finish(project, &dataset, &quarantine, dry)
}

/// What is in quarantine, also where the data no longer has it.
pub fn entries(project: &Project) -> Result<Vec<Entry>, Refusal> {
    let dataset = data::read_dataset(&project.config, &project.folder)?;
    let quarantine = Quarantine::load(&project.folder)?;
    let mut found: IndexMap<String, Vec<PlacedHead>> = IndexMap::new();
    for row in dataset.quarantined.places() {
        let hash = row.hash();
        let is_listed = quarantine.contains(&hash) || quarantine.contains_copies(&hash);
        // An edited row may be listed as it is in its file.
        let listed = if is_listed { hash } else { row.hash_in_file() };
        found.entry(listed).or_default().push(row);
    }
    let known = found.keys().cloned().collect::<Vec<_>>();
    let gone = quarantine.hashes().filter(|hash| !found.contains_key(*hash)).map(ToOwned::to_owned);
    let entry = |hash: String| {
        let rows = found.get(&hash).map(Vec::as_slice).unwrap_or_default();
        let first = rows.first().map(|row| dataset.quarantined.row(row)).transpose()?;
        Ok(Entry {
            copies: quarantine.contains_copies(&hash),
            rows: rows.len(),
            text: first.as_ref().map_or_else(String::new, |row| row.example.plain_text()),
            origin: first.map(|row| row.origin),
            hash,
        })
    };
    known.into_iter().chain(gone).map(entry).collect()
}

/// Sets rows aside, or brings them back: those at `positions` of `pool`, and all that are equal to them. Where all equal
/// rows but the first are chosen, the first stays. Returns how many rows of `pool` that are.
pub fn put(folder: &Path, pool: &Rows, positions: &[usize], inside: bool) -> Result<usize, Refusal> {
    let chosen: BTreeSet<usize> = positions.iter().copied().collect();
    let mut equal: IndexMap<String, Vec<bool>> = IndexMap::new();
    for (position, row) in pool.heads().iter().enumerate() {
        equal.entry(row.hash()).or_default().push(chosen.contains(&position));
    }
    let mut quarantine = Quarantine::load(folder)?;
    // An edited row may be listed as it is in its file.
    for row in positions.iter().filter_map(|position| pool.heads().get(*position)).filter(|_| !inside) {
        quarantine.remove(&row.hash_in_file());
    }
    let mut count = 0;
    for (hash, chosen) in equal.iter().filter(|(_, chosen)| chosen.contains(&true)) {
        let copies = chosen.split_first().is_some_and(|(first, rest)| !first && !rest.contains(&false));
        count += chosen.len() - usize::from(inside && copies);
        if !inside {
            quarantine.remove(hash);
        } else if copies {
            quarantine.insert_copies(hash);
        } else {
            quarantine.insert(hash);
        }
    }
    quarantine.save()?;
    Ok(count)
}

/// Writes the changed list, and counts what is left with it.
fn finish(
    project: &Project,
    before: &Dataset,
    quarantine: &Quarantine,
    dry: bool,
) -> Result<Changed, Refusal> {
    let after = data::read_dataset_without(&project.config, &project.folder, quarantine)?;
    if !dry {
        quarantine.save()?;
    }
    let of = |split: Split| after.rows.heads().iter().filter(|row| row.split == split).count();
    let (was, is) = (places(&before.quarantined), places(&after.quarantined));
    Ok(Changed {
        rows: was.symmetric_difference(&is).cloned().collect(),
        before: before.quarantined.len(),
        now: after.quarantined.len(),
        train: of(Split::Train),
        eval: of(Split::Eval),
    })
}

fn places(rows: &Rows) -> BTreeSet<Origin> {
    rows.places().map(|row| row.origin()).collect()
}

fn no_row(row: usize, dataset: &Dataset) -> Refusal {
    Refusal::NoRow(match dataset.rows.len().checked_sub(1) {
        Some(last) => format!("there is no row {row}; rows are numbered from 0 to {last}"),
        None => "the data has no rows".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::ControlFlow;

    use pretty_assertions::assert_eq;

    use super::*;

    /// Rows in quarantine before and after, and those left to train on and to hold out.
    fn counts(changed: &Changed) -> (usize, usize, usize, usize) {
        (changed.before, changed.now, changed.train, changed.eval)
    }

    fn project(rows: &[&str]) -> (tempfile::TempDir, Project) {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<String> = rows.iter().map(|text| format!("{{\"text\": \"{text}\"}}")).collect();
        let lines = lines.join("\n");
        fs::write(folder.path().join("train.jsonl"), lines).unwrap();
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny/llama");
        let settings = format!(
            "[model]\npath = \"{model}\"\n[data]\ntrain = \"train.jsonl\"\neval = 0\ntemplate = \"chatml\"\nmax_length = 96\n"
        );
        fs::write(folder.path().join("luthier.toml"), settings).unwrap();
        let project = Project::open(folder.path(), &[]).unwrap();
        (folder, project)
    }

    fn aside(project: &Project, which: Aside, dry: bool) -> Result<Changed, Refusal> {
        set_aside(project, which, dry, &mut |_, _| ControlFlow::Continue(()))
    }

    #[test]
    fn rows_go_aside_by_number_and_come_back_by_hash() {
        let (_folder, project) = project(&["a", "b", "c"]);
        let changed = (0, 1, 2, 0);
        assert_eq!(counts(&aside(&project, Aside::Rows(&[1]), true).unwrap()), changed);
        assert_eq!(entries(&project).unwrap(), []);
        let made = aside(&project, Aside::Rows(&[1]), false).unwrap();
        assert_eq!((counts(&made), made.rows[0].line), (changed, 2));
        let listed = entries(&project).unwrap();
        assert_eq!((listed.len(), listed[0].rows, listed[0].text.as_str()), (1, 1, "b"));
        assert_eq!(listed[0].origin.as_ref().map(ToString::to_string).unwrap(), "train.jsonl:2");

        let wrong = aside(&project, Aside::Rows(&[2]), false).unwrap_err().to_string();
        assert_eq!(wrong, "there is no row 2; rows are numbered from 0 to 1");
        let unknown = bring_back(&project, Back::Hashes(&["aa".to_owned()]), false).unwrap_err().to_string();
        assert!(unknown.contains("`aa` is not in quarantine") && unknown.contains("--list"), "{unknown}");
        let hashes = [listed[0].hash.clone(), listed[0].hash.clone()];
        let back = bring_back(&project, Back::Hashes(&hashes), false).unwrap();
        assert_eq!(counts(&back), (1, 0, 3, 0));
        let rows = data::read_dataset(&project.config, &project.folder).unwrap().rows;
        assert_eq!(put(&project.folder, &rows, &[1], true).unwrap(), 1);
        assert!(Quarantine::load(&project.folder).unwrap().contains(&listed[0].hash));
        assert_eq!(put(&project.folder, &rows, &[1], false).unwrap(), 1);
        assert!(!Quarantine::load(&project.folder).unwrap().contains(&listed[0].hash));
    }

    #[test]
    fn of_rows_that_are_there_twice_one_stays() {
        let (_folder, project) = project(&["one text", "another", "one text", "One Text", "one text"]);
        let kinds = [ProblemKind::Duplicate];
        let changed = aside(&project, Aside::Kinds(&kinds), false).unwrap();
        assert_eq!(counts(&changed), (0, 3, 2, 0));
        let listed = entries(&project).unwrap();
        let told: Vec<_> =
            listed.iter().map(|entry| (entry.text.as_str(), entry.rows, entry.copies)).collect();
        assert_eq!(told, [("one text", 2, true), ("One Text", 1, false)]);
        let back = bring_back(&project, Back::All, false).unwrap();
        assert_eq!(counts(&back), (3, 0, 5, 0));
    }

    #[test]
    fn of_equal_rows_the_first_stays_only_if_the_others_are_chosen() {
        let (_folder, project) = project(&["one text", "one text", "one text", "another"]);
        let rows = data::read_dataset(&project.config, &project.folder).unwrap().rows;
        let left = |positions: &[usize]| {
            let count = put(&project.folder, &rows, positions, true).unwrap();
            let left = data::read_dataset(&project.config, &project.folder).unwrap().rows;
            put(&project.folder, &rows, positions, false).unwrap();
            assert_eq!(count + left.len(), 4);
            left.heads().iter().map(|row| row.line).collect::<Vec<_>>()
        };
        assert_eq!(left(&[1, 2]), [1, 4]);
        assert_eq!(left(&[0]), [4]);
        assert_eq!(left(&[2]), [4]);
        assert_eq!(left(&[3]), [1, 2, 3]);
    }

    #[test]
    fn an_entry_whose_rows_are_gone_is_listed() {
        let (folder, project) = project(&["a", "b"]);
        aside(&project, Aside::Rows(&[0]), false).unwrap();
        fs::write(folder.path().join("train.jsonl"), "{\"text\": \"b\"}\n").unwrap();
        let listed = entries(&project).unwrap();
        assert_eq!((listed.len(), listed[0].rows, &listed[0].origin), (1, 0, &None));
    }

    #[test]
    fn an_edited_row_is_listed_and_comes_back_by_the_hash_in_its_file() {
        let (folder, project) = project(&["one", "two"]);
        let row = data::read_dataset(&project.config, folder.path()).unwrap().rows.heads()[1];
        set_aside(&project, Aside::Rows(&[1]), false, &mut |_, _| ControlFlow::Continue(())).unwrap();
        crate::project::rewrite(folder.path(), &project.config, &row.edit_key(), "{\"text\": \"new\"}")
            .unwrap();
        let listed = entries(&project).unwrap();
        let [entry] = listed.as_slice() else { panic!("{listed:?}") };
        assert_eq!((entry.hash.as_str(), entry.text.as_str()), (row.hash().as_str(), "new"));
        bring_back(&project, Back::Hashes(std::slice::from_ref(&entry.hash)), false).unwrap();
        assert!(entries(&project).unwrap().is_empty());
        let rows = data::read_dataset(&project.config, folder.path()).unwrap().rows;
        assert!(rows.len() == 2 && rows.heads()[1].is_edited());
        // In the pane the row itself is chosen, not a hash.
        set_aside(&project, Aside::Rows(&[1]), false, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let quarantined = data::read_dataset(&project.config, folder.path()).unwrap().quarantined;
        assert_eq!(put(folder.path(), &quarantined, &[0], false).unwrap(), 1);
        assert!(entries(&project).unwrap().is_empty());
    }
}
