//! What the data pane knows and shows.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

use luthier_core::data::{Example, Message, ProblemKind, Report, Row, Severity, Split, TokenPiece};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::command::{COMMANDS, DataCommand};
use super::compare::Pair;
use super::effect::DataEffect;
use super::event::{Checked, DataEvent};
use super::listing::{Filter, Order, has_several_replies, has_tools};
use super::question::DataQuestion;
use super::search::Search;
use super::{update, view};
use crate::app::{Context, Input, Reaction, Reply};
use crate::command::{Command, Entry, InputCommand, ListCommand, ViewCommand};
use crate::keymap::KeyContext;
use crate::panes::{Pane, PaneCommand, PaneId, PaneTypes};
use crate::theme::Theme;
use crate::widgets::{ListState, Scroll, TextLine};

/// How the selected row is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Message by message.
    #[default]
    Conversation,
    /// As the template renders it.
    Text,
    /// As tokens, with trained ones highlighted.
    Tokens,
}

impl Form {
    /// All forms, in the order of the key that changes them.
    pub const ALL: [Self; 3] = [Self::Conversation, Self::Text, Self::Tokens];

    pub fn title(self) -> &'static str {
        match self {
            Self::Conversation => "conversation",
            Self::Text => "text",
            Self::Tokens => "tokens",
        }
    }

    /// The form after this one, around the end.
    pub fn next(self) -> Self {
        match self {
            Self::Conversation => Self::Text,
            Self::Text => Self::Tokens,
            Self::Tokens => Self::Conversation,
        }
    }
}

/// A row as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub row: usize,
    /// Its messages with the project's system prompt; nothing for rows that are no conversation.
    pub messages: Option<Vec<Message>>,
    /// The tokens of each side, for a preference pair the chosen one first; or why it has none.
    pub sides: Result<Vec<Vec<TokenPiece>>, String>,
    /// Whether tokens were cut off.
    pub truncated: bool,
}

/// The tokens of a row as it is trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowSize {
    /// Tokens in all its sides; 0 if it cannot be used.
    pub tokens: usize,
    /// Those of them that are targets of the loss.
    pub trained: usize,
}

/// Rows chosen to do something with.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// All rows that they were chosen from.
    pub pool: Arc<Vec<Row>>,
    /// Their positions in it.
    pub positions: Vec<usize>,
}

impl Chosen {
    /// The rows, in the order of their positions.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.positions.iter().filter_map(|position| self.pool.get(*position))
    }
}

/// What the findings say about a row.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    worst: Option<Severity>,
    /// How many kinds of problems it has.
    findings: usize,
}

/// The problems of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProblemGroup {
    pub kind: ProblemKind,
    /// The worst severity in it.
    pub severity: Severity,
    /// How many rows have it; how many problems, if they are of no row.
    pub count: usize,
}

#[derive(Debug, Default)]
pub struct DataState {
    /// All rows; nothing until read.
    pub rows: Option<Arc<Vec<Row>>>,
    /// Rows in quarantine.
    pub quarantined: Arc<Vec<Row>>,
    /// Why the rows cannot be read or checked.
    pub problem: Option<String>,
    /// What the check found.
    pub report: Option<Arc<Report>>,
    /// Into how many sequences the training rows are packed, if they are.
    pub sequences: Option<u64>,
    /// Progress of the check: rows done, rows in all.
    pub checking: Option<(usize, usize)>,
    pub filter: Filter,
    pub order: Order,
    /// Rows that another pane asked for, with what they have in common; replaces the filter.
    pub asked: Option<(String, Vec<usize>)>,
    /// What a listed row must contain, as it was typed.
    pub search: String,
    /// Why the search cannot be made; the rows found before stay listed.
    pub search_problem: Option<String>,
    /// The search while it is typed.
    pub typing: Option<TextLine>,
    /// Positions of the listed rows.
    pub listed: Vec<usize>,
    /// Selection in the list.
    pub list: ListState,
    /// Positions of the marked rows, listed or not.
    pub marked: BTreeSet<usize>,
    pub form: Form,
    /// Whether tokens are shown with their numbers.
    pub ids: bool,
    /// The selected row as the model sees it.
    pub rendered: Option<Rendered>,
    /// The selected row beside the one that it is like.
    pub beside: Option<Pair>,
    /// Whether keys scroll the row instead of moving in the list.
    pub reading: bool,
    /// Scroll position in the row's text.
    pub scroll: Scroll,
    /// The size of each row, by its index; empty until checked.
    sizes: Vec<RowSize>,
    /// What the findings say about each row, by its index.
    facts: Vec<Facts>,
    /// Positions of the rows that pass the filter, in order; a search chooses from them.
    matching: Vec<usize>,
    /// The search that `listed` is the result of.
    made: String,
    /// The same, to mark what it found; nothing if nothing is looked for.
    found: Option<Search>,
    /// The text of each row of the pool; nothing until first searched.
    texts: Option<Vec<String>>,
}

