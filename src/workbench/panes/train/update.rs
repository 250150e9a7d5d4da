//! How the train pane reacts.

use luthier_core::config::headline;
use luthier_core::config::{Change, KEYS};
use luthier_core::runs::{Request, ResumeWay, RunState, RunSummary, StopWhen, UNDO, resume_way};

use super::command::TrainCommand;
use super::curves::Curves;
use super::effect::TrainEffect;
use super::event::TrainEvent;
use super::plan::{PlanSummary, Refusal};
use super::question::TrainQuestion;
use super::settings::settings_of;
use super::state::{Detail, Focus, OpenRun, TrainState, Window};
use crate::app::{
    Confirm, Entry, Input, Link, Message, Pick, PickItem, Prompt, Question, Reaction, Reply, Severity,
};
use crate::command::{ChartCommand, Command, InputCommand, ListCommand, ViewCommand};
use crate::panes::{PaneCommand, PaneId};
use crate::widgets::TextLine;

/// Most runs on one chart.
const OVERLAYS: usize = 5;

/// The fewest steps that a chart shows.
const NARROWEST: f64 = 8.0;

/// Reacts to one input. No IO, no clock.
pub(super) fn update(state: &mut TrainState, input: Input) -> Vec<Reaction> {
    match input {
        Input::Started => vec![Reaction::from(TrainEffect::Watch)],
        Input::Hidden => {
            if let Some(open) = &mut state.open {
                open.left_at = Some(open.step());
            }
            Vec::new()
        }
        Input::Command(command) => run(state, command),
        Input::Key(key) => {
            if let Some(line) = &mut state.typing {
                line.key(key);
                filter_typed(state);
            }
            Vec::new()
        }
        Input::Paste(text) => {
            if let Some(line) = &mut state.typing {
                line.paste(&text);
                filter_typed(state);
            }
            Vec::new()
        }
        Input::Link(link) => match link {
            Link::Run(id) => {
                state.wanted = Some(id);
                state.filter.clear();
                select_wanted(state);
                follow(state)
            }
            Link::NewRun => plan(state, Vec::new()),
            Link::Rows(..) | Link::Review(..) | Link::Trial(_) => Vec::new(),
        },
        Input::Shown | Input::Edited(_) | Input::ConfigChanged | Input::Deadline => Vec::new(),
    }
}

/// Reacts to the reply to a question that the pane asked in a box.
pub(super) fn replied(state: &mut TrainState, question: TrainQuestion, reply: Reply) -> Vec<Reaction> {
    match reply {
        Reply::Yes => confirmed(state, question),
        Reply::Text(text) => entered(state, question, text.trim()),
        Reply::Choice(index) => picked(state, question, index),
    }
}

fn run(state: &mut TrainState, command: Command) -> Vec<Reaction> {
    match command {
        Command::Pane(PaneCommand::Train(command)) => own(state, command),
        Command::Input(command) => typed(state, command),
        Command::List(ListCommand::Open) => {
            if state.open.is_some() && state.detail == Detail::Charts {
                state.focus = Focus::Chart;
                state.cursor = state.open.as_ref().map(OpenRun::step);
            }
            Vec::new()
        }
        Command::List(command) => {
            if state.detail == Detail::Log && state.focus == Focus::List && state.log.apply(command) {
                return Vec::new();
            }
            if state.list.apply(command) { follow(state) } else { vec![Reaction::Unchanged] }
        }
        Command::Chart(command) => chart(state, command),
        Command::View(command) => view(state, command),
        Command::App(_) | Command::Modal(_) | Command::Pane(_) => Vec::new(),
    }
}

