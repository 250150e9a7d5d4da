//! Performs effects and posts their results as events. The only place that starts work.

pub(crate) mod data;
mod device;
mod job;
mod review;
mod settings;
mod sweep;
mod train;

use std::path::Path;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

pub use job::{Job, Lanes, Worker};
pub use settings::Settings;

use crate::app::{Effect, Event, Tag, TerminalEffect};
use crate::panes::{PaneEffect, PaneEvent, PaneId, panes};
use crate::project::Host;

/// Events that may wait to be handled before producers are made to wait.
pub const QUEUE: usize = 1024;

/// The performer of each pane, from the list of panes.
macro_rules! generate_performers {
    ($($module:ident $Pane:ident($State:ident) $key:literal $question:literal;)+) => {
        #[derive(Debug)]
        struct PanePerformers {
            $($module: $module::Performer),+
        }

        impl PanePerformers {
            fn new(project: &Path, host: Host) -> Self {
                Self { $($module: $module::Performer::new(project.to_owned(), host)),+ }
            }

            fn perform(&mut self, tag: Tag, effect: PaneEffect, events: &mpsc::Sender<Event>, lanes: &Lanes) {
                match effect {
                    $(PaneEffect::$Pane(effect) => {
                        let wrap = |tag, event| Event::Pane(tag, PaneEvent::$Pane(event));
                        self.$module.perform(effect, Job::new(lanes, events, PaneId::$Pane, tag, wrap));
                    })+
                }
            }
        }
    };
}
panes!(generate_performers);

/// Performs every effect that does not need the terminal.
#[derive(Debug)]
pub struct Performer {
    events: mpsc::Sender<Event>,
    lanes: Lanes,
    settings: settings::Performer,
    panes: PanePerformers,
}

impl Performer {
    /// A performer that answers on `events` and works on the blocking threads of `handle`; `theme` is the one
    /// in use.
    pub fn new(
        events: mpsc::Sender<Event>,
        handle: Handle,
        settings: Settings,
        theme: String,
        host: Host,
    ) -> Self {
        Self {
            events,
            lanes: Lanes::new(handle),
            panes: PanePerformers::new(&settings.project, host),
            settings: settings::Performer::new(settings, theme),
        }
    }

    /// Begins `effect`; returns at once. Effects of the terminal are handed back.
    pub fn perform(&mut self, effect: Effect) -> Option<TerminalEffect> {
        match effect {
            Effect::Terminal(effect) => return Some(effect),
            Effect::Settings(effect) => self.settings.perform(effect, &self.events, &self.lanes),
            Effect::Pane(tag, effect) => self.panes.perform(tag, effect, &self.events, &self.lanes),
        }
        None
    }
}
