//! What a pane may ask of the rest of the workbench.

use std::path::PathBuf;

use super::flash::Severity;
use crate::command::Command;
use crate::panes::{PaneEffect, PaneId, PaneQuestion};

/// What a pane asks for after an input: work, or something of the shell around it.
#[derive(Debug, PartialEq)]
pub enum Reaction {
    /// Work for the pane's performer.
    Perform(PaneEffect),
    /// Say something in the footer.
    Flash(Severity, String),
    /// Ask before something that cannot be undone; yes comes back as [`Reply::Yes`].
    Confirm(Confirm),
    /// Ask for a line of text; it comes back as [`Reply::Text`], and the box closes unless [`Reaction::Entry`] says
    /// otherwise.
    Prompt(Prompt),
    /// Whether the text entered for this question is accepted.
    Entry(Question, Entry),
    /// Offer a choice; it comes back as [`Reply::Choice`].
    Pick(Pick),
    /// Show a longer text in a box, scrollable.
    Message(Message),
    Show(PaneId),
    /// Show something in the pane that is about it.
    Follow(Link),
    /// Run another command, in its own pane.
    Run(Command),
    /// Put text on the terminal's clipboard.
    Copy(String),
    /// Open a file in the editor, at a line counted from 1; `Input::Edited` follows.
    Edit(PathBuf, Option<usize>),
    /// This answer or deadline changes nothing on the screen: no frame is needed.
    Unchanged,
}

impl Reaction {
    /// Whether something outside the pane may look different after it.
    pub(super) fn reaches_the_shell(&self) -> bool {
        !matches!(self, Self::Perform(_) | Self::Unchanged)
    }
}

/// Asks yes or no; no is the default.
#[derive(Clone, Debug, PartialEq)]
pub struct Confirm {
    /// The question, naming the object: `Stop lora r16?`.
    pub title: String,
    /// The consequences, a line each.
    pub lines: Vec<String>,
    /// The word on the button that does it: `Stop`.
    pub yes: String,
    /// Comes back with the reply.
    pub question: Question,
}

/// Asks for a line of text.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// What is asked for.
    pub title: String,
    /// The text in the field at first.
    pub initial: String,
    /// A line below the field: the form expected, an example.
    pub hint: String,
    /// Comes back with the text.
    pub question: Question,
}

/// A pane's decision about an entered text.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// It is being checked: the box stays open and takes no keys until another decision follows.
    Checked,
    /// It is accepted: the box closes.
    Taken,
    /// It is refused: the box stays open with the text and the reason. If the box was closed meanwhile, the reason
    /// is shown by itself.
    Refused(Message),
}

/// Offers a choice from a list that can be narrowed by typing.
#[derive(Clone, Debug, PartialEq)]
pub struct Pick {
    /// What is chosen.
    pub title: String,
    /// The choices.
    pub items: Vec<PickItem>,
    /// The item selected at first.
    pub selected: usize,
    /// Comes back with the position of the chosen item.
    pub question: Question,
}

/// One thing to choose.
#[derive(Clone, Debug, PartialEq)]
pub struct PickItem {
    /// Its name.
    pub label: String,
    /// What distinguishes it, right of the name.
    pub detail: String,
}

/// A text to read.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Heading.
    pub title: String,
    /// Text with line ends; shown as it is, columns kept, so that carets stay under their words.
    pub text: String,
    pub severity: Severity,
}

/// What a box asks. It says where the reply goes: to the workbench or to a pane.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// The workbench itself asked.
    App(AppQuestion),
    /// A pane asked.
    Pane(PaneQuestion),
}

/// What the person replied in a box.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Yes,
    Text(String),
    /// The item at this position.
    Choice(usize),
}

/// What the workbench itself asks.
#[derive(Clone, Debug, PartialEq)]
pub enum AppQuestion {
    /// Which theme, of these.
    Theme(Vec<String>),
    /// Leave although something would be lost.
    Quit,
}

/// Something one pane wants shown by another.
#[derive(Clone, Debug, PartialEq)]
pub enum Link {
    /// Rows of the dataset, by index, with what they have in common.
    Rows(String, Vec<usize>),
    Run(String),
    /// The start of a new run.
    NewRun,
    /// A comparison of a run's result, or of one of its checkpoints by step, with the base model.
    Review(String, Option<u64>),
    /// A trial of the queue, by its id.
    Trial(i64),
}

impl Link {
    pub fn pane(&self) -> PaneId {
        match self {
            Self::Rows(..) => PaneId::Data,
            Self::Run(_) | Self::NewRun => PaneId::Train,
            Self::Review(..) => PaneId::Review,
            Self::Trial(_) => PaneId::Sweep,
        }
    }
}
