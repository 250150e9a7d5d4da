//! The metadata of a GGUF file as settings under Hugging Face's keys
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). Keys and defaults are those of llama.cpp's
//! `llama-model.cpp`.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::header::Header;
use super::value::Value;
use crate::model::error::ModelError;
use crate::model::families::{Family, GgufStyle, GgufWindows, ROTATED};
use crate::model::settings::Settings;

/// Usual key, and GGUF key after the architecture's name.
const KEYS: [(&str, &str); 24] = [
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("intermediate_size", "feed_forward_length"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("use_parallel_residual", "use_parallel_residual"),
    ("sliding_window", "attention.sliding_window"),
    ("rope_theta", "rope.freq_base"),
    ("rope_local_base_freq", "rope.freq_base_swa"),
    (ROTATED, "rope.dimension_count"),
    ("rope_type", "rope.scaling.type"),
    ("factor", "rope.scaling.factor"),
    ("original_max_position_embeddings", "rope.scaling.original_context_length"),
    ("attention_factor", "rope.scaling.yarn_attn_factor"),
    ("mscale_all_dim", "rope.scaling.yarn_log_multiplier"),
    ("beta_fast", "rope.scaling.yarn_beta_fast"),
    ("beta_slow", "rope.scaling.yarn_beta_slow"),
    ("attn_factor", "rope.scaling.attn_factor"),
];

/// Number of tokens that a token attends to in layers with a window.
const WINDOW: &str = "attention.sliding_window";

/// Which layers have a window: a period, whose last layer has none, or a truth value for each layer.
const PATTERN: &str = "attention.sliding_window_pattern";

/// Keys that change the computation in ways that no family here supports, and their meaning.
const REFUSED: [(&str, &str); 8] = [
    ("expert_count", "a mixture of experts"),
    ("attention.max_alibi_bias", "attention with linear biases"),
    ("attention.clamp_kqv", "clamped queries, keys and values"),
    ("attention.scale", "an unusual scale of attention"),
    ("attention.temperature_scale", "attention scaled by position"),
    ("logit_scale", "scaled logits"),
    ("residual_scale", "scaled residuals"),
    ("embedding_scale", "scaled embeddings"),
];

pub(super) fn read(
    path: &Path,
    header: &Header,
    family: &dyn Family,
    style: GgufStyle,
) -> Result<Settings, ModelError> {
    let metadata = Metadata { path, header, prefix: style.name };
    metadata.refuse_unsupported()?;
    let mut values = metadata.values();
    values.insert("vocab_size".to_owned(), json!(metadata.vocabulary()?));
    let sizes = metadata.settings(values.clone());
    let (hidden, heads) = (sizes.size("hidden_size")?, sizes.size("num_attention_heads")?);
    let layers = sizes.layers("num_hidden_layers")?;
    values.entry("num_key_value_heads").or_insert(json!(heads));
    values.entry("rope_theta").or_insert(json!(10_000.0));
    if hidden.is_multiple_of(heads) {
        values.entry("head_dim").or_insert(json!(hidden / heads));
    }
    if let Some(head_size) = values.get("head_dim").cloned() {
        values.entry(ROTATED).or_insert(head_size);
    }
    metadata.check_value_length(values.get("head_dim"))?;
    metadata.windows(style, layers, &mut values)?;
    let has_tensor = |name: &str| header.tensors.iter().any(|tensor| tensor.name == name);
    let attention_bias = has_tensor("blk.0.attn_q.bias") || has_tensor("blk.0.attn_qkv.bias");
    values.insert("attention_bias".to_owned(), json!(attention_bias));
    values.insert("mlp_bias".to_owned(), json!(has_tensor("blk.0.ffn_gate.bias")));
    values.insert("tie_word_embeddings".to_owned(), json!(!has_tensor("output.weight")));
    for (key, value) in family.gguf_values(&metadata.settings(values.clone()), &has_tensor)? {
        values.insert(key.to_owned(), value);
    }
    Ok(metadata.settings(values))
}

struct Metadata<'a> {
    path: &'a Path,
    header: &'a Header,
    /// The architecture's name.
    prefix: &'static str,
}

