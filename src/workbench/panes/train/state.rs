//! What the train pane knows and shows.

use indexmap::IndexMap;
use luthier_core::config::Config;
use luthier_core::runs::{Action, RunState, RunSummary, Status};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::command::{COMMANDS, TrainCommand};
use super::curves::{Curves, METRICS, Metric};
use super::effect::TrainEffect;
use super::event::TrainEvent;
use super::question::TrainQuestion;
use super::{update, view};
use crate::app::{Context, Input, Reaction, Reply};
use crate::command::{Command, Entry, ListCommand, ViewCommand};
use crate::keymap::KeyContext;
use crate::panes::{Pane, PaneCommand, PaneId, PaneTypes};
use crate::theme::Theme;
use crate::widgets::{ListState, Scroll, TextLine};

/// What has the focus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Focus {
    /// The list of runs.
    #[default]
    List,
    /// The large chart, with its cursor.
    Chart,
}

/// What the detail shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Charts, notices and samples.
    #[default]
    Charts,
    /// What the engine printed.
    Log,
}

/// The run whose detail is shown.
#[derive(Debug)]
pub struct OpenRun {
    pub id: String,
    /// Its curves so far.
    pub curves: Curves,
    /// Its status; nothing until read.
    pub status: Option<Status>,
    /// Its checkpoints, by step.
    pub checkpoints: Vec<u64>,
    /// Its settings; nothing until read.
    pub config: Option<Config>,
    /// Whether all of the journal was read.
    pub caught_up: bool,
    /// What the engine printed last.
    pub log: Vec<String>,
    /// The newest step when the pane was left.
    pub left_at: Option<u64>,
}

impl OpenRun {
    /// A run of which nothing is known yet.
    pub fn new(id: String) -> Self {
        Self {
            id,
            curves: Curves::default(),
            status: None,
            checkpoints: Vec::new(),
            config: None,
            caught_up: false,
            log: Vec::new(),
            left_at: None,
        }
    }

    /// The newest step known.
    pub fn step(&self) -> u64 {
        let journaled = self.curves.last.as_ref().map_or(0, |last| last.step);
        self.status.as_ref().map_or(journaled, |status| status.step.max(journaled))
    }

    /// Estimated seconds until the end, while the run is training.
    pub fn seconds_left(&self) -> Option<f64> {
        let status = self.status.as_ref().filter(|status| status.state == RunState::Running)?;
        let left = status.total_steps.saturating_sub(self.step());
        Some(self.curves.seconds_a_step()? * left as f64)
    }
}

/// Which part of the steps the large chart shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub from: f64,
    pub to: f64,
}

#[derive(Debug, Default)]
pub struct TrainState {
    /// Runs, newest first; nothing until they were read.
    pub runs: Option<Vec<RunSummary>>,
    /// Why they could not be read.
    pub problem: Option<String>,
    /// Selection in the list of runs that pass the filter.
    pub list: ListState,
    /// Words that a run's line must contain.
    pub filter: String,
    /// The filter while it is typed.
    pub typing: Option<TextLine>,
    pub focus: Focus,
    pub detail: Detail,
    pub open: Option<OpenRun>,
    /// Curves of other runs on the same chart.
    pub overlays: IndexMap<String, Curves>,
    /// What the large chart shows.
    pub metric: Option<Metric>,
    /// Whether the large chart's values are logarithmic.
    pub logarithmic: bool,
    /// The step under the cursor, while the chart has the focus.
    pub cursor: Option<u64>,
    /// The part of the steps shown; nothing for all of them.
    pub window: Option<Window>,
    /// Position of the prompt whose samples are shown, among those that have any.
    pub sample: usize,
    /// Scroll position in the log.
    pub log: Scroll,
    /// Progress of a plan: rows done and rows in all.
    pub planning: Option<(usize, usize)>,
    /// Whether a run is being started.
    pub starting: bool,
    /// A run to select once it is in the list.
    pub wanted: Option<String>,
}

impl TrainState {
    /// The runs that pass the filter, newest first.
    pub fn shown(&self) -> Vec<&RunSummary> {
        let words: Vec<String> = self.filter.split_whitespace().map(str::to_lowercase).collect();
        self.runs
            .iter()
            .flatten()
            .filter(|run| words.iter().all(|word| line_of(run).contains(word)))
            .collect()
    }

    pub fn selected(&self) -> Option<&RunSummary> {
        let shown = self.shown();
        self.list.selected().and_then(|index| shown.get(index).copied())
    }

    /// The metric of the large chart.
    pub fn main_metric(&self) -> Metric {
        self.metric.unwrap_or(Metric::Loss)
    }

    /// Metrics that the run shown has values of.
    pub fn metrics(&self) -> Vec<Metric> {
        METRICS
            .iter()
            .copied()
            .filter(|metric| {
                *metric == Metric::Loss
                    || self.open.as_ref().is_some_and(|open| !open.curves.series(*metric).is_empty())
            })
            .collect()
    }

    /// The steps a chart of the run spans: the planned ones, or more if it has done more.
    pub fn span(&self) -> f64 {
        let planned = self.open.as_ref().map_or(0, |open| {
            let planned = open.status.as_ref().map_or(0, |status| status.total_steps);
            planned.max(open.curves.run.as_ref().map_or(0, |run| run.total_steps)).max(open.step())
        });
        let overlaid = self.overlays.values().filter_map(|curves| curves.last.as_ref()).map(|last| last.step);
        overlaid.chain([planned, 1]).max().unwrap_or(1) as f64
    }
}

