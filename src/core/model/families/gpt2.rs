//! GPT-2: everything that transformers runs as `GPT2LMHeadModel`.

use super::common::{Heads, activation, decoder, layer_norm};
use super::{Family, GgufStyle};
use crate::model::architecture::{
    Activation, Architecture, AttentionSpec, LayerSpec, Mlp, Position, Qkv, Residual,
};
use crate::model::error::ModelError;
use crate::model::roles::{Names, Role};
use crate::model::settings::Settings;

pub(super) struct Gpt2;

static NAMES: [(Role, &str); 10] = [
    (Role::Embedding, "transformer.wte"),
    (Role::PositionEmbedding, "transformer.wpe"),
    (Role::AttentionNorm, "transformer.h.{}.ln_1"),
    (Role::Qkv, "transformer.h.{}.attn.c_attn"),
    (Role::Output, "transformer.h.{}.attn.c_proj"),
    (Role::MlpNorm, "transformer.h.{}.ln_2"),
    (Role::Up, "transformer.h.{}.mlp.c_fc"),
    (Role::Down, "transformer.h.{}.mlp.c_proj"),
    (Role::FinalNorm, "transformer.ln_f"),
    (Role::Head, "lm_head"),
];

impl Family for Gpt2 {
    fn name(&self) -> &'static str {
        "gpt2"
    }

    fn keys(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("hidden_size", "n_embd"),
            ("num_hidden_layers", "n_layer"),
            ("num_attention_heads", "n_head"),
            ("intermediate_size", "n_inner"),
            ("max_position_embeddings", "n_positions"),
            ("hidden_act", "activation_function"),
            ("layer_norm_eps", "layer_norm_epsilon"),
        ]
    }

    fn harmless(&self) -> &'static [&'static str] {
        &[".attn.bias", ".attn.masked_bias"]
    }

    fn gguf(&self) -> Option<GgufStyle> {
        Some(GgufStyle::plain("gpt2"))
    }

    /// As in transformers' `GPT2Config` and `modeling_gpt2.py`. `reorder_and_upcast_attn` only changes
    /// rounding in half precision.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let flag = |key, default| Ok::<_, ModelError>(settings.flag_if_any(key)?.unwrap_or(default));
        if flag("add_cross_attention", false)? {
            let remedy = "choose a model without an encoder";
            return Err(settings.unsupported("add_cross_attention", "attention to an encoder", remedy));
        }
        let heads = Heads::equal(settings)?;
        let positions = settings.size_if_any("max_position_embeddings")?.unwrap_or(1024);
        let norm = layer_norm(settings)?;
        let width = settings.size_if_any("intermediate_size")?;
        let layer = LayerSpec {
            residual: Residual::PreNorm,
            norm,
            attention: AttentionSpec {
                heads: heads.count,
                key_value_heads: heads.key_value,
                head_size: heads.size,
                qkv: Qkv::Fused,
                input_bias: true,
                output_bias: true,
                scale: if flag("scale_attn_weights", true)? { heads.scale() } else { 1.0 },
                position: Position::Embedded,
                head_norm: None,
                window: None,
                score_cap: None,
            },
            mlp: Mlp::Plain {
                activation: activation(settings, Activation::GeluTanh)?,
                width: width.unwrap_or(4 * settings.size("hidden_size")?),
                bias: true,
            },
        };
        let mut layers = vec![layer; settings.layers("num_hidden_layers")?];
        if flag("scale_attn_by_inverse_layer_idx", false)? {
            for (index, layer) in layers.iter_mut().enumerate() {
                layer.attention.scale /= (index + 1) as f64;
            }
        }
        let mut architecture = decoder(self.name(), Names(&NAMES), settings, positions, norm, layers)?;
        architecture.tied_head = flag("tie_word_embeddings", true)?;
        architecture.learned_positions = Some(positions);
        architecture.transposed = true;
        Ok(architecture)
    }
}