fn view(state: &mut TrainState, command: ViewCommand) -> Vec<Reaction> {
    match command {
        ViewCommand::Back => {
            if state.focus == Focus::Chart {
                state.focus = Focus::List;
                state.cursor = None;
                state.window = None;
            } else if state.detail == Detail::Log {
                state.detail = Detail::Charts;
            } else if !state.filter.is_empty() {
                state.filter.clear();
                filtered(state);
            } else {
                state.overlays.clear();
            }
            Vec::new()
        }
        ViewCommand::Search => {
            state.typing = Some(TextLine::new(&state.filter));
            Vec::new()
        }
        ViewCommand::Refresh => {
            let mut reactions = vec![Reaction::from(TrainEffect::Watch)];
            state.open = None;
            reactions.extend(follow(state));
            reactions
        }
        ViewCommand::FocusNext
        | ViewCommand::FocusPrevious
        | ViewCommand::FocusLeft
        | ViewCommand::FocusRight => {
            match state.focus {
                Focus::List if state.open.is_some() && state.detail == Detail::Charts => {
                    state.focus = Focus::Chart;
                    state.cursor = state.open.as_ref().map(OpenRun::step);
                }
                Focus::List | Focus::Chart => {
                    state.focus = Focus::List;
                    state.cursor = None;
                }
            }
            Vec::new()
        }
        ViewCommand::Copy => state.selected().map_or_else(Vec::new, |run| {
            vec![
                Reaction::Copy(run.path.display().to_string()),
                Reaction::Flash(Severity::Note, "the run's folder is on the clipboard".to_owned()),
            ]
        }),
        ViewCommand::FocusDown
        | ViewCommand::FocusUp
        | ViewCommand::SearchNext
        | ViewCommand::SearchPrevious => {
            vec![Reaction::Unchanged]
        }
    }
}

fn typed(state: &mut TrainState, command: InputCommand) -> Vec<Reaction> {
    match command {
        InputCommand::Accept => state.typing = None,
        InputCommand::Cancel => {
            state.typing = None;
            state.filter.clear();
            filtered(state);
        }
        _ => {
            if let Some(line) = &mut state.typing {
                line.apply(command);
                filter_typed(state);
            }
        }
    }
    follow(state)
}

fn filter_typed(state: &mut TrainState) {
    if let Some(line) = &state.typing {
        line.value().clone_into(&mut state.filter);
        filtered(state);
    }
}

/// Keeps the run shown selected if it still passes the filter.
fn filtered(state: &mut TrainState) {
    let open = state.open.as_ref().map(|open| open.id.clone());
    let shown = state.shown();
    let position = shown.iter().position(|run| Some(&run.id) == open.as_ref());
    let length = shown.len();
    state.list.changed(length, position);
}

fn own(state: &mut TrainState, command: TrainCommand) -> Vec<Reaction> {
    match command {
        TrainCommand::New => return plan(state, Vec::new()),
        TrainCommand::NewWith => {
            return vec![Reaction::Prompt(Prompt {
                title: "New run with other settings".to_owned(),
                initial: String::new(),
                hint: "key=value, separated by spaces: train.learning_rate=1e-4 method.rank=8".to_owned(),
                question: Question::from(TrainQuestion::Settings),
            })];
        }
        TrainCommand::Metric => {
            let metrics = state.metrics();
            let position = metrics.iter().position(|metric| *metric == state.main_metric());
            let next = position.map_or(0, |position| (position + 1) % metrics.len().max(1));
            state.metric = metrics.get(next).copied();
            return Vec::new();
        }
        TrainCommand::Sample => {
            let prompts = state.open.as_ref().map_or(0, |open| open.curves.sampled().len());
            state.sample = (state.sample + 1) % prompts.max(1);
            return Vec::new();
        }
        _ => {}
    }
    let Some(open) = &state.open else { return Vec::new() };
    let id = open.id.clone();
    let run_state = open.status.as_ref().map_or(RunState::Queued, |status| status.state);
    let ask = |request| vec![Reaction::from(TrainEffect::Ask(id.clone(), request))];
    match command {
        TrainCommand::Pause if run_state == RunState::Paused => ask(Request::Resume),
        TrainCommand::Pause => ask(Request::Pause),
        TrainCommand::Checkpoint => ask(Request::Checkpoint),
        TrainCommand::Evaluate => ask(Request::Evaluate),
        TrainCommand::Resume => resume(open, &id),
        TrainCommand::Stop => vec![stop(state, id)],
        TrainCommand::Edit => vec![edit(open, id)],
        TrainCommand::Undo => undo(open, id, run_state),
        TrainCommand::Overlay => overlay(state, id),
        TrainCommand::Diff => vec![Reaction::from(TrainEffect::Diff(id))],
        TrainCommand::Log => {
            if state.detail == Detail::Log {
                state.detail = Detail::Charts;
                return Vec::new();
            }
            state.detail = Detail::Log;
            state.focus = Focus::List;
            state.log.to_end();
            vec![Reaction::from(TrainEffect::Log(id))]
        }
        TrainCommand::Review => {
            let step = if run_state == RunState::Finished { None } else { open.checkpoints.last().copied() };
            vec![Reaction::Follow(Link::Review(id, step)), Reaction::Show(PaneId::Review)]
        }
        TrainCommand::New | TrainCommand::NewWith | TrainCommand::Metric | TrainCommand::Sample => Vec::new(),
    }
}

