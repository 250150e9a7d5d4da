//! Reads rows from dataset files: `.jsonl .json .csv .tsv .parquet .txt`, in any of the known formats.

mod formats;
mod json;
mod lines;
mod parquet;
mod split;
mod table;

use std::io::BufReader;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::quarantine::Quarantine;
use super::{DataError, Example, Extras, Origin, Row, RowProblem, RowProblemKind, Split};
use crate::algorithms::RowShape;
use crate::config::{Config, EvalSource, Format};
use crate::files;
use crate::text::clean_line;

/// Longest row, in bytes.
const MAX_ROW_BYTES: usize = 64 << 20;
/// Most values in a row: a million tokens with labels and mask are three million.
const MAX_ROW_VALUES: usize = 1 << 22;
/// Most row problems kept; the rest are counted.
const MAX_PROBLEMS: usize = 1000;

/// The content of a project's dataset files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dataset {
    /// Usable rows in reading order; [`Row::index`] is an index into this list.
    pub rows: Vec<Row>,
    /// Rows left out because the project's quarantine lists them. Their `index` is the place they would have
    /// had.
    pub quarantined: Vec<Row>,
    /// Rows that cannot be used; only the first 1000.
    pub problems: Vec<RowProblem>,
    /// Number of rows that cannot be used.
    pub unreadable: usize,
}

/// The project's rows: training files first, then evaluation files. If a row cannot be used, the error lists
/// every such row.
pub fn read_rows(config: &Config, project: &Path) -> Result<Vec<Row>, DataError> {
    let dataset = read_dataset(config, project)?;
    if dataset.problems.is_empty() { Ok(dataset.rows) } else { Err(DataError::Rows(dataset.problems)) }
}

/// As [`read_rows`], but returns the usable rows and the others.
pub fn read_dataset(config: &Config, project: &Path) -> Result<Dataset, DataError> {
    let columns = Columns::new(&config.data.columns, config.train.algorithm.declaration().rows);
    let quarantine = Quarantine::load(project)?;
    let mut dataset = Dataset::default();
    let eval_paths: &[PathBuf] = match &config.data.eval {
        EvalSource::Fraction(_) => &[],
        EvalSource::Paths(paths) => paths,
    };
    let files = config.data.train.iter().map(|path| (path, Split::Train));
    for (path, split) in files.chain(eval_paths.iter().map(|path| (path, Split::Eval))) {
        let mut sink = Sink {
            path,
            split,
            columns: &columns,
            wanted: config.data.format,
            found: None,
            quarantine: &quarantine,
            dataset: &mut dataset,
        };
        read_file(&project.join(path), &mut sink)?;
    }
    if let EvalSource::Fraction(fraction) = config.data.eval {
        split::hold_out(&mut dataset.rows, fraction, config.train.seed);
    }
    Ok(dataset)
}

fn read_file(path: &Path, sink: &mut Sink) -> Result<(), DataError> {
    let shown = sink.path;
    let extension =
        path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default();
    let (file, _) = files::open(path).map_err(|error| DataError::read(shown, error))?;
    match extension.as_str() {
        "jsonl" | "ndjson" => lines::read_json_lines(BufReader::new(file), sink),
        "json" => json::read(file, sink),
        "csv" => table::read(file, b',', sink),
        "tsv" => table::read(file, b'\t', sink),
        "parquet" => parquet::read(file, sink),
        "txt" => lines::read_text_lines(BufReader::new(file), sink),
        _ => Err(DataError::file(
            shown,
            "not a known kind of dataset; use .jsonl, .json, .csv, .tsv, .parquet or .txt",
        )),
    }
}

/// Receives the rows of one file.
struct Sink<'read> {
    /// As written in the configuration.
    path: &'read Path,
    split: Split,
    columns: &'read Columns,
    wanted: Format,
    /// The format of the file's first usable row, with `format = "auto"`.
    found: Option<Format>,
    quarantine: &'read Quarantine,
    dataset: &'read mut Dataset,
}

