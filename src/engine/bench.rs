//! How fast this machine trains and generates: the figures that `make bench` shows.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use luthier_core::config::{Device as ConfigDevice, Dtype, Targets};
use luthier_core::data::EncodedRow;
use luthier_core::model::ModelFiles;
use serde::Serialize;
use tch::Device;

use crate::base::device_name;
use crate::error::{EngineError, Result};
use crate::generation::{Row, Sampling, generate};
use crate::methods::{LoraMethod, Method};
use crate::models::Model;
use crate::random::{derive, unit};
use crate::training::adamw::{AdamW, EPSILON};
use crate::training::batch::collate;
use crate::training::sft::Sft;
use crate::training::step::{Outcome, Settings, step};
use crate::{csrc, device};

/// Steps that warm caches and are not measured.
const WARM_UP: usize = 2;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Model folder or GGUF file.
    pub model: PathBuf,
    /// Number format.
    pub dtype: Dtype,
    /// Where.
    pub device: ConfigDevice,
    /// Rows per step.
    pub batch: usize,
    /// Tokens per row.
    pub length: usize,
    /// Measured steps.
    pub steps: usize,
    /// LoRA rank, on all linear layers.
    pub rank: usize,
    /// Whether activations are computed again.
    pub recompute: bool,
    /// Rows generated at a time.
    pub rows: usize,
    /// Tokens generated per row; 0 leaves generation out.
    pub new_tokens: usize,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// `Float`, `BFloat16`.
    pub dtype: String,
    /// Seconds to have the weights ready.
    pub load_seconds: f64,
    /// Training.
    pub train: Option<TrainFigures>,
    /// Generation.
    pub decode: Option<DecodeFigures>,
    /// Largest resident memory of the process so far.
    pub peak_memory_bytes: u64,
    /// Most that tensors held on the device.
    pub peak_device_memory_bytes: Option<i64>,
}

/// LoRA training.
#[derive(Debug, Clone, Serialize)]
pub struct TrainFigures {
    /// Tokens of a step over the median time of one.
    pub tokens_per_second: f64,
    /// Each measured step.
    pub seconds: Vec<f64>,
    /// Trained parameters.
    pub trainable: usize,
    /// Losses, first to last, warm-up included.
    pub losses: Vec<f64>,
    /// Largest resident memory while training.
    pub peak_memory_bytes: u64,
}

/// Greedy generation.
#[derive(Debug, Clone, Serialize)]
pub struct DecodeFigures {
    /// Rows at a time.
    pub rows: usize,
    /// Tokens per second of all rows together, the prompt's time excluded.
    pub tokens_per_second: f64,
    /// Seconds until the first token.
    pub first_token_seconds: f64,
}

/// Measures.
pub fn bench(bench: &Bench) -> Result<Figures> {
    let device = device::choose(&bench.device)?;
    let kind = device::compute_kind(bench.dtype, device)?;
    let began = Instant::now();
    let files = ModelFiles::open(&bench.model).map_err(|error| EngineError::Config(error.to_string()))?;
    let model = Model::load(&files, device, kind)?;
    let load_seconds = began.elapsed().as_secs_f64();
    let train = if bench.steps > 0 { Some(train(bench, &model)?) } else { None };
    let decode = if bench.new_tokens > 0 { Some(decode(bench, &model)?) } else { None };
    let peak_device_memory_bytes = match device {
        Device::Cuda(index) => Some(csrc::device_memory(index)?.peak),
        _ => None,
    };
    Ok(Figures {
        device: device_name(device),
        dtype: format!("{kind:?}"),
        load_seconds,
        train,
        decode,
        peak_memory_bytes: peak_memory(),
        peak_device_memory_bytes,
    })
}

fn train(bench: &Bench, model: &Model) -> Result<TrainFigures> {
    let method = LoraMethod {
        rank: bench.rank,
        alpha: 2.0 * bench.rank as f64,
        dropout: 0.0,
        targets: Targets::AllLinear,
        base: bench.model.clone(),
    };
    let adapter = method.create(model, 0)?;
    let mut optimizer = AdamW::new(adapter.parameters())?;
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for number in 0..WARM_UP + bench.steps {
        let rows: Vec<EncodedRow> =
            (0..bench.batch).map(|row| random_row(model, bench.length, number, row)).collect();
        let began = Instant::now();
        let batch = collate(&rows, model.device())?;
        let settings = Settings {
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
        match step(model, adapter.as_ref(), &mut optimizer, &Sft, &[batch], &settings, &|| false)? {
            Outcome::Updated(measured) => losses.push(measured.loss),
            other => return Err(EngineError::Data(format!("a step of the benchmark ended with {other:?}"))),
        }
        if number >= WARM_UP {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    Ok(TrainFigures {
        tokens_per_second: (bench.batch * bench.length) as f64 / median(&seconds),
        seconds,
        trainable: adapter.parameters().values().map(tch::Tensor::numel).sum(),
        losses,
        peak_memory_bytes: peak_memory(),
    })
}

fn decode(bench: &Bench, model: &Model) -> Result<DecodeFigures> {
    let prompts: Vec<Vec<u32>> = (0..bench.rows).map(|row| random_row(model, 64, 0, row).ids).collect();
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
    // The first round warms up.
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

/// Tokens drawn evenly, every one but the first trained on.
fn random_row(model: &Model, length: usize, step: usize, row: usize) -> EncodedRow {
    let vocabulary = model.architecture().vocabulary as f64;
    let seed = derive(derive(1, step as u64), row as u64);
    let ids = (0..length).map(|place| (unit(derive(seed, place as u64)) * vocabulary) as u32).collect();
    let trained = (0..length).map(|place| place > 0).collect();
    EncodedRow { row, ids, trained, rejected: None }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `VmHWM` of this process, in bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.map_or(0, |kilobytes| kilobytes.saturating_mul(1024))
}
