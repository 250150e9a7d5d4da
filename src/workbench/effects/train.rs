//! Performs what the train pane asks for.

use super::Job;
use crate::panes::train::{Effect, Event};

/// What the train pane's work needs to keep between effects.
#[derive(Debug, Default)]
pub struct Performer {}

impl Performer {
    /// Does `effect`, answering through `job`. Returns at once: work goes to `job.spawn`.
    pub fn perform(&mut self, effect: Effect, _job: Job<Event>) {
        match effect {}
    }
}
