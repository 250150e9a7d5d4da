//! The special tokens of a Hugging Face folder. Their texts are in one file and their ids in others.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::ModelError;
use super::settings::Settings;
use super::{SpecialToken, SpecialTokens, files};
use crate::files::Folder;
use crate::json;
use crate::text::Shown;

/// Largest `generation_config.json` and `special_tokens_map.json` that are read.
const MAX_SMALL: u64 = 4 << 20;

/// Largest `tokenizer.json` that is read; the largest real ones have some 35 MB.
pub(crate) const MAX_TOKENIZER: u64 = 64 << 20;

/// Most values in a `tokenizer.json`. The largest real ones have 262,000 tokens and 515,000 merges of two
/// parts: 1.9 million values.
pub(crate) const MAX_TOKENIZER_VALUES: usize = 1 << 22;

/// Most tokens that may end a generation.
const MAX_ENDS: usize = 256;

/// Reads the special tokens of a folder. `vocabulary` is the number of rows of the embedding. Ids beyond it
/// count as absent, because configurations name such ids for tokens that they do not have.
pub(super) fn read(
    folder: &Folder,
    config: &Settings,
    tokenizer_config: Option<&Map<String, Value>>,
    tokenizer_json: &Path,
    vocabulary: usize,
) -> Result<SpecialTokens, ModelError> {
    let object = |name: &str| match files::find(folder, name)? {
        Some(path) => files::read_object(&path, MAX_SMALL).map(Some),
        None => Ok(None),
    };
    let generation = object("generation_config.json")?;
    let map = object("special_tokens_map.json")?;
    let ids = |key: &str| -> Vec<u32> {
        let generation = generation.as_ref().and_then(|generation| generation.get(key));
        let value = generation.filter(|value| !value.is_null()).or_else(|| config.get(key));
        let values = match value {
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
            None => &[],
        };
        values
            .iter()
            .filter_map(Value::as_u64)
            .filter(|&id| id < vocabulary as u64)
            .filter_map(|id| u32::try_from(id).ok())
            .collect()
    };
    let text = |key: &str| {
        [tokenizer_config, map.as_ref()].into_iter().flatten().find_map(|object| token_text(object.get(key)?))
    };
    let added = match tokenizer_config.and_then(listed_tokens) {
        Some(listed) => listed,
        None => added_tokens(tokenizer_json)?,
    };
    let id_of = |text: &str| {
        let id = added.iter().find(|token| token.content == text).map(|token| token.id);
        id.filter(|&id| (id as usize) < vocabulary)
    };
    // If two tokens have the same id, the first is used.
    let texts: HashMap<u32, &str> =
        added.iter().rev().map(|token| (token.id, token.content.as_str())).collect();
    let by_id = |id: u32| SpecialToken { id: Some(id), text: texts.get(&id).map(|&text| text.to_owned()) };
    let token = |name: &str| -> Option<SpecialToken> {
        let configured = ids(&format!("{name}_id")).first().copied();
        match text(name) {
            // The tokenizer decides the id of a token's text. If the text is not among the added tokens, the
            // configured id is used.
            Some(text) => Some(SpecialToken { id: id_of(&text).or(configured), text: Some(text) }),
            None => configured.map(by_id),
        }
    };
    let mut eos = Vec::new();
    let ends = ids("eos_token_id");
    if ends.len() > MAX_ENDS {
        let problem = format!("`eos_token_id` names {} tokens; at most {MAX_ENDS} are read", ends.len());
        return Err(ModelError::Settings { file: folder.path().into(), problem });
    }
    if let Some(text) = text("eos_token") {
        let configured = ends.first().copied().filter(|_| ends.len() == 1);
        eos.push(SpecialToken { id: id_of(&text).or(configured), text: Some(text) });
    }
    for id in ends {
        if !eos.iter().any(|token: &SpecialToken| token.id == Some(id)) {
            eos.push(by_id(id));
        }
    }
    Ok(SpecialTokens { bos: token("bos_token"), eos, pad: token("pad_token"), unknown: token("unk_token") })
}

/// A token is given as its text or as an object with its text.
fn token_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    }
}

#[derive(Deserialize)]
struct AddedTokens {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// The added tokens listed in `tokenizer_config.json`, if it has them. This avoids reading a `tokenizer.json`
/// of many megabytes.
fn listed_tokens(config: &Map<String, Value>) -> Option<Vec<AddedToken>> {
    let listed = config.get("added_tokens_decoder")?.as_object()?;
    let token = |(id, token): (&String, &Value)| {
        Some(AddedToken { id: id.parse().ok()?, content: token.get("content")?.as_str()?.to_owned() })
    };
    listed.iter().map(token).collect()
}

/// The added tokens of a `tokenizer.json`; the rest is skipped, which is fast.
fn added_tokens(path: &Path) -> Result<Vec<AddedToken>, ModelError> {
    let bytes = files::read(path, MAX_TOKENIZER)?;
    let tokens = json::from_slice::<AddedTokens>(&bytes, MAX_TOKENIZER_VALUES);
    let tokens = tokens.map_err(|error| ModelError::Tokenizer {
        file: path.into(),
        problem: format!(
            "is damaged or was not downloaded completely: {}; download it again",
            Shown::new(&error.to_string())
        ),
    })?;
    Ok(tokens.added_tokens)
}
