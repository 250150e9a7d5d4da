//! `luthier model verify`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use luthier_core::config::{Config, Device};
use luthier_core::plan::PlanError;
use luthier_core::runs::engine_executable;
use luthier_core::text::clean_line;
use serde::{Deserialize, Serialize};

use super::super::failure::{Failure, Outcome};
use super::super::output::{self, Align};
use crate::project::Host;

/// The file of a reference folder.
const REFERENCE: &str = "ref.safetensors";

/// Compare a model with stored outputs of another implementation
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  luthier model verify models/tinyllama --reference references/tinyllama
  luthier model verify models/tinyllama --reference references/tinyllama --dtype bf16 --json

The reference folder has ref.safetensors: a batch (input_ids, attention_mask, labels; padded on the right), what
the model makes of it in transformers (logits, last_hidden_state, loss), and greedy continuations (gen0.prompt,
gen0.tokens, gen1.prompt, …). The batch is computed padded, packed end to end, and through the key-value cache.
Exit status 3 where a difference is beyond the tolerance, or a token differs.")]
pub struct Arguments {
    /// A folder with config.json and safetensors files, a .gguf file, or hf:org/name[@revision]
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// A folder with ref.safetensors
    #[arg(long, value_name = "DIR")]
    reference: PathBuf,
    /// Number format to compute in
    #[arg(long, value_enum, default_value_t = Format::F32)]
    dtype: Format,
    /// `auto`, `cpu` or `cuda:N`
    #[arg(long, default_value = "auto", value_parser = device)]
    device: Device,
    /// Largest difference that passes, of logits and hidden states, times their largest value where that is above 1; a
    /// tenth of it for the loss [default: 1e-4 in f32, 3e-2 in bf16]
    #[arg(long, value_name = "NUMBER")]
    tolerance: Option<f64>,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    F32,
    Bf16,
}

#[derive(Debug, Serialize, Deserialize)]
struct Report {
    family: String,
    device: String,
    dtype: String,
    max_abs_error: Errors,
    ways: Vec<Way>,
    greedy: Vec<Greedy>,
    greedy_equal: bool,
    allowed: Errors,
    pass: bool,
}

/// NaN and infinity are null in JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Errors {
    logits: Option<f64>,
    hidden: Option<f64>,
    loss: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Way {
    name: String,
    #[serde(flatten)]
    errors: Errors,
}

#[derive(Debug, Serialize, Deserialize)]
struct Greedy {
    tokens: usize,
    with_cache: usize,
    without_cache: usize,
}

pub fn run(arguments: &Arguments) -> Outcome {
    if arguments.tolerance.is_some_and(|tolerance| !tolerance.is_finite() || tolerance < 0.0) {
        return Err(Failure::usage("--tolerance must be 0 or greater"));
    }
    check_reference(&arguments.reference)?;
    check_device(arguments.device)?;
    let report = ask(arguments)?;
    if arguments.json {
        output::document(&report)?;
    } else {
        output::line(&describe(&report))?;
    }
    if report.pass { Ok(()) } else { Err(Failure::check(shortfall(&report))) }
}

/// A device as `model.device` takes it.
fn device(text: &str) -> Result<Device, String> {
    Device::from_word(text).ok_or_else(|| "give auto, cpu or cuda:N, such as cuda:0".to_owned())
}

/// Fails where there is no such GPU.
fn check_device(device: Device) -> Outcome {
    let mut config = Config::default();
    config.model.device = device;
    match (Host::THIS.place)(&config) {
        Err(PlanError::Gpu(problem)) => Err(Failure::usage(format!(
            "{problem}. Here the device is chosen with --device, such as --device cpu"
        ))),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

/// Fails where there is no reference to compare the model with.
fn check_reference(folder: &Path) -> Outcome {
    let shown = folder.display();
    let missing = if !folder.is_dir() {
        format!("there is no folder `{shown}`")
    } else if !folder.join(REFERENCE).is_file() {
        format!("`{shown}` has no {REFERENCE}")
    } else {
        return Ok(());
    };
    Err(Failure::usage(format!(
        "{missing}; --reference takes a folder with {REFERENCE}: a batch and the outputs of another implementation \
         for it with this model (`luthier model verify --help` lists the tensors)"
    )))
}

fn ask(arguments: &Arguments) -> Outcome<Report> {
    let mut command = Command::new(engine_executable()?);
    command.arg("verify").arg(&arguments.path).arg("--reference").arg(&arguments.reference);
    let dtype = match arguments.dtype {
        Format::F32 => "f32",
        Format::Bf16 => "bf16",
    };
    command.args(["--json", "--dtype", dtype]);
    command.args(["--device", &arguments.device.to_string()]);
    if let Some(tolerance) = arguments.tolerance {
        command.args(["--tolerance", &tolerance.to_string()]);
    }
    let answer = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::work(format!("the engine could not be started: {error}")))?;
    if !answer.status.success() {
        let complaint = String::from_utf8_lossy(&answer.stderr);
        let said = complaint.lines().rev().find_map(|line| line.strip_prefix("luthier-engine: "));
        let said =
            said.or(complaint.lines().last()).unwrap_or("the engine exited without reporting an error");
        return Err(Failure::work(clean_line(said).into_owned()));
    }
    serde_json::from_slice(&answer.stdout)
        .map_err(|error| Failure::work(format!("the engine's output cannot be read: {error}")))
}

fn describe(report: &Report) -> String {
    let Report { family, device, dtype, ways, max_abs_error, greedy, allowed, pass, .. } = report;
    let figure = |value: Option<f64>| value.map_or_else(|| "NaN".to_owned(), |value| format!("{value:.1e}"));
    let row = |name: &str, errors: &Errors| {
        vec![name.to_owned(), figure(errors.logits), figure(errors.hidden), figure(errors.loss)]
    };
    let mut rows: Vec<Vec<String>> =
        ways.iter().map(|way| row(&clean_line(&way.name), &way.errors)).collect();
    rows.push(row("largest", max_abs_error));
    rows.push(row("allowed", allowed));
    let columns =
        [("", Align::Left), ("logits", Align::Right), ("hidden", Align::Right), ("loss", Align::Right)];
    let mut text = format!("{} · {} · {}\n\n", clean_line(family), clean_line(dtype), clean_line(device));
    text += &output::table(&columns, &rows);
    text.push('\n');
    let said = greedy.iter().enumerate().map(|(index, Greedy { tokens, with_cache, without_cache })| {
        format!(
            "greedy {index}   {with_cache} of {tokens} tokens agree with the cache, {without_cache} without it\n"
        )
    });
    text.extend(said);
    text + if *pass { "equal within what is allowed" } else { "not equal" }
}

fn shortfall(report: &Report) -> String {
    let (found_errors, allowed) = (&report.max_abs_error, &report.allowed);
    let beyond =
        |error: Option<f64>, bound: Option<f64>| error.zip(bound).is_none_or(|(error, bound)| error > bound);
    let mut found: Vec<&str> = Vec::new();
    for (name, error, bound) in [
        ("logits", found_errors.logits, allowed.logits),
        ("hidden states", found_errors.hidden, allowed.hidden),
        ("the loss", found_errors.loss, allowed.loss),
    ] {
        if beyond(error, bound) {
            found.push(name);
        }
    }
    if !report.greedy_equal {
        found.push("greedy tokens");
    }
    format!("the model differs from the reference in {}", found.join(", "))
}
