//! The project's rows in another form.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use luthier_core::data::{self, DataError, Form, Split};
use luthier_core::files::{self, Access};
use serde_json::{Map, Value};

use super::{Project, Refusal};

/// Rows that no form can hold.
const UNREADABLE: &str = "it cannot be read; `luthier data check` says why";

/// Rows in another form, and what it does not hold.
#[derive(Debug)]
pub struct Converted {
    /// The rows, in reading order.
    pub rows: Vec<Map<String, Value>>,
    /// How many rows were left out, by the reason.
    pub left_out: BTreeMap<&'static str, usize>,
    /// How many of the rows lack something that they had, by what it is.
    pub dropped: BTreeMap<&'static str, usize>,
    /// Fields of the read rows that nothing reads, and how many rows have them.
    pub unused: BTreeMap<String, usize>,
    /// The files that the rows come from.
    pub sources: BTreeSet<PathBuf>,
}

impl Converted {
    /// Writes the rows to `file` as JSON Lines. A file that is there stays, unless it may be replaced; one that the rows
    /// come from always stays.
    pub fn save(&self, file: &Path, may_replace: bool) -> Result<(), Refusal> {
        let real = |path: &Path| path.canonicalize().ok();
        if real(file).is_some_and(|file| self.sources.iter().any(|source| real(source) == Some(file.clone())))
        {
            return Err(Refusal::Source(file.to_owned()));
        }
        if !may_replace && file.symlink_metadata().is_ok() {
            return Err(Refusal::NotReplaced(file.to_owned()));
        }
        let fail = |source| DataError::Write { path: file.to_owned(), source };
        let mut text = Vec::new();
        for row in &self.rows {
            serde_json::to_writer(&mut text, row).map_err(|error| fail(error.into()))?;
            text.push(b'\n');
        }
        Ok(files::replace(file, &text, Access::Shared).map_err(fail)?)
    }
}

/// The project's rows, or those of one side of the split, in another form. A row that the settings use several times
/// is there once.
pub fn convert(project: &Project, form: Form, split: Option<Split>) -> Result<Converted, Refusal> {
    let dataset = data::read_dataset(&project.config, &project.folder)?;
    let unused = dataset.unused.iter().map(|field| (field.name.clone(), field.rows)).collect();
    let origins = dataset.rows.places().chain(dataset.quarantined.places()).map(|row| row.origin());
    let origins = origins.chain(dataset.problems.iter().map(|problem| problem.origin.clone()));
    let sources = origins.map(|origin| project.folder.join(&origin.file)).collect();
    let mut converted =
        Converted { rows: Vec::new(), left_out: BTreeMap::new(), dropped: BTreeMap::new(), unused, sources };
    if dataset.unreadable > 0 {
        converted.left_out.insert(UNREADABLE, dataset.unreadable);
    }
    let mut seen = HashSet::new();
    let wanted = dataset.rows.places().filter(|row| split.is_none_or(|split| row.split == split));
    for place in wanted.filter(|row| seen.insert(row.origin())) {
        let Some(row) = dataset.rows.get(place.index)? else { continue };
        match data::written(&row, form) {
            Ok(written) => {
                for name in written.dropped {
                    *converted.dropped.entry(name).or_default() += 1;
                }
                converted.rows.push(written.fields);
            }
            Err(reason) => *converted.left_out.entry(reason).or_default() += 1,
        }
    }
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn what_a_form_cannot_hold_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let rows = concat!(
            "{\"prompt\": \"a\", \"completion\": \"b\"}\n",
            "{\"prompt\": [{\"role\": \"user\", \"content\": \"c\"}], ",
            "\"completion\": [{\"role\": \"user\", \"content\": \"c\"}]}\n",
            "{\"prompt\": \"d\"\n",
            "{\"prompt\": [{\"role\": \"user\", \"content\": \"e\"}], ",
            "\"completion\": [{\"role\": \"assistant\", \"content\": \"f\", \"weight\": 1}]}\n",
        );
        fs::write(folder.path().join("a.jsonl"), rows).unwrap();
        let settings =
            "[model]\npath = \"m\"\n[data]\ntrain = [{ path = \"a.jsonl\", share = 2 }]\neval = 0\n";
        fs::write(folder.path().join("luthier.toml"), settings).unwrap();
        let project = Project::open(folder.path(), &[]).unwrap();
        let converted = convert(&project, Form::Alpaca, None).unwrap();
        assert_eq!(converted.rows.len(), 2);
        assert_eq!(converted.rows[1]["instruction"], "e");
        assert_eq!(converted.dropped, BTreeMap::from([("weights", 1)]));
        assert_eq!(converted.left_out.values().sum::<usize>(), 2);
        assert_eq!(converted.left_out[UNREADABLE], 1);
        assert_eq!(convert(&project, Form::Alpaca, Some(Split::Eval)).unwrap().rows.len(), 0);

        let file = folder.path().join("out.jsonl");
        converted.save(&file, false).unwrap();
        let refusal = converted.save(&file, false).unwrap_err().to_string();
        assert!(refusal.contains("out.jsonl") && refusal.contains("--force"), "{refusal}");
        converted.save(&file, true).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2);
        let source = converted.save(&folder.path().join("a.jsonl"), true).unwrap_err().to_string();
        assert!(source.contains("the rows come from"), "{source}");
        let nowhere = converted.save(Path::new("/nowhere/a.jsonl"), false).unwrap_err().to_string();
        assert!(nowhere.contains("/nowhere/a.jsonl"), "{nowhere}");
    }
}
