use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pretty_assertions::assert_eq;
use serde_json::{Map, Value, json};

use super::*;
use crate::config::Targets;
use crate::model::architecture::{
    Activation, AttentionSpec, Mlp, Norm, Position, Qkv, Residual, RopeScaling, RopeSpec,
};
use crate::model::match_targets;
use crate::model::roles::Role;
use crate::model::{Arrangement, ModelFiles};
use crate::testing::tiny_models;

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny")).join(name)
}

fn config(name: &str, file: &str) -> Map<String, Value> {
    serde_json::from_slice(&fs::read(folder(name).join(file)).unwrap()).unwrap()
}

fn architecture(config: Map<String, Value>) -> Result<Architecture, ModelError> {
    of_config(&Settings::new(Path::new("config.json"), config, Vec::new()))
        .map(|(_, architecture)| architecture)
}

/// The reference's configuration in the older spelling, with some values changed; `null` removes the key.
fn changed(name: &str, changes: &Value) -> Result<Architecture, ModelError> {
    let mut config = config(name, "config_v4.json");
    for (key, value) in changes.as_object().unwrap() {
        config.remove(key);
        if !value.is_null() {
            config.insert(key.clone(), value.clone());
        }
    }
    architecture(config)
}

fn rope(name: &str, changes: &Value) -> RopeSpec {
    changed(name, changes).unwrap().layers[0].attention.rope().unwrap().clone()
}

fn elements(architecture: &Architecture) -> usize {
    architecture.parameters().iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum()
}

#[test]
fn every_family_has_references() {
    let model_type = |folder: &PathBuf| -> String {
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        config["model_type"].as_str().unwrap().to_owned()
    };
    let found: BTreeSet<String> = tiny_models().iter().map(model_type).collect();
    let known: BTreeSet<String> = FAMILIES.iter().map(|family| family.model_type().to_owned()).collect();
    assert_eq!(found, known);
}

#[test]
fn every_reference_opens_with_exactly_its_tensors() {
    for folder in tiny_models() {
        let name = folder.display();
        let model = ModelFiles::open(&folder).unwrap();
        let bytes = fs::read(&model.files[0]).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let mut stored: Vec<_> = header.keys().filter(|key| *key != "__metadata__").cloned().collect();
        let older = older_names(model.architecture.family);
        let in_file = |name: String| {
            older.iter().find_map(|(here, older)| under_name(&name, here, older)).unwrap_or(name)
        };
        let needed = model.architecture.parameters().into_iter().map(|parameter| in_file(parameter.name));
        let mut needed: Vec<_> = needed.collect();
        stored.sort();
        needed.sort();
        assert_eq!(needed, stored, "{name}");
    }
}

#[test]
fn both_spellings_give_the_same_architecture() {
    for folder in tiny_models() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let (new, old) = (config(name, "config.json"), config(name, "config_v4.json"));
        assert_eq!(architecture(new).unwrap(), architecture(old).unwrap(), "{name}");
    }
}

