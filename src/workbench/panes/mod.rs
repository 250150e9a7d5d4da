//! The panes, and all that the rest of the workbench knows about them: the trait [`Pane`] and one list.
//!
//! A new pane needs
//!
//! 1. a folder here with a state that implements [`Pane`] and [`PaneTypes`], and its `mod` line below;
//! 2. its line in the list `panes!`;
//! 3. a performer of its effects: `effects/<pane>.rs` with a `Performer` that has the functions
//!    `new(project: PathBuf, host: Host)` and `perform(&mut self, effect, job)`, and its `mod` line in `effects`.
//!
//! The list generates everything else: the pane's tab and the command that shows it, its place in the command table,
//! in the keymap and in help, and its variants of [`PaneId`], [`PaneCommand`], [`PaneEffect`], [`PaneEvent`] and
//! [`PaneQuestion`]. These are closed enums, so a `match` over panes that misses one does not compile.

use std::fmt::Debug;
use std::ops::{Index, IndexMut};
use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use strum::{EnumIter, IntoEnumIterator};

use crate::app::{Context, Input, Question, Reaction, Reply, Slot};
use crate::command::{AppCommand, Command, Entry};
use crate::keymap::KeyContext;
use crate::theme::Theme;

pub mod data;
pub mod review;
pub mod sweep;
pub mod train;

/// The list of panes, in the order of their tabs: folder, name, state, the key that shows it, the question it
/// answers. Hands the list to the macro `$generate`.
macro_rules! panes {
    ($generate:ident) => {
        $generate! {
            data Data(DataState) "1" "what am I training on?";
            train Train(TrainState) "2" "how is it going?";
            sweep Sweep(SweepState) "3" "which settings are best?";
            review Review(ReviewState) "4" "is it really better than the base model?";
        }
    };
}
pub(crate) use panes;

/// What the workbench asks of a pane. No function does IO or reads the clock.
pub trait Pane {
    /// Reacts to an input.
    fn update(&mut self, context: &Context, input: Input) -> Vec<Reaction>;

    fn view(&self, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme);

    /// The key contexts active now, nearest first; the workbench adds the global one.
    fn contexts(&self, context: &Context) -> Vec<KeyContext>;

    /// The commands worth a place in the footer now, most useful first.
    fn hints(&self, context: &Context) -> Vec<Command>;

    /// Why `command` cannot be run now, or nothing if it can.
    fn unavailable(&self, context: &Context, command: Command) -> Option<String>;

    /// What the right end of the header shows instead of the machine's state.
    fn status(&self, _context: &Context) -> Option<String> {
        None
    }

    /// When the pane next needs [`Input::Deadline`], in time since the workbench opened. Asked only while the pane
    /// is shown.
    fn deadline(&self, _context: &Context) -> Option<Duration> {
        None
    }

