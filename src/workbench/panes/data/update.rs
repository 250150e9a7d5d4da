//! How the data pane reacts.

use luthier_core::data::{RowHead, Split};
use luthier_core::{random, units};

use super::command::DataCommand;
use super::compare::Pair;
use super::effect::DataEffect;
use super::event::DataEvent;
use super::lengths::bar;
use super::listing::{Field, Filter, Order, share};
use super::pool::{Chosen, Pool};
use super::question::DataQuestion;
use super::state::DataState;
use crate::app::{
    Confirm, Context, Input, Link, Message, Pick, PickItem, Question, Reaction, Reply, Severity,
};
use crate::command::{Command, InputCommand, ListCommand, ViewCommand};
use crate::panes::{PaneCommand, PaneId};
use crate::project::{self, SplitChoice};
use crate::widgets::TextLine;
use crate::widgets::text::fit;

/// Most values of a field that are offered.
const MOST_VALUES: usize = 1000;

/// Columns of the bar of the most frequent value.
const BAR: usize = 16;

/// Rows shown when several are asked about.
const EXAMPLES: usize = 3;

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
            typed(state, context)
        }
        Input::Paste(text) => {
            if let Some(line) = &mut state.typing {
                line.paste(&text);
            }
            typed(state, context)
        }
        Input::Edited(path) => match state.drafts.iter().find(|draft| draft.path == path).cloned() {
            Some(draft) => vec![DataEffect::TakeDraft(draft).into()],
            None => load(state),
        },
        Input::Link(Link::Rows(what, rows)) => {
            state.search.clear();
            state.list_only(Filter::All);
            state.asked = Some((what, rows));
            relisted(state, context)
        }
        _ => vec![Reaction::Unchanged],
    }
}

/// Reacts to the reply to a question that the pane asked in a box.
pub(super) fn replied(
    state: &mut DataState,
    context: &Context,
    question: DataQuestion,
    reply: Reply,
) -> Vec<Reaction> {
    match (question, reply) {
        (DataQuestion::Quarantine(rows, inside), Reply::Yes) => {
            vec![Reaction::from(DataEffect::Quarantine(rows, inside))]
        }
        (DataQuestion::Filter(filters), Reply::Choice(index)) => match filters.into_iter().nth(index) {
            Some(filter) => list_only(state, context, filter),
            None => vec![Reaction::Unchanged],
        },
        (DataQuestion::Order, Reply::Choice(index)) => {
            state.order = Order::ALL.get(index).copied().unwrap_or_default();
            relisted(state, context)
        }
        (DataQuestion::Undo(pool, position), Reply::Yes) => vec![DataEffect::Undo(pool, position).into()],
        (DataQuestion::Split(choices), Reply::Choice(index)) => {
            let choice = choices.into_iter().nth(index).filter(|choice| !choice.is_current);
            choice.into_iter().map(|choice| DataEffect::SetSplit(choice).into()).collect()
        }
        (DataQuestion::Field(fields), Reply::Choice(index)) => match fields.into_iter().nth(index) {
            Some(field) => count(state, &field),
            None => vec![Reaction::Unchanged],
        },
        (DataQuestion::Value(field, values), Reply::Choice(index)) => match values.into_iter().nth(index) {
            Some(value) => {
                let search = state.list_value(field, value);
                listed(state, context, search)
            }
            None => vec![Reaction::Unchanged],
        },
        _ => vec![Reaction::Unchanged],
    }
}

fn list_only(state: &mut DataState, context: &Context, filter: Filter) -> Vec<Reaction> {
    let search = state.list_only(filter);
    listed(state, context, search)
}

