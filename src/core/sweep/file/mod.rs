//! Sweep files: the search space, the sampler and the goal.

use std::ops::Range;
use std::path::Path;

use indexmap::IndexMap;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::SweepError;
use super::goal::{Goal, GoalMetric};
use crate::algorithms::Direction;
use crate::config::{Config, KEYS, Problem, Problems, Source, key, nearest};
use crate::files;

/// A sweep file is written by hand; anything larger is not a sweep file.
const FILE_LIMIT: u64 = 1 << 20;

/// Most trials of one sweep.
pub const TRIAL_LIMIT: u64 = 10_000;

const MISSING: &str = "is not available in this version of Luthier";

/// How points of the space are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "snake_case")]
pub enum Sampler {
    /// Every combination, in order.
    Grid,
    /// Independent draws.
    Random,
}

/// The values of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Distribution {
    /// One TOML value.
    Fixed(String),
    /// One of several TOML values, all equally likely.
    Choice(Vec<String>),
    /// A number between two bounds.
    Uniform(f64, f64),
    /// A number between two positive bounds, each order of magnitude equally likely.
    LogUniform(f64, f64),
    /// An integer between two bounds, both included.
    Int(i64, i64),
}

/// The content of a sweep file.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepFile {
    /// `name`, or the name of the file.
    pub name: String,
    /// `sampler = "grid"` or `"random"`.
    pub sampler: Sampler,
    /// `[space]`: the values for each dotted key, in the file's order.
    pub space: IndexMap<String, Distribution>,
    /// `[goal]`.
    pub goal: Goal,
    /// `trials`: the most trials; required for a random sweep.
    pub trials: Option<u64>,
    /// `seed` of all random draws.
    pub seed: u64,
    /// The text of the file.
    pub text: String,
}

impl SweepFile {
    /// Reads a sweep file. Every value of the space is checked as a setting in `base`, the configuration from
    /// which trials start. All problems are reported together.
    pub fn load(path: &Path, base: &Config) -> Result<Self, SweepError> {
        let failed = |source| SweepError::Read { file: path.to_owned(), source };
        let text = files::read_text(path, FILE_LIMIT).map_err(failed)?;
        Ok(Self::parse(&text, path, base)?)
    }

    /// As [`SweepFile::load`], from text; `file` is the name used in errors.
    pub fn parse(text: &str, file: &Path, base: &Config) -> Result<Self, Problems> {
        let source = Source::new(file, text);
        let table = DeTable::parse(text).map_err(|error| {
            Problems(vec![Problem::new(&source, error.span().unwrap_or(0..0), error.message())])
        })?;
        let mut reader = Reader { source: &source, base, problems: Vec::new() };
        let sweep = reader.sweep(table.get_ref(), file);
        let mut problems = reader.problems;
        problems.sort_by_key(|problem| (problem.line, problem.column));
        if problems.is_empty() { Ok(sweep) } else { Err(Problems(problems)) }
    }
}

struct Reader<'a> {
    source: &'a Source,
    base: &'a Config,
    problems: Vec<Problem>,
}

type Value<'a> = Spanned<DeValue<'a>>;

/// A key and its value, with their positions.
type Entry<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Value<'i>);

/// Most names listed in a message.
const MOST_NAMED: usize = 10;

/// The keys of a sweep file.
const NAMES: [&str; 7] = ["name", "sampler", "pruner", "trials", "seed", "goal", "space"];

const DISTRIBUTIONS: [&str; 4] = ["choice", "uniform", "log_uniform", "int"];

