//! A tiny project for tests: the llama reference with a few training rows.

use std::path::{Path, PathBuf};

use luthier_core::config::Config;
use luthier_core::model::{ModelFiles, Quantisation};
use luthier_core::runs::RunDir;
use tch::{Device, Kind};

use crate::models::Model;

/// A project folder that is removed when dropped.
pub struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    pub fn new() -> Self {
        // Tests run in parallel; thread teams in each would only wait for each other.
        crate::csrc::set_threads(1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut rows = String::new();
        for index in 0..24 {
            let (prompt, completion) = (format!("the {index} th"), format!(" word is {}", index * 7));
            rows += &serde_json::json!({ "prompt": prompt, "completion": completion }).to_string();
            rows.push('\n');
        }
        std::fs::write(folder.path().join("train.jsonl"), rows).unwrap();
        let prompts = "{\"prompt\": \"the 3 th\"}\n{\"prompt\": \"hello\"}\n";
        std::fs::write(folder.path().join("prompts.jsonl"), prompts).unwrap();
        let model = model();
        let text = format!(
            "[model]\npath = {model:?}\ndtype = \"f32\"\ndevice = \"cpu\"\n[data]\ntrain = \"train.jsonl\"\neval = 0.25\n\
             max_length = 64\n[method]\nrank = 4\nalpha = 8\ndropout = 0.1\n[train]\nmax_steps = 8\nbatch_size = 2\n\
             accumulate = 2\nlearning_rate = 1e-2\nwarmup = 0\neval_every = 4\nsample_every = 8\ncheckpoint_every = 4\n\
             keep_checkpoints = 0\n[objective]\nkind = \"length\"\nmin_length = 1\n[review]\nsuite = \"prompts.jsonl\"\n\
             max_new_tokens = 6\n"
        );
        std::fs::write(folder.path().join("luthier.toml"), text).unwrap();
        Self { folder }
    }

    /// Writes preference pairs, one per training row: the chosen answers count, the rejected ones do not.
    pub fn write_pairs(&self, name: &str) {
        let pair = |index: usize| {
            let (chosen, rejected) = (format!(" word is {}", index * 7), " no, never");
            serde_json::json!({ "prompt": format!("the {index} th"), "chosen": chosen, "rejected": rejected })
        };
        let rows: Vec<String> = (0..24).map(|index| pair(index).to_string() + "\n").collect();
        std::fs::write(self.path().join(name), rows.concat()).unwrap();
    }

    /// Writes labelled answers, one per training row: those that count are good, the others bad.
    pub fn write_labelled(&self, name: &str) {
        let row = |index: usize| {
            let good = index.is_multiple_of(2);
            let answer = if good { format!(" word is {}", index * 7) } else { " no, never".to_owned() };
            serde_json::json!({ "prompt": format!("the {index} th"), "completion": answer, "label": good })
        };
        let rows: Vec<String> = (0..24).map(|index| row(index).to_string() + "\n").collect();
        std::fs::write(self.path().join(name), rows.concat()).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A new run with `set` on top of the project's settings.
    pub fn run(&self, set: &[&str]) -> RunDir {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        let config = Config::load(self.path(), &set).unwrap();
        RunDir::create(self.path(), &config, Some("test")).unwrap()
    }
}

/// The tiny llama's folder.
pub fn model() -> PathBuf {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny/llama");
    Path::new(path).canonicalize().unwrap()
}

/// The tiny llama in f32.
pub fn tiny_llama() -> Model {
    let files = ModelFiles::open(&model()).unwrap();
    Model::load(&files, Device::Cpu, Kind::Float, Quantisation::None).unwrap()
}
