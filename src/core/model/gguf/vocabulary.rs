//! The vocabulary in a GGUF file (`tokenizer.ggml.*`).

use super::header::Header;
use super::value::{Array, Value};
use crate::model::error::Fault;
use crate::model::{GgufTokenType, GgufVocabulary};

/// Most tokens, and most merges; the largest real vocabularies have half as many. A tokenizer takes hundreds
/// of bytes for each.
const MAX_TOKENS: usize = 1 << 20;

impl GgufVocabulary {
    /// `rows` is the number of rows of the embedding; ids beyond it are refused. Moves the long lists out of
    /// `header`, because copying them would double the time.
    pub(super) fn read(header: &mut Header, rows: usize) -> Result<Self, Fault> {
        let mut keys = Keys { header };
        let model = keys
            .text("model")?
            .ok_or_else(|| Keys::damaged("model", "is missing: the file has no tokenizer"))?;
        let tokens = keys.texts("tokens")?;
        if tokens.is_empty() {
            return Err(Keys::damaged("tokens", "is missing: the file has no vocabulary"));
        }
        if tokens.len() > rows {
            let problem = format!("has {} tokens, but the embedding only {rows} rows", tokens.len());
            return Err(Keys::damaged("tokens", &problem));
        }
        let count = tokens.len();
        Ok(Self {
            model,
            pre: keys.text("pre")?,
            scores: keys.numbers("scores", count, |value| value.number().map(|score| score as f32))?,
            types: keys.numbers("token_type", count, |value| value.unsigned().map(token_type))?,
            merges: keys.texts("merges")?,
            bos: keys.id("bos_token_id", count)?,
            eos: keys.id("eos_token_id", count)?,
            end_of_turn: keys.id("eot_token_id", count)?,
            unknown: keys.id("unknown_token_id", count)?,
            pad: keys.id("padding_token_id", count)?,
            add_bos: keys.truth("add_bos_token")?,
            add_eos: keys.truth("add_eos_token")?,
            add_space_prefix: keys.truth("add_space_prefix")?,
            tokens,
        })
    }
}

/// `enum llama_token_type` of `llama.h`.
fn token_type(number: u64) -> GgufTokenType {
    match number {
        1 => GgufTokenType::Normal,
        2 => GgufTokenType::Unknown,
        3 => GgufTokenType::Control,
        4 => GgufTokenType::UserDefined,
        5 => GgufTokenType::Unused,
        6 => GgufTokenType::Byte,
        _ => GgufTokenType::Undefined,
    }
}

struct Keys<'a> {
    header: &'a mut Header,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.header.get(&format!("tokenizer.ggml.{key}"))
    }

    fn damaged(key: &str, problem: &str) -> Fault {
        Fault::Damaged(format!("`tokenizer.ggml.{key}` {problem}"))
    }

    fn typed<'a, T>(&'a self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| Self::damaged(key, "has the wrong type"))
    }

    fn text(&self, key: &str) -> Result<Option<String>, Fault> {
        self.typed(key, |value| value.text().map(str::to_owned))
    }

    fn truth(&self, key: &str) -> Result<Option<bool>, Fault> {
        self.typed(key, Value::truth)
    }

    fn texts(&mut self, key: &str) -> Result<Vec<String>, Fault> {
        match self.header.metadata.swap_remove(&format!("tokenizer.ggml.{key}")) {
            None => Ok(Vec::new()),
            Some(Value::Array(Array::Texts(texts))) if texts.len() > MAX_TOKENS => Err(Self::damaged(
                key,
                &format!("has {} elements; at most {MAX_TOKENS} are read", texts.len()),
            )),
            Some(Value::Array(Array::Texts(texts))) => Ok(texts),
            Some(_) => Err(Self::damaged(key, "has the wrong type")),
        }
    }

    /// An id. Some files write -1, or the size of the vocabulary, if there is none.
    fn id(&self, key: &str, count: usize) -> Result<Option<u32>, Fault> {
        match self.get(key) {
            None | Some(Value::Signed(..0)) => Ok(None),
            Some(value) => {
                let id = value.unsigned().ok_or_else(|| Self::damaged(key, "has the wrong type"))?;
                Ok(u32::try_from(id).ok().filter(|&id| (id as usize) < count))
            }
        }
    }

    /// One number per token; empty if the key is absent.
    fn numbers<T>(
        &self,
        key: &str,
        count: usize,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let numbers = value.array().and_then(Array::numbers);
        let numbers: Option<Vec<T>> = numbers.and_then(|values| values.map(|value| read(&value)).collect());
        let numbers = numbers.ok_or_else(|| Self::damaged(key, "has the wrong type"))?;
        if numbers.len() == count {
            return Ok(numbers);
        }
        Err(Self::damaged(key, &format!("has {} values for {count} tokens", numbers.len())))
    }
}
