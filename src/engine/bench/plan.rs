//! What is measured: a list of works, from the command line or from a JSON file.

use std::path::{Path, PathBuf};

use luthier_core::config::MethodKind;
use luthier_core::{files, json};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::generation::Sampling;

/// Most bytes of a plan.
const MAX_BYTES: u64 = 1 << 20;
/// Most values in it.
const MAX_VALUES: usize = 1 << 16;
/// Most tokens of a micro-batch or a prompt, and most new tokens.
const MAX_TOKENS: usize = 1 << 20;
/// Most steps, and most rows that are generated at a time.
const MAX_COUNT: usize = 1 << 16;
/// As of `method.rank`.
const MAX_RANK: usize = 1 << 16;

/// One measurement: training, generation, or one after the other.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Repeated with its figures.
    pub name: String,
    /// What is trained, or answers as tuned. Adapters are on all linear layers. A project has a method of its own.
    #[serde(default = "lora", deserialize_with = "method")]
    pub method: MethodKind,
    /// Rank of the factors, if the method has any.
    #[serde(default = "rank")]
    pub rank: usize,
    #[serde(default)]
    pub train: Option<Train>,
    #[serde(default)]
    pub generate: Option<Generate>,
}

/// Training steps.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// The rows of a step. A project has rows of its own.
    pub rows: Rows,
    /// Measured steps.
    #[serde(default = "steps")]
    pub steps: usize,
    /// Steps before them.
    #[serde(default = "warm_up")]
    pub warm_up: usize,
    /// Whether activations are computed again in the backward pass.
    #[serde(default)]
    pub recompute: bool,
    /// Whether the measured steps are recorded, which makes them slower.
    #[serde(default)]
    pub profile: bool,
    /// File for the rows of every step, so that other programs can be measured on the same rows.
    #[serde(default)]
    pub rows_to: Option<PathBuf>,
}

/// Rows of random tokens, all of them trained on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Rows {
    /// Rows of one length.
    Equal {
        /// Rows per step.
        batch: usize,
        /// Tokens per row.
        length: usize,
    },
    /// One row of each length in every step, packed.
    Lengths(Vec<usize>),
    /// Rows whose lengths have a lognormal distribution, packed as a run packs them.
    Lognormal {
        /// Most tokens per step.
        tokens: usize,
        /// Median of the lengths.
        median: f64,
        /// Standard deviation of their logarithm.
        deviation: f64,
    },
}

/// Generation after prompts of random tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Prompts at a time.
    #[serde(default = "one")]
    pub rows: usize,
    /// Tokens of a prompt.
    #[serde(default = "prompt")]
    pub prompt: usize,
    /// Tokens generated per row.
    pub new_tokens: usize,
    /// Who answers.
    #[serde(default)]
    pub answers: Answers,
    /// 0 takes the most likely token.
    #[serde(default)]
    pub temperature: f64,
    /// Draws only from this many of the most likely tokens; 0 keeps all.
    #[serde(default)]
    pub top_k: usize,
    /// Draws only from the most likely tokens that together reach this probability.
    #[serde(default = "all")]
    pub top_p: f64,
}

/// Who answers a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answers {
    #[default]
    Base,
    /// The model with an adapter.
    Tuned,
    /// Both in one batch, measured beside the base model alone.
    Pair,
}

fn lora() -> MethodKind {
    MethodKind::Lora
}

fn method<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MethodKind, D::Error> {
    let name = String::deserialize(deserializer)?;
    MethodKind::from_name(&name).ok_or_else(|| {
        let names = MethodKind::CHOICES.iter().map(|choice| choice.name).collect::<Vec<_>>();
        D::Error::custom(format_args!("{name:?} is no method; give one of: {}", names.join(", ")))
    })
}

fn rank() -> usize {
    16
}

fn steps() -> usize {
    5
}

fn warm_up() -> usize {
    Train::WARM_UP
}

fn one() -> usize {
    1
}

fn prompt() -> usize {
    Generate::PROMPT
}

fn all() -> f64 {
    1.0
}

