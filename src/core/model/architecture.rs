//! What a decoder is made of, as plain values. Variation points are closed enums, so that code that runs or measures a
//! model fails to compile where it does not handle a new one.

use serde::Serialize;

use super::LinearModule;
use super::roles::{Names, Part, Role};

/// A decoder-only language model. Built by a [`super::families::Family`], which refuses what
/// [`Architecture::contradiction`] finds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Architecture {
    /// The family's name, e.g. `llama`.
    pub family: &'static str,
    /// Hugging Face module names by role.
    #[serde(skip)]
    pub names: Names,
    /// Rows of the embedding and of the head.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Longest context the model was made for, in tokens.
    pub positions: usize,
    /// First to last.
    pub layers: Vec<LayerSpec>,
    /// The norm between the last layer and the head.
    pub final_norm: Norm,
    /// Whether the head is the embedding, so that no head is stored.
    pub tied_head: bool,
}

/// One layer: attention and feed-forward part around a residual stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSpec {
    /// How the two parts join the residual stream.
    pub residual: Residual,
    /// The norms before both parts.
    pub norm: Norm,
    /// Self-attention.
    pub attention: AttentionSpec,
    /// Feed-forward part.
    pub mlp: Mlp,
}

/// How attention and feed-forward part join the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
    PreNorm,
}

/// Normalisation over the last dimension.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// `weight · x / sqrt(mean(x²) + epsilon)`, statistics in f32, rounded to the input's type before the product with
    /// `weight` (`LlamaRMSNorm`).
    Rms {
        /// Added to the mean square.
        epsilon: f64,
    },
}

/// Causal self-attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub key_value_heads: usize,
    /// Width of a head; `heads × head_size` need not be the hidden width.
    pub head_size: usize,
    /// How query, key and value are stored.
    pub qkv: Qkv,
    /// Whether query, key and value projections have a bias.
    pub input_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Factor on query · key.
    pub scale: f64,
    /// Rotary position embedding.
    pub rope: RopeSpec,
}

/// How query, key and value projections are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Qkv {
    /// Three matrices.
    Split,
}

/// Rotary position embedding in the rotate-half form: dimension `i` is paired with `i + rotated/2` within a head.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeSpec {
    /// Base of the frequencies: `theta^(-2i / rotated)`.
    pub theta: f64,
    /// Leading dimensions of a head that are rotated; even.
    pub rotated: usize,
    /// How the frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for longer contexts (transformers' `modeling_rope_utils.py`).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Each frequency divided by `factor`.
    Linear {
        /// ≥ 1.
        factor: f64,
    },
    /// Wavelengths beyond `original_positions / low_frequency_factor` are divided by `factor`, those below
    /// `original_positions / high_frequency_factor` kept, the rest interpolated (LLaMA 3.1).
    Llama3 {
        /// ≥ 1.
        factor: f64,
        /// Positive, below `high_frequency_factor`.
        low_frequency_factor: f64,
        /// Above `low_frequency_factor`.
        high_frequency_factor: f64,
        /// Context length of pre-training.
        original_positions: usize,
    },
    /// Frequency `i` divided by `divisors[i]`, `rotated / 2` of them: GGUF stores the result of the LLaMA 3 rule so.
    Divisors(Vec<f32>),
}

/// Feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// `down(activation(gate(x)) · up(x))`
    Gated {
        /// On the gate.
        activation: Activation,
        /// Width between up and down.
        width: usize,
        /// Whether all three have a bias.
        bias: bool,
    },
}

/// Pointwise nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
}

/// A tensor the architecture needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Hugging Face tensor name.
    pub name: String,
    /// What its module is for.
    pub role: Role,
    /// Its layer, for roles that each layer has.
    pub layer: Option<usize>,
    /// Weight or bias.
    pub part: Part,
    /// Row-major, as torch; a linear weight is `[out, in]`.
    pub shape: Vec<usize>,
}

impl AttentionSpec {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Width of all key (or value) heads together.
    pub fn key_value_width(&self) -> usize {
        self.key_value_heads * self.head_size
    }
}

impl LayerSpec {
    fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        let AttentionSpec { heads, key_value_heads, head_size, rope, .. } = &self.attention;
        if !heads.is_multiple_of(*key_value_heads) {
            return Some(("num_key_value_heads", "must divide the number of attention heads"));
        }
        if !head_size.is_multiple_of(2) {
            return Some(("head_dim", "must be even, since rotary embedding works on pairs"));
        }
        rope.contradiction().or_else(|| self.norm.contradiction())
    }
}