impl Reader<'_> {
    fn wrong(&mut self, span: Range<usize>, message: impl AsRef<str>, help: &str) {
        let problem = Problem::new(self.source, span, message);
        self.problems.push(if help.is_empty() { problem } else { problem.help(help) });
    }

    fn whole(&mut self, message: &str, help: &str) {
        self.problems.push(Problem::with_whole(self.source, message).help(help));
    }

    fn written(&self, span: Range<usize>) -> String {
        self.source.text().get(span).unwrap_or_default().to_owned()
    }

    fn sweep(&mut self, table: &DeTable<'_>, file: &Path) -> SweepFile {
        let stem = file.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let mut sweep = SweepFile {
            name: stem,
            sampler: Sampler::Random,
            space: IndexMap::new(),
            goal: Goal::default(),
            trials: None,
            seed: 0,
            text: self.source.text().to_owned(),
        };
        let mut has_sampler = false;
        for (name, value) in in_order(table) {
            match name.get_ref().as_ref() {
                "name" => sweep.name = self.name(value).unwrap_or(sweep.name),
                "sampler" => {
                    has_sampler = true;
                    sweep.sampler = self.sampler(value).unwrap_or(sweep.sampler);
                }
                "pruner" => self.pruner(value),
                "trials" => sweep.trials = self.count(value, 1, TRIAL_LIMIT),
                "seed" => sweep.seed = self.count(value, 0, i64::MAX as u64).unwrap_or(0),
                "goal" => sweep.goal = self.goal(value).unwrap_or_default(),
                "space" => match value.get_ref().as_table() {
                    Some(table) => self.space(table, "", &mut sweep.space),
                    None => self.wrong(
                        value.span(),
                        "`space` is not a table",
                        "write [space] and below it KEY = VALUES",
                    ),
                },
                unknown => {
                    let help = suggestion(unknown, NAMES);
                    self.wrong(name.span(), format!("there is no `{unknown}` in a sweep file"), &help);
                }
            }
        }
        if self.problems.is_empty() {
            self.judge(&sweep, has_sampler);
        }
        sweep
    }

    /// Problems that involve several keys.
    fn judge(&mut self, sweep: &SweepFile, has_sampler: bool) {
        if sweep.space.is_empty() {
            self.whole(
                "the sweep has no [space]",
                "name at least one key, such as \"train.learning_rate\" = { log_uniform = [1e-5, 1e-3] }",
            );
            return;
        }
        match sweep.sampler {
            Sampler::Random if sweep.trials.is_none() => {
                let help = if has_sampler {
                    "add trials = 20, for example"
                } else {
                    "add trials = 20, for example, or sampler = \"grid\""
                };
                self.whole("a random sweep needs `trials`", help);
            }
            Sampler::Random => {}
            Sampler::Grid => {
                let continuous = sweep.space.iter().find(|(_, distribution)| {
                    matches!(distribution, Distribution::Uniform(..) | Distribution::LogUniform(..))
                });
                if let Some((key, _)) = continuous {
                    let message = format!("a grid cannot try all values of {key}");
                    self.whole(&message, "list its values with choice = […], or use sampler = \"random\"");
                } else if sweep.trials.is_none() && sweep.grid_size().is_none_or(|size| size > TRIAL_LIMIT) {
                    let message = format!("the grid has more than {TRIAL_LIMIT} points");
                    self.whole(&message, "remove values, or use sampler = \"random\" with trials = 20");
                }
            }
        }
    }

    fn text<'a>(&mut self, value: &'a Value<'_>) -> Option<&'a str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong(value.span(), "is not a string", "put strings in quotes");
        }
        text
    }

    fn name(&mut self, value: &Value<'_>) -> Option<String> {
        let name = self.text(value)?;
        if name.trim().is_empty() || crate::text::clean_line(name) != name {
            self.wrong(value.span(), "is not a name", "use letters, digits and hyphens");
            return None;
        }
        Some(name.to_owned())
    }

    fn sampler(&mut self, value: &Value<'_>) -> Option<Sampler> {
        match self.text(value)? {
            "grid" => Some(Sampler::Grid),
            "random" => Some(Sampler::Random),
            "tpe" => {
                self.wrong(value.span(), format!("the sampler \"tpe\" {MISSING}"), "use \"random\"");
                None
            }
            other => {
                let help = suggestion(other, ["grid", "random"]);
                self.wrong(value.span(), format!("there is no sampler `{other}`"), &help);
                None
            }
        }
    }

    fn pruner(&mut self, value: &Value<'_>) {
        match self.text(value) {
            None | Some("none") => {}
            Some(name @ ("median" | "asha")) => {
                self.wrong(
                    value.span(),
                    format!("the pruner \"{name}\" {MISSING}"),
                    "use \"none\", or train.early_stop",
                );
            }
            Some(other) => self.wrong(value.span(), format!("there is no pruner `{other}`"), "use \"none\""),
        }
    }

    fn count(&mut self, value: &Value<'_>, least: u64, most: u64) -> Option<u64> {
        let count = integer(value).and_then(|count| u64::try_from(count).ok());
        let fitting = count.filter(|count| (least..=most).contains(count));
        if fitting.is_none() {
            self.wrong(value.span(), format!("is not a whole number from {least} to {most}"), "");
        }
        fitting
    }

    fn goal(&mut self, value: &Value<'_>) -> Option<Goal> {
        let Some(table) = value.get_ref().as_table() else {
            self.wrong(
                value.span(),
                "`goal` is not a table",
                "write goal = { metric = \"eval.loss\", direction = \"min\" }",
            );
            return None;
        };
        let (mut metric, mut direction) = (GoalMetric::default(), None);
        for (name, value) in in_order(table) {
            match name.get_ref().as_ref() {
                "metric" => match self.text(value)?.parse() {
                    Ok(found) => metric = found,
                    Err(help) => self.wrong(value.span(), "is not a metric of an evaluation", &help),
                },
                "direction" => match self.text(value)?.parse::<Direction>() {
                    Ok(found) => direction = Some(found),
                    Err(_) => self.wrong(value.span(), "is not a direction", "use \"min\" or \"max\""),
                },
                unknown => {
                    let help = suggestion(unknown, ["metric", "direction"]);
                    self.wrong(name.span(), format!("there is no `{unknown}` in a goal"), &help);
                }
            }
        }
        let direction = direction.unwrap_or(metric.usual_direction());
        Some(Goal { metric, direction })
    }

    /// Keys may be dotted, quoted or not, or be nested tables.
    fn space(&mut self, table: &DeTable<'_>, above: &str, space: &mut IndexMap<String, Distribution>) {
        for (name, value) in in_order(table) {
            let path = if above.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{above}.{}", name.get_ref())
            };
            match key(&path) {
                Some(known) if known.section() == "ui" => {
                    self.wrong(
                        name.span(),
                        format!("{path} cannot be searched over"),
                        "it does not change a run",
                    );
                }
                Some(_) => {
                    if let Some(distribution) = self.distribution(&path, value)
                        && space.insert(path.clone(), distribution).is_some()
                    {
                        self.wrong(name.span(), format!("{path} is given twice"), "keep one of them");
                    }
                }
                None => match value.get_ref().as_table() {
                    Some(below) if KEYS.iter().any(|key| key.path.starts_with(&format!("{path}."))) => {
                        self.space(below, &path, space);
                    }
                    _ => {
                        let help = suggestion(&path, KEYS.iter().map(|key| key.path));
                        self.wrong(name.span(), format!("there is no key `{path}`"), &help);
                    }
                },
            }
        }
    }

    fn distribution(&mut self, path: &str, value: &Value<'_>) -> Option<Distribution> {
        let Some((name, values)) = described(value) else {
            return self.literal(path, value).map(Distribution::Fixed);
        };
        let list = values.get_ref().as_array();
        match name.get_ref().as_ref() {
            "choice" => {
                let list = list.filter(|list| !list.is_empty());
                let Some(list) = list else {
                    self.wrong(values.span(), "is not a list of values", "write choice = [VALUE, VALUE]");
                    return None;
                };
                let found: Vec<_> = list.iter().map(|value| self.literal(path, value)).collect();
                found.into_iter().collect::<Option<Vec<_>>>().map(Distribution::Choice)
            }
            "int" => {
                let bounds = self.bounds(path, values, integer)?;
                Some(Distribution::Int(bounds.0, bounds.1))
            }
            "uniform" => {
                let bounds = self.bounds(path, values, number)?;
                Some(Distribution::Uniform(bounds.0, bounds.1))
            }
            "log_uniform" => {
                let bounds = self.bounds(path, values, number)?;
                if bounds.0 <= 0.0 {
                    self.wrong(
                        values.span(),
                        "the bounds of log_uniform must be above 0",
                        "use uniform, or a small lower bound such as 1e-6",
                    );
                    return None;
                }
                Some(Distribution::LogUniform(bounds.0, bounds.1))
            }
            unknown => {
                let help = suggestion(unknown, DISTRIBUTIONS);
                self.wrong(name.span(), format!("there is no distribution `{unknown}`"), &help);
                None
            }
        }
    }

    fn bounds<T: PartialOrd + Copy>(
        &mut self,
        path: &str,
        values: &Value<'_>,
        read: impl Fn(&Value<'_>) -> Option<T>,
    ) -> Option<(T, T)> {
        let list = values.get_ref().as_array().map_or(&[][..], |list| list);
        let [low, high] = list else {
            self.wrong(values.span(), "is not a pair of numbers", "write [LOWEST, HIGHEST]");
            return None;
        };
        let (Some(least), Some(most)) = (read(low), read(high)) else {
            let kind = if read(low).is_none() { low } else { high };
            self.wrong(
                kind.span(),
                "is not a valid number",
                "int needs whole numbers, uniform and log_uniform finite ones",
            );
            return None;
        };
        if least >= most {
            self.wrong(values.span(), "the first bound is not below the second", "write [LOWEST, HIGHEST]");
            return None;
        }
        let ends = [self.literal(path, low), self.literal(path, high)];
        ends.iter().all(Option::is_some).then_some((least, most))
    }

    /// The value as written in a configuration, if it is valid there.
    fn literal(&mut self, path: &str, value: &Value<'_>) -> Option<String> {
        let written = self.written(value.span());
        match self.base.with(&[format!("{path}={written}")]) {
            Ok(config) => config.get_text(path),
            Err(problems) => {
                for problem in problems.0 {
                    let message = match &problem.key {
                        Some(key) if key == path => problem.message,
                        _ => format!("with {path} = {written}: {}", problem.message),
                    };
                    self.wrong(value.span(), message, problem.help.as_deref().unwrap_or_default());
                }
                None
            }
        }
    }
}