#[test]
fn references_have_the_structure_of_their_families() {
    let of = |name: &str| architecture(config(name, "config.json")).unwrap();
    let windows = |architecture: &Architecture| -> Vec<_> {
        architecture.layers.iter().map(|layer| layer.attention.window).collect()
    };
    let thetas = |architecture: &Architecture| -> Vec<_> {
        architecture.layers.iter().map(|layer| layer.attention.rope().unwrap().theta).collect()
    };
    let biases = |attention: &AttentionSpec| (attention.input_bias, attention.output_bias);

    let mistral = of("mistral");
    assert_eq!((windows(&mistral), mistral.layers[0].norm), (vec![Some(8); 3], Norm::Rms { epsilon: 1e-5 }));

    let qwen2 = of("qwen2");
    assert_eq!((biases(&qwen2.layers[0].attention), windows(&qwen2)), ((true, false), vec![None; 3]));
    assert_eq!(thetas(&qwen2), [1e6; 3]);

    let qwen3 = of("qwen3");
    let attention = &qwen3.layers[1].attention;
    assert_eq!((attention.head_size, attention.query_width(), attention.key_value_width()), (24, 96, 48));
    assert_eq!((attention.head_norm, qwen3.tied_head), (Some(Norm::Rms { epsilon: 1e-6 }), true));

    let phi = of("phi");
    let layer = &phi.layers[0];
    assert_eq!(layer.residual, Residual::Parallel { shared_norm: true });
    assert_eq!((layer.norm, phi.final_norm), (Norm::Layer { epsilon: 1e-5 }, Norm::Layer { epsilon: 1e-5 }));
    assert_eq!(layer.mlp, Mlp::Plain { activation: Activation::GeluTanh, width: 256, bias: true });
    assert_eq!((layer.attention.rope().unwrap().rotated, layer.attention.head_norm), (8, None));
    assert_eq!((biases(&layer.attention), phi.head_bias, phi.tied_head), ((true, true), true, false));

    let phi3 = of("phi3");
    let layer = &phi3.layers[0];
    assert_eq!((layer.attention.qkv, layer.attention.key_value_heads), (Qkv::Fused, 2));
    assert_eq!(layer.mlp, Mlp::GatedFused { activation: Activation::Silu, width: 128, bias: false });
    assert_eq!((windows(&phi3), layer.attention.rope().unwrap().rotated), (vec![Some(8); 3], 16));

    let (small, large) = (of("falcon-7b"), of("falcon-40b"));
    assert_eq!(
        (small.layers[0].attention.key_value_heads, large.layers[0].attention.key_value_heads),
        (1, 2)
    );
    assert_eq!(small.layers[0].residual, Residual::Parallel { shared_norm: true });
    assert_eq!(large.layers[0].residual, Residual::Parallel { shared_norm: false });
    assert_eq!((small.layers[0].attention.qkv, small.tied_head), (Qkv::FusedByGroup, true));
    assert_eq!(large.layers[0].mlp, Mlp::Plain { activation: Activation::Gelu, width: 256, bias: false });

    let gemma2 = of("gemma2");
    let layer = &gemma2.layers[0];
    assert_eq!((layer.residual, layer.norm), (Residual::Sandwich, Norm::RmsPlusOne { epsilon: 1e-6 }));
    assert_eq!((windows(&gemma2), gemma2.tied_head), (vec![Some(8), None, Some(8)], true));
    assert_eq!((layer.attention.scale, layer.attention.score_cap), (20_f64.sqrt().recip(), Some(5.0)));
    assert_eq!((gemma2.logit_cap, gemma2.embedding_scale), (Some(3.0), Some(8.0)));
    assert_eq!(layer.mlp, Mlp::Gated { activation: Activation::GeluTanh, width: 128, bias: false });

    let gemma3 = of("gemma3");
    assert_eq!(windows(&gemma3), [Some(8), Some(8), None]);
    assert_eq!(thetas(&gemma3), [10_000.0, 10_000.0, 1e6]);
    let attention = &gemma3.layers[0].attention;
    assert_eq!((attention.head_norm, attention.head_size), (Some(Norm::RmsPlusOne { epsilon: 1e-6 }), 24));
    assert_eq!((attention.score_cap, gemma3.logit_cap), (None, None));

    let neox = of("gpt_neox");
    let layer = &neox.layers[0];
    assert_eq!(layer.residual, Residual::Parallel { shared_norm: false });
    assert_eq!((layer.attention.qkv, layer.attention.rope().unwrap().rotated), (Qkv::FusedByGroup, 4));
    assert_eq!(neox.parameters().last().unwrap().name, "lm_head.weight");
    assert_eq!(older_names("gpt_neox"), [("lm_head", "embed_out")]);
    assert_eq!(under_name("embed_out.weight", "embed_out", "lm_head").as_deref(), Some("lm_head.weight"));
    assert_eq!(under_name("embed_outer.weight", "embed_out", "lm_head"), None);

    let gpt2 = of("gpt2");
    let layer = &gpt2.layers[0];
    assert_eq!((layer.residual, &layer.attention.position), (Residual::PreNorm, &Position::Embedded));
    assert_eq!(layer.mlp, Mlp::Plain { activation: Activation::GeluTanh, width: 256, bias: true });
    assert_eq!((gpt2.learned_positions, gpt2.transposed, gpt2.tied_head), (Some(128), true, true));
}

