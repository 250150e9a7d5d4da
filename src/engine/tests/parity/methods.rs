//! Invariants of every method: PEFT's format on disk, batches with other adapters, generation with a cache,
//! folding, and errors for adapters that do not fit.

use std::ops::ControlFlow;
use std::path::Path;

use luthier_core::config::{Bias, Config, MethodKind, MethodSection, Targets as Layers, Variant};
use luthier_core::model::{ModelFiles, Quantisation};
use luthier_core::random;
use luthier_engine::csrc;
use luthier_engine::error::EngineError;
use luthier_engine::generation::{Row, Sampling, generate};
use luthier_engine::layers::{Active, Adapter, Mask, Noise, Parameters, Pass};
use luthier_engine::methods::{self, FullMethod, Method, Purpose, method_of};
use luthier_engine::models::Model;
use luthier_engine::models::head::{Targets, loss_sum};
use luthier_engine::weights::safetensors;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::references::{self, families, runs};
use crate::support::{columns, distance, hidden, in_bf16, logits, peft_config, reference, tensors};

/// A tiny model in f32.
fn open(family: &str) -> Model {
    references::open(family, Kind::Float, Quantisation::None)
}

fn config(change: impl FnOnce(&mut MethodSection)) -> Config {
    let mut config = Config::default();
    config.model.path = "base".into();
    config.method.rank = 4;
    config.method.virtual_tokens = 5;
    change(&mut config.method);
    config
}

/// One adapter of each kind, with changed parameters so that it has an effect.
pub fn each(model: &Model) -> Vec<(String, Box<dyn Adapter>)> {
    let head = model.head().name.clone();
    let embedding = model.architecture().parameters()[0].name.trim_end_matches(".weight").to_owned();
    let settings = [
        ("lora", config(|_| ())),
        ("rslora", config(|method| method.variant = Variant::Rslora)),
        ("dora", config(|method| method.variant = Variant::Dora)),
        ("bias", config(|method| method.bias = Bias::All)),
        ("own bias", config(|method| (method.bias, method.variant) = (Bias::LoraOnly, Variant::Dora))),
        ("head", config(|method| method.modules_to_save = vec![head.clone()])),
        ("embedding", config(|method| method.modules_to_save = vec![embedding.clone()])),
        ("ia3", config(|method| method.kind = MethodKind::Ia3)),
        ("prefix", config(|method| method.kind = MethodKind::Prefix)),
        ("prompt", config(|method| method.kind = MethodKind::Prompt)),
        ("full", config(|method| method.kind = MethodKind::Full)),
    ];
    let made = settings.into_iter().map(|(name, config)| {
        let adapter = method_of(&config).create(model, 7).unwrap();
        disturb(adapter.parameters(), 11);
        (name.to_owned(), adapter)
    });
    made.collect()
}

/// Changes every parameter slightly.
fn disturb(parameters: &Parameters, seed: u64) {
    let _guard = tch::no_grad_guard();
    for (name, parameter) in parameters {
        let place = random::derive_name(seed, name);
        let noise: Vec<f32> = (0..parameter.numel() as u64)
            .map(|index| 0.2 * (random::unit(random::derive(place, index)) as f32 - 0.5))
            .collect();
        let noise = Tensor::from_slice(&noise).view(parameter.size().as_slice());
        drop(parameter.shallow_clone().g_add_(&noise));
    }
}

fn some_ids(rows: i64, width: i64) -> Tensor {
    (Tensor::arange(rows * width, (Kind::Int64, Device::Cpu)) * 37).remainder(509).view([rows, width])
}