fn plan(state: &mut TrainState, settings: Vec<String>) -> Vec<Reaction> {
    state.planning = Some((0, 0));
    vec![Reaction::from(TrainEffect::Plan(settings))]
}

fn resume(open: &OpenRun, id: &str) -> Vec<Reaction> {
    let Some(status) = &open.status else { return Vec::new() };
    match resume_way(status, open.checkpoints.last().copied()) {
        Ok(ResumeWay::Ask) => vec![Reaction::from(TrainEffect::Ask(id.to_owned(), Request::Resume))],
        Ok(ResumeWay::Start { from_step }) => {
            let from = match from_step {
                Some(step) => {
                    format!("It resumes from its checkpoint at step {step}, with its own settings.")
                }
                None => "It has no checkpoint and starts again at step 1, with its own settings.".to_owned(),
            };
            vec![Reaction::Confirm(Confirm {
                title: format!("Start {id} again?"),
                lines: vec![from],
                yes: "Start".to_owned(),
                question: Question::from(TrainQuestion::Restart(id.to_owned())),
            })]
        }
        Err(reason) => vec![Reaction::Flash(Severity::Warning, reason.to_owned())],
    }
}

/// The ways to end a run, in the order they are offered.
const STOPS: [(StopWhen, &str, &str); 3] = [
    (StopWhen::Save, "save and stop", "after this step, with checkpoint and result"),
    (StopWhen::AfterEval, "evaluate, save and stop", "one more evaluation first"),
    (StopWhen::Now, "stop at once", "nothing is saved"),
];

fn stop(state: &TrainState, id: String) -> Reaction {
    let method = state.selected().map_or_else(String::new, |run| run.method.clone());
    let items =
        STOPS.map(|(_, label, detail)| PickItem { label: label.to_owned(), detail: detail.to_owned() });
    Reaction::Pick(Pick {
        title: format!("Stop {method}?"),
        items: items.to_vec(),
        selected: 0,
        question: Question::from(TrainQuestion::Stop(id)),
    })
}

fn edit(open: &OpenRun, id: String) -> Reaction {
    let editable: Vec<_> =
        KEYS.iter().filter(|key| matches!(key.change, Change::Now | Change::NextEvaluation)).collect();
    let value = |path: &str| {
        open.config
            .as_ref()
            .and_then(|config| config.get(path))
            .map(|value| value.to_string())
            .unwrap_or_default()
    };
    let items = editable
        .iter()
        .map(|key| PickItem {
            label: key.path.to_owned(),
            detail: format!("{}  {}", value(key.path), key.doc),
        })
        .collect();
    let learning_rate = editable.iter().position(|key| key.path == "train.learning_rate");
    Reaction::Pick(Pick {
        title: "Change which setting?".to_owned(),
        items,
        selected: learning_rate.unwrap_or(0),
        question: Question::from(TrainQuestion::Key(id, editable.iter().map(|key| key.path).collect())),
    })
}

fn undo(open: &OpenRun, id: String, run_state: RunState) -> Vec<Reaction> {
    let Some(edit) = open.curves.last_edit() else { return Vec::new() };
    let who = format!("{UNDO}workbench");
    vec![Reaction::from(change(id, run_state, edit.key.clone(), edit.old.clone(), who))]
}

/// A live run is asked, so that its reply shows at once whether it accepts the value; otherwise the file is
/// written, which the run reads when it resumes.
fn change(run: String, state: RunState, key: String, value: String, who: String) -> TrainEffect {
    if state.is_live() {
        TrainEffect::Ask(run, Request::Edit { key, value, who: Some(who) })
    } else {
        TrainEffect::Write { run, key, value }
    }
}

fn overlay(state: &mut TrainState, id: String) -> Vec<Reaction> {
    if state.overlays.shift_remove(&id).is_some() {
        return Vec::new();
    }
    if state.overlays.len() == OVERLAYS {
        let text = format!("{OVERLAYS} runs are on the chart; `o` on one of them removes it");
        return vec![Reaction::Flash(Severity::Warning, text)];
    }
    state.overlays.insert(id.clone(), Curves::default());
    vec![Reaction::from(TrainEffect::Overlay(id))]
}

