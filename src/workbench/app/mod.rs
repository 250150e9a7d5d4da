//! The state of the workbench and how it changes. Pure: events and the time go in, effects come out.

mod boxes;
mod context;
mod effect;
mod event;
mod flash;
mod input;
mod layers;
mod reaction;
mod tag;
#[cfg(test)]
mod tests;
mod update;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use luthier_core::config::Config;
use luthier_core::text;

pub use context::{Context, Now};
pub use effect::{Effect, Ending, SettingsEffect, TerminalEffect};
pub use event::{Event, Signal, Size};
pub use flash::{Flash, Messages, Severity};
pub use input::Input;
pub use layers::{Chooser, ConfirmBox, Layer, PromptBox, Standing, palette_candidates, palette_commands};
pub use reaction::{
    AppQuestion, Confirm, Entry, Link, Message, Pick, PickItem, Prompt, Question, Reaction, Reply,
};
pub use tag::{Generations, Slot, Tag};

use crate::command::{AppCommand, Command, ViewCommand};
use crate::keymap::{Key, KeyContext, Keymap};
use crate::panes::{PaneId, Panes};
use crate::theme::Theme;

#[derive(Debug)]
pub struct App {
    /// What the panes may know.
    pub context: Context,
    pub panes: Panes,
    /// Boxes over them, the topmost last.
    pub layers: Vec<Layer>,
    /// Keys pressed so far of a longer sequence.
    pub pending: Vec<Key>,
    pub messages: Messages,
    /// The bindings in force.
    pub keymap: Keymap,
    pub theme: Theme,
    last_pane: PaneId,
    generations: Generations,
    theme_wanted: String,
    editing: Option<Editing>,
    dirty: bool,
}

/// Who opened the external editor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Editing {
    Pane(PaneId),
    Config,
}

#[derive(Debug)]
pub struct Opening {
    pub project: PathBuf,
    /// Its settings, or the text of their problems.
    pub config: Result<Config, String>,
    /// The bindings, with the problems of the user's keymap.
    pub keymap: (Keymap, Vec<String>),
    /// The look, with what is wrong in its file.
    pub theme: (Theme, Vec<String>),
    pub now: Now,
    /// The time zone in which times of day are shown.
    pub zone: TimeZone,
    pub size: Size,
}

impl App {
    pub fn new(opening: Opening) -> Self {
        let (config, config_problem) = match opening.config {
            Ok(config) => (Some(Arc::new(config)), None),
            Err(problem) => (None, Some(Arc::from(problem))),
        };
        let name = opening.project.file_name().unwrap_or(opening.project.as_os_str());
        let mut app = Self {
            context: Context {
                project_name: text::clean_line(&name.to_string_lossy()).into_owned(),
                project: opening.project,
                config,
                config_problem,
                now: opening.now,
                zone: opening.zone,
                size: opening.size,
                device: String::new(),
                pane: PaneId::Data,
            },
            panes: Panes::default(),
            layers: Vec::new(),
            pending: Vec::new(),
            messages: Messages::default(),
            keymap: opening.keymap.0,
            theme_wanted: opening.theme.0.name().to_owned(),
            theme: opening.theme.0,
            last_pane: PaneId::Train,
            generations: Generations::default(),
            editing: None,
            dirty: true,
        };
        for problem in opening.keymap.1.iter().chain(&opening.theme.1) {
            app.messages.push(Severity::Warning, problem, opening.now);
        }
        app
    }

    /// The contexts in which the next key is looked up, nearest first.
    pub fn contexts(&self) -> Vec<KeyContext> {
        let mut contexts = match self.layers.last() {
            Some(layer) => layer.contexts(),
            None => self.panes[self.context.pane].contexts(&self.context),
        };
        contexts.push(KeyContext::Global);
        contexts
    }

    /// Why `command` cannot be run now, or nothing if it can.
    pub fn unavailable(&self, command: Command) -> Option<String> {
        match command {
            Command::App(AppCommand::LastPane | AppCommand::NextPane | AppCommand::PreviousPane)
                if !self.layers.is_empty() =>
            {
                Some("a box is open; esc closes it".to_owned())
            }
            _ => self.unavailable_below(command),
        }
    }

    /// Why `command` could not be run if no box were open. Boxes that list commands ask this, since the box
    /// closes before one is run.
    pub fn unavailable_below(&self, command: Command) -> Option<String> {
        match command {
            Command::App(_) | Command::View(ViewCommand::Back) | Command::Input(_) | Command::Modal(_) => {
                None
            }
            _ => {
                let pane = command.pane().unwrap_or(self.context.pane);
                self.panes[pane].unavailable(&self.context, command)
            }
        }
    }

    /// When [`Event::Deadline`] is next wanted, in time since the workbench opened.
    pub fn deadline(&self) -> Option<Duration> {
        let pane = self.panes[self.context.pane].deadline(&self.context);
        [self.messages.deadline(), pane].into_iter().flatten().min()
    }

    /// Whether something changed since the last call.
    pub fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }
}
