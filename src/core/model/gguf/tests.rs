use std::fs;
use std::path::PathBuf;

use pretty_assertions::assert_eq;
use proptest::prelude::*;

use super::writer::Writer;
use super::*;
use crate::model::{GgufTokenType, Storage};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny/llama");

fn file(writer: &Writer) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, writer.build()).unwrap();
    (folder, path)
}

fn open_all(writer: &Writer) -> Result<ModelFiles, ModelError> {
    let (_folder, path) = file(writer);
    ModelFiles::open(&path)
}

fn refusal(writer: &Writer) -> String {
    open_all(writer).unwrap_err().to_string()
}

/// The metadata of the tiny llama reference.
fn metadata() -> Writer {
    let tokens: Vec<String> = (0..512).map(|id| format!("t{id}")).collect();
    Writer::new()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 3)
        .u32("llama.context_length", 128)
        .u32("llama.embedding_length", 64)
        .u32("llama.feed_forward_length", 128)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .u32("llama.rope.dimension_count", 16)
        .f32("llama.rope.freq_base", 10_000.0)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &[1; 512])
        .texts("tokenizer.ggml.merges", &["a b"])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .u32("tokenizer.ggml.eot_token_id", 5)
        .u32("tokenizer.ggml.padding_token_id", 4_294_967_295)
        .truth("tokenizer.ggml.add_bos_token", true)
        .text("tokenizer.chat_template", "{{ messages }}")
}

/// The row order llama.cpp gives query and key rows: for each head, dimension `i` of both halves side by side.
fn permuted(rows: &[&[u8]], heads: usize) -> Vec<u8> {
    let head_size = rows.len() / heads;
    let half = head_size / 2;
    let order = (0..heads)
        .flat_map(|head| (0..half).flat_map(move |i| [0, 1].map(|j| head * head_size + j * half + i)));
    order.flat_map(|row| rows[row].to_vec()).collect()
}

/// The tiny llama reference as GGUF.
fn tiny() -> Writer {
    let model = ModelFiles::open(Path::new(TINY)).unwrap();
    let bytes = fs::read(&model.files[0]).unwrap();
    let mut writer = metadata();
    for parameter in model.architecture.parameters() {
        let entry = &model.tensors[&parameter.name];
        let mut data = bytes[entry.offset as usize..(entry.offset + entry.bytes) as usize].to_vec();
        match parameter.role {
            Role::Query => data = permuted(&data.chunks(4 * 64).collect::<Vec<_>>(), 4),
            Role::Key => data = permuted(&data.chunks(4 * 64).collect::<Vec<_>>(), 2),
            _ => {}
        }
        let name = format!("{}.weight", parameter.role.gguf_module(parameter.layer.unwrap_or(0)));
        let dimensions: Vec<u64> = entry.shape.iter().rev().map(|&length| length as u64).collect();
        writer = writer.tensor(&name, &dimensions, 0, &data);
    }
    writer
}

#[test]
fn a_gguf_and_a_folder_of_one_model_say_the_same() {
    let (_folder, path) = file(&tiny());
    let (gguf, folder) = (ModelFiles::open(&path).unwrap(), ModelFiles::open(Path::new(TINY)).unwrap());
    assert_eq!(gguf.architecture, folder.architecture);
    assert_eq!(gguf.tensors.keys().collect::<Vec<_>>(), folder.tensors.keys().collect::<Vec<_>>());
    let (gguf_bytes, folder_bytes) = (fs::read(&path).unwrap(), fs::read(&folder.files[0]).unwrap());
    let mut permuted = 0;
    for (name, entry) in &gguf.tensors {
        let rows = entry.shape[0];
        let row_bytes = entry.bytes as usize / rows;
        let reference = &folder.tensors[name];
        for row in 0..rows {
            let source = entry.arrangement.source_row(row, rows);
            let found = &gguf_bytes[entry.offset as usize + source * row_bytes..][..row_bytes];
            let wanted = &folder_bytes[reference.offset as usize + row * row_bytes..][..row_bytes];
            assert!(found == wanted, "{name}, row {row}");
        }
        permuted += usize::from(entry.arrangement != Arrangement::Plain);
    }
    assert_eq!(permuted, 2 * 3);
}

