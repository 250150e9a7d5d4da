//! Settings that take values of several forms.

use std::fmt;
use std::path::PathBuf;

use toml::Value;

use super::fields::{Fault, Field, SHARE, check_pattern, number};
use super::kinds::Kind;
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