/// Gradients of a loss over two rows, whose last tokens are trained.
fn gradients(model: &Model, adapter: &dyn Adapter, recompute: bool, noise: Option<Noise>) -> Vec<Tensor> {
    for parameter in adapter.parameters().values() {
        parameter.shallow_clone().zero_grad();
    }
    let ids = some_ids(2, 9);
    let labels: Vec<i64> = (0..18).map(|place| if place % 9 < 3 { -100 } else { place * 5 % 500 }).collect();
    let targets = Targets::shifted(&labels, 9, Device::Cpu).unwrap();
    let positions = columns(2, 9);
    let pass = Pass { positions: &positions, mask: Mask::Causal, adapters: Active::All(adapter), noise };
    let one = Tensor::from(1.0_f32);
    if recompute {
        let trace = model.hidden_recomputed(&ids, &pass).unwrap();
        let loss = loss_sum(model, pass.adapters, &trace.hidden, &targets, false).unwrap().sum;
        csrc::backward(&[&loss], &[Some(&one)]).unwrap();
        drop(loss);
        model.backward(trace, &ids, &pass, &mut || Ok(())).unwrap();
    } else {
        let states = model.hidden(&ids, &pass, None).unwrap();
        let loss = loss_sum(model, pass.adapters, &states, &targets, false).unwrap().sum;
        csrc::backward(&[&loss], &[Some(&one)]).unwrap();
    }
    adapter.parameters().values().map(Tensor::grad).collect()
}

#[test]
fn every_method_changes_the_model_and_trains_all_its_parameters() {
    for family in &families() {
        let model = open(family);
        let ids = some_ids(2, 9);
        let base = hidden(&model, &ids, Active::Base);
        for (name, adapter) in each(&model) {
            let active = Active::All(adapter.as_ref());
            let apart = distance(&logits(&model, &ids, active), &model.logits(&base, Active::Base).unwrap());
            assert!(apart > 1e-3, "{family} {name}: {apart}");
            for (gradient, parameter) in
                gradients(&model, adapter.as_ref(), false, None).iter().zip(adapter.parameters().keys())
            {
                assert!(gradient.defined(), "{family} {name} {parameter}");
                // A constant added to all keys cancels in attention's softmax.
                let blind =
                    parameter.ends_with("k_proj.bias") || parameter.ends_with("k_proj.base_layer.bias");
                let norm = gradient.norm().double_value(&[]);
                assert!(norm > 1e-7 || blind, "{family} {name} {parameter}: {norm}");
            }
        }
        assert_eq!(base, hidden(&model, &ids, Active::Base), "{family}: the base weights were written to");
    }
}

#[test]
fn recomputed_gradients_equal_stored_ones_also_with_dropout() {
    for family in &families() {
        let model = open(family);
        let mut adapters = each(&model);
        for variant in [Variant::Plain, Variant::Dora] {
            let dropped = config(|method| (method.dropout, method.variant) = (0.3, variant));
            let adapter = method_of(&dropped).create(&model, 3).unwrap();
            disturb(adapter.parameters(), 5);
            adapters.push((format!("{variant} with dropout"), adapter));
        }
        for (name, adapter) in adapters {
            let noise = Some(Noise { seed: 9 });
            let plain = gradients(&model, adapter.as_ref(), false, noise);
            let again = gradients(&model, adapter.as_ref(), true, noise);
            for ((plain, again), parameter) in plain.iter().zip(&again).zip(adapter.parameters().keys()) {
                let scale = plain.abs().max().double_value(&[]).max(1.0);
                let error = distance(plain, again) / scale;
                assert!(error <= 1e-5, "{family} {name} {parameter}: {error}");
            }
        }
    }
}

#[test]
fn a_saved_adapter_computes_the_same_after_loading() {
    let folder = tempfile::tempdir().unwrap();
    for family in &families() {
        let model = open(family);
        let ids = some_ids(2, 9);
        for (name, adapter) in each(&model) {
            let path = folder.path().join(format!("{family}-{name}"));
            methods::save(adapter.as_ref(), &path, Purpose::Result).unwrap();
            let back = methods::load(&path, &model).unwrap();
            assert_eq!(back.parameters(), adapter.parameters(), "{family} {name}");
            let found = logits(&model, &ids, Active::All(back.as_ref()));
            assert_eq!(found, logits(&model, &ids, Active::All(adapter.as_ref())), "{family} {name}");
            if name != "full" {
                assert_eq!(peft_config(back.as_ref()), peft_config(adapter.as_ref()), "{family} {name}");
            }
        }
    }
}

