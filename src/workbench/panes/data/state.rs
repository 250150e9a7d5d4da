//! What the data pane knows and shows.

use std::sync::Arc;

use luthier_core::data::{Example, Message, ProblemKind, Report, Row, Severity, Split, TokenPiece};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::command::{COMMANDS, DataCommand};
use super::effect::DataEffect;
use super::event::DataEvent;
use super::question::DataQuestion;
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

/// Which rows are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    All,
    /// The training split.
    Train,
    /// The held-out split.
    Eval,
    /// Those with a problem of this kind.
    Problem(ProblemKind),
    Quarantined,
}

/// The problems of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProblemGroup {
    pub kind: ProblemKind,
    /// The worst severity in it.
    pub severity: Severity,
    /// How many problems.
    pub count: usize,
    /// The message of the first one.
    pub message: String,
}

#[derive(Debug)]
pub struct DataState {
    /// All rows; nothing until read.
    pub rows: Option<Arc<Vec<Row>>>,
    /// Rows in quarantine.
    pub quarantined: Arc<Vec<Row>>,
    /// Why the rows cannot be read or checked.
    pub problem: Option<String>,
    /// What the check found.
    pub report: Option<Arc<Report>>,
    /// Progress of the check: rows done, rows in all.
    pub checking: Option<(usize, usize)>,
    pub filter: Filter,
    /// Rows that another pane asked for, with what they have in common; replaces the filter.
    pub asked: Option<(String, Vec<usize>)>,
    /// Words that a listed row must contain.
    pub search: String,
    /// The search while it is typed.
    pub typing: Option<TextLine>,
    /// Positions of the listed rows.
    pub listed: Vec<usize>,
    /// Selection in the list.
    pub list: ListState,
    pub form: Form,
    /// The selected row as the model sees it.
    pub rendered: Option<Rendered>,
    /// Whether keys scroll the row instead of moving in the list.
    pub reading: bool,
    /// Scroll position in the row's text.
    pub scroll: Scroll,
}

impl Default for DataState {
    fn default() -> Self {
        Self {
            rows: None,
            quarantined: Arc::default(),
            problem: None,
            report: None,
            checking: None,
            filter: Filter::All,
            asked: None,
            search: String::new(),
            typing: None,
            listed: Vec::new(),
            list: ListState::default(),
            form: Form::default(),
            rendered: None,
            reading: false,
            scroll: Scroll::default(),
        }
    }
}

impl DataState {
    /// The rows to list from: all of them, or those in quarantine.
    pub fn pool(&self) -> &[Row] {
        match self.filter {
            Filter::Quarantined => &self.quarantined,
            _ => self.rows.as_ref().map_or(&[], |rows| rows.as_slice()),
        }
    }

    /// The listed row at a position of the list.
    pub fn row_at(&self, position: usize) -> Option<&Row> {
        self.listed.get(position).and_then(|index| self.pool().get(*index))
    }

    pub fn selected(&self) -> Option<&Row> {
        self.list.selected().and_then(|position| self.row_at(position))
    }

    /// Computes which rows are listed; the selected row stays selected if it is among them.
    pub fn relist(&mut self) {
        let selected = self.selected().map(|row| row.index);
        let words: Vec<String> = self.search.split_whitespace().map(str::to_lowercase).collect();
        let listed: Vec<usize> = self
            .pool()
            .iter()
            .enumerate()
            .filter(|(_, row)| self.passes(row))
            .filter(|(_, row)| {
                let text =
                    if words.is_empty() { String::new() } else { row.example.plain_text().to_lowercase() };
                words.iter().all(|word| text.contains(word))
            })
            .map(|(position, _)| position)
            .collect();
        let position = listed.iter().position(|at| self.pool().get(*at).map(|row| row.index) == selected);
        self.list.changed(listed.len(), position.filter(|_| selected.is_some()));
        self.listed = listed;
    }

    fn passes(&self, row: &Row) -> bool {
        if let Some((_, rows)) = &self.asked {
            return rows.contains(&row.index);
        }
        match self.filter {
            Filter::All | Filter::Quarantined => true,
            Filter::Train => row.split == Split::Train,
            Filter::Eval => row.split == Split::Eval,
            Filter::Problem(kind) => self.problems_of(row.index).any(|(found, _)| found == kind),
        }
    }

    pub fn problems_of(&self, row: usize) -> impl Iterator<Item = (ProblemKind, &str)> {
        self.report
            .iter()
            .flat_map(|report| &report.problems)
            .filter(move |problem| problem.row == Some(row))
            .map(|problem| (problem.kind, problem.message.as_str()))
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
                None => groups.push(ProblemGroup {
                    kind: problem.kind,
                    severity: problem.severity,
                    count: 1,
                    message: problem.message.clone(),
                }),
            }
        }
        groups.sort_by_key(|group| (group.severity, group.kind));
        groups
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
        if self.reading {
            return vec![Command::from(DataCommand::Form), Command::View(ViewCommand::Back)];
        }
        let own = [
            Command::from(DataCommand::Form),
            Command::List(ListCommand::Open),
            Command::from(DataCommand::Filter),
            Command::View(ViewCommand::Search),
            Command::from(DataCommand::Quarantine),
            Command::from(DataCommand::Edit),
            Command::from(DataCommand::Random),
            Command::from(DataCommand::Check),
            Command::from(DataCommand::NewRun),
        ];
        own.into_iter().filter(|command| self.unavailable(context, *command).is_none()).collect()
    }

    fn unavailable(&self, context: &Context, command: Command) -> Option<String> {
        let Command::Pane(PaneCommand::Data(command)) = command else { return None };
        match command {
            DataCommand::NewRun | DataCommand::Check => {
                context.config.is_none().then(|| "luthier.toml has mistakes; `space e` opens it".to_owned())
            }
            DataCommand::Filter => self.rows.is_none().then(|| "the rows are not read yet".to_owned()),
            DataCommand::Form | DataCommand::Quarantine | DataCommand::Edit | DataCommand::Random => {
                self.selected().is_none().then(|| "no row is selected".to_owned())
            }
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