fn load(state: &mut DataState) -> Vec<Reaction> {
    state.checking = Some((0, 0));
    state.reading_files = Some(0.0);
    // Rows that are on the screen stay there until all are read again.
    vec![Reaction::from(DataEffect::Load { early: state.rows.is_none() })]
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
                    return relisted(state, context);
                }
                _ => {
                    if let Some(line) = &mut state.typing {
                        line.apply(command);
                    }
                }
            }
            typed(state, context)
        }
        Command::List(ListCommand::Mark) => mark(state, context),
        Command::List(ListCommand::Open) => {
            state.reading = state.position().is_some();
            Vec::new()
        }
        Command::List(command) if state.reading || state.beside.is_some() => {
            if state.scroll.apply(command) {
                Vec::new()
            } else {
                vec![Reaction::Unchanged]
            }
        }
        Command::List(command) => {
            if state.list.apply(command) {
                selected(state, context)
            } else {
                vec![Reaction::Unchanged]
            }
        }
        Command::View(ViewCommand::Search) => {
            state.reading = false;
            state.beside = None;
            state.typing = Some(TextLine::new(&state.search));
            Vec::new()
        }
        Command::View(ViewCommand::Back) => {
            if state.beside.take().is_some() {
                state.scroll.reset();
                return Vec::new();
            }
            if std::mem::take(&mut state.reading) {
                return Vec::new();
            }
            if !state.marked.is_empty() {
                state.marked.clear();
                return Vec::new();
            }
            if state.asked.take().is_none() && std::mem::take(&mut state.search).is_empty() {
                return list_only(state, context, Filter::All);
            }
            relisted(state, context)
        }
        Command::View(ViewCommand::Refresh) => load(state),
        Command::View(ViewCommand::Copy) => state.selected().map_or_else(Vec::new, |row| {
            let text = format!("row {} is on the clipboard", row.index);
            vec![Reaction::Copy(row.example.plain_text()), Reaction::Flash(Severity::Note, text)]
        }),
        _ => vec![Reaction::Unchanged],
    }
}

fn typed(state: &mut DataState, context: &Context) -> Vec<Reaction> {
    if let Some(line) = &state.typing {
        line.value().clone_into(&mut state.search);
    }
    let search = state.search_again();
    listed(state, context, search)
}

fn own(state: &mut DataState, context: &Context, command: DataCommand) -> Vec<Reaction> {
    match command {
        DataCommand::Form => {
            state.form = state.form.next();
            state.beside = None;
            state.scroll.reset();
            Vec::new()
        }
        DataCommand::Ids => {
            state.ids = !state.ids;
            Vec::new()
        }
        DataCommand::Filter => vec![filters(state)],
        DataCommand::Order => vec![orders(state)],
        DataCommand::Table => {
            state.rows.clone().map_or_else(Vec::new, |rows| vec![DataEffect::Fields(rows).into()])
        }
        DataCommand::Split => {
            let rows = state.rows.clone();
            rows.into_iter().map(|rows| DataEffect::Splits(rows, state.quarantined.clone()).into()).collect()
        }
        DataCommand::Findings => findings(state, context),
        DataCommand::Lengths => lengths(state, context),
        DataCommand::Compare => compare(state),
        DataCommand::Mark => mark(state, context),
        DataCommand::Quarantine => quarantine(state),
        DataCommand::QuarantineListed => state.all_listed().map_or_else(Vec::new, |listed| {
            vec![ask_quarantine(state, listed, "listed", state.filter != Filter::Quarantined)]
        }),
        DataCommand::Edit => edit(state),
        DataCommand::Undo => ask_undo(state),
        DataCommand::OpenFile => {
            let place = state.pool().and_then(|pool| Some(pool.origin(state.selected_head()?)));
            place.map_or_else(Vec::new, |origin| {
                vec![Reaction::Edit(context.project.join(origin.file), Some(origin.line))]
            })
        }
        DataCommand::Random => {
            // Any number that changes between presses will do: nothing depends on it.
            let milliseconds = context.now.wall.as_millisecond().unsigned_abs();
            let length = state.list.length().max(1) as u64;
            let position = random::mix(milliseconds);
            state.list.select((position % length) as usize);
            selected(state, context)
        }
        DataCommand::Check => load(state),
        DataCommand::NewRun => vec![Reaction::Show(PaneId::Train), Reaction::Follow(Link::NewRun)],
    }
}

fn filters(state: &DataState) -> Reaction {
    let rows = state.rows.as_ref().map_or(&[][..], |rows| rows.heads());
    let count = |of: fn(&RowHead) -> bool| rows.iter().filter(|row| of(row)).count();
    let train = count(|row| row.split == Split::Train);
    let mut choices =
        vec![(Filter::All, rows.len()), (Filter::Train, train), (Filter::Eval, rows.len() - train)];
    for group in state.groups() {
        if state.report.as_ref().is_some_and(|report| !report.rows_of(group.kind).is_empty()) {
            choices.push((Filter::Problem(group.kind), group.count));
        }
    }
    let some = [
        (Filter::Label(true), count(|row| row.label == Some(true))),
        (Filter::Label(false), count(|row| row.label == Some(false))),
        (Filter::SeveralReplies, count(|row| row.has_several_replies)),
        (Filter::Tools, count(|row| row.has_tools)),
        (Filter::Edited, count(RowHead::is_edited)),
        (Filter::Longest, rows.len().div_ceil(Filter::LONGEST)),
    ];
    choices.extend(some.into_iter().filter(|(_, count)| *count > 0));
    if let Filter::Value(..) = &state.filter {
        choices.push((state.filter.clone(), state.list.length()));
    }
    choices.push((Filter::Quarantined, state.quarantined.len()));
    let selected = choices.iter().position(|(filter, _)| *filter == state.filter).unwrap_or(0);
    let items = choices
        .iter()
        .map(|(filter, count)| PickItem { label: filter.title(), detail: share(*count, rows.len()) })
        .collect();
    Reaction::Pick(Pick {
        title: "List which rows?".to_owned(),
        items,
        selected,
        question: Question::from(DataQuestion::Filter(
            choices.into_iter().map(|(filter, _)| filter).collect(),
        )),
    })
}

