//! How the data pane reacts.

use luthier_core::random;

use super::command::DataCommand;
use super::effect::DataEffect;
use super::event::DataEvent;
use super::question::DataQuestion;
use super::state::{DataState, Filter};
use crate::app::{Confirm, Context, Input, Link, Pick, PickItem, Question, Reaction, Reply, Severity};
use crate::command::{Command, InputCommand, ListCommand, ViewCommand};
use crate::panes::{PaneCommand, PaneId};
use crate::widgets::TextLine;

/// Reacts to one input. No IO, no clock.
pub(super) fn update(state: &mut DataState, context: &Context, input: Input) -> Vec<Reaction> {
    match input {
        Input::Started | Input::ConfigChanged => {
            if context.config.is_none() {
                return vec![Reaction::Unchanged];
            }
            load(state)
        }
        Input::Command(command) => run(state, context, command),
        Input::Key(key) => {
            if let Some(line) = &mut state.typing {
                line.key(key);
            }
            typed(state)
        }
        Input::Paste(text) => {
            if let Some(line) = &mut state.typing {
                line.paste(&text);
            }
            typed(state)
        }
        Input::Edited(_) => load(state),
        Input::Link(Link::Rows(what, rows)) => {
            state.filter = Filter::All;
            state.search.clear();
            state.asked = Some((what, rows));
            relisted(state)
        }
        _ => vec![Reaction::Unchanged],
    }
}

/// Reacts to the reply to a question that the pane asked in a box.
pub(super) fn replied(state: &mut DataState, question: DataQuestion, reply: Reply) -> Vec<Reaction> {
    match (question, reply) {
        (DataQuestion::Quarantine(hash), Reply::Yes) => vec![Reaction::from(DataEffect::Quarantine(hash))],
        (DataQuestion::Filter(filters), Reply::Choice(index)) => {
            if let Some(filter) = filters.into_iter().nth(index) {
                state.filter = filter;
                state.asked = None;
            }
            relisted(state)
        }
        _ => vec![Reaction::Unchanged],
    }
}

fn load(state: &mut DataState) -> Vec<Reaction> {
    state.checking = Some((0, 0));
    vec![Reaction::from(DataEffect::Load)]
}

fn run(state: &mut DataState, context: &Context, command: Command) -> Vec<Reaction> {
    match command {
        Command::Pane(PaneCommand::Data(command)) => own(state, context, command),
        Command::Input(command) => {
            match command {
                InputCommand::Accept => state.typing = None,
                InputCommand::Cancel => {
                    state.typing = None;
                    state.search.clear();
                    return relisted(state);
                }
                _ => {
                    if let Some(line) = &mut state.typing {
                        line.apply(command);
                    }
                }
            }
            typed(state)
        }
        Command::List(ListCommand::Open) => {
            state.reading = state.selected().is_some();
            Vec::new()
        }
        Command::List(command) if state.reading => {
            if state.scroll.apply(command) {
                Vec::new()
            } else {
                vec![Reaction::Unchanged]
            }
        }
        Command::List(command) => {
            if state.list.apply(command) {
                selected(state)
            } else {
                vec![Reaction::Unchanged]
            }
        }
        Command::View(ViewCommand::Search) => {
            state.reading = false;
            state.typing = Some(TextLine::new(&state.search));
            Vec::new()
        }
        Command::View(ViewCommand::Back) => {
            if state.reading {
                state.reading = false;
                return Vec::new();
            }
            if state.asked.take().is_none() && std::mem::take(&mut state.search).is_empty() {
                state.filter = Filter::All;
            }
            relisted(state)
        }
        Command::View(ViewCommand::Refresh) => load(state),
        Command::View(ViewCommand::Copy) => state.selected().map_or_else(Vec::new, |row| {
            let text = format!("row {} is on the clipboard", row.index);
            vec![Reaction::Copy(row.example.plain_text()), Reaction::Flash(Severity::Note, text)]
        }),
        _ => vec![Reaction::Unchanged],
    }
}

fn typed(state: &mut DataState) -> Vec<Reaction> {
    if let Some(line) = &state.typing {
        line.value().clone_into(&mut state.search);
    }
    relisted(state)
}

