//! Gemma 3, text only: everything that transformers runs as `Gemma3ForCausalLM` (arXiv 2503.19786).

use serde_json::{Value, json};

use super::common::{Heads, decoder, windows};
use super::gemma2::{finish, gemma_layer, query_scalar};
use super::rope::Frame;
use super::{Family, GgufStyle, GgufWindows};
use crate::model::architecture::{Architecture, Position};
use crate::model::error::ModelError;
use crate::model::roles::{Names, Role};
use crate::model::settings::Settings;

pub(super) struct Gemma3;

static NAMES: [(Role, &str); 16] = [
    (Role::Embedding, "model.embed_tokens"),
    (Role::AttentionNorm, "model.layers.{}.input_layernorm"),
    (Role::Query, "model.layers.{}.self_attn.q_proj"),
    (Role::Key, "model.layers.{}.self_attn.k_proj"),
    (Role::Value, "model.layers.{}.self_attn.v_proj"),
    (Role::QueryNorm, "model.layers.{}.self_attn.q_norm"),
    (Role::KeyNorm, "model.layers.{}.self_attn.k_norm"),
    (Role::Output, "model.layers.{}.self_attn.o_proj"),
    (Role::PostAttentionNorm, "model.layers.{}.post_attention_layernorm"),
    (Role::MlpNorm, "model.layers.{}.pre_feedforward_layernorm"),
    (Role::Gate, "model.layers.{}.mlp.gate_proj"),
    (Role::Up, "model.layers.{}.mlp.up_proj"),
    (Role::Down, "model.layers.{}.mlp.down_proj"),
    (Role::PostMlpNorm, "model.layers.{}.post_feedforward_layernorm"),
    (Role::FinalNorm, "model.norm"),
    (Role::Head, "lm_head"),
];

impl Family for Gemma3 {
    fn name(&self) -> &'static str {
        "gemma3"
    }

    fn model_type(&self) -> &'static str {
        "gemma3_text"
    }

    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &[("hidden_act", "hidden_activation")]
    }

    fn gguf(&self) -> Option<GgufStyle> {
        Some(GgufStyle { windows: GgufWindows::Some, local_rope: true, ..GgufStyle::plain("gemma3") })
    }

    /// Without a window size no layer has a window; by default every sixth layer has none.
    fn gguf_values(
        &self,
        settings: &Settings,
        _has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<(&'static str, Value)>, ModelError> {
        // The model with 62 layers is the 27B (`src/models/gemma3.cpp`).
        let mut values = vec![("query_pre_attn_scalar", query_scalar(settings, 62)?)];
        if settings.get("sliding_window").is_none() {
            let layers = settings.layers("num_hidden_layers")?;
            values.push(("layer_types", json!(vec!["full_attention"; layers])));
        }
        Ok(values)
    }

    /// As in transformers' `Gemma3TextConfig` and `modeling_gemma3.py`: a norm on each query and key head,
    /// and usually five layers with a window and their own rotary embedding for each layer without a window.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        if settings.get("attn_logit_softcapping").is_some() {
            let (key, remedy) = ("attn_logit_softcapping", "choose another model");
            return Err(settings.unsupported(key, "a soft cap on the scores of a gemma3 model", remedy));
        }
        let heads = Heads::read(settings, Some(4), Some(256))?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(131_072);
        let (full, windowed) = Frame::whole(heads.size, positions).read_by_layer_type(settings)?;
        let mut layer = gemma_layer(settings, heads, Position::Rotary(full))?;
        layer.attention.head_norm = Some(layer.norm);
        let window = settings.size_or("sliding_window", 4096)?;
        let period = settings.size_if_any("sliding_window_pattern")?.unwrap_or(6);
        let count = settings.layers("num_hidden_layers")?;
        let windows = windows(settings, count, window, |layer| !(layer + 1).is_multiple_of(period))?;
        let with_window = |window: Option<usize>| {
            let mut layer = layer.clone();
            if window.is_some() {
                layer.attention.position = Position::Rotary(windowed.clone());
            }
            layer.attention.window = window;
            layer
        };
        let layers = windows.into_iter().map(with_window).collect();
        let mut architecture = decoder(self.name(), Names(&NAMES), settings, positions, layer.norm, layers)?;
        finish(settings, &mut architecture, None)?;
        Ok(architecture)
    }
}
