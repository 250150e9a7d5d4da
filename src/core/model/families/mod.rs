//! The model families Luthier knows. A family is data: it says what a checkpoint is, never how to run it.
//!
//! Dropout that a configuration names (`attention_dropout`, `resid_pdrop` …) belongs to pre-training and is not applied:
//! `method.dropout` is what a run here has. All else that changes the computation is either run or refused by name.

mod common;
mod falcon;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod llama;
mod mistral;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;

use serde_json::Value;

use super::architecture::Architecture;
use super::error::ModelError;
use super::roles::Names;
use super::settings::Settings;
use crate::text::Shown;
pub(super) use rope::ROTATED;

/// What a family's checkpoints are.
pub trait Family: Sync {
    /// Its name in screens and reports.
    fn name(&self) -> &'static str;

    /// The `model_type` in `config.json` that means it.
    fn model_type(&self) -> &'static str {
        self.name()
    }

    /// Keys of its `config.json` that are not the usual ones: pairs of the usual key and its own.
    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Modules with another name in files, and in adapters made with transformers 4: pairs of the name in memory and that
    /// one.
    fn older_names(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Ends of tensor names that old checkpoints carry and nothing reads.
    fn harmless(&self) -> &'static [&'static str] {
        &[".rotary_emb.inv_freq"]
    }

    /// How llama.cpp stores it, if under a name of its own.
    fn gguf(&self) -> Option<GgufStyle>;

    /// Module names in GGUF that are not those of [`super::roles::Role::gguf_template`].
    fn gguf_names(&self, _architecture: &Architecture) -> Names {
        Names(&[])
    }

    /// What llama.cpp knows of the family without a key, or by the presence of a tensor, under the usual keys; `settings`
    /// has what stands in the file.
    fn gguf_values(
        &self,
        _settings: &Settings,
        _has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<(&'static str, Value)>, ModelError> {
        Ok(Vec::new())
    }

    /// Its architecture by settings under the usual keys. Defaults are those of transformers 5.23, except that sizes must
    /// be given.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError>;
}

/// How llama.cpp stores a family (`conversion/` and `src/models/` of llama.cpp).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufStyle {
    /// `general.architecture`.
    pub name: &'static str,
    /// How rows of query, key and value projections lie.
    pub rows: GgufRows,
    /// Which layers have a window.
    pub windows: GgufWindows,
    /// Whether layers with a window have a rotary embedding of their own, which is never scaled.
    pub local_rope: bool,
}

/// How rows of query, key and value projections lie in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufRows {
    /// As the architecture has them.
    Same,
    /// See [`super::Arrangement::RotaryPairs`].
    RotaryPairs,
    /// See [`super::Arrangement::ByPart`].
    ByPart,
}

/// Which layers of a family llama.cpp gives the window of `attention.sliding_window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufWindows {
    /// None.
    None,
    /// All.
    All,
    /// Those of `attention.sliding_window_pattern`, without it those that the family says.
    Some,
}

impl GgufStyle {
    /// Rows as the architecture has them, no windows.
    const fn plain(name: &'static str) -> Self {
        Self { name, rows: GgufRows::Same, windows: GgufWindows::None, local_rope: false }
    }
}

static FAMILIES: [&dyn Family; 11] = [
    &llama::Llama,
    &mistral::Mistral,
    &qwen2::Qwen2,
    &qwen3::Qwen3,
    &phi::Phi,
    &phi3::Phi3,
    &falcon::Falcon,
    &gemma2::Gemma2,
    &gemma3::Gemma3,
    &gpt_neox::GptNeox,
    &gpt2::Gpt2,
];

/// The family of a `config.json`, and its architecture.
pub fn of_config(settings: &Settings) -> Result<(&'static dyn Family, Architecture), ModelError> {
    let found =
        settings.text_if_any("model_type")?.ok_or_else(|| settings.wrong("model_type", "is missing"))?;
    let Some(&family) = FAMILIES.iter().find(|family| family.model_type() == found) else {
        let supported = FAMILIES.iter().map(|family| family.model_type()).collect();
        let (file, found) = (settings.file().into(), Shown::new(found));
        return Err(ModelError::UnknownArchitecture { file, found, supported });
    };
    if settings.section_if_any("per_layer_config")?.is_some_and(|layers| !layers.is_empty()) {
        let remedy = "choose another model";
        return Err(settings.unsupported("per_layer_config", "settings of single layers", remedy));
    }
    Ok((family, build(family, &settings.renamed(family.keys()))?))
}

/// [`Family::older_names`] of the family of this [`Family::name`].
pub fn older_names(family: &str) -> &'static [(&'static str, &'static str)] {
    FAMILIES.iter().find(|known| known.name() == family).map_or(&[], |known| known.older_names())
}

/// The name of a tensor, or of its module, with the module that `from` names under the name `to`; `None` where it is of
/// another module.
pub fn under_name(name: &str, from: &str, to: &str) -> Option<String> {
    let rest = name.strip_prefix(from)?;
    (rest.is_empty() || rest.starts_with('.')).then(|| format!("{to}{rest}"))
}

/// The family of a GGUF file, by its `general.architecture`; else the names that would be known.
pub fn of_gguf(name: &str) -> Result<(&'static dyn Family, GgufStyle), Vec<&'static str>> {
    let styles = || FAMILIES.iter().filter_map(|&family| Some((family, family.gguf()?)));
    let found = styles().find(|(_, style)| style.name == name);
    found.ok_or_else(|| styles().map(|(_, style)| style.name).collect())
}

/// The architecture by settings under the usual keys, free of contradictions.
pub fn build(family: &dyn Family, settings: &Settings) -> Result<Architecture, ModelError> {
    let architecture = family.architecture(settings)?;
    match architecture.contradiction() {
        Some((key, problem)) => Err(settings.wrong(key, problem)),
        None => Ok(architecture),
    }
}

#[cfg(test)]
mod tests;