fn orders(state: &DataState) -> Reaction {
    let items = Order::ALL.map(|order| PickItem { label: order.title().to_owned(), detail: String::new() });
    Reaction::Pick(Pick {
        title: "List in which order?".to_owned(),
        items: items.into(),
        selected: Order::ALL.iter().position(|order| *order == state.order).unwrap_or(0),
        question: Question::from(DataQuestion::Order),
    })
}

/// How many rows each way holds out, and how many of them share a prompt with rows that are trained on.
fn splits(choices: Vec<SplitChoice>) -> Reaction {
    let item = |choice: &SplitChoice| {
        let sizes = choice.sizes;
        let now = if choice.is_current { "  (now)" } else { "" };
        let held_out = units::counted(sizes.held_out, "row", "rows");
        let leak = match sizes.shared {
            _ if sizes.held_out == 0 => "no evaluation".to_owned(),
            0 => format!("no {} of them trained on", choice.together),
            shared => {
                format!(
                    "{} of them with a {} that is trained on",
                    units::count(shared as u64),
                    choice.together
                )
            }
        };
        PickItem { label: format!("{}{now}", choice.title), detail: format!("{held_out}, {leak}") }
    };
    Reaction::Pick(Pick {
        title: "Hold out which rows?".to_owned(),
        items: choices.iter().map(item).collect(),
        selected: choices.iter().position(|choice| choice.is_current).unwrap_or(0),
        question: Question::from(DataQuestion::Split(choices)),
    })
}

fn fields(fields: Vec<Field>) -> Reaction {
    let items = fields.iter().map(|field| PickItem { label: field.title(), detail: String::new() }).collect();
    Reaction::Pick(Pick {
        title: "Count the values of what?".to_owned(),
        items,
        selected: 0,
        question: Question::from(DataQuestion::Field(fields)),
    })
}

fn count(state: &mut DataState, field: &Field) -> Vec<Reaction> {
    let Some(rows) = state.rows.clone() else { return Vec::new() };
    state.count(field);
    vec![DataEffect::Values(rows, field.clone()).into()]
}

/// How often each value of a field occurs. The rows with the chosen one are listed.
fn table(state: &DataState, field: Field) -> Reaction {
    let rows = state.rows.as_ref().map_or(0, |rows| rows.len());
    let counts = state.table();
    let most = counts.first().map_or(0, |(_, rows)| rows.len());
    let title = format!("{} · {}", field.title(), units::counted(counts.len(), "value", "values"));
    let shown = || counts.iter().take(MOST_VALUES);
    let items = shown().map(|(value, with_it)| PickItem {
        label: value.clone(),
        detail: format!("{}  {}", share(with_it.len(), rows), bar(with_it.len(), most, BAR)),
    });
    Reaction::Pick(Pick {
        title,
        items: items.collect(),
        selected: 0,
        question: Question::from(DataQuestion::Value(
            field,
            shown().map(|(value, _)| value.clone()).collect(),
        )),
    })
}

fn findings(state: &DataState, context: &Context) -> Vec<Reaction> {
    let Some(report) = &state.report else { return Vec::new() };
    let allowed = context.config.as_ref().map_or(&[][..], |config| config.data.allow.as_slice());
    let text = project::described(report, allowed);
    vec![Reaction::Message(Message { title: "Findings".to_owned(), text, severity: Severity::Note })]
}

fn lengths(state: &DataState, context: &Context) -> Vec<Reaction> {
    let Some(report) = &state.report else { return Vec::new() };
    let text = super::lengths::text(report, context.config.as_deref(), state.sequences);
    vec![Reaction::Message(Message { title: "Lengths".to_owned(), text, severity: Severity::Note })]
}

