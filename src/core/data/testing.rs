//! Reference data and small tokenizers for tests.

use std::path::PathBuf;

use serde_json::Value;

use super::Tokenizer;
use crate::config::Config;
use crate::model::{SpecialToken, SpecialTokens};

/// A file below `tests/references`.
pub(crate) fn reference(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references")).join(path)
}

/// A JSON file below `tests/references`.
pub(crate) fn reference_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(reference(path)).unwrap()).unwrap()
}

/// The special tokens a tiny tokenizer's `tokenizer_config.json` names.
pub(crate) fn tiny_special(name: &str) -> SpecialTokens {
    let config = reference_json(&format!("tiny/_tokenizers/{name}/tokenizer_config.json"));
    let token =
        |key: &str| config[key].as_str().map(|text| SpecialToken { id: None, text: Some(text.to_owned()) });
    SpecialTokens {
        bos: token("bos_token"),
        eos: token("eos_token").into_iter().collect(),
        pad: token("pad_token"),
        unknown: token("unk_token"),
    }
}

/// One of the tiny tokenizers: `bytelevel`, `bytelevel-bos`, `metaspace`.
pub(crate) fn tiny(name: &str) -> Tokenizer {
    let json = std::fs::read(reference(&format!("tiny/_tokenizers/{name}/tokenizer.json"))).unwrap();
    Tokenizer::from_json(&json, &tiny_special(name)).unwrap()
}

/// A configuration with one training file and `settings` over the defaults.
pub(crate) fn config(train: &str, settings: &[&str]) -> Config {
    let text = format!("[model]\npath = \"model\"\n[data]\ntrain = {train:?}\n");
    let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
    Config::parse(&text, "luthier.toml".as_ref(), &settings).unwrap()
}
