//! Measures training and generation speed of this machine, for `make bench`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use luthier_core::config::{Config, Device as ConfigDevice, Dtype, MethodKind, MethodSection};
use luthier_core::data::{self, EncodedRow, EncodedSide, StepOrder};
use luthier_core::model::{ModelFiles, Quantisation};
use luthier_core::random::{derive, unit};
use luthier_core::units::median;
use serde::Serialize;
use serde_json::{Value, json};
use tch::Device;

use crate::algorithms::sft::Sft;
use crate::base::{data_error, model_files};
use crate::error::{EngineError, Result};
use crate::generation::{Row, Sampling, generate};
use crate::methods::method_of;
use crate::models::Model;
use crate::process::peak_memory;
use crate::step::adamw::{AdamW, EPSILON};
use crate::step::batch::{Beginnings, collate};
use crate::step::phases::Phases;
use crate::step::{Launch, Launched, Learner, Outcome, StepSettings};
use crate::training::trainer::Reading;
use crate::{csrc, device};

/// Warm-up steps, which are not measured.
const WARM_UP: usize = 2;

#[derive(Debug, Clone)]
pub struct Bench {
    /// Model and rows.
    pub work: Work,
    pub dtype: Dtype,
    pub device: ConfigDevice,
    /// Measured steps.
    pub steps: usize,
    /// Whether activations are computed again in the backward pass.
    pub recompute: bool,
    /// Rows generated at a time.
    pub rows: usize,
    /// Tokens generated per row; 0 skips generation.
    pub new_tokens: usize,
    /// File for the rows of every step, so that other programs can be measured on the same rows.
    pub rows_to: Option<PathBuf>,
}

/// The training work that is measured.
#[derive(Debug, Clone)]
pub enum Work {
    /// Rows of random tokens, all of them trained on.
    Random {
        /// Model folder or GGUF file.
        model: PathBuf,
        /// Method. Adapters are on all linear layers.
        method: MethodKind,
        /// Rank of the factors, if the method has any.
        rank: usize,
        /// Rows per step.
        batch: usize,
        /// Tokens per row.
        length: usize,
    },
    /// A project's rows, with the order, packing and steps of its `luthier.toml`.
    Project { folder: PathBuf },
}

/// The measurements.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// `Float`, `BFloat16`.
    pub dtype: String,
    /// Time to load the weights.
    pub load_seconds: f64,
    /// Bytes of the weights; for mapped weights, in their file.
    pub weight_bytes: u64,
    pub train: Option<TrainFigures>,
    pub decode: Option<DecodeFigures>,
    /// Largest resident memory of the process so far.
    pub peak_memory_bytes: u64,
    /// Highest memory use of tensors on the device.
    pub peak_device_memory_bytes: Option<i64>,
}

/// Measurements of training.
#[derive(Debug, Clone, Serialize)]
pub struct TrainFigures {
    /// Median over the measured steps.
    pub tokens_per_second: f64,
    /// Of each measured step.
    pub seconds: Vec<f64>,
    /// Tokens of each measured step.
    pub tokens: Vec<u64>,
    /// Average seconds of each part on the CPU, per measured step.
    pub parts: BTreeMap<&'static str, f64>,
    /// Number of trained parameters.
    pub trainable: usize,
    /// All losses in order, with warm-up steps.
    pub losses: Vec<f64>,
    /// Seconds of each measured step's phases, as measured by the device.
    pub phases: Vec<Phases>,
    /// Largest resident memory while training.
    pub peak_memory_bytes: u64,
}

/// Measurements of greedy generation.
#[derive(Debug, Clone, Serialize)]
pub struct DecodeFigures {
    /// Rows at a time.
    pub rows: usize,
    /// Tokens per second of all rows together, without the time for the prompt.
    pub tokens_per_second: f64,
    /// Seconds until the first token.
    pub first_token_seconds: f64,
}

/// The rows of each micro-batch of a step.
type Step = Vec<Vec<EncodedRow>>;

/// The work in the form in which it is run.
struct Plan {
    files: ModelFiles,
    config: Config,
    /// Makes the rows of a step.
    rows: Box<dyn Fn(usize) -> Step>,
}

