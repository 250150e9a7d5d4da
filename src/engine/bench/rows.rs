//! The rows of a work, and the settings under which a run would train on them.

use std::ops::ControlFlow;
use std::path::Path;

use luthier_core::config::{Config, MethodSection, Recompute};
use luthier_core::data::{self, DataSummary, EncodedRow, EncodedSide, StepOrder};
use luthier_core::model::ModelFiles;
use luthier_core::random::{derive, normal, unit};
use serde_json::{Value, json};

use super::plan::{Rows, Work};
use super::{Base, Bench};
use crate::base::{data_error, model_files};
use crate::error::{EngineError, Result};

/// Rows are drawn for so many steps, after which they come again in another order.
const STEPS_OF_ROWS: usize = 32;

/// The rows of each micro-batch of a step.
pub(super) type Step = Vec<Vec<EncodedRow>>;

/// A work in the form in which it is run.
pub(super) struct Prepared {
    pub files: ModelFiles,
    pub config: Config,
    /// What the forecast needs to know of the rows.
    pub data: DataSummary,
    /// Makes the rows of a step.
    pub rows: Box<dyn Fn(usize) -> Step>,
}

impl Prepared {
    pub fn of(work: &Work, bench: &Bench) -> Result<Self> {
        let mut prepared = match &bench.base {
            Base::Model(path) => random(path, work)?,
            Base::Project(folder) => project(folder)?,
        };
        prepared.config.model.dtype = bench.dtype;
        let recompute = work.train.as_ref().is_some_and(|train| train.recompute);
        prepared.config.train.recompute = if recompute { Recompute::On } else { Recompute::Off };
        Ok(prepared)
    }
}

/// Rows of random tokens, in the order of a run.
fn random(model: &Path, work: &Work) -> Result<Prepared> {
    let files = ModelFiles::open(model).map_err(|error| EngineError::Config(error.to_string()))?;
    let mut config = Config::default();
    config.model.path = model.display().to_string();
    let Work { method, rank, .. } = *work;
    config.method = MethodSection { kind: method, rank, alpha: 2.0 * rank as f64, ..config.method };
    config.train.accumulate = 1;
    let lengths = work.train.as_ref().map_or_else(Vec::new, |train| lay_out(&train.rows, &mut config));
    let order = StepOrder::new(&lengths, &config);
    let tokens = lengths.iter().map(|&length| length as u64).sum();
    let data = DataSummary {
        train_lengths: lengths.clone(),
        train_tokens: tokens,
        trained_tokens: tokens,
        eval_lengths: vec![],
    };
    let vocabulary = files.architecture.vocabulary;
    Ok(Prepared {
        files,
        config,
        data,
        rows: Box::new(move |step| {
            in_order(&order, step, |row| Some(random_row(vocabulary, *lengths.get(row)?, step, row)))
        }),
    })
}

/// The lengths of the rows, and in `config` how they make steps.
fn lay_out(rows: &Rows, config: &mut Config) -> Vec<usize> {
    let lengths = match *rows {
        Rows::Equal { batch, length } => {
            config.data.packing = false;
            config.data.shuffle = false;
            config.train.batch_size = batch;
            config.data.max_length = length;
            return vec![length; batch];
        }
        Rows::Lengths(ref lengths) => {
            config.data.max_length = lengths.iter().sum();
            lengths.clone()
        }
        Rows::Lognormal { tokens, median, deviation } => {
            config.data.max_length = tokens;
            lognormal(tokens, median, deviation)
        }
    };
    config.data.packing = true;
    config.train.batch_size = 1;
    lengths
}

fn lognormal(tokens: usize, median: f64, deviation: f64) -> Vec<usize> {
    let mut left = tokens * STEPS_OF_ROWS;
    let length = |row: u64| (median * (deviation * normal(derive(1, row))).exp()).round();
    let lengths = (0..).map(|row| (length(row) as usize).clamp(2, tokens));
    lengths
        .take_while(|&length| {
            let fits = left > 0;
            left = left.saturating_sub(length);
            fits
        })
        .collect()
}

fn project(folder: &Path) -> Result<Prepared> {
    let config = Config::load(folder, &[]).map_err(|error| EngineError::Config(error.to_string()))?;
    let files = model_files(&config, folder)?;
    let prepared =
        data::prepare(&config, folder, &files, &mut |_, _| ControlFlow::Continue(())).map_err(data_error)?;
    let lengths: Vec<usize> = prepared.train.iter().map(EncodedRow::tokens).collect();
    let order = StepOrder::new(&lengths, &config);
    Ok(Prepared {
        files,
        config,
        data: prepared.checked.summary(),
        rows: Box::new(move |step| in_order(&order, step, |row| prepared.train.get(row).cloned())),
    })
}