fn chart(state: &mut TrainState, command: ChartCommand) -> Vec<Reaction> {
    let span = state.span();
    let window = state.window.unwrap_or(Window { from: 0.0, to: span });
    let width = window.to - window.from;
    let last = state.open.as_ref().map_or(0, OpenRun::step).max(1);
    let at = state.cursor.unwrap_or(last);
    let far = ((width / 10.0) as u64).max(1);
    match command {
        ChartCommand::Left => state.cursor = Some(at.saturating_sub(1).max(1)),
        ChartCommand::Right => state.cursor = Some((at + 1).min(last)),
        ChartCommand::FarLeft => state.cursor = Some(at.saturating_sub(far).max(1)),
        ChartCommand::FarRight => state.cursor = Some((at + far).min(last)),
        ChartCommand::First => state.cursor = Some(1),
        ChartCommand::Last => state.cursor = Some(last),
        ChartCommand::ZoomIn => state.window = Some(around(at as f64, width / 2.0, span)),
        ChartCommand::ZoomOut => {
            let wider = around(at as f64, width * 2.0, span);
            state.window = (wider.to - wider.from < span).then_some(wider);
        }
        ChartCommand::ZoomReset => state.window = None,
        ChartCommand::LogScale => state.logarithmic = !state.logarithmic,
        ChartCommand::Open => {
            let id = state.open.as_ref().map(|open| open.id.clone());
            return id.map_or_else(Vec::new, |id| {
                let text = format!("looking for the rows of step {at}");
                vec![Reaction::from(TrainEffect::Rows(id, at)), Reaction::Flash(Severity::Note, text)]
            });
        }
    }
    if let (Some(window), Some(cursor)) = (state.window, state.cursor) {
        let cursor = cursor as f64;
        if cursor < window.from || cursor > window.to {
            state.window = Some(around(cursor, width, span));
        }
    }
    Vec::new()
}

/// A window of `width` steps around `center`, moved inside the existing steps.
fn around(center: f64, width: f64, span: f64) -> Window {
    let width = width.clamp(NARROWEST.min(span), span);
    let from = (center - width / 2.0).clamp(0.0, span - width);
    Window { from, to: from + width }
}

pub(super) fn answered(state: &mut TrainState, answer: TrainEvent) -> Vec<Reaction> {
    match answer {
        TrainEvent::Runs(Ok(runs)) => {
            state.problem = None;
            runs_changed(state, runs)
        }
        TrainEvent::Runs(Err(problem)) => {
            state.problem = Some(problem);
            Vec::new()
        }
        TrainEvent::Journal { run, events, restarted, caught_up } => {
            let Some(open) = state.open.as_mut().filter(|open| open.id == run) else {
                return vec![Reaction::Unchanged];
            };
            if restarted {
                open.curves = Curves::default();
            }
            open.curves.add(events);
            open.caught_up = caught_up;
            if let Some(shown) = state.overlays.get_mut(&run) {
                shown.clone_from(&open.curves);
            }
            Vec::new()
        }
        TrainEvent::Status { run, status, checkpoints, config } => {
            let Some(open) = state.open.as_mut().filter(|open| open.id == run) else {
                return vec![Reaction::Unchanged];
            };
            let before = open.status.as_ref().map(|status| status.state);
            open.status = Some(*status);
            open.checkpoints = checkpoints;
            if let Some(config) = config {
                open.config = Some(*config);
            }
            ended(open, before)
        }
        TrainEvent::Overlay(run, events) => {
            if let Some(curves) = state.overlays.get_mut(&run) {
                *curves = Curves::default();
                curves.add(events);
            }
            Vec::new()
        }
        TrainEvent::Log(run, lines) => {
            if let Some(open) = state.open.as_mut().filter(|open| open.id == run) {
                open.log = lines;
            }
            Vec::new()
        }
        TrainEvent::Planning(done, total) => {
            state.planning = Some((done, total));
            Vec::new()
        }
        TrainEvent::Planned(settings, outcome) => {
            state.planning = None;
            planned(settings, outcome)
        }
        TrainEvent::Started(outcome) => {
            state.starting = false;
            match outcome {
                Ok(id) => {
                    state.wanted = Some(id);
                    state.filter.clear();
                    // Read the list again at once: the new run is not in it yet.
                    vec![
                        Reaction::from(TrainEffect::Watch),
                        Reaction::Flash(Severity::Success, "started".to_owned()),
                    ]
                }
                Err(problem) => vec![failure("The run could not be started", problem)],
            }
        }
        TrainEvent::Edited { run, key, outcome } => edited(run, &key, outcome),
        TrainEvent::Asked(Ok(said)) => vec![Reaction::Flash(Severity::Success, said)],
        TrainEvent::Asked(Err(problem)) if problem.contains('\n') => vec![failure("Not done", problem)],
        TrainEvent::Diff(title, text) => {
            vec![Reaction::Message(Message { title, text, severity: Severity::Note })]
        }
        TrainEvent::Rows(step, Ok(rows)) => {
            vec![Reaction::Follow(Link::Rows(format!("step {step}"), rows)), Reaction::Show(PaneId::Data)]
        }
        TrainEvent::Asked(Err(problem)) | TrainEvent::Rows(_, Err(problem)) => {
            vec![Reaction::Flash(Severity::Error, problem)]
        }
    }
}

