//! `luthier model pull`.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use luthier_core::text::clean_line;
use luthier_core::units;

use crate::cli::failure::Outcome;
use crate::cli::output;
use crate::hub::{Event, Pulled};
use crate::project;

/// How often progress is printed where no bar can be drawn.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Fetch a model from the Hugging Face hub into the cache that all tools of the hub share
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  luthier model pull hf:HuggingFaceTB/SmolLM2-135M-Instruct
  luthier model pull hf:org/name@v1.0 --json | jq -r .path
  luthier model pull hf:org/name-GGUF:name-Q8_0.gguf

Then model.path = \"hf:org/name\" finds it, without network. Only what Luthier reads is fetched: settings, tokenizer,
template, and weights as safetensors, or the GGUF file that is named; never pickle. An interrupted transfer
continues where it was. HF_TOKEN (or the file of `hf auth login`), HF_ENDPOINT, HF_HOME and HF_HUB_CACHE count as for other
tools of the hub.")]
pub struct Arguments {
    /// The model: hf:org/name, with @revision for a branch, tag or commit, and :file.gguf for a GGUF file of it
    #[arg(value_name = "MODEL")]
    model: String,
    /// Print a JSON document about what was fetched
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let mut progress = Progress::new();
    // Ctrl-C ends the process at once, also while the network is silent; what was fetched is kept.
    let pulled = project::pull(&arguments.model, &mut |event| {
        progress.see(event);
        ControlFlow::Continue(())
    });
    progress.end();
    let pulled = pulled?;
    if arguments.json { output::document(&pulled) } else { output::line(&describe(&pulled)) }
}

fn describe(pulled: &Pulled) -> String {
    let came = match pulled.fetched_bytes {
        0 => "it was already complete".to_owned(),
        bytes => format!("{} fetched", units::bytes(bytes)),
    };
    let files = units::counted(pulled.files.len(), "file", "files");
    format!(
        "{model}: {files}, {size}, {came}\ncommit  {commit}\npath    {path}\n\
         next    model.path = \"{model}\" in luthier.toml; `luthier model inspect {model}` shows what it is",
        model = pulled.model,
        size = units::bytes(pulled.bytes),
        commit = pulled.revision,
        path = pulled.path.display(),
    )
}

/// Shows progress on stderr: a bar for each file on a terminal, else a line now and then.
struct Progress {
    bar: ProgressBar,
    drawn: bool,
    file: String,
    bytes: u64,
    said: Instant,
}

impl Progress {
    fn new() -> Self {
        let drawn = io::stderr().is_terminal();
        let target = if drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(bar_style());
        Self { bar, drawn, file: String::new(), bytes: 0, said: Instant::now() }
    }

    fn see(&mut self, event: Event) {
        match event {
            Event::Planned { files, bytes } => {
                let files = units::counted(files, "file", "files");
                self.say(&format!("fetching {files}, {}", units::bytes(bytes)));
            }
            Event::Waiting(file) => self.say(&format!("{file}: waiting for another process that fetches it")),
            Event::Begun { file, held, bytes } => {
                (self.file, self.bytes, self.said) = (file.to_owned(), bytes, Instant::now());
                self.bar.reset();
                self.bar.set_length(bytes);
                self.bar.set_position(held);
                self.bar.reset_eta();
                self.bar.set_message(file.to_owned());
                if held > 0 {
                    self.say(&format!("{file}: continues from {}", units::bytes(held)));
                }
            }
            Event::Received(held) => {
                self.bar.set_position(held);
                if !self.drawn && self.said.elapsed() >= SAY_EVERY {
                    self.said = Instant::now();
                    let (held, bytes) = (units::bytes(held), units::bytes(self.bytes));
                    output::note(&format!("{}: {held} of {bytes}", self.file));
                }
            }
            Event::Broken(reason) => self.say(&format!("{}: interrupted, trying again: {reason}", self.file)),
            Event::Done { file, bytes } => self.say(&format!("{file}: {}", units::bytes(bytes))),
        }
    }

    fn say(&self, text: &str) {
        let text = clean_line(text).into_owned();
        self.bar.suspend(|| output::note(&text));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}
