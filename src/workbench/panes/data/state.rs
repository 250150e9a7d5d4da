//! What the data pane knows and shows.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use luthier_core::data::{Example, ProblemKind, Report, Row, RowHead, Severity, Split};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::command::{COMMANDS, DataCommand};
use super::compare::Pair;
use super::effect::DataEffect;
use super::event::{Checked, DataEvent, Found};
use super::facts::{Facts, facts};
use super::listing::{Field, Filter, Order};
use super::pool::{Chosen, Pool, Rendered, RowSize};
use super::question::DataQuestion;
use super::search::Search;
use super::{update, view};
use crate::app::{Context, Input, Reaction, Reply};
use crate::command::{Command, Entry, InputCommand, ListCommand, ViewCommand};
use crate::keymap::KeyContext;
use crate::panes::{Pane, PaneCommand, PaneId, PaneTypes};
use crate::project::Draft;
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
    /// All rows, or those read so far; nothing until some are.
    pub rows: Option<Pool>,
    /// Rows in quarantine.
    pub quarantined: Pool,
    /// How much of the files is read, from 0 to 1, while they are being read.
    pub reading_files: Option<f64>,
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
    /// Rows that are being edited, those whose edit was refused among them.
    pub drafts: Vec<Draft>,
    /// Which share of the rows a search has looked at, while it goes on.
    pub searching: Option<f64>,
    /// Positions of the listed rows.
    pub listed: Vec<usize>,
    /// Selection in the list.
    pub list: ListState,
    /// Positions of the marked rows, listed or not.
    pub marked: BTreeSet<usize>,
    pub form: Form,
    /// Whether tokens are shown with their numbers.
    pub ids: bool,
    /// Where the selection stays in the list while rows that were read again are listed.
    place: Option<usize>,
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
    /// Rows of the pool that were read, by their positions: those around the selected one.
    loaded: HashMap<usize, Row>,
    /// The values of a field that the user was or is being asked about; nothing until they are counted.
    table: Option<(Field, Option<Table>)>,
    /// Positions of the rows that have the value of [`Filter::Value`].
    with_value: HashSet<usize>,
}

/// Each value of a field with the positions of its rows, the most frequent first.
pub type Table = Vec<(String, Vec<usize>)>;

/// Most rows that stay loaded.
const MOST_LOADED: usize = 2000;

impl DataState {
    /// The rows to list from: all of them, or those in quarantine. Nothing until some are read.
    pub fn pool(&self) -> Option<&Pool> {
        if self.filter == Filter::Quarantined { Some(&self.quarantined) } else { self.rows.as_ref() }
    }

    fn heads(&self) -> &[RowHead] {
        self.pool().map_or(&[], |pool| pool.heads())
    }

    /// What is known of the listed row at a position of the list.
    pub fn head_at(&self, position: usize) -> Option<&RowHead> {
        self.listed.get(position).and_then(|position| self.heads().get(*position))
    }

    /// The listed row at a position of the list, if it is loaded.
    pub fn row_at(&self, position: usize) -> Option<&Row> {
        self.listed.get(position).and_then(|position| self.loaded.get(position))
    }

    /// What is known of the selected row.
    pub fn selected_head(&self) -> Option<&RowHead> {
        self.list.selected().and_then(|position| self.head_at(position))
    }

    /// The selected row, if it is loaded.
    pub fn selected(&self) -> Option<&Row> {
        self.list.selected().and_then(|position| self.row_at(position))
    }

    /// The position of the selected row in the pool.
    pub fn position(&self) -> Option<usize> {
        self.list.selected().and_then(|position| self.listed.get(position).copied())
    }

    /// A row of the pool in one line: its first words, or else its place.
    pub fn line_of(&self, position: usize) -> String {
        if let Some(row) = self.loaded.get(&position) {
            return Self::headline(row);
        }
        let place = self.pool().and_then(|pool| Some(pool.origin(pool.heads().get(position)?)));
        place.map_or_else(String::new, |place| place.to_string())
    }

    /// The marked rows; without any, the selected one.
    pub fn chosen(&self) -> Option<Chosen> {
        let positions = if self.marked.is_empty() {
            vec![self.position()?]
        } else {
            self.marked.iter().copied().collect()
        };
        Some(Chosen { pool: self.pool()?.clone(), positions })
    }

    /// All listed rows.
    pub fn all_listed(&self) -> Option<Chosen> {
        let pool = self.pool()?.clone();
        (!self.listed.is_empty()).then(|| Chosen { pool, positions: self.listed.clone() })
    }

