//! How each type of setting is read from and written to TOML.

use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use regex::Regex;
use serde_json::{Map, Value as Json};
use toml::Value;

use super::choices::{Choice, FOREIGN};
use super::kinds::{Bounds, Kind, MOST};
use super::names::nearest;
use super::problems::Source;
use super::raw::{Located, Raw};
use crate::hub::{HUB_NAME_FORM, HubModel};

/// What a column of a dataset may be used as.
const ROLES: &[&str] = &[
    "prompt",
    "completion",
    "messages",
    "conversations",
    "role",
    "content",
    "from",
    "value",
    "system",
    "instruction",
    "input",
    "output",
    "text",
    "chosen",
    "rejected",
    "input_ids",
    "labels",
    "attention_mask",
    "label",
    "tools",
    "history",
    "chat_template_kwargs",
    "reasoning_content",
    "tool_calls",
    "weight",
];

/// Variables of a chat template that no setting can give.
const TEMPLATE_ARGUMENTS: &[&str] = &["messages", "tools", "add_generation_prompt"];

/// A share of a whole, which cannot be all of it.
pub(super) const SHARE: Bounds = Bounds::below(0.0, 1.0);

/// A setting's type.
pub(super) trait Field: Sized {
    /// What a setting of this type accepts where its declaration does not narrow it.
    const KIND: Kind;
    /// Reads a value that `kind` accepts.
    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault>;
    /// Writes it so that it reads back the same.
    fn write(&self) -> Value;
}

/// Why a value is not accepted. `message` continues the key's name: "must be …".
#[derive(Debug)]
pub(super) struct Fault {
    pub span: Range<usize>,
    pub message: String,
    pub help: Option<String>,
}

impl Fault {
    pub fn new(value: &Located, message: impl Into<String>) -> Self {
        Self { span: value.span.clone(), message: message.into(), help: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub fn mismatch(value: &Located, kind: &Kind, source: &Source) -> Self {
        let fault = Self::new(value, format!("must be {kind}, not {}", value.found(source)));
        match &value.value {
            Raw::Text(text) if !kind.is_text() && is_unquoted_value(text) => {
                fault.help(format!("write it without quotes: {text}"))
            }
            _ => fault,
        }
    }
}

fn is_unquoted_value(text: &str) -> bool {
    matches!(text, "true" | "false") || text.parse::<f64>().is_ok_and(f64::is_finite)
}

/// Which of the choices a value names.
pub(super) fn read_choice(
    value: &Located,
    choices: &'static [Choice],
    source: &Source,
) -> Result<usize, Fault> {
    let mismatch = || Fault::mismatch(value, &Kind::Choice(choices), source);
    let Raw::Text(name) = &value.value else {
        return Err(mismatch());
    };
    choices.iter().position(|choice| choice.name == name).ok_or_else(|| {
        if let Some((_, instead)) = FOREIGN.iter().find(|(foreign, _)| foreign == name) {
            return mismatch().help(*instead);
        }
        match nearest(name, choices.iter().map(|choice| choice.name)) {
            Some(near) => mismatch().help(format!("did you mean \"{near}\"?")),
            None => mismatch(),
        }
    })
}

impl Field for bool {
    const KIND: Kind = Kind::Flag;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        match value.value {
            Raw::Flag(flag) => Ok(flag),
            _ => Err(Fault::mismatch(value, kind, source)),
        }
    }

    fn write(&self) -> Value {
        Value::Boolean(*self)
    }
}

impl Field for u64 {
    const KIND: Kind = Kind::Whole { least: 0, most: MOST };

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let (least, most) = match *kind {
            Kind::Whole { least, most } => (least, most),
            _ => (0, MOST),
        };
        match value.value {
            Raw::Whole(Some(whole)) => u64::try_from(whole)
                .ok()
                .filter(|whole| (least..=most).contains(whole))
                .ok_or_else(|| Fault::mismatch(value, kind, source)),
            _ => Err(Fault::mismatch(value, kind, source)),
        }
    }

    fn write(&self) -> Value {
        Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
    }
}

impl Field for usize {
    const KIND: Kind = Kind::Whole { least: 0, most: MOST };

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let whole = u64::read(value, kind, source)?;
        Self::try_from(whole).map_err(|_| Fault::mismatch(value, kind, source))
    }

    fn write(&self) -> Value {
        (*self as u64).write()
    }
}

/// 0 means "not set".
impl Field for Option<u64> {
    const KIND: Kind = Kind::Whole { least: 0, most: MOST };

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        u64::read(value, kind, source).map(|whole| (whole > 0).then_some(whole))
    }

    fn write(&self) -> Value {
        self.unwrap_or(0).write()
    }
}

/// 0 means "not set".
impl Field for Option<usize> {
    const KIND: Kind = Kind::Whole { least: 0, most: MOST };

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        usize::read(value, kind, source).map(|whole| (whole > 0).then_some(whole))
    }

    fn write(&self) -> Value {
        self.unwrap_or(0).write()
    }
}

