//! `config.json`, or GGUF metadata under the same keys, with errors that name the key as the file spells it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::{ModelError, Shown};
use super::files;

/// Largest `config.json` that is read.
const MAX_CONFIG: u64 = 16 << 20;

/// Largest size a configuration may name. Real models stay below 2^21; two such sizes multiply without overflow.
const MAX_SIZE: u64 = 1 << 28;

/// Most layers a configuration may name: each is described by itself, so that it must not be asked for by the million.
const MAX_LAYERS: usize = 4096;

/// What a model's configuration says, under Hugging Face's keys. A `null` counts as absent.
#[derive(Debug, Clone)]
pub struct Settings {
    file: PathBuf,
    values: Map<String, Value>,
    /// Hugging Face key → key in the file, where they differ.
    spelling: Vec<(&'static str, String)>,
}

impl Settings {
    /// Reads `config.json`.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        Ok(Self::new(file, files::read_object(file, MAX_CONFIG)?, Vec::new()))
    }

    /// Values from elsewhere; `spelling` tells what the file calls them.
    pub fn new(file: &Path, values: Map<String, Value>, spelling: Vec<(&'static str, String)>) -> Self {
        Self { file: file.to_owned(), values, spelling }
    }

    /// The file these settings come from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The value, if it is there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A size above 0, which must be there.
    pub fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.size_if_any(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// A size above 0, if it is there.
    pub fn size_if_any(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size @ 1..=MAX_SIZE) => Ok(Some(size as usize)),
            _ => Err(self.wrong(key, &format!("must be a whole number from 1 to {MAX_SIZE}"))),
        }
    }

    /// A number of layers, which must be there.
    pub fn layers(&self, key: &str) -> Result<usize, ModelError> {
        match self.size(key)? {
            layers @ ..=MAX_LAYERS => Ok(layers),
            _ => Err(self.wrong(key, &format!("must be at most {MAX_LAYERS}"))),
        }
    }

    /// A finite number, if it is there.
    pub fn number_if_any(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(self.wrong(key, "must be a number")),
        }
    }

    /// A truth value, if it is there.
    pub fn flag_if_any(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "must be true or false"))
    }

    /// A text, if it is there.
    pub fn text_if_any(&self, key: &str) -> Result<Option<&str>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "must be a text"))
    }

    /// A nested object, if it is there; errors about its keys name `key` too.
    pub fn section_if_any(&self, key: &'static str) -> Result<Option<Self>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Object(values) = value else { return Err(self.wrong(key, "must be an object")) };
        let spelling = if self.spelling.is_empty() {
            SECTION_KEYS.iter().map(|&inner| (inner, format!("{key}.{inner}"))).collect()
        } else {
            self.spelling.clone()
        };
        Ok(Some(Self { file: self.file.clone(), values: values.clone(), spelling }))
    }

    /// An error about one key.
    pub fn wrong(&self, key: &str, problem: &str) -> ModelError {
        let found = match self.get(key) {
            Some(value) => format!(", found {}", Shown::new(&value.to_string())),
            None => String::new(),
        };
        ModelError::Settings {
            file: self.file.as_path().into(),
            problem: format!("`{}` {problem}{found}", self.spelled(key)),
        }
    }

    /// An error about a feature that Luthier does not have.
    pub fn unsupported(&self, key: &str, feature: &str, remedy: &str) -> ModelError {
        let found = self.get(key).map(|value| format!(" = {}", Shown::new(&value.to_string())));
        ModelError::Unsupported {
            file: self.file.as_path().into(),
            feature: format!("{feature} (`{}`{})", self.spelled(key), found.unwrap_or_default()),
            remedy: remedy.to_owned(),
        }
    }

    fn spelled<'a>(&'a self, key: &'a str) -> &'a str {
        self.spelling.iter().find(|(name, _)| *name == key).map_or(key, |(_, spelled)| spelled)
    }
}

/// Keys of nested objects that errors may have to name.
const SECTION_KEYS: [&str; 8] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Settings {
        let Value::Object(values) = serde_json::from_str(json).unwrap() else { panic!("not an object") };
        Settings::new(Path::new("config.json"), values, Vec::new())
    }

    #[test]
    fn null_is_absent() {
        assert_eq!(settings(r#"{"head_dim": null}"#).size_if_any("head_dim").unwrap(), None);
    }

    #[test]
    fn wrong_values_are_named_with_what_was_found() {
        let settings = settings(r#"{"hidden_size": -4, "tie": "yes", "eps": "small"}"#);
        for (error, words) in [
            (settings.size("hidden_size").unwrap_err(), "`hidden_size` must be a whole number from 1"),
            (settings.size("hidden_size").unwrap_err(), "found -4"),
            (settings.size("vocab_size").unwrap_err(), "`vocab_size` is missing"),
            (settings.flag_if_any("tie").unwrap_err(), "`tie` must be true or false, found \"yes\""),
            (settings.number_if_any("eps").unwrap_err(), "`eps` must be a number"),
        ] {
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn nested_keys_are_named_with_their_section() {
        let settings = settings(r#"{"rope_scaling": {"factor": "x"}}"#);
        let section = settings.section_if_any("rope_scaling").unwrap().unwrap();
        let error = section.number_if_any("factor").unwrap_err().to_string();
        assert!(error.contains("`rope_scaling.factor`"), "{error}");
    }
}