fn in_order(order: &StepOrder, step: usize, row: impl Fn(usize) -> Option<EncodedRow>) -> Step {
    let rows = |sequences: Vec<Vec<usize>>| sequences.into_iter().flatten().filter_map(&row).collect();
    order.step(step as u64).into_iter().map(|micro_batch| rows(micro_batch.sequences)).collect()
}

/// The rows of the first steps as JSON: a list of steps, each a list of micro-batches, each a list of rows.
pub(super) fn write_rows(path: &Path, prepared: &Prepared, steps: usize) -> Result<()> {
    let sides = |row: EncodedRow| row.sides.into_iter();
    let row = |side: EncodedSide| json!({ "ids": side.ids, "trained": side.trained });
    let step = |step: Step| -> Value {
        step.into_iter().map(|batch| batch.into_iter().flat_map(sides).map(row).collect::<Value>()).collect()
    };
    let steps: Value = (0..steps).map(|number| step((prepared.rows)(number))).collect();
    let failed = |source| EngineError::File { action: "write", path: path.to_owned(), source };
    std::fs::write(path, steps.to_string()).map_err(failed)
}

/// Uniformly random tokens, all of them trained on except the first.
fn random_row(vocabulary: usize, length: usize, step: usize, row: usize) -> EncodedRow {
    let trained = (0..length).map(|place| place > 0).collect();
    EncodedRow::of_one_side(row, random_ids(vocabulary, length, step, row), trained)
}

pub(super) fn random_ids(vocabulary: usize, length: usize, step: usize, row: usize) -> Vec<u32> {
    let seed = derive(derive(1, step as u64), row as u64);
    (0..length).map(|place| (unit(derive(seed, place as u64)) * vocabulary as f64) as u32).collect()
}

#[cfg(test)]
mod tests {
    use luthier_core::config::{Device, Dtype, MethodKind};

    use super::super::plan::Train;
    use super::*;
    use crate::testing::model;

    fn prepared(rows: Rows) -> Prepared {
        let train = Train { rows, steps: 1, warm_up: 0, recompute: true, profile: false, rows_to: None };
        let work =
            Work { name: "a".into(), method: MethodKind::Lora, rank: 4, train: Some(train), generate: None };
        let base = Base::Model(model());
        Prepared::of(&work, &Bench { base, dtype: Dtype::F32, device: Device::Cpu, works: vec![] }).unwrap()
    }

    fn lengths(step: &Step) -> Vec<Vec<usize>> {
        step.iter().map(|batch| batch.iter().map(EncodedRow::tokens).collect()).collect()
    }

    #[test]
    fn equal_rows_are_the_same_in_number_and_new_in_each_step() {
        let prepared = prepared(Rows::Equal { batch: 3, length: 10 });
        let (first, second) = ((prepared.rows)(0), (prepared.rows)(1));
        assert_eq!((lengths(&first), lengths(&second)), (vec![vec![10; 3]], vec![vec![10; 3]]));
        assert_ne!(first, second);
        assert!(!prepared.config.packs());
        assert_eq!((prepared.config.train.batch_size, prepared.config.train.recompute), (3, Recompute::On));
    }

    #[test]
    fn given_lengths_are_one_packed_sequence() {
        let prepared = prepared(Rows::Lengths(vec![7, 30, 2]));
        for step in 0..3 {
            let mut found = lengths(&(prepared.rows)(step));
            found[0].sort_unstable();
            assert_eq!(found, [[2, 7, 30]]);
        }
        assert!(prepared.config.packs());
        assert_eq!((prepared.config.data.max_length, prepared.data.train_tokens), (39, 39));
    }

    #[test]
    fn lognormal_rows_fill_sequences_and_have_their_median() {
        let prepared = prepared(Rows::Lognormal { tokens: 2000, median: 100.0, deviation: 0.8 });
        let mut all = prepared.data.train_lengths.clone();
        all.sort_unstable();
        let middle = all[all.len() / 2];
        assert!((80..125).contains(&middle) && all[0] < 50 && all[all.len() - 1] > 300, "{all:?}");
        let sums: Vec<usize> =
            (0..20).map(|step| lengths(&(prepared.rows)(step)).concat().iter().sum()).collect();
        assert!(sums.iter().all(|&sum| sum <= 2000), "{sums:?}");
        assert!(sums.iter().filter(|&&sum| sum > 1990).count() > 15, "{sums:?}");
        // However far they spread.
        let rows = lognormal(64, 2.0, 10.0);
        assert!(rows.iter().all(|length| (2..=64).contains(length)) && rows.iter().sum::<usize>() >= 64 * 32);
    }
}
