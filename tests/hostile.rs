//! Malicious files, given to the real program. Each is refused with an error, within half a GiB of memory and
//! two seconds of CPU time.
//! two seconds of a processor.

#![expect(clippy::unwrap_used, reason = "a test fails at the first surprise")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use luthier_tests::{Project, reference};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};

const MEBIBYTES: u64 = 512;
const SECONDS: u64 = 2;

/// A copy of the tiny model with one file replaced or added.
fn with(project: &Project, name: &str, content: &[u8]) {
    for entry in fs::read_dir(reference("tiny/llama")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        project.write(&format!("model/{name}"), fs::read(&path).unwrap());
    }
    project.write(&format!("model/{name}"), content);
}

/// `luthier model inspect` refuses it with these words and status 1: the work failed.
fn refused(project: &Project, path: &str, words: &[&str]) {
    ends(project, path, 1, words);
}

/// As `refused`, with this exit status; 2 means that the user must name something else.
fn ends(project: &Project, path: &str, status: i32, words: &[&str]) {
    let told = project.luthier(["model", "inspect", path]).within(MEBIBYTES, SECONDS).run();
    told.expect(status).complains(words);
}

/// A safetensors file: a header, followed by this many zeros.
fn safetensors(header: &str, data: u64) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data as usize, 0);
    bytes
}

/// A GGUF file under construction. Nothing is checked.
#[derive(Default)]
struct Gguf {
    entries: Vec<u8>,
    entry_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

const U32: u32 = 4;
const F32: u32 = 6;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

impl Gguf {
    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.extend([&text(key), kind.to_le_bytes().as_slice(), value].concat());
        self.entry_count += 1;
        self
    }

    fn number(self, key: &str, value: u32) -> Self {
        self.entry(key, U32, &value.to_le_bytes())
    }

    /// An array that claims this many elements.
    fn array(self, key: &str, kind: u32, count: u64, elements: &[u8]) -> Self {
        let value = [&kind.to_le_bytes(), count.to_le_bytes().as_slice(), elements].concat();
        self.entry(key, ARRAY, &value)
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.extend(text(name));
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        self.tensors.extend(dimensions.iter().flat_map(|length| length.to_le_bytes()));
        self.tensors.extend([&kind.to_le_bytes(), offset.to_le_bytes().as_slice()].concat());
        self.tensor_count += 1;
        self
    }

    fn build(&self) -> Vec<u8> {
        let counts = [self.tensor_count.to_le_bytes(), self.entry_count.to_le_bytes()].concat();
        let mut bytes = [b"GGUF\x03\0\0\0", counts.as_slice(), &self.entries, &self.tensors].concat();
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes
    }

    /// The settings of a small llama with this many layers.
    fn llama(layers: u32) -> Self {
        Self::default()
            .entry("general.architecture", TEXT, &text("llama"))
            .number("llama.block_count", layers)
            .number("llama.context_length", 64)
            .number("llama.embedding_length", 64)
            .number("llama.feed_forward_length", 64)
            .number("llama.attention.head_count", 4)
            .entry("llama.attention.layer_norm_rms_epsilon", F32, &1e-5_f32.to_le_bytes())
    }
}

#[test]
fn safetensors_headers() {
    let project = Project::empty();
    let tensor = |shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let two = |offsets: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}}}"#
        )
    };
    let small = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let many: Vec<String> = (0..200_000).map(|number| format!("\"{number}\":{small}")).collect();
    let cases: [(Vec<u8>, &str); 16] = [
        (vec![], "only 0 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "the format allows 100000000"),
        (99_999_999_u64.to_le_bytes().to_vec(), "but only 0 follow"),
        (safetensors("[]", 0), "does not begin with"),
        (safetensors(&format!("{{\"a\":{}", "[".repeat(1_000_000)), 0), "its header"),
        (safetensors(&tensor("[4294967296,4294967296,4294967296]", "[0,0]"), 0), "impossible shape"),
        (safetensors(&tensor("[9223372036854775807]", "[0,0]"), 0), "impossible shape"),
        (safetensors(&tensor("[18446744073709551616]", "[0,0]"), 0), "its header"),
        (safetensors(&tensor("[NaN]", "[0,0]"), 0), "its header"),
        (safetensors(&tensor("[1]", "[0,18446744073709551615]"), 4), "claims bytes 0 to"),
        (safetensors(&tensor("[1]", "[4,0]"), 4), "claims bytes 4 to 0"),
        (
            safetensors(&tensor(&format!("[{}0]", "0,".repeat(10_000_000)), "[0,0]"), 0),
            "more than 8 dimensions",
        ),
        (safetensors(&two("[2,6]"), 6), "overlaps"),
        (safetensors(&two("[6,10]"), 10), "leaves a gap"),
        (safetensors(&format!("{{\"a\":{small},\"a\":{small}}}"), 0), "appears twice"),
        (safetensors(&format!("{{{}}}", many.join(",")), 0), "more than 131072 tensors"),
    ];
    for (content, words) in cases {
        with(&project, "model.safetensors", &content);
        refused(&project, "model", &["model.safetensors is damaged", words]);
    }
    // A header of the largest length that the format allows, in a sparse file.
    let mut file = File::create(project.path().join("model/model.safetensors")).unwrap();
    file.write_all(&100_000_000_u64.to_le_bytes()).unwrap();
    file.set_len(1 << 40).unwrap();
    refused(&project, "model", &["does not begin with"]);
}

