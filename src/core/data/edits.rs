//! Rows that the user has rewritten: `edits.jsonl` in the project, a line for each with the hash of the row that it
//! replaces. The dataset files stay as they are.

use std::io;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::read::reread;
use super::write::{Form, written};
use super::{DataError, Example, Extras, Row};
use crate::algorithms::RowShape;
use crate::config::Config;
use crate::files::{self, Access};
use crate::json;
use crate::text::clean_line;

const FILE: &str = "edits.jsonl";
/// Largest file that is read.
const MAX_BYTES: u64 = 256 << 20;
/// Most values in a line.
const MAX_VALUES: usize = 1 << 22;

/// The rewritten rows of a project.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits {
    path: PathBuf,
    /// The new fields of a row, by the [`Row::hash`] that it has in its file.
    rows: IndexMap<String, Map<String, Value>>,
}

impl Edits {
    /// The project's edits; empty if there is no file.
    pub fn load(project: &Path) -> Result<Self, DataError> {
        let path = project.join(FILE);
        let text = match files::read(&path, MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Edits { path, ..Self::default() });
            }
            Err(error) => return Err(DataError::read(&path, error)),
        };
        let mut rows = IndexMap::new();
        let lines = text.split(|&byte| byte == b'\n').enumerate();
        for (number, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
            let (hash, fields) = edit(line).map_err(|reason| {
                DataError::file(&path, format!("line {}: {}", number + 1, clean_line(&reason)))
            })?;
            rows.insert(hash, fields);
        }
        Ok(Edits { path, rows })
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The hashes of the rows that are replaced, as they are in their files.
    pub(super) fn hashes(&self) -> impl Iterator<Item = &str> {
        self.rows.keys().map(String::as_str)
    }

    /// What a row is replaced with, or why that cannot be read. `None` if it is not edited.
    pub(super) fn replacement(
        &self,
        hash: &str,
        wanted: RowShape,
    ) -> Option<Result<(Example, Extras), String>> {
        let read = reread(self.rows.get(hash)?.clone(), wanted);
        Some(
            read.map_err(|reason| {
                format!("it was edited, and {FILE} has for it what cannot be read: {reason}")
            }),
        )
    }

    /// Replaces a row that has this hash in its file.
    pub fn set(&mut self, hash: &str, fields: Map<String, Value>) {
        self.rows.insert(hash.to_owned(), fields);
    }

    /// Lets the row be as it is in its file. Returns whether it was edited.
    pub fn remove(&mut self, hash: &str) -> bool {
        self.rows.shift_remove(hash).is_some()
    }

    /// Replaces the file atomically.
    pub fn save(&self) -> Result<(), DataError> {
        let fail = |source| DataError::Write { path: self.path.clone(), source };
        files::replace(&self.path, self.text().as_bytes(), Access::Shared).map_err(fail)
    }

    /// The file's content.
    pub(super) fn text(&self) -> String {
        let line = |(hash, fields): (&String, &Map<String, Value>)| {
            format!("{}\n", json!({"row": hash, "fields": fields}))
        };
        self.rows.iter().map(line).collect()
    }
}

fn edit(line: &[u8]) -> Result<(String, Map<String, Value>), String> {
    let value: Value = json::from_slice(line, MAX_VALUES).map_err(|error| format!("not JSON: {error}"))?;
    let hash = value.get("row").and_then(Value::as_str).ok_or("no \"row\" with the hash of a row")?;
    let fields =
        value.get("fields").and_then(Value::as_object).ok_or("no \"fields\" with what the row says")?;
    Ok((hash.to_owned(), fields.clone()))
}

/// A row as a person edits it: JSON with the fields that its file would have.
///
/// # Errors
///
/// Why it cannot be edited: token ids have no text.
pub fn draft(row: &Row) -> Result<String, &'static str> {
    let form = match &row.example {
        Example::Messages(_) | Example::Tokens { .. } => Form::Messages,
        Example::PromptCompletion { .. } => Form::PromptCompletion,
        Example::Preference { .. } => Form::Preference,
        Example::Text(_) => Form::Text,
    };
    let fields = written(row, form)?.fields;
    Ok(format!("{:#}\n", Value::Object(fields)))
}

