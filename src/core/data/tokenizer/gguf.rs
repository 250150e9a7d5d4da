//! Turns the vocabulary of a GGUF file into a `tokenizer.json`.
//!
//! `gpt2` vocabularies are byte-level BPE; the pre-tokenizer is chosen by name, as in llama.cpp. `llama`
//! vocabularies are SentencePiece pieces with scores, which become BPE merges. SentencePiece joins the pair
//! whose piece scores best, the leftmost first; BPE does the same if merges are ordered by the score of their
//! result.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::data::DataError;
use crate::model::{GgufTokenType, GgufVocabulary};
use crate::text::clean_line;

/// Stands for a space in SentencePiece pieces.
const SPACE: char = '▁';

/// Limit on the work of finding the merges of a SentencePiece vocabulary: the sum of the squares of its
/// pieces' lengths in bytes. Real vocabularies stay below a quarter of it.
const MAX_WORK: u64 = 1 << 27;

/// The pre-tokenizer of Llama 3 (`tokenizer.json` of the published models).
const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// That of Qwen 2, which differs only in splitting numbers into single digits.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How byte-level BPE splits text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    Gpt2,
    /// Single digits, then GPT-2's words.
    DigitsGpt2,
    /// Llama 3's words; a whole word that is a token is not split.
    Llama3,
    /// Qwen 2's words, over text in normal form C.
    Qwen2,
}

impl PreTokenizer {
    const NAMES: &[(&str, PreTokenizer)] = &[
        ("default", PreTokenizer::Gpt2),
        ("gpt-2", PreTokenizer::Gpt2),
        ("gpt2", PreTokenizer::Gpt2),
        ("smollm", PreTokenizer::DigitsGpt2),
        ("starcoder", PreTokenizer::DigitsGpt2),
        ("refact", PreTokenizer::DigitsGpt2),
        ("command-r", PreTokenizer::DigitsGpt2),
        ("llama-bpe", PreTokenizer::Llama3),
        ("llama3", PreTokenizer::Llama3),
        ("llama-v3", PreTokenizer::Llama3),
        ("qwen2", PreTokenizer::Qwen2),
        ("deepseek-r1-qwen", PreTokenizer::Qwen2),
    ];

    fn named(name: &str) -> Result<Self, DataError> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, found)| found).ok_or_else(|| {
            let known: Vec<&str> = Self::NAMES.iter().map(|&(name, _)| name).collect();
            DataError::Tokenizer(format!(
                "the GGUF file has the pre-tokenizer {:?}, which is unknown here (known: {}). Use the model's \
                 Hugging Face folder instead",
                clean_line(name),
                known.join(", ")
            ))
        })
    }

    fn description(self) -> Value {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let split = |pattern: &str| {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                byte_level(false),
            ]})
        };
        match self {
            PreTokenizer::Gpt2 => byte_level(true),
            PreTokenizer::DigitsGpt2 => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                byte_level(true),
            ]}),
            PreTokenizer::Llama3 => split(LLAMA3_PATTERN),
            PreTokenizer::Qwen2 => split(QWEN2_PATTERN),
        }
    }
}

/// A `tokenizer.json` that encodes like the file's vocabulary.
pub(super) fn describe(vocabulary: &GgufVocabulary) -> Result<Value, DataError> {
    if vocabulary.tokens.is_empty() {
        return Err(DataError::Tokenizer("the GGUF file has no vocabulary".to_owned()));
    }
    match vocabulary.model.as_str() {
        "gpt2" => byte_level(vocabulary),
        "llama" => sentence_piece(vocabulary),
        other => Err(DataError::Tokenizer(format!(
            "the GGUF file has a {:?} vocabulary; known kinds are \"gpt2\" and \"llama\". Use the model's Hugging Face \
             folder instead",
            clean_line(other)
        ))),
    }
}

fn byte_level(vocabulary: &GgufVocabulary) -> Result<Value, DataError> {
    if vocabulary.merges.is_empty() {
        return Err(DataError::Tokenizer("the GGUF file's vocabulary has no merges".to_owned()));
    }
    let pre = PreTokenizer::named(vocabulary.pre.as_deref().unwrap_or("default"))?;
    let merges: Vec<Value> = vocabulary
        .merges
        .iter()
        .map(|merge| {
            // A token may itself start with a space, so the separator is searched for after its first
            // character.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            match merge[first..].find(' ') {
                Some(at) => Ok(json!([&merge[..first + at], &merge[first + at + 1..]])),
                None => Err(DataError::Tokenizer(format!("merge {:?} has only one part", clean_line(merge)))),
            }
        })
        .collect::<Result<_, _>>()?;
    let normalizer = if pre == PreTokenizer::Qwen2 { json!({"type": "NFC"}) } else { Value::Null };
    let add_bos = vocabulary.add_bos.unwrap_or(pre == PreTokenizer::Llama3);
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(vocabulary),
        "normalizer": normalizer,
        "pre_tokenizer": pre.description(),
        "post_processor": post_processor(vocabulary, add_bos),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre == PreTokenizer::Llama3,
            "vocab": vocabulary_map(vocabulary), "merges": merges,
        },
    }))
}