impl DataState {
    /// The rows to list from: all of them, or those in quarantine.
    pub fn pool(&self) -> &[Row] {
        self.shared_pool().map_or(&[], |rows| rows.as_slice())
    }

    /// All rows that are not in quarantine.
    pub fn all(&self) -> &[Row] {
        self.rows.as_ref().map_or(&[], |rows| rows.as_slice())
    }

    fn shared_pool(&self) -> Option<&Arc<Vec<Row>>> {
        if self.filter == Filter::Quarantined { Some(&self.quarantined) } else { self.rows.as_ref() }
    }

    /// The listed row at a position of the list.
    pub fn row_at(&self, position: usize) -> Option<&Row> {
        self.listed.get(position).and_then(|index| self.pool().get(*index))
    }

    pub fn selected(&self) -> Option<&Row> {
        self.list.selected().and_then(|position| self.row_at(position))
    }

    /// The position of the selected row among all rows.
    pub fn position(&self) -> Option<usize> {
        self.list.selected().and_then(|position| self.listed.get(position).copied())
    }

    /// The marked rows; without any, the selected one.
    pub fn chosen(&self) -> Option<Chosen> {
        let positions = if self.marked.is_empty() {
            vec![self.position()?]
        } else {
            self.marked.iter().copied().collect()
        };
        Some(Chosen { pool: Arc::clone(self.shared_pool()?), positions })
    }

    /// All listed rows.
    pub fn all_listed(&self) -> Option<Chosen> {
        let pool = Arc::clone(self.shared_pool()?);
        (!self.listed.is_empty()).then(|| Chosen { pool, positions: self.listed.clone() })
    }

    /// Takes the rows that were read. What was found in others no longer holds.
    pub fn read(&mut self, rows: Arc<Vec<Row>>, quarantined: Arc<Vec<Row>>) {
        self.problem = None;
        self.report = None;
        self.rendered = None;
        self.sizes.clear();
        self.facts.clear();
        self.rows = Some(rows);
        self.quarantined = quarantined;
        self.pool_changed();
    }

    /// Takes what the check found.
    pub fn checked(&mut self, checked: Checked) {
        self.checking = None;
        self.facts = facts(&checked.report, self.rows.as_ref().map_or(0, |rows| rows.len()));
        self.sizes = checked.sizes;
        self.sequences = checked.sequences;
        self.report = Some(checked.report);
    }

    fn pool_changed(&mut self) {
        self.texts = None;
        self.marked.clear();
        self.beside = None;
    }

    /// Lists the rows that pass `filter`, whatever another pane asked for.
    pub fn list_only(&mut self, filter: Filter) {
        let selected = self.position();
        let other_pool = (self.filter == Filter::Quarantined) != (filter == Filter::Quarantined);
        self.filter = filter;
        self.asked = None;
        if other_pool {
            self.rendered = None;
            self.pool_changed();
        }
        self.list_again(selected.filter(|_| !other_pool));
    }

    /// Computes which rows are listed; the selected row stays selected if it is among them.
    pub fn relist(&mut self) {
        self.list_again(self.position());
    }

    fn list_again(&mut self, selected: Option<usize>) {
        self.matching = self.find_matching();
        self.made.clear();
        self.listed.clone_from(&self.matching);
        self.narrow(selected);
    }