fn own(state: &mut DataState, context: &Context, command: DataCommand) -> Vec<Reaction> {
    match command {
        DataCommand::Form => {
            state.form = state.form.next();
            state.scroll.reset();
            Vec::new()
        }
        DataCommand::Filter => vec![filters(state)],
        DataCommand::Quarantine => quarantine(state),
        DataCommand::Edit => state.selected().map_or_else(Vec::new, |row| {
            let file = context.project.join(&row.origin.file);
            vec![Reaction::Edit(file, Some(row.origin.line))]
        }),
        DataCommand::Random => {
            // Any number that changes between presses will do: nothing depends on it.
            let milliseconds = context.now.wall.as_millisecond().unsigned_abs();
            let length = state.list.length().max(1) as u64;
            let position = random::mix(milliseconds);
            state.list.select((position % length) as usize);
            selected(state)
        }
        DataCommand::Check => load(state),
        DataCommand::NewRun => vec![Reaction::Show(PaneId::Train), Reaction::Follow(Link::NewRun)],
    }
}

fn filters(state: &DataState) -> Reaction {
    let rows = state.rows.as_ref().map_or(0, |rows| rows.len());
    let count = |filter: &Filter| match filter {
        Filter::All => rows,
        Filter::Quarantined => state.quarantined.len(),
        Filter::Train => state.report.as_ref().map_or(0, |report| report.train_rows),
        Filter::Eval => state.report.as_ref().map_or(0, |report| report.eval_rows),
        Filter::Problem(_) => 0,
    };
    let mut filters = vec![Filter::All, Filter::Train, Filter::Eval];
    let labels = ["all rows", "training rows", "held-out rows"];
    let mut items: Vec<PickItem> = labels
        .iter()
        .zip(&filters)
        .map(|(label, filter)| PickItem { label: (*label).to_owned(), detail: count(filter).to_string() })
        .collect();
    for group in state.groups() {
        items.push(PickItem { label: group.kind.label().to_owned(), detail: group.count.to_string() });
        filters.push(Filter::Problem(group.kind));
    }
    items.push(PickItem { label: "in quarantine".to_owned(), detail: state.quarantined.len().to_string() });
    filters.push(Filter::Quarantined);
    let selected = filters.iter().position(|filter| *filter == state.filter).unwrap_or(0);
    Reaction::Pick(Pick {
        title: "List which rows?".to_owned(),
        items,
        selected,
        question: Question::from(DataQuestion::Filter(filters)),
    })
}

fn quarantine(state: &DataState) -> Vec<Reaction> {
    let Some(row) = state.selected() else { return Vec::new() };
    if state.filter == Filter::Quarantined {
        return vec![Reaction::from(DataEffect::Quarantine(row.hash()))];
    }
    vec![Reaction::Confirm(Confirm {
        title: format!("Keep row {} out of every run?", row.index),
        lines: vec![
            crate::widgets::text::fit(&DataState::headline(row), 60),
            "Its file stays as it is; `f` lists the quarantine, `x` there lets it back in.".to_owned(),
        ],
        yes: "Quarantine".to_owned(),
        question: Question::from(DataQuestion::Quarantine(row.hash())),
    })]
}

fn relisted(state: &mut DataState) -> Vec<Reaction> {
    state.relist();
    selected(state)
}

/// Requests the selected row as the model sees it, unless it is there already.
fn selected(state: &mut DataState) -> Vec<Reaction> {
    let Some(row) = state.selected() else { return Vec::new() };
    let index = row.index;
    if state.filter == Filter::Quarantined {
        state.rendered = None;
        return Vec::new();
    }
    if state.rendered.as_ref().is_some_and(|rendered| rendered.row == index) {
        return Vec::new();
    }
    state.scroll.reset();
    vec![Reaction::from(DataEffect::Render(index))]
}

pub(super) fn answered(state: &mut DataState, answer: DataEvent) -> Vec<Reaction> {
    match answer {
        DataEvent::Rows(Ok((rows, quarantined))) => {
            state.problem = None;
            state.report = None;
            state.rendered = None;
            state.rows = Some(rows);
            state.quarantined = quarantined;
            relisted(state)
        }
        DataEvent::Rows(Err(problem)) | DataEvent::Checked(Err(problem)) => {
            state.checking = None;
            state.problem = Some(problem);
            Vec::new()
        }
        DataEvent::Checking(done, total) => {
            state.checking = Some((done, total));
            Vec::new()
        }
        DataEvent::Checked(Ok(report)) => {
            state.checking = None;
            state.report = Some(report);
            relisted(state)
        }
        DataEvent::Rendered(rendered) => {
            if state.selected().is_some_and(|row| row.index == rendered.row) {
                state.rendered = Some(*rendered);
            }
            Vec::new()
        }
        DataEvent::Quarantined(Ok(said)) => {
            let mut reactions = load(state);
            reactions.push(Reaction::Flash(Severity::Success, said));
            reactions
        }
        DataEvent::Quarantined(Err(problem)) => vec![Reaction::Flash(Severity::Error, problem)],
    }
}
