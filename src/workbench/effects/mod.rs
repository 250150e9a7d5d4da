//! Performs effects and posts their results as events. The only place that starts work.

mod data;
mod device;
mod job;
mod review;
mod settings;
mod sweep;
mod train;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

pub use job::{Job, Lanes, Worker};
pub use settings::Settings;

use crate::app::{Effect, Event, TerminalEffect};
use crate::panes::PaneId;
use crate::project::Host;

/// Events that may wait to be handled before producers are made to wait.
pub const QUEUE: usize = 1024;

/// Performs every effect that does not need the terminal.
#[derive(Debug)]
pub struct Performer {
    events: mpsc::Sender<Event>,
    lanes: Lanes,
    settings: settings::Performer,
    data: data::Performer,
    train: train::Performer,
    sweep: sweep::Performer,
    review: review::Performer,
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
            data: data::Performer::new(settings.project.clone()),
            train: train::Performer::new(settings.project.clone(), host),
            sweep: sweep::Performer::new(settings.project.clone(), host),
            review: review::Performer::new(settings.project.clone()),
            settings: settings::Performer::new(settings, theme),
        }
    }

    /// Begins `effect`; returns at once. Effects of the terminal are handed back.
    pub fn perform(&mut self, effect: Effect) -> Option<TerminalEffect> {
        match effect {
            Effect::Terminal(effect) => return Some(effect),
            Effect::Settings(effect) => self.settings.perform(effect, &self.events, &self.lanes),
            Effect::Data(tag, effect) => {
                let job = Job::new(&self.lanes, &self.events, PaneId::Data, tag, Event::Data);
                self.data.perform(effect, job);
            }
            Effect::Train(tag, effect) => {
                let job = Job::new(&self.lanes, &self.events, PaneId::Train, tag, Event::Train);
                self.train.perform(effect, job);
            }
            Effect::Sweep(tag, effect) => {
                let job = Job::new(&self.lanes, &self.events, PaneId::Sweep, tag, Event::Sweep);
                self.sweep.perform(effect, job);
            }
            Effect::Review(tag, effect) => {
                let job = Job::new(&self.lanes, &self.events, PaneId::Review, tag, Event::Review);
                self.review.perform(effect, job);
            }
        }
        None
    }
}
