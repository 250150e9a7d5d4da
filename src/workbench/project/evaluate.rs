//! The evaluation of a run, by an engine process of its own.

use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use luthier_core::runs::{RunDir, RunError, RunState, Status};
use luthier_core::text::{clean_line, indented};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;

use super::{Host, Refusal};

/// How often it is asked whether to go on while the engine works.
const LOOK: Duration = Duration::from_millis(100);

/// Longest line of the engine's output, in bytes.
const LINE_LIMIT: u64 = 16 << 20;

/// Checkpoints named where the one asked for is missing.
const SHOWN_CHECKPOINTS: usize = 20;

/// How far the engine is.
#[derive(Debug, Deserialize)]
pub struct EvaluationProgress {
    /// What it does.
    #[serde(default)]
    pub what: String,
    /// Parts done, where that is known.
    pub done: Option<u64>,
    /// All parts.
    pub total: Option<u64>,
}

/// A line of the engine's output.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Progress { progress: EvaluationProgress },
    Result(Value),
}

/// Has the engine measure a run and its base model on the held-out rows: the run's result, or the checkpoint of the
/// step `checkpoint`; no more than `limit` rows. `progress` is asked often, with what is new.
pub fn evaluate(
    run: &RunDir,
    host: &Host,
    checkpoint: Option<u64>,
    limit: Option<usize>,
    progress: &mut dyn FnMut(Option<&EvaluationProgress>) -> ControlFlow<()>,
) -> Result<Value, Refusal> {
    check_measurable(run, checkpoint)?;
    let mut command = Command::new((host.engine)()?);
    command.arg("evaluate").arg(run.path()).arg("--json");
    for (name, value) in [("--checkpoint", checkpoint), ("--limit", limit.map(|limit| limit as u64))] {
        if let Some(value) = value {
            command.args([name, &value.to_string()]);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| RunError::Engine(format!("the engine could not be started: {error}")))?;
    let errors = gather(child.stderr.take());
    let result = listen(&mut child, progress);
    let ended = child.wait();
    let errors = errors.join().unwrap_or_default();
    match (ended, result?) {
        (Ok(ended), Some(result)) if ended.success() => Ok(result),
        (Ok(ended), _) => Err(RunError::Engine(complaint(&errors, &ended.to_string())).into()),
        (Err(error), _) => Err(RunError::Engine(format!("the engine cannot be waited for: {error}")).into()),
    }
}

/// Reads the engine's output until it ends; the result is the line that is no progress.
fn listen(
    child: &mut Child,
    progress: &mut dyn FnMut(Option<&EvaluationProgress>) -> ControlFlow<()>,
) -> Result<Option<Value>, Refusal> {
    let lines = read_lines(child.stdout.take());
    let mut result = None;
    loop {
        let new = match lines.recv_timeout(LOOK) {
            Ok(line) => match serde_json::from_str::<Line>(&line) {
                Ok(Line::Progress { progress }) => Some(progress),
                Ok(Line::Result(value)) => {
                    result = Some(value);
                    None
                }
                Err(error) => {
                    tracing::warn!(%error, "a line of the engine's output is not JSON");
                    None
                }
            },
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(result),
        };
        if progress(new.as_ref()).is_break() {
            // It may have ended by itself meanwhile.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
            return Err(Refusal::NotEvaluated);
        }
    }
}

fn read_lines(output: Option<ChildStdout>) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let Some(output) = output else { return };
        let mut output = BufReader::new(output);
        let mut line = String::new();
        while (&mut output).take(LINE_LIMIT).read_line(&mut line).is_ok_and(|count| count > 0) {
            if sender.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    receiver
}

fn gather(from: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // Show what was read before the error.
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Fails where the run has nothing to measure, or not the checkpoint asked for.
fn check_measurable(run: &RunDir, wanted: Option<u64>) -> Result<(), Refusal> {
    let steps: Vec<u64> = run.checkpoints().iter().map(|checkpoint| checkpoint.step).collect();
    let has_result = run.result().is_some();
    if steps.is_empty() && !has_result {
        return Err(Refusal::NothingToMeasure(nothing_to_measure(run.id(), &run.status()?)));
    }
    match wanted {
        Some(wanted) if !steps.contains(&wanted) => {
            Err(Refusal::NoCheckpoint(no_such_checkpoint(run.id(), wanted, &steps, has_result)))
        }
        _ => Ok(()),
    }
}

fn no_such_checkpoint(id: &str, wanted: u64, steps: &[u64], has_result: bool) -> String {
    let newest = &steps[steps.len().saturating_sub(SHOWN_CHECKPOINTS)..];
    let named: Vec<String> = newest.iter().map(ToString::to_string).collect();
    let there_are = match (steps.len(), newest.len()) {
        (0, _) => "it keeps none".to_owned(),
        (all, shown) if all > shown => format!("the newest are those of steps {}", named.join(", ")),
        (1, _) => format!("it has that of step {}", named.join(", ")),
        _ => format!("it has those of steps {}", named.join(", ")),
    };
    let without = if has_result { "its result" } else { "the newest" };
    format!(
        "run {id} has no checkpoint of step {wanted}; {there_are}. Without --checkpoint, {without} is evaluated"
    )
}

/// Why a run without result and checkpoint has neither, and what to do.
fn nothing_to_measure(id: &str, status: &Status) -> String {
    let again = format!("start it again from the beginning: luthier run resume {id}");
    let (why, remedy) = match status.state {
        RunState::Failed => ("it failed before its first checkpoint", format!("fix that, then {again}")),
        RunState::Lost => (
            "its process exited without reporting an error before its first checkpoint",
            format!("see why: luthier run show {id}\n  {again}"),
        ),
        RunState::Stopped => ("it was stopped before its first checkpoint", again),
        RunState::Queued => ("it has not started yet", format!("start it: luthier run resume {id}")),
        RunState::Starting | RunState::Running | RunState::Paused | RunState::Stopping => (
            "it has no checkpoint yet",
            format!(
                "wait for its first checkpoint, or for its end; it is {}, at step {} of {}",
                status.state, status.step, status.total_steps
            ),
        ),
        RunState::Finished => (
            "it is finished, but neither its result nor a checkpoint is left in its folder",
            "start a new run: luthier train".to_owned(),
        ),
    };
    let mut lines = vec![format!("run {id} has nothing to evaluate: {why}")];
    if let Some(failure) = &status.failure {
        lines.push(indented(&format!("{}: {}", failure.class, failure.message), 2));
        if !failure.remedy.is_empty() {
            lines.push(format!("remedy: {}", clean_line(&failure.remedy)));
        }
    }
    lines.push(remedy);
    lines.join("\n  ")
}

/// The last line that the engine printed, without its name.
fn complaint(errors: &str, ended: &str) -> String {
    let said = errors.lines().rev().find(|line| !line.trim().is_empty());
    match said {
        Some(said) => clean_line(said.trim_start_matches("luthier-engine: ")).into_owned(),
        None => format!("the engine exited without reporting an error: {ended}"),
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::runs;

    use super::*;

    #[test]
    fn a_run_without_anything_to_measure_says_why_and_what_to_do() {
        let failure = runs::Failure {
            class: runs::FailureClass::Config,
            message: "error: unknown key\n ^^^".to_owned(),
            remedy: "correct it".to_owned(),
        };
        let status = Status { state: RunState::Failed, failure: Some(failure), ..Status::default() };
        let told = nothing_to_measure("r1", &status);
        let expected = "\
run r1 has nothing to evaluate: it failed before its first checkpoint
  config: error: unknown key
   ^^^
  remedy: correct it
  fix that, then start it again from the beginning: luthier run resume r1";
        assert_eq!(told, expected);
        let status = Status { state: RunState::Running, step: 3, total_steps: 9, ..Status::default() };
        let told = nothing_to_measure("r1", &status);
        assert!(told.contains("wait for its first") && told.contains("step 3 of 9"), "{told}");
    }

    #[test]
    fn the_checkpoints_there_are_are_named() {
        let told = no_such_checkpoint("r1", 7, &[4, 8], true);
        assert!(told.contains("step 7; it has those of steps 4, 8."), "{told}");
        assert!(no_such_checkpoint("r1", 7, &[], true).contains("keeps none"));
        let many: Vec<u64> = (1..=90).collect();
        let told = no_such_checkpoint("r1", 700, &many, false);
        assert!(told.contains("newest are those of steps 71, 72") && told.contains("90."), "{told}");
    }

    #[test]
    fn the_engines_last_line_is_the_complaint() {
        let errors = "INFO loading\nluthier-engine: the adapter is \x1b[31mgone\n\n";
        assert_eq!(complaint(errors, "exit status: 1"), "the adapter is [31mgone");
        assert!(complaint("\n", "signal: 9").contains("signal: 9"));
    }
}
