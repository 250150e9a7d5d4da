//! Settings that take values of several forms.

use std::fmt;
use std::path::PathBuf;

use toml::Value;

use super::fields::{
    Fault, Field, SHARE, check_pattern, data_path, number, one_or_many, write_one_or_many, write_path,
};
use super::kinds::{Bounds, Kind, MOST};
use super::names::nearest;
use super::problems::Source;
use super::raw::{Located, Raw};

/// Highest index of a GPU.
const LAST_GPU: usize = 1023;

/// `model.device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU where there is one, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this index.
    Cuda(usize),
}

impl Device {
    /// The device that a word names: `auto`, `cpu`, `cuda`, `cuda:N`.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => word
                .strip_prefix("cuda:")
                .filter(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|index| index.parse().ok())
                .filter(|index| *index <= LAST_GPU)
                .map(Self::Cuda),
        }
    }
}

impl fmt::Display for Device {
    /// The word that names it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.pad("auto"),
            Self::Cpu => formatter.pad("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
        }
    }
}

impl Field for Device {
    const KIND: Kind = Kind::Device;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let mismatch = || Fault::mismatch(value, kind, source);
        match &value.value {
            Raw::Text(name) => Self::from_word(name).ok_or_else(mismatch),
            Raw::List(_) => Err(mismatch().help("a run uses one GPU; name it, such as \"cuda:0\"")),
            _ => Err(mismatch()),
        }
    }

    fn write(&self) -> Value {
        Value::String(self.to_string())
    }
}

/// An element of `data.train`: files, and how many of their rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSource {
    /// A file, a folder, a pattern such as `part-*.jsonl`, or `hf:org/name`.
    pub path: PathBuf,
    /// At most so many rows are used.
    pub rows: Option<u64>,
    /// This share of the rows is used: above 0; 2 means each row twice.
    pub share: Option<f64>,
}

impl DataSource {
    const PARTS: [&str; 3] = ["path", "rows", "share"];
    const ROWS: Kind = Kind::Whole { least: 1, most: MOST };
    const SHARES: Kind = Kind::Number(Bounds::above(0.0, 100.0));

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let Raw::Table(table) = &value.value else {
            return data_path(value, kind, source).map(Self::from);
        };
        let (mut path, mut rows, mut share) = (None, None, None);
        for (name, part) in table {
            let of_part = |fault: Fault| Fault {
                message: format!("has `{}`, which {}", name.text, fault.message),
                ..fault
            };
            match name.text.as_str() {
                "path" => path = Some(data_path(part, &Kind::Path, source).map_err(of_part)?),
                "rows" => rows = Some(u64::read(part, &Self::ROWS, source).map_err(of_part)?),
                "share" => share = Some(f64::read(part, &Self::SHARES, source).map_err(of_part)?),
                other => {
                    let help = match nearest(other, Self::PARTS) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("such a table has {}", Self::PARTS.join(", ")),
                    };
                    let message = format!("has a table with an unknown part `{other}`");
                    return Err(Fault { span: name.span.clone(), message, help: Some(help) });
                }
            }
        }
        let path = path.ok_or_else(|| {
            Fault::new(value, "has a table without a path").help("write { path = \"a.jsonl\", rows = 1000 }")
        })?;
        Ok(Self { path, rows, share })
    }

    fn write(&self) -> Value {
        let path = write_path(&self.path);
        if self.rows.is_none() && self.share.is_none() {
            return path;
        }
        let mut table = toml::Table::new();
        table.insert("path".to_owned(), path);
        if let Some(rows) = self.rows {
            table.insert("rows".to_owned(), rows.write());
        }
        if let Some(share) = self.share {
            table.insert("share".to_owned(), share.write());
        }
        Value::Table(table)
    }
}

impl From<PathBuf> for DataSource {
    fn from(path: PathBuf) -> Self {
        Self { path, rows: None, share: None }
    }
}

impl From<String> for DataSource {
    fn from(path: String) -> Self {
        PathBuf::from(path).into()
    }
}

impl From<&str> for DataSource {
    fn from(path: &str) -> Self {
        PathBuf::from(path).into()
    }
}

impl Field for Vec<DataSource> {
    const KIND: Kind = Kind::Sources;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        let sources = one_or_many(value, |item| DataSource::read(item, kind, source))?;
        if sources.is_empty() {
            return Err(Fault::new(value, "has no path").help("name at least one file"));
        }
        Ok(sources)
    }

    fn write(&self) -> Value {
        write_one_or_many(self.iter().map(DataSource::write).collect())
    }
}

/// `data.eval`.
#[derive(Clone, Debug, PartialEq)]
pub enum EvalSource {
    /// This share of the training rows, 0 (nothing is held out) up to, not including, 1.
    Fraction(f64),
    /// Files of their own; never empty.
    Paths(Vec<PathBuf>),
}

impl Field for EvalSource {
    const KIND: Kind = Kind::Eval;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        if let Raw::Text(_) | Raw::List(_) = value.value {
            return Vec::read(value, kind, source).map(Self::Paths);
        }
        number(value)
            .filter(|share| SHARE.hold(*share))
            .map(Self::Fraction)
            .ok_or_else(|| Fault::mismatch(value, kind, source))
    }

    fn write(&self) -> Value {
        match self {
            Self::Fraction(share) => Value::Float(*share),
            Self::Paths(paths) => paths.write(),
        }
    }
}

/// `method.targets`, with PEFT's meaning of each form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Every linear layer but the output head; for IA3 the layers of its paper: keys, values and the way down from the
    /// feed-forward part.
    AllLinear,
    /// Layers whose name is, or ends with `.` and, one of these; never empty.
    Names(Vec<String>),
    /// Layers whose whole name matches this regular expression.
    Pattern(String),
}

impl Field for Targets {
    const KIND: Kind = Kind::Targets;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        match &value.value {
            Raw::Text(name) if name == "all-linear" => Ok(Self::AllLinear),
            Raw::Text(pattern) if !pattern.is_empty() => {
                check_pattern(value, pattern)?;
                Ok(Self::Pattern(pattern.clone()))
            }
            Raw::List(list) if !list.is_empty() => Vec::read(value, kind, source).map(Self::Names),
            _ => Err(Fault::mismatch(value, kind, source)),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::AllLinear => Value::from("all-linear"),
            Self::Names(names) => names.write(),
            Self::Pattern(pattern) => pattern.write(),
        }
    }
}

/// `train.warmup`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// This share of all steps, 0 up to, not including, 1.
    Fraction(f64),
    /// This many steps.
    Steps(u64),
}

impl Field for Warmup {
    const KIND: Kind = Kind::Warmup;

    fn read(value: &Located, kind: &Kind, source: &Source) -> Result<Self, Fault> {
        match value.value {
            Raw::Whole(_) => u64::read(value, kind, source).map(Self::Steps),
            Raw::Number(Some(share)) if SHARE.hold(share) => Ok(Self::Fraction(share)),
            _ => Err(Fault::mismatch(value, kind, source)),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::Fraction(share) => Value::Float(*share),
            Self::Steps(steps) => steps.write(),
        }
    }
}
