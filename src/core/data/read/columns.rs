//! `data.columns`: which field of a row is meant as what.

use serde_json::{Map, Value};

use super::formats::{self, Detected, Shaped};
use super::{BY_PROMPT, BY_ROW};
use crate::algorithms::RowShape;
use crate::config::{Config, Format};
use crate::text::clean_line;

/// `data.columns`: the column for each role.
#[derive(Debug)]
pub(super) struct Columns {
    /// Role and column of rows.
    rows: Vec<(String, String)>,
    /// Role and field of messages.
    messages: Vec<(String, String)>,
    /// The rows that the algorithm needs.
    pub(super) wanted: RowShape,
    /// The column that `data.group_by` names.
    group: Option<String>,
}

impl Columns {
    pub(super) fn new(config: &Config) -> Self {
        let (messages, rows) = config
            .data
            .columns
            .iter()
            .map(|(role, column)| (role.clone(), column.clone()))
            .partition(|(role, _)| formats::MESSAGE_ROLES.contains(&role.as_str()));
        let group = Some(config.data.group_by.clone()).filter(|by| by != BY_PROMPT && by != BY_ROW);
        Columns { rows, messages, wanted: config.train.algorithm.declaration().rows, group }
    }

    /// The fields of a row by their roles, and its value in the column of `data.group_by`.
    pub(super) fn fields(&self, value: Value) -> Result<(Map<String, Value>, Option<String>), String> {
        let Value::Object(mut fields) = value else {
            return Err(format!("{} where an object is expected", formats::kind(&value)));
        };
        let group = self.group(&fields);
        self.rename(&mut fields)?;
        Ok((fields, group))
    }

    pub(super) fn shape(
        &self,
        detected: &Detected,
        mut fields: Map<String, Value>,
        group: Option<String>,
    ) -> Result<Shaped, String> {
        rename(&detected.columns, &mut fields);
        let mut shaped = formats::shape(detected.format, fields, self.wanted)?;
        shaped.extras.group = group;
        Ok(shaped)
    }

    /// A row that was read before, read again.
    pub(super) fn shape_as(&self, detected: &Detected, value: Value) -> Result<Shaped, String> {
        let (fields, group) = self.fields(value)?;
        self.shape(detected, fields, group)
    }

