//! The goal of a sweep.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::algorithms::{Direction, metric, metrics};
use crate::runs::{EvalEvent, EventBody, JournalEvent, JournalReader, Number, RunDir, RunError};

/// Events read at once.
const EVENTS: usize = 10_000;

/// What a sweep optimises.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Goal {
    pub metric: GoalMetric,
    /// Which direction is better.
    pub direction: Direction,
}

/// A metric of an evaluation on the held-out examples: `eval.loss`, or `eval.` and the name of a metric of
/// the training algorithm or of a score of the objective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoalMetric(String);

impl Default for GoalMetric {
    fn default() -> Self {
        Self("loss".to_owned())
    }
}

impl GoalMetric {
    /// The direction if none is given. Scores of the objective are maximised.
    pub fn usual_direction(&self) -> Direction {
        if self.0 == "loss" {
            Direction::Min
        } else {
            metric(&self.0).map_or(Direction::Max, |metric| metric.better)
        }
    }

    fn of(&self, eval: &EvalEvent) -> Option<Number> {
        let name = self.0.as_str();
        if name == "loss" {
            return Some(eval.loss);
        }
        eval.metrics.get(name).or_else(|| eval.scores.get(name)).copied()
    }
}

impl fmt::Display for GoalMetric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!("eval.{}", self.0))
    }
}

impl FromStr for GoalMetric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("eval.") {
            Some(name) if !name.is_empty() && crate::text::clean_line(name) == name => {
                Ok(Self(name.to_owned()))
            }
            _ => {
                let metrics: Vec<String> =
                    metrics().map(|metric| format!("\"eval.{}\"", metric.name)).collect();
                Err(format!(
                    "a goal is \"eval.loss\", a metric of the training algorithm ({}), or \"eval.\" and a score of \
                     the objective, such as \"eval.passed\"",
                    metrics.join(", ")
                ))
            }
        }
    }
}

impl Goal {
    /// The best value of the run's evaluations after at least one step; NaN only if all are. `None` if there
    /// was no evaluation. Evaluations that were lost before a resume are ignored.
    pub fn result_of(&self, run: &RunDir) -> Result<Option<Number>, RunError> {
        let mut reader = JournalReader::new(&run.journal_path());
        let mut found: Vec<(u64, Number)> = Vec::new();
        loop {
            let batch = reader.read(EVENTS, Duration::MAX)?;
            for event in &batch.events {
                self.note(event, &mut found);
            }
            if !batch.more {
                break;
            }
        }
        Ok(found.into_iter().map(|(_, value)| value).reduce(|best, value| {
            if self.direction.is_better(value.get(), best.get()) { value } else { best }
        }))
    }

    fn note(&self, event: &JournalEvent, found: &mut Vec<(u64, Number)>) {
        match &event.body {
            EventBody::Run(run) => {
                // A process that did not resume from a checkpoint started from the beginning.
                let from = run.resumed_from.unwrap_or(0);
                found.retain(|(step, _)| *step <= from);
            }
            EventBody::Eval(eval) => {
                let step = event.step.unwrap_or(0);
                if let Some(value) = self.metric.of(eval)
                    && step > 0
                {
                    found.push((step, value));
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;

    use super::*;
    use crate::runs::testing::config;
    use crate::runs::{JournalWriter, RunEvent};

    fn eval(step: u64, loss: f64) -> JournalEvent {
        let scores = IndexMap::from([("passed".to_owned(), Number(1.0 - loss))]);
        JournalEvent::now(Some(step), EvalEvent { loss: loss.into(), scores, ..EvalEvent::default() })
    }

    fn resumed(from: u64) -> JournalEvent {
        JournalEvent::now(None, RunEvent { resumed_from: Some(from), ..RunEvent::default() })
    }

    fn result(goal: &str, events: &[JournalEvent]) -> Option<Number> {
        let project = tempfile::tempdir().unwrap();
        let run = RunDir::create(project.path(), &config(&[]), None).unwrap();
        let mut journal = JournalWriter::open(&run.journal_path()).unwrap();
        for event in events {
            journal.append(event);
        }
        let metric: GoalMetric = goal.parse().unwrap();
        Goal { direction: metric.usual_direction(), metric }.result_of(&run).unwrap()
    }

    #[test]
    fn the_best_evaluation_is_the_result() {
        let events = [eval(0, 0.1), eval(50, 0.9), eval(100, 0.4), eval(150, f64::NAN), eval(200, 0.6)];
        assert_eq!(result("eval.loss", &events), Some(Number(0.4)));
        assert_eq!(result("eval.passed", &events), Some(Number(0.6)));
        assert_eq!(result("eval.unknown", &events), None);
        assert_eq!(result("eval.loss", &events[..1]), None, "before the first step nothing is trained");
        assert_eq!(result("eval.loss", &events[3..4]), Some(Number(f64::NAN)));
    }

    #[test]
    fn evaluations_lost_in_a_crash_are_ignored() {
        let events = [resumed(0), eval(50, 0.5), eval(100, 0.1), resumed(50), eval(100, 0.3)];
        assert_eq!(result("eval.loss", &events), Some(Number(0.3)));
        let again = JournalEvent::now(None, RunEvent::default());
        assert_eq!(result("eval.loss", &[eval(50, 0.1), again, eval(50, 0.4)]), Some(Number(0.4)));
    }

    #[test]
    fn metrics_have_the_names_of_the_journal() {
        for text in [
            "eval.loss",
            "eval.perplexity",
            "eval.token_accuracy",
            "eval.reward_margin",
            "eval.reward_accuracy",
            "eval.field.category",
        ] {
            assert_eq!(text.parse::<GoalMetric>().unwrap().to_string(), text);
        }
        for text in ["loss", "eval.", "eval", "eval.a\u{1b}b"] {
            assert!(text.parse::<GoalMetric>().is_err(), "{text}");
        }
    }
}
