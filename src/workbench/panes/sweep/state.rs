//! What the sweep pane knows and shows.

use std::path::PathBuf;
use std::time::Duration;

use luthier_core::sweep::{Direction, Sweep, Trial, TrialState, rank};

use super::command::Command;
use super::effect::Snapshot;
use crate::app::Context;
use crate::command::{Command as Any, ListCommand};
use crate::keymap::KeyContext;
use crate::widgets::ListState;

/// The state of the sweep pane.
#[derive(Debug, Default)]
pub struct State {
    /// The queue; nothing until it was read.
    pub queue: Option<Snapshot>,
    /// Why it could not be read.
    pub problem: Option<String>,
    /// Where the table stands.
    pub list: ListState,
    /// Whether the table is ordered by result instead of by turn.
    pub by_result: bool,
    /// The sweep file being written in the editor.
    pub editing: Option<PathBuf>,
    /// A trial to select once it is in the table.
    pub wanted: Option<i64>,
}

impl State {
    /// The trials in the order of the table.
    pub fn shown(&self) -> Vec<&Trial> {
        let Some(queue) = &self.queue else { return Vec::new() };
        if !self.by_result {
            return queue.trials.iter().collect();
        }
        let mut shown = rank(&queue.trials, self.direction());
        shown.extend(queue.trials.iter().filter(|trial| trial.result.is_none()));
        shown
    }

    /// The selected trial.
    pub fn selected(&self) -> Option<&Trial> {
        let shown = self.shown();
        self.list.selected().and_then(|index| shown.get(index).copied())
    }

    /// The sweep of the selected trial.
    pub fn sweep(&self) -> Option<&Sweep> {
        let sweep = self.selected()?.sweep;
        self.queue.as_ref()?.sweeps.iter().find(|known| known.id == sweep)
    }

    /// Which way the selected trial's sweep looks.
    pub fn direction(&self) -> Direction {
        // By position, not through `selected`, which would ask for the order that this decides.
        self.queue
            .as_ref()
            .and_then(|queue| queue.sweeps.last())
            .map(|sweep| sweep.goal.direction)
            .unwrap_or_default()
    }

    /// The trials of one sweep, by number.
    pub fn trials_of(&self, sweep: i64) -> Vec<&Trial> {
        let mut trials: Vec<&Trial> =
            self.queue.iter().flat_map(|queue| &queue.trials).filter(|trial| trial.sweep == sweep).collect();
        trials.sort_by_key(|trial| trial.number);
        trials
    }

    /// The best trial of a sweep.
    pub fn best_of(&self, sweep: &Sweep) -> Option<&Trial> {
        let trials: Vec<Trial> = self.trials_of(sweep.id).into_iter().cloned().collect();
        let best = rank(&trials, sweep.goal.direction).first().map(|trial| trial.id)?;
        self.trials_of(sweep.id).into_iter().find(|trial| trial.id == best)
    }
}

/// The key contexts active now, nearest first; the global one is added by the shell.
pub fn contexts(_state: &State, _context: &Context) -> Vec<KeyContext> {
    vec![KeyContext::Sweep, KeyContext::List]
}

/// The commands worth a place in the footer now, most useful first.
pub fn hints(state: &State, context: &Context) -> Vec<Any> {
    let mut hints = Vec::new();
    if state.selected().is_some_and(|trial| trial.run.is_some()) {
        hints.push(Any::List(ListCommand::Open));
    }
    let own = [
        Command::New,
        Command::Add,
        Command::MoveDown,
        Command::MoveUp,
        Command::Hold,
        Command::Cancel,
        Command::Retry,
        Command::Clone,
        Command::Promote,
        Command::Order,
    ];
    hints.extend(
        own.map(Any::Sweep).into_iter().filter(|command| unavailable(state, context, *command).is_none()),
    );
    hints
}

/// Why `command` cannot be done now, or nothing if it can.
pub fn unavailable(state: &State, context: &Context, command: Any) -> Option<String> {
    let Any::Sweep(command) = command else { return None };
    if matches!(command, Command::New | Command::Add) {
        return context.config.is_none().then(|| "luthier.toml has mistakes; `space e` opens it".to_owned());
    }
    let Some(trial) = state.selected() else {
        return Some("there is no trial yet; `n` queues some".to_owned());
    };
    let waits = (!trial.state.waits()).then(|| format!("trial {} does not wait any more", trial.id));
    match command {
        Command::MoveUp | Command::MoveDown | Command::MoveFirst | Command::Hold => waits,
        Command::Cancel => trial.state.is_over().then(|| format!("trial {} is over", trial.id)),
        Command::Retry => {
            let over = trial.state.is_over() && trial.state != TrialState::Finished;
            (!over).then(|| {
                format!("trial {} is {}; only what failed or was taken out is retried", trial.id, trial.state)
            })
        }
        Command::Promote => {
            let best = state.sweep().and_then(|sweep| state.best_of(sweep));
            best.is_none().then(|| "no trial of this sweep has a result yet".to_owned())
        }
        Command::New | Command::Add | Command::Clone | Command::Order => None,
    }
}

/// What the right end of the header says instead of the machine's state.
pub fn status(state: &State, _context: &Context) -> Option<String> {
    let trials = &state.queue.as_ref()?.trials;
    let running: Vec<String> = trials
        .iter()
        .filter(|trial| trial.state == TrialState::Running)
        .map(|trial| format!("▶ trial {}", trial.id))
        .collect();
    (!running.is_empty()).then(|| running.join("  "))
}

/// When the pane next wants `Input::Deadline`, in time since the workbench opened. Asked only while it is shown.
pub fn deadline(_state: &State, _context: &Context) -> Option<Duration> {
    None
}

/// What would be lost if the workbench were left now, a line each.
pub fn unsaved(_state: &State) -> Vec<String> {
    Vec::new()
}