    /// Takes the rows that were read so far.
    pub fn read_some(&mut self, rows: Pool) {
        self.problem = None;
        self.rows = Some(rows);
    }

    /// Takes the rows that were read. What was found in others no longer holds.
    pub fn read(&mut self, rows: Pool, quarantined: Pool) {
        self.reading_files = None;
        // Positions in the pool mean other rows now; the place in the list stays.
        self.place = self.rows.as_ref().and(self.list.selected());
        self.problem = None;
        self.report = None;
        self.rendered = None;
        self.sizes.clear();
        self.facts.clear();
        self.rows = Some(rows);
        self.quarantined = quarantined;
        self.table = None;
        self.with_value.clear();
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
        self.loaded.clear();
        self.marked.clear();
        self.beside = None;
        self.searching = None;
    }

    /// Takes rows of the pool.
    pub fn fetched(&mut self, rows: Vec<(usize, Row)>) {
        if self.loaded.len() > MOST_LOADED {
            let near: HashSet<usize> = self.near(MOST_LOADED / 4).iter().copied().collect();
            self.loaded.retain(|position, _| near.contains(position));
        }
        self.loaded.extend(rows);
    }

    /// Positions of the listed rows up to `distance` before and after the selected one.
    fn near(&self, distance: usize) -> &[usize] {
        let selected = self.list.selected().unwrap_or(0);
        let near = selected.saturating_sub(distance)..(selected + distance).min(self.listed.len());
        self.listed.get(near).unwrap_or_default()
    }

    /// Positions of rows that may come into sight and are not loaded: up to `height` before and after the selected one.
    pub fn not_loaded(&self, height: u16) -> Vec<usize> {
        let near = self.near(usize::from(height)).iter().copied();
        near.filter(|position| !self.loaded.contains_key(position)).collect()
    }

    /// Lists the rows that pass `filter`, whatever another pane asked for.
    pub fn list_only(&mut self, filter: Filter) -> Option<DataEffect> {
        let selected = self.position();
        let other_pool = (self.filter == Filter::Quarantined) != (filter == Filter::Quarantined);
        self.filter = filter;
        self.asked = None;
        if other_pool {
            self.rendered = None;
            self.pool_changed();
        }
        self.list_again(selected.filter(|_| !other_pool))
    }

    /// Lists the rows with a value of the field that was counted last.
    pub fn list_value(&mut self, field: Field, value: String) -> Option<DataEffect> {
        let rows = self.table.as_ref().and_then(|(_, table)| {
            table.as_ref()?.iter().find(|(known, _)| *known == value).map(|(_, rows)| rows)
        });
        self.with_value = rows.into_iter().flatten().copied().collect();
        self.list_only(Filter::Value(field, value))
    }

    /// Remembers that the values of a field are being counted.
    pub fn count(&mut self, field: &Field) {
        self.table = Some((field.clone(), None));
    }

    /// Takes the values of a field. Returns whether the user waits for them.
    pub fn counted(&mut self, field: &Field, values: Table) -> bool {
        if let Filter::Value(listed, value) = &self.filter
            && listed == field
        {
            let rows = values.iter().find(|(known, _)| known == value);
            self.with_value = rows.into_iter().flat_map(|(_, rows)| rows).copied().collect();
        }
        let is_asked = self.table.as_ref().is_some_and(|(asked, table)| asked == field && table.is_none());
        self.table = Some((field.clone(), Some(values)));
        is_asked
    }

    /// The values of the field that was counted last.
    pub fn table(&self) -> &[(String, Vec<usize>)] {
        self.table.as_ref().and_then(|(_, table)| table.as_deref()).unwrap_or_default()
    }

    /// Computes which rows are listed; the selected row stays selected if it is among them. A search goes on in the
    /// effect that is returned.
    pub fn relist(&mut self) -> Option<DataEffect> {
        self.list_again(self.position())
    }

    fn list_again(&mut self, selected: Option<usize>) -> Option<DataEffect> {
        self.matching = self.find_matching();
        self.made.clear();
        self.list(self.matching.clone(), selected);
        let searching = self.search_again();
        if searching.is_none() {
            self.place = None;
        }
        searching
    }

    fn list(&mut self, rows: Vec<usize>, selected: Option<usize>) {
        self.listed = rows;
        let kept = self.place.filter(|_| !self.listed.is_empty());
        let kept = kept.map(|place| place.min(self.listed.len() - 1));
        let place =
            kept.or_else(|| selected.and_then(|selected| self.listed.iter().position(|at| *at == selected)));
        self.list.changed(self.listed.len(), place);
    }

