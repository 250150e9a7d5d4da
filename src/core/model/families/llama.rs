//! LLaMA 1 to 3.3, SmolLM, SmolLM2, TinyLlama and all else that transformers runs as `LlamaForCausalLM`.

use super::{Family, GgufStyle};
use crate::model::architecture::{
    Activation, Architecture, AttentionSpec, LayerSpec, Mlp, Norm, Position, Qkv, Residual, RopeScaling,
    RopeSpec,
};
use crate::model::error::ModelError;
use crate::model::roles::{Names, Role};
use crate::model::settings::Settings;

pub(super) struct Llama;

static NAMES: [(Role, &str); 12] = [
    (Role::Embedding, "model.embed_tokens"),
    (Role::AttentionNorm, "model.layers.{}.input_layernorm"),
    (Role::Query, "model.layers.{}.self_attn.q_proj"),
    (Role::Key, "model.layers.{}.self_attn.k_proj"),
    (Role::Value, "model.layers.{}.self_attn.v_proj"),
    (Role::Output, "model.layers.{}.self_attn.o_proj"),
    (Role::MlpNorm, "model.layers.{}.post_attention_layernorm"),
    (Role::Gate, "model.layers.{}.mlp.gate_proj"),
    (Role::Up, "model.layers.{}.mlp.up_proj"),
    (Role::Down, "model.layers.{}.mlp.down_proj"),
    (Role::FinalNorm, "model.norm"),
    (Role::Head, "lm_head"),
];

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["llama"]
    }

    fn names(&self) -> &'static [(Role, &'static str)] {
        &NAMES
    }

    fn harmless(&self) -> &'static [&'static str] {
        &["rotary_emb.inv_freq"]
    }

    fn gguf(&self) -> GgufStyle {
        GgufStyle { name: "llama", permuted: true }
    }

    /// Defaults as transformers' `LlamaConfig`, except that sizes must be given.
    fn architecture(&self, settings: &Settings) -> Result<Architecture, ModelError> {
        let hidden = settings.size("hidden_size")?;
        let heads = settings.size("num_attention_heads")?;
        let head_size = match settings.size_if_any("head_dim")? {
            Some(head_size) => head_size,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(settings.wrong("num_attention_heads", &format!("must divide the width {hidden}")));
            }
        };
        let activation = match settings.text_if_any("hidden_act")? {
            None | Some("silu" | "swish") => Activation::Silu,
            Some(_) => {
                return Err(settings.unsupported(
                    "hidden_act",
                    "this activation",
                    "llama models use silu; choose another model",
                ));
            }
        };
        let attention_bias = settings.flag_if_any("attention_bias")?.unwrap_or(false);
        let norm = Norm::Rms { epsilon: settings.number_if_any("rms_norm_eps")?.unwrap_or(1e-6) };
        let layer = LayerSpec {
            residual: Residual::PreNorm,
            norm,
            attention: AttentionSpec {
                heads,
                key_value_heads: settings.size_if_any("num_key_value_heads")?.unwrap_or(heads),
                head_size,
                qkv: Qkv::Split,
                input_bias: attention_bias,
                output_bias: attention_bias,
                scale: (head_size as f64).sqrt().recip(),
                position: Position::Rotary(rope(settings, head_size)?),
                head_norm: None,
                window: None,
                score_cap: None,
            },
            mlp: Mlp::Gated {
                activation,
                width: settings.size("intermediate_size")?,
                bias: settings.flag_if_any("mlp_bias")?.unwrap_or(false),
            },
        };
        let architecture = Architecture {
            family: self.name(),
            names: Names(self.names()),
            vocabulary: settings.size("vocab_size")?,
            hidden,
            positions: settings.size_if_any("max_position_embeddings")?.unwrap_or(2048),
            layers: vec![layer; settings.layers("num_hidden_layers")?],
            final_norm: norm,
            tied_head: settings.flag_if_any("tie_word_embeddings")?.unwrap_or(false),
            head_bias: false,
            logit_cap: None,
            embedding_scale: None,
            learned_positions: None,
            transposed: false,
        };
        match architecture.contradiction() {
            Some((key, problem)) => Err(settings.wrong(key, problem)),
            None => Ok(architecture),
        }
    }
}

/// Transformers 4 has `rope_theta` beside an optional `rope_scaling`, transformers 5 has both in `rope_parameters`.
fn rope(settings: &Settings, head_size: usize) -> Result<RopeSpec, ModelError> {
    let section = match settings.section_if_any("rope_parameters")? {
        Some(section) => Some(section),
        None => settings.section_if_any("rope_scaling")?,
    };
    let (theta, partial) = match &section {
        Some(section) => {
            (section.number_if_any("rope_theta")?, section.number_if_any("partial_rotary_factor")?)
        }
        None => (None, None),
    };
    let theta = match theta {
        Some(theta) => theta,
        None => settings.number_if_any("rope_theta")?.unwrap_or(10_000.0),
    };
    if partial
        .or(settings.number_if_any("partial_rotary_factor")?)
        .is_some_and(|share| (share - 1.0).abs() > f64::EPSILON)
    {
        return Err(settings.unsupported(
            "partial_rotary_factor",
            "partial rotary embedding in a llama model",
            "choose another model",
        ));
    }
    let scaling = match &section {
        Some(section) => rope_scaling(settings, section)?,
        None => RopeScaling::None,
    };
    Ok(RopeSpec { theta, rotated: head_size, scaling })
}

fn rope_scaling(settings: &Settings, section: &Settings) -> Result<RopeScaling, ModelError> {
    let required = |key| section.number_if_any(key)?.ok_or_else(|| section.wrong(key, "is missing"));
    let key = if section.get("rope_type").is_some() { "rope_type" } else { "type" };
    match section.text_if_any(key)? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: required("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: required("factor")?,
            low_frequency_factor: required("low_freq_factor")?,
            high_frequency_factor: required("high_freq_factor")?,
            original_positions: match section.size_if_any("original_max_position_embeddings")? {
                Some(positions) => positions,
                None => settings.size("max_position_embeddings")?,
            },
        }),
        Some(_) => Err(section.unsupported(
            key,
            "this kind of rotary scaling",
            "llama models may have default, linear or llama3; choose another model",
        )),
    }
}
