//! Models for tests.

use std::path::Path;

use serde_json::{Value, json};

use super::architecture::Architecture;
use super::families;
use super::settings::Settings;

/// A llama with the shape of SmolLM2-135M and this many layers.
pub(crate) fn architecture(layers: usize) -> Architecture {
    of_config(&json!({
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": layers, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100_000,
        "tie_word_embeddings": true,
    }))
}

/// The architecture of a `config.json`.
pub(crate) fn of_config(config: &Value) -> Architecture {
    let values = config.as_object().unwrap().clone();
    let settings = Settings::new(Path::new("config.json"), values, Vec::new());
    families::of_config(&settings).unwrap().1
}