impl Train {
    /// Steps before the measured ones, if nothing is said of them.
    pub const WARM_UP: usize = 2;
}

impl Generate {
    /// Tokens of a prompt, if nothing is said of them.
    pub const PROMPT: usize = 64;

    pub fn sampling(&self) -> Sampling {
        Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p }
    }
}

/// Reads a plan: `{"works": [{"name": …}, …]}`. The error says what is wrong and where.
pub fn read(path: &Path) -> Result<Vec<Work>, String> {
    let bytes = files::read(path, MAX_BYTES).map_err(|error| error.to_string());
    bytes.and_then(|bytes| parse(&bytes)).map_err(|error| format!("{}: {error}", path.display()))
}

fn parse(text: &[u8]) -> Result<Vec<Work>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Plan {
        works: Vec<Work>,
    }

    let Plan { works } = json::from_slice(text, MAX_VALUES).map_err(|error| error.to_string())?;
    if works.is_empty() {
        return Err("works is empty".into());
    }
    for work in &works {
        work.check().map_err(|problem| format!("the work {:?}: {problem}", work.name))?;
    }
    Ok(works)
}

impl Work {
    /// What cannot be measured of it, if anything.
    pub fn check(&self) -> Result<(), String> {
        if self.train.is_none() && self.generate.is_none() {
            return Err("there is neither train nor generate".into());
        }
        within("rank", self.rank, 1, MAX_RANK)?;
        self.train.as_ref().map_or(Ok(()), Train::check)?;
        self.generate.as_ref().map_or(Ok(()), Generate::check)
    }
}

impl Train {
    fn check(&self) -> Result<(), String> {
        within("steps", self.steps, 1, MAX_COUNT)?;
        within("warm_up", self.warm_up, 0, MAX_COUNT)?;
        match &self.rows {
            Rows::Equal { batch, length } => {
                within("batch", *batch, 1, MAX_TOKENS)?;
                within("length", *length, 2, MAX_TOKENS)?;
                within("the product of batch and length", batch * length, 2, MAX_TOKENS)
            }
            Rows::Lengths(lengths) => {
                for &length in lengths {
                    within("a row's length", length, 2, MAX_TOKENS)?;
                }
                within("the sum of the lengths", lengths.iter().sum(), 2, MAX_TOKENS)
            }
            Rows::Lognormal { tokens, median, deviation } => {
                within("tokens", *tokens, 2, MAX_TOKENS)?;
                between("median", *median, 2.0, *tokens as f64)?;
                between("deviation", *deviation, 0.0, 10.0)
            }
        }
    }
}

impl Generate {
    fn check(&self) -> Result<(), String> {
        within("rows", self.rows, 1, MAX_COUNT)?;
        within("prompt", self.prompt, 1, MAX_TOKENS)?;
        within("new_tokens", self.new_tokens, 1, MAX_TOKENS)?;
        within("the product of rows and prompt", self.rows * self.prompt, 1, MAX_TOKENS)?;
        between("temperature", self.temperature, 0.0, 100.0)?;
        between("top_p", self.top_p, f64::MIN_POSITIVE, 1.0)
    }
}

fn within(what: &str, value: usize, least: usize, most: usize) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{what} is {value}; it must be from {least} to {most}"))
}

