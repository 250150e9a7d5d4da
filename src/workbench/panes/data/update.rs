//! How the data pane reacts.

use super::command::Command;
use super::effect::{Effect, Event, Filter, Question};
use super::state::State;
use crate::app::{
    Confirm, Context, Input, Link, Pick, PickItem, Question as AnyQuestion, Reaction, Severity,
};
use crate::command::{Command as Any, InputCommand, ListCommand, ViewCommand};
use crate::panes::PaneId;
use crate::widgets::TextLine;

/// Reacts to one input. Pure but for the state: no IO, no clock.
pub fn update(state: &mut State, context: &Context, input: Input<Event, Question>) -> Vec<Reaction> {
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
        Input::Answer(answer) => answered(state, answer),
        Input::Confirmed(Question::Quarantine(hash)) => vec![Reaction::Data(Effect::Quarantine(hash))],
        Input::Picked(Question::Filter(filters), index) => {
            if let Some(filter) = filters.into_iter().nth(index) {
                state.filter = filter;
                state.asked = None;
            }
            relisted(state)
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

fn load(state: &mut State) -> Vec<Reaction> {
    state.checking = Some((0, 0));
    vec![Reaction::Data(Effect::Load)]
}

fn run(state: &mut State, context: &Context, command: Any) -> Vec<Reaction> {
    match command {
        Any::Data(command) => own(state, context, command),
        Any::Input(command) => {
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
        Any::List(ListCommand::Open) => {
            state.reading = state.selected().is_some();
            Vec::new()
        }
        Any::List(command) if state.reading => {
            if state.scroll.apply(command) {
                Vec::new()
            } else {
                vec![Reaction::Unchanged]
            }
        }
        Any::List(command) => {
            if state.list.apply(command) {
                selected(state)
            } else {
                vec![Reaction::Unchanged]
            }
        }
        Any::View(ViewCommand::Search) => {
            state.reading = false;
            state.typing = Some(TextLine::new(&state.search));
            Vec::new()
        }
        Any::View(ViewCommand::Back) => {
            if state.reading {
                state.reading = false;
                return Vec::new();
            }
            if state.asked.take().is_none() && std::mem::take(&mut state.search).is_empty() {
                state.filter = Filter::All;
            }
            relisted(state)
        }
        Any::View(ViewCommand::Refresh) => load(state),
        Any::View(ViewCommand::Copy) => state.selected().map_or_else(Vec::new, |row| {
            let text = format!("row {} is on the clipboard", row.index);
            vec![Reaction::Copy(row.example.plain_text()), Reaction::Flash(Severity::Note, text)]
        }),
        _ => vec![Reaction::Unchanged],
    }
}

fn typed(state: &mut State) -> Vec<Reaction> {
    if let Some(line) = &state.typing {
        line.value().clone_into(&mut state.search);
    }
    relisted(state)
}

fn own(state: &mut State, context: &Context, command: Command) -> Vec<Reaction> {
    match command {
        Command::Form => {
            state.form = state.form.next();
            state.scroll.reset();
            Vec::new()
        }
        Command::Filter => vec![filters(state)],
        Command::Quarantine => quarantine(state),
        Command::Edit => state.selected().map_or_else(Vec::new, |row| {
            let file = context.project.join(&row.origin.file);
            vec![Reaction::Edit(file, Some(row.origin.line))]
        }),
        Command::Random => {
            // Any number that changes from press to press will do: nothing depends on it.
            let milliseconds = context.now.wall.as_millisecond().unsigned_abs();
            let length = state.list.length().max(1) as u64;
            let position = milliseconds.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
            state.list.select((position % length) as usize);
            selected(state)
        }
        Command::Check => load(state),
        Command::NewRun => vec![Reaction::Show(PaneId::Train), Reaction::Follow(Link::NewRun)],
    }
}

fn filters(state: &State) -> Reaction {
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
        question: AnyQuestion::Data(Question::Filter(filters)),
    })
}

fn quarantine(state: &State) -> Vec<Reaction> {
    let Some(row) = state.selected() else { return Vec::new() };
    if state.filter == Filter::Quarantined {
        return vec![Reaction::Data(Effect::Quarantine(row.hash()))];
    }
    vec![Reaction::Confirm(Confirm {
        title: format!("Keep row {} out of every run?", row.index),
        lines: vec![
            crate::widgets::text::fit(&State::headline(row), 60),
            "Its file stays as it is; `f` lists the quarantine, `x` there lets it back in.".to_owned(),
        ],
        yes: "Quarantine".to_owned(),
        question: AnyQuestion::Data(Question::Quarantine(row.hash())),
    })]
}

fn relisted(state: &mut State) -> Vec<Reaction> {
    state.relist();
    selected(state)
}

/// Asks for the selected row as the model sees it, unless it is there.
fn selected(state: &mut State) -> Vec<Reaction> {
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
    vec![Reaction::Data(Effect::Render(index))]
}

fn answered(state: &mut State, answer: Event) -> Vec<Reaction> {
    match answer {
        Event::Rows(Ok((rows, quarantined))) => {
            state.problem = None;
            state.report = None;
            state.rendered = None;
            state.rows = Some(rows);
            state.quarantined = quarantined;
            relisted(state)
        }
        Event::Rows(Err(problem)) | Event::Checked(Err(problem)) => {
            state.checking = None;
            state.problem = Some(problem);
            Vec::new()
        }
        Event::Checking(done, total) => {
            state.checking = Some((done, total));
            Vec::new()
        }
        Event::Checked(Ok(report)) => {
            state.checking = None;
            state.report = Some(report);
            relisted(state)
        }
        Event::Rendered(rendered) => {
            if state.selected().is_some_and(|row| row.index == rendered.row) {
                state.rendered = Some(*rendered);
            }
            Vec::new()
        }
        Event::Quarantined(Ok(said)) => {
            let mut reactions = load(state);
            reactions.push(Reaction::Flash(Severity::Success, said));
            reactions
        }
        Event::Quarantined(Err(problem)) => vec![Reaction::Flash(Severity::Error, problem)],
    }
}
