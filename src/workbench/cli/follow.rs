//! Follows a live run from the command line: its journal until it ends, or until ctrl-C.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use luthier_core::algorithms::{Metric, metrics};
use luthier_core::runs::{
    EventBody, JournalEvent, JournalReader, Metrics, RunDir, RunState, Status, StepEvent,
};
use luthier_core::text::{clean_line, indented};
use luthier_core::units;

use super::failure::Outcome;
use super::interrupts::Interrupts;
use super::output;

/// Interval between reads of a quiet journal.
const LOOK: Duration = Duration::from_millis(100);

/// How often progress is printed where no bar can be drawn.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// The ETA uses the mean duration of this many steps.
const REMEMBERED_STEPS: usize = 20;

/// Indentation of the further lines of a message.
const CONTINUED: usize = 2;

/// Longest excerpt of a reply, in characters.
const EXCERPT: usize = 100;

#[derive(Debug)]
pub enum Ending {
    /// The run is over, with this status.
    Over(Box<Status>),
    /// The user pressed ctrl-C; the run continues.
    Left,
}

/// Passes every event of the run's journal to `see` until the run is over or ctrl-C is pressed.
pub fn follow(
    run: &RunDir,
    interrupts: &Interrupts,
    see: &mut dyn FnMut(&JournalEvent) -> Outcome,
) -> Outcome<Ending> {
    let mut reader = JournalReader::new(&run.journal_path());
    let mut over = None;
    loop {
        let batch = reader.read(1024, LOOK)?;
        for event in &batch.events {
            see(event)?;
        }
        if interrupts.came() {
            return Ok(Ending::Left);
        }
        if batch.more || !batch.events.is_empty() {
            continue;
        }
        // Read the journal once more after the end was seen: it is complete by then.
        if let Some(status) = over {
            return Ok(Ending::Over(Box::new(status)));
        }
        let status = run.status()?;
        if status.state.is_over() {
            over = Some(status);
        } else {
            thread::sleep(LOOK);
        }
    }
}

/// Shows a run's progress on stderr: a bar on a terminal, else a line now and then.
pub struct Progress {
    bar: ProgressBar,
    drawn: bool,
    said: Option<Instant>,
    total: u64,
    seconds: Vec<f64>,
}

impl Progress {
    /// A bar without a length yet.
    pub fn new() -> Self {
        let drawn = io::stderr().is_terminal();
        let target = if drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::default_spinner());
        bar.set_message("starting");
        Self { bar, drawn, said: None, total: 0, seconds: Vec::new() }
    }

    pub fn see(&mut self, event: &JournalEvent) {
        let step = event.step.unwrap_or(0);
        match &event.body {
            EventBody::Run(run) => {
                self.total = run.total_steps;
                self.bar.set_length(run.total_steps);
                self.bar.set_style(bar_style());
                self.bar.set_message(format!("on {}", clean_line(&run.device)));
                if let Some(from) = run.resumed_from {
                    self.bar.set_position(from);
                    self.say(&format!("continues from step {from}"));
                }
            }
            EventBody::Step(done) => self.step(step, done),
            EventBody::Eval(eval) => {
                let loss = format!("step {step}: held-out loss {}", units::number(eval.loss.get()));
                let scores = eval
                    .scores
                    .iter()
                    // Scores of single fields would not fit into one line.
                    .filter(|(name, _)| !name.contains('.'))
                    .map(|(name, score)| format!("{name} {}", units::percent(score.get())));
                let facts: Vec<_> =
                    std::iter::once(loss).chain(charted(&eval.metrics)).chain(scores).collect();
                self.say(&facts.join(" · "));
            }
            EventBody::Sample(sample) => {
                self.say(&format!("step {step}: {} → {}", excerpt(&sample.prompt), excerpt(&sample.reply)));
            }
            EventBody::Edit(edit) => self.say(&format!(
                "from step {}: {} {} → {} ({})",
                edit.applied_at_step, edit.key, edit.old, edit.new, edit.who
            )),
            EventBody::Alert(alert) => self.say(&format!("step {step}: {}", alert.message)),
            EventBody::State(changed) => {
                if matches!(changed.state, RunState::Paused | RunState::Stopping) {
                    self.say(&format!("step {step}: {}", changed.state));
                }
            }
            EventBody::Checkpoint(_) | EventBody::Unknown { .. } => {}
        }
    }

    /// Removes the bar.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn step(&mut self, step: u64, done: &StepEvent) {
        if self.seconds.len() == REMEMBERED_STEPS {
            self.seconds.remove(0);
        }
        self.seconds.push(done.seconds.get());
        let mean = self.seconds.iter().sum::<f64>() / self.seconds.len() as f64;
        let left = mean * self.total.saturating_sub(step) as f64;
        let eta = Duration::try_from_secs_f64(left).map_or_else(|_| "–".to_owned(), units::duration);
        let metrics: String = charted(&done.metrics).map(|metric| metric + " · ").collect();
        let facts = format!(
            "loss {} · {metrics}{:.0} tokens/s · ETA {eta}",
            units::number(done.loss.get()),
            done.tokens_per_second.get()
        );
        self.bar.set_position(step);
        if self.drawn {
            self.bar.set_message(facts);
        } else if step == self.total || self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.said = Some(Instant::now());
            output::note(&format!("step {step}/{} · {facts}", self.total));
        }
    }

    fn say(&self, text: &str) {
        let text = indented(text, CONTINUED);
        self.bar.suspend(|| output::note(&text));
    }
}

/// The metrics that have a chart, each in words.
fn charted(values: &Metrics) -> impl Iterator<Item = String> {
    let shown = |metric: &Metric| {
        let value = values.get(metric.name)?.get();
        Some(format!("{} {}", metric.label, metric.notation.write(value)))
    };
    metrics().filter(|metric| metric.chart).filter_map(shown)
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

fn excerpt(text: &str) -> String {
    let line = clean_line(text.trim());
    match line.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_hostile_replies_become_one_short_line() {
        assert_eq!(excerpt(" a\nb\x1b[2J "), "a⏎b[2J");
        let long = excerpt(&"é".repeat(500));
        assert_eq!(long.chars().count(), EXCERPT + 1);
    }
}