fn planned(settings: Vec<String>, outcome: Result<PlanSummary, Refusal>) -> Vec<Reaction> {
    let entry = |entry| Reaction::Entry(Question::from(TrainQuestion::Settings), entry);
    match outcome {
        Ok(plan) => vec![
            entry(Entry::Taken),
            Reaction::Confirm(Confirm {
                title: format!("Start {}?", plan.method),
                lines: plan.lines,
                yes: "Start".to_owned(),
                question: Question::from(TrainQuestion::Start(settings)),
            }),
        ],
        Err(Refusal { title, text }) => {
            let message = Message { title, text, severity: Severity::Error };
            if settings.is_empty() {
                // Nothing was typed that could be corrected.
                vec![entry(Entry::Taken), Reaction::Message(message)]
            } else {
                vec![entry(Entry::Refused(message))]
            }
        }
    }
}

/// Reports the outcome of an edit in the box it was typed in, if there is one.
fn edited(run: String, key: &str, outcome: Result<String, String>) -> Vec<Reaction> {
    let question = KEYS
        .iter()
        .find(|known| known.path == key)
        .map(|known| Question::from(TrainQuestion::Value(run, known.path)));
    match (outcome, question) {
        (Ok(said), question) => {
            let taken = question.map(|question| Reaction::Entry(question, Entry::Taken));
            taken.into_iter().chain([Reaction::Flash(Severity::Success, said)]).collect()
        }
        (Err(problem), Some(question)) => {
            let message =
                Message { title: "Not changed".to_owned(), text: problem, severity: Severity::Error };
            vec![Reaction::Entry(question, Entry::Refused(message))]
        }
        (Err(problem), None) => vec![failure("Not changed", problem)],
    }
}

fn failure(title: &str, text: String) -> Reaction {
    Reaction::Message(Message { title: title.to_owned(), text, severity: Severity::Error })
}

/// Says how a run ended that was seen living.
fn ended(open: &OpenRun, before: Option<RunState>) -> Vec<Reaction> {
    let Some(status) = &open.status else { return Vec::new() };
    if !before.is_some_and(RunState::is_live) || !status.state.is_over() {
        return Vec::new();
    }
    let (severity, text) = match (status.state, &status.failure) {
        (RunState::Finished, _) => (Severity::Success, "the run is finished".to_owned()),
        (RunState::Stopped, _) => (Severity::Note, "the run is stopped".to_owned()),
        (_, Some(failure)) => (Severity::Error, format!("{}: {}", failure.class, headline(&failure.message))),
        (state, None) => (Severity::Error, format!("the run is {state}")),
    };
    vec![Reaction::Flash(severity, text)]
}

fn runs_changed(state: &mut TrainState, runs: Vec<RunSummary>) -> Vec<Reaction> {
    let selected = state.selected().map(|run| run.id.clone());
    state.runs = Some(runs);
    let shown = state.shown();
    let position = shown.iter().position(|run| Some(&run.id) == selected.as_ref());
    let length = shown.len();
    state.list.changed(length, position);
    select_wanted(state);
    follow(state)
}

fn select_wanted(state: &mut TrainState) {
    let Some(wanted) = &state.wanted else { return };
    let shown = state.shown();
    let Some(position) = shown.iter().position(|run| run.id == *wanted) else { return };
    let length = shown.len();
    state.list.changed(length, Some(position));
    state.wanted = None;
}

