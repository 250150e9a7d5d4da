//! How the sweep pane reacts.

use luthier_core::sweep::{Place, Trial, TrialState};

use super::command::Command;
use super::effect::{Effect, Event, Question, Snapshot};
use super::state::State;
use crate::app::{
    Confirm, Context, Entry, Input, Link, Message, Pick, PickItem, Prompt, Question as AnyQuestion, Reaction,
    Severity,
};
use crate::command::{Command as Any, ListCommand, ViewCommand};
use crate::panes::{PaneId, train};

/// Reacts to one input. Pure but for the state: no IO, no clock.
pub fn update(state: &mut State, _context: &Context, input: Input<Event, Question>) -> Vec<Reaction> {
    match input {
        Input::Started | Input::Command(Any::View(ViewCommand::Refresh)) => {
            vec![Reaction::Sweep(Effect::Watch)]
        }
        Input::Command(Any::Sweep(command)) => own(state, command),
        Input::Command(Any::List(ListCommand::Open)) => open(state),
        Input::Command(Any::List(command)) => {
            if state.list.apply(command) {
                Vec::new()
            } else {
                vec![Reaction::Unchanged]
            }
        }
        Input::Command(Any::View(ViewCommand::Copy)) => {
            state.selected().map_or_else(Vec::new, |trial| vec![Reaction::Copy(trial.label())])
        }
        Input::Answer(answer) => answered(state, answer),
        Input::Confirmed(question) => confirmed(question),
        Input::Entered(question, text) => entered(&question, text.trim()),
        Input::Picked(Question::File(files), index) => match files.into_iter().nth(index) {
            Some(file) => vec![Reaction::Sweep(Effect::Look(file))],
            None => vec![Reaction::Prompt(Prompt {
                title: "Name of the new sweep file".to_owned(),
                initial: "sweep.toml".to_owned(),
                hint: "written into the project and opened in your editor".to_owned(),
                question: AnyQuestion::Sweep(Question::Name),
            })],
        },
        Input::Edited(path) if state.editing.as_ref() == Some(&path) => {
            state.editing = None;
            vec![Reaction::Sweep(Effect::Look(path))]
        }
        Input::Link(Link::Trial(id)) => {
            state.wanted = Some(id);
            select_wanted(state);
            Vec::new()
        }
        _ => vec![Reaction::Unchanged],
    }
}