impl Metadata<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.header.get(&format!("{}.{key}", self.prefix))
    }

    /// The values in the file, under the usual keys.
    fn values(&self) -> Map<String, Json> {
        let value = |(usual, key)| Some((str::to_owned(usual), json(self.get(key)?)));
        let mut values: Map<String, Json> = KEYS.into_iter().filter_map(value).collect();
        // The factor's name until 2023.
        if let Some(factor) = self.get("rope.scale_linear") {
            values.entry("factor").or_insert(json(factor));
        }
        values
    }

    fn settings(&self, values: Map<String, Json>) -> Settings {
        let spelling = KEYS.into_iter().chain([("layer_types", PATTERN)]);
        let spelling = spelling.map(|(usual, key)| (usual, format!("{}.{key}", self.prefix)));
        Settings::new(self.path, values, spelling.collect())
    }

    fn unsupported(&self, feature: &str, key: &str) -> ModelError {
        ModelError::Unsupported {
            file: self.path.into(),
            feature: format!("{feature} (`{}.{key}`)", self.prefix),
            remedy: "choose another model".to_owned(),
        }
    }

    fn refuse_unsupported(&self) -> Result<(), ModelError> {
        let is_set = |key: &str| self.get(key).and_then(Value::number).is_some_and(|number| number != 0.0);
        if let Some((key, feature)) = REFUSED.into_iter().find(|(key, _)| is_set(key)) {
            return Err(self.unsupported(feature, key));
        }
        if self.get("attention.causal").and_then(Value::truth) == Some(false) {
            return Err(self.unsupported("attention to tokens that follow", "attention.causal"));
        }
        if self.get("rope.dimension_sections").is_some() {
            let feature = "rotary embedding by several positions";
            return Err(self.unsupported(feature, "rope.dimension_sections"));
        }
        let extrapolation = self.get("rope.scaling.yarn_ext_factor").and_then(Value::number);
        if extrapolation.is_some_and(|factor| !(factor < 0.0 || (factor - 1.0).abs() < f64::EPSILON)) {
            let feature = "YaRN with another extrapolation factor";
            return Err(self.unsupported(feature, "rope.scaling.yarn_ext_factor"));
        }
        Ok(())
    }

    fn check_value_length(&self, head_size: Option<&Json>) -> Result<(), ModelError> {
        let key = "attention.value_length";
        match self.get(key).map(json) {
            Some(length) if Some(&length) != head_size => {
                Err(self.unsupported("value heads that differ in size from key heads", key))
            }
            _ => Ok(()),
        }
    }

    /// A window of 0 means none. If the family has no windows, one that is shorter than the context is
    /// refused.
    fn windows(
        &self,
        style: GgufStyle,
        layers: usize,
        values: &mut Map<String, Json>,
    ) -> Result<(), ModelError> {
        let number = |key: &str| self.get(key).and_then(Value::unsigned);
        let window = number(WINDOW).filter(|&window| window > 0);
        let positions = number("context_length").unwrap_or(u64::MAX);
        if style.windows == GgufWindows::None && window.is_some_and(|window| window < positions) {
            return Err(self.unsupported("sliding-window attention", WINDOW));
        }
        if style.windows == GgufWindows::None {
            values.remove("sliding_window");
        } else if window.is_none() && values.contains_key("sliding_window") {
            values.insert("sliding_window".to_owned(), Json::Null);
        }
        let Some(pattern) = self.get(PATTERN) else { return Ok(()) };
        if style.windows != GgufWindows::Some {
            return Err(self.unsupported("a window in some layers", PATTERN));
        }
        let is_windowed: Vec<bool> = match (pattern.array(), pattern.unsigned()) {
            // One more than the limit shows that there are too many; the array may be as long as the header.
            (Some(array), _) => {
                let flags = array.numbers().into_iter().flatten().take(layers + 1);
                flags.map(|flag| flag == Value::Truth(true)).collect()
            }
            (None, Some(0)) => vec![true; layers],
            (None, Some(period)) => (0..layers as u64).map(|layer| layer % period + 1 < period).collect(),
            (None, None) => Vec::new(),
        };
        let kind = |&is_windowed: &bool| if is_windowed { "sliding_attention" } else { "full_attention" };
        values.insert("layer_types".to_owned(), is_windowed.iter().map(kind).collect());
        Ok(())
    }

    fn vocabulary(&self) -> Result<usize, ModelError> {
        let embedding = self.header.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
        embedding.and_then(|tensor| tensor.shape.first().copied()).ok_or_else(|| {
            let problem = "the tensor `token_embd.weight` is missing".to_owned();
            ModelError::Settings { file: self.path.into(), problem }
        })
    }
}

/// The value as JSON. A per-layer array of equal numbers becomes one number.
fn json(value: &Value) -> Json {
    match value {
        Value::Truth(truth) => json!(truth),
        Value::Text(text) => json!(text),
        Value::Unsigned(number) => json!(number),
        Value::Signed(number) => json!(number),
        Value::Single(_) | Value::Double(_) => json!(value.number()),
        Value::Array(array) => {
            let mut numbers = array.numbers().into_iter().flatten();
            match numbers.next() {
                Some(first) if numbers.all(|other| other == first) && first.unsigned().is_some() => {
                    json(&first)
                }
                _ => json!("values that differ from layer to layer"),
            }
        }
    }
}