fn compare(state: &mut DataState) -> Vec<Reaction> {
    state.scroll.reset();
    if state.beside.take().is_some() {
        return Vec::new();
    }
    let rows = state.position().zip(state.other());
    let pool = state.pool().cloned();
    let effect = rows.zip(pool).map(|((row, other), pool)| DataEffect::Compare(pool, [row, other]));
    effect.into_iter().map(Reaction::from).collect()
}

fn mark(state: &mut DataState, context: &Context) -> Vec<Reaction> {
    let Some(position) = state.position() else { return vec![Reaction::Unchanged] };
    if !state.marked.remove(&position) {
        state.marked.insert(position);
    }
    if state.list.apply(ListCommand::Down) { selected(state, context) } else { Vec::new() }
}

fn ask_undo(state: &DataState) -> Vec<Reaction> {
    let (Some(pool), Some(position), Some(head)) =
        (state.pool().cloned(), state.position(), state.selected_head())
    else {
        return Vec::new();
    };
    let lines =
        vec![fit(&state.line_of(position), 60), "What was edited is removed from edits.jsonl.".to_owned()];
    vec![Reaction::Confirm(Confirm {
        title: format!("Let row {} be as it is in its file?", head.index),
        lines,
        yes: "Undo the edit".to_owned(),
        question: Question::from(DataQuestion::Undo(pool, position)),
    })]
}

/// Opens the row in the editor; what was refused before is opened again.
fn edit(state: &DataState) -> Vec<Reaction> {
    let Some(head) = state.selected_head() else { return Vec::new() };
    if let Some(draft) = state.drafts.iter().find(|draft| draft.is_of(head)) {
        return vec![Reaction::Edit(draft.path.clone(), None)];
    }
    let row = state.pool().cloned().zip(state.position());
    row.into_iter().map(|(pool, position)| DataEffect::Draft(pool, position).into()).collect()
}

fn quarantine(state: &DataState) -> Vec<Reaction> {
    let Some(chosen) = state.chosen() else { return Vec::new() };
    if state.filter == Filter::Quarantined {
        return vec![Reaction::from(DataEffect::Quarantine(chosen, false))];
    }
    vec![ask_quarantine(state, chosen, "marked", true)]
}

/// Asks whether to keep rows out of runs or, if not, to let them back in. `which` tells several from others.
fn ask_quarantine(state: &DataState, rows: Chosen, which: &str, inside: bool) -> Reaction {
    let what = match rows.positions.as_slice() {
        [one] => rows.pool.heads().get(*one).map_or_else(String::new, |row| format!("row {}", row.index)),
        several => format!("{} {which} rows", units::count(several.len() as u64)),
    };
    let mut lines: Vec<String> =
        rows.positions.iter().take(EXAMPLES).map(|row| fit(&state.line_of(*row), 60)).collect();
    if rows.positions.len() > EXAMPLES {
        lines.push("…".to_owned());
    }
    let (title, yes) = if inside {
        lines.push(
            "The files stay as they are; `f` lists the quarantine, `x` there lets rows back in.".to_owned(),
        );
        (format!("Keep {what} out of every run?"), "Quarantine")
    } else {
        (format!("Let {what} back into runs?"), "Let back in")
    };
    let question = Question::from(DataQuestion::Quarantine(rows, inside));
    Reaction::Confirm(Confirm { title, lines, yes: yes.to_owned(), question })
}

fn relisted(state: &mut DataState, context: &Context) -> Vec<Reaction> {
    let search = state.relist();
    listed(state, context, search)
}

/// What is to be done after the list has changed, with the search that goes on.
fn listed(state: &mut DataState, context: &Context, search: Option<DataEffect>) -> Vec<Reaction> {
    let mut reactions = selected(state, context);
    reactions.extend(search.map(Reaction::from));
    reactions
}

/// Requests the rows around the selected one, and that row as the model sees it, unless they are there already.
fn selected(state: &mut DataState, context: &Context) -> Vec<Reaction> {
    let (Some(position), Some(pool)) = (state.position(), state.pool().cloned()) else { return Vec::new() };
    let mut reactions = Vec::new();
    let missing = state.not_loaded(context.size.height);
    if !missing.is_empty() {
        reactions.push(Reaction::from(DataEffect::Fetch(pool.clone(), missing)));
    }
    let index = state.selected_head().map(|row| row.index);
    if state.beside.as_ref().is_some_and(|pair| Some(pair.rows[0]) != index) {
        state.beside = None;
    }
    if state.rendered.as_ref().is_none_or(|rendered| rendered.position != position) {
        state.scroll.reset();
        reactions.push(Reaction::from(DataEffect::Render(pool, position)));
    }
    reactions
}