    /// The row's value in the column of `data.group_by`, as text.
    fn group(&self, fields: &Map<String, Value>) -> Option<String> {
        match at_path(fields, self.group.as_deref()?)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            value => Some(value.to_string()),
        }
    }

    /// Rejects a role of `data.columns` that rows of this format do not have.
    pub(super) fn check_taken(&self, format: Format) -> Result<(), String> {
        let takes = formats::takes(format);
        match self.rows.iter().find(|(role, _)| !takes.contains(&role.as_str())) {
            Some((role, column)) => Err(format!(
                "data.columns names {role} = {:?}, and rows of format \"{format}\" have no {role}, only {}",
                clean_line(column),
                takes.join(", ")
            )),
            None => Ok(()),
        }
    }

    fn rename(&self, fields: &mut Map<String, Value>) -> Result<(), String> {
        for (_, column) in &self.rows {
            lift(fields, column);
        }
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
        for key in ["messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected"]
        {
            let Some(value) = fields.get_mut(key) else { continue };
            *value = formats::parsed_list(std::mem::take(value));
            for message in value.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                rename(&self.messages, message);
            }
        }
        Ok(())
    }

    /// The format of a row: from the mapped roles, otherwise from all its fields.
    pub(super) fn detect(&self, fields: &Map<String, Value>) -> Result<Detected, String> {
        let roles: Vec<&str> = self.rows.iter().map(|(role, _)| role.as_str()).collect();
        let detect =
            |names: &[&str], fields: &Map<String, Value>| formats::detect(names, fields, self.wanted);
        if !roles.is_empty()
            && let Ok(detected) = detect(&roles, fields)
        {
            return Ok(detected);
        }
        // Tables pad rows with null and with blank texts.
        let with_words = fields.iter().filter(|(_, value)| !formats::is_missing(value));
        let with_words: Vec<&str> = with_words.map(|(name, _)| name.as_str()).collect();
        let all: Vec<&str> = fields.keys().map(String::as_str).collect();
        let found = detect(&with_words, fields).or_else(|problem| detect(&all, fields).map_err(|_| problem));
        found.or_else(|problem| self.detect_capitals(fields).ok_or(problem))
    }

    /// The format of a row whose fields have capital letters, such as `Question` and `Answer`.
    fn detect_capitals(&self, fields: &Map<String, Value>) -> Option<Detected> {
        let lower: Map<String, Value> =
            fields.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
        let is_new = lower.len() == fields.len() && lower.keys().any(|name| !fields.contains_key(name));
        let names: Vec<&str> = lower.keys().map(String::as_str).collect();
        let detected = formats::detect(&names, &lower, self.wanted).ok().filter(|_| is_new)?;
        let written = |name: &str| fields.keys().find(|field| field.to_lowercase() == name).cloned();
        let mut columns: Vec<(&'static str, String)> =
            detected.columns.iter().filter_map(|(role, column)| Some((*role, written(column)?))).collect();
        for role in formats::takes(detected.format) {
            let is_taken = columns.iter().any(|(known, _)| known == role);
            if let Some(column) = written(role).filter(|column| column != role && !is_taken) {
                columns.push((role, column));
            }
        }
        Some(Detected { format: detected.format, columns })
    }

    /// The format of a row after others of the format `found`. A file may mix the forms of conversations and of
    /// prompts with completions; other formats keep to themselves, so that a broken row is not read as something
    /// else.
    pub(super) fn detect_again(&self, found: &Detected, fields: &Map<String, Value>) -> Detected {
        let fits = found.columns.iter().all(|(_, column)| fields.contains_key(column));
        let mixes = formats::is_answer(found.format) && !(fits && formats::has_needed(found.format, fields));
        let other = if mixes { self.detect(fields).ok() } else { None };
        other.filter(|other| formats::is_answer(other.format)).unwrap_or_else(|| found.clone())
    }
}

/// Moves the value of each column to its role; an earlier field with the role's name is replaced.
fn rename(names: &[(impl AsRef<str>, String)], fields: &mut Map<String, Value>) {
    let values: Vec<(&str, Value)> = names
        .iter()
        .filter_map(|(role, column)| Some((role.as_ref(), fields.get(column)?.clone())))
        .collect();
    for (_, column) in names {
        fields.shift_remove(column);
    }
    for (role, value) in values {
        fields.insert(role.to_owned(), value);
    }
}

/// The value of a column; `input.messages` is a member of the column `input`.
fn at_path<'row>(fields: &'row Map<String, Value>, column: &str) -> Option<&'row Value> {
    fields.get(column).or_else(|| {
        let (outer, inner) = column.split_once('.')?;
        match fields.get(outer)? {
            Value::Object(members) => at_path(members, inner),
            _ => None,
        }
    })
}

/// Makes a member that a column such as `input.messages` names a field of the row, and removes it from its
/// object.
fn lift(fields: &mut Map<String, Value>, column: &str) {
    if fields.contains_key(column) {
        return;
    }
    if let Some(value) = remove_path(fields, column) {
        fields.insert(column.to_owned(), value);
    }
}

fn remove_path(fields: &mut Map<String, Value>, column: &str) -> Option<Value> {
    if let Some(value) = fields.shift_remove(column) {
        return Some(value);
    }
    let (outer, inner) = column.split_once('.')?;
    let Some(Value::Object(members)) = fields.get_mut(outer) else { return None };
    let value = remove_path(members, inner);
    if members.is_empty() {
        fields.shift_remove(outer);
    }
    value
}
