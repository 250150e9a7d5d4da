//! The four panes. Each is a folder of the same parts: `command` (its part of the command table), `effect`
//! (its effects, answers and questions), `state`, `update` and `view`; the work is done in `effects/<pane>.rs`.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use strum::{EnumIter, IntoEnumIterator};

use crate::app::{Context, Input, Link, Reaction};
use crate::command::Command;
use crate::keymap::{Key, KeyContext};
use crate::theme::Theme;

pub mod data;
pub mod review;
pub mod sweep;
pub mod train;

/// A pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter)]
pub enum PaneId {
    /// What am I training on?
    Data,
    /// How is it going?
    Train,
    /// Which settings are best?
    Sweep,
    /// Is it really better than the base model?
    Review,
}

impl PaneId {
    /// The name in the header.
    pub fn title(self) -> &'static str {
        match self {
            Self::Data => "Data",
            Self::Train => "Train",
            Self::Sweep => "Sweep",
            Self::Review => "Review",
        }
    }

    /// The number of the key that shows it, from 1.
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

/// The state of all panes.
#[derive(Debug, Default)]
pub struct Panes {
    /// The data pane.
    pub data: data::State,
    /// The train pane.
    pub train: train::State,
    /// The sweep pane.
    pub sweep: sweep::State,
    /// The review pane.
    pub review: review::State,
}

/// An input that means the same to every pane.
#[derive(Clone, Debug)]
pub enum Common {
    /// See [`Input::Started`].
    Started,
    /// See [`Input::Shown`].
    Shown,
    /// See [`Input::Hidden`].
    Hidden,
    /// See [`Input::Command`].
    Command(Command),
    /// See [`Input::Key`].
    Key(Key),
    /// See [`Input::Paste`].
    Paste(String),
    /// See [`Input::Edited`].
    Edited(std::path::PathBuf),
    /// See [`Input::Link`].
    Link(Link),
    /// See [`Input::ConfigChanged`].
    ConfigChanged,
    /// See [`Input::Deadline`].
    Deadline,
}

impl<E, Q> From<Common> for Input<E, Q> {
    fn from(common: Common) -> Self {
        match common {
            Common::Started => Self::Started,
            Common::Shown => Self::Shown,
            Common::Hidden => Self::Hidden,
            Common::Command(command) => Self::Command(command),
            Common::Key(key) => Self::Key(key),
            Common::Paste(text) => Self::Paste(text),
            Common::Edited(path) => Self::Edited(path),
            Common::Link(link) => Self::Link(link),
            Common::ConfigChanged => Self::ConfigChanged,
            Common::Deadline => Self::Deadline,
        }
    }
}

impl Panes {
    /// Lets `pane` react.
    pub fn update(&mut self, pane: PaneId, context: &Context, input: Common) -> Vec<Reaction> {
        match pane {
            PaneId::Data => data::update(&mut self.data, context, input.into()),
            PaneId::Train => train::update(&mut self.train, context, input.into()),
            PaneId::Sweep => sweep::update(&mut self.sweep, context, input.into()),
            PaneId::Review => review::update(&mut self.review, context, input.into()),
        }
    }

    /// Draws `pane`.
    pub fn view(&self, pane: PaneId, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
        match pane {
            PaneId::Data => data::view(&self.data, context, area, buffer, theme),
            PaneId::Train => train::view(&self.train, context, area, buffer, theme),
            PaneId::Sweep => sweep::view(&self.sweep, context, area, buffer, theme),
            PaneId::Review => review::view(&self.review, context, area, buffer, theme),
        }
    }

    /// The key contexts active in `pane`, nearest first.
    pub fn contexts(&self, pane: PaneId, context: &Context) -> Vec<KeyContext> {
        match pane {
            PaneId::Data => data::contexts(&self.data, context),
            PaneId::Train => train::contexts(&self.train, context),
            PaneId::Sweep => sweep::contexts(&self.sweep, context),
            PaneId::Review => review::contexts(&self.review, context),
        }
    }

    /// The commands that `pane` wants in the footer, most useful first.
    pub fn hints(&self, pane: PaneId, context: &Context) -> Vec<Command> {
        match pane {
            PaneId::Data => data::hints(&self.data, context),
            PaneId::Train => train::hints(&self.train, context),
            PaneId::Sweep => sweep::hints(&self.sweep, context),
            PaneId::Review => review::hints(&self.review, context),
        }
    }

    /// Why `pane` cannot do `command` now.
    pub fn unavailable(&self, pane: PaneId, context: &Context, command: Command) -> Option<String> {
        match pane {
            PaneId::Data => data::unavailable(&self.data, context, command),
            PaneId::Train => train::unavailable(&self.train, context, command),
            PaneId::Sweep => sweep::unavailable(&self.sweep, context, command),
            PaneId::Review => review::unavailable(&self.review, context, command),
        }
    }

    /// What the header says at its right end while `pane` is shown.
    pub fn status(&self, pane: PaneId, context: &Context) -> Option<String> {
        match pane {
            PaneId::Data => data::status(&self.data, context),
            PaneId::Train => train::status(&self.train, context),
            PaneId::Sweep => sweep::status(&self.sweep, context),
            PaneId::Review => review::status(&self.review, context),
        }
    }

    /// When `pane` wants to be woken.
    pub fn deadline(&self, pane: PaneId, context: &Context) -> Option<Duration> {
        match pane {
            PaneId::Data => data::deadline(&self.data, context),
            PaneId::Train => train::deadline(&self.train, context),
            PaneId::Sweep => sweep::deadline(&self.sweep, context),
            PaneId::Review => review::deadline(&self.review, context),
        }
    }

    /// What would be lost if the workbench were left now, a line each.
    pub fn unsaved(&self) -> Vec<String> {
        let mut lines = data::unsaved(&self.data);
        lines.extend(train::unsaved(&self.train));
        lines.extend(sweep::unsaved(&self.sweep));
        lines.extend(review::unsaved(&self.review));
        lines
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
}