#[test]
fn peft_folders_keep_their_names_and_shapes() {
    let folder = tempfile::tempdir().unwrap();
    for run in runs().into_iter().filter(|run| run.has("adapter-final") && !run.is_projected()) {
        let stored = run.path("adapter-final");
        let adapter = methods::load(&stored, &open(&run.family)).unwrap();
        let (path, run) = (folder.path().join(&run.folder), run.folder);
        methods::save(adapter.as_ref(), &path, Purpose::Result).unwrap();
        let weights = |folder: &Path| safetensors::read(&folder.join("adapter_model.safetensors")).unwrap();
        assert_eq!(weights(&path), weights(&stored), "{run}");
        // PEFT's configuration must contain all that ours contains.
        let read = |folder: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (ours, theirs) = (read(&path), read(&stored));
        for (key, value) in ours.as_object().unwrap() {
            let unordered = |value: &Value| -> Value {
                let mut names: Vec<String> =
                    value.as_array().into_iter().flatten().map(Value::to_string).collect();
                names.sort();
                if names.is_empty() { value.clone() } else { json!(names) }
            };
            assert_eq!(unordered(value), unordered(&theirs[key]), "{run} {key}");
        }
    }
}

#[test]
fn adapters_with_older_module_names_are_read() {
    let model = open("gpt_neox");
    let methods = [
        config(|method| method.modules_to_save = vec!["lm_head".to_owned()]),
        config(|method| method.targets = Layers::Names(vec!["lm_head".to_owned(), "dense".to_owned()])),
    ];
    for config in methods {
        let adapter = method_of(&config).create(&model, 7).unwrap();
        disturb(adapter.parameters(), 11);
        let folder = tempfile::tempdir().unwrap();
        methods::save(adapter.as_ref(), folder.path(), Purpose::Result).unwrap();
        let settings = folder.path().join("adapter_config.json");
        let text = std::fs::read_to_string(&settings).unwrap();
        assert!(text.contains("lm_head"));
        std::fs::write(&settings, text.replace("lm_head", "embed_out")).unwrap();
        let weights = folder.path().join("adapter_model.safetensors");
        let renamed: Parameters = safetensors::read(&weights)
            .unwrap()
            .into_iter()
            .map(|(name, tensor)| (name.replace("lm_head", "embed_out"), tensor))
            .collect();
        assert!(renamed.keys().any(|name| name.contains("embed_out")));
        safetensors::write(&weights, renamed.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
        let loaded = methods::load(folder.path(), &model).unwrap();
        let ids = some_ids(2, 9);
        let of = |adapter: &dyn Adapter| logits(&model, &ids, Active::All(adapter));
        assert_eq!(of(loaded.as_ref()), of(adapter.as_ref()));
    }
}

#[test]
fn a_fully_trained_model_opens_alone_and_computes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for family in &families() {
        let model = open(family);
        let adapter = method_of(&config(|method| method.kind = MethodKind::Full)).create(&model, 0).unwrap();
        disturb(adapter.parameters(), 3);
        let path = folder.path().join(family);
        methods::save(adapter.as_ref(), &path, Purpose::Result).unwrap();
        let files = ModelFiles::open(&path).unwrap();
        assert_ne!(files.fingerprint, model.fingerprint());
        let alone = Model::load(&files, Device::Cpu, Kind::Float, Quantisation::None).unwrap();
        let ids = some_ids(2, 9);
        let error = distance(
            &logits(&alone, &ids, Active::Base),
            &logits(&model, &ids, Active::All(adapter.as_ref())),
        );
        assert!(error <= 1e-5, "{family}: {error}");
        let base = safetensors::read(&reference(&format!("tiny/{family}/model.safetensors"))).unwrap();
        let written = safetensors::read(&path.join("model.safetensors")).unwrap();
        assert!(written.keys().all(|name| base.contains_key(name)), "{family}: {:?}", written.keys());
        for (name, tensor) in &written {
            assert_eq!(
                (tensor.size(), tensor.kind()),
                (base[name].size(), base[name].kind()),
                "{family} {name}"
            );
        }
        assert!(path.join("tokenizer.json").is_file() && path.join("config.json").is_file());
    }
}

