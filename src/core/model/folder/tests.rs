use std::os::unix::fs::symlink;

use pretty_assertions::assert_eq;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::Arrangement;
use crate::model::architecture::{Mlp, RopeScaling, RopeSpec};
use crate::model::{SpecialToken, Storage};
use crate::testing::{changes, damage, damaged, spoilt, tiny_models};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny/llama");

/// A copy of the tiny llama, to be modified.
fn tiny() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        fs::copy(Path::new(TINY).join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn edit(folder: &tempfile::TempDir, name: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.path().join(name);
    let mut object = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut object);
    fs::write(&path, serde_json::to_vec(&object).unwrap()).unwrap();
}

fn refusal(folder: &tempfile::TempDir) -> String {
    ModelFiles::open(folder.path()).unwrap_err().to_string()
}

/// A safetensors file of `[rows, columns]` f32 tensors.
fn safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(
            (*name).to_owned(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}),
        );
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&header);
    bytes.resize(bytes.len() + end, 0);
    bytes
}

/// The tiny llama's tensors in two shards with an index.
fn sharded() -> tempfile::TempDir {
    let folder = tiny();
    let model = ModelFiles::open(folder.path()).unwrap();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut weight_map = serde_json::Map::new();
    let tensors: Vec<(&str, &[usize])> =
        model.tensors.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice())).collect();
    for (number, part) in [&tensors[..10], &tensors[10..]].into_iter().enumerate() {
        let name = format!("model-{number}.safetensors");
        fs::write(folder.path().join(&name), safetensors(part)).unwrap();
        for (tensor, _) in part {
            weight_map.insert((*tensor).to_owned(), json!(name));
        }
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

#[test]
fn the_tiny_llama_is_read_whole() {
    let model = ModelFiles::open(Path::new(TINY)).unwrap();
    let architecture = &model.architecture;
    assert_eq!((architecture.family, architecture.vocabulary, architecture.hidden), ("llama", 512, 64));
    assert_eq!((architecture.positions, architecture.layers.len(), architecture.tied_head), (128, 3, false));
    let layer = &architecture.layers[2];
    let attention = &layer.attention;
    assert_eq!((attention.heads, attention.key_value_heads, attention.head_size), (4, 2, 16));
    assert_eq!(
        (attention.scale, attention.rope().unwrap().theta, attention.rope().unwrap().rotated),
        (0.25, 10_000.0, 16)
    );
    assert!(matches!(layer.mlp, Mlp::Gated { width: 128, bias: false, .. }));
    assert_eq!(model.tensors.len(), 3 + 3 * 9);
    assert_eq!(model.parameters(), 176_576);
    let query = &model.tensors["model.layers.1.self_attn.q_proj.weight"];
    assert_eq!(
        (query.shape.as_slice(), query.storage, query.bytes),
        (&[64, 64][..], Storage::F32, 4 * 64 * 64)
    );
    assert_eq!(query.arrangement, Arrangement::Plain);
    assert!(model.chat_template.as_deref().unwrap().starts_with("{% for message in messages %}"));
    let token = |id, text: &str| SpecialToken { id: Some(id), text: Some(text.to_owned()) };
    assert_eq!(model.special.bos, Some(token(0, "<|begin_of_text|>")));
    assert_eq!(model.special.eos, [token(1, "<|end_of_text|>")]);
    assert_eq!(model.special.pad, Some(token(2, "<|pad|>")));
    assert_eq!(model.fingerprint.len(), 64);
}

#[test]
fn both_spellings_of_the_configuration_give_one_model() {
    let folder = tiny();
    let new = ModelFiles::open(folder.path()).unwrap();
    fs::copy(Path::new(TINY).join("config_v4.json"), folder.path().join("config.json")).unwrap();
    let old = ModelFiles::open(folder.path()).unwrap();
    assert_eq!(old.architecture, new.architecture);
    assert_eq!(old.special, new.special);
    assert_eq!(old.fingerprint, new.fingerprint);
}

#[test]
fn rotary_scaling_is_the_same_in_both_spellings() {
    let open = |change: fn(&mut serde_json::Map<String, Value>)| {
        let folder = tiny();
        edit(&folder, "config.json", change);
        ModelFiles::open(folder.path())
            .map(|model| model.architecture.layers[0].attention.rope().unwrap().clone())
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_positions: 64,
    };
    let new = open(|config| {
        config["rope_parameters"] = json!({"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    });
    let old = open(|config| {
        config.remove("rope_parameters");
        config.insert("rope_theta".to_owned(), json!(500_000));
        config.insert(
            "rope_scaling".to_owned(),
            json!({"rope_type": "llama3", "factor": 8,
            "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}),
        );
    });
    let wanted = RopeSpec { theta: 500_000.0, rotated: 16, scaling: llama3 };
    assert_eq!(new.unwrap(), wanted);
    assert_eq!(old.unwrap(), wanted);
    let linear = open(|config| {
        config.remove("rope_parameters");
        config.insert("rope_scaling".to_owned(), json!({"type": "linear", "factor": 2.0}));
    });
    assert_eq!(linear.unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
    for (change, words) in [
        (json!({"rope_type": "mrope", "factor": 4.0}), "`rope_parameters.rope_type` = \"mrope\""),
        (json!({"rope_type": "linear"}), "`rope_parameters.factor` is missing"),
        (json!({"rope_type": "linear", "factor": 0.5}), "must be at least 1"),
        (json!({"partial_rotary_factor": 0.5}), "partial rotary"),
        (json!("default"), "must be an object"),
    ] {
        let folder = tiny();
        edit(&folder, "config.json", |config| config["rope_parameters"] = change);
        let error = refusal(&folder);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn errors_of_configurations_name_the_key() {
    for (key, value, words) in [
        ("model_type", json!("mamba"), "unknown architecture `mamba`; supported: llama"),
        ("model_type", json!("x\u{1b}[2J"), "unknown architecture `x[2J`"),
        ("model_type", json!(null), "`model_type` is missing"),
        ("hidden_size", json!(null), "`hidden_size` is missing"),
        ("hidden_size", json!(1_u64 << 60), "`hidden_size` must be a whole number from 1"),
        ("num_hidden_layers", json!(1_000_000), "`num_hidden_layers` must be at most 4096"),
        ("num_attention_heads", json!(0), "`num_attention_heads` must be a whole number from 1"),
        ("num_key_value_heads", json!(3), "`num_key_value_heads` must divide"),
        ("head_dim", json!(15), "`head_dim` must be even"),
        ("hidden_act", json!("relu2"), "this activation (`hidden_act` = \"relu2\")"),
        ("rms_norm_eps", json!(0.0), "`rms_norm_eps` must be above 0"),
        ("tie_word_embeddings", json!("no"), "`tie_word_embeddings` must be true or false"),
        ("quantization_config", json!({"quant_method": "gptq"}), "quantised Hugging Face format"),
    ] {
        let folder = tiny();
        edit(&folder, "config.json", |config| {
            config.insert(key.to_owned(), value);
        });
        let error = refusal(&folder);
        assert!(error.contains(words) && error.contains("config.json"), "{error}");
    }
}

#[test]
fn biases_are_expected_where_configured() {
    let folder = tiny();
    edit(&folder, "config.json", |config| {
        config["attention_bias"] = json!(true);
        config["mlp_bias"] = json!(true);
    });
    let ModelError::Tensors { problems, .. } = ModelFiles::open(folder.path()).unwrap_err() else {
        panic!("other error")
    };
    assert_eq!(problems.missing.len(), 3 * 7);
    assert!(problems.missing.contains(&"model.layers.2.self_attn.o_proj.bias".to_owned()));
    assert_eq!((problems.unexpected, problems.shapes), (vec![], vec![]));
}

/// The tiny llama with a tied head that is also stored.
fn tied() -> tempfile::TempDir {
    let folder = tiny();
    edit(&folder, "config.json", |config| config["tie_word_embeddings"] = json!(true));
    let files = ModelFiles::open(folder.path()).unwrap();
    let [embedding, head] = ["model.embed_tokens.weight", "lm_head.weight"].map(|name| &files.tensors[name]);
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let from = embedding.offset as usize;
    bytes.copy_within(from..from + embedding.bytes as usize, head.offset as usize);
    fs::write(&path, &bytes).unwrap();
    folder
}

#[test]
fn a_head_with_other_values_is_not_tied_despite_the_settings() {
    let folder = tiny();
    edit(&folder, "config.json", |config| config["tie_word_embeddings"] = json!(true));
    let model = ModelFiles::open(folder.path()).unwrap();
    assert!(!model.architecture.tied_head && model.tensors.contains_key("lm_head.weight"));
    assert!(ModelFiles::open(tied().path()).unwrap().architecture.tied_head);
}

#[test]
fn all_tensor_problems_are_reported_at_once() {
    let folder = tied();
    edit(&folder, "config.json", |config| {
        config["num_hidden_layers"] = json!(4);
        config["vocab_size"] = json!(500);
    });
    let ModelError::Tensors { problems, .. } = ModelFiles::open(folder.path()).unwrap_err() else {
        panic!("other error")
    };
    assert_eq!(problems.missing.len(), 9);
    // A stored copy of the tied head is not reported.
    assert_eq!(problems.unexpected, Vec::<String>::new());
    assert_eq!(problems.shapes, [("model.embed_tokens.weight".to_owned(), vec![500, 64], vec![512, 64])]);
    edit(&folder, "config.json", |config| {
        config["num_hidden_layers"] = json!(2);
        config["vocab_size"] = json!(512);
    });
    let ModelError::Tensors { problems, .. } = ModelFiles::open(folder.path()).unwrap_err() else {
        panic!("other error")
    };
    assert_eq!((problems.missing.len(), problems.unexpected.len()), (0, 9));
}

#[test]
fn a_tied_head_is_listed_as_linear_but_not_as_tensor() {
    let folder = tied();
    let model = ModelFiles::open(folder.path()).unwrap();
    assert!(!model.tensors.contains_key("lm_head.weight"));
    let modules = model.linear_modules();
    assert_eq!(modules.len(), 3 * 7 + 1);
    let head = modules.last().unwrap();
    assert_eq!((head.name.as_str(), head.in_features, head.out_features), ("lm_head", 64, 512));
}

#[test]
fn harmless_tensors_are_ignored_and_unreadable_types_named() {
    let folder = sharded();
    let path = folder.path().join("extra.safetensors");
    fs::write(&path, safetensors(&[("model.layers.0.self_attn.rotary_emb.inv_freq", &[8])])).unwrap();
    edit(&folder, "model.safetensors.index.json", |index| {
        index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = json!("extra.safetensors");
    });
    assert_eq!(ModelFiles::open(folder.path()).unwrap().tensors.len(), 30);

    let folder = tiny();
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(3).position(|window| window == b"F32").unwrap();
    bytes[at..at + 3].copy_from_slice(b"I32");
    fs::write(&path, bytes).unwrap();
    let error = refusal(&folder);
    assert!(error.contains("is stored as I32; readable: F32, F16, BF16"), "{error}");
}

/// The tiny reference of a family, without the first part of its tensor names and with more tensors.
fn bare(family: &str, more: &[(&str, &[usize])]) -> tempfile::TempDir {
    let reference = Path::new(TINY).with_file_name(family);
    let folder = tiny();
    fs::copy(reference.join("config.json"), folder.path().join("config.json")).unwrap();
    let tensors = ModelFiles::open(&reference).unwrap().tensors;
    let bare = tensors.iter().filter(|(name, _)| !name.starts_with("lm_head")).map(|(name, entry)| {
        let mut shape = entry.shape.clone();
        if entry.arrangement == Arrangement::Transposed {
            shape.reverse();
        }
        (name.split_once('.').unwrap().1.to_owned(), shape)
    });
    let bare: Vec<_> = bare.collect();
    let named = bare.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
    let all: Vec<_> = named.chain(more.iter().copied()).collect();
    fs::write(folder.path().join("model.safetensors"), safetensors(&all)).unwrap();
    folder
}

#[test]
fn weights_saved_without_their_head_have_shorter_names() {
    let leftovers: [(&str, &[usize]); 2] = [("h.0.attn.bias", &[1, 1, 8, 8]), ("h.0.attn.masked_bias", &[1])];
    let model = ModelFiles::open(bare("gpt2", &leftovers).path()).unwrap();
    let reference = ModelFiles::open(&Path::new(TINY).with_file_name("gpt2")).unwrap();
    assert_eq!(model.tensors.keys().collect::<Vec<_>>(), reference.tensors.keys().collect::<Vec<_>>());
    let entry = &model.tensors["transformer.h.1.mlp.c_fc.weight"];
    assert_eq!((entry.shape.as_slice(), entry.arrangement), (&[256, 64][..], Arrangement::Transposed));
    let error = refusal(&bare("gpt2", &[("h.3.attn.c_attn.bias", &[192])]));
    assert!(error.contains("not part of this architecture (1):\n    h.3.attn.c_attn.bias"), "{error}");
    let error = refusal(&bare("llama", &[]));
    assert!(error.contains("missing (1):\n    lm_head.weight"), "{error}");
}

#[test]
fn shards_are_found_through_the_index() {
    let folder = sharded();
    let model = ModelFiles::open(folder.path()).unwrap();
    assert_eq!(model.files.len(), 2);
    assert_eq!(model.tensors.len(), 30);
    let last =
        model.tensors.values().filter(|entry| entry.file == 1).map(|entry| entry.offset + entry.bytes).max();
    assert_eq!(last, Some(fs::metadata(&model.files[1]).unwrap().len()));
}

#[test]
fn the_index_cannot_point_outside_of_its_folder() {
    let outside = sharded();
    let foreign = outside.path().join("model-0.safetensors");
    for name in [
        foreign.to_str().unwrap(),
        "../x.safetensors",
        "a/../../x.safetensors",
        "/x.safetensors",
        "./model-0.safetensors/..",
    ] {
        let folder = sharded();
        edit(&folder, "model.safetensors.index.json", |index| {
            index["weight_map"]["lm_head.weight"] = json!(name);
        });
        let error = refusal(&folder);
        assert!(error.contains("points outside of the model folder"), "{name}: {error}");
    }
    let folder = sharded();
    edit(&folder, "model.safetensors.index.json", |index| {
        index["weight_map"]["lm_head.weight"] = json!("model-7.safetensors");
    });
    let error = refusal(&folder);
    assert!(error.contains("`model-7.safetensors` is the name of a missing file"), "{error}");
}

/// Whether `act` opens a file of the folder `watched`, according to the kernel (inotify(7)).
fn opens(watched: &Path, act: impl FnOnce()) -> bool {
    use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
    let watch = init(CreateFlags::NONBLOCK).unwrap();
    add_watch(&watch, watched, WatchFlags::OPEN | WatchFlags::ACCESS).unwrap();
    act();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    Reader::new(&watch, &mut buffer).next().is_ok()
}

#[test]
fn no_file_is_opened_through_a_link_out_of_the_folder() {
    let outside = sharded();
    fs::copy(Path::new(TINY).join("model.safetensors"), outside.path().join("model.safetensors")).unwrap();
    fs::write(outside.path().join("chat_template.jinja"), "x").unwrap();
    fs::write(outside.path().join("special_tokens_map.json"), "{}").unwrap();
    for name in [
        "config.json",
        "model-0.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ] {
        let folder = sharded();
        let path = folder.path().join(name);
        let _ = fs::remove_file(&path);
        symlink(outside.path().join(name), &path).unwrap();
        let mut error = String::new();
        assert!(!opens(outside.path(), || error = refusal(&folder)), "{name}");
        assert!(error.contains(name) && error.contains("outside of its folder"), "{error}");
        // The same file inside the folder is accepted.
        fs::remove_file(&path).unwrap();
        fs::copy(outside.path().join(name), folder.path().join("elsewhere")).unwrap();
        symlink("elsewhere", &path).unwrap();
        assert!(opens(folder.path(), || assert!(ModelFiles::open(folder.path()).is_ok(), "{name}")));
    }
}

#[test]
fn pipes_and_devices_in_a_folder_are_refused_without_waiting() {
    for name in [
        "config.json",
        "model.safetensors",
        "model-0.safetensors",
        "model.safetensors.index.json",
        "tokenizer_config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ] {
        let folder = sharded();
        let path = folder.path().join(name);
        let _ = fs::remove_file(&path);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        let error = refusal(&folder);
        assert!(error.contains(name) && error.contains("a pipe"), "{error}");
    }
    let folder = tiny();
    let path = folder.path().join("tokenizer.json");
    fs::remove_file(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
    assert!(refusal(&folder).contains("a pipe"));
}

#[test]
fn files_that_would_fill_the_memory_are_refused() {
    let folder = tiny();
    let numbers = format!("{{\"x\": [{}0]}}", "0,".repeat(1 << 20));
    for (name, words) in [
        ("config.json", "larger than"),
        ("tokenizer_config.json", "more than 524288 values"),
        ("generation_config.json", "more than 524288 values"),
    ] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &numbers).unwrap();
        let error = refusal(&folder);
        assert!(error.contains(name) && error.contains(words), "{error}");
        fs::write(&path, whole).unwrap();
    }
    let ends: Vec<u32> = (0..512).collect();
    edit(&folder, "generation_config.json", |config| config["eos_token_id"] = json!(ends));
    assert!(refusal(&folder).contains("`eos_token_id` names 512 tokens"));
    let folder = sharded();
    let many: serde_json::Map<String, Value> =
        (0..300_000).map(|n| (format!("t{n}"), json!("model-0.safetensors"))).collect();
    edit(&folder, "model.safetensors.index.json", |index| index["weight_map"] = many.into());
    assert!(refusal(&folder).contains("more than 262144 values"));
    for number in 0..=MAX_SHARDS {
        symlink("model-0.safetensors", folder.path().join(format!("s{number}.safetensors"))).unwrap();
    }
    let many: serde_json::Map<String, Value> =
        (0..=MAX_SHARDS).map(|n| (format!("t{n}"), json!(format!("s{n}.safetensors")))).collect();
    edit(&folder, "model.safetensors.index.json", |index| index["weight_map"] = many.into());
    assert!(refusal(&folder).contains("names 1025 files"));
}

#[test]
fn links_in_the_hub_cache_are_accepted() {
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/0123abcd"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for entry in fs::read_dir(sharded().path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), blobs.join(entry.file_name())).unwrap();
        symlink(Path::new("../../blobs").join(entry.file_name()), snapshot.join(entry.file_name())).unwrap();
    }
    assert_eq!(ModelFiles::open(&snapshot).unwrap().tensors.len(), 30);
}

#[test]
fn shards_without_their_tensors_and_tensors_in_two_shards_are_refused() {
    let folder = sharded();
    edit(&folder, "model.safetensors.index.json", |index| {
        index["weight_map"]["model.norm.bias"] = json!("model-0.safetensors");
    });
    let error = refusal(&folder);
    assert!(error.contains("model.norm.bias (in model-0.safetensors)"), "{error}");

    let folder = sharded();
    fs::copy(folder.path().join("model-0.safetensors"), folder.path().join("model-2.safetensors")).unwrap();
    edit(&folder, "model.safetensors.index.json", |index| {
        index["weight_map"]["model.embed_tokens.weight"] = json!("model-2.safetensors");
    });
    let error = refusal(&folder);
    assert!(error.contains("is in an earlier file too"), "{error}");
}

#[test]
fn pickles_are_refused_with_the_remedy() {
    let folder = tiny();
    fs::rename(folder.path().join("model.safetensors"), folder.path().join("pytorch_model.bin")).unwrap();
    let error = refusal(&folder);
    assert!(
        error.contains("pytorch_model.bin is a pickle file") && error.contains("save_pretrained"),
        "{error}"
    );
    let error = ModelFiles::open(&folder.path().join("pytorch_model.bin")).unwrap_err();
    assert!(matches!(error, ModelError::Pickle { .. }), "{error}");
    fs::remove_file(folder.path().join("pytorch_model.bin")).unwrap();
    assert!(refusal(&folder).contains("holds no weights"));

    let folder = sharded();
    edit(&folder, "model.safetensors.index.json", |index| {
        index["weight_map"]["lm_head.weight"] = json!("pytorch_model.bin");
    });
    assert!(refusal(&folder).contains("pickle"));
}

#[test]
fn missing_and_damaged_files_say_what_to_do() {
    let missing = ModelFiles::open(Path::new("/nowhere/at/all")).unwrap_err().to_string();
    assert!(missing.contains("/nowhere/at/all does not exist"), "{missing}");

    let folder = tiny();
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(refusal(&folder).contains("tokenizer.json: is missing; download it"));
    fs::write(folder.path().join("tokenizer.model"), b"x").unwrap();
    assert!(refusal(&folder).contains("Convert it"));

    let folder = tiny();
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(refusal(&folder).contains("damaged or was not downloaded completely"));

    let folder = tiny();
    fs::write(folder.path().join("config.json"), b"{\"model_type\": ").unwrap();
    assert!(refusal(&folder).contains("config.json: not a JSON object"));

    let folder = tiny();
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(refusal(&folder).contains("a folder without config.json; give a folder"));
    fs::write(folder.path().join("m.gguf"), b"x").unwrap();
    assert!(refusal(&folder).contains("m.gguf itself"));
    let error = ModelFiles::open(&folder.path().join("model.safetensors")).unwrap_err().to_string();
    assert!(error.contains("give its folder"), "{error}");
}

#[test]
fn the_template_file_overrides_the_configuration() {
    let folder = tiny();
    let template = |folder: &tempfile::TempDir| ModelFiles::open(folder.path()).unwrap().chat_template;
    edit(&folder, "tokenizer_config.json", |config| {
        config["chat_template"] =
            json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]);
    });
    assert_eq!(template(&folder).as_deref(), Some("plain"));
    edit(&folder, "tokenizer_config.json", |config| {
        config.remove("chat_template");
    });
    assert_eq!(template(&folder), None);
    fs::write(folder.path().join("chat_template.jinja"), "from file").unwrap();
    assert_eq!(template(&folder).as_deref(), Some("from file"));
}

#[test]
fn all_end_tokens_are_kept_the_tokenizers_first() {
    let folder = tiny();
    edit(&folder, "generation_config.json", |config| config["eos_token_id"] = json!([2, 1, 70_000, -1]));
    edit(&folder, "tokenizer_config.json", |config| {
        config["eos_token"] = json!({"content": "<|end_of_text|>", "lstrip": false});
    });
    let special = ModelFiles::open(folder.path()).unwrap().special;
    assert_eq!(special.eos_ids(), [1, 2]);
    assert_eq!(special.eos[1].text.as_deref(), Some("<|pad|>"));
}

#[test]
fn ids_of_special_tokens_come_from_the_configuration() {
    let folder = tiny();
    edit(&folder, "tokenizer_config.json", |config| {
        let listed = json!({"7": {"content": "<|end_of_text|>"}, "600": {"content": "<|begin_of_text|>"}});
        config.insert("added_tokens_decoder".to_owned(), listed);
    });
    let special = ModelFiles::open(folder.path()).unwrap().special;
    assert_eq!(special.eos_ids(), [7, 1]);
    // 600 is beyond the vocabulary.
    assert_eq!(special.bos.unwrap().id, Some(0));
}

#[test]
fn the_fingerprint_depends_on_weights_and_not_on_paths() {
    let fingerprint = |folder: &tempfile::TempDir| ModelFiles::open(folder.path()).unwrap().fingerprint;
    let (one, other) = (tiny(), tiny());
    assert_eq!(fingerprint(&one), fingerprint(&other));
    edit(&other, "config.json", |config| config["rms_norm_eps"] = json!(1e-6));
    assert_ne!(fingerprint(&one), fingerprint(&other));
    let other = tiny();
    let path = other.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let model = ModelFiles::open(other.path()).unwrap();
    // A norm is shorter than a sample, so every byte of it is hashed.
    let norm = &model.tensors["model.norm.weight"];
    bytes[norm.offset as usize] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_ne!(fingerprint(&one), fingerprint(&other));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn damaged_settings_are_refused_or_valid(
        which in any::<prop::sample::Index>(),
        changes in changes(),
    ) {
        let folder = which.get(&tiny_models()).clone();
        let path = folder.join("config.json");
        let document = spoilt(&serde_json::from_slice(&fs::read(&path).unwrap()).unwrap(), &changes);
        let Value::Object(values) = document else { return Ok(()) };
        let settings = Settings::new(&path, values, Vec::new());
        if let Ok((_, architecture)) = families::of_config(&settings) {
            prop_assert!(!architecture.parameters().is_empty());
            prop_assert!(architecture.linear_modules().len() <= architecture.parameters().len() + 1);
        }
    }

    #[test]
    fn damaged_settings_are_refused_or_read(which in any::<prop::sample::Index>(), damage in damage()) {
        let source = which.get(&tiny_models()).join("config.json");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, damaged(&fs::read(source).unwrap(), &damage)).unwrap();
        if let Ok(settings) = Settings::read(&path) {
            let _ = families::of_config(&settings);
        }
    }

    #[test]
    fn an_index_cannot_open_files_outside_of_the_folder(
        names in prop::collection::vec("[./a]{0,6}(model-[01]|/etc/x|\u{0})(\\.safetensors)?", 1..4),
        changes in changes(),
        damage in damage(),
    ) {
        let folder = sharded();
        let path = folder.path().join("model.safetensors.index.json");
        let whole = fs::read(&path).unwrap();
        let mut index: Value = serde_json::from_slice(&whole).unwrap();
        let weights = index["weight_map"].as_object_mut().unwrap();
        for (place, name) in weights.values_mut().zip(&names) {
            *place = json!(name);
        }
        for content in [index.to_string().into_bytes(), spoilt(&index, &changes).to_string().into_bytes(), damaged(&whole, &damage)] {
            fs::write(&path, content).unwrap();
            if let Ok(model) = ModelFiles::open(folder.path()) {
                let inside = folder.path().canonicalize().unwrap();
                prop_assert!(model.files.iter().all(|file| file.canonicalize().unwrap().starts_with(&inside)));
            }
        }
    }

    #[test]
    fn damaged_tokenizer_files_are_refused_or_read(changes in changes(), damage in damage()) {
        let folder = tiny();
        fs::write(folder.path().join("special_tokens_map.json"), "{\"eos_token\": {\"content\": \"x\"}}").unwrap();
        for name in ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"] {
            let path = folder.path().join(name);
            let whole = fs::read(&path).unwrap();
            fs::write(&path, spoilt(&serde_json::from_slice(&whole).unwrap(), &changes).to_string()).unwrap();
            if let Ok(model) = ModelFiles::open(folder.path()) {
                let vocabulary = model.architecture.vocabulary;
                prop_assert!(model.special.eos_ids().iter().all(|&id| (id as usize) < vocabulary));
            }
            fs::write(&path, damaged(&whole, &damage)).unwrap();
            let _ = ModelFiles::open(folder.path());
            fs::write(&path, whole).unwrap();
        }
    }
}