pub(super) fn answered(state: &mut DataState, context: &Context, answer: DataEvent) -> Vec<Reaction> {
    let is_listed = |state: &DataState, pool: &Pool| state.pool() == Some(pool);
    let is_shown =
        |state: &DataState, pool: &Pool| state.rows.as_ref() == Some(pool) && context.pane == PaneId::Data;
    match answer {
        DataEvent::Reading(share, rows) => {
            state.reading_files = Some(share);
            match rows {
                Some(rows) => {
                    state.read_some(rows);
                    relisted(state, context)
                }
                None => Vec::new(),
            }
        }
        DataEvent::Rows(Ok((rows, quarantined))) => {
            state.read(rows, quarantined);
            let mut reactions = relisted(state, context);
            // What is listed by a value is found again in the new rows.
            if let (Filter::Value(field, _), Some(rows)) = (&state.filter, &state.rows) {
                reactions.push(DataEffect::Values(rows.clone(), field.clone()).into());
            }
            reactions
        }
        DataEvent::Broken(pool, problem) => {
            if !is_listed(state, &pool) {
                return Vec::new();
            }
            state.searching = None;
            vec![Reaction::Flash(Severity::Error, problem)]
        }
        DataEvent::Rows(Err(problem)) | DataEvent::Checked(Err(problem)) => {
            state.checking = None;
            state.reading_files = None;
            state.searching = None;
            // What was found in the rows says nothing about data that cannot be read.
            state.report = None;
            state.problem = Some(problem);
            Vec::new()
        }
        DataEvent::Fetched(pool, rows) => {
            if is_listed(state, &pool) {
                state.fetched(rows);
            }
            Vec::new()
        }
        DataEvent::Checking(done, total) => {
            state.checking = Some((done, total));
            Vec::new()
        }
        DataEvent::Checked(Ok(checked)) => {
            state.checked(*checked);
            relisted(state, context)
        }
        DataEvent::Rendered(pool, rendered) => {
            if is_listed(state, &pool) && state.position() == Some(rendered.position) {
                state.rendered = Some(*rendered);
            }
            Vec::new()
        }
        DataEvent::Found(pool, found) => {
            if is_listed(state, &pool) {
                state.found(found);
            }
            selected(state, context)
        }
        // The user may be elsewhere by now.
        DataEvent::Splits(pool, choices) => {
            if is_shown(state, &pool) {
                vec![splits(choices)]
            } else {
                Vec::new()
            }
        }
        DataEvent::Fields(pool, found) => {
            if is_shown(state, &pool) {
                vec![fields(found)]
            } else {
                Vec::new()
            }
        }
        DataEvent::Values(pool, field, values) => {
            if state.rows.as_ref() != Some(&pool) {
                return Vec::new();
            }
            if state.counted(&field, values) && is_shown(state, &pool) {
                return vec![table(state, field)];
            }
            relisted(state, context)
        }
        DataEvent::Compared(pool, rows) => {
            if is_listed(state, &pool) && state.selected_head().map(|row| row.index) == Some(rows[0].index) {
                state.beside = Some(Pair::new(&rows[0], &rows[1]));
            }
            Vec::new()
        }
        DataEvent::Drafted(Ok(draft)) => {
            let path = draft.path.clone();
            state.drafts.push(draft);
            vec![Reaction::Edit(path, None)]
        }
        DataEvent::Rewritten(draft, Ok(changed)) => {
            state.drafts.retain(|other| *other != draft);
            let mut reactions = if changed { load(state) } else { Vec::new() };
            let said = if changed { "the row is edited; u takes it back" } else { "the row is as before" };
            reactions.push(Reaction::Flash(Severity::Success, said.to_owned()));
            reactions
        }
        DataEvent::Rewritten(_, Err(problem)) => {
            let text = format!("{problem}\n\ne opens what you wrote again.");
            vec![Reaction::Message(Message {
                title: "Not edited".to_owned(),
                text,
                severity: Severity::Error,
            })]
        }
        DataEvent::Changed(Ok(said)) => {
            let mut reactions = load(state);
            reactions.push(Reaction::Flash(Severity::Success, said));
            reactions
        }
        DataEvent::Drafted(Err(problem)) | DataEvent::Changed(Err(problem)) => {
            vec![Reaction::Flash(Severity::Error, problem)]
        }
    }
}
