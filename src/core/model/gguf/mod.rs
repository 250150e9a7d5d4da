//! A base model in one GGUF file.

mod header;
mod value;
mod vocabulary;
#[cfg(test)]
pub(in crate::model) mod writer;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, json};

use super::architecture::{Architecture, Parameter, Position, RopeScaling};
use super::error::{Fault, ModelError, Shown};
use super::families::{self, Family, GgufStyle};
use super::roles::Role;
use super::settings::Settings;
use super::tensors::{self, Found};
use super::{
    Arrangement, GgufVocabulary, ModelFiles, ModelKind, SpecialToken, SpecialTokens, TokenizerSource, files,
    fingerprint,
};
use header::Header;
use value::Value;

/// What LLaMA 3 files have instead of scaling parameters: one f32 divisor per rotary frequency.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Opens a GGUF file.
pub(super) fn open(path: &Path) -> Result<ModelFiles, ModelError> {
    let (file, size) = files::open(path)?;
    let mut file = BufReader::with_capacity(1 << 16, file);
    let mut header = Header::read(&mut file, size).map_err(|fault| fault.at(path))?;
    let (family, style) = family(path, &header)?;
    let mut architecture = families::build(family, &settings(path, &header, style)?)?;
    let mut found = IndexMap::new();
    for tensor in &header.tensors {
        if tensor.name == ROPE_DIVISORS {
            let divisors = read_floats(&mut file, tensor).map_err(|fault| fault.at(path))?;
            divide_frequencies(&mut architecture, &divisors).map_err(|fault| fault.at(path))?;
            continue;
        }
        let entry = Found {
            shape: tensor.shape.clone(),
            storage: Ok(tensor.storage),
            file: 0,
            offset: tensor.offset,
            bytes: tensor.bytes,
        };
        found.insert(tensor.name.clone(), entry);
    }
    let files = vec![path.to_owned()];
    let in_file = |parameter: &Parameter| {
        format!("{}.{}", parameter.role.gguf_module(parameter.layer.unwrap_or(0)), parameter.part.suffix())
    };
    let mut tensors = tensors::assign(path, &files, &architecture, found, family.harmless(), in_file)?;
    if style.permuted {
        for parameter in architecture.parameters() {
            let attention = parameter.layer.map(|layer| &architecture.layers[layer].attention);
            let heads = match (parameter.role, attention) {
                (Role::Query, Some(attention)) => attention.heads,
                (Role::Key, Some(attention)) => attention.key_value_heads,
                _ => continue,
            };
            if let Some(entry) = tensors.get_mut(&parameter.name) {
                entry.arrangement = Arrangement::RotaryPairs { heads };
            }
        }
    }
    let vocabulary =
        GgufVocabulary::read(&mut header, architecture.vocabulary).map_err(|fault| fault.at(path))?;
    let chat_template = header.get("tokenizer.chat_template").and_then(Value::text).map(str::to_owned);
    let fingerprint = fingerprint::of(&architecture, &tensors, &files)?;
    Ok(ModelFiles {
        root: path.to_owned(),
        kind: ModelKind::Gguf,
        architecture,
        tensors,
        files,
        special: special_tokens(&header, &vocabulary),
        tokenizer: TokenizerSource::Gguf(vocabulary),
        chat_template,
        fingerprint,
    })
}

fn family(path: &Path, header: &Header) -> Result<(&'static dyn Family, GgufStyle), ModelError> {
    let settings = |problem: &str| ModelError::Settings { file: path.into(), problem: problem.to_owned() };
    let unsupported = |feature: &str, remedy: &str| ModelError::Unsupported {
        file: path.into(),
        feature: feature.to_owned(),
        remedy: remedy.to_owned(),
    };
    if header.get("split.count").and_then(Value::unsigned).is_some_and(|count| count > 1) {
        let remedy = "join the parts with `llama-gguf-split --merge` and give the joined file";
        return Err(unsupported("a GGUF model in several files", remedy));
    }
    if header.get("general.type").and_then(Value::text).is_some_and(|kind| kind != "model") {
        return Err(unsupported("a GGUF file that holds no model", "give the base model's file"));
    }
    let name = header
        .get("general.architecture")
        .and_then(Value::text)
        .ok_or_else(|| settings("`general.architecture` is missing"))?;
    families::of_gguf(name).map_err(|supported| ModelError::UnknownArchitecture {
        file: path.into(),
        found: Shown::new(name),
        supported,
    })
}