#[test]
fn the_vocabulary_is_read_untranslated() {
    let model = open_all(&tiny()).unwrap();
    let TokenizerSource::Gguf(vocabulary) = &model.tokenizer else { panic!("{:?}", model.kind) };
    assert_eq!((vocabulary.model.as_str(), vocabulary.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!((vocabulary.tokens.len(), vocabulary.tokens[511].as_str()), (512, "t511"));
    assert_eq!(vocabulary.types, [GgufTokenType::Normal; 512]);
    assert_eq!(vocabulary.merges, ["a b"]);
    assert_eq!((vocabulary.bos, vocabulary.end_of_turn, vocabulary.pad), (Some(0), Some(5), None));
    assert_eq!((vocabulary.add_bos, vocabulary.add_eos), (Some(true), None));
    assert_eq!(model.special.eos_ids(), [1, 5]);
    assert_eq!(model.special.eos[1].text.as_deref(), Some("t5"));
    assert_eq!(model.chat_template.as_deref(), Some("{{ messages }}"));
}

#[test]
fn a_missing_head_is_a_tied_one() {
    let mut tensors = tiny();
    tensors.remove("output.weight");
    let model = open_all(&tensors).unwrap();
    assert!(model.architecture.tied_head && !model.tensors.contains_key("lm_head.weight"));
}

#[test]
fn frequency_divisors_become_rotary_scaling() {
    let divisors: Vec<f32> = (1..=8_u8).map(f32::from).collect();
    let bytes: Vec<u8> = divisors.iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
    let model = open_all(&tiny().tensor(ROPE_DIVISORS, &[8], 0, &bytes)).unwrap();
    assert_eq!(
        model.architecture.layers[2].attention.rope().unwrap().scaling,
        RopeScaling::Divisors(divisors)
    );
    let ones: Vec<u8> = [1.0_f32; 8].iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
    let model = open_all(&tiny().tensor(ROPE_DIVISORS, &[8], 0, &ones)).unwrap();
    assert_eq!(model.architecture.layers[0].attention.rope().unwrap().scaling, RopeScaling::None);
    let problem = refusal(&tiny().tensor(ROPE_DIVISORS, &[4], 0, &[0x40; 16]));
    assert!(problem.contains("has 4 values, needed 8"), "{problem}");
    let problem = refusal(&tiny().tensor(ROPE_DIVISORS, &[8], 0, &[0; 32]));
    assert!(problem.contains("not above 0"), "{problem}");
}

#[test]
fn linear_scaling_is_read() {
    let writer = tiny().text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 2.5);
    let model = open_all(&writer).unwrap();
    assert_eq!(
        model.architecture.layers[0].attention.rope().unwrap().scaling,
        RopeScaling::Linear { factor: 2.5 }
    );
    let model = open_all(&tiny().text("llama.rope.scaling.type", "none")).unwrap();
    assert_eq!(model.architecture.layers[0].attention.rope().unwrap().scaling, RopeScaling::None);
    let problem = refusal(&tiny().text("llama.rope.scaling.type", "yarn"));
    assert!(problem.contains("`llama.rope.scaling.type` = \"yarn\""), "{problem}");
}

#[test]
fn what_luthier_cannot_run_is_refused_by_name() {
    for (writer, words) in [
        (tiny().u32("llama.expert_count", 8), "a mixture of experts (`llama.expert_count`)"),
        (tiny().u32("llama.attention.sliding_window", 64), "sliding-window attention"),
        (tiny().u32("llama.attention.value_length", 8), "a value head of another size"),
        (tiny().u32("split.count", 3), "llama-gguf-split --merge"),
        (tiny().text("general.type", "adapter"), "holds no model"),
        (
            Writer::new().text("general.architecture", "rwkv7"),
            "unknown architecture `rwkv7`; supported: llama",
        ),
        (Writer::new(), "`general.architecture` is missing"),
        (Writer::new().text("general.architecture", "llama"), "`token_embd.weight` is missing"),
    ] {
        let problem = refusal(&writer);
        assert!(problem.contains(words), "{problem}");
    }
    assert!(open_all(&tiny().u32("llama.expert_count", 0)).is_ok());
}

#[test]
fn tensor_problems_use_the_names_of_the_file() {
    let mut tensors = tiny().tensor("blk.7.attn_q.weight", &[4], 0, &[0; 16]);
    tensors.remove("blk.1.ffn_up.weight");
    let ModelError::Tensors { problems, .. } = open_all(&tensors).unwrap_err() else { panic!("other error") };
    assert_eq!(problems.missing, ["blk.1.ffn_up.weight"]);
    assert_eq!(problems.unexpected, ["blk.7.attn_q.weight"]);
}

#[test]
fn keys_are_named_as_the_file_spells_them() {
    let mut writer = tiny();
    writer.remove("llama.embedding_length");
    assert!(refusal(&writer).contains("`llama.embedding_length` is missing"), "{}", refusal(&writer));
    let mut writer = tiny();
    writer.remove("llama.attention.head_count");
    let problem = refusal(&writer.clone().i32s("llama.attention.head_count", &[4, 4, 2]));
    assert!(
        problem.contains("`llama.attention.head_count`") && problem.contains("layer to layer"),
        "{problem}"
    );
    assert!(open_all(&writer.i32s("llama.attention.head_count", &[4, 4, 4])).is_ok());
}

#[test]
fn vocabularies_that_do_not_fit_are_refused() {
    let with = |key: &str, writer: fn(Writer) -> Writer| {
        let mut all = tiny();
        all.remove(key);
        refusal(&writer(all))
    };
    let problem = with("tokenizer.ggml.tokens", |writer| writer.texts("tokenizer.ggml.tokens", &["x"; 513]));
    assert!(problem.contains("has 513 tokens, but the embedding only 512 rows"), "{problem}");
    let problem = with("tokenizer.ggml.tokens", |writer| writer);
    assert!(problem.contains("`tokenizer.ggml.tokens` is missing"), "{problem}");
    let problem =
        with("tokenizer.ggml.token_type", |writer| writer.i32s("tokenizer.ggml.token_type", &[1; 3]));
    assert!(problem.contains("has 3 values for 512 tokens"), "{problem}");
    let problem = with("tokenizer.ggml.merges", |writer| writer.u32("tokenizer.ggml.merges", 1));
    assert!(problem.contains("`tokenizer.ggml.merges` has the wrong type"), "{problem}");
}

#[test]
fn quantised_tensors_keep_their_storage() {
    let mut writer = tiny();
    writer.remove("blk.0.ffn_down.weight");
    let bytes = vec![0; Storage::Q8_0.bytes(64 * 128).unwrap() as usize];
    let model = open_all(&writer.tensor("blk.0.ffn_down.weight", &[128, 64], 8, &bytes)).unwrap();
    let entry = &model.tensors["model.layers.0.mlp.down_proj.weight"];
    assert_eq!((entry.storage, entry.bytes, entry.shape.as_slice()), (Storage::Q8_0, 8704, &[64, 128][..]));
}

#[test]
fn what_is_no_gguf_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for content in [&b""[..], b"GGU", b"<!DOCTYPE html>"] {
        fs::write(&path, content).unwrap();
        let problem = ModelFiles::open(&path).unwrap_err().to_string();
        assert!(problem.contains("model.gguf is damaged") && problem.contains("no GGUF file"), "{problem}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mutated_models_are_refused_or_consistent(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let writer = tiny();
        let mut bytes = writer.build();
        let at = at.index(writer.header().len());
        bytes[at] = value;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, &bytes).unwrap();
        if let Ok(model) = ModelFiles::open(&path) {
            for entry in model.tensors.values() {
                prop_assert!(entry.offset + entry.bytes <= bytes.len() as u64);
            }
        }
    }
}