#[test]
fn gguf_headers() {
    let project = Project::empty();
    let claims = |tensors: u64, entries: u64| {
        [b"GGUF\x03\0\0\0", tensors.to_le_bytes().as_slice(), &entries.to_le_bytes(), &[0; 64]].concat()
    };
    let one = |gguf: Gguf| gguf.build();
    let nested: Vec<u8> = [ARRAY.to_le_bytes().as_slice(), &1_u64.to_le_bytes()].concat().repeat(100_000);
    let tensor = |dimensions: &[u64], offset| Gguf::llama(1).tensor("evil", dimensions, 0, offset).build();
    let two = Gguf::default().tensor("a", &[8], 0, 0).tensor("a", &[0], 0, 32);
    let cases: [(Vec<u8>, &str); 17] = [
        (b"GGUF".to_vec(), "in the middle of its header"),
        (claims(u64::MAX, 0), "claims 18446744073709551615 tensors"),
        (claims(0, u64::MAX), "claims 18446744073709551615 metadata entries"),
        (claims(100_000, 0), "in the middle of its header"),
        (one(Gguf::default().entry("x", TEXT, &u64::MAX.to_le_bytes())), "in the middle of its header"),
        (one(Gguf::default().array("x", 12, u64::MAX, &[])), "in the middle of its header"),
        (one(Gguf::default().array("x", TEXT, u64::MAX, &[])), "its arrays claim"),
        (one(Gguf::default().array("x", ARRAY, 1 << 40, &[])), "its arrays claim"),
        (one(Gguf::default().entry("x", ARRAY, &nested)), "nests arrays deeper"),
        (one(Gguf::default().entry(&"k".repeat(1 << 20), U32, &[0; 4])), "a metadata key is 1048576 bytes"),
        (one(Gguf::default().number("general.alignment", 0)), "not a power of two"),
        (one(Gguf::default().number("general.alignment", 24)), "not a power of two"),
        (one(Gguf::default().number("x", 1).number("x", 1)), "appears twice"),
        (tensor(&[1 << 32, 1 << 32], 0), "impossible shape"),
        (tensor(&[1 << 40], 0), "beyond the end of the file"),
        (tensor(&[8], u64::MAX - 31), "beyond the end of the file"),
        ([one(two), vec![0; 64]].concat(), "appears twice"),
    ];
    for (content, words) in cases {
        project.write("model.gguf", content);
        refused(&project, "model.gguf", &["model.gguf is damaged", words]);
    }
}

/// Everything at the limits of a header: what is accepted must still fit into memory.
#[test]
fn gguf_headers_of_the_largest_size() {
    let project = Project::empty();
    let tokens = Gguf::default().array("x", TEXT, 1 << 22, &vec![0; 8 << 22]);
    let bytes = tokens.array("y", 0, 64 << 20, &vec![1; 64 << 20]).build();
    project.write("model.gguf", bytes);
    refused(&project, "model.gguf", &["`general.architecture` is missing"]);

    // The most tensors allowed, none of them needed, for a model with the most layers allowed.
    let tensors = (0..(1 << 17) - 1)
        .fold(Gguf::llama(4096), |gguf, number| gguf.tensor(&format!("t{number}"), &[0], 0, 0));
    project.write("model.gguf", tensors.tensor("token_embd.weight", &[64, 0], 0, 0).build());
    refused(&project, "model.gguf", &["vocab_size"]);
    let tensors = (0..(1 << 17) - 1).fold(Gguf::llama(4096), |gguf, number| {
        let name =
            ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up"];
        gguf.tensor(&format!("blk.{}.{}.weight", number / 8, name[number % 8]), &[0], 0, 0)
    });
    let mut bytes = tensors.tensor("token_embd.weight", &[64, 1], 0, 0).build();
    bytes.resize(bytes.len() + 256, 0);
    project.write("model.gguf", bytes);
    refused(&project, "model.gguf", &["missing (", "not part of this architecture (", "of another shape ("]);
}

