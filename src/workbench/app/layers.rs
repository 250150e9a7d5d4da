//! Boxes over the panes. The topmost one takes the keys.

use super::reaction::{Confirm, Message, Pick, Prompt, Question};
use crate::command::{self, Command, Match};
use crate::keymap::KeyContext;
use crate::widgets::{ListState, Scroll, TextLine};

/// A box over the panes.
#[derive(Debug)]
pub enum Layer {
    Palette(Chooser),
    /// The keys that work in the pane below.
    Help(Scroll),
    Messages(Scroll),
    /// Asks yes or no.
    Confirm(ConfirmBox),
    /// A text to read.
    Message(Message, Scroll),
    /// Asks for a line of text.
    Prompt(PromptBox),
    Pick(Pick, Chooser),
}

/// Asks yes or no, with the button that enter would press.
#[derive(Debug)]
pub struct ConfirmBox {
    pub confirm: Confirm,
    /// Whether enter says yes.
    pub yes: bool,
}

/// Asks for a line of text, with what is typed.
#[derive(Debug)]
pub struct PromptBox {
    pub prompt: Prompt,
    /// What is typed.
    pub line: TextLine,
    /// Whether the answer is being typed, checked or was refused.
    pub standing: Standing,
}

/// The state of the answer to a prompt.
#[derive(Debug)]
pub enum Standing {
    /// It is being typed.
    Open,
    /// It was entered and is being checked.
    Checked,
    /// It was refused and can be corrected.
    Refused(Message),
}

impl PromptBox {
    pub fn new(prompt: Prompt) -> Self {
        Self { line: TextLine::new(&prompt.initial), prompt, standing: Standing::Open }
    }

    /// The line, unless its text is being checked: it must not change meanwhile.
    pub fn typed(&mut self) -> Option<&mut TextLine> {
        if self.is_checked() { None } else { Some(&mut self.line) }
    }

    /// Whether the box waits for the check of its answer to `question`.
    pub fn awaits(&self, question: &Question) -> bool {
        self.is_checked() && self.prompt.question == *question
    }

    /// Whether what was entered is being looked at.
    pub fn is_checked(&self) -> bool {
        matches!(self.standing, Standing::Checked)
    }
}

/// A list narrowed by typing.
#[derive(Debug)]
pub struct Chooser {
    /// What is typed.
    pub line: TextLine,
    /// Selection in the list of matches.
    pub list: ListState,
    /// Matches, best first.
    pub matches: Vec<Match>,
    candidates: Vec<String>,
}

impl Chooser {
    /// All of `candidates`, with one of them selected.
    pub fn new(candidates: Vec<String>, selected: usize) -> Self {
        let matches = command::rank("", candidates.iter().map(String::as_str));
        let mut list = ListState::new(matches.len());
        list.select(selected);
        Self { line: TextLine::default(), list, matches, candidates }
    }

    /// The position of the selected one among the candidates.
    pub fn chosen(&self) -> Option<usize> {
        self.list.selected().and_then(|selected| self.matches.get(selected)).map(|found| found.index)
    }

    /// The number of candidates, matching or not.
    pub fn total(&self) -> usize {
        self.candidates.len()
    }

    /// Finds the matches again and selects the best.
    pub fn narrow(&mut self) {
        self.matches = command::rank(self.line.value(), self.candidates.iter().map(String::as_str));
        self.list = ListState::new(self.matches.len());
    }
}

impl Layer {
    /// The contexts active while this is the topmost box, nearest first.
    pub fn contexts(&self) -> Vec<KeyContext> {
        match self {
            Self::Palette(_) | Self::Prompt(..) | Self::Pick(..) => vec![KeyContext::Input],
            Self::Help(_) | Self::Messages(_) | Self::Message(..) => {
                vec![KeyContext::Modal, KeyContext::List]
            }
            Self::Confirm(_) => vec![KeyContext::Modal, KeyContext::List],
        }
    }

    /// The part of the box that scrolls as a text, if it has one.
    pub fn scroll(&mut self) -> Option<&mut Scroll> {
        match self {
            Self::Help(scroll) | Self::Messages(scroll) | Self::Message(_, scroll) => Some(scroll),
            Self::Palette(_) | Self::Confirm(_) | Self::Prompt(..) | Self::Pick(..) => None,
        }
    }

    /// The field that is typed into, if there is one, and whether typing narrows a list.
    pub fn chooser(&mut self) -> Option<&mut Chooser> {
        match self {
            Self::Palette(chooser) | Self::Pick(_, chooser) => Some(chooser),
            _ => None,
        }
    }
}

/// What the palette searches: name and meaning of each command, in table order.
pub fn palette_candidates() -> Vec<String> {
    palette_commands().map(|command| format!("{}  {}", command.name(), command.entry().doc)).collect()
}

/// The commands of the palette, in table order: those that mean something without a key of their own
/// context.
pub fn palette_commands() -> impl Iterator<Item = Command> {
    command::table()
        .map(|entry| entry.command)
        .filter(|command| !matches!(command, Command::Input(_) | Command::Modal(_) | Command::List(_)))
}
