//! Reference data and small tokenizers for tests.

use std::path::PathBuf;

use serde_json::Value;

use super::Tokenizer;
use crate::config::Config;
use crate::model::{SpecialToken, SpecialTokens};

/// A file in `tests/references`.
pub(crate) fn reference(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references")).join(path)
}

/// A JSON file in `tests/references`.
pub(crate) fn reference_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(reference(path)).unwrap()).unwrap()
}

/// The rows of a two-dimensional int64 tensor in a safetensors file in `tests/references`.
pub(crate) fn reference_integers(path: &str, name: &str) -> Vec<Vec<i64>> {
    let bytes = std::fs::read(reference(path)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(length);
    let header: Value = serde_json::from_slice(header).unwrap();
    let [start, end] = [0, 1].map(|end| header[name]["data_offsets"][end].as_u64().unwrap() as usize);
    let width = header[name]["shape"][1].as_u64().unwrap() as usize;
    let numbers: Vec<i64> =
        data[start..end].chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect();
    numbers.chunks(width).map(<[i64]>::to_vec).collect()
}

/// The special tokens in a tiny tokenizer's `tokenizer_config.json`.
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

/// The sample base model that `make setup` downloads.
pub(crate) fn sample_model() -> PathBuf {
    if let Some(path) = std::env::var_os("LUTHIER_SAMPLE_MODEL") {
        return path.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .unwrap_or_default();
    let path = cache.join("luthier/models/smollm2-135m-instruct-q4_1.gguf");
    assert!(path.is_file(), "{} is missing; `make setup` downloads it", path.display());
    path
}

/// The byte-level tiny tokenizer with the special tokens of every template in `chat/chat.json`.
pub(crate) fn chat_tokenizer() -> Tokenizer {
    let mut description = reference_json("tiny/_tokenizers/bytelevel/tokenizer.json");
    let added = description["added_tokens"].as_array_mut().unwrap();
    let texts = [
        "<s>",
        "</s>",
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
        "<|endoftext|>",
        "<bos>",
        "<eos>",
        "<start_of_turn>",
        "<end_of_turn>",
    ];
    let known: Vec<String> =
        added.iter().map(|token| token["content"].as_str().unwrap().to_owned()).collect();
    for (index, text) in texts.iter().filter(|text| !known.iter().any(|known| known == *text)).enumerate() {
        added.push(serde_json::json!({
            "id": 512 + index, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    Tokenizer::from_json(description.to_string().as_bytes(), &tiny_special("bytelevel")).unwrap()
}

/// Rows as the text of a `.jsonl` file.
pub(crate) fn json_lines(rows: &[Value]) -> String {
    rows.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
}