/// The table's entries in the order of the file.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Entry<'a, 'i>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

/// `{ NAME = VALUES }`, unless it is a table that is itself a value.
fn described<'a, 'i>(value: &'a Value<'i>) -> Option<Entry<'a, 'i>> {
    let table = value.get_ref().as_table()?;
    let mut entries = table.iter();
    let (name, values) = entries.next()?;
    let looks_so = values.get_ref().is_array() || DISTRIBUTIONS.contains(&name.get_ref().as_ref());
    (entries.next().is_none() && looks_so).then_some((name, values))
}

fn integer(value: &Value<'_>) -> Option<i64> {
    let integer = value.get_ref().as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn number(value: &Value<'_>) -> Option<f64> {
    let number = match value.get_ref().as_float() {
        Some(float) => float.as_str().parse().ok(),
        None => integer(value).map(|integer| integer as f64),
    };
    number.filter(|number: &f64| number.is_finite())
}

fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(near) = nearest(name, known.clone()) {
        return format!("did you mean `{near}`?");
    }
    let known: Vec<_> = known.into_iter().collect();
    if known.len() > MOST_NAMED {
        "`luthier new` writes a file with all keys".to_owned()
    } else {
        format!("there are: {}", known.join(", "))
    }
}

#[cfg(test)]
mod tests;