impl Sink<'_> {
    fn row(&mut self, line: usize, value: Result<Value, String>) {
        match value.and_then(|value| self.example(value)) {
            Ok((example, extras)) => {
                let origin = self.origin(line);
                let row = Row { index: self.dataset.rows.len(), origin, split: self.split, example, extras };
                if self.quarantine.contains(&row.hash()) {
                    self.dataset.quarantined.push(row);
                } else {
                    self.dataset.rows.push(row);
                }
            }
            Err(message) => {
                self.dataset.unreadable += 1;
                if self.dataset.problems.len() < MAX_PROBLEMS {
                    let origin = self.origin(line);
                    let kind = RowProblemKind::Unreadable;
                    self.dataset.problems.push(RowProblem { kind, origin, row: None, message });
                }
            }
        }
    }

    fn origin(&self, line: usize) -> Origin {
        Origin { file: self.path.to_path_buf(), line }
    }

    fn example(&mut self, value: Value) -> Result<(Example, Extras), String> {
        let Value::Object(mut fields) = value else {
            return Err(format!("{} where an object is expected", formats::kind(&value)));
        };
        self.columns.rename(&mut fields)?;
        let format = match (self.wanted, self.found) {
            (Format::Auto, Some(found)) => found,
            (Format::Auto, None) => self.columns.detect(&fields)?,
            (wanted, _) => wanted,
        };
        let row = formats::shape(format, fields, self.columns.shape)?;
        self.found = Some(format);
        Ok(row)
    }
}

/// `data.columns`: the column for each role.
#[derive(Debug)]
struct Columns {
    /// Role and column of rows.
    rows: Vec<(String, String)>,
    /// Role and field of messages.
    messages: Vec<(String, String)>,
    /// The rows that the algorithm needs.
    shape: RowShape,
}

impl Columns {
    fn new(columns: &IndexMap<String, String>, shape: RowShape) -> Self {
        let (messages, rows) = columns
            .iter()
            .map(|(role, column)| (role.clone(), column.clone()))
            .partition(|(role, _)| formats::MESSAGE_ROLES.contains(&role.as_str()));
        Columns { rows, messages, shape }
    }

    fn rename(&self, fields: &mut Map<String, Value>) -> Result<(), String> {
        for (role, column) in &self.rows {
            if !fields.contains_key(column) && !formats::OPTIONAL_ROLES.contains(&role.as_str()) {
                return Err(format!(
                    "no column {:?}, which data.columns names (has {})",
                    clean_line(column),
                    formats::names(fields)
                ));
            }
        }
        // A role whose column a row lacks is not taken from another field of the role's name.
        for (role, column) in &self.rows {
            if !fields.contains_key(column) {
                fields.shift_remove(role);
            }
        }
        rename(&self.rows, fields);
        if self.messages.is_empty() {
            return Ok(());
        }
        for key in ["messages", "conversations", "prompt", "completion", "chosen", "rejected"] {
            let Some(value) = fields.get_mut(key) else { continue };
            *value = formats::parsed_list(std::mem::take(value));
            for message in value.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                rename(&self.messages, message);
            }
        }
        Ok(())
    }

    /// The format of a row: from the mapped roles, otherwise from all its fields.
    fn detect(&self, fields: &Map<String, Value>) -> Result<Format, String> {
        let roles: Vec<&str> = self.rows.iter().map(|(role, _)| role.as_str()).collect();
        let all: Vec<&str> = fields.keys().map(String::as_str).collect();
        let detect = |names: &[&str]| formats::detect(names, fields, self.shape);
        detect(&roles).or_else(|| detect(&all)).ok_or_else(|| {
            format!(
                "its fields ({}) match no known format. Say which is which, e.g. \
                 data.columns = {{ prompt = \"question\", completion = \"answer\" }}",
                formats::names(fields)
            )
        })
    }
}

/// Moves the value of each column to its role; an earlier field with the role's name is replaced.
fn rename(names: &[(String, String)], fields: &mut Map<String, Value>) {
    let values: Vec<(&String, Value)> =
        names.iter().filter_map(|(role, column)| Some((role, fields.get(column)?.clone()))).collect();
    for (_, column) in names {
        fields.shift_remove(column);
    }
    for (role, value) in values {
        fields.insert(role.clone(), value);
    }
}

#[cfg(test)]
mod tests;
