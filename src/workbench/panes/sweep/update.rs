//! How the sweep pane reacts.

use luthier_core::sweep::{Place, Trial, TrialState};

use super::command::SweepCommand;
use super::effect::SweepEffect;
use super::event::SweepEvent;
use super::question::SweepQuestion;
use super::state::{Snapshot, SweepState};
use crate::app::{
    Confirm, Entry, Input, Link, Message, Pick, PickItem, Prompt, Question, Reaction, Reply, Severity,
};
use crate::command::{Command, ListCommand, ViewCommand};
use crate::panes::{PaneCommand, PaneId, train};

/// Reacts to one input. No IO, no clock.
pub(super) fn update(state: &mut SweepState, input: Input) -> Vec<Reaction> {
    match input {
        Input::Started | Input::Command(Command::View(ViewCommand::Refresh)) => {
            vec![Reaction::from(SweepEffect::Watch)]
        }
        Input::Command(Command::Pane(PaneCommand::Sweep(command))) => own(state, command),
        Input::Command(Command::List(ListCommand::Open)) => open(state),
        Input::Command(Command::List(command)) => {
            if state.list.apply(command) {
                Vec::new()
            } else {
                vec![Reaction::Unchanged]
            }
        }
        Input::Command(Command::View(ViewCommand::Copy)) => {
            state.selected().map_or_else(Vec::new, |trial| vec![Reaction::Copy(trial.label())])
        }
        Input::Edited(path) if state.editing.as_ref() == Some(&path) => {
            state.editing = None;
            vec![Reaction::from(SweepEffect::Look(path))]
        }
        Input::Link(Link::Trial(id)) => {
            state.wanted = Some(id);
            select_wanted(state);
            Vec::new()
        }
        _ => vec![Reaction::Unchanged],
    }
}

/// Reacts to the reply to a question that the pane asked in a box.
pub(super) fn replied(question: SweepQuestion, reply: Reply) -> Vec<Reaction> {
    match (question, reply) {
        (question, Reply::Yes) => confirmed(question),
        (question, Reply::Text(text)) => entered(&question, text.trim()),
        (SweepQuestion::File(files), Reply::Choice(index)) => match files.into_iter().nth(index) {
            Some(file) => vec![Reaction::from(SweepEffect::Look(file))],
            None => vec![Reaction::Prompt(Prompt {
                title: "Name of the new sweep file".to_owned(),
                initial: "sweep.toml".to_owned(),
                hint: "written into the project and opened in your editor".to_owned(),
                question: Question::from(SweepQuestion::Name),
            })],
        },
        (_, Reply::Choice(_)) => vec![Reaction::Unchanged],
    }
}

fn own(state: &mut SweepState, command: SweepCommand) -> Vec<Reaction> {
    match command {
        SweepCommand::New => return vec![Reaction::from(SweepEffect::Files)],
        SweepCommand::Add => return vec![add(String::new())],
        SweepCommand::Order => {
            let selected = state.selected().map(|trial| trial.id);
            state.by_result = !state.by_result;
            reselect(state, selected);
            return Vec::new();
        }
        _ => {}
    }
    let Some(trial) = state.selected() else { return Vec::new() };
    let id = trial.id;
    match command {
        SweepCommand::MoveUp => vec![Reaction::from(SweepEffect::Move(id, Place::Up))],
        SweepCommand::MoveDown => vec![Reaction::from(SweepEffect::Move(id, Place::Down))],
        SweepCommand::MoveFirst => vec![Reaction::from(SweepEffect::Move(id, Place::Top))],
        SweepCommand::Hold if trial.state == TrialState::Held => {
            vec![Reaction::from(SweepEffect::Release(id))]
        }
        SweepCommand::Hold => vec![Reaction::from(SweepEffect::Hold(id))],
        SweepCommand::Retry => vec![Reaction::from(SweepEffect::Retry(id))],
        SweepCommand::Cancel => vec![cancel(trial)],
        SweepCommand::Clone => {
            let settings: Vec<String> =
                trial.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
            vec![add(settings.join(" "))]
        }
        SweepCommand::Promote => promote(state),
        SweepCommand::New | SweepCommand::Add | SweepCommand::Order => Vec::new(),
    }
}

fn add(initial: String) -> Reaction {
    Reaction::Prompt(Prompt {
        title: "Queue one run with these settings".to_owned(),
        initial,
        hint: "key=value, separated by spaces: train.learning_rate=1e-4 method.rank=8".to_owned(),
        question: Question::from(SweepQuestion::Add),
    })
}

fn cancel(trial: &Trial) -> Reaction {
    let lost = match trial.state {
        TrialState::Running => "Its run writes a checkpoint and its result, and stops.",
        _ => "It has not started: nothing is lost, and `r` queues it again.",
    };
    Reaction::Confirm(Confirm {
        title: format!("Cancel trial {}?", trial.id),
        lines: vec![trial.label(), lost.to_owned()],
        yes: "Cancel it".to_owned(),
        question: Question::from(SweepQuestion::Cancel(trial.id)),
    })
}

fn promote(state: &SweepState) -> Vec<Reaction> {
    let Some(best) = state.sweep().and_then(|sweep| state.best_of(sweep)) else { return Vec::new() };
    let mut lines: Vec<String> =
        best.settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    lines.push("Comments and other settings in the file are kept.".to_owned());
    vec![Reaction::Confirm(Confirm {
        title: format!("Write the settings of trial {} into luthier.toml?", best.id),
        lines,
        yes: "Write".to_owned(),
        question: Question::from(SweepQuestion::Promote(best.settings.clone())),
    })]
}

