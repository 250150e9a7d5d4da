//! What the review pane has done outside of its state, what comes back, and what it asks in boxes.

use crate::app::Slot;

/// Work for the performer in `effects/review.rs`.
#[derive(Debug, PartialEq)]
pub enum Effect {}

/// What the performer answers.
#[derive(Debug)]
pub enum Event {}

/// What the pane asks in a box, so that the answer finds its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {}

impl Effect {
    /// Whether a newer effect of its kind replaces this one.
    pub fn slot(&self) -> Slot {
        match *self {}
    }
}