#[test]
fn a_full_result_is_rounded_to_the_bases_type_but_a_checkpoint_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    in_bf16("llama", &base);
    let model =
        Model::load(&ModelFiles::open(&base).unwrap(), Device::Cpu, Kind::BFloat16, Quantisation::None)
            .unwrap();
    let adapter = method_of(&config(|method| method.kind = MethodKind::Full)).create(&model, 0).unwrap();
    disturb(adapter.parameters(), 3);
    for (name, copy) in adapter.working().unwrap() {
        copy.write(&adapter.parameters()[name]).unwrap();
    }
    for (purpose, kind) in [(Purpose::Result, Kind::BFloat16), (Purpose::Checkpoint, Kind::Float)] {
        let path = folder.path().join(format!("{purpose:?}"));
        methods::save(adapter.as_ref(), &path, purpose).unwrap();
        let written = safetensors::read(&path.join("model.safetensors")).unwrap();
        assert!(written.values().all(|tensor| tensor.kind() == kind), "{purpose:?}");
        let back = methods::load(&path, &model).unwrap();
        let trained = FullMethod.load(&path, &model).unwrap();
        for (name, tensor) in trained.parameters() {
            assert_eq!(tensor, &adapter.parameters()[name].to_kind(kind).to_kind(Kind::Float), "{name}");
            assert_eq!(back.parameters()[name], tensor.to_kind(Kind::BFloat16), "{name}");
        }
        let ids = some_ids(2, 9);
        let found = logits(&model, &ids, Active::All(back.as_ref()));
        assert_eq!(found, logits(&model, &ids, Active::All(adapter.as_ref())), "{purpose:?}");
    }
}

#[test]
fn folded_layers_equal_adapted_ones() {
    for family in &families() {
        let model = open(family);
        for (name, adapter) in each(&model).into_iter().filter(|(_, adapter)| adapter.virtual_tokens() == 0) {
            for linear in model.linears() {
                let x = Tensor::randn([5, linear.in_features as i64], (Kind::Float, Device::Cpu));
                let positions = columns(1, 5);
                let adapters = Active::All(adapter.as_ref());
                let pass = Pass { positions: &positions, mask: Mask::Causal, adapters, noise: None };
                let folded = linear.folded(Some(adapter.as_ref()), Kind::Float).unwrap();
                let alone = x.linear(&folded.weight, folded.bias.as_ref());
                let error = distance(&alone, &linear.forward(&x, &pass).unwrap());
                assert!(error <= 1e-4, "{family} {name} {}: {error}", linear.name);
            }
        }
    }
}

/// Greedy tokens, each computed from the whole sequence.
fn without_cache(model: &Model, adapter: Option<&dyn Adapter>, prompt: &[u32], count: usize) -> Vec<u32> {
    let _guard = tch::no_grad_guard();
    let active = adapter.map_or(Active::Base, Active::All);
    let mut ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
    for _ in 0..count {
        let all = logits(model, &Tensor::from_slice(&ids).unsqueeze(0), active);
        ids.push(all.get(0).get(-1).argmax(-1, false).int64_value(&[]));
    }
    ids[prompt.len()..].iter().map(|&id| id as u32).collect()
}