/// The fields of a row out of what a person wrote.
///
/// # Errors
///
/// Why it is no row that can be trained on, with line and column where it is no JSON.
pub fn read_draft(text: &str, config: &Config) -> Result<Map<String, Value>, String> {
    let value: Value =
        json::from_slice(text.as_bytes(), MAX_VALUES).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(fields) = value else { return Err("not a JSON object".to_owned()) };
    reread(fields.clone(), config.train.algorithm.declaration().rows)?;
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pretty_assertions::assert_eq;
    use serde_json::json;

    use super::*;
    use crate::data::testing::{config, json_lines};
    use crate::data::{Quarantine, read_dataset};

    #[test]
    fn an_edited_row_replaces_the_one_in_the_file() {
        let project = tempfile::tempdir().unwrap();
        let rows = [
            json!({"prompt": "a", "completion": "b", "topic": 1}),
            json!({"prompt": "c", "completion": "d", "topic": 2}),
        ];
        let file = json_lines(&rows);
        fs::write(project.path().join("a.jsonl"), &file).unwrap();
        let config = config("a.jsonl", &["data.eval=0", "data.group_by=topic"]);
        let read = || read_dataset(&config, project.path()).unwrap();
        let row = read().rows.all().remove(1);
        let text = draft(&row).unwrap();
        assert_eq!(text, "{\n  \"prompt\": \"c\",\n  \"completion\": \"d\"\n}\n");
        let mut edits = Edits::load(project.path()).unwrap();
        edits.set(&row.hash(), read_draft(&text.replace("\"d\"", "\"better\""), &config).unwrap());
        edits.save().unwrap();
        assert_eq!(Edits::load(project.path()).unwrap(), edits);
        let dataset = read();
        let edited = dataset.rows.all().remove(1);
        assert_eq!(edited.example.plain_text(), "c\nbetter");
        assert_eq!((edited.origin.line, edited.extras.group.as_deref()), (2, Some("2")));
        let head = dataset.rows.heads()[1];
        assert_eq!((head.edited_from(), head.hash()), (Some(row.hash()), edited.hash()));
        assert_eq!(dataset.rows.heads()[0].edited_from(), None);
        assert_eq!(dataset.notices, ["1 row is edited (edits.jsonl)"]);
        assert_eq!(fs::read_to_string(project.path().join("a.jsonl")).unwrap(), file);
        // The quarantine lists what the row says now.
        let mut quarantine = Quarantine::load(project.path()).unwrap();
        quarantine.insert(&edited.hash());
        quarantine.save().unwrap();
        assert_eq!(read().quarantined.heads()[0].edited_from(), Some(row.hash()));
        assert!(edits.remove(&row.hash()) && !edits.remove(&row.hash()));
        edits.save().unwrap();
        assert_eq!(read().rows.all()[1], row);
    }

    #[test]
    fn edits_that_fit_no_row_or_cannot_be_read_are_told() {
        let project = tempfile::tempdir().unwrap();
        fs::write(project.path().join("a.jsonl"), json_lines(&[json!({"text": "a"})])).unwrap();
        let config = config("a.jsonl", &["data.eval=0"]);
        let hash = read_dataset(&config, project.path()).unwrap().rows.heads()[0].hash();
        let write = |text: String| fs::write(project.path().join(FILE), text).unwrap();
        write(json!({"row": "0123456789abcdef", "fields": {"text": "b"}}).to_string());
        let notices = read_dataset(&config, project.path()).unwrap().notices;
        assert_eq!(notices, ["edits.jsonl: 1 edited row is not in the data any more"]);
        write(json!({"row": hash, "fields": {"a": 1}}).to_string());
        let problem = read_dataset(&config, project.path()).unwrap().problems.remove(0).to_string();
        assert!(problem.starts_with("a.jsonl:1: it was edited, and edits.jsonl has"), "{problem}");
        for broken in ["{", "{\"row\": 1}", "{\"row\": \"a\"}"] {
            write(format!("\n{broken}"));
            let error = read_dataset(&config, project.path()).unwrap_err().to_string();
            assert!(error.contains("edits.jsonl: line 2: "), "{error}");
        }
    }

    #[test]
    fn a_draft_must_be_a_row() {
        let config = config("a.jsonl", &[]);
        for (text, reason) in [("{\"prompt\": ", "line 1"), ("[]", "not a JSON object"), ("{\"a\": 1}", "a")]
        {
            let told = read_draft(text, &config).unwrap_err();
            assert!(told.contains(reason), "{told}");
        }
        assert!(read_draft("{\"text\": \"a\"}", &config).is_ok());
    }
}
