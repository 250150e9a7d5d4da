//! Mistral 7B, Nemo, Small and everything else that transformers runs as `MistralForCausalLM`.

use super::common::{Heads, activation, decoder, gated_layer, rms};
use super::llama::NAMES;
use super::rope::Frame;
use super::{Family, GgufStyle};
use crate::model::architecture::{Activation, Architecture, Position};
use crate::model::error::ModelError;
use crate::model::roles::Names;
use crate::model::settings::Settings;

pub(super) struct Mistral;

impl Family for Mistral {
    fn name(&self) -> &'static str {
        "mistral"
    }

    /// In GGUF, Mistral's models are `llama`, without their window.
    fn gguf(&self) -> Option<GgufStyle> {
        None
    }

    /// As in transformers' `MistralConfig` and `modeling_mistral.py`: LLaMA without biases, with one window
    /// for all layers.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let heads = Heads::read(settings, Some(8), None)?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(131_072);
        let rope = Frame::whole(heads.size, positions).read(settings)?;
        let norm = rms(settings, 1e-6)?;
        let activation = activation(settings, Activation::Silu)?;
        let mut layer = gated_layer(settings, heads, norm, activation, Position::Rotary(rope))?;
        layer.attention.window = settings.size_or("sliding_window", 4096)?;
        if settings.get("layer_types").is_some() && layer.attention.window.is_some() {
            return Err(settings.unsupported(
                "layer_types",
                "a window in some layers of a mistral model",
                "choose another model",
            ));
        }
        let layers = vec![layer; settings.layers("num_hidden_layers")?];
        let mut architecture = decoder(self.name(), Names(&NAMES), settings, positions, norm, layers)?;
        architecture.tied_head = settings.flag_if_any("tie_word_embeddings")?.unwrap_or(false);
        Ok(architecture)
    }
}