/// What a filter searches: id, method, state, failure class and remark.
fn line_of(run: &RunSummary) -> String {
    let failure = run.failure.as_ref().map(|failure| failure.class.to_string()).unwrap_or_default();
    let remark = run.remark.as_deref().unwrap_or_default();
    format!("{} {} {} {failure} {remark}", run.id, run.method, run.state).to_lowercase()
}

impl Pane for TrainState {
    fn update(&mut self, _context: &Context, input: Input) -> Vec<Reaction> {
        update::update(self, input)
    }

    fn view(&self, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
        view::view(self, context, area, buffer, theme);
    }

    fn contexts(&self, _context: &Context) -> Vec<KeyContext> {
        if self.typing.is_some() {
            return vec![KeyContext::Input];
        }
        match self.focus {
            Focus::Chart => vec![KeyContext::Chart, KeyContext::Pane(PaneId::Train)],
            Focus::List => vec![KeyContext::Pane(PaneId::Train), KeyContext::List],
        }
    }

    fn hints(&self, context: &Context) -> Vec<Command> {
        let possible = |command: &Command| self.unavailable(context, *command).is_none();
        let mut hints = Vec::new();
        if self.typing.is_some() {
            return vec![
                Command::Input(crate::command::InputCommand::Accept),
                Command::Input(crate::command::InputCommand::Cancel),
            ];
        }
        if self.focus == Focus::Chart {
            use crate::command::ChartCommand::{Left, LogScale, Open, Right, ZoomIn, ZoomOut, ZoomReset};
            hints.extend([Left, Right, Open, ZoomIn, ZoomOut, ZoomReset, LogScale].map(Command::Chart));
            hints.push(Command::from(TrainCommand::Metric));
            hints.push(Command::View(ViewCommand::Back));
            return hints;
        }
        if self.open.is_some() {
            hints.push(Command::List(ListCommand::Open));
        }
        let own = [
            TrainCommand::New,
            TrainCommand::Resume,
            TrainCommand::Pause,
            TrainCommand::Checkpoint,
            TrainCommand::Stop,
            TrainCommand::Edit,
            TrainCommand::Undo,
            TrainCommand::Review,
            TrainCommand::Overlay,
            TrainCommand::Metric,
            TrainCommand::Log,
            TrainCommand::Diff,
        ];
        hints.extend(own.map(Command::from));
        hints.push(Command::View(ViewCommand::Search));
        hints.retain(possible);
        hints
    }

    fn unavailable(&self, context: &Context, command: Command) -> Option<String> {
        let Command::Pane(PaneCommand::Train(command)) = command else { return None };
        match command {
            TrainCommand::New | TrainCommand::NewWith => {
                if context.config.is_none() {
                    return Some("luthier.toml has mistakes; `space e` opens it".to_owned());
                }
                if self.starting || self.planning.is_some() {
                    return Some("a run is being prepared already".to_owned());
                }
                None
            }
            _ => {
                let Some(open) = &self.open else {
                    return Some("there is no run yet; `n` plans one".to_owned());
                };
                let Some(status) = &open.status else { return Some("its status is not read yet".to_owned()) };
                let newest = open.checkpoints.last().copied();
                let check = |action: Action| action.check(status, newest).err().map(str::to_owned);
                match command {
                    TrainCommand::Pause if status.state == RunState::Paused => None,
                    TrainCommand::Pause => check(Action::Pause),
                    TrainCommand::Resume => check(Action::Resume),
                    TrainCommand::Checkpoint => check(Action::Checkpoint),
                    TrainCommand::Stop => check(Action::Stop),
                    TrainCommand::Evaluate => check(Action::Evaluate),
                    TrainCommand::Edit => match status.state {
                        RunState::Finished => Some("it is finished".to_owned()),
                        RunState::Stopping => Some("it is stopping already".to_owned()),
                        _ => None,
                    },
                    TrainCommand::Undo => {
                        open.curves.last_edit().is_none().then(|| "there is no edit left".to_owned())
                    }
                    TrainCommand::Sample => (open.curves.sampled().len() < 2)
                        .then(|| "there is no other prompt with samples".to_owned()),
                    TrainCommand::Review => {
                        let usable = open.checkpoints.last().is_some() || status.state == RunState::Finished;
                        (!usable).then(|| "it has no checkpoint to compare yet; `c` writes one".to_owned())
                    }
                    TrainCommand::New
                    | TrainCommand::NewWith
                    | TrainCommand::Overlay
                    | TrainCommand::Diff
                    | TrainCommand::Log
                    | TrainCommand::Metric => None,
                }
            }
        }
    }
}

impl PaneTypes for TrainState {
    type Command = TrainCommand;
    type Effect = TrainEffect;
    type Event = TrainEvent;
    type Question = TrainQuestion;

    const COMMANDS: &[Entry<TrainCommand>] = COMMANDS;

    fn answered(&mut self, _context: &Context, event: TrainEvent) -> Vec<Reaction> {
        update::answered(self, event)
    }

    fn replied(&mut self, _context: &Context, question: TrainQuestion, reply: Reply) -> Vec<Reaction> {
        update::replied(self, question, reply)
    }
}