fn between(what: &str, value: f64, least: f64, most: f64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{what} is {value}; it must be from {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(works: &str) -> String {
        parse(format!("{{\"works\": [{works}]}}").as_bytes()).unwrap_err()
    }

    fn trained(rows: &str) -> String {
        format!("{{\"name\": \"a\", \"train\": {{\"rows\": {rows}}}}}")
    }

    #[test]
    fn what_a_plan_leaves_out_has_its_default() {
        let text = r#"{"works": [
            {"name": "a", "train": {"rows": {"equal": {"batch": 2, "length": 8}}}},
            {"name": "b", "method": "qlora", "rank": 4,
             "train": {"rows": {"lengths": [3, 5]}, "steps": 1, "warm_up": 0, "recompute": true, "profile": true},
             "generate": {"new_tokens": 3, "answers": "pair", "temperature": 0.5}}
        ]}"#;
        let works = parse(text.as_bytes()).unwrap();
        let [a, b] = works.as_slice() else { panic!("{works:?}") };
        let train = a.train.as_ref().unwrap();
        assert_eq!((a.method, a.rank, train.steps, train.warm_up), (MethodKind::Lora, 16, 5, 2));
        assert!(
            matches!(train.rows, Rows::Equal { batch: 2, length: 8 }) && !train.profile && !train.recompute
        );
        assert!(a.generate.is_none());
        let (train, generate) = (b.train.as_ref().unwrap(), b.generate.as_ref().unwrap());
        assert_eq!((b.method, b.rank, train.steps, train.warm_up), (MethodKind::Qlora, 4, 1, 0));
        assert!(matches!(&train.rows, Rows::Lengths(lengths) if *lengths == [3, 5]));
        assert_eq!((generate.rows, generate.prompt, generate.answers), (1, 64, Answers::Pair));
        assert_eq!(generate.sampling(), Sampling { temperature: 0.5, top_k: 0, top_p: 1.0 });
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let text = "{\"works\": [\n {\"name\": \"a\",\n  \"train\": {\"rows\": {\"lengths\": [3]}, \"stepps\": 3}}]}";
        let error = parse(text.as_bytes()).unwrap_err();
        assert!(error.contains("unknown field `stepps`") && error.contains("line 3 column"), "{error}");
        let error = refused(&trained("{\"equal\": {\"batch\": 1, \"length\": 8, \"width\": 3}}"));
        assert!(error.contains("unknown field `width`"), "{error}");
        let error = refused(&trained("{\"normal\": {}}"));
        assert!(error.contains("unknown variant `normal`"), "{error}");
        assert!(parse(b"{\"works\": [], \"model\": 1}").unwrap_err().contains("unknown field `model`"));
        assert!(refused("{\"name\": \"a\", \"name\": \"b\"}").contains("duplicate field `name`"));
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let most = usize::MAX;
        for (works, expected) in [
            (String::new(), "works is empty"),
            ("{\"name\": \"a\"}".into(), "\"a\": there is neither train nor generate"),
            ("{\"name\": \"a\", \"method\": \"lorra\"}".into(), "\"lorra\" is no method"),
            (trained("{\"equal\": {\"batch\": 0, \"length\": 8}}"), "batch is 0; it must be from 1"),
            (trained("{\"equal\": {\"batch\": 1, \"length\": 1}}"), "length is 1; it must be from 2"),
            (trained(&format!("{{\"equal\": {{\"batch\": {most}, \"length\": 2}}}}")), "batch is 18446"),
            (
                trained("{\"equal\": {\"batch\": 1000000, \"length\": 1000}}"),
                "the product of batch and length",
            ),
            (trained("{\"lengths\": []}"), "the sum of the lengths is 0"),
            (trained("{\"lengths\": [5, 1]}"), "a row's length is 1"),
            (trained("{\"lognormal\": {\"tokens\": 64, \"median\": 65, \"deviation\": 1}}"), "median is 65"),
            (
                trained("{\"lognormal\": {\"tokens\": 64, \"median\": 6, \"deviation\": -1}}"),
                "deviation is -1",
            ),
            ("{\"name\": \"a\", \"rank\": 0, \"generate\": {\"new_tokens\": 1}}".into(), "rank is 0"),
            ("{\"name\": \"a\", \"generate\": {\"new_tokens\": 0}}".into(), "new_tokens is 0"),
            ("{\"name\": \"a\", \"generate\": {\"new_tokens\": 1, \"top_p\": 0}}".into(), "top_p is 0"),
        ] {
            let error = refused(&works);
            assert!(error.contains(expected), "{works}: {error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap_err().contains("a folder"));
        let missing = folder.path().join("plan.json");
        assert!(read(&missing).unwrap_err().contains("plan.json"));
        std::fs::write(&missing, trained("{\"lengths\": [9]}")).unwrap();
        assert!(read(&missing).unwrap_err().contains("plan.json: unknown field `name`"));
    }
}
