//! What the sweep pane knows and shows.

use std::path::PathBuf;

use indexmap::IndexMap;
use luthier_core::algorithms::Direction;
use luthier_core::sweep::{Sweep, Trial, TrialState, rank};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::command::{COMMANDS, SweepCommand};
use super::effect::SweepEffect;
use super::event::SweepEvent;
use super::question::SweepQuestion;
use super::{update, view};
use crate::app::{Context, Input, Reaction, Reply};
use crate::command::{Command, Entry, ListCommand};
use crate::keymap::KeyContext;
use crate::panes::{Pane, PaneCommand, PaneId, PaneTypes};
use crate::theme::Theme;
use crate::widgets::ListState;

/// What the queue holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Trials: running, then waiting in queue order, then ended.
    pub trials: Vec<Trial>,
    /// Sweeps, oldest first.
    pub sweeps: Vec<Sweep>,
    /// Progress of the trials' runs, by run id: steps done and steps in all.
    pub progress: IndexMap<String, (u64, u64)>,
}

#[derive(Debug, Default)]
pub struct SweepState {
    /// The queue; nothing until it was read.
    pub queue: Option<Snapshot>,
    /// Why it could not be read.
    pub problem: Option<String>,
    /// Selection in the table.
    pub list: ListState,
    /// Whether the table is ordered by result instead of by queue position.
    pub by_result: bool,
    /// The sweep file being written in the editor.
    pub editing: Option<PathBuf>,
    /// A trial to select once it is in the table.
    pub wanted: Option<i64>,
}

impl SweepState {
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

    pub fn selected(&self) -> Option<&Trial> {
        let shown = self.shown();
        self.list.selected().and_then(|index| shown.get(index).copied())
    }

    pub fn sweep(&self) -> Option<&Sweep> {
        let sweep = self.selected()?.sweep;
        self.queue.as_ref()?.sweeps.iter().find(|known| known.id == sweep)
    }

    /// Whether the newest sweep minimises or maximises.
    pub fn direction(&self) -> Direction {
        // Not through `selected`, which depends on the order that this decides.
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

    pub fn best_of(&self, sweep: &Sweep) -> Option<&Trial> {
        let trials: Vec<Trial> = self.trials_of(sweep.id).into_iter().cloned().collect();
        let best = rank(&trials, sweep.goal.direction).first().map(|trial| trial.id)?;
        self.trials_of(sweep.id).into_iter().find(|trial| trial.id == best)
    }
}

impl Pane for SweepState {
    fn update(&mut self, _context: &Context, input: Input) -> Vec<Reaction> {
        update::update(self, input)
    }

    fn view(&self, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
        view::view(self, context, area, buffer, theme);
    }

    fn contexts(&self, _context: &Context) -> Vec<KeyContext> {
        vec![KeyContext::Pane(PaneId::Sweep), KeyContext::List]
    }

    fn hints(&self, context: &Context) -> Vec<Command> {
        let mut hints = Vec::new();
        if self.selected().is_some_and(|trial| trial.run.is_some()) {
            hints.push(Command::List(ListCommand::Open));
        }
        let own = [
            SweepCommand::New,
            SweepCommand::Add,
            SweepCommand::MoveDown,
            SweepCommand::MoveUp,
            SweepCommand::Hold,
            SweepCommand::Cancel,
            SweepCommand::Retry,
            SweepCommand::Clone,
            SweepCommand::Promote,
            SweepCommand::Order,
        ];
        hints.extend(
            own.map(Command::from)
                .into_iter()
                .filter(|command| self.unavailable(context, *command).is_none()),
        );
        hints
    }

    fn unavailable(&self, context: &Context, command: Command) -> Option<String> {
        let Command::Pane(PaneCommand::Sweep(command)) = command else { return None };
        if matches!(command, SweepCommand::New | SweepCommand::Add) {
            return context
                .config
                .is_none()
                .then(|| "luthier.toml has mistakes; `space e` opens it".to_owned());
        }
        let Some(trial) = self.selected() else {
            return Some("there is no trial yet; `n` queues some".to_owned());
        };
        let waits = (!trial.state.waits()).then(|| format!("trial {} is no longer waiting", trial.id));
        match command {
            SweepCommand::MoveUp | SweepCommand::MoveDown | SweepCommand::MoveFirst | SweepCommand::Hold => {
                waits
            }
            SweepCommand::Cancel => trial.state.is_over().then(|| format!("trial {} has ended", trial.id)),
            SweepCommand::Retry => {
                let over = trial.state.is_over() && trial.state != TrialState::Finished;
                let lost = trial.state == TrialState::Lost;
                (!over && !lost).then(|| {
                    format!(
                        "trial {} is {}; only lost, failed or cancelled trials can be retried",
                        trial.id, trial.state
                    )
                })
            }
            SweepCommand::Promote => {
                let best = self.sweep().and_then(|sweep| self.best_of(sweep));
                best.is_none().then(|| "no trial of this sweep has a result yet".to_owned())
            }
            SweepCommand::New | SweepCommand::Add | SweepCommand::Clone | SweepCommand::Order => None,
        }
    }

    fn status(&self, _context: &Context) -> Option<String> {
        let trials = &self.queue.as_ref()?.trials;
        let running: Vec<String> = trials
            .iter()
            .filter(|trial| trial.state == TrialState::Running)
            .map(|trial| format!("▶ trial {}", trial.id))
            .collect();
        (!running.is_empty()).then(|| running.join("  "))
    }
}

impl PaneTypes for SweepState {
    type Command = SweepCommand;
    type Effect = SweepEffect;
    type Event = SweepEvent;
    type Question = SweepQuestion;

    const COMMANDS: &[Entry<SweepCommand>] = COMMANDS;

    fn answered(&mut self, _context: &Context, event: SweepEvent) -> Vec<Reaction> {
        update::answered(self, event)
    }

    fn replied(&mut self, _context: &Context, question: SweepQuestion, reply: Reply) -> Vec<Reaction> {
        update::replied(question, reply)
    }
}
