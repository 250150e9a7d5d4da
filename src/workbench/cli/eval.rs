//! `luthier eval`.

use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::{Args, ValueEnum};
use indexmap::IndexSet;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use luthier_core::runs::{RunDir, State, Status, engine_executable};
use luthier_core::text::{clean_line, indented};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::failure::{Failure, Outcome};
use super::interrupts::Interrupts;
use super::output::{self, Align};
use super::project::Folder;
use super::units;

/// How often ctrl-C is looked for while the engine works.
const LOOK: Duration = Duration::from_millis(100);

/// Longer lines are none of the engine's.
const LINE_LIMIT: u64 = 16 << 20;

/// Checkpoints named where the one asked for is not there.
const SHOWN_CHECKPOINTS: usize = 20;

/// The sides of a comparison, in the order in which they are shown.
const SIDES: [&str; 3] = ["base", "baseline", "tuned"];

/// Measure a run on the held-out rows, beside its base model
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  luthier eval latest -C tickets
  luthier eval latest --against base --json | jq .tuned.scores

Loss, and the objective's scores of the replies to the held-out rows: of the tuned model, of the base model, and
of the base model under review.baseline_system where that is set.")]
pub struct Arguments {
    /// Id of the run, a part of it that no other run has, or `latest`
    #[arg(value_name = "RUN")]
    run: String,
    #[command(flatten)]
    folder: Folder,
    /// What to compare with
    #[arg(long, value_enum, default_value_t = Against::Base)]
    against: Against,
    /// The checkpoint of this step, instead of the run's result
    #[arg(long, value_name = "STEP")]
    checkpoint: Option<u64>,
    /// Look at no more than this many held-out rows
    #[arg(long, value_name = "ROWS")]
    limit: Option<usize>,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Against {
    /// The base model, and the baseline where the project has one
    Base,
}

/// Evaluates.
pub fn run(arguments: &Arguments, interrupts: &Interrupts) -> Outcome {
    let run = RunDir::find(&arguments.folder.find()?, &arguments.run)?;
    measurable(&run, arguments.checkpoint)?;
    let result = evaluate(&run, arguments, interrupts)?;
    if arguments.json { output::document(&result) } else { output::line(&describe(&run, &result)) }
}

/// Fails where the run has nothing to measure, or not the checkpoint asked for.
fn measurable(run: &RunDir, wanted: Option<u64>) -> Outcome {
    let steps: Vec<u64> = run.checkpoints().iter().map(|checkpoint| checkpoint.step).collect();
    let has_result = run.result().is_some();
    if steps.is_empty() && !has_result {
        return Err(Failure::work(nothing_to_measure(run.id(), &run.status()?)));
    }
    match wanted {
        Some(wanted) if !steps.contains(&wanted) => {
            Err(Failure::usage(no_such_checkpoint(run.id(), wanted, &steps, has_result)))
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
        State::Failed => ("it failed before its first checkpoint", format!("mend that, then {again}")),
        State::Lost => (
            "its process ended without a word before its first checkpoint",
            format!("see why: luthier run show {id}\n  {again}"),
        ),
        State::Stopped => ("it was stopped before its first checkpoint", again),
        State::Queued => ("it has not started yet", format!("start it: luthier run resume {id}")),
        State::Starting | State::Running | State::Paused | State::Stopping => (
            "it has no checkpoint yet",
            format!(
                "wait for its first checkpoint, or for its end; it is {}, at step {} of {}",
                status.state, status.step, status.total_steps
            ),
        ),
        State::Finished => (
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

fn evaluate(run: &RunDir, arguments: &Arguments, interrupts: &Interrupts) -> Outcome<Value> {
    let mut command = Command::new(engine_executable()?);
    let Against::Base = arguments.against;
    command.arg("evaluate").arg(run.path()).args(["--against", "base", "--json"]);
    for (name, value) in
        [("--checkpoint", arguments.checkpoint), ("--limit", arguments.limit.map(|limit| limit as u64))]
    {
        if let Some(value) = value {
            command.args([name, &value.to_string()]);
        }
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::work(format!("the engine could not be started: {error}")))?;
    interrupts.hold();
    let bar = bar();
    let errors = gather(child.stderr.take());
    let result = listen(&mut child, &bar, interrupts);
    bar.finish_and_clear();
    let ended = child.wait();
    let errors = errors.join().unwrap_or_default();
    let result = result?;
    match (ended, result) {
        (Ok(ended), Some(result)) if ended.success() => Ok(result),
        (Ok(ended), _) => Err(Failure::work(complaint(&errors, &ended.to_string()))),
        (Err(error), _) => Err(Failure::work(format!("the engine cannot be waited for: {error}"))),
    }
}

/// Reads what the engine says until it ends; its result is what is no progress.
fn listen(child: &mut Child, bar: &ProgressBar, interrupts: &Interrupts) -> Outcome<Option<Value>> {
    let lines = read_lines(child.stdout.take());
    let mut result = None;
    loop {
        if interrupts.came() {
            // It may have ended by itself meanwhile.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
            return Err(Failure::interrupted("nothing was evaluated"));
        }
        match lines.recv_timeout(LOOK) {
            Ok(line) => match serde_json::from_str::<Value>(&line) {
                Ok(told) => match told.get("progress") {
                    Some(progress) => show(bar, progress),
                    None => result = Some(told),
                },
                Err(error) => tracing::warn!(%error, "the engine said something that is no JSON"),
            },
            Err(RecvTimeoutError::Timeout) => bar.tick(),
            Err(RecvTimeoutError::Disconnected) => return Ok(result),
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
            // What could be read before it broke is what there is to show.
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn bar() -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(ProgressStyle::default_spinner());
    bar.set_message("loading the model");
    bar
}

fn show(bar: &ProgressBar, progress: &Value) {
    let number = |name: &str| progress.get(name).and_then(Value::as_u64);
    let what = progress.get("what").and_then(Value::as_str).unwrap_or_default();
    if let (Some(done), Some(total)) = (number("done"), number("total")) {
        if bar.length() != Some(total) || bar.position() == 0 {
            let style = ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─"));
            bar.set_length(total);
        }
        bar.set_position(done);
    }
    bar.set_message(clean_line(what).into_owned());
}

/// What the engine said last, without its name before it.
fn complaint(errors: &str, ended: &str) -> String {
    let said = errors.lines().rev().find(|line| !line.trim().is_empty());
    match said {
        Some(said) => clean_line(said.trim_start_matches("luthier-engine: ")).into_owned(),
        None => format!("the engine ended without a word: {ended}"),
    }
}

/// How a figure is written.
type Shown = fn(&Value) -> String;

fn describe(run: &RunDir, result: &Value) -> String {
    let sides: Vec<(&str, &Value)> =
        SIDES.iter().filter_map(|side| Some((*side, result.get(side)?))).collect();
    let mut columns = vec![("", Align::Left)];
    columns.extend(sides.iter().map(|(name, _)| (*name, Align::Right)));
    let row = |label: &str, cell: &dyn Fn(&Value) -> Option<String>| {
        let mut cells = vec![label.to_owned()];
        cells.extend(sides.iter().map(|(_, side)| cell(side).unwrap_or_else(|| "–".to_owned())));
        cells
    };
    // What a run learns from decides which of these there are.
    let figures: [(&str, &str, Shown); 7] = [
        ("held-out loss", "loss", figure),
        ("perplexity", "perplexity", figure),
        ("token accuracy", "token_accuracy", share),
        ("reward of chosen", "reward_chosen", figure),
        ("reward of rejected", "reward_rejected", figure),
        ("reward margin", "reward_margin", figure),
        ("chosen preferred", "reward_accuracy", share),
    ];
    let mut rows: Vec<Vec<String>> = figures
        .iter()
        .filter(|(_, key, _)| sides.iter().any(|(_, side)| side.get(*key).is_some()))
        .map(|(label, key, shown)| row(label, &|side| Some(shown(side.get(*key)?))))
        .collect();
    let scores: IndexSet<&String> = sides
        .iter()
        .filter_map(|(_, side)| side.get("scores")?.as_object())
        .flat_map(serde_json::Map::keys)
        .collect();
    rows.extend(
        scores.iter().map(|name| row(name, &|side| Some(share(side.get("scores")?.get(name.as_str())?)))),
    );
    let count = result.get("rows").and_then(Value::as_u64).unwrap_or_default();
    format!(
        "run {}, {}\n\n{}",
        run.id(),
        units::counted(usize::try_from(count).unwrap_or(usize::MAX), "held-out row", "held-out rows"),
        output::table(&columns, &rows)
    )
}

fn figure(value: &Value) -> String {
    value.as_f64().map_or_else(|| value.as_str().unwrap_or("–").to_owned(), units::number)
}

fn share(value: &Value) -> String {
    value.as_f64().map_or_else(|| value.as_str().unwrap_or("–").to_owned(), units::percent)
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
        let status = Status { state: State::Failed, failure: Some(failure), ..Status::default() };
        let told = nothing_to_measure("r1", &status);
        let expected = "\
run r1 has nothing to evaluate: it failed before its first checkpoint
  config: error: unknown key
   ^^^
  remedy: correct it
  mend that, then start it again from the beginning: luthier run resume r1";
        assert_eq!(told, expected);
        let status = Status { state: State::Running, step: 3, total_steps: 9, ..Status::default() };
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
    fn the_engines_last_words_are_the_complaint() {
        let errors = "INFO loading\nluthier-engine: the adapter is \x1b[31mgone\n\n";
        assert_eq!(complaint(errors, "exit status: 1"), "the adapter is [31mgone");
        assert!(complaint("\n", "signal: 9").contains("signal: 9"));
    }
}