#[test]
fn cached_generation_equals_uncached_for_every_method() {
    for family in &families() {
        let model = open(family);
        let adapters = each(&model);
        let prompts: [&[u32]; 3] = [&[39, 83, 355, 379, 354], &[56, 7], &[3, 274, 73, 30, 8, 9, 10, 11]];
        let asked: Vec<(&[u32], Option<&dyn Adapter>)> = adapters
            .iter()
            .map(|(_, adapter)| Some(adapter.as_ref()))
            .chain([None, None])
            .enumerate()
            .map(|(place, adapter)| (prompts[place % 3], adapter))
            .collect();
        let rows: Vec<Row> = asked
            .iter()
            .map(|&(prompt, adapter)| Row {
                prompt,
                adapter,
                sampling: Sampling::GREEDY,
                seed: 0,
                stop: &[],
                max_new_tokens: 12,
            })
            .collect();
        let together = generate(&model, &rows, &mut |_, _| ControlFlow::Continue(())).unwrap();
        for (place, (completion, (prompt, adapter))) in together.iter().zip(&asked).enumerate() {
            let name = adapters.get(place).map_or("base", |(name, _)| name.as_str());
            let alone = without_cache(&model, *adapter, prompt, 12);
            assert_eq!(completion.tokens, alone, "{family} {name}");
        }
    }
}

#[test]
fn a_batch_of_all_methods_without_virtual_tokens_equals_each_row_alone() {
    for family in &families() {
        let model = open(family);
        let mut adapters = each(&model);
        adapters.retain(|(_, adapter)| adapter.virtual_tokens() == 0);
        let rows: Vec<Option<&dyn Adapter>> =
            adapters.iter().map(|(_, adapter)| Some(adapter.as_ref())).chain([None]).collect();
        let ids = some_ids(rows.len() as i64, 9);
        let mixed = logits(&model, &ids, Active::Rows(&rows));
        for (row, adapter) in rows.iter().enumerate() {
            let active = adapter.map_or(Active::Base, Active::All);
            let alone = logits(&model, &ids.narrow(0, row as i64, 1), active);
            let error = distance(&mixed.get(row as i64), &alone.get(0));
            assert!(error <= 1e-5, "{family} {row}: {error}");
        }
    }
}

#[test]
fn every_packed_document_sees_the_virtual_tokens() {
    for family in &families() {
        let model = open(family);
        for (name, adapter) in each(&model) {
            let lengths = [6_i64, 3, 9];
            let ids = some_ids(1, 18);
            let parts: Vec<Tensor> = lengths.iter().map(|&length| columns(1, length)).collect();
            let positions = Tensor::cat(&parts, 1);
            let adapters = Active::All(adapter.as_ref());
            let pass = Pass { positions: &positions, mask: Mask::Documents(&lengths), adapters, noise: None };
            let packed = model.logits(&model.hidden(&ids, &pass, None).unwrap(), adapters).unwrap();
            let mut start = 0;
            for length in lengths {
                let alone = logits(&model, &ids.narrow(1, start, length), adapters);
                let error = distance(&packed.narrow(1, start, length), &alone);
                let largest = alone.abs().max().double_value(&[]);
                // These two have the largest logits, up to 5.9 under rsLoRA, and thus the largest rounding.
                let bound = if family.starts_with("qwen") { 1.1e-5 } else { 1e-5 };
                assert!(error <= bound, "{family} {name} {length}: {error} of {largest}");
                start += length;
            }
        }
    }
}