fn own(state: &mut State, command: Command) -> Vec<Reaction> {
    match command {
        Command::New => return vec![Reaction::Sweep(Effect::Files)],
        Command::Add => return vec![add(String::new())],
        Command::Order => {
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
        Command::MoveUp => vec![Reaction::Sweep(Effect::Move(id, Place::Up))],
        Command::MoveDown => vec![Reaction::Sweep(Effect::Move(id, Place::Down))],
        Command::MoveFirst => vec![Reaction::Sweep(Effect::Move(id, Place::Top))],
        Command::Hold if trial.state == TrialState::Held => vec![Reaction::Sweep(Effect::Release(id))],
        Command::Hold => vec![Reaction::Sweep(Effect::Hold(id))],
        Command::Retry => vec![Reaction::Sweep(Effect::Retry(id))],
        Command::Cancel => vec![cancel(trial)],
        Command::Clone => {
            let settings: Vec<String> =
                trial.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
            vec![add(settings.join(" "))]
        }
        Command::Promote => promote(state),
        Command::New | Command::Add | Command::Order => Vec::new(),
    }
}

fn add(initial: String) -> Reaction {
    Reaction::Prompt(Prompt {
        title: "Queue one run with these settings".to_owned(),
        initial,
        hint: "key=value, separated by spaces: train.learning_rate=1e-4 method.rank=8".to_owned(),
        question: AnyQuestion::Sweep(Question::Add),
    })
}

fn cancel(trial: &Trial) -> Reaction {
    let lost = match trial.state {
        TrialState::Running => "Its run saves what it has and stops.",
        _ => "It has not started: nothing is lost, and `r` queues it again.",
    };
    Reaction::Confirm(Confirm {
        title: format!("Cancel trial {}?", trial.id),
        lines: vec![trial.label(), lost.to_owned()],
        yes: "Cancel it".to_owned(),
        question: AnyQuestion::Sweep(Question::Cancel(trial.id)),
    })
}

fn promote(state: &State) -> Vec<Reaction> {
    let Some(best) = state.sweep().and_then(|sweep| state.best_of(sweep)) else { return Vec::new() };
    let mut lines: Vec<String> =
        best.settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    lines.push("Comments and everything else in the file stay as they are.".to_owned());
    vec![Reaction::Confirm(Confirm {
        title: format!("Write the settings of trial {} into luthier.toml?", best.id),
        lines,
        yes: "Write".to_owned(),
        question: AnyQuestion::Sweep(Question::Promote(best.settings.clone())),
    })]
}

fn open(state: &State) -> Vec<Reaction> {
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

fn answered(state: &mut State, answer: Event) -> Vec<Reaction> {
    match answer {
        Event::Queue(Ok(queue)) => {
            state.problem = None;
            replace(state, queue);
            Vec::new()
        }
        Event::Queue(Err(problem)) => {
            state.problem = Some(problem);
            Vec::new()
        }
        Event::Files(files) => {
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
                question: AnyQuestion::Sweep(Question::File(files)),
            })]
        }
        Event::Created(Ok(path)) => {
            state.editing = Some(path.clone());
            vec![entry(Question::Name, Entry::Taken), Reaction::Edit(path, None)]
        }
        Event::Created(Err(problem)) => vec![refused(Question::Name, "It was not written", problem)],
        Event::Added(Ok(said)) => vec![
            entry(Question::Add, Entry::Taken),
            Reaction::Sweep(Effect::Watch),
            Reaction::Flash(Severity::Success, said),
        ],
        Event::Added(Err(problem)) => vec![refused(Question::Add, "Nothing was queued", problem)],
        Event::Looked(path, Ok((title, lines))) => vec![Reaction::Confirm(Confirm {
            title,
            lines,
            yes: "Queue them".to_owned(),
            question: AnyQuestion::Sweep(Question::Start(path)),
        })],
        Event::Looked(_, Err(problem)) => vec![failure("The sweep file cannot be used", problem)],
        Event::Done(Ok(said)) => {
            vec![Reaction::Sweep(Effect::Watch), Reaction::Flash(Severity::Success, said)]
        }
        Event::Done(Err(problem)) if problem.contains('\n') => vec![failure("Not done", problem)],
        Event::Done(Err(problem)) => vec![Reaction::Flash(Severity::Error, problem)],
    }
}

fn entry(question: Question, entry: Entry) -> Reaction {
    Reaction::Entry(AnyQuestion::Sweep(question), entry)
}

fn refused(question: Question, title: &str, text: String) -> Reaction {
    let reason = Message { title: title.to_owned(), text, severity: Severity::Error };
    entry(question, Entry::Refused(reason))
}

fn failure(title: &str, text: String) -> Reaction {
    Reaction::Message(Message { title: title.to_owned(), text, severity: Severity::Error })
}

fn replace(state: &mut State, queue: Snapshot) {
    let selected = state.selected().map(|trial| trial.id);
    state.queue = Some(queue);
    reselect(state, selected);
    select_wanted(state);
}

fn reselect(state: &mut State, selected: Option<i64>) {
    let shown = state.shown();
    let position = shown.iter().position(|trial| Some(trial.id) == selected);
    let length = shown.len();
    state.list.changed(length, position);
}

fn select_wanted(state: &mut State) {
    let Some(wanted) = state.wanted else { return };
    let Some(position) = state.shown().iter().position(|trial| trial.id == wanted) else { return };
    state.list.select(position);
    state.wanted = None;
}

fn confirmed(question: Question) -> Vec<Reaction> {
    match question {
        Question::Start(file) => vec![Reaction::Sweep(Effect::Start(file))],
        Question::Cancel(id) => vec![Reaction::Sweep(Effect::Cancel(id))],
        Question::Promote(settings) => vec![Reaction::Sweep(Effect::Promote(settings))],
        Question::File(_) | Question::Name | Question::Add => Vec::new(),
    }
}

fn entered(question: &Question, text: &str) -> Vec<Reaction> {
    match question {
        Question::Name => {
            vec![Reaction::Sweep(Effect::Create(text.to_owned())), entry(Question::Name, Entry::Checked)]
        }
        Question::Add => {
            vec![Reaction::Sweep(Effect::Add(train::settings_of(text))), entry(Question::Add, Entry::Checked)]
        }
        Question::File(_) | Question::Start(_) | Question::Cancel(_) | Question::Promote(_) => Vec::new(),
    }
}
