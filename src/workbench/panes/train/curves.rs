//! A run's journal, folded into what is drawn.

use std::sync::LazyLock;

use jiff::Timestamp;
use luthier_core::algorithms;
use luthier_core::runs::{
    AlertEvent, EditEvent, EvalEvent, EventBody, JournalEvent, Number, RunEvent, SampleEvent, StepEvent,
    newest_to_undo,
};

/// Samples kept; older ones stay in the journal.
const SAMPLES: usize = 512;

/// Alerts and edits kept for the list below the charts.
const NOTICES: usize = 512;

/// The last steps whose times estimate how long the rest takes.
const PACE: usize = 100;

/// What a chart can show against the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Loss of training and held-out examples.
    Loss,
    LearningRate,
    /// Norm of the gradient before clipping.
    GradientNorm,
    /// What the training algorithm reports beside the loss.
    Reported(&'static algorithms::Metric),
    /// Tokens a second.
    Throughput,
    /// Resident memory of the engine's process.
    Memory,
    /// Memory allocated on the device.
    DeviceMemory,
    /// How busy the device was.
    Load,
}

impl Metric {
    pub fn title(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::LearningRate => "learning rate",
            Self::GradientNorm => "gradient norm",
            Self::Reported(metric) => metric.label,
            Self::Throughput => "tokens/s",
            Self::Memory => "memory",
            Self::DeviceMemory => "device memory",
            Self::Load => "load",
        }
    }

    fn of(self, step: &StepEvent) -> Option<f64> {
        match self {
            Self::Loss => Some(step.loss.get()),
            Self::LearningRate => Some(step.learning_rate.get()),
            Self::GradientNorm => Some(step.grad_norm.get()),
            Self::Reported(metric) => step.metrics.get(metric.name).map(|value| value.get()),
            Self::Throughput => Some(step.tokens_per_second.get()),
            Self::Memory => Some(step.memory_bytes as f64),
            Self::DeviceMemory => step.device_memory_bytes.map(|bytes| bytes as f64),
            Self::Load => step.load.map(Number::get),
        }
    }
}

/// Something with a time and a step.
#[derive(Clone, Debug, PartialEq)]
pub struct At<T> {
    /// When it was journaled.
    pub time: Timestamp,
    /// The step it belongs to.
    pub step: u64,
    /// What it is.
    pub what: T,
}

/// An entry of the list below the charts.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A setting was changed.
    Edit(EditEvent),
    /// Needs attention.
    Alert(AlertEvent),
}

/// All that is drawn of one run.
#[derive(Clone, Debug)]
pub struct Curves {
    /// Of each of [`METRICS`].
    series: Vec<Vec<(f64, f64)>>,
    seconds: Vec<f64>,
    /// Evaluations, by step.
    pub evaluations: Vec<At<EvalEvent>>,
    /// Steps with a checkpoint.
    pub checkpoints: Vec<u64>,
    /// Edits and alerts, oldest first.
    pub notices: Vec<At<Notice>>,
    /// Samples, oldest first.
    pub samples: Vec<At<SampleEvent>>,
    /// The run as last journaled.
    pub run: Option<Box<RunEvent>>,
    pub last: Option<At<StepEvent>>,
}

impl Default for Curves {
    fn default() -> Self {
        Self {
            series: vec![Vec::new(); METRICS.len()],
            seconds: Vec::new(),
            evaluations: Vec::new(),
            checkpoints: Vec::new(),
            notices: Vec::new(),
            samples: Vec::new(),
            run: None,
            last: None,
        }
    }
}

impl Curves {
    /// Adds journal events, oldest first.
    pub fn add(&mut self, events: Vec<JournalEvent>) {
        for event in events {
            let JournalEvent { time, step, body } = event;
            let step = step.unwrap_or_else(|| self.last.as_ref().map_or(0, |last| last.step));
            match body {
                EventBody::Run(run) => {
                    match run.resumed_from {
                        Some(from) => self.cut(from),
                        // A process that resumes without a checkpoint starts from the beginning.
                        None => self.cut(0),
                    }
                    self.run = Some(run);
                }
                EventBody::Step(event) => self.add_step(time, step, event),
                EventBody::Eval(what) => self.evaluations.push(At { time, step, what }),
                EventBody::Sample(what) => {
                    if self.samples.len() == SAMPLES {
                        self.samples.remove(0);
                    }
                    self.samples.push(At { time, step, what });
                }
                EventBody::Checkpoint(_) => self.checkpoints.push(step),
                EventBody::Edit(edit) => self.notice(time, edit.applied_at_step, Notice::Edit(edit)),
                EventBody::Alert(alert) => self.notice(time, step, Notice::Alert(alert)),
                EventBody::State(_) | EventBody::Unknown { .. } => {}
            }
        }
    }

