//! Phi 1, 1.5 and 2: everything that transformers runs as `PhiForCausalLM`.

use super::common::{Heads, activation, decoder, layer_norm};
use super::rope::Frame;
use super::{Family, GgufStyle};
use crate::model::architecture::{
    Activation, Architecture, AttentionSpec, LayerSpec, Mlp, Position, Qkv, Residual,
};
use crate::model::error::ModelError;
use crate::model::roles::{Names, Role};
use crate::model::settings::Settings;

pub(super) struct Phi;

static NAMES: [(Role, &str); 12] = [
    (Role::Embedding, "model.embed_tokens"),
    (Role::AttentionNorm, "model.layers.{}.input_layernorm"),
    (Role::Query, "model.layers.{}.self_attn.q_proj"),
    (Role::Key, "model.layers.{}.self_attn.k_proj"),
    (Role::Value, "model.layers.{}.self_attn.v_proj"),
    (Role::QueryNorm, "model.layers.{}.self_attn.q_layernorm"),
    (Role::KeyNorm, "model.layers.{}.self_attn.k_layernorm"),
    (Role::Output, "model.layers.{}.self_attn.dense"),
    (Role::Up, "model.layers.{}.mlp.fc1"),
    (Role::Down, "model.layers.{}.mlp.fc2"),
    (Role::FinalNorm, "model.final_layernorm"),
    (Role::Head, "lm_head"),
];

impl Family for Phi {
    fn name(&self) -> &'static str {
        "phi"
    }

    fn gguf(&self) -> Option<GgufStyle> {
        Some(GgufStyle::plain("phi2"))
    }

    /// As in transformers' `PhiConfig` and `modeling_phi.py`: attention and feed-forward part in parallel
    /// after one norm, biases everywhere, including the head.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let heads = Heads::read(settings, None, None)?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(2048);
        let rope = Frame { share: Some(0.5), ..Frame::whole(heads.size, positions) }.read(settings)?;
        let norm = layer_norm(settings)?;
        let has_head_norm = settings.flag_if_any("qk_layernorm")?.unwrap_or(false);
        if settings.flag_if_any("tie_word_embeddings")?.unwrap_or(false) {
            let remedy = "choose another model";
            return Err(settings.unsupported("tie_word_embeddings", "a tied head with a bias", remedy));
        }
        let layer = LayerSpec {
            residual: Residual::Parallel { shared_norm: true },
            norm,
            attention: AttentionSpec {
                heads: heads.count,
                key_value_heads: heads.key_value,
                head_size: heads.size,
                qkv: Qkv::Split,
                input_bias: true,
                output_bias: true,
                scale: heads.scale(),
                position: Position::Rotary(rope),
                head_norm: has_head_norm.then_some(norm),
                window: None,
                score_cap: None,
            },
            mlp: Mlp::Plain {
                activation: activation(settings, Activation::GeluTanh)?,
                width: settings.size("intermediate_size")?,
                bias: true,
            },
        };
        let layers = vec![layer; settings.layers("num_hidden_layers")?];
        let mut architecture = decoder(self.name(), Names(&NAMES), settings, positions, norm, layers)?;
        architecture.head_bias = true;
        Ok(architecture)
    }
}
