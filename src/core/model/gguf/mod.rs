//! Reads a base model in one GGUF file.

mod header;
mod rope;
mod settings;
mod value;
mod vocabulary;
#[cfg(test)]
pub(in crate::model) mod writer;

use crate::text::Shown;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use indexmap::IndexMap;

use super::architecture::{Architecture, Norm, Parameter};
use super::error::ModelError;
use super::families::{self, Family, GgufRows, GgufStyle};
use super::roles::Role;
use super::tensors::{self, Found};
use super::{
    Arrangement, GgufVocabulary, ModelFiles, ModelKind, SpecialToken, SpecialTokens, TensorEntry,
    TokenizerSource, files, fingerprint,
};
use header::Header;
use rope::Divisors;
use value::Value;

pub(super) fn open(path: &Path) -> Result<ModelFiles, ModelError> {
    let (file, size) = files::open(path)?;
    let mut file = BufReader::with_capacity(1 << 16, file);
    let mut header = Header::read(&mut file, size).map_err(|fault| fault.at(path))?;
    let (family, style) = family(path, &header)?;
    let architecture = architecture(path, &mut file, &header, family, style)?;
    let found = header.tensors.iter().filter(|tensor| !Divisors::are(&tensor.name));
    let found = found.map(|tensor| {
        let (shape, storage) = (tensor.shape.clone(), Ok(tensor.storage));
        let (offset, bytes) = (tensor.offset, tensor.bytes);
        (tensor.name.clone(), Found { shape, storage, file: 0, offset, bytes })
    });
    let found: IndexMap<_, _> = found.collect();
    let files = vec![path.to_owned()];
    let names = family.gguf_names(&architecture);
    let in_file = |Parameter { role, layer, part, .. }: &Parameter| {
        let layer = layer.unwrap_or(0);
        let module = names.module(*role, layer).unwrap_or_else(|| role.gguf_module(layer));
        format!("{module}.{}", part.suffix())
    };
    let mut tensors = tensors::assign(path, &files, &architecture, found, family.harmless(), in_file)?;
    arrange(&architecture, style.rows, &mut tensors);
    let vocabulary =
        GgufVocabulary::read(&mut header, architecture.vocabulary).map_err(|fault| fault.at(path))?;
    let template = |key: &str| header.get(key).and_then(Value::text).map(str::to_owned);
    let chat_template = template("tokenizer.chat_template");
    let tool_template = template("tokenizer.chat_template.tool_use");
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
        tool_template,
        fingerprint,
    })
}

/// The architecture as stored, from metadata and the tensors present.
fn architecture(
    path: &Path,
    file: &mut BufReader<File>,
    header: &Header,
    family: &dyn Family,
    style: GgufStyle,
) -> Result<Architecture, ModelError> {
    let settings = settings::read(path, header, family, style)?;
    let mut architecture = families::build(family, &settings)?;
    let epsilon = if architecture.final_norm.has_bias() { "layer_norm_eps" } else { "rms_norm_eps" };
    if settings.get(epsilon).is_none() {
        return Err(settings.wrong(epsilon, "is missing"));
    }
    let divisors = Divisors::read(file, header).map_err(|fault| fault.at(path))?;
    rope::scale(&mut architecture, style, &settings, &divisors)?;
    // The converter transposes GPT-2's weights, and adds the one to the weights of Gemma's norms.
    architecture.transposed = false;
    let layers = architecture.layers.iter_mut();
    let norms = layers.flat_map(|layer| [Some(&mut layer.norm), layer.attention.head_norm.as_mut()]);
    for norm in norms.flatten().chain([&mut architecture.final_norm]) {
        if let Norm::RmsPlusOne { epsilon } = *norm {
            *norm = Norm::Rms { epsilon };
        }
    }
    Ok(architecture)
}

/// Sets the arrangement of weights whose rows have another order than in the architecture.
fn arrange(architecture: &Architecture, rows: GgufRows, tensors: &mut IndexMap<String, TensorEntry>) {
    for Parameter { name, role, layer, .. } in architecture.parameters() {
        let Some(attention) = layer.map(|layer| &architecture.layers[layer].attention) else { continue };
        let (heads, groups) = (attention.heads, attention.key_value_heads);
        let arrangement = match (rows, role) {
            (GgufRows::RotaryPairs, Role::Query) => Arrangement::RotaryPairs { heads },
            (GgufRows::RotaryPairs, Role::Key) => Arrangement::RotaryPairs { heads: groups },
            // With one group the order is the same.
            (GgufRows::ByPart, Role::Qkv) if groups > 1 => {
                Arrangement::ByPart { groups, shared: heads / groups }
            }
            _ => continue,
        };
        if let Some(entry) = tensors.get_mut(&name) {
            entry.arrangement = arrangement;
        }
    }
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