    /// As [`DataState::relist`], where nothing but the search has changed.
    pub fn search_again(&mut self) -> Option<DataEffect> {
        self.search_problem = None;
        match Search::parse(&self.search) {
            Ok(None) => {
                self.made.clear();
                self.found = None;
                self.searching = None;
                self.list(self.matching.clone(), self.position());
                None
            }
            Ok(Some(search)) => {
                let less = Search::narrows(&self.made, &self.search);
                let among = if less { &self.listed } else { &self.matching };
                self.found = Some(search);
                let effect = DataEffect::Search(self.pool()?.clone(), among.clone(), self.search.clone());
                self.searching = Some(0.0);
                Some(effect)
            }
            Err(problem) => {
                self.search_problem = Some(problem);
                self.searching = None;
                None
            }
        }
    }

    /// Takes what a search has found, unless something else is looked for by now.
    pub fn found(&mut self, found: Found) {
        if found.typed != self.search {
            return;
        }
        self.searching = found.share;
        self.list(found.rows, self.position());
        if found.share.is_none() {
            self.place = None;
        }
        // What is found so far is nothing to narrow down.
        self.made = if found.share.is_none() { found.typed } else { String::new() };
    }

    /// The places in a text that the search found.
    pub fn found_in(&self, text: &str) -> Vec<Range<usize>> {
        self.found.as_ref().map_or_else(Vec::new, |search| search.places(text))
    }

    /// The positions of the rows that pass the filter, in order.
    fn find_matching(&self) -> Vec<usize> {
        let heads = self.heads();
        let asked: Option<HashSet<usize>> =
            self.asked.as_ref().map(|(_, rows)| rows.iter().copied().collect());
        let mut matching: Vec<usize> = match (&asked, &self.filter) {
            (None, Filter::Longest) => self.longest(),
            _ => heads
                .iter()
                .enumerate()
                .filter(|(position, head)| match &asked {
                    Some(asked) => asked.contains(&head.index),
                    None => self.passes(*position, head),
                })
                .map(|(position, _)| position)
                .collect(),
        };
        let of = |position: &usize, key: &dyn Fn(&RowHead) -> usize| heads.get(*position).map_or(0, key);
        let length = |head: &RowHead| self.length(head);
        match self.order {
            Order::File => {}
            Order::Longest => matching.sort_by_cached_key(|position| Reverse(of(position, &length))),
            Order::Shortest => matching.sort_by_cached_key(|position| of(position, &length)),
            Order::Trained => matching.sort_by_cached_key(|position| {
                Reverse(of(position, &|head: &RowHead| self.size(head).map_or(0, |size| size.trained)))
            }),
            Order::Findings => matching.sort_by_cached_key(|position| {
                Reverse(of(position, &|head: &RowHead| self.facts(head).map_or(0, |facts| facts.findings)))
            }),
        }
        matching
    }

    /// The positions of the longest rows.
    fn longest(&self) -> Vec<usize> {
        let heads = self.heads();
        let mut positions: Vec<usize> = (0..heads.len()).collect();
        positions
            .sort_by_cached_key(|position| Reverse(heads.get(*position).map_or(0, |head| self.length(head))));
        positions.truncate(heads.len().div_ceil(Filter::LONGEST));
        positions.sort_unstable();
        positions
    }

    fn passes(&self, position: usize, head: &RowHead) -> bool {
        match &self.filter {
            Filter::All | Filter::Quarantined | Filter::Longest => true,
            Filter::Train => head.split == Split::Train,
            Filter::Eval => head.split == Split::Eval,
            Filter::Problem(kind) => self
                .report
                .as_ref()
                .is_some_and(|report| report.rows_of(*kind).binary_search(&head.index).is_ok()),
            Filter::Label(good) => head.label == Some(*good),
            Filter::SeveralReplies => head.has_several_replies,
            Filter::Tools => head.has_tools,
            Filter::Edited => head.is_edited(),
            Filter::Value(..) => self.with_value.contains(&position),
        }
    }

    /// The size of a row, if it is known.
    pub fn size(&self, head: &RowHead) -> Option<RowSize> {
        // Rows in quarantine are not checked, and their numbers are those of others.
        let checked = self.filter != Filter::Quarantined;
        self.sizes.get(head.index).copied().filter(|size| checked && size.tokens > 0)
    }

    fn facts(&self, head: &RowHead) -> Option<Facts> {
        let checked = self.filter != Filter::Quarantined;
        self.facts.get(head.index).copied().filter(|_| checked)
    }

    /// The worst severity of a row's problems.
    pub fn worst(&self, head: &RowHead) -> Option<Severity> {
        self.facts(head).and_then(|facts| facts.worst)
    }