    fn add_step(&mut self, time: Timestamp, step: u64, event: StepEvent) {
        for (metric, series) in METRICS.iter().zip(&mut self.series) {
            if let Some(value) = metric.of(&event) {
                series.push((step as f64, value));
            }
        }
        self.seconds.push(event.seconds.get());
        self.last = Some(At { time, step, what: event });
    }

    fn notice(&mut self, time: Timestamp, step: u64, what: Notice) {
        if self.notices.len() == NOTICES {
            self.notices.remove(0);
        }
        self.notices.push(At { time, step, what });
    }

    /// Forgets what was computed after `step`: it is computed again.
    fn cut(&mut self, step: u64) {
        let keep = |at: u64| at <= step;
        for series in &mut self.series {
            series.truncate(series.partition_point(|point| point.0 <= step as f64));
        }
        self.seconds.truncate(self.series[0].len());
        self.evaluations.retain(|at| keep(at.step));
        self.samples.retain(|at| keep(at.step));
        self.checkpoints.retain(|at| keep(*at));
    }

    /// Points of a metric, step and value; NaN where the journal has it.
    pub fn series(&self, metric: Metric) -> &[(f64, f64)] {
        METRICS.iter().position(|known| *known == metric).map_or(&[], |index| &self.series[index])
    }

    /// Held-out losses, step and value.
    pub fn held_out(&self) -> Vec<(f64, f64)> {
        self.evaluations.iter().map(|at| (at.step as f64, at.what.loss.get())).collect()
    }

    /// The best evaluation: lowest held-out loss.
    pub fn best(&self) -> Option<&At<EvalEvent>> {
        self.evaluations
            .iter()
            .filter(|at| at.what.loss.is_finite())
            .min_by(|left, right| left.what.loss.get().total_cmp(&right.what.loss.get()))
    }

    /// Seconds a step takes, by the newest ones.
    pub fn seconds_a_step(&self) -> Option<f64> {
        pace(&self.seconds)
    }

    /// The newest edit that was not undone: the one that undo would revert.
    pub fn last_edit(&self) -> Option<&EditEvent> {
        newest_to_undo(self.notices.iter().filter_map(|at| match &at.what {
            Notice::Edit(edit) => Some(edit),
            Notice::Alert(_) => None,
        }))
    }

    /// The newest sample of the prompt at `index` of the suite, and the one before it.
    pub fn sample(&self, index: u64) -> Option<(&At<SampleEvent>, Option<&At<SampleEvent>>)> {
        let mut of_prompt = self.samples.iter().rev().filter(|at| at.what.index == Some(index));
        of_prompt.next().map(|newest| (newest, of_prompt.next()))
    }

    /// The prompts of the suite that have samples, in order.
    pub fn sampled(&self) -> Vec<u64> {
        let mut indexes: Vec<u64> = self.samples.iter().filter_map(|at| at.what.index).collect();
        indexes.sort_unstable();
        indexes.dedup();
        indexes
    }

    /// The value of a metric at the newest step at or before `step`, with that step.
    pub fn at(&self, metric: Metric, step: u64) -> Option<(u64, f64)> {
        let series = self.series(metric);
        let after = series.partition_point(|point| point.0 <= step as f64);
        series[..after].last().or(series.first()).map(|point| (point.0 as u64, point.1))
    }
}

/// Seconds a step takes, by the newest of `seconds`: the mean of their middle half. A slow first step, or one that
/// something else delayed, does not move it, and each new step moves it little.
fn pace(seconds: &[f64]) -> Option<f64> {
    let recent = &seconds[seconds.len().saturating_sub(PACE)..];
    let mut finite: Vec<f64> = recent.iter().copied().filter(|seconds| seconds.is_finite()).collect();
    finite.sort_unstable_by(f64::total_cmp);
    let outer = finite.len() / 4;
    let middle = &finite[outer..finite.len() - outer];
    (!middle.is_empty()).then(|| middle.iter().sum::<f64>() / middle.len() as f64)
}