/// Hugging Face key, GGUF key behind the architecture's name.
const KEYS: [(&str, &str); 8] = [
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("intermediate_size", "feed_forward_length"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
];

/// As [`KEYS`], for the section `rope_parameters`.
const ROPE_KEYS: [(&str, &str); 3] =
    [("rope_theta", "rope.freq_base"), ("rope_type", "rope.scaling.type"), ("factor", "rope.scaling.factor")];

/// The metadata under Hugging Face's keys. What GGUF says by the presence of tensors becomes a flag.
fn settings(path: &Path, header: &Header, style: GgufStyle) -> Result<Settings, ModelError> {
    let prefix = style.name;
    let spelling: Vec<(&'static str, String)> =
        KEYS.iter().chain(&ROPE_KEYS).map(|&(key, gguf)| (key, format!("{prefix}.{gguf}"))).collect();
    let get = |key: &str| header.get(&format!("{prefix}.{key}")).map(json);
    let tensor = |name: &str| header.tensors.iter().find(|tensor| tensor.name == name);
    let mut values = Map::new();
    for (key, gguf) in KEYS {
        if let Some(value) = get(gguf) {
            values.insert(key.to_owned(), value);
        }
    }
    let mut rope = Map::new();
    for (key, gguf) in ROPE_KEYS {
        if let Some(value) = get(gguf) {
            rope.insert(key.to_owned(), if value == "none" { json!("default") } else { value });
        }
    }
    values.insert("rope_parameters".to_owned(), rope.into());
    let vocabulary = tensor("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
    values.insert("vocab_size".to_owned(), json!(vocabulary));
    values.insert("tie_word_embeddings".to_owned(), json!(tensor("output.weight").is_none()));
    values.insert("attention_bias".to_owned(), json!(tensor("blk.0.attn_q.bias").is_some()));
    values.insert("mlp_bias".to_owned(), json!(tensor("blk.0.ffn_gate.bias").is_some()));
    let settings = Settings::new(path, values, spelling);
    if vocabulary.is_none() {
        let problem = "the tensor `token_embd.weight` is missing".to_owned();
        return Err(ModelError::Settings { file: path.into(), problem });
    }
    if settings.get("rms_norm_eps").is_none() {
        return Err(settings.wrong("rms_norm_eps", "is missing"));
    }
    refuse_unsupported(path, header, prefix, &settings)?;
    let scaling = get("rope.scaling.type").unwrap_or_default();
    if !scaling.is_null() && scaling != "none" && scaling != "linear" {
        return Err(ModelError::Unsupported {
            file: path.into(),
            feature: format!("this kind of rotary scaling (`{prefix}.rope.scaling.type` = {scaling})"),
            remedy: "choose another model".to_owned(),
        });
    }
    Ok(settings)
}

/// Refuses what would change the computation in ways that the families here do not have.
fn refuse_unsupported(
    path: &Path,
    header: &Header,
    prefix: &str,
    settings: &Settings,
) -> Result<(), ModelError> {
    let number = |key: &str| header.get(&format!("{prefix}.{key}")).and_then(Value::unsigned);
    let refuse = |feature: &str, key: &str| {
        Err(ModelError::Unsupported {
            file: path.into(),
            feature: format!("{feature} (`{prefix}.{key}`)"),
            remedy: "choose another model".to_owned(),
        })
    };
    if number("expert_count").is_some_and(|count| count > 0) {
        return refuse("a mixture of experts", "expert_count");
    }
    let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(usize::MAX) as u64;
    if number("attention.sliding_window").is_some_and(|window| window > 0 && window < positions) {
        return refuse("sliding-window attention", "attention.sliding_window");
    }
    let head_size = match settings.size_if_any("head_dim")? {
        Some(head_size) => head_size,
        None => settings.size("hidden_size")? / settings.size("num_attention_heads")?,
    };
    if number("attention.value_length").is_some_and(|length| length != head_size as u64) {
        return refuse("a value head of another size than the key head", "attention.value_length");
    }
    if number("rope.dimension_count").is_some_and(|length| length != head_size as u64) {
        return refuse("partial rotary embedding", "rope.dimension_count");
    }
    Ok(())
}

/// The value as JSON; a per-layer array of one and the same number as that number.
fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Truth(truth) => json!(truth),
        Value::Text(text) => json!(text),
        Value::Unsigned(number) => json!(number),
        Value::Signed(number) => json!(number),
        Value::Single(_) | Value::Double(_) => json!(value.number()),
        Value::Array(array) => {
            let mut numbers = array.numbers().into_iter().flatten();
            match numbers.next() {
                Some(first) if numbers.all(|other| other == first) && first.unsigned().is_some() => {
                    json(&first)
                }
                _ => json!("values that differ from layer to layer"),
            }
        }
    }
}

fn read_floats(file: &mut BufReader<File>, tensor: &header::Tensor) -> Result<Vec<f32>, Fault> {
    /// More frequencies than any head has; the tensor may claim as many as the file has room for.
    const MOST: u64 = 1 << 16;
    if tensor.storage != super::Storage::F32 || tensor.bytes > 4 * MOST {
        return Err(Fault::Damaged(format!("tensor `{}` is not a short list of F32", tensor.name)));
    }
    let mut bytes = vec![0; tensor.bytes as usize];
    file.seek(SeekFrom::Start(tensor.offset)).map_err(Fault::Read)?;
    file.read_exact(&mut bytes).map_err(Fault::Read)?;
    Ok(bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect())
}

fn divide_frequencies(architecture: &mut Architecture, divisors: &[f32]) -> Result<(), Fault> {
    if divisors.iter().any(|divisor| !divisor.is_finite() || *divisor <= 0.0) {
        return Err(Fault::Damaged(format!("tensor `{ROPE_DIVISORS}` holds values that are not above 0")));
    }
    for layer in &mut architecture.layers {
        let Position::Rotary(rope) = &mut layer.attention.position else { continue };
        if divisors.len() != rope.rotated / 2 {
            let problem = format!(
                "tensor `{ROPE_DIVISORS}` has {} values, needed {}",
                divisors.len(),
                rope.rotated / 2
            );
            return Err(Fault::Damaged(problem));
        }
        if rope.scaling != RopeScaling::None {
            return Err(Fault::Unsupported {
                feature: format!("rotary scaling beside `{ROPE_DIVISORS}`"),
                remedy: "choose another model",
            });
        }
        if divisors.iter().any(|divisor| (divisor - 1.0).abs() > f32::EPSILON) {
            rope.scaling = RopeScaling::Divisors(divisors.to_vec());
        }
    }
    Ok(())
}

fn special_tokens(header: &Header, vocabulary: &GgufVocabulary) -> SpecialTokens {
    let token = |id: Option<u32>| {
        let id = id?;
        let text = vocabulary.tokens.get(id as usize).cloned();
        Some(SpecialToken { id: Some(id), text })
    };
    let end_of_message = header
        .get("tokenizer.ggml.eom_token_id")
        .and_then(Value::unsigned)
        .and_then(|id| u32::try_from(id).ok())
        .filter(|&id| (id as usize) < vocabulary.tokens.len());
    let mut eos = Vec::new();
    for end in [vocabulary.eos, vocabulary.end_of_turn, end_of_message] {
        if let Some(end) = token(end).filter(|end| !eos.contains(end)) {
            eos.push(end);
        }
    }
    SpecialTokens {
        bos: token(vocabulary.bos),
        eos,
        pad: token(vocabulary.pad),
        unknown: token(vocabulary.unknown),
    }
}

#[cfg(test)]
mod tests;