#[test]
fn only_linear_weights_of_gpt2_are_transposed() {
    let model = ModelFiles::open(&folder("gpt2")).unwrap();
    let transposed = |name: &str| model.tensors[name].arrangement == Arrangement::Transposed;
    assert!(
        transposed("transformer.h.0.attn.c_attn.weight") && transposed("transformer.h.2.mlp.c_fc.weight")
    );
    assert!(!transposed("transformer.h.0.attn.c_attn.bias") && !transposed("transformer.wte.weight"));
    assert_eq!(model.tensors["transformer.h.0.attn.c_attn.weight"].shape, [192, 64]);
}

#[test]
fn all_linear_selects_the_layers_peft_does() {
    let llama = vec!["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let fused = vec!["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"];
    for (name, parts) in [
        ("llama", llama.clone()),
        ("mistral", llama.clone()),
        ("qwen2", llama.clone()),
        ("qwen3", llama.clone()),
        ("phi", vec!["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]),
        ("phi3", vec!["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
        ("falcon-7b", fused.clone()),
        ("falcon-40b", fused.clone()),
        ("gemma2", llama.clone()),
        ("gemma3", llama),
        ("gpt_neox", fused),
        ("gpt2", vec!["c_attn", "c_proj", "c_fc", "c_proj"]),
    ] {
        let modules = architecture(config(name, "config.json")).unwrap().linear_modules();
        assert_eq!(modules.len(), 3 * parts.len() + 1, "{name}");
        assert_eq!(modules.last().unwrap().role, Role::Head, "{name}");
        let chosen = match_targets(&Targets::AllLinear, &modules).unwrap();
        let found: Vec<_> = chosen.iter().map(|module| module.name.rsplit('.').next().unwrap()).collect();
        assert_eq!(found, parts.repeat(3), "{name}");
    }
}

#[test]
fn published_models_have_their_published_size() {
    let short: Vec<f64> = vec![1.1; 48];
    let long: Vec<f64> = vec![2.5; 48];
    for (name, size, config) in [
        (
            "Llama-3.1-8B",
            8_030_261_248,
            json!({
                "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500_000.0,
                "max_position_embeddings": 131_072, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            }),
        ),
        (
            "Llama-3.2-1B",
            1_235_814_400,
            json!({
                "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
                "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
                "tie_word_embeddings": true,
            }),
        ),
        (
            "Mistral-7B-v0.1",
            7_241_732_096,
            json!({
                "model_type": "mistral", "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096,
            }),
        ),
        (
            "Mistral-Nemo-Base-2407",
            12_247_782_400,
            json!({
                "model_type": "mistral", "vocab_size": 131_072, "hidden_size": 5120, "intermediate_size": 14_336,
                "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                "sliding_window": null,
            }),
        ),
        (
            "Qwen2.5-7B",
            7_615_616_512,
            json!({
                "model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944,
                "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "use_mrope": false,
                "max_window_layers": 28, "sliding_window": 131_072, "use_sliding_window": false,
            }),
        ),
        (
            "Qwen2.5-0.5B",
            494_032_768,
            json!({
                "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
                "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                "tie_word_embeddings": true,
            }),
        ),
        (
            "Qwen3-8B",
            8_190_735_360,
            json!({
                "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288,
                "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                "attention_bias": false, "max_window_layers": 36, "sliding_window": null, "rope_scaling": null,
            }),
        ),
        (
            "Qwen3-0.6B",
            596_049_920,
            json!({
                "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
                "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
                "tie_word_embeddings": true,
            }),
        ),
        (
            "phi-2",
            2_779_683_840,
            json!({
                "model_type": "phi", "vocab_size": 51_200, "hidden_size": 2560, "intermediate_size": 10_240,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
                "partial_rotary_factor": 0.4, "hidden_act": "gelu_new", "rope_scaling": null,
            }),
        ),
        (
            "Phi-3-mini-128k-instruct",
            3_821_079_552,
            json!({
                "model_type": "phi3", "vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
                "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
                "sliding_window": 262_144,
                "rope_scaling": {"long_factor": long.as_slice(), "short_factor": short.as_slice(), "type": "su"},
            }),
        ),
        (
            "Phi-4-mini-instruct",
            3_836_021_760,
            json!({
                "model_type": "phi3", "vocab_size": 200_064, "hidden_size": 3072, "intermediate_size": 8192,
                "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8,
                "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
                "partial_rotary_factor": 0.75, "tie_word_embeddings": true,
                "rope_scaling": {"long_factor": long, "short_factor": short, "type": "longrope"},
            }),
        ),
        (
            "falcon-7b",
            6_921_720_704,
            json!({
                "model_type": "falcon", "vocab_size": 65_024, "hidden_size": 4544, "num_hidden_layers": 32,
                "num_attention_heads": 71, "multi_query": true, "parallel_attn": true, "bias": false,
                "new_decoder_architecture": false, "alibi": false,
            }),
        ),
        (
            "falcon-40b",
            41_303_293_952,
            json!({
                "model_type": "falcon", "vocab_size": 65_024, "hidden_size": 8192, "num_hidden_layers": 60,
                "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": true,
            }),
        ),
        (
            "falcon-11B",
            11_102_822_400,
            json!({
                "model_type": "falcon", "vocab_size": 65_024, "hidden_size": 4096, "num_hidden_layers": 60,
                "num_attention_heads": 32, "num_kv_heads": 8, "new_decoder_architecture": true,
                "ffn_hidden_size": 16_384, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": false,
            }),
        ),
        (
            "falcon-rw-1b",
            1_311_625_216,
            json!({
                "model_type": "falcon", "vocab_size": 50_304, "hidden_size": 2048, "num_hidden_layers": 24,
                "num_attention_heads": 32, "alibi": true, "bias": true, "multi_query": false,
                "new_decoder_architecture": false, "parallel_attn": false,
            }),
        ),
        (
            "gemma-2-2b",
            2_614_341_888,
            json!({
                "model_type": "gemma2", "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216,
                "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
            }),
        ),
        (
            "gemma-3-1b-pt",
            999_885_952,
            json!({
                "model_type": "gemma3_text", "vocab_size": 262_144, "hidden_size": 1152, "intermediate_size": 6912,
                "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
                "sliding_window": 512, "sliding_window_pattern": 6, "rope_local_base_freq": 10_000,
                "rope_theta": 1_000_000, "rope_scaling": null, "attn_logit_softcapping": null,
            }),
        ),
        (
            "pythia-1.4b",
            1_414_647_808,
            json!({
                "model_type": "gpt_neox", "vocab_size": 50_304, "hidden_size": 2048, "intermediate_size": 8192,
                "num_hidden_layers": 24, "num_attention_heads": 16, "rotary_pct": 0.25, "rotary_emb_base": 10_000,
                "use_parallel_residual": true,
            }),
        ),
        (
            "gpt-neox-20b",
            20_554_567_680,
            json!({
                "model_type": "gpt_neox", "vocab_size": 50_432, "hidden_size": 6144, "intermediate_size": 24_576,
                "num_hidden_layers": 44, "num_attention_heads": 64, "hidden_act": "gelu_fast", "rotary_pct": 0.25,
            }),
        ),
        (
            "gpt2",
            124_439_808,
            json!({
                "model_type": "gpt2", "vocab_size": 50_257, "n_embd": 768, "n_layer": 12, "n_head": 12,
                "n_positions": 1024, "n_ctx": 1024, "activation_function": "gelu_new",
            }),
        ),
    ] {
        let architecture = architecture(config.as_object().unwrap().clone()).unwrap();
        assert_eq!(elements(&architecture), size, "{name}");
    }
}

#[test]
fn rotary_scaling_is_read_as_in_transformers() {
    let scaled = |section: &Value| rope("llama", &json!({ "rope_scaling": section })).scaling;
    assert_eq!(
        scaled(&json!({"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32})),
        RopeScaling::Dynamic { factor: 4.0, original_positions: 128 }
    );
    let yarn = |attention_factor, original_positions| RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_positions,
        attention_factor,
        truncate: true,
    };
    let usual = 0.1 * 4_f64.ln() + 1.0;
    assert_eq!(scaled(&json!({"type": "yarn", "factor": 4.0})), yarn(usual, 128));
    let original = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
    assert_eq!(scaled(&original), yarn(usual, 32));
    let changes = json!({"original_max_position_embeddings": 16, "rope_scaling": original});
    assert_eq!(rope("llama", &changes).scaling, yarn(usual, 16));
    let ratio = json!({"type": "yarn", "original_max_position_embeddings": 32, "beta_slow": 0});
    assert_eq!(scaled(&ratio), yarn(usual, 32));
    let both = json!({"type": "yarn", "factor": 4.0, "mscale": 0.707, "mscale_all_dim": 0.5});
    assert_eq!(scaled(&both), yarn((0.0707 * 4_f64.ln() + 1.0) / (0.05 * 4_f64.ln() + 1.0), 128));
    let one = json!({"type": "yarn", "factor": 4.0, "mscale": 0.707});
    assert_eq!(scaled(&one), yarn(usual, 128));
    let own = json!({"type": "yarn", "factor": 4.0, "attention_factor": 0.75, "beta_fast": 16, "beta_slow": 2,
        "truncate": false});
    assert_eq!(
        scaled(&own),
        RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 16.0,
            beta_slow: 2.0,
            original_positions: 128,
            attention_factor: 0.75,
            truncate: false,
        }
    );
}

#[test]
fn the_older_section_overrides_the_newer_unless_empty() {
    let both = json!({"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5.0},
        "rope_scaling": {"type": "linear", "factor": 2.0}});
    let spec = rope("llama", &both);
    assert_eq!((spec.theta, spec.scaling), (10_000.0, RopeScaling::Linear { factor: 2.0 }));
    let newer = json!({"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": {}});
    assert_eq!(rope("llama", &newer), RopeSpec { theta: 5.0, rotated: 16, scaling: RopeScaling::None });
}

#[test]
fn longrope_scales_attention_by_context_length() {
    let long = |kind: &str, more: Value| {
        let mut section = json!({"type": kind, "short_factor": [1, 1.5, 2, 2.5, 3, 3.5], "long_factor": [4, 4, 4, 4, 4, 4]});
        section.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let changes = json!({"rope_scaling": section, "max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 128});
        rope("phi3", &changes)
    };
    let wanted = |attention_factor| RopeSpec {
        theta: 10_000.0,
        rotated: 12,
        scaling: RopeScaling::Long {
            short: vec![1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
            long: vec![4.0; 6],
            original_positions: 128,
            attention_factor,
        },
    };
    let usual = (1.0 + 32_f64.ln() / 128_f64.ln()).sqrt();
    for kind in ["su", "longrope", "yarn"] {
        assert_eq!(long(kind, json!({})), wanted(usual), "{kind}");
    }
    assert_eq!(long("longrope", json!({"attention_factor": 1.25})), wanted(1.25));
    assert_eq!(long("longrope", json!({"factor": 1.0})), wanted(1.0));
    // Phi-3 was trained for 4096 tokens, even if its section gives another number.
    let changes = json!({"original_max_position_embeddings": null, "max_position_embeddings": 131_072,
        "rope_scaling": {"type": "su", "short_factor": vec![1; 8], "long_factor": vec![2; 8],
        "original_max_position_embeddings": 7}});
    let RopeScaling::Long { original_positions, attention_factor, .. } = rope("phi3", &changes).scaling
    else {
        panic!("other scaling")
    };
    assert_eq!(original_positions, 4096);
    assert!((attention_factor - 1.190_238).abs() < 1e-6, "{attention_factor}");
}

#[test]
fn gemma3_scales_its_global_layers_only() {
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let nested = json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_theta": 500.0}});
    for (changes, local) in [
        (json!({ "rope_scaling": linear }), 10_000.0),
        (json!({ "rope_parameters": nested, "rope_theta": null, "rope_local_base_freq": null }), 500.0),
    ] {
        let architecture = changed("gemma3", &changes).unwrap();
        let rope = |layer: usize| architecture.layers[layer].attention.rope().unwrap();
        assert_eq!((rope(0).theta, &rope(0).scaling), (local, &RopeScaling::None));
        assert_eq!((rope(2).theta, &rope(2).scaling), (1e6, &RopeScaling::Linear { factor: 8.0 }));
    }
    let defaults = changed("gemma3", &json!({"rope_theta": null, "rope_local_base_freq": null})).unwrap();
    let thetas: Vec<_> = defaults.layers.iter().map(|layer| layer.attention.rope().unwrap().theta).collect();
    assert_eq!(thetas, [10_000.0, 10_000.0, 1e6]);
}

#[test]
fn windows_follow_layer_types_or_the_rule_of_the_family() {
    let windows = |name: &str, changes: Value| -> Vec<_> {
        let layers = changed(name, &changes).unwrap().layers;
        layers.iter().map(|layer| layer.attention.window).collect()
    };
    let sliding = json!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 1});
    assert_eq!(windows("qwen2", sliding.clone()), [None, Some(16), Some(16)]);
    assert_eq!(windows("qwen3", sliding), [None, Some(16), Some(16)]);
    let all = json!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 0});
    assert_eq!(windows("qwen2", all), [Some(16); 3]);
    let unused = json!({"use_sliding_window": false, "sliding_window": 16, "max_window_layers": 0});
    assert_eq!(windows("qwen2", unused), [None; 3]);
    let types = json!({"layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "use_sliding_window": true, "sliding_window": 16});
    assert_eq!(windows("qwen2", types), [None, Some(16), None]);
    assert_eq!(windows("mistral", json!({"sliding_window": null})), [Some(4096); 3]);
    let mut config = config("mistral", "config.json");
    config["sliding_window"] = Value::Null;
    assert_eq!(architecture(config).unwrap().layers[0].attention.window, None);
    assert_eq!(windows("gemma3", json!({"sliding_window_pattern": 2})), [Some(8), None, Some(8)]);
}

#[test]
fn soft_caps_have_defaults_and_null_removes_them() {
    let caps =
        |architecture: Architecture| (architecture.layers[0].attention.score_cap, architecture.logit_cap);
    let absent = changed("gemma2", &json!({"attn_logit_softcapping": null, "final_logit_softcapping": null}));
    assert_eq!(caps(absent.unwrap()), (Some(50.0), Some(30.0)));
    let mut config = config("gemma2", "config.json");
    config["attn_logit_softcapping"] = Value::Null;
    config["final_logit_softcapping"] = Value::Null;
    assert_eq!(caps(architecture(config).unwrap()), (None, None));
    let capped = changed("gemma3", &json!({"final_logit_softcapping": 30.0})).unwrap();
    assert_eq!(caps(capped), (None, Some(30.0)));
}

#[test]
fn falcon_has_three_arrangements() {
    let of = |changes: Value| {
        let architecture = changed("falcon-7b", &changes).unwrap();
        let layer = architecture.layers[0].clone();
        let norms: Vec<_> =
            layer.residual.norms().iter().map(|&role| architecture.module(role, 0).unwrap()).collect();
        (layer, norms)
    };
    let (layer, norms) =
        of(json!({"alibi": true, "parallel_attn": false, "multi_query": false, "bias": true}));
    assert_eq!((layer.residual, &layer.attention.position), (Residual::PreNorm, &Position::Linear));
    assert_eq!(norms, ["transformer.h.0.input_layernorm", "transformer.h.0.post_attention_layernorm"]);
    assert_eq!((layer.attention.key_value_heads, layer.attention.input_bias), (4, true));
    assert_eq!(layer.mlp, Mlp::Plain { activation: Activation::Gelu, width: 256, bias: true });
    let (layer, norms) = of(json!({"new_decoder_architecture": true, "num_kv_heads": 2}));
    assert_eq!(
        (layer.residual, layer.attention.key_value_heads),
        (Residual::Parallel { shared_norm: false }, 2)
    );
    assert_eq!(norms, ["transformer.h.0.ln_attn", "transformer.h.0.ln_mlp"]);
    let (layer, norms) = of(json!({"new_decoder_architecture": true, "num_ln_in_parallel_attn": 1}));
    assert_eq!(
        (layer.residual, layer.attention.key_value_heads),
        (Residual::Parallel { shared_norm: true }, 4)
    );
    assert_eq!(norms, ["transformer.h.0.input_layernorm"]);
}

#[test]
fn options_change_the_architecture() {
    let phi = changed("phi", &json!({"qk_layernorm": true})).unwrap();
    let norms = phi.parameters().into_iter().filter(|parameter| parameter.name.contains(".q_layernorm."));
    assert_eq!(norms.map(|norm| norm.shape).collect::<Vec<_>>(), vec![vec![16]; 6]);
    let neox = changed("gpt_neox", &json!({"use_parallel_residual": false, "rotary_pct": 1.0})).unwrap();
    assert_eq!(neox.layers[0].residual, Residual::PreNorm);
    assert_eq!(neox.layers[0].attention.rope().unwrap().rotated, 16);
    let inverse = json!({"scale_attn_by_inverse_layer_idx": true, "n_inner": 100});
    let gpt2 = changed("gpt2", &inverse).unwrap();
    let scales: Vec<_> = gpt2.layers.iter().map(|layer| layer.attention.scale).collect();
    assert_eq!(scales, [0.25, 0.125, 0.25 / 3.0]);
    assert_eq!(gpt2.layers[0].mlp.width(), 100);
    let plain = changed("gpt2", &json!({"scale_attn_weights": false})).unwrap();
    assert_eq!((plain.layers[2].attention.scale, plain.layers[2].attention.heads), (1.0, 4));
    for (name, activation) in [
        ("relu", Activation::Relu),
        ("swish", Activation::Silu),
        ("gelu", Activation::Gelu),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("gelu_fast", Activation::GeluTanh),
    ] {
        let architecture = changed("falcon-7b", &json!({ "activation": name })).unwrap();
        assert_eq!(architecture.layers[0].mlp, Mlp::Plain { activation, width: 256, bias: false });
    }
}

#[test]
fn unsupported_options_are_refused_by_key() {
    for (name, changes, words) in [
        (
            "llama",
            json!({"partial_rotary_factor": 0.5}),
            "partial rotary embedding in this family (`partial_rotary_factor` = 0.5)",
        ),
        ("llama", json!({"rope_scaling": {"type": "mrope"}}), "(`rope_scaling.type` = \"mrope\")"),
        (
            "llama",
            json!({"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 0}}),
            "`rope_scaling.attention_factor` must be above 0",
        ),
        (
            "llama",
            json!({"rope_parameters": {"full_attention": {}}}),
            "rotary embedding by type of layer in this family",
        ),
        (
            "llama",
            json!({"per_layer_config": {"0": {"head_dim": 8}}}),
            "settings of single layers (`per_layer_config`",
        ),
        ("mistral", json!({"layer_types": ["full_attention"]}), "a window in some layers of a mistral model"),
        ("qwen2", json!({"layer_types": ["full_attention"]}), "`layer_types` must name 3 layers"),
        (
            "qwen2",
            json!({"layer_types": vec!["linear_attention"; 3]}),
            "layers of another kind than full_attention",
        ),
        (
            "qwen2",
            json!({"layer_types": vec!["sliding_attention"; 3]}),
            "`sliding_window` is missing, but there are layers",
        ),
        (
            "phi",
            json!({"tie_word_embeddings": true}),
            "a tied head with a bias (`tie_word_embeddings` = true)",
        ),
        ("phi", json!({"partial_rotary_factor": 0.07}), "`partial_rotary_factor` must rotate an even number"),
        ("phi", json!({"layer_norm_eps": 0}), "`layer_norm_eps` must be above 0, found 0"),
        (
            "phi3",
            json!({"rope_scaling": {"type": "su", "long_factor": [1]}}),
            "`rope_scaling.short_factor` is missing",
        ),
        (
            "phi3",
            json!({"rope_scaling": {"type": "su", "short_factor": [1], "long_factor": [1]}}),
            "`short_factor` must be a list of numbers above 0",
        ),
        (
            "phi3",
            json!({"rope_scaling": {"type": "su", "short_factor": vec![1; 4097], "long_factor": [1]}}),
            "`rope_scaling.short_factor` must be a list of at most 4096 numbers",
        ),
        ("falcon-7b", json!({"activation": "relu2"}), "this activation (`activation` = \"relu2\")"),
        ("falcon-7b", json!({"layer_norm_epsilon": 0}), "`layer_norm_epsilon` must be above 0, found 0"),
        ("falcon-7b", json!({"num_attention_heads": 5}), "`num_attention_heads` must divide the width 64"),
        ("falcon-7b", json!({"num_ln_in_parallel_attn": 2}), "`num_ln_in_parallel_attn` must be 1 where"),
        (
            "falcon-40b",
            json!({"num_ln_in_parallel_attn": 3}),
            "`num_ln_in_parallel_attn` must be 1 or 2, found 3",
        ),
        ("falcon-40b", json!({"parallel_attn": false}), "`parallel_attn` must be true where"),
        (
            "falcon-40b",
            json!({"num_kv_heads": 3}),
            "`num_kv_heads` must divide the number of attention heads, found 3",
        ),
        ("gemma2", json!({"use_bidirectional_attention": true}), "attention to tokens that follow"),
        ("gemma2", json!({"final_logit_softcapping": -1}), "`final_logit_softcapping` must be above 0"),
        ("gemma2", json!({"query_pre_attn_scalar": 0}), "`query_pre_attn_scalar` must be above 0"),
        ("gemma3", json!({"attn_logit_softcapping": 50.0}), "a soft cap on the scores of a gemma3 model"),
        ("gemma3", json!({"hidden_activation": "tanh"}), "this activation (`hidden_activation` = \"tanh\")"),
        (
            "gemma3",
            json!({"rope_parameters": {"rope_theta": 1e6}}),
            "`rope_parameters` must have `full_attention` and",
        ),
        ("gpt_neox", json!({"rotary_emb_base": -1}), "`rotary_emb_base` must be above 0, found -1"),
        ("gpt_neox", json!({"rotary_pct": 0.05}), "`rotary_pct` must rotate an even number"),
        (
            "gpt2",
            json!({"add_cross_attention": true}),
            "attention to an encoder (`add_cross_attention` = true)",
        ),
        ("gpt2", json!({"n_embd": null}), "`n_embd` is missing"),
        ("gpt2", json!({"n_layer": 1_000_000}), "`n_layer` must be at most 4096"),
    ] {
        let error = changed(name, &changes).unwrap_err().to_string();
        assert!(error.contains(words), "{name} {changes}: {error}");
    }
    let error = changed("llama", &json!({"model_type": "gemma3"})).unwrap_err().to_string();
    let families = "llama, mistral, qwen2, qwen3, phi, phi3, falcon, gemma2, gemma3_text, gpt_neox, gpt2";
    assert!(error.ends_with(families), "{error}");
}