pub fn bench(bench: &Bench) -> Result<Figures> {
    let device = device::choose(bench.device)?;
    let kind = device::compute_kind(bench.dtype, device);
    let plan = match &bench.work {
        Work::Random { model, method, rank, batch, length } => {
            random(model, *method, *rank, *batch, *length)?
        }
        Work::Project { folder } => project(folder)?,
    };
    device::prepare(&plan.config, device)?;
    let began = Instant::now();
    let quantisation = Quantisation::of(plan.config.method.kind, &plan.files);
    let model = Model::load(&plan.files, device, kind, quantisation)?;
    let load_seconds = began.elapsed().as_secs_f64();
    if let Some(path) = &bench.rows_to {
        write_rows(path, &plan, WARM_UP + bench.steps)?;
    }
    let train = if bench.steps > 0 { Some(train(bench, &plan, &model)?) } else { None };
    let decode = if bench.new_tokens > 0 { Some(decode(bench, &model)?) } else { None };
    let peak_device_memory_bytes = match device {
        Device::Cuda(index) => Some(csrc::device_memory(index)?.peak),
        _ => None,
    };
    Ok(Figures {
        device: device::name(device),
        dtype: format!("{kind:?}"),
        load_seconds,
        weight_bytes: model.weight_bytes(),
        train,
        decode,
        peak_memory_bytes: peak_memory(),
        peak_device_memory_bytes,
    })
}

fn random(model: &Path, method: MethodKind, rank: usize, batch: usize, length: usize) -> Result<Plan> {
    let files = ModelFiles::open(model).map_err(|error| EngineError::Config(error.to_string()))?;
    let vocabulary = files.architecture.vocabulary;
    let mut config = Config::default();
    config.model.path = model.display().to_string();
    config.method = MethodSection { kind: method, rank, alpha: 2.0 * rank as f64, ..config.method };
    Ok(Plan {
        files,
        config,
        rows: Box::new(move |step| {
            vec![(0..batch).map(|row| random_row(vocabulary, length, step, row)).collect()]
        }),
    })
}

fn project(folder: &Path) -> Result<Plan> {
    let config = Config::load(folder, &[]).map_err(|error| EngineError::Config(error.to_string()))?;
    let files = model_files(&config, folder)?;
    let prepared =
        data::prepare(&config, folder, &files, &mut |_, _| ControlFlow::Continue(())).map_err(data_error)?;
    let lengths: Vec<usize> = prepared.train.iter().map(EncodedRow::tokens).collect();
    let order = StepOrder::new(&lengths, &config);
    Ok(Plan {
        files,
        config,
        rows: Box::new(move |step| {
            let rows = |sequences: Vec<Vec<usize>>| {
                sequences.iter().flatten().filter_map(|&row| prepared.train.get(row).cloned()).collect()
            };
            order.step(step as u64).into_iter().map(|micro_batch| rows(micro_batch.sequences)).collect()
        }),
    })
}

/// The rows of every step as JSON: a list of steps, each a list of micro-batches, each a list of rows.
fn write_rows(path: &Path, plan: &Plan, steps: usize) -> Result<()> {
    let sides = |row: EncodedRow| row.sides.into_iter();
    let row = |side: EncodedSide| json!({ "ids": side.ids, "trained": side.trained });
    let step = |step: Step| -> Value {
        step.into_iter().map(|batch| batch.into_iter().flat_map(sides).map(row).collect::<Value>()).collect()
    };
    let steps: Value = (0..steps).map(|number| step((plan.rows)(number))).collect();
    let failed = |source| EngineError::File { action: "write", path: path.to_owned(), source };
    std::fs::write(path, steps.to_string()).map_err(failed)
}

fn train(bench: &Bench, plan: &Plan, model: &Model) -> Result<TrainFigures> {
    let adapter = method_of(&plan.config).create(model, 0)?;
    let mut optimizer = AdamW::new(adapter.parameters())?;
    let late = Reading::of(model.device()) == Reading::Late;
    let mut in_flight: Option<(Launched, u64)> = None;
    let mut course = Course {
        since: Instant::now(),
        made: 0,
        seconds: vec![],
        tokens: vec![],
        losses: vec![],
        phases: vec![],
    };
    for number in 0..WARM_UP + bench.steps {
        let rows = (plan.rows)(number);
        if number == WARM_UP {
            // Discards the time counted so far.
            csrc::time_spent()?;
        }
        let batch = |rows: &Vec<EncodedRow>| {
            collate(rows, Beginnings::under(model, adapter.as_ref()), model.device())
        };
        let batches = rows.iter().map(batch).collect::<Result<Vec<_>>>()?;
        let settings = StepSettings {
            adamw: csrc::AdamW {
                learning_rate: 1e-4,
                betas: [0.9, 0.999],
                weight_decay: 0.01,
                epsilon: EPSILON,
            },
            max_grad_norm: 1.0,
            recompute: bench.recompute,
            seed: number as u64,
        };
        let learner = Learner { model, adapter: adapter.as_ref(), optimizer: &optimizer };
        let before = in_flight.as_ref().map(|(step, _)| step);
        let step = match learner.launch(&Sft, &batches, &settings, before, &|| false)? {
            Launch::Made(step) => step,
            other => return Err(no_step(&other)),
        };
        let tokens = batches.iter().map(|batch| batch.tokens).sum();
        let before = in_flight.replace((step, tokens));
        if let Some(step) = if late { before } else { in_flight.take() } {
            course.settle(step, &mut optimizer)?;
        }
    }
    if let Some(step) = in_flight {
        course.settle(step, &mut optimizer)?;
    }
    let Course { seconds, tokens, losses, phases, .. } = course;
    let speeds: Vec<f64> =
        tokens.iter().zip(&seconds).map(|(&tokens, seconds): (&u64, _)| tokens as f64 / seconds).collect();
    Ok(TrainFigures {
        tokens_per_second: median(speeds),
        parts: parts(&seconds)?,
        seconds,
        tokens,
        trainable: adapter.parameters().values().map(tch::Tensor::numel).sum(),
        losses,
        phases,
        peak_memory_bytes: peak_memory(),
    })
}

