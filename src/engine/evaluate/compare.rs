//! `luthier-engine evaluate`: compares base, tuned and baseline on the held-out examples of a run.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indexmap::IndexMap;
use luthier_core::config::Config;
use luthier_core::data::{self, EncodedRow, Prepared, Split};
use luthier_core::eval::{Objective, average_scores};
use luthier_core::runs::{Metrics, Number, RunDir, newest_valid};
use serde::Serialize;

use super::{Asked, Question, Replying, answer};
use crate::algorithms::algorithm_of;
use crate::base::{Base, data_error, model_files};
use crate::error::{EngineError, Result};
use crate::generation::Sampling;
use crate::layers::{Active, Adapter};
use crate::methods;
use crate::process::peak_memory;

#[derive(Debug, Clone)]
pub struct Request {
    pub run: PathBuf,
    /// Evaluate the checkpoint of this step instead of the run's result.
    pub checkpoint: Option<u64>,
    /// Most held-out rows to use.
    pub limit: Option<usize>,
}

/// Results of one side.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SideReport {
    /// The loss of the held-out rows, as the training algorithm defines it. Missing for the baseline, because
    /// its prompts differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<Number>,
    /// The algorithm's other metrics on these rows.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Means of the objective's scores by name.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub scores: IndexMap<String, Number>,
    /// Number of scored replies.
    pub replies: usize,
}

/// Results of all sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    pub base: SideReport,
    /// The base model with the run's adapter.
    pub tuned: SideReport,
    /// The base model with `review.baseline_system`, if that is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<SideReport>,
    /// Number of held-out rows used.
    pub rows: usize,
    pub adapter: PathBuf,
    /// Duration, with loading.
    pub seconds: f64,
    /// Largest resident memory of the process.
    pub peak_memory_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Progress<'a> {
    /// The current work, as text.
    pub what: &'a str,
    pub done: usize,
    /// Units in total.
    pub total: usize,
}

/// Evaluates a run's adapter against its base model, and against the baseline if there is one. `progress` may
/// cancel; then there is no result.
pub fn compare(
    request: &Request,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Option<Comparison>> {
    let began = Instant::now();
    let run = RunDir::open(&request.run).map_err(|error| EngineError::Config(error.to_string()))?;
    let config =
        Config::load_file(&run.config_path(), &[]).map_err(|error| EngineError::Config(error.to_string()))?;
    let project = run.project();
    let adapter = adapter_folder(&run, request.checkpoint)?;
    let files = model_files(&config, project)?;
    let objective =
        Objective::from_config(&config, project).map_err(|error| EngineError::Config(error.to_string()))?;
    let prepared =
        data::prepare(&config, project, &files, &mut |_, _| ControlFlow::Continue(())).map_err(data_error)?;
    let base = Base::load(files, &config, project)?;
    let tuned = methods::load(&adapter, &base.model)?;
    let rows = &prepared.eval[..request.limit.unwrap_or(usize::MAX).min(prepared.eval.len())];
    if rows.is_empty() {
        return Err(EngineError::Data(
            "the project has no held-out rows; set data.eval and start a new run".into(),
        ));
    }

    let mut algorithm = algorithm_of(&run, &base, &config, &prepared);
    let mut reports = vec![SideReport::default(); 2];
    let sides = [("base", Active::Base), ("tuned", Active::All(tuned.as_ref()))];
    for (report, (name, active)) in reports.iter_mut().zip(sides) {
        let what = format!("held-out loss of {name}");
        let heard = &mut |done| progress(Progress { what: &what, done, total: rows.len() });
        let Some(found) = algorithm.held_out(&base.model, active, rows, heard)? else { return Ok(None) };
        report.loss = Some(found.loss.into());
        report.metrics = found.metrics;
    }
    let with_baseline = !config.review.baseline_system.is_empty();
    if with_baseline {
        reports.push(SideReport::default());
    }
    if !objective.is_none() {
        let sides = Sides { base: &base, config: &config, objective: &objective, tuned: tuned.as_ref() };
        let questions = sides.questions(project, &prepared, rows)?;
        if !sides.score(&questions, &mut reports, progress)? {
            return Ok(None);
        }
    }
    let mut reports = reports.into_iter();
    let (base, tuned) = (reports.next().unwrap_or_default(), reports.next().unwrap_or_default());
    Ok(Some(Comparison {
        base,
        tuned,
        baseline: reports.next(),
        rows: rows.len(),
        adapter,
        seconds: began.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_memory(),
    }))
}

/// The run's result, or its newest checkpoint if there is no result yet.
fn adapter_folder(run: &RunDir, checkpoint: Option<u64>) -> Result<PathBuf> {
    if let Some(step) = checkpoint {
        let steps = run.checkpoints();
        return steps
            .iter()
            .find(|checkpoint| checkpoint.step == step)
            .map(|found| found.path.clone())
            .ok_or_else(|| {
                let known: Vec<String> = steps.iter().map(|checkpoint| checkpoint.step.to_string()).collect();
                EngineError::Config(format!(
                    "the run has no checkpoint of step {step}; it has {}",
                    known.join(", ")
                ))
            });
    }
    if let Some((_, result)) = run.result() {
        return Ok(result);
    }
    newest_valid(run.path()).0.map(|checkpoint| checkpoint.path).ok_or_else(|| {
        EngineError::Config(
            "the run has neither a result nor a complete checkpoint; wait for its next checkpoint".into(),
        )
    })
}

/// The adapters and system prompts to compare, in the order base, tuned, baseline.
struct Sides<'a> {
    base: &'a Base,
    config: &'a Config,
    objective: &'a Objective,
    tuned: &'a dyn Adapter,
}