/// Every metric that has a chart, in the order in which they are shown. The loss comes first.
pub static METRICS: LazyLock<Vec<Metric>> = LazyLock::new(|| {
    let reported = algorithms::metrics().filter(|metric| metric.chart).map(Metric::Reported);
    let first = [Metric::Loss, Metric::LearningRate, Metric::GradientNorm];
    let last = [Metric::Throughput, Metric::Memory, Metric::DeviceMemory, Metric::Load];
    first.into_iter().chain(reported).chain(last).collect()
});

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A step's event, `seconds` long.
    pub fn step(step: u64, loss: f64) -> JournalEvent {
        let body = StepEvent {
            loss: loss.into(),
            learning_rate: 1e-4.into(),
            grad_norm: 0.5.into(),
            tokens_per_second: 200.0.into(),
            seconds: 2.0.into(),
            memory_bytes: 1 << 30,
            ..StepEvent::default()
        };
        JournalEvent { time: Timestamp::UNIX_EPOCH, step: Some(step), body: EventBody::Step(body) }
    }

    fn evaluation(step: u64, loss: f64) -> JournalEvent {
        let body = EvalEvent { loss: loss.into(), ..EvalEvent::default() };
        JournalEvent { time: Timestamp::UNIX_EPOCH, step: Some(step), body: EventBody::Eval(body) }
    }

    #[test]
    fn steps_become_series_and_a_pace() {
        let mut curves = Curves::default();
        curves.add((1..=100).map(|number| step(number, 2.0 / number as f64)).collect());
        assert_eq!(curves.series(Metric::Loss).len(), 100);
        assert!(curves.series(Metric::DeviceMemory).is_empty());
        assert_eq!(curves.seconds_a_step(), Some(2.0));
        assert_eq!(curves.at(Metric::Loss, 50), Some((50, 0.04)));
        assert_eq!(curves.at(Metric::Loss, 5000).map(|found| found.0), Some(100));
    }

    #[test]
    fn the_pace_is_not_thrown_by_single_steps() {
        assert_eq!(pace(&[]), None);
        assert_eq!(pace(&[f64::NAN]), None);
        assert_eq!(pace(&[3.0]), Some(3.0));
        // The first step loads kernels, a later one waits for the disk.
        let mut seconds = vec![1.0; 60];
        seconds[0] = 40.0;
        assert_eq!(pace(&seconds[..4]), Some(1.0));
        seconds[30] = 25.0;
        seconds.push(f64::INFINITY);
        assert_eq!(pace(&seconds), Some(1.0));
        // Rows of every length: one more step changes the forecast by little.
        let varied: Vec<f64> = (0..200).map(|step| 1.0 + f64::from(step * 37 % 100) / 100.0).collect();
        for end in 100..varied.len() {
            let (before, after) = (pace(&varied[..end]).unwrap(), pace(&varied[..=end]).unwrap());
            assert!((before - after).abs() / before < 0.02, "{before} {after}");
        }
        // A run that became slower for good is soon known to be.
        let slower: Vec<f64> = std::iter::repeat_n(1.0, 200).chain(std::iter::repeat_n(3.0, 80)).collect();
        assert_eq!(pace(&slower), Some(3.0));
    }

    #[test]
    fn what_an_algorithm_reports_has_curves() {
        let reported = |name| Metric::Reported(algorithms::metric(name).unwrap());
        let mut curves = Curves::default();
        curves.add(vec![step(1, 0.7)]);
        assert!(curves.series(reported("reward_margin")).is_empty());
        let metrics = [("reward_margin", 0.5), ("reward_accuracy", 0.75), ("of_another_version", 1.0)];
        let metrics = metrics.map(|(name, value)| (name.to_owned(), value.into())).into();
        let body = StepEvent { metrics, ..StepEvent::default() };
        curves.add(vec![JournalEvent { time: Timestamp::UNIX_EPOCH, step: Some(2), body: body.into() }]);
        assert_eq!(curves.series(reported("reward_margin")), [(2.0, 0.5)]);
        assert_eq!(curves.series(reported("reward_accuracy")), [(2.0, 0.75)]);
    }

    #[test]
    fn a_resumed_run_forgets_what_it_computes_again() {
        let mut curves = Curves::default();
        curves.add((1..=50).map(|number| step(number, 1.0)).collect());
        curves.add(vec![evaluation(20, 1.2), evaluation(40, 1.1)]);
        let resumed = RunEvent { resumed_from: Some(30), ..RunEvent::default() };
        curves.add(vec![JournalEvent { time: Timestamp::UNIX_EPOCH, step: None, body: resumed.into() }]);
        assert_eq!(curves.series(Metric::Loss).last(), Some(&(30.0, 1.0)));
        assert_eq!(curves.held_out(), [(20.0, 1.2)]);
    }

    #[test]
    fn a_run_that_begins_again_shows_only_its_new_beginning() {
        let mut curves = Curves::default();
        curves.add((1..=50).map(|number| step(number, 1.0)).collect());
        curves.add(vec![evaluation(20, 1.2)]);
        curves.add(vec![JournalEvent {
            time: Timestamp::UNIX_EPOCH,
            step: None,
            body: RunEvent::default().into(),
        }]);
        assert!(curves.series(Metric::Loss).is_empty() && curves.held_out().is_empty());
    }

    #[test]
    fn the_best_evaluation_is_a_number() {
        let mut curves = Curves::default();
        curves.add(vec![evaluation(10, f64::NAN), evaluation(20, 1.5), evaluation(30, 1.7)]);
        assert_eq!(curves.best().map(|at| at.step), Some(20));
    }
}