    /// As [`DataState::relist`], where nothing but the search has changed.
    pub fn search_again(&mut self) {
        self.narrow(self.position());
    }

    fn narrow(&mut self, selected: Option<usize>) {
        self.search_problem = None;
        match Search::parse(&self.search) {
            Ok(None) => {
                self.listed.clone_from(&self.matching);
                self.made.clear();
                self.found = None;
            }
            Ok(Some(search)) => {
                if self.texts.is_none() {
                    self.texts = Some(self.pool().iter().map(|row| row.example.plain_text()).collect());
                }
                let texts = self.texts.as_deref().unwrap_or_default();
                let less = Search::narrows(&self.made, &self.search);
                self.listed = search.find(texts, if less { &self.listed } else { &self.matching });
                self.made.clone_from(&self.search);
                self.found = Some(search);
            }
            Err(problem) => self.search_problem = Some(problem),
        }
        let place = selected.and_then(|selected| self.listed.iter().position(|at| *at == selected));
        self.list.changed(self.listed.len(), place);
    }

    /// The places in a text that the search found.
    pub fn found_in(&self, text: &str) -> Vec<Range<usize>> {
        self.found.as_ref().map_or_else(Vec::new, |search| search.places(text))
    }

    /// The positions of the rows that pass the filter, in order.
    fn find_matching(&self) -> Vec<usize> {
        let pool = self.pool();
        let asked: Option<HashSet<usize>> =
            self.asked.as_ref().map(|(_, rows)| rows.iter().copied().collect());
        let mut matching: Vec<usize> = match (&asked, &self.filter) {
            (None, Filter::Longest) => self.longest(),
            _ => pool
                .iter()
                .enumerate()
                .filter(|(_, row)| match &asked {
                    Some(asked) => asked.contains(&row.index),
                    None => self.passes(row),
                })
                .map(|(position, _)| position)
                .collect(),
        };
        let of = |position: &usize, key: &dyn Fn(&Row) -> usize| pool.get(*position).map_or(0, key);
        let length = |row: &Row| self.length(row);
        match self.order {
            Order::File => {}
            Order::Longest => matching.sort_by_cached_key(|position| Reverse(of(position, &length))),
            Order::Shortest => matching.sort_by_cached_key(|position| of(position, &length)),
            Order::Trained => matching.sort_by_cached_key(|position| {
                Reverse(of(position, &|row: &Row| self.size(row).map_or(0, |size| size.trained)))
            }),
            Order::Findings => matching.sort_by_cached_key(|position| {
                Reverse(of(position, &|row: &Row| self.facts(row).map_or(0, |facts| facts.findings)))
            }),
        }
        matching
    }

    /// The positions of the longest rows.
    fn longest(&self) -> Vec<usize> {
        let pool = self.pool();
        let mut positions: Vec<usize> = (0..pool.len()).collect();
        positions
            .sort_by_cached_key(|position| Reverse(pool.get(*position).map_or(0, |row| self.length(row))));
        positions.truncate(pool.len().div_ceil(Filter::LONGEST));
        positions.sort_unstable();
        positions
    }

    fn passes(&self, row: &Row) -> bool {
        match &self.filter {
            Filter::All | Filter::Quarantined | Filter::Longest => true,
            Filter::Train => row.split == Split::Train,
            Filter::Eval => row.split == Split::Eval,
            Filter::Problem(kind) => self
                .report
                .as_ref()
                .is_some_and(|report| report.rows_of(*kind).binary_search(&row.index).is_ok()),
            Filter::Label(good) => row.extras.label == Some(*good),
            Filter::SeveralReplies => has_several_replies(row),
            Filter::Tools => has_tools(row),
            Filter::Value(field, value) => field.values(row).contains(value),
        }
    }

    /// The size of a row, if it is known.
    pub fn size(&self, row: &Row) -> Option<RowSize> {
        // Rows in quarantine are not checked, and their numbers are those of others.
        let checked = self.filter != Filter::Quarantined;
        self.sizes.get(row.index).copied().filter(|size| checked && size.tokens > 0)
    }