fn open(state: &SweepState) -> Vec<Reaction> {
    match state.selected() {
        Some(Trial { run: Some(run), .. }) => {
            vec![Reaction::Follow(Link::Run(run.clone())), Reaction::Show(PaneId::Train)]
        }
        Some(trial) => {
            vec![Reaction::Flash(Severity::Note, format!("trial {} has no run yet", trial.id))]
        }
        None => vec![Reaction::Unchanged],
    }
}

pub(super) fn answered(state: &mut SweepState, answer: SweepEvent) -> Vec<Reaction> {
    match answer {
        SweepEvent::Queue(Ok(queue)) => {
            state.problem = None;
            replace(state, queue);
            Vec::new()
        }
        SweepEvent::Queue(Err(problem)) => {
            state.problem = Some(problem);
            Vec::new()
        }
        SweepEvent::Files(files) => {
            let name = |path: &std::path::PathBuf| {
                path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
            };
            let mut items: Vec<PickItem> = files
                .iter()
                .map(|path| PickItem { label: name(path), detail: "sweep file".to_owned() })
                .collect();
            items.push(PickItem {
                label: "new sweep file …".to_owned(),
                detail: "begins with an example".to_owned(),
            });
            vec![Reaction::Pick(Pick {
                title: "Queue the trials of which sweep?".to_owned(),
                items,
                selected: 0,
                question: Question::from(SweepQuestion::File(files)),
            })]
        }
        SweepEvent::Created(Ok(path)) => {
            state.editing = Some(path.clone());
            vec![entry(SweepQuestion::Name, Entry::Taken), Reaction::Edit(path, None)]
        }
        SweepEvent::Created(Err(problem)) => {
            vec![refused(SweepQuestion::Name, "It was not written", problem)]
        }
        SweepEvent::Added(Ok(said)) => vec![
            entry(SweepQuestion::Add, Entry::Taken),
            Reaction::from(SweepEffect::Watch),
            Reaction::Flash(Severity::Success, said),
        ],
        SweepEvent::Added(Err(problem)) => vec![refused(SweepQuestion::Add, "Nothing was queued", problem)],
        SweepEvent::Looked(path, Ok((title, lines))) => vec![Reaction::Confirm(Confirm {
            title,
            lines,
            yes: "Queue them".to_owned(),
            question: Question::from(SweepQuestion::Start(path)),
        })],
        SweepEvent::Looked(_, Err(problem)) => vec![failure("The sweep file cannot be used", problem)],
        SweepEvent::Done(Ok(said)) => {
            vec![Reaction::from(SweepEffect::Watch), Reaction::Flash(Severity::Success, said)]
        }
        SweepEvent::Done(Err(problem)) if problem.contains('\n') => vec![failure("Not done", problem)],
        SweepEvent::Done(Err(problem)) => vec![Reaction::Flash(Severity::Error, problem)],
    }
}

fn entry(question: SweepQuestion, entry: Entry) -> Reaction {
    Reaction::Entry(Question::from(question), entry)
}

fn refused(question: SweepQuestion, title: &str, text: String) -> Reaction {
    let reason = Message { title: title.to_owned(), text, severity: Severity::Error };
    entry(question, Entry::Refused(reason))
}

fn failure(title: &str, text: String) -> Reaction {
    Reaction::Message(Message { title: title.to_owned(), text, severity: Severity::Error })
}

fn replace(state: &mut SweepState, queue: Snapshot) {
    let selected = state.selected().map(|trial| trial.id);
    state.queue = Some(queue);
    reselect(state, selected);
    select_wanted(state);
}

fn reselect(state: &mut SweepState, selected: Option<i64>) {
    let shown = state.shown();
    let position = shown.iter().position(|trial| Some(trial.id) == selected);
    let length = shown.len();
    state.list.changed(length, position);
}

fn select_wanted(state: &mut SweepState) {
    let Some(wanted) = state.wanted else { return };
    let Some(position) = state.shown().iter().position(|trial| trial.id == wanted) else { return };
    state.list.select(position);
    state.wanted = None;
}

fn confirmed(question: SweepQuestion) -> Vec<Reaction> {
    match question {
        SweepQuestion::Start(file) => vec![Reaction::from(SweepEffect::Start(file))],
        SweepQuestion::Cancel(id) => vec![Reaction::from(SweepEffect::Cancel(id))],
        SweepQuestion::Promote(settings) => vec![Reaction::from(SweepEffect::Promote(settings))],
        SweepQuestion::File(_) | SweepQuestion::Name | SweepQuestion::Add => Vec::new(),
    }
}

fn entered(question: &SweepQuestion, text: &str) -> Vec<Reaction> {
    match question {
        SweepQuestion::Name => {
            vec![
                Reaction::from(SweepEffect::Create(text.to_owned())),
                entry(SweepQuestion::Name, Entry::Checked),
            ]
        }
        SweepQuestion::Add => {
            vec![
                Reaction::from(SweepEffect::Add(train::settings_of(text))),
                entry(SweepQuestion::Add, Entry::Checked),
            ]
        }
        SweepQuestion::File(_)
        | SweepQuestion::Start(_)
        | SweepQuestion::Cancel(_)
        | SweepQuestion::Promote(_) => Vec::new(),
    }
}
