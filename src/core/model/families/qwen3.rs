//! Qwen 3, dense: everything that transformers runs as `Qwen3ForCausalLM`.

use super::common::{Heads, activation, decoder, gated_layer, rms};
use super::qwen2::windowed;
use super::rope::Frame;
use super::{Family, GgufStyle};
use crate::model::architecture::{Activation, Architecture, Position};
use crate::model::error::ModelError;
use crate::model::roles::{Names, Role};
use crate::model::settings::Settings;

pub(super) struct Qwen3;

static NAMES: [(Role, &str); 14] = [
    (Role::Embedding, "model.embed_tokens"),
    (Role::AttentionNorm, "model.layers.{}.input_layernorm"),
    (Role::Query, "model.layers.{}.self_attn.q_proj"),
    (Role::Key, "model.layers.{}.self_attn.k_proj"),
    (Role::Value, "model.layers.{}.self_attn.v_proj"),
    (Role::QueryNorm, "model.layers.{}.self_attn.q_norm"),
    (Role::KeyNorm, "model.layers.{}.self_attn.k_norm"),
    (Role::Output, "model.layers.{}.self_attn.o_proj"),
    (Role::MlpNorm, "model.layers.{}.post_attention_layernorm"),
    (Role::Gate, "model.layers.{}.mlp.gate_proj"),
    (Role::Up, "model.layers.{}.mlp.up_proj"),
    (Role::Down, "model.layers.{}.mlp.down_proj"),
    (Role::FinalNorm, "model.norm"),
    (Role::Head, "lm_head"),
];

impl Family for Qwen3 {
    fn name(&self) -> &'static str {
        "qwen3"
    }

    fn gguf(&self) -> Option<GgufStyle> {
        Some(GgufStyle::plain("qwen3"))
    }

    /// As in transformers' `Qwen3Config` and `modeling_qwen3.py`: LLaMA with a norm on each query and key
    /// head.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let heads = Heads::read(settings, Some(32), Some(128))?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(32_768);
        let rope = Frame::whole(heads.size, positions).read(settings)?;
        let norm = rms(settings, 1e-6)?;
        let activation = activation(settings, Activation::Silu)?;
        let mut layer = gated_layer(settings, heads, norm, activation, Position::Rotary(rope))?;
        layer.attention.head_norm = Some(norm);
        let bias = settings.flag_if_any("attention_bias")?.unwrap_or(false);
        layer.attention.input_bias = bias;
        layer.attention.output_bias = bias;
        let layers = windowed(settings, &layer)?;
        let mut architecture = decoder(self.name(), Names(&NAMES), settings, positions, norm, layers)?;
        architecture.tied_head = settings.flag_if_any("tie_word_embeddings")?.unwrap_or(false);
        Ok(architecture)
    }
}