    fn facts(&self, row: &Row) -> Option<Facts> {
        let checked = self.filter != Filter::Quarantined;
        self.facts.get(row.index).copied().filter(|_| checked)
    }

    /// The worst severity of a row's problems.
    pub fn worst(&self, row: &Row) -> Option<Severity> {
        self.facts(row).and_then(|facts| facts.worst)
    }

    /// The tokens of a row; about as many, where it is not checked or cannot be used.
    fn length(&self, row: &Row) -> usize {
        const BYTES_OF_A_TOKEN: usize = 4;
        match (self.size(row), &row.example) {
            (Some(size), _) => size.tokens,
            (None, Example::Tokens { input_ids, .. }) => input_ids.len(),
            (None, example) => example.plain_text().len() / BYTES_OF_A_TOKEN,
        }
    }

    /// What is wrong with a row: a message for each kind of problem, or its name where there are too many.
    pub fn problems_of(&self, row: &Row) -> Vec<String> {
        let Some(report) = self.report.as_ref().filter(|_| self.filter != Filter::Quarantined) else {
            return Vec::new();
        };
        let mut told = BTreeSet::new();
        let mut messages = Vec::new();
        for problem in report.problems.iter().filter(|problem| problem.row == Some(row.index)) {
            told.insert(problem.kind);
            messages.push(problem.message.clone());
        }
        let untold = report
            .rows_of
            .iter()
            .filter(|of| !told.contains(&of.kind) && of.rows.binary_search(&row.index).is_ok());
        messages.extend(untold.map(|of| of.kind.label().to_owned()));
        messages
    }

    /// The row that the selected one is like: that it repeats or contradicts.
    pub fn other(&self) -> Option<&Row> {
        let row = self.selected().filter(|_| self.filter != Filter::Quarantined)?;
        let problems = &self.report.as_ref()?.problems;
        let other = problems
            .iter()
            .filter(|problem| problem.row == Some(row.index))
            .find_map(|problem| problem.other)?;
        self.pool().get(other)
    }

    /// The kinds of problems found, the worst first.
    pub fn groups(&self) -> Vec<ProblemGroup> {
        let mut groups: Vec<ProblemGroup> = Vec::new();
        for problem in self.report.iter().flat_map(|report| &report.problems) {
            match groups.iter_mut().find(|group| group.kind == problem.kind) {
                Some(group) => {
                    group.count += 1;
                    group.severity = group.severity.min(problem.severity);
                }
                None => {
                    groups.push(ProblemGroup { kind: problem.kind, severity: problem.severity, count: 1 });
                }
            }
        }
        for group in &mut groups {
            let rows = self.report.as_ref().map_or(0, |report| report.rows_of(group.kind).len());
            if rows > 0 {
                group.count = rows;
            }
        }
        groups.sort_by_key(|group| (group.severity, group.kind));
        groups
    }

    /// Whether all rows are listed.
    pub fn lists_all(&self) -> bool {
        self.filter == Filter::All && self.asked.is_none() && self.search.is_empty()
    }

    /// The first words of a row, for the list.
    pub fn headline(row: &Row) -> String {
        let text = match &row.example {
            Example::Messages(messages) => {
                let asked = messages.iter().find(|message| message.role == "user").or(messages.first());
                asked.map_or_else(String::new, |message| message.content.clone())
            }
            Example::Tokens { input_ids, .. } => format!("({} token ids)", input_ids.len()),
            other => other.plain_text(),
        };
        if text.trim().is_empty() { "(empty)".to_owned() } else { text.trim().to_owned() }
    }
}

/// What the findings of `report` say about each of `rows` rows.
fn facts(report: &Report, rows: usize) -> Vec<Facts> {
    let mut facts = vec![Facts::default(); rows];
    let worse = |left: Option<Severity>, right| Some(left.map_or(right, |left| left.min(right)));
    for of in &report.rows_of {
        // Which rows beyond those with a message are the worse ones is not known.
        let severities = report.problems.iter().filter(|problem| problem.kind == of.kind);
        let mildest = severities.map(|problem| problem.severity).max().unwrap_or(Severity::Note);
        for row in &of.rows {
            if let Some(facts) = facts.get_mut(*row) {
                facts.findings += 1;
                facts.worst = worse(facts.worst, mildest);
            }
        }
    }
    for problem in &report.problems {
        if let Some(facts) = problem.row.and_then(|row| facts.get_mut(row)) {
            facts.worst = worse(facts.worst, problem.severity);
        }
    }
    facts
}

