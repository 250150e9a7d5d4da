//! Small projects in temporary folders.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::Luthier;
use crate::process::{send, works_on};
use crate::programs::reference;

/// A project with its own sockets and cache. Processes that still run in it are killed when it is dropped.
pub struct Project {
    home: TempDir,
}

/// Conversations that a model of any size learns within a few steps.
pub fn tiny_rows(count: usize) -> Vec<Value> {
    const COLOURS: [&str; 6] = ["red", "blue", "green", "white", "black", "brown"];
    (0..count)
        .map(|index| {
            let colour = COLOURS[index % COLOURS.len()];
            json!({"messages": [
                {"role": "user", "content": format!("item {index} is {colour}")},
                {"role": "assistant", "content": format!("{{\"colour\": \"{colour}\"}}")},
            ]})
        })
        .collect()
}

/// JSON values, one per line.
pub fn json_lines(rows: &[Value]) -> String {
    rows.iter().map(Value::to_string).flat_map(|row| [row, "\n".to_owned()]).collect()
}

impl Project {
    pub fn empty() -> Self {
        let project = Self { home: TempDir::with_prefix("luthier-").unwrap() };
        for folder in ["project", "run", "cache"] {
            fs::create_dir(project.home.path().join(folder)).unwrap();
        }
        project
    }

    /// The tiny llama with 24 training rows and 6 held-out rows; a run of 12 steps takes a second or two.
    pub fn tiny() -> Self {
        let project = Self::empty();
        project.write_rows("train.jsonl", &tiny_rows(24));
        project.write_rows("held-out.jsonl", &tiny_rows(6));
        project
            .write("prompts.jsonl", "{\"prompt\": \"item 3 is white\"}\n{\"prompt\": \"item 9 is black\"}\n");
        project.write("luthier.toml", Self::tiny_settings());
        project
    }

    /// The settings of [`Project::tiny`].
    pub fn tiny_settings() -> String {
        let model = reference("tiny/llama");
        format!(
            r#"[model]
path = "{}"
dtype = "f32"
device = "cpu"

[data]
train = "train.jsonl"
eval = "held-out.jsonl"
template = "chatml"
max_length = 96

[method]
rank = 8

[train]
max_steps = 12
batch_size = 4
accumulate = 1
learning_rate = 1e-2
warmup = 0
eval_every = 4
sample_every = 0
checkpoint_every = 4

[objective]
kind = "contains"
contains = ["colour"]

[review]
suite = "prompts.jsonl"
temperature = 0.0
max_new_tokens = 12
"#,
            model.display()
        )
    }

    pub fn path(&self) -> PathBuf {
        self.home.path().join("project")
    }

    /// A folder next to the project, for files that are not part of it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn write_rows(&self, name: &str, rows: &[Value]) {
        self.write(name, json_lines(rows));
    }

    /// Environment variables that separate programs started here from the rest of the machine.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        [
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_CONFIG_HOME", "config"),
            ("HOME", "home"),
        ]
        .map(|(name, folder)| (name, self.home.path().join(folder)))
        .to_vec()
    }

    /// `luthier` with these arguments, in the project folder.
    pub fn luthier<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Luthier {
        let mut command = Luthier::new(&self.path());
        for (name, folder) in self.environment() {
            command = command.variable(name, folder);
        }
        command.arguments(arguments)
    }

    /// The run directories, oldest first.
    pub fn runs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path().join("runs")).into_iter().flatten().flatten();
        let mut runs: Vec<_> =
            entries.map(|entry| entry.path()).filter(|path| path.join("config.toml").is_file()).collect();
        runs.sort();
        runs
    }

    /// The only run directory.
    pub fn run(&self) -> PathBuf {
        let mut runs = self.runs();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }

    /// The status file of a run.
    pub fn status(run: &Path) -> Value {
        let text = fs::read_to_string(run.join("status.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// The journal of a run, up to its last whole line.
    pub fn journal(run: &Path) -> Vec<Value> {
        let text = fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let lock = fs::read_to_string(self.path().join("runs/scheduler.lock")).unwrap_or_default();
        let scheduler = lock.split_whitespace().find_map(|word| word.parse().ok());
        let engines = self.runs().into_iter().filter_map(|run| Self::status(&run)["pid"].as_u64());
        // The scheduler first, because it would start the next run.
        for pid in scheduler.into_iter().chain(engines.map(|pid| pid as u32)) {
            // The pid may belong to another process by now.
            if works_on(pid, self.home.path()) {
                send("KILL", pid);
            }
        }
    }
}
