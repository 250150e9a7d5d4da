use std::fs;
use std::path::PathBuf;

use pretty_assertions::assert_eq;
use proptest::prelude::*;

use super::rope::{DIVISORS, LONG, SHORT};
use super::writer::Writer;
use super::*;
use crate::model::architecture::{LayerSpec, Mlp, Qkv, Residual, RopeScaling, RopeSpec};
use crate::model::{GgufTokenType, Storage};
use crate::testing::{damage, damaged};

const REFERENCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references");
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

/// llama.cpp's order of query and key rows: for each head, dimension `i` of both halves are adjacent.
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
fn a_gguf_and_a_folder_of_one_model_are_equal() {
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

/// The architecture of a reference's folder, as in llama.cpp.
fn as_in_llama_cpp(name: &str, mut architecture: Architecture) -> Architecture {
    let plain = |norm: Norm| match norm {
        Norm::RmsPlusOne { epsilon } => Norm::Rms { epsilon },
        norm => norm,
    };
    architecture.transposed = false;
    architecture.final_norm = plain(architecture.final_norm);
    for LayerSpec { norm, attention, .. } in &mut architecture.layers {
        *norm = plain(*norm);
        attention.head_norm = attention.head_norm.map(plain);
        if name.starts_with("gemma") {
            attention.scale = (attention.head_size as f64).sqrt().recip();
        }
    }
    if name.starts_with("falcon") {
        architecture.positions = 2048;
    }
    architecture
}

/// The elements of `count` bytes at `offset`, as f32.
fn floats(bytes: &[u8], storage: Storage, offset: usize, count: usize) -> Vec<f32> {
    let bytes = &bytes[offset..offset + count];
    match storage {
        Storage::F16 => {
            bytes.chunks_exact(2).map(|two| half::f16::from_le_bytes([two[0], two[1]]).to_f32()).collect()
        }
        Storage::F32 => {
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
        }
        storage => panic!("{storage:?}"),
    }
}

/// The files in `tests/references/gguf` hold the weights of the references as f16 (Qwen 3 as Q8_0, vectors as
/// f32), written like llama.cpp's converter does and with the names of its Python package.
#[test]
fn files_of_every_family_equal_their_folders() {
    let files = fs::read_dir(Path::new(REFERENCES).join("gguf")).unwrap();
    let files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 10, "references are missing: {files:?}");
    for path in files {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let gguf = ModelFiles::open(&path).unwrap();
        let folder = ModelFiles::open(&Path::new(REFERENCES).join("tiny").join(name)).unwrap();
        assert_eq!(gguf.architecture, as_in_llama_cpp(name, folder.architecture.clone()), "{name}");
        assert_eq!(gguf.tensors.keys().collect::<Vec<_>>(), folder.tensors.keys().collect::<Vec<_>>());
        let (gguf_bytes, folder_bytes) = (fs::read(&path).unwrap(), fs::read(&folder.files[0]).unwrap());
        for (tensor, entry) in gguf.tensors.iter().filter(|(_, entry)| entry.storage != Storage::Q8_0) {
            let reference = &folder.tensors[tensor];
            assert_eq!(entry.shape, reference.shape, "{name}: {tensor}");
            let rows = entry.shape[0];
            let row = entry.bytes as usize / rows;
            let found: Vec<f32> = (0..rows)
                .flat_map(|index| {
                    let source = entry.arrangement.source_row(index, rows);
                    floats(&gguf_bytes, entry.storage, entry.offset as usize + source * row, row)
                })
                .collect();
            let mut wanted =
                floats(&folder_bytes, reference.storage, reference.offset as usize, reference.bytes as usize);
            if reference.arrangement == Arrangement::Transposed {
                let columns = entry.shape[1];
                wanted = (0..wanted.len()).map(|at| wanted[at % columns * rows + at / columns]).collect();
            }
            let offset = if name.starts_with("gemma") && entry.shape.len() == 1 { 1.0 } else { 0.0 };
            for (at, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                let wanted = wanted + offset;
                assert!(
                    (found - wanted).abs() <= wanted.abs() / 2048.0 + 1e-7,
                    "{name}: {tensor}, element {at}: {found}, wanted {wanted}"
                );
            }
        }
    }
}