pub(super) fn number(value: &Located) -> Option<f64> {
    match value.value {
        Raw::Whole(whole) => whole.map(|whole| whole as f64),
        Raw::Number(number) => number,
        _ => None,
    }
}

impl Field for f64 {
    const KIND: Kind = Kind::Number(Bounds::closed(Self::MIN, Self::MAX));

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let bounds = match kind {
            Kind::Number(bounds) => *bounds,
            _ => Bounds::closed(Self::MIN, Self::MAX),
        };
        number(value)
            .filter(|number| bounds.hold(*number))
            .ok_or_else(|| Fault::mismatch(value, kind, source))
    }

    fn write(&self) -> Value {
        Value::Float(*self)
    }
}

impl Field for [f64; 2] {
    const KIND: Kind = Kind::Betas;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let Raw::List(list) = &value.value else {
            return Err(Fault::mismatch(value, kind, source));
        };
        let [first, second] = list.as_slice() else {
            return Err(Fault::new(value, format!("must be {kind}, not {} values", list.len())));
        };
        let read = |item: &Located| {
            number(item)
                .filter(|number| SHARE.hold(*number))
                .ok_or_else(|| Fault::mismatch(item, kind, source))
        };
        Ok([read(first)?, read(second)?])
    }

    fn write(&self) -> Value {
        Value::Array(self.iter().copied().map(Value::Float).collect())
    }
}

fn text<'a>(value: &'a Located, kind: &Kind, source: &Source) -> Result<&'a str, Fault> {
    match &value.value {
        Raw::Text(text) if text.contains('\0') => {
            Err(Fault::new(value, "contains a NUL character, which no file name or prompt can"))
        }
        Raw::Text(text) => Ok(text),
        _ => Err(Fault::mismatch(value, kind, source)),
    }
}

impl Field for String {
    const KIND: Kind = Kind::Text;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        match kind {
            Kind::Model => model_path(value, kind, source).map(str::to_owned),
            _ => text(value, kind, source).map(str::to_owned),
        }
    }

    fn write(&self) -> Value {
        Value::String(self.clone())
    }
}

fn model_path<'a>(value: &'a Located, kind: &Kind, source: &Source) -> Result<&'a str, Fault> {
    let path = path(value, kind, source)?;
    if HubModel::is_meant_by(path) {
        HubModel::parse(path).map_err(|error| {
            Fault::new(value, format!("names no model of the hub: {}", error.problem))
                .help(format!("write {HUB_NAME_FORM}"))
        })?;
    }
    if path.is_empty() {
        return Err(Fault::new(value, "is empty").help("give a model folder, a .gguf file or hf:org/name"));
    }
    Ok(path)
}

/// A path, which may be empty.
fn path<'a>(value: &'a Located, kind: &Kind, source: &Source) -> Result<&'a str, Fault> {
    let path = text(value, kind, source)?;
    if path == "~" || path.starts_with("~/") {
        return Err(Fault::new(value, "starts with ~, which only shells understand")
            .help("write the path out, or relative to the project folder"));
    }
    Ok(path)
}

/// Files of a dataset: a path that is not empty, or the name of a dataset of the hub.
pub(super) fn data_path(value: &Located, kind: &Kind, source: &Source) -> Result<PathBuf, Fault> {
    let path = path(value, kind, source)?;
    if path.is_empty() {
        return Err(Fault::new(value, "has an empty path").help("name a file"));
    }
    if HubModel::is_meant_by(path) {
        let problem = match HubModel::parse(path) {
            Ok(dataset) => dataset.file().map(|_| "it ends with a model's file"),
            Err(error) => Some(error.problem),
        };
        if let Some(problem) = problem {
            return Err(Fault::new(value, format!("names no dataset of the hub: {problem}"))
                .help("write hf:org/name or hf:org/name@revision"));
        }
    }
    Ok(PathBuf::from(path))
}

/// Empty means "not set".
impl Field for Option<PathBuf> {
    const KIND: Kind = Kind::Path;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let path = path(value, kind, source)?;
        Ok((!path.is_empty()).then(|| PathBuf::from(path)))
    }

    fn write(&self) -> Value {
        write_path(self.as_deref().unwrap_or(Path::new("")))
    }
}

pub(super) fn write_path(path: &Path) -> Value {
    Value::String(path.to_string_lossy().into_owned())
}

/// A regular expression; empty means "not set".
impl Field for Option<String> {
    const KIND: Kind = Kind::Pattern;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let pattern = text(value, kind, source)?;
        check_pattern(value, pattern)?;
        Ok((!pattern.is_empty()).then(|| pattern.to_owned()))
    }

    fn write(&self) -> Value {
        Value::String(self.clone().unwrap_or_default())
    }
}