#[test]
fn shard_indices_and_links() {
    let project = Project::empty();
    let outside = Project::empty();
    fs::copy(reference("tiny/llama/model.safetensors"), outside.path().join("x.safetensors")).unwrap();
    let absolute = outside.path().join("x.safetensors");
    let index = |name: &str| json!({"weight_map": {"lm_head.weight": name}}).to_string();
    for name in [
        absolute.to_str().unwrap(),
        "../x.safetensors",
        "a/../../x.safetensors",
        "/proc/self/mem.safetensors",
    ] {
        with(&project, "model.safetensors.index.json", index(name).as_bytes());
        fs::remove_file(project.path().join("model/model.safetensors")).unwrap();
        refused(&project, "model", &["points outside of the model folder"]);
    }
    project.write("model/model.safetensors.index.json", index("inner.safetensors"));
    symlink(&absolute, project.path().join("model/inner.safetensors")).unwrap();
    refused(&project, "model", &["inner.safetensors is a link to", "outside of its folder"]);
    project.write("model/model.safetensors.index.json", index("model.pt"));
    ends(&project, "model", 2, &["model.pt is a pickle file", "save_pretrained"]);
    let many: Value = (0..2_000_000).map(|number| (number.to_string(), json!("x"))).collect();
    project.write("model/model.safetensors.index.json", json!({ "weight_map": many }).to_string());
    refused(&project, "model", &["more than 262144 values"]);
}

#[test]
fn special_files_and_endless_files() {
    let project = Project::empty();
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        with(&project, name, b"");
        let path = project.path().join("model").join(name);
        fs::remove_file(&path).unwrap();
        mkfifoat(CWD, &path, Mode::RUSR).unwrap();
        refused(&project, "model", &[name, "a pipe, socket or device"]);
        fs::remove_file(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        refused(&project, "model", &[name, "outside of its folder"]);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused(&project, "model", &[name, "it is a folder"]);
        fs::remove_dir(&path).unwrap();
        if name != "model.safetensors" {
            File::create(&path).unwrap().set_len(1 << 40).unwrap();
            refused(&project, "model", &[name, "larger than"]);
            fs::remove_file(&path).unwrap();
        }
    }
    refused(&project, "/dev/zero", &["/dev/zero", "a pipe, socket or device"]);
}

#[test]
fn json_that_grows_in_memory() {
    let project = Project::empty();
    let numbers = format!("{{\"x\":[{}0]}}", "0,".repeat(7 << 20));
    with(&project, "tokenizer_config.json", numbers.as_bytes());
    refused(&project, "model", &["tokenizer_config.json", "more than 524288 values"]);
    let deep = format!("{{\"x\":{}", "[".repeat(500_000));
    for name in ["config.json", "tokenizer_config.json", "tokenizer.json"] {
        with(&project, name, deep.as_bytes());
        refused(&project, "model", &[name]);
    }
    with(
        &project,
        "tokenizer.json",
        format!("{{\"added_tokens\":[],\"x\":[{}0]}}", "0,".repeat(5 << 20)).as_bytes(),
    );
    refused(&project, "model", &["tokenizer.json", "more than 4194304 values"]);
    let ends: Vec<u32> = (0..100_000).map(|number| number % 512).collect();
    with(&project, "generation_config.json", json!({ "eos_token_id": ends }).to_string().as_bytes());
    refused(&project, "model", &["`eos_token_id` names 100000 tokens"]);
}

#[test]
fn pickles() {
    let project = Project::empty();
    with(&project, "pytorch_model.bin", b"\x80\x04cposix\nsystem\n");
    fs::remove_file(project.path().join("model/model.safetensors")).unwrap();
    ends(&project, "model", 2, &["pytorch_model.bin is a pickle file", "python3 -c", "save_pretrained"]);
    for name in ["model.pt", "model.pth", "model.ckpt", "model.bin", "model.pkl"] {
        project.write(name, b"\x80\x04cposix\nsystem\n");
        ends(&project, name, 2, &[name, "is a pickle file"]);
    }
}

#[test]
fn a_run_does_not_start_from_a_hostile_adapter() {
    let project = Project::tiny();
    let adapter = reference("training/llama/lora/adapter-init");
    let copy = |folder: &str| {
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            project.write(&format!("{folder}/{name}"), fs::read(adapter.join(name)).unwrap());
        }
        project.path().join(folder)
    };
    let refused = |folder: &Path, status: i32, words: &[&str]| {
        let init = format!("method.init={:?}", folder.file_name().unwrap());
        for command in ["plan", "train"] {
            let told = project.luthier([command, "--set", &init, "--set", "method.alpha=16"]).run();
            told.expect(status).complains(words);
        }
    };
    let pickle = copy("pickle");
    fs::rename(pickle.join("adapter_model.safetensors"), pickle.join("adapter_model.bin")).unwrap();
    refused(&pickle, 2, &["adapter_model.bin is a pickle file", "weights_only=True"]);
    let pipe = copy("pipe");
    fs::remove_file(pipe.join("adapter_config.json")).unwrap();
    mkfifoat(CWD, pipe.join("adapter_config.json"), Mode::RUSR).unwrap();
    refused(&pipe, 1, &["adapter_config.json", "a pipe, socket or device"]);
}