#[test]
fn fused_rows_are_by_part_if_there_are_groups() {
    let of = |name: &str, tensor: &str| {
        let path = Path::new(REFERENCES).join("gguf").join(format!("{name}.gguf"));
        ModelFiles::open(&path).unwrap().tensors[tensor].arrangement
    };
    let fused = "transformer.h.0.self_attention.query_key_value.weight";
    assert_eq!(of("falcon-40b", fused), Arrangement::ByPart { groups: 2, shared: 2 });
    assert_eq!(of("falcon-7b", fused), Arrangement::Plain);
    let bias = "gpt_neox.layers.0.attention.query_key_value.bias";
    assert_eq!(of("gpt_neox", bias), Arrangement::ByPart { groups: 4, shared: 1 });
    assert_eq!(of("gpt2", "transformer.h.0.attn.c_attn.weight"), Arrangement::Plain);
}

/// Metadata of a model of 12 layers, with an embedding and no other tensors.
fn described(architecture: &str, more: impl FnOnce(Writer) -> Writer) -> Result<Architecture, ModelError> {
    let key = |key: &str| format!("{architecture}.{key}");
    let writer = Writer::new()
        .text("general.architecture", architecture)
        .u32(&key("block_count"), 12)
        .u32(&key("context_length"), 4096)
        .u32(&key("embedding_length"), 64)
        .u32(&key("feed_forward_length"), 256)
        .u32(&key("attention.head_count"), 4)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-6)
        .f32(&key("attention.layer_norm_epsilon"), 1e-5)
        .tensor("token_embd.weight", &[64, 8], 0, &[0; 4 * 64 * 8]);
    let writer = more(writer);
    let (_folder, path) = file(&writer);
    let (opened, size) = files::open(&path)?;
    let mut opened = BufReader::new(opened);
    let header = Header::read(&mut opened, size).map_err(|fault| fault.at(&path))?;
    let (family, style) = family(&path, &header)?;
    super::architecture(&path, &mut opened, &header, family, style)
}