pub(super) fn check_pattern(value: &Located, pattern: &str) -> Result<(), Fault> {
    match Regex::new(pattern) {
        Ok(_) => Ok(()),
        Err(error) => {
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default();
            let reason = reason.strip_prefix("error: ").unwrap_or(reason);
            Err(Fault::new(value, format!("is not a regular expression: {reason}"))
                .help("a backslash must be doubled in \"…\", or write the pattern in '…'"))
        }
    }
}

/// One item or a list of items.
pub(super) fn one_or_many<'a, T>(
    value: &'a Located,
    read: impl Fn(&'a Located) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    match &value.value {
        Raw::List(list) => list.iter().map(read).collect(),
        _ => read(value).map(|item| vec![item]),
    }
}

pub(super) fn write_one_or_many(mut items: Vec<Value>) -> Value {
    match items.len() {
        1 => items.remove(0),
        _ => Value::Array(items),
    }
}

impl Field for Vec<PathBuf> {
    const KIND: Kind = Kind::Paths;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let paths = one_or_many(value, |item| data_path(item, kind, source))?;
        if paths.is_empty() {
            return Err(Fault::new(value, "has no path").help("name at least one file"));
        }
        Ok(paths)
    }

    fn write(&self) -> Value {
        write_one_or_many(self.iter().map(|path| write_path(path)).collect())
    }
}

/// Texts; a single empty one means none.
impl Field for Vec<String> {
    const KIND: Kind = Kind::Texts;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        if matches!(&value.value, Raw::Text(text) if text.is_empty()) {
            return Ok(Self::new());
        }
        one_or_many(value, |item| {
            let text = text(item, kind, source)?;
            if text.is_empty() {
                return Err(Fault::new(item, "has an empty text").help("leave it out"));
            }
            Ok(text.to_owned())
        })
    }

    fn write(&self) -> Value {
        Value::Array(self.iter().cloned().map(Value::String).collect())
    }
}

impl Field for IndexMap<String, String> {
    const KIND: Kind = Kind::Columns(ROLES);

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let roles = match kind {
            Kind::Columns(roles) => *roles,
            _ => &[],
        };
        let Raw::Table(table) = &value.value else {
            return Err(Fault::mismatch(value, kind, source));
        };
        let mut columns = Self::new();
        for (name, column) in table {
            if !roles.contains(&name.text.as_str()) {
                let message = format!("has no role `{}`", name.text);
                let help = match nearest(&name.text, roles.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("roles are {}", roles.join(", ")),
                };
                return Err(Fault { span: name.span.clone(), message, help: Some(help) });
            }
            columns.insert(name.text.clone(), text(column, &Kind::Text, source)?.to_owned());
        }
        Ok(columns)
    }

    fn write(&self) -> Value {
        let columns = self.iter().map(|(role, column)| (role.clone(), Value::String(column.clone())));
        Value::Table(columns.collect())
    }
}

impl Field for Map<String, Json> {
    const KIND: Kind = Kind::Variables;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let Raw::Table(table) = &value.value else {
            return Err(Fault::mismatch(value, kind, source));
        };
        if let Some((name, _)) =
            table.iter().find(|(name, _)| TEMPLATE_ARGUMENTS.contains(&name.text.as_str()))
        {
            let message = format!("sets `{}`, which comes from the rows", name.text);
            return Err(Fault { span: name.span.clone(), message, help: Some("leave it out".to_owned()) });
        }
        table.iter().map(|(name, value)| Ok((name.text.clone(), json(value)?))).collect()
    }

    fn write(&self) -> Value {
        toml_of(&Json::Object(self.clone())).unwrap_or(Value::Table(toml::Table::new()))
    }
}

fn json(value: &Located) -> Result<Json, Fault> {
    let too_large = || Fault::new(value, "holds a number that does not fit");
    Ok(match &value.value {
        Raw::Text(text) => Json::from(text.as_str()),
        Raw::Whole(whole) => Json::from(whole.ok_or_else(too_large)?),
        Raw::Number(number) => Json::from(number.ok_or_else(too_large)?),
        Raw::Flag(flag) => Json::from(*flag),
        Raw::Date => return Err(Fault::new(value, "holds a date").help("write it in quotes")),
        Raw::List(list) => list.iter().map(json).collect::<Result<Vec<_>, _>>()?.into(),
        Raw::Table(table) => {
            let members = table.iter().map(|(name, value)| Ok((name.text.clone(), json(value)?)));
            Json::Object(members.collect::<Result<_, Fault>>()?)
        }
    })
}

/// A value as TOML, which has no null.
fn toml_of(value: &Json) -> Option<Value> {
    Some(match value {
        Json::Null => return None,
        Json::Bool(flag) => Value::Boolean(*flag),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::Integer(whole),
            None => Value::Float(number.as_f64()?),
        },
        Json::String(text) => Value::String(text.clone()),
        Json::Array(list) => Value::Array(list.iter().filter_map(toml_of).collect()),
        Json::Object(members) => {
            let members = members.iter().filter_map(|(name, value)| Some((name.clone(), toml_of(value)?)));
            Value::Table(members.collect())
        }
    })
}
