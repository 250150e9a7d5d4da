//! Performs what the review pane asks for.

use super::Job;
use crate::panes::review::{Effect, Event};

/// What the review pane's work needs to keep between effects.
#[derive(Debug, Default)]
pub struct Performer {}

impl Performer {
    /// Does `effect`, answering through `job`. Returns at once: work goes to `job.spawn`.
    pub fn perform(&mut self, effect: Effect, _job: Job<Event>) {
        match effect {}
    }
}
