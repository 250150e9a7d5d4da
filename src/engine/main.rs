//! The engine's command line. People use `luthier`, which starts it.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use luthier_core::config::{Config, Device, Dtype, MethodKind};
use luthier_core::machine;
use luthier_core::runs::RunDir;
use luthier_core::text::clean;
use luthier_engine::bench::{Answers, Base, Bench, Generate, Rows, Train, Work, bench, read};
use luthier_engine::error::EngineError;
use luthier_engine::evaluate::{Request, compare};
use luthier_engine::process::{
    Termination, bound_busy_waiting, log_to_stderr, say, start_again_with, threads_are_set,
};
use luthier_engine::{csrc, device, doctor, serve, training, verify};
use serde::Serialize;

/// Exit code after an error.
const FAILED: u8 = 1;
/// Exit code after bad usage.
const USAGE: u8 = 2;
/// Exit code after a signal.
const INTERRUPTED: u8 = 130;

/// Trains, evaluates and answers for Luthier. Started by `luthier`; seldom by hand.
#[derive(Parser)]
#[command(name = "luthier-engine", bin_name = "luthier-engine", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Work on one run until it ends: `luthier-engine train runs/20260823-140211-lora-r16`
    ///
    /// SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGALRM and SIGXCPU: save a checkpoint and the result after the current step, and
    /// end. While the run waits for room on a full disk, a second one ends it without. SIGQUIT: end at once, without saving.
    /// SIGHUP, SIGPIPE and SIGXFSZ do nothing.
    Train {
        /// The run's directory
        run: PathBuf,
    },
    /// Answer prompts over a Unix socket, with base and tuned model
    Serve {
        /// The project's folder
        #[arg(long)]
        project: PathBuf,
        /// Where to listen
        #[arg(long)]
        socket: PathBuf,
        /// `auto`, `cpu` or `cuda:N`, instead of the configuration's device
        #[arg(long, value_parser = parse_device)]
        device: Option<Device>,
    },
    /// Held-out loss and the objective's scores of a run, and of its base model
    Evaluate {
        /// The run's directory
        run: PathBuf,
        /// The checkpoint of this step, instead of the run's result
        #[arg(long)]
        checkpoint: Option<u64>,
        /// Most held-out rows to use
        #[arg(long)]
        limit: Option<usize>,
        /// JSON lines: progress, then the result
        #[arg(long)]
        json: bool,
    },
    /// Compare a model with stored outputs: `luthier-engine verify MODEL --reference DIR --json`
    Verify(VerifyArguments),
    /// What the engine can use on this machine
    Doctor {
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// Measure training and generation: `luthier-engine bench MODEL --method lora --steps 5 --json`, or
    /// `luthier-engine bench MODEL --plan FILE --json`
    Bench(BenchArguments),
}

impl Command {
    /// Whether it ends cleanly on a signal; the others end at once.
    fn listens(&self) -> bool {
        matches!(self, Self::Train { .. } | Self::Serve { .. } | Self::Evaluate { .. })
    }

    /// The device that it computes on; `None` if it uses all, or if its configuration cannot be read, which it will
    /// say itself.
    fn device(&self) -> Option<Device> {
        let of_run = |run: &Path| {
            let run = RunDir::open(run).ok()?;
            Some(Config::load_file(&run.config_path(), &[]).ok()?.model.device)
        };
        match self {
            Self::Train { run } | Self::Evaluate { run, .. } => of_run(run),
            // It answers for runs on different devices.
            Self::Serve { device, .. } => *device,
            Self::Verify(arguments) => Some(arguments.device),
            Self::Bench(arguments) => Some(arguments.device),
            Self::Doctor { .. } => None,
        }
    }
}