fn sentence_piece(vocabulary: &GgufVocabulary) -> Result<Value, DataError> {
    if vocabulary.scores.len() != vocabulary.tokens.len() {
        return Err(DataError::Tokenizer("the GGUF file's vocabulary has no scores".to_owned()));
    }
    let square = |token: &String| (token.len() as u64).saturating_pow(2);
    if vocabulary.tokens.iter().map(square).fold(0, u64::saturating_add) > MAX_WORK {
        return Err(DataError::Tokenizer(
            "the GGUF file's vocabulary has tokens that are too long".to_owned(),
        ));
    }
    let space_prefix = vocabulary.add_space_prefix.unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE.to_string()});
    let normalizer = if space_prefix {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE.to_string()}, replace]})
    } else {
        replace
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE.to_string()}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = vocabulary
        .unknown
        .and_then(|id| vocabulary.tokens.get(id as usize))
        .or_else(|| of_type(vocabulary, GgufTokenType::Unknown).next().map(|(_, token)| token));
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(vocabulary),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": post_processor(vocabulary, vocabulary.add_bos.unwrap_or(true)),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": of_type(vocabulary, GgufTokenType::Byte).next().is_some()
                || vocabulary.tokens.iter().any(|token| token == "<0x0A>"),
            "ignore_merges": false,
            "vocab": vocabulary_map(vocabulary), "merges": merges_by_score(vocabulary),
        },
    }))
}

/// Every way to make a piece from two others, best piece first; among equal pieces those with the lower ids,
/// as in transformers' `generate_merges`.
fn merges_by_score(vocabulary: &GgufVocabulary) -> Vec<Value> {
    let ids: HashMap<&str, usize> =
        vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        if !matches!(kind(vocabulary, id), GgufTokenType::Normal | GgufTokenType::Undefined) {
            continue;
        }
        let mut halves: Vec<(usize, usize)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*ids.get(&token[..at])?, *ids.get(&token[at..])?)))
            .collect();
        halves.sort_unstable();
        merges.extend(halves.into_iter().map(|(left, right)| (vocabulary.scores[id], left, right)));
    }
    merges.sort_by(|left, right| right.0.total_cmp(&left.0));
    merges
        .into_iter()
        .map(|(_, left, right)| json!([vocabulary.tokens[left], vocabulary.tokens[right]]))
        .collect()
}

fn vocabulary_map(vocabulary: &GgufVocabulary) -> Value {
    vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.clone(), Value::from(id))).collect()
}

fn kind(vocabulary: &GgufVocabulary, id: usize) -> GgufTokenType {
    vocabulary.types.get(id).copied().unwrap_or(GgufTokenType::Undefined)
}

fn of_type(vocabulary: &GgufVocabulary, wanted: GgufTokenType) -> impl Iterator<Item = (usize, &String)> {
    vocabulary.tokens.iter().enumerate().filter(move |&(id, _)| kind(vocabulary, id) == wanted)
}

fn added_tokens(vocabulary: &GgufVocabulary) -> Vec<Value> {
    let named = [vocabulary.bos, vocabulary.eos, vocabulary.end_of_turn, vocabulary.unknown, vocabulary.pad];
    vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| !token.is_empty())
        .filter_map(|(id, token)| {
            let is_named = u32::try_from(id).is_ok_and(|id| named.contains(&Some(id)));
            let special = match kind(vocabulary, id) {
                GgufTokenType::Control | GgufTokenType::Unknown => true,
                GgufTokenType::UserDefined => is_named,
                _ if is_named => true,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        })
        .collect()
}

fn post_processor(vocabulary: &GgufVocabulary, add_bos: bool) -> Value {
    let named = |id: Option<u32>| {
        let id = id?;
        vocabulary.tokens.get(id as usize).map(|token| (id, token.clone()))
    };
    let bos = named(vocabulary.bos).filter(|_| add_bos);
    let eos = named(vocabulary.eos).filter(|_| vocabulary.add_eos == Some(true));
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let piece = |token: &Option<(u32, String)>, sequence: u32| {
        token
            .iter()
            .map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": sequence}}))
            .collect::<Vec<_>>()
    };
    let part = |name: &str, sequence: u32| {
        let mut pieces = piece(&bos, sequence);
        pieces.push(json!({"Sequence": {"id": name, "type_id": sequence}}));
        pieces.extend(piece(&eos, sequence));
        pieces
    };
    let special: serde_json::Map<String, Value> = bos
        .iter()
        .chain(&eos)
        .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let pair = [part("A", 0), part("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": pair,
        "special_tokens": special,
    })
}