impl Pane for DataState {
    fn update(&mut self, context: &Context, input: Input) -> Vec<Reaction> {
        update::update(self, context, input)
    }

    fn view(&self, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
        view::view(self, context, area, buffer, theme);
    }

    fn contexts(&self, _context: &Context) -> Vec<KeyContext> {
        if self.typing.is_some() {
            vec![KeyContext::Input]
        } else {
            vec![KeyContext::Pane(PaneId::Data), KeyContext::List]
        }
    }

    fn hints(&self, context: &Context) -> Vec<Command> {
        if self.typing.is_some() {
            return vec![Command::Input(InputCommand::Accept), Command::Input(InputCommand::Cancel)];
        }
        if self.beside.is_some() {
            return vec![Command::from(DataCommand::Compare), Command::View(ViewCommand::Back)];
        }
        if self.reading {
            let ids = (self.form == Form::Tokens).then_some(Command::from(DataCommand::Ids));
            let form = [Command::from(DataCommand::Form)];
            return form.into_iter().chain(ids).chain([Command::View(ViewCommand::Back)]).collect();
        }
        let mut own = vec![
            Command::from(DataCommand::Form),
            Command::List(ListCommand::Open),
            Command::from(DataCommand::Filter),
            Command::View(ViewCommand::Search),
        ];
        if self.form == Form::Tokens {
            own.push(Command::from(DataCommand::Ids));
        }
        own.extend(
            [
                DataCommand::Compare,
                DataCommand::Quarantine,
                DataCommand::QuarantineListed,
                DataCommand::Order,
                DataCommand::Mark,
                DataCommand::Edit,
                DataCommand::Table,
                DataCommand::Lengths,
                DataCommand::Random,
                DataCommand::Check,
                DataCommand::NewRun,
            ]
            .map(Command::from),
        );
        own.into_iter().filter(|command| self.unavailable(context, *command).is_none()).collect()
    }

    fn unavailable(&self, context: &Context, command: Command) -> Option<String> {
        let Command::Pane(PaneCommand::Data(command)) = command else { return None };
        match command {
            DataCommand::NewRun | DataCommand::Check => {
                context.config.is_none().then(|| "luthier.toml has mistakes; `space e` opens it".to_owned())
            }
            DataCommand::Filter | DataCommand::Order | DataCommand::Table => {
                self.rows.is_none().then(|| "the rows are not read yet".to_owned())
            }
            DataCommand::Lengths => self.report.is_none().then(|| "the rows are not checked yet".to_owned()),
            DataCommand::Ids => (self.form != Form::Tokens).then(|| "`tab` shows the tokens".to_owned()),
            DataCommand::Compare => (self.beside.is_none() && self.other().is_none())
                .then(|| "no other row is known to be like this one".to_owned()),
            DataCommand::QuarantineListed if self.lists_all() => {
                Some("all rows are listed; `f` lists some of them".to_owned())
            }
            DataCommand::Form
            | DataCommand::Mark
            | DataCommand::Quarantine
            | DataCommand::QuarantineListed
            | DataCommand::Edit
            | DataCommand::Random => self.selected().is_none().then(|| "no row is selected".to_owned()),
        }
    }
}

impl PaneTypes for DataState {
    type Command = DataCommand;
    type Effect = DataEffect;
    type Event = DataEvent;
    type Question = DataQuestion;

    const COMMANDS: &[Entry<DataCommand>] = COMMANDS;

    fn answered(&mut self, _context: &Context, event: DataEvent) -> Vec<Reaction> {
        update::answered(self, event)
    }

    fn replied(&mut self, _context: &Context, question: DataQuestion, reply: Reply) -> Vec<Reaction> {
        update::replied(self, question, reply)
    }
}
