//! Measures the current weights: held-out loss, replies to the suite, the objective's scores.

use std::ops::ControlFlow;
use std::path::Path;

use luthier_core::config::Config;
use luthier_core::data::{self, Prepared, Split};
use luthier_core::eval::{Objective, Suite, SuitePrompt, average_scores};
use luthier_core::random::derive;
use luthier_core::runs::{EvalEvent, Number, SampleEvent};
use luthier_core::text::clean;

use super::clock::Clock;
use super::control::Control;
use crate::algorithms::Algorithm;
use crate::base::{Base, data_error};
use crate::error::{EngineError, Result};
use crate::evaluate::{Asked, Question, Replying, answer};
use crate::generation::Sampling;
use crate::layers::{Active, Adapter};

/// Prompts of the suite that are answered in each sample event.
const SUITE_PROMPTS: usize = 4;

/// Held-out examples whose replies are scored during a run.
const SCORED_REPLIES: usize = 16;

/// The prompts that are answered repeatedly during a run.
#[derive(Default)]
pub struct Questions {
    suite: Vec<Question>,
    scored: Vec<Question>,
    objective: Option<Objective>,
}

impl Questions {
    /// The first prompts of the suite (without one, of the held-out examples), and the first held-out
    /// examples that the objective can score.
    pub fn read(base: &Base, config: &Config, project: &Path, prepared: &Prepared) -> Result<Self> {
        let objective = Objective::from_config(config, project)
            .map_err(|error| EngineError::Config(error.to_string()))?;
        let rows = data::read_rows(config, project).map_err(data_error)?;
        let mut scored = Vec::new();
        for head in rows.heads().iter().filter(|row| row.split == Split::Eval) {
            if scored.len() == SCORED_REPLIES {
                break;
            }
            // A bad answer is nothing to compare a reply with.
            let is_bad = head.label == Some(false);
            if is_bad || !prepared.eval.iter().any(|encoded| encoded.row == head.index) {
                continue;
            }
            if let Some(row) = rows.get(head.index).map_err(data_error)? {
                scored.extend(Question::of_row(base, config, &row)?);
            }
        }
        let suite = match &config.review.suite {
            Some(path) => {
                let suite = Suite::load(&project.join(path))
                    .map_err(|error| EngineError::Config(error.to_string()))?;
                let prompts = suite.prompts.iter().take(SUITE_PROMPTS);
                prompts.map(|prompt| of_prompt(base, config, prompt)).collect::<Result<_>>()?
            }
            None => scored.iter().take(SUITE_PROMPTS).cloned().collect(),
        };
        Ok(Self { suite, scored, objective: Some(objective).filter(|objective| !objective.is_none()) })
    }

    pub fn can_score(&self) -> bool {
        self.objective.is_some() && !self.scored.is_empty()
    }
}

fn of_prompt(base: &Base, config: &Config, prompt: &SuitePrompt) -> Result<Question> {
    Question::new(base, config, &prompt.messages, &prompt.extras, prompt.expected.clone())
}

/// Measures the current weights, and gives up if the run should end at once.
pub struct Observer<'a> {
    pub base: &'a Base,
    /// Asked whether to give up.
    pub control: &'a Control,
    pub clock: &'a Clock,
    /// Settings in force.
    pub config: &'a Config,
    pub questions: &'a Questions,
    pub adapter: &'a dyn Adapter,
}

impl Observer<'_> {
    fn flow(&self) -> ControlFlow<()> {
        if self.control.abandoned() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Loss on the held-out rows and, if `scored`, the objective's scores. `None` if there are no such rows
    /// or the run should end at once.
    pub fn evaluate(
        &self,
        algorithm: &mut dyn Algorithm,
        prepared: &Prepared,
        scored: bool,
    ) -> Result<Option<EvalEvent>> {
        let began = self.clock.ran();
        let active = Active::All(self.adapter);
        let found = algorithm.held_out(&self.base.model, active, &prepared.eval, &mut |_| self.flow())?;
        let Some(held_out) = found else { return Ok(None) };
        let scores = if scored { self.scores()? } else { Vec::new() };
        Ok(Some(EvalEvent {
            loss: held_out.loss.into(),
            metrics: held_out.metrics,
            scores: scores.into_iter().collect(),
            seconds: self.clock.since(began).as_secs_f64().into(),
            rows: held_out.rows,
        }))
    }

    fn scores(&self) -> Result<Vec<(String, Number)>> {
        let (Some(objective), true) = (&self.questions.objective, self.questions.can_score()) else {
            return Ok(Vec::new());
        };
        let replies = self.answer(&self.questions.scored, Sampling::GREEDY, 0)?;
        let pairs = self.questions.scored.iter().zip(&replies);
        let scores: Vec<_> = pairs
            .filter_map(|(question, reply)| objective.score(reply, question.expected.as_deref()))
            .collect();
        Ok(average_scores(&scores).into_iter().map(|(name, mean)| (name, mean.into())).collect())
    }

    /// Replies to the suite. Always the most likely tokens, so that a difference from the sample before comes
    /// from the weights.
    pub fn sample_suite(&self) -> Result<Vec<SampleEvent>> {
        let replies = self.answer(&self.questions.suite, Sampling::GREEDY, 0)?;
        let pairs = self.questions.suite.iter().zip(&replies).enumerate();
        Ok(pairs.map(|(index, (question, reply))| self.sample(question, reply, Some(index as u64))).collect())
    }

    /// The reply to a person's prompt, sampled as in review. `None` if the run should end at once.
    pub fn sample_prompt(&self, text: &str, step: u64) -> Result<Option<SampleEvent>> {
        let question = of_prompt(self.base, self.config, &SuitePrompt::typed(text))?;
        let review = &self.config.review;
        let sampling = Sampling { temperature: review.temperature, top_k: review.top_k, top_p: review.top_p };
        let seed = derive(self.config.train.seed, step);
        let replies = self.answer(std::slice::from_ref(&question), sampling, seed)?;
        Ok(replies.first().map(|reply| self.sample(&question, reply, None)))
    }

    fn sample(&self, question: &Question, reply: &str, index: Option<u64>) -> SampleEvent {
        let objective = self.questions.objective.as_ref();
        let score = objective.and_then(|objective| objective.score(reply, question.expected.as_deref()));
        let (passed, details) = score.map(|score| (score.passed, score.details)).unzip();
        SampleEvent {
            prompt: clean(&question.shown).into_owned(),
            reply: clean(reply).into_owned(),
            index,
            scores: details.into_iter().flatten().map(|(name, value)| (name, value.into())).collect(),
            passed,
        }
    }

    fn answer(&self, questions: &[Question], sampling: Sampling, seed: u64) -> Result<Vec<String>> {
        let asked: Vec<Asked> = questions.iter().map(|question| (question, Some(self.adapter))).collect();
        let replying = Replying { sampling, max_new_tokens: self.config.review.max_new_tokens, seed };
        answer(self.base, &asked, &replying, &mut |_| self.flow())
    }
}