    /// What would be lost if the workbench were closed now, a line each.
    fn unsaved(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The types that are a pane's own, and what it does with those that come back to it.
pub trait PaneTypes: Pane + Default {
    type Command: Copy + Into<Command> + 'static;
    /// Work for its performer; has a function `slot(&self) -> Slot`.
    type Effect: Debug + PartialEq;
    /// What its performer answers.
    type Event: Debug;
    /// What it asks in boxes.
    type Question: Clone + Debug + PartialEq;

    /// Its part of the command table.
    const COMMANDS: &[Entry<Self::Command>];

    /// Reacts to an answer of the performer.
    fn answered(&mut self, context: &Context, event: Self::Event) -> Vec<Reaction>;

    /// Reacts to the person's reply to a question.
    fn replied(&mut self, context: &Context, question: Self::Question, reply: Reply) -> Vec<Reaction>;
}

/// An enum with a variant for each pane that holds the type `$Type` of its [`PaneTypes`].
macro_rules! enum_of_panes {
    ($(#[$attribute:meta])* $Enum:ident, $Type:ident: $($module:ident $Pane:ident($State:ident);)+) => {
        $(#[$attribute])*
        pub enum $Enum {
            $($Pane(<$module::$State as PaneTypes>::$Type)),+
        }

        impl $Enum {
            /// The pane it belongs to.
            pub fn pane(&self) -> PaneId {
                match self {
                    $(Self::$Pane(_) => PaneId::$Pane),+
                }
            }
        }
    };
}

/// Everything that is generated from the list but the performers, which `effects` generates.
macro_rules! generate_panes {
    ($($module:ident $Pane:ident($State:ident) $key:literal $question:literal;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EnumIter)]
        pub enum PaneId {
            $(#[doc = $question] $Pane),+
        }

        impl PaneId {
            /// The name in the header.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$Pane => stringify!($Pane)),+
                }
            }

            /// The name in keymap files.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$Pane => stringify!($module)),+
                }
            }
        }

        #[derive(Debug, Default)]
        pub struct Panes {
            $(pub $module: $module::$State),+
        }

        impl Index<PaneId> for Panes {
            type Output = dyn Pane;

            fn index(&self, pane: PaneId) -> &Self::Output {
                match pane {
                    $(PaneId::$Pane => &self.$module),+
                }
            }
        }

        impl IndexMut<PaneId> for Panes {
            fn index_mut(&mut self, pane: PaneId) -> &mut Self::Output {
                match pane {
                    $(PaneId::$Pane => &mut self.$module),+
                }
            }
        }

        impl Panes {
            /// Gives an answer of a performer to its pane.
            pub fn answered(&mut self, context: &Context, event: PaneEvent) -> Vec<Reaction> {
                match event {
                    $(PaneEvent::$Pane(event) => self.$module.answered(context, event)),+
                }
            }

            /// Gives the reply to a question to the pane that asked it.
            pub fn replied(&mut self, context: &Context, question: PaneQuestion, reply: Reply) -> Vec<Reaction> {
                match question {
                    $(PaneQuestion::$Pane(question) => self.$module.replied(context, question, reply)),+
                }
            }
        }

        enum_of_panes! {
            /// A command of one pane.
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            PaneCommand, Command: $($module $Pane($State);)+
        }

        enum_of_panes! {
            /// Work for the performer of one pane.
            #[derive(Debug, PartialEq)]
            PaneEffect, Effect: $($module $Pane($State);)+
        }

        enum_of_panes! {
            /// An answer for one pane.
            #[derive(Debug)]
            PaneEvent, Event: $($module $Pane($State);)+
        }

        enum_of_panes! {
            /// A question of one pane.
            #[derive(Clone, Debug, PartialEq)]
            PaneQuestion, Question: $($module $Pane($State);)+
        }

        impl PaneEffect {
            /// Whether a newer effect replaces this one.
            pub fn slot(&self) -> Slot {
                match self {
                    $(Self::$Pane(effect) => effect.slot()),+
                }
            }
        }

        $(
            impl From<<$module::$State as PaneTypes>::Command> for Command {
                fn from(command: <$module::$State as PaneTypes>::Command) -> Self {
                    Self::Pane(PaneCommand::$Pane(command))
                }
            }

            impl From<<$module::$State as PaneTypes>::Effect> for Reaction {
                fn from(effect: <$module::$State as PaneTypes>::Effect) -> Self {
                    Self::Perform(PaneEffect::$Pane(effect))
                }
            }

            impl From<<$module::$State as PaneTypes>::Question> for Question {
                fn from(question: <$module::$State as PaneTypes>::Question) -> Self {
                    Self::Pane(PaneQuestion::$Pane(question))
                }
            }
        )+

        /// The commands that show a pane.
        pub(crate) const SHOW: &[Entry] = &[$(Entry {
            command: Command::App(AppCommand::Show(PaneId::$Pane)),
            name: concat!("pane.", stringify!($module)),
            label: stringify!($module),
            doc: concat!("Go to the ", stringify!($module), " pane: ", $question),
            keys: &[(KeyContext::Global, &[$key])],
        }),+];

        /// The panes' parts of the command table.
        pub(crate) fn commands() -> Vec<Entry> {
            let mut entries = Vec::new();
            $(entries.extend(<$module::$State>::COMMANDS.iter().map(Entry::shared));)+
            entries
        }
    };
}
panes!(generate_panes);

impl PaneId {
    /// Its position in the header, from 1.
    pub fn number(self) -> usize {
        self as usize + 1
    }

    /// The pane after this one, around the end.
    #[must_use]
    pub fn next(self) -> Self {
        let mut around = Self::iter().cycle().skip(self.number());
        around.next().unwrap_or(self)
    }

    /// The pane before this one, around the start.
    #[must_use]
    pub fn previous(self) -> Self {
        let count = Self::iter().count();
        Self::iter().cycle().nth(self as usize + count - 1).unwrap_or(self)
    }
}

impl Panes {
    /// What would be lost if the workbench were closed now, a line each.
    pub fn unsaved(&self) -> Vec<String> {
        PaneId::iter().flat_map(|pane| self[pane].unsaved()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panes_go_round() {
        for pane in PaneId::iter() {
            assert_eq!(pane.next().previous(), pane);
        }
        assert_eq!(PaneId::Review.next(), PaneId::Data);
        assert_eq!(PaneId::Data.previous(), PaneId::Review);
    }

    #[test]
    fn a_pane_is_shown_by_the_key_of_its_position() {
        for (pane, entry) in PaneId::iter().zip(SHOW) {
            assert_eq!(entry.command, Command::App(AppCommand::Show(pane)));
            assert_eq!(entry.keys, [(KeyContext::Global, &[pane.number().to_string().as_str()][..])]);
        }
    }
}