#[test]
fn a_new_adapter_depends_only_on_its_seed_and_starts_like_pefts() {
    let model = open("llama");
    let ids = some_ids(2, 9);
    let base = logits(&model, &ids, Active::Base);
    let create =
        |change: fn(&mut MethodSection), seed| method_of(&config(change)).create(&model, seed).unwrap();
    let unchanged: [fn(&mut MethodSection); 5] = [
        |method| method.variant = Variant::Rslora,
        |method| method.variant = Variant::Dora,
        |method| method.kind = MethodKind::Ia3,
        |method| method.kind = MethodKind::Full,
        |method| method.modules_to_save = vec!["lm_head".to_owned(), "embed_tokens".to_owned()],
    ];
    for (place, change) in unchanged.into_iter().enumerate() {
        let adapter = create(change, 1);
        let error = distance(&logits(&model, &ids, Active::All(adapter.as_ref())), &base);
        assert!(error <= 1e-5, "{place}: {error}");
    }
    for kind in [MethodKind::Prefix, MethodKind::Prompt] {
        let create = |seed| {
            let settings = config(|method| (method.kind, method.virtual_tokens) = (kind, 50));
            method_of(&settings).create(&model, seed).unwrap()
        };
        let [one, same, other] = [1, 1, 2].map(create);
        assert_eq!(one.parameters(), same.parameters());
        assert_ne!(one.parameters(), other.parameters());
        let values = &one.parameters()["prompt_embeddings"];
        let (mean, spread) = (values.mean(Kind::Float), values.std(false));
        assert!(mean.double_value(&[]).abs() < 0.05, "{kind}");
        assert!((spread.double_value(&[]) - 1.0).abs() < 0.05, "{kind}");
    }
}

