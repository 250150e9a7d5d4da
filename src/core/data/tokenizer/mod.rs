//! Text ↔ token ids with the `tokenizers` crate, from a `tokenizer.json` or the vocabulary of a GGUF file.

mod gguf;
mod stream;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::DataError;
use crate::model::special::{MAX_TOKENIZER, MAX_TOKENIZER_VALUES};
use crate::model::{ModelFiles, SpecialToken, SpecialTokens, TokenizerSource};
use crate::panics::guarded;
use crate::text::clean_line;
use crate::{files, json};

pub use stream::DecodeStream;

/// Longest text encoded at once, in bytes.
const MAX_TEXT_BYTES: usize = 256 << 20;

/// Turns text into token ids and back. Clones share one tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    vocabulary: usize,
    /// Rows of the model's embedding; all ids must be below.
    limit: u32,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Ids that encoding with special tokens adds before and after a text.
    before: Vec<u32>,
    after: Vec<u32>,
    /// Text and id of each special token, longest text first.
    special: Vec<(String, u32)>,
}

/// Token ids and their places in the text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoding {
    pub ids: Vec<u32>,
    /// For each id, its start and end in bytes of the text. Tokens that share a character have the same
    /// range; tokens that were added have an empty one.
    pub offsets: Vec<(usize, usize)>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocabulary", &self.inner.vocabulary)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer of a model.
    pub fn open(files: &ModelFiles) -> Result<Self, DataError> {
        let mut tokenizer = match &files.tokenizer {
            TokenizerSource::HuggingFace { tokenizer_json, .. } => {
                Self::from_json(&read(tokenizer_json)?, &files.special)?
            }
            TokenizerSource::Gguf(vocabulary) => {
                let description = gguf::describe(vocabulary)?;
                Self::from_json(description.to_string().as_bytes(), &files.special)?
            }
        };
        if let Some(inner) = Arc::get_mut(&mut tokenizer.inner) {
            inner.limit = u32::try_from(files.architecture.vocabulary).unwrap_or(u32::MAX);
        }
        Ok(tokenizer)
    }

    /// Reads the content of a `tokenizer.json`, with the special tokens that the model declares.
    pub(crate) fn from_json(json: &[u8], special: &SpecialTokens) -> Result<Self, DataError> {
        let mut tokenizer = guarded(|| tokenizers::Tokenizer::from_bytes(json))
            .map_err(|panic| broken(&panic))?
            .map_err(|error| broken(&error.to_string()))?;
        tokenizer.with_padding(None);
        guarded(|| tokenizer.with_truncation(None).map(|_| ()))
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| DataError::Tokenizer("its truncation cannot be switched off".to_owned()))?;

        let mut special_texts: Vec<(String, u32)> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (token.content, id))
            .collect();
        special_texts.sort_by(|left, right| right.0.len().cmp(&left.0.len()).then_with(|| left.cmp(right)));

        let id_of = |token: &SpecialToken| {
            token.id.or_else(|| token.text.as_deref().and_then(|text| tokenizer.token_to_id(text)))
        };
        let mut inner = Inner {
            vocabulary: tokenizer.get_vocab_size(true),
            limit: u32::MAX,
            bos: special.bos.as_ref().and_then(id_of),
            eos: special.eos.first().and_then(id_of),
            before: Vec::new(),
            after: Vec::new(),
            special: special_texts,
            tokenizer,
        };
        let (plain, full) = (inner.encode("a", false)?.ids, inner.encode("a", true)?.ids);
        if let Some(start) = full.windows(plain.len().max(1)).position(|window| window == plain) {
            inner.before = full[..start].to_vec();
            inner.after = full[start + plain.len()..].to_vec();
        }
        Ok(Tokenizer { inner: Arc::new(inner) })
    }

    /// Token ids of `text`. `add_special` adds the tokens that the tokenizer puts around a text (beginning of
    /// text …), with an empty range. Texts of special tokens in `text` become those tokens.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoding, DataError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(DataError::Tokenizer(format!(
                "a text of {} MiB is longer than the {} MiB that can be encoded at once",
                text.len() >> 20,
                MAX_TEXT_BYTES >> 20
            )));
        }
        let encoding = self.inner.encode(text, add_special)?;
        self.check_ids(&encoding.ids)?;
        Ok(encoding)
    }

    /// Fails if an id is beyond the model's embedding.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<(), DataError> {
        match ids.iter().find(|&&id| id >= self.inner.limit) {
            Some(id) => Err(DataError::Tokenizer(format!(
                "token {id} is beyond the model's vocabulary of {}: tokenizer and model do not match",
                self.inner.limit
            ))),
            None => Ok(()),
        }
    }

    /// The text of `ids`. Unknown ids are left out; incomplete UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, DataError> {
        guarded(|| self.inner.tokenizer.decode(ids, skip_special))
            .map_err(DataError::Tokenizer)?
            .map_err(|error| DataError::Tokenizer(error.to_string()))
    }

    /// One token by itself: its decoded text, or its name in the vocabulary if the text is empty or not
    /// UTF-8.
    pub fn token_text(&self, id: u32) -> String {
        match self.decode(&[id], false) {
            Ok(text) if !text.is_empty() && !text.contains('\u{fffd}') => text,
            _ => self.inner.tokenizer.id_to_token(id).unwrap_or_else(|| format!("<{id}>")),
        }
    }

    /// Decodes token by token; see [`DecodeStream`].
    pub fn stream(&self) -> DecodeStream {
        DecodeStream::new(self.clone())
    }

    /// The id of a token by its name in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// Number of tokens, including added ones.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.vocabulary
    }

    /// Beginning of text, if the model declares one.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// End of text, if the model declares one.
    pub fn eos(&self) -> Option<u32> {
        self.inner.eos
    }

    /// Ids that [`Tokenizer::encode`] with `add_special` adds before a text.
    pub fn ids_before(&self) -> &[u32] {
        &self.inner.before
    }

    /// Ids that [`Tokenizer::encode`] with `add_special` adds after a text.
    pub fn ids_after(&self) -> &[u32] {
        &self.inner.after
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special.iter().any(|&(_, special)| special == id)
    }

    /// Text and id of each special token, longest text first.
    pub fn special_tokens(&self) -> &[(String, u32)] {
        &self.inner.special
    }

    /// The special token with which `text` starts.
    pub(crate) fn special_at_start(&self, text: &str) -> Option<(&str, u32)> {
        self.inner
            .special
            .iter()
            .find(|(token, _)| text.starts_with(token.as_str()))
            .map(|(token, id)| (token.as_str(), *id))
    }

    /// The special token with which `text` ends.
    pub(crate) fn special_at_end(&self, text: &str) -> Option<(&str, u32)> {
        self.inner
            .special
            .iter()
            .find(|(token, _)| text.ends_with(token.as_str()))
            .map(|(token, id)| (token.as_str(), *id))
    }
}

impl Inner {
    fn encode(&self, text: &str, add_special: bool) -> Result<Encoding, DataError> {
        let encoding = guarded(|| self.tokenizer.encode(text, add_special))
            .map_err(DataError::Tokenizer)?
            .map_err(|error| DataError::Tokenizer(error.to_string()))?;
        let offsets = encoding
            .get_offsets()
            .iter()
            .map(|&(start, end)| (char_start(text, start), char_end(text, end)))
            .collect();
        Ok(Encoding { ids: encoding.get_ids().to_vec(), offsets })
    }
}

fn broken(reason: &str) -> DataError {
    DataError::Tokenizer(format!("its description is broken: {}", clean_line(reason)))
}

/// `at`, or the start of the character that contains it.
fn char_start(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// `at`, or the end of the character that contains it.
fn char_end(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let bytes = files::read(path, MAX_TOKENIZER).map_err(|error| DataError::read(path, error))?;
    json::check(&bytes, MAX_TOKENIZER_VALUES).map_err(|error| DataError::file(path, error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
