//! `config.json`, or GGUF metadata under the same keys. Errors use the key's spelling in the file.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::ModelError;
use super::files;
use crate::text::Shown;

/// Largest `config.json` that is read; real ones have a few thousand bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// Largest size in a configuration. Real models stay below 2^21; two such sizes multiply without overflow.
const MAX_SIZE: u64 = 1 << 28;

/// Most layers in a configuration. Each gets its own description, so millions of them must not be created.
const MAX_LAYERS: usize = 4096;

/// A model's configuration, under the keys that most Hugging Face families use. A `null` counts as absent.
#[derive(Debug, Clone)]
pub struct Settings {
    file: PathBuf,
    values: Map<String, Value>,
    /// Usual key → key in the file, where they differ.
    spelling: Vec<(&'static str, String)>,
    /// The key of the nested object that these settings are, if they are one.
    section: Option<&'static str>,
}

impl Settings {
    /// Reads `config.json`.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        Ok(Self::new(file, files::read_object(file, MAX_CONFIG)?, Vec::new()))
    }

    /// Values from elsewhere; `spelling` has the names in the file.
    pub fn new(file: &Path, values: Map<String, Value>, spelling: Vec<(&'static str, String)>) -> Self {
        Self { file: file.to_owned(), values, spelling, section: None }
    }

    /// The same values under the usual keys, for a family with its own keys: pairs of a usual key and the
    /// family's. If the file has the usual key with another meaning, that value is lost.
    #[must_use]
    pub fn renamed(&self, keys: &[(&'static str, &'static str)]) -> Self {
        let mut renamed = self.clone();
        for &(usual, own) in keys {
            renamed.values.remove(usual);
            if let Some(value) = renamed.values.remove(own) {
                renamed.values.insert(usual.to_owned(), value);
            }
            renamed.spelling.push((usual, own.to_owned()));
        }
        renamed
    }

    /// The file these settings come from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The value, if present.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is present, even as `null`.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A size above 0; required.
    pub fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.size_if_any(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// A size above 0, if present.
    pub fn size_if_any(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size @ 1..=MAX_SIZE) => Ok(Some(size as usize)),
            _ => Err(self.wrong(key, &format!("must be a whole number from 1 to {MAX_SIZE}"))),
        }
    }

    /// A size above 0; `default` if the key is absent, `None` if it is `null`.
    pub fn size_or(&self, key: &str, default: usize) -> Result<Option<usize>, ModelError> {
        if self.has(key) { self.size_if_any(key) } else { Ok(Some(default)) }
    }

    /// A number of layers; required.
    pub fn layers(&self, key: &str) -> Result<usize, ModelError> {
        match self.size(key)? {
            layers @ ..=MAX_LAYERS => Ok(layers),
            _ => Err(self.wrong(key, &format!("must be at most {MAX_LAYERS}"))),
        }
    }

    /// A finite number, if present.
    pub fn number_if_any(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(self.wrong(key, "must be a number")),
        }
    }

    /// A finite number; `default` if the key is absent, `None` if it is `null`.
    pub fn number_or(&self, key: &str, default: f64) -> Result<Option<f64>, ModelError> {
        if self.has(key) { self.number_if_any(key) } else { Ok(Some(default)) }
    }

    /// A truth value, if present.
    pub fn flag_if_any(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "must be true or false"))
    }

    /// A string, if present.
    pub fn text_if_any(&self, key: &str) -> Result<Option<&str>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "must be a string"))
    }

    /// A list of finite numbers, if present.
    pub fn numbers_if_any(&self, key: &str) -> Result<Option<Vec<f64>>, ModelError> {
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        self.list_if_any(key, "must be a list of numbers", number)
    }

    /// A list of strings, if present.
    pub fn texts_if_any(&self, key: &str) -> Result<Option<Vec<String>>, ModelError> {
        self.list_if_any(key, "must be a list of strings", |value| value.as_str().map(str::to_owned))
    }

    fn list_if_any<T>(
        &self,
        key: &str,
        problem: &str,
        element: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let elements = value.as_array().and_then(|elements| elements.iter().map(element).collect());
        elements.map(Some).ok_or_else(|| self.wrong(key, problem))
    }

    /// A nested object, if present; errors about its keys include `key`.
    pub fn section_if_any(&self, key: &'static str) -> Result<Option<Self>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Object(values) = value else { return Err(self.wrong(key, "must be an object")) };
        let (file, values) = (self.file.clone(), values.clone());
        Ok(Some(Self { file, values, spelling: Vec::new(), section: Some(key) }))
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

    fn spelled<'a>(&'a self, key: &'a str) -> Cow<'a, str> {
        let own = self.spelling.iter().find(|(usual, _)| *usual == key).map_or(key, |(_, own)| own);
        match self.section {
            Some(section) => format!("{section}.{own}").into(),
            None => own.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Settings {
        let Value::Object(values) = serde_json::from_str(json).unwrap() else { panic!("not an object") };
        Settings::new(Path::new("config.json"), values, Vec::new())
    }

    #[test]
    fn null_is_absent() {
        let settings = settings(r#"{"head_dim": null, "cap": null}"#);
        assert_eq!(settings.size_if_any("head_dim").unwrap(), None);
        assert_eq!(
            (settings.size_or("head_dim", 4).unwrap(), settings.size_or("window", 4).unwrap()),
            (None, Some(4))
        );
        assert_eq!(
            (settings.number_or("cap", 4.0).unwrap(), settings.number_or("eps", 4.0).unwrap()),
            (None, Some(4.0))
        );
    }

    #[test]
    fn errors_show_the_value_found() {
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

    #[test]
    fn a_familys_own_keys_are_read_and_named_in_errors() {
        let renamed =
            settings(r#"{"n_embd": 64, "n_head": 0, "hidden_size": 7, "vocab_size": 5}"#).renamed(&[
                ("hidden_size", "n_embd"),
                ("num_attention_heads", "n_head"),
                ("num_hidden_layers", "n_layer"),
            ]);
        assert_eq!((renamed.size("hidden_size").unwrap(), renamed.size("vocab_size").unwrap()), (64, 5));
        let error = renamed.size("num_attention_heads").unwrap_err().to_string();
        assert!(error.contains("`n_head` must be a whole number") && error.contains("found 0"), "{error}");
        let error = renamed.size("num_hidden_layers").unwrap_err().to_string();
        assert!(error.contains("`n_layer` is missing"), "{error}");
    }

    #[test]
    fn lists_with_one_wrong_element_are_wrong() {
        let settings = settings(r#"{"long": [1, 2.5], "kinds": ["a"], "mixed": [1, "a"], "none": null}"#);
        assert_eq!(settings.numbers_if_any("long").unwrap(), Some(vec![1.0, 2.5]));
        assert_eq!(settings.texts_if_any("kinds").unwrap(), Some(vec!["a".to_owned()]));
        assert_eq!(settings.texts_if_any("none").unwrap(), None);
        let error = settings.numbers_if_any("mixed").unwrap_err().to_string();
        assert!(error.contains("`mixed` must be a list of numbers"), "{error}");
        assert!(settings.has("none") && !settings.has("absent"));
    }
}