/// Shows the selected run, if another one is shown.
fn follow(state: &mut TrainState) -> Vec<Reaction> {
    let Some(id) = state.selected().map(|run| run.id.clone()) else {
        if state.runs.as_ref().is_some_and(Vec::is_empty) {
            state.open = None;
        }
        return Vec::new();
    };
    if state.open.as_ref().is_some_and(|open| open.id == id) {
        return Vec::new();
    }
    state.open = Some(OpenRun::new(id.clone()));
    state.window = None;
    state.cursor = None;
    state.sample = 0;
    state.log.to_end();
    let mut reactions = vec![Reaction::from(TrainEffect::Follow(id.clone()))];
    if state.detail == Detail::Log {
        reactions.push(Reaction::from(TrainEffect::Log(id)));
    }
    reactions
}

fn confirmed(state: &mut TrainState, question: TrainQuestion) -> Vec<Reaction> {
    match question {
        TrainQuestion::Start(settings) => {
            state.starting = true;
            vec![Reaction::from(TrainEffect::Start(settings))]
        }
        TrainQuestion::StopNow(id) => {
            vec![Reaction::from(TrainEffect::Ask(id, Request::Stop { when: StopWhen::Now }))]
        }
        TrainQuestion::Restart(id) => vec![Reaction::from(TrainEffect::Restart(id))],
        TrainQuestion::Settings
        | TrainQuestion::Stop(_)
        | TrainQuestion::Key(..)
        | TrainQuestion::Value(..) => Vec::new(),
    }
}

fn entered(state: &mut TrainState, question: TrainQuestion, text: &str) -> Vec<Reaction> {
    match question {
        TrainQuestion::Settings => {
            let mut reactions = plan(state, settings_of(text));
            reactions.push(Reaction::Entry(Question::from(TrainQuestion::Settings), Entry::Checked));
            reactions
        }
        TrainQuestion::Value(id, key) => {
            let question = Question::from(TrainQuestion::Value(id.clone(), key));
            let run_state = state
                .open
                .as_ref()
                .filter(|open| open.id == id)
                .and_then(|open| open.status.as_ref())
                .map_or(RunState::Queued, |status| status.state);
            vec![
                Reaction::from(change(
                    id,
                    run_state,
                    key.to_owned(),
                    text.to_owned(),
                    "workbench".to_owned(),
                )),
                Reaction::Entry(question, Entry::Checked),
            ]
        }
        TrainQuestion::Start(_)
        | TrainQuestion::Stop(_)
        | TrainQuestion::StopNow(_)
        | TrainQuestion::Key(..)
        | TrainQuestion::Restart(_) => Vec::new(),
    }
}

fn picked(state: &mut TrainState, question: TrainQuestion, index: usize) -> Vec<Reaction> {
    match question {
        TrainQuestion::Stop(id) => match STOPS.get(index) {
            Some((StopWhen::Now, ..)) => {
                let saved = state.open.as_ref().and_then(|open| open.checkpoints.last().copied());
                let lost = match saved {
                    Some(step) => format!("Everything after the checkpoint at step {step} is lost."),
                    None => "There is no checkpoint: all training is lost.".to_owned(),
                };
                vec![Reaction::Confirm(Confirm {
                    title: format!("Stop {id} at once?"),
                    lines: vec![lost],
                    yes: "Stop".to_owned(),
                    question: Question::from(TrainQuestion::StopNow(id)),
                })]
            }
            Some((when, ..)) => vec![Reaction::from(TrainEffect::Ask(id, Request::Stop { when: *when }))],
            None => Vec::new(),
        },
        TrainQuestion::Key(id, keys) => {
            let Some(key) = keys.get(index).copied() else { return Vec::new() };
            let now =
                state.open.as_ref().and_then(|open| open.config.as_ref()).and_then(|config| config.get(key));
            let hint = KEYS.iter().find(|known| known.path == key).map_or("", |known| known.doc);
            vec![Reaction::Prompt(Prompt {
                title: key.to_owned(),
                initial: now.map(|value| value.to_string()).unwrap_or_default(),
                hint: hint.to_owned(),
                question: Question::from(TrainQuestion::Value(id, key)),
            })]
        }
        TrainQuestion::Start(_)
        | TrainQuestion::Settings
        | TrainQuestion::StopNow(_)
        | TrainQuestion::Value(..)
        | TrainQuestion::Restart(_) => Vec::new(),
    }
}