/// Writes an adapter folder with a changed configuration.
fn changed(folder: &Path, run: &str, change: &dyn Fn(&mut Value)) {
    let stored = reference(&format!("training/{run}/adapter-init"));
    std::fs::create_dir_all(folder).unwrap();
    std::fs::copy(stored.join("adapter_model.safetensors"), folder.join("adapter_model.safetensors"))
        .unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(stored.join("adapter_config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

#[test]
fn unsupported_options_of_peft_are_refused_by_name() {
    let (model, folder) = (open("llama"), tempfile::tempdir().unwrap());
    let cases: [(&str, &str, Value, &str); 15] = [
        ("llama/lora", "use_qalora", json!(true), "use_qalora"),
        ("llama/lora", "lora_bias", json!(true), "lora_bias"),
        ("llama/lora", "layer_replication", json!([[0, 2]]), "layer_replication"),
        ("llama/lora", "trainable_token_indices", json!([1, 2]), "trainable_token_indices"),
        ("llama/lora", "something_of_tomorrow", json!("x"), "something_of_tomorrow"),
        ("llama/lora", "init_lora_weights", json!("pissa"), "init_lora_weights"),
        ("llama/lora", "task_type", json!("SEQ_CLS"), "SEQ_CLS"),
        ("llama/lora", "rank_pattern", json!({"q_proj": 4}), "[8, 64], but needs [4, 64]"),
        ("llama/lora", "modules_to_save", json!(["lm_head"]), "base_model.model.lm_head.weight is missing"),
        ("llama/lora", "use_dora", json!(true), "lora_magnitude_vector is missing"),
        ("llama/lora", "bias", json!("some"), "no valid bias"),
        ("llama/lora", "peft_type", json!("VERA"), "VERA"),
        ("llama/prefix", "num_virtual_tokens", json!(9), "needs [9, 192]"),
        ("llama/prefix", "token_dim", json!(64), "its token_dim is 64, but this model needs 32"),
        ("llama/prompt", "num_transformer_submodules", json!(2), "num_transformer_submodules"),
    ];
    for (place, (run, key, value, told)) in cases.into_iter().enumerate() {
        let path = folder.path().join(place.to_string());
        changed(&path, run, &|config| config[key] = value.clone());
        let Err(EngineError::Adapter { problems, .. }) = methods::load(&path, &model) else {
            panic!("{key} = {value} was accepted");
        };
        assert!(problems.join("\n").contains(told), "{key}: {problems:?}");
    }
    let path = folder.path().join("other");
    changed(&path, "llama/ia3", &|_| ());
    let refused = method_of(&config(|_| ())).load(&path, &model).err().unwrap().to_string();
    assert!(refused.contains("its peft_type is IA3, but LORA is needed"), "{refused}");
    let other =
        methods::load(&reference("training/phi/lora/adapter-init"), &model).err().unwrap().to_string();
    assert!(other.contains("does not fit"), "{other}");
    let nothing = methods::load(folder.path(), &model).err().unwrap().to_string();
    assert!(nothing.contains("neither an adapter_config.json nor a config.json"), "{nothing}");
}

#[test]
fn rank_and_alpha_patterns_are_applied_and_saved() {
    let (model, folder) = (open("llama"), tempfile::tempdir().unwrap());
    let adapter = method_of(&config(|_| ())).create(&model, 1).unwrap();
    disturb(adapter.parameters(), 2);
    // Half the rank and another scale for one module: the second half of its factors is cut off.
    let narrowed: Parameters = adapter
        .parameters()
        .iter()
        .map(|(name, tensor)| {
            let cut = name.contains("layers.1.mlp.up_proj");
            let dimension = i64::from(name.contains("lora_B"));
            (name.clone(), if cut { tensor.narrow(dimension, 0, 2) } else { tensor.shallow_clone() })
        })
        .collect();
    let mut config = peft_config(adapter.as_ref());
    config["rank_pattern"] = json!({"layers.1.mlp.up_proj": 2});
    config["alpha_pattern"] = json!({r".*\.1\.mlp\.up_proj": 5, "up_proj": 7});
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let named = narrowed.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::write(&folder.path().join("adapter_model.safetensors"), named).unwrap();
    let loaded = methods::load(folder.path(), &model).unwrap();
    assert_eq!(peft_config(loaded.as_ref()), config);
    for (layer, scale) in [(0, 7.0 / 4.0), (1, 5.0 / 2.0), (2, 7.0 / 4.0)] {
        let name = format!("model.layers.{layer}.mlp.up_proj");
        let linear = model.linears().find(|linear| linear.name == name).unwrap();
        let folded = linear.folded(Some(loaded.as_ref()), Kind::Float).unwrap().weight;
        let factor = |part: &str| &loaded.parameters()[&format!("base_model.model.{name}.{part}.weight")];
        let change = factor("lora_B").matmul(factor("lora_A")) * scale;
        let error = distance(&(folded - linear.weight().dense(Kind::Float).unwrap()), &change);
        assert!(error <= 1e-6, "{name}: {error}");
    }
}

#[test]
fn a_head_stored_with_its_adapter_must_be_the_bases() {
    let (model, folder) = (open("llama"), tempfile::tempdir().unwrap());
    let on_head =
        config(|method| method.targets = luthier_core::config::Targets::Names(vec!["lm_head".into()]));
    let adapter = method_of(&on_head).create(&model, 1).unwrap();
    methods::save(adapter.as_ref(), folder.path(), Purpose::Result).unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    let mut weights = safetensors::read(&path).unwrap();
    let mut write = |head: Tensor| {
        weights.insert("base_model.model.lm_head.base_layer.weight".into(), head);
        let named = weights.iter().map(|(name, tensor)| (name.as_str(), tensor));
        safetensors::write(&path, named).unwrap();
        methods::load(folder.path(), &model)
    };
    let head = tensors("tiny/llama/model.safetensors").remove("lm_head.weight").unwrap();
    assert_eq!(write(head.copy()).unwrap().parameters(), adapter.parameters());
    let refused = write(head + 0.5).err().unwrap().to_string();
    assert!(refused.contains("is not the base model's"), "{refused}");
}

#[test]
fn a_mask_without_padding_equals_rows_also_when_virtual_tokens_leave_a_window() {
    for family in ["gemma2", "mistral", "llama"] {
        let model = open(family);
        let ids = &tensors(&format!("tiny/{family}/ref.safetensors"))["input_ids"];
        let (rows, width) = ids.size2().unwrap();
        let (positions, all) = (columns(rows, width), Tensor::ones([rows, width], (Kind::Bool, Device::Cpu)));
        for (name, adapter) in each(&model) {
            let adapters = Active::All(adapter.as_ref());
            let pass = Pass { positions: &positions, mask: Mask::Columns(&all), adapters, noise: None };
            let error = distance(&model.hidden(ids, &pass, None).unwrap(), &hidden(&model, ids, adapters));
            assert!(error <= 1e-4, "{family} {name}: {error}");
        }
    }
}
