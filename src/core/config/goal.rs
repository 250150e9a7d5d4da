//! What `[objective]` asks of a reply, and which of its settings each kind needs.

use std::path::Path;

use super::choices::ObjectiveKind;
use super::sections::ObjectiveSection;

/// The check that `objective.kind` names, with its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal<'a> {
    /// No check.
    None,
    /// Valid JSON that conforms to this JSON Schema file.
    Json(&'a Path),
    /// Text that this regular expression matches.
    Regex(&'a str),
    /// The expected reply.
    Exact,
    /// Text with every one of these in it; never empty.
    Contains(&'a [String]),
    /// Text of so many characters, both bounds included.
    Length { least: usize, most: usize },
}

/// A setting that the objective's kind needs and that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingSetting {
    /// Its dotted key.
    pub key: &'static str,
    /// What is wrong.
    pub message: &'static str,
    /// What to do.
    pub help: &'static str,
}

impl ObjectiveSection {
    /// The check that the section describes.
    pub fn goal(&self) -> Result<Goal<'_>, MissingSetting> {
        let missing = |key, message, help| MissingSetting { key, message, help };
        match self.kind {
            ObjectiveKind::None => Ok(Goal::None),
            ObjectiveKind::Exact => Ok(Goal::Exact),
            ObjectiveKind::Json => self.schema.as_deref().map(Goal::Json).ok_or(missing(
                "objective.schema",
                "`objective.kind` = \"json\" needs a schema",
                "add schema = \"schema.json\", a JSON Schema of the reply",
            )),
            ObjectiveKind::Regex => self.pattern.as_deref().map(Goal::Regex).ok_or(missing(
                "objective.pattern",
                "`objective.kind` = \"regex\" needs a pattern",
                "add pattern = '…', a regular expression that a reply must match",
            )),
            ObjectiveKind::Contains if self.contains.is_empty() => Err(missing(
                "objective.contains",
                "`objective.kind` = \"contains\" needs the texts that a reply must contain",
                "add contains = [\"…\"]",
            )),
            ObjectiveKind::Contains => Ok(Goal::Contains(&self.contains)),
            ObjectiveKind::Length if self.min_length.is_none() && self.max_length.is_none() => Err(missing(
                "objective.max_length",
                "`objective.kind` = \"length\" needs a bound",
                "add min_length or max_length, in characters",
            )),
            ObjectiveKind::Length => Ok(Goal::Length {
                least: self.min_length.unwrap_or(0),
                most: self.max_length.unwrap_or(usize::MAX),
            }),
        }
    }
}
