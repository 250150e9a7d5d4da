//! Rows that the user has rewritten: `edits.jsonl` in the project, a line for each: `row`, a key made of the hash and the
//! label that the row has in its file, and `fields`, what replaces it. The dataset files stay as they are.

use std::io;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::read::{Shaped, reread};
use super::write::{Form, written};
use super::{DataError, Example, Row};
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
    /// The new fields of a row, by [`RowHead::edit_key`](super::RowHead::edit_key).
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
            let (key, fields) = edit(line).map_err(|reason| {
                DataError::file(&path, format!("line {}: {}", number + 1, clean_line(&reason)))
            })?;
            rows.insert(key, fields);
        }
        Ok(Edits { path, rows })
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The keys of the rows that are replaced.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.rows.keys().map(String::as_str)
    }

    /// What a row is replaced with, or why that cannot be read. `None` if it is not edited.
    pub(super) fn replacement(&self, key: &str, wanted: RowShape) -> Option<Result<Shaped, String>> {
        let read = reread(self.rows.get(key)?.clone(), wanted);
        let explain = |reason| {
            format!("it was edited, and {FILE} has for it (\"row\": \"{key}\") what cannot be read: {reason}")
        };
        Some(read.map_err(explain))
    }

    /// Replaces the row with this key.
    pub fn set(&mut self, key: &str, fields: Map<String, Value>) {
        self.rows.insert(key.to_owned(), fields);
    }

    /// Lets the row be as it is in its file. Returns whether it was edited.
    pub fn remove(&mut self, key: &str) -> bool {
        self.rows.shift_remove(key).is_some()
    }

    /// Replaces the file atomically.
    pub fn save(&self) -> Result<(), DataError> {
        let fail = |source| DataError::Write { path: self.path.clone(), source };
        let text = self.text();
        if text.len() as u64 > MAX_BYTES {
            return Err(fail(io::ErrorKind::FileTooLarge.into()));
        }
        files::replace(&self.path, text.as_bytes(), Access::Shared).map_err(fail)
    }

    /// The file's content.
    pub(super) fn text(&self) -> String {
        let line = |(key, fields): (&String, &Map<String, Value>)| {
            format!("{}\n", json!({ "row": key, "fields": fields}))
        };
        self.rows.iter().map(line).collect()
    }
}

fn edit(line: &[u8]) -> Result<(String, Map<String, Value>), String> {
    let value: Value = json::from_slice(line, MAX_VALUES).map_err(|error| format!("not JSON: {error}"))?;
    let key = value.get("row").and_then(Value::as_str).ok_or("no \"row\" with the key of a row")?;
    let fields =
        value.get("fields").and_then(Value::as_object).ok_or("no \"fields\" with what the row says")?;
    Ok((key.to_owned(), fields.clone()))
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
    let shaped = reread(fields.clone(), config.train.algorithm.declaration().rows)?;
    match shaped.unused.first() {
        Some(name) => Err(format!("nothing reads the field {:?}", clean_line(name))),
        None => Ok(fields),
    }
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
        assert_eq!((head.edit_key(), head.hash()), (row.hash(), edited.hash()));
        assert!(head.is_edited() && !dataset.rows.heads()[0].is_edited());
        assert_eq!(dataset.notices, ["1 row is edited (edits.jsonl)"]);
        assert_eq!(fs::read_to_string(project.path().join("a.jsonl")).unwrap(), file);
        // A row that is in quarantine stays there, edited or not.
        for hash in [edited.hash(), row.hash()] {
            let mut quarantine = Quarantine::load(project.path()).unwrap();
            quarantine.clear();
            quarantine.insert(&hash);
            quarantine.save().unwrap();
            assert!(read().quarantined.heads()[0].is_edited());
        }
        fs::remove_file(project.path().join("quarantine.json")).unwrap();
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
    fn an_edit_changes_one_label_and_no_split() {
        let project = tempfile::tempdir().unwrap();
        let row = |label: bool| json!({"prompt": "a", "completion": "b", "label": label});
        let others =
            (0..40).map(|number| json!({"prompt": number.to_string(), "completion": "c", "label": true}));
        let rows: Vec<Value> = [row(true), row(false)].into_iter().chain(others).collect();
        fs::write(project.path().join("a.jsonl"), json_lines(&rows)).unwrap();
        let config = config("a.jsonl", &["train.algorithm=kto", "data.group_by=row"]);
        let read = || read_dataset(&config, project.path()).unwrap().rows;
        let splits =
            |rows: &super::super::Rows| rows.heads().iter().map(|head| head.split).collect::<Vec<_>>();
        let before = read();
        let mut edits = Edits::load(project.path()).unwrap();
        for head in before.heads().iter().filter(|head| head.index != 1) {
            let text = draft(&before.row(head).unwrap())
                .unwrap()
                .replace("\"b\"", "\"d\"")
                .replace("\"c\"", "\"e\"");
            edits.set(&head.edit_key(), read_draft(&text, &config).unwrap());
        }
        edits.save().unwrap();
        let after = read();
        assert_eq!(splits(&after), splits(&before));
        let labels =
            |rows: &super::super::Rows| rows.heads().iter().map(|head| head.label).collect::<Vec<_>>();
        assert_eq!(labels(&after), labels(&before));
        let texts: Vec<String> = after.all().iter().take(2).map(|row| row.example.plain_text()).collect();
        assert_eq!(texts, ["a\nd", "a\nb"]);
    }

    #[test]
    fn a_draft_must_be_a_row() {
        let config = config("a.jsonl", &[]);
        let with_typo = "{\"prompt\": \"a\", \"completion\": \"b\", \"sytem\": \"c\"}";
        for (text, reason) in [
            ("{\"prompt\": ", "line 1"),
            ("[]", "not a JSON object"),
            ("{\"a\": 1}", "a"),
            (with_typo, "nothing reads the field \"sytem\""),
        ] {
            let told = read_draft(text, &config).unwrap_err();
            assert!(told.contains(reason), "{told}");
        }
        assert!(read_draft("{\"text\": \"a\"}", &config).is_ok());
    }
}