#[derive(Args)]
struct VerifyArguments {
    /// Model folder or GGUF file
    model: PathBuf,
    /// Folder with ref.safetensors
    #[arg(long)]
    reference: PathBuf,
    /// Number format
    #[arg(long, value_enum, default_value_t = Format::F32)]
    dtype: Format,
    /// `auto`, `cpu` or `cuda:N`
    #[arg(long, value_parser = parse_device, default_value = "auto")]
    device: Device,
    /// Largest difference that passes
    #[arg(long)]
    tolerance: Option<f64>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct BenchArguments {
    /// Model folder or GGUF file; trains on random tokens
    #[arg(required_unless_present = "project")]
    model: Option<PathBuf>,
    /// A project's folder: trains on its rows with the settings of its luthier.toml
    #[arg(long, conflicts_with_all = ["model", "method", "rank", "batch", "length"])]
    project: Option<PathBuf>,
    /// A JSON file with several works, as bench/README.md describes; prints a document for each
    #[arg(
        long,
        conflicts_with_all = [
            "project", "rows_to", "method", "batch", "length", "steps", "rank", "recompute", "rows", "new_tokens",
        ]
    )]
    plan: Option<PathBuf>,
    /// Write the rows of every step to this file, as JSON
    #[arg(long)]
    rows_to: Option<PathBuf>,
    /// What is trained: `full`, `lora` …
    #[arg(long, value_parser = parse_method, default_value = "lora")]
    method: MethodKind,
    /// Number format
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    dtype: Format,
    /// `auto`, `cpu` or `cuda:N`
    #[arg(long, value_parser = parse_device, default_value = "auto")]
    device: Device,
    /// Rows per step
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens per row
    #[arg(long, default_value_t = 512)]
    length: usize,
    /// Measured training steps; 0 leaves training out
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Rank of adapters, on all linear layers
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Compute activations again in the backward pass
    #[arg(long)]
    recompute: bool,
    /// Rows generated at a time
    #[arg(long, default_value_t = 1)]
    rows: usize,
    /// Tokens generated per row; 0 leaves generation out
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    /// One JSON document on a line; with --plan one for each work
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Auto,
    F32,
    Bf16,
}

impl From<Format> for Dtype {
    fn from(format: Format) -> Self {
        match format {
            Format::Auto => Self::Auto,
            Format::F32 => Self::F32,
            Format::Bf16 => Self::Bf16,
        }
    }
}

fn parse_device(text: &str) -> Result<Device, String> {
    Device::from_word(text).ok_or_else(|| "give auto, cpu or cuda:N".into())
}

fn parse_method(text: &str) -> Result<MethodKind, String> {
    MethodKind::from_name(text)
        .filter(|kind| doctor::methods().any(|name| name == kind.name()))
        .ok_or_else(|| format!("give one of: {}", doctor::methods().collect::<Vec<_>>().join(", ")))
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            // It quotes the arguments, which may come from anywhere.
            eprintln!("{}", clean(error.render().to_string().trim_end()));
            return ExitCode::from(USAGE);
        }
        Err(error) => error.exit(),
    };
    log_to_stderr();
    let listens = arguments.command.listens();
    if listens && let Err(error) = Termination::delay() {
        return failed(&error);
    }
    let mut variables = arguments.command.device().map(device::variables).unwrap_or_default();
    if !matches!(arguments.command, Command::Doctor { .. }) {
        variables.extend(bound_busy_waiting());
    }
    start_again_with(&variables);
    let termination = match listens.then(Termination::listen).transpose() {
        Ok(termination) => termination.unwrap_or_default(),
        Err(error) => return failed(&format!("signals cannot be handled: {error}")),
    };
    let threads = || if threads_are_set() { Ok(()) } else { csrc::set_threads(machine::cores()) };
    let prepared = csrc::prepare_process().and_then(|()| threads());
    if let Err(error) = prepared {
        return failed(&error);
    }
    let outcome = match arguments.command {
        Command::Train { run } => training::train(&run, termination)
            .map_err(|error| error.to_string())
            .map(|ended_well| if ended_well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }),
        Command::Serve { project, socket, device } => serve::serve(&project, &socket, device, &termination)
            .map_err(|error| error.to_string())
            .map(|()| ExitCode::SUCCESS),
        Command::Evaluate { run, checkpoint, limit, json } => {
            evaluate(&Request { run, checkpoint, limit }, json, &termination)
        }
        Command::Verify(arguments) => hold_against(arguments),
        Command::Doctor { json } => print(&doctor::examine(), json).map(|()| ExitCode::SUCCESS),
        Command::Bench(arguments) => measure(arguments),
    };
    outcome.unwrap_or_else(|message| failed(&message))
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    say(&error.to_string());
    ExitCode::from(FAILED)
}