/// Measured steps.
struct Course {
    since: Instant,
    made: usize,
    seconds: Vec<f64>,
    tokens: Vec<u64>,
    losses: Vec<f64>,
    phases: Vec<Phases>,
}

impl Course {
    fn settle(&mut self, (step, tokens): (Launched, u64), optimizer: &mut AdamW) -> Result<()> {
        match step.settle(optimizer)? {
            Outcome::Updated(measured) => {
                self.losses.push(measured.loss);
                if self.made >= WARM_UP {
                    self.phases.push(measured.phases);
                }
            }
            other @ Outcome::NotFinite(_) => return Err(no_step(&other)),
        }
        if self.made >= WARM_UP {
            self.seconds.push(self.since.elapsed().as_secs_f64());
            self.tokens.push(tokens);
        }
        self.made += 1;
        self.since = Instant::now();
        Ok(())
    }
}

fn no_step(ended: &dyn std::fmt::Debug) -> EngineError {
    EngineError::Data(format!("a step of the benchmark ended with {ended:?}"))
}

/// Seconds per step of each part, and of the rest.
fn parts(seconds: &[f64]) -> Result<BTreeMap<&'static str, f64>> {
    let steps = seconds.len() as f64;
    let mut parts: BTreeMap<_, _> =
        csrc::time_spent()?.into_iter().map(|(part, spent)| (part, spent.as_secs_f64() / steps)).collect();
    let counted: f64 = parts.values().sum();
    parts.insert("everything else", seconds.iter().sum::<f64>() / steps - counted);
    Ok(parts)
}

fn decode(bench: &Bench, model: &Model) -> Result<DecodeFigures> {
    let vocabulary = model.architecture().vocabulary;
    let prompts: Vec<Vec<u32>> = (0..bench.rows).map(|row| random_ids(vocabulary, 64, 0, row)).collect();
    let rows: Vec<Row> = prompts
        .iter()
        .map(|prompt| Row {
            prompt,
            adapter: None,
            sampling: Sampling::GREEDY,
            seed: 0,
            stop: &[],
            max_new_tokens: bench.new_tokens,
        })
        .collect();
    let mut first = Duration::ZERO;
    let mut last = Duration::ZERO;
    // The first round is a warm-up.
    for _ in 0..2 {
        let began = Instant::now();
        first = Duration::ZERO;
        generate(model, &rows, &mut |_, _| {
            last = began.elapsed();
            if first.is_zero() {
                first = last;
            }
            ControlFlow::Continue(())
        })?;
    }
    let made = bench.rows * bench.new_tokens.saturating_sub(1);
    Ok(DecodeFigures {
        rows: bench.rows,
        tokens_per_second: made as f64 / last.saturating_sub(first).as_secs_f64().max(f64::EPSILON),
        first_token_seconds: first.as_secs_f64(),
    })
}

/// Uniformly random tokens, all of them trained on except the first.
fn random_row(vocabulary: usize, length: usize, step: usize, row: usize) -> EncodedRow {
    let trained = (0..length).map(|place| place > 0).collect();
    EncodedRow::of_one_side(row, random_ids(vocabulary, length, step, row), trained)
}

fn random_ids(vocabulary: usize, length: usize, step: usize, row: usize) -> Vec<u32> {
    let seed = derive(derive(1, step as u64), row as u64);
    (0..length).map(|place| (unit(derive(seed, place as u64)) * vocabulary as f64) as u32).collect()
}
