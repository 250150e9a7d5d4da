//! Parts of a configuration that many families share.

use crate::model::architecture::{
    Activation, Architecture, AttentionSpec, LayerSpec, Mlp, Norm, Position, Qkv, Residual,
};
use crate::model::error::ModelError;
use crate::model::roles::Names;
use crate::model::settings::Settings;

/// The heads of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// Number of query heads.
    pub(super) count: usize,
    /// Number of key-value heads.
    pub(super) key_value: usize,
    /// Dimensions of a head.
    pub(super) size: usize,
}

impl Heads {
    /// Reads the number and size of heads. `key_value` and `size` are the family's defaults for absent keys.
    /// Without them, and if `num_key_value_heads` is `null`, there are as many key-value heads as query
    /// heads, and they share the width.
    pub(super) fn read(
        settings: &Settings,
        key_value: Option<usize>,
        size: Option<usize>,
    ) -> Result<Self, ModelError> {
        let count = settings.size("num_attention_heads")?;
        let key_value = match key_value {
            Some(default) => settings.size_or("num_key_value_heads", default)?,
            None => settings.size_if_any("num_key_value_heads")?,
        };
        let size = match settings.size_if_any("head_dim")?.or(size) {
            Some(size) => size,
            None => shared(settings, count)?,
        };
        Ok(Self { count, key_value: key_value.unwrap_or(count), size })
    }

    /// As many key-value heads as query heads, which share the width.
    pub(super) fn equal(settings: &Settings) -> Result<Self, ModelError> {
        let count = settings.size("num_attention_heads")?;
        Ok(Self { count, key_value: count, size: shared(settings, count)? })
    }

    /// The usual factor on query · key.
    pub(super) fn scale(self) -> f64 {
        (self.size as f64).sqrt().recip()
    }
}

/// The size of each of `heads` heads that share the width.
fn shared(settings: &Settings, heads: usize) -> Result<usize, ModelError> {
    let hidden = settings.size("hidden_size")?;
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    Err(settings.wrong("num_attention_heads", &format!("must divide the width {hidden}")))
}

/// The activation by the names of transformers (`activations.py`); the tanh approximations of GELU differ
/// only by rounding.
pub(super) fn activation(settings: &Settings, default: Activation) -> Result<Activation, ModelError> {
    Ok(match settings.text_if_any("hidden_act")? {
        None => default,
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu" | "gelu_python") => Activation::Gelu,
        Some("gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh") => {
            Activation::GeluTanh
        }
        Some("relu") => Activation::Relu,
        Some(_) => {
            let remedy =
                "supported are silu, gelu, gelu_new, gelu_pytorch_tanh and relu; choose another model";
            return Err(settings.unsupported("hidden_act", "this activation", remedy));
        }
    })
}

/// The norm with `rms_norm_eps`.
pub(super) fn rms(settings: &Settings, epsilon: f64) -> Result<Norm, ModelError> {
    Ok(Norm::Rms { epsilon: settings.number_if_any("rms_norm_eps")?.unwrap_or(epsilon) })
}

/// The norm with `layer_norm_eps`.
pub(super) fn layer_norm(settings: &Settings) -> Result<Norm, ModelError> {
    Ok(Norm::Layer { epsilon: settings.number_if_any("layer_norm_eps")?.unwrap_or(1e-5) })
}

/// The layer of LLaMA, from which many families differ little: RMS norms before both parts, separate
/// projections without biases, a gated feed-forward part.
pub(super) fn gated_layer(
    settings: &Settings,
    heads: Heads,
    norm: Norm,
    activation: Activation,
    position: Position,
) -> Result<LayerSpec, ModelError> {
    Ok(LayerSpec {
        residual: Residual::PreNorm,
        norm,
        attention: AttentionSpec {
            heads: heads.count,
            key_value_heads: heads.key_value,
            head_size: heads.size,
            qkv: Qkv::Split,
            input_bias: false,
            output_bias: false,
            scale: heads.scale(),
            position,
            head_norm: None,
            window: None,
            score_cap: None,
        },
        mlp: Mlp::Gated { activation, width: settings.size("intermediate_size")?, bias: false },
    })
}

/// The window of each layer. `layer_types` decides which layers have one; without it `is_windowed` does.
pub(super) fn windows(
    settings: &Settings,
    layers: usize,
    window: Option<usize>,
    is_windowed: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ModelError> {
    let kinds = settings.texts_if_any("layer_types")?;
    if kinds.as_ref().is_some_and(|kinds| kinds.len() != layers) {
        return Err(settings.wrong("layer_types", &format!("must name {layers} layers")));
    }
    let windowed = |layer: usize| match kinds.as_ref().map(|kinds| kinds[layer].as_str()) {
        None => Ok(is_windowed(layer)),
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        Some(_) => Err(settings.unsupported(
            "layer_types",
            "layers of another kind than full_attention and sliding_attention",
            "choose another model",
        )),
    };
    let window = |layer: usize| match (windowed(layer)?, window) {
        (false, _) => Ok(None),
        (true, Some(window)) => Ok(Some(window)),
        (true, None) => {
            Err(settings.wrong("sliding_window", "is missing, but there are layers with a window"))
        }
    };
    (0..layers).map(window).collect()
}

/// A decoder with these layers and without the options of single families. The final norm is that of the
/// layers.
pub(super) fn decoder(
    family: &'static str,
    names: Names,
    settings: &Settings,
    positions: usize,
    norm: Norm,
    layers: Vec<LayerSpec>,
) -> Result<Architecture, ModelError> {
    Ok(Architecture {
        family,
        names,
        vocabulary: settings.size("vocab_size")?,
        hidden: settings.size("hidden_size")?,
        positions,
        layers,
        final_norm: norm,
        tied_head: false,
        head_bias: false,
        logit_cap: None,
        embedding_scale: None,
        learned_positions: None,
        transposed: false,
    })
}