fn with_remedy(error: &EngineError) -> String {
    format!("{error}; {}", error.remedy())
}

fn measure(arguments: BenchArguments) -> Result<ExitCode, String> {
    let (dtype, device, json) = (arguments.dtype.into(), arguments.device, arguments.json);
    let is_plan = arguments.plan.is_some();
    let works = match &arguments.plan {
        Some(path) => read(path)?,
        None => vec![one_work(&arguments)?],
    };
    let base = match (arguments.project, arguments.model) {
        (Some(folder), _) => Base::Project(folder),
        (None, model) => Base::Model(model.unwrap_or_default()),
    };
    let mut ended = Ok(ExitCode::SUCCESS);
    bench(&Bench { base, dtype, device, works }, &mut |work, figures| {
        let told = match figures {
            Ok(figures) if is_plan => print(&Told { name: &work.name, told: figures }, json),
            Ok(figures) => print(&figures, json),
            Err(error) if is_plan => {
                ended = Ok(ExitCode::from(FAILED));
                let error = clean(&error.to_string()).into_owned();
                print(&Told { name: &work.name, told: serde_json::json!({ "error": error }) }, json)
            }
            Err(error) => Err(with_remedy(&error)),
        };
        if let Err(message) = told {
            ended = Err(message);
        }
    })
    .map_err(|error| with_remedy(&error))?;
    ended
}

/// What is said of one work of a plan.
#[derive(Serialize)]
struct Told<'a, T> {
    name: &'a str,
    #[serde(flatten)]
    told: T,
}

/// The work that the command line describes.
fn one_work(arguments: &BenchArguments) -> Result<Work, String> {
    let BenchArguments { method, rank, batch, length, steps, recompute, rows, new_tokens, .. } = *arguments;
    let train = Train {
        rows: Rows::Equal { batch, length },
        steps,
        warm_up: Train::WARM_UP,
        recompute,
        profile: false,
        rows_to: arguments.rows_to.clone(),
    };
    let generate = Generate {
        rows,
        prompt: Generate::PROMPT,
        new_tokens,
        answers: Answers::Base,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
    };
    let work = Work {
        name: method.name().to_owned(),
        method,
        rank,
        train: (steps > 0).then_some(train),
        generate: (new_tokens > 0).then_some(generate),
    };
    work.check()?;
    Ok(work)
}

fn hold_against(arguments: VerifyArguments) -> Result<ExitCode, String> {
    let VerifyArguments { model, reference, dtype, device, tolerance, json } = arguments;
    let report = device::choose(device).and_then(|device| {
        let kind = device::compute_kind(dtype.into(), device);
        let tolerance = tolerance.unwrap_or_else(|| verify::usual_tolerance(kind));
        verify::verify(&verify::Request { model, reference, device, kind, tolerance })
    });
    print(&report.map_err(|error| with_remedy(&error))?, json).map(|()| ExitCode::SUCCESS)
}

fn evaluate(request: &Request, json: bool, termination: &Termination) -> Result<ExitCode, String> {
    let found = compare(request, &mut |progress| {
        if json && !progress.what.is_empty() {
            // The reader may be gone; the signal for that ends the work.
            let _ = line(&serde_json::json!({ "progress": progress }));
        }
        if termination.asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match found.map_err(|error| with_remedy(&error))? {
        Some(comparison) if json => line(&comparison).map(|()| ExitCode::SUCCESS),
        Some(comparison) => print(&comparison, false).map(|()| ExitCode::SUCCESS),
        None => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// One JSON document: on one line for programs, indented for people.
fn print(report: &impl Serialize, json: bool) -> Result<(), String> {
    if json {
        return line(report);
    }
    let text = serde_json::to_string_pretty(report).map_err(|error| error.to_string())?;
    writeln!(io::stdout(), "{text}").map_err(|error| error.to_string())
}

fn line(report: &impl Serialize) -> Result<(), String> {
    let text = serde_json::to_string(report).map_err(|error| error.to_string())?;
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| error.to_string())
}