    /// The tokens of a row; about as many, where it is not checked or cannot be used.
    fn length(&self, head: &RowHead) -> usize {
        const BYTES_OF_A_TOKEN: u32 = 4;
        self.size(head).map_or((head.bytes / BYTES_OF_A_TOKEN) as usize, |size| size.tokens)
    }

    /// What is wrong with a row: a message for each kind of problem, or its name where there are too many.
    pub fn problems_of(&self, row: &RowHead) -> Vec<String> {
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

    /// The position of the row that the selected one is like: that it repeats or contradicts.
    pub fn other(&self) -> Option<usize> {
        let row = self.selected_head().filter(|_| self.filter != Filter::Quarantined)?;
        let problems = &self.report.as_ref()?.problems;
        let mut of_row = problems.iter().filter(|problem| problem.row == Some(row.index));
        let other = of_row.find_map(|problem| problem.other)?;
        (other < self.heads().len()).then_some(other)
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

/// Whether a command needs all rows in their final order.
fn changes_rows(command: DataCommand) -> bool {
    matches!(
        command,
        DataCommand::Mark
            | DataCommand::Quarantine
            | DataCommand::QuarantineListed
            | DataCommand::Edit
            | DataCommand::Undo
            | DataCommand::Split
            | DataCommand::Table
    )
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

    fn unsaved(&self) -> Vec<String> {
        match self.drafts.len() {
            0 => Vec::new(),
            1 => vec!["An edited row is not taken yet; `e` on it opens what you wrote.".to_owned()],
            count => vec![format!("{count} edited rows are not taken yet; `e` on one opens what you wrote.")],
        }
    }

    fn hints(&self, context: &Context) -> Vec<Command> {
        if self.typing.is_some() {
            return vec![Command::Input(InputCommand::Accept), Command::Input(InputCommand::Cancel)];
        }
        if self.beside.is_some() {
            return vec![Command::from(DataCommand::Compare), Command::View(ViewCommand::Back)];
        }
        if self.problem.is_some() {
            return vec![Command::from(DataCommand::Check)];
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
                DataCommand::Undo,
                DataCommand::OpenFile,
                DataCommand::Findings,
                DataCommand::Split,
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
        let command = match command {
            Command::Pane(PaneCommand::Data(command)) => command,
            Command::List(ListCommand::Mark) => DataCommand::Mark,
            _ => return None,
        };
        if self.reading_files.is_some() && changes_rows(command) {
            return Some("the rows are still being read".to_owned());
        }
        match command {
            DataCommand::NewRun | DataCommand::Check => {
                context.config.is_none().then(|| "luthier.toml has mistakes; `space e` opens it".to_owned())
            }
            DataCommand::Filter | DataCommand::Order | DataCommand::Table | DataCommand::Split => {
                self.rows.is_none().then(|| "the rows are not read yet".to_owned())
            }
            DataCommand::Findings | DataCommand::Lengths => {
                self.report.is_none().then(|| "the rows are not checked yet".to_owned())
            }
            DataCommand::Ids => (self.form != Form::Tokens).then(|| "`tab` shows the tokens".to_owned()),
            DataCommand::Compare => (self.beside.is_none() && self.other().is_none())
                .then(|| "no other row is known to be like this one".to_owned()),
            DataCommand::Undo => {
                let is_edited = self.selected_head().is_some_and(RowHead::is_edited);
                (!is_edited).then(|| "the row is not edited".to_owned())
            }
            DataCommand::QuarantineListed if self.searching.is_some() => {
                Some("the search is not finished".to_owned())
            }
            DataCommand::QuarantineListed if self.lists_all() => {
                Some("all rows are listed; `f` lists some of them".to_owned())
            }
            DataCommand::Form
            | DataCommand::Mark
            | DataCommand::Quarantine
            | DataCommand::QuarantineListed
            | DataCommand::Edit
            | DataCommand::OpenFile
            | DataCommand::Random => self.position().is_none().then(|| "no row is selected".to_owned()),
        }
    }
}

impl PaneTypes for DataState {
    type Command = DataCommand;
    type Effect = DataEffect;
    type Event = DataEvent;
    type Question = DataQuestion;

    const COMMANDS: &[Entry<DataCommand>] = COMMANDS;

    fn answered(&mut self, context: &Context, event: DataEvent) -> Vec<Reaction> {
        update::answered(self, context, event)
    }

    fn replied(&mut self, context: &Context, question: DataQuestion, reply: Reply) -> Vec<Reaction> {
        update::replied(self, context, question, reply)
    }
}