/// One held-out example as each side's question.
struct Put {
    plain: Question,
    with_baseline: Option<Question>,
}

impl Sides<'_> {
    fn questions(&self, project: &Path, prepared: &Prepared, rows: &[EncodedRow]) -> Result<Vec<Put>> {
        let wanted = |index: usize| rows.iter().any(|row| row.row == index);
        let system = &self.config.review.baseline_system;
        let dataset = data::read_rows(self.config, project).map_err(data_error)?;
        let mut questions = Vec::with_capacity(prepared.eval.len());
        for head in dataset.heads().iter().filter(|row| row.split == Split::Eval && wanted(row.index)) {
            let Some(row) = dataset.get(head.index).map_err(data_error)? else { continue };
            let Some(plain) = Question::of_row(self.base, self.config, &row)? else { continue };
            let with_baseline = if system.is_empty() {
                None
            } else {
                Question::of_row_with_system(self.base, self.config, &row, system)?
            };
            questions.push(Put { plain, with_baseline });
        }
        Ok(questions)
    }

    /// Generates all replies, base and tuned in the same batch. `false` if cancelled.
    fn score(
        &self,
        questions: &[Put],
        reports: &mut [SideReport],
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool> {
        let mut asked: Vec<(usize, Asked)> = Vec::new();
        for put in questions {
            asked.push((0, (&put.plain, None)));
            asked.push((1, (&put.plain, Some(self.tuned))));
            asked.extend(put.with_baseline.iter().map(|question| (2, (question, None))));
        }
        let replying = Replying {
            sampling: Sampling::GREEDY,
            max_new_tokens: self.config.review.max_new_tokens,
            seed: self.config.train.seed,
        };
        let batch: Vec<Asked> = asked.iter().map(|(_, asked)| *asked).collect();
        let total = batch.len();
        let mut last = usize::MAX;
        let replies = answer(self.base, &batch, &replying, &mut |done| {
            if done == last {
                // Only changes are reported, but every token is a chance to cancel.
                return progress(Progress { what: "", done, total });
            }
            last = done;
            progress(Progress { what: "replies", done, total })
        })?;
        if replies.len() < total {
            return Ok(false);
        }
        for (side, report) in reports.iter_mut().enumerate() {
            let pairs = asked.iter().zip(&replies).filter(|((asked_of, _), _)| *asked_of == side);
            let scores: Vec<_> = pairs
                .filter_map(|((_, (question, _)), reply)| {
                    self.objective.score(reply, question.expected.as_deref())
                })
                .collect();
            report.replies = scores.len();
            report.scores =
                average_scores(&scores).into_iter().map(|(name, mean)| (name, mean.into())).collect();
        }
        Ok(true)
    }
}