impl Norm {
    fn contradiction(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Rms { epsilon } if epsilon <= 0.0 => Some(("rms_norm_eps", "must be above 0")),
            Self::Rms { .. } => None,
        }
    }
}

impl RopeSpec {
    fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        if self.theta <= 0.0 {
            return Some(("rope_theta", "must be above 0"));
        }
        match &self.scaling {
            RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } if *factor < 1.0 => {
                Some(("factor", "must be at least 1"))
            }
            RopeScaling::Llama3 { low_frequency_factor: low, high_frequency_factor: high, .. }
                if *low <= 0.0 || high <= low =>
            {
                Some(("high_freq_factor", "must be above `low_freq_factor`, and both above 0"))
            }
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Divisors(_) => None,
        }
    }
}

impl Architecture {
    /// The module's Hugging Face name without `.weight`; `None` where the family has no such module.
    pub fn module(&self, role: Role, layer: usize) -> Option<String> {
        self.names.module(role, layer)
    }

    /// The first value that contradicts another, as its Hugging Face configuration key and what is wrong with it.
    pub fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        self.layers.iter().find_map(LayerSpec::contradiction).or_else(|| self.final_norm.contradiction())
    }

    /// Every tensor the architecture needs, embedding first; a tied head has none.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        let mut add = |role: Role, layer: usize, shape: &[usize], bias: bool| {
            let Some(module) = self.module(role, layer) else { return };
            let layer = role.is_per_layer().then_some(layer);
            let mut part = |part: Part, shape: &[usize]| {
                let name = format!("{module}.{}", part.suffix());
                parameters.push(Parameter { name, role, layer, part, shape: shape.to_vec() });
            };
            part(Part::Weight, shape);
            if bias {
                part(Part::Bias, &shape[..1]);
            }
        };
        add(Role::Embedding, 0, &[self.vocabulary, self.hidden], false);
        for (index, layer) in self.layers.iter().enumerate() {
            let LayerSpec { residual, norm, attention, mlp } = layer;
            let (query, key_value) = (attention.query_width(), attention.key_value_width());
            match (residual, norm) {
                (Residual::PreNorm, Norm::Rms { .. }) => {
                    add(Role::AttentionNorm, index, &[self.hidden], false);
                    add(Role::MlpNorm, index, &[self.hidden], false);
                }
            }
            match attention.qkv {
                Qkv::Split => {
                    add(Role::Query, index, &[query, self.hidden], attention.input_bias);
                    add(Role::Key, index, &[key_value, self.hidden], attention.input_bias);
                    add(Role::Value, index, &[key_value, self.hidden], attention.input_bias);
                }
            }
            add(Role::Output, index, &[self.hidden, query], attention.output_bias);
            match *mlp {
                Mlp::Gated { width, bias, .. } => {
                    add(Role::Gate, index, &[width, self.hidden], bias);
                    add(Role::Up, index, &[width, self.hidden], bias);
                    add(Role::Down, index, &[self.hidden, width], bias);
                }
            }
        }
        match self.final_norm {
            Norm::Rms { .. } => add(Role::FinalNorm, 0, &[self.hidden], false),
        }
        if !self.tied_head {
            add(Role::Head, 0, &[self.vocabulary, self.hidden], false);
        }
        parameters
    }

    /// All linear layers, layer by layer, the head last (also a tied one).
    pub fn linear_modules(&self) -> Vec<LinearModule> {
        let tied_head = self.tied_head.then_some([self.vocabulary, self.hidden]);
        let tied_head = tied_head.and_then(|[out_features, in_features]| {
            let name = self.module(Role::Head, 0)?;
            Some(LinearModule { name, role: Role::Head, layer: None, in_features, out_features })
        });
        self.parameters()
            .into_iter()
            .filter(|parameter| parameter.part == Part::Weight && parameter.role.is_linear())
            .filter_map(|Parameter { role, layer, shape, .. }| {
                let name = self.module(role, layer.unwrap_or(0))?;
                let &[out_features, in_features] = shape.as_slice() else { return None };
                Some(LinearModule { name, role, layer, in_features, out_features })
            })
            .chain(tied_head)
            .collect()
    }
}