fn rope(architecture: &Architecture, layer: usize) -> &RopeSpec {
    architecture.layers[layer].attention.rope().unwrap()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn yarn_is_read_with_llama_cpps_attention_factor() {
    let yarn = |more: fn(Writer) -> Writer| {
        let architecture = described("qwen2", |writer| {
            let writer = writer
                .text("qwen2.rope.scaling.type", "yarn")
                .f32("qwen2.rope.scaling.factor", 4.0)
                .u32("qwen2.rope.scaling.original_context_length", 1024);
            more(writer)
        });
        rope(&architecture.unwrap(), 0).scaling.clone()
    };
    let wanted = |beta_fast, attention_factor| RopeScaling::Yarn {
        factor: 4.0,
        beta_fast,
        beta_slow: 1.0,
        original_positions: 1024,
        attention_factor,
        truncate: true,
    };
    let usual = 0.1 * 4_f64.ln() + 1.0;
    assert_eq!(yarn(|writer| writer), wanted(32.0, usual));
    assert_eq!(yarn(|writer| writer.f32("qwen2.rope.scaling.yarn_beta_fast", 16.0)), wanted(16.0, usual));
    assert_eq!(yarn(|writer| writer.f32("qwen2.rope.scaling.yarn_log_multiplier", 1.0)), wanted(32.0, 1.0));
    assert_eq!(yarn(|writer| writer.f32("qwen2.rope.scaling.yarn_attn_factor", 0.75)), wanted(32.0, 0.75));
    assert_eq!(yarn(|writer| writer.f32("qwen2.rope.scaling.attn_factor", 0.5)), wanted(32.0, usual * 0.5));
}

#[test]
fn longrope_is_read_from_its_tensors() {
    let (short, long) = (bytes(&[1.0, 1.5, 2.0, 2.5, 3.0, 3.5]), bytes(&[4.0; 6]));
    let keys = |writer: Writer| {
        writer
            .u32("phi3.rope.dimension_count", 12)
            .u32("phi3.rope.scaling.original_context_length", 1024)
            .f32("phi3.rope.scaling.attn_factor", 1.125)
    };
    let both = |writer: Writer| keys(writer).tensor(SHORT, &[6], 0, &short).tensor(LONG, &[6], 0, &long);
    let wanted = RopeSpec {
        theta: 10_000.0,
        rotated: 12,
        scaling: RopeScaling::Long {
            short: vec![1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
            long: vec![4.0; 6],
            original_positions: 1024,
            attention_factor: 1.125,
        },
    };
    assert_eq!(*rope(&described("phi3", both).unwrap(), 11), wanted);
    let named = |writer| both(writer).text("phi3.rope.scaling.type", "longrope");
    assert_eq!(*rope(&described("phi3", named).unwrap(), 0), wanted);
    let problem = described("phi3", |writer| keys(writer).text("phi3.rope.scaling.type", "longrope"));
    let problem = problem.unwrap_err().to_string();
    assert!(problem.contains("`phi3.rope.scaling.type` needs the tensors"), "{problem}");
    let problem = described("phi3", |writer| both(writer).tensor(DIVISORS, &[6], 0, &short));
    assert!(problem.unwrap_err().to_string().contains("rotary scaling in addition to `rope_freqs.weight`"));
    let problem = described("phi3", |writer| keys(writer).tensor(LONG, &[4097], 0, &vec![0; 4 * 4097]));
    assert!(problem.unwrap_err().to_string().contains("`rope_factors_long.weight` is not a short list"));
    let problem = described("phi3", |writer| keys(writer).tensor(LONG, &[4], 0, &long[..16]));
    let problem = problem.unwrap_err().to_string();
    assert!(problem.contains("`rope_factors_long.weight` has 4 values, needed 6"), "{problem}");
}

#[test]
fn gemma_uses_llama_cpps_values_without_keys() {
    let gemma2 = described("gemma2", |writer| writer).unwrap();
    let windows = |architecture: &Architecture| -> Vec<_> {
        architecture.layers.iter().map(|layer| layer.attention.window).collect()
    };
    assert_eq!(windows(&gemma2)[..4], [Some(4096), None, Some(4096), None]);
    let attention = &gemma2.layers[0].attention;
    assert_eq!((attention.scale, attention.score_cap, gemma2.logit_cap), (0.25, Some(50.0), Some(30.0)));
    assert_eq!((gemma2.embedding_scale, gemma2.tied_head), (Some(8.0), true));
    // The 27B model has 46 layers, and its scale follows from the width, not from the size of its heads.
    let large = |writer: Writer| {
        let mut writer = writer.u32("gemma2.attention.key_length", 32);
        writer.remove("gemma2.block_count");
        writer.u32("gemma2.block_count", 46)
    };
    let large = described("gemma2", large).unwrap();
    assert_eq!((large.layers[0].attention.scale, large.layers[0].attention.head_size), (0.25, 32));

    let keys = |writer: Writer| {
        writer
            .u32("gemma3.attention.sliding_window", 512)
            .f32("gemma3.rope.freq_base", 1e6)
            .text("gemma3.rope.scaling.type", "linear")
            .f32("gemma3.rope.scaling.factor", 8.0)
    };
    let gemma3 = described("gemma3", keys).unwrap();
    assert_eq!(windows(&gemma3)[3..7], [Some(512), Some(512), None, Some(512)]);
    assert_eq!((rope(&gemma3, 4).theta, &rope(&gemma3, 4).scaling), (10_000.0, &RopeScaling::None));
    let scaled = RopeScaling::Linear { factor: 8.0 };
    assert_eq!((rope(&gemma3, 5).theta, &rope(&gemma3, 5).scaling), (1e6, &scaled));
    let every_other = described("gemma3", |writer| {
        keys(writer).u32("gemma3.attention.sliding_window_pattern", 2).f32("gemma3.rope.freq_base_swa", 500.0)
    });
    let every_other = every_other.unwrap();
    assert_eq!(windows(&every_other)[..3], [Some(512), None, Some(512)]);
    assert_eq!(*rope(&every_other, 0), RopeSpec { theta: 500.0, rotated: 16, scaling: RopeScaling::None });
    let pattern = |flags: &[u8]| {
        let header = [7_u32.to_le_bytes().as_slice(), &(flags.len() as u64).to_le_bytes()].concat();
        let bytes = [header.as_slice(), flags].concat();
        described("gemma3", |writer| {
            keys(writer).raw("gemma3.attention.sliding_window_pattern", value::ARRAY, &bytes)
        })
    };
    let listed = pattern(&[0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]).unwrap();
    assert_eq!(windows(&listed)[..3], [None, Some(512), Some(512)]);
    for flags in [vec![1; 11], vec![1; 100_000]] {
        let problem = pattern(&flags).unwrap_err().to_string();
        assert!(
            problem.contains("`gemma3.attention.sliding_window_pattern` must name 12 layers"),
            "{problem}"
        );
    }
    let plain = described("gemma3", |writer| writer.f32("gemma3.rope.freq_base", 1e6)).unwrap();
    assert_eq!((windows(&plain), rope(&plain, 0).theta), (vec![None; 12], 1e6));
}

#[test]
fn falcons_variant_follows_from_groups_and_norms() {
    let of = |groups: u32, two_norms: bool| {
        let architecture = described("falcon", |writer| {
            let writer = writer.u32("falcon.attention.head_count_kv", groups);
            if two_norms {
                return writer.tensor("blk.0.attn_norm_2.weight", &[64], 0, &[0; 4 * 64]);
            }
            writer
        });
        let layer = architecture.unwrap().layers.remove(0);
        (layer.residual, layer.attention.key_value_heads)
    };
    assert_eq!(of(1, false), (Residual::Parallel { shared_norm: true }, 1));
    assert_eq!(of(2, false), (Residual::Parallel { shared_norm: true }, 2));
    assert_eq!(of(2, true), (Residual::Parallel { shared_norm: false }, 2));
    assert_eq!(of(1, true), (Residual::Parallel { shared_norm: false }, 1));
}

#[test]
fn missing_keys_have_llama_cpps_defaults() {
    let qwen3 = described("qwen3", |writer| writer).unwrap();
    let attention = &qwen3.layers[0].attention;
    assert_eq!((attention.head_size, attention.key_value_heads), (16, 4));
    let phi = described("phi2", |writer| writer.tensor("output.weight", &[64, 8], 0, &[0; 4 * 64 * 8]));
    assert_eq!(rope(&phi.unwrap(), 0).rotated, 16);
    let neox = |writer: Writer| writer.truth("gptneox.use_parallel_residual", false);
    let neox = described("gptneox", neox).unwrap();
    assert_eq!(neox.layers[0].residual, Residual::PreNorm);
    assert_eq!(
        (neox.layers[0].attention.qkv, neox.layers[0].attention.input_bias),
        (Qkv::FusedByGroup, false)
    );
    let phi3 = described("phi3", |writer| writer.u32("phi3.attention.sliding_window", 0)).unwrap();
    assert_eq!(phi3.layers[0].attention.window, None);
    let gpt2 = described("gpt2", |writer| writer).unwrap();
    assert_eq!((gpt2.learned_positions, gpt2.transposed), (Some(4096), false));
    assert!(matches!(gpt2.layers[0].mlp, Mlp::Plain { width: 256, bias: true, .. }));
    for (architecture, key) in
        [("gpt2", "attention.layer_norm_epsilon"), ("gemma2", "attention.layer_norm_rms_epsilon")]
    {
        let key = format!("{architecture}.{key}");
        let problem = described(architecture, |mut writer| {
            writer.remove(&key);
            writer
        });
        let problem = problem.unwrap_err().to_string();
        assert!(problem.contains(&format!("`{key}` is missing")), "{problem}");
    }
}

#[test]
fn the_vocabulary_is_read_as_stored() {
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
    let model = open_all(&tiny().tensor(DIVISORS, &[8], 0, &bytes)).unwrap();
    assert_eq!(
        model.architecture.layers[2].attention.rope().unwrap().scaling,
        RopeScaling::Divisors(divisors)
    );
    let ones: Vec<u8> = [1.0_f32; 8].iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
    let model = open_all(&tiny().tensor(DIVISORS, &[8], 0, &ones)).unwrap();
    assert_eq!(model.architecture.layers[0].attention.rope().unwrap().scaling, RopeScaling::None);
    let problem = refusal(&tiny().tensor(DIVISORS, &[4], 0, &[0x40; 16]));
    assert!(problem.contains("has 4 values, needed 8"), "{problem}");
    let problem = refusal(&tiny().tensor(DIVISORS, &[2048], 0, &[0; 8192]));
    assert!(problem.contains("is not a short list"), "{problem}");
    let problem = refusal(&tiny().tensor(DIVISORS, &[8], 0, &[0; 32]));
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
    let older = open_all(&tiny().f32("llama.rope.scale_linear", 2.0)).unwrap();
    assert_eq!(
        older.architecture.layers[0].attention.rope().unwrap().scaling,
        RopeScaling::Linear { factor: 2.0 }
    );
    let problem =
        refusal(&tiny().text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 0.5));
    assert!(problem.contains("`llama.rope.scaling.factor` must be at least 1, found 0.5"), "{problem}");
    let problem = refusal(&tiny().text("llama.rope.scaling.type", "ntk"));
    assert!(problem.contains("`llama.rope.scaling.type` = \"ntk\""), "{problem}");
}

#[test]
fn unsupported_options_are_refused_by_name() {
    for (writer, words) in [
        (tiny().u32("llama.expert_count", 8), "a mixture of experts (`llama.expert_count`)"),
        (tiny().u32("llama.attention.sliding_window", 64), "sliding-window attention"),
        (tiny().u32("llama.attention.value_length", 8), "value heads that differ in size"),
        (tiny().u32("llama.attention.sliding_window_pattern", 2), "a window in some layers"),
        (tiny().f32("llama.logit_scale", 0.5), "scaled logits (`llama.logit_scale`)"),
        (tiny().f32("llama.attention.scale", 0.5), "an unusual scale of attention"),
        (tiny().truth("llama.attention.causal", false), "attention to tokens that follow"),
        (tiny().i32s("llama.rope.dimension_sections", &[8, 8]), "rotary embedding by several positions"),
        (tiny().f32("llama.rope.scaling.yarn_ext_factor", 0.5), "YaRN with another extrapolation factor"),
        (tiny().u32("split.count", 3), "llama-gguf-split --merge"),
        (tiny().text("general.type", "adapter"), "holds no model"),
        (
            Writer::new().text("general.architecture", "rwkv7"),
            "unknown architecture `rwkv7`; supported: llama, qwen2, qwen3, phi2, phi3, falcon, gemma2, gemma3, gptneox",
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
fn tensor_errors_use_the_names_in_the_file() {
    let mut tensors = tiny().tensor("blk.7.attn_q.weight", &[4], 0, &[0; 16]);
    tensors.remove("blk.1.ffn_up.weight");
    let ModelError::Tensors { problems, .. } = open_all(&tensors).unwrap_err() else { panic!("other error") };
    assert_eq!(problems.missing, ["blk.1.ffn_up.weight"]);
    assert_eq!(problems.unexpected, ["blk.7.attn_q.weight"]);
}

#[test]
fn errors_use_the_keys_spelling_in_the_file() {
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
fn vocabularies_that_do_not_match_are_refused() {
    let with = |key: &str, writer: fn(Writer) -> Writer| {
        let mut all = tiny();
        all.remove(key);
        refusal(&writer(all))
    };
    let problem = with("tokenizer.ggml.tokens", |writer| writer.texts("tokenizer.ggml.tokens", &["x"; 513]));
    assert!(problem.contains("has 513 tokens, but the embedding only 512 rows"), "{problem}");
    let problem = with("tokenizer.ggml.tokens", |writer| {
        writer.texts("tokenizer.ggml.tokens", &vec![""; (1 << 20) + 1])
    });
    assert!(problem.contains("has 1048577 elements; at most 1048576 are read"), "{problem}");
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
fn other_files_are_refused() {
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
    fn damaged_models_are_refused_or_consistent(damage in damage()) {
        let writer = tiny();
        let (header, whole) = (writer.header(), writer.build());
        let bytes = [damaged(&header, &damage).as_slice(), &whole[header.len()..]].concat();
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
