//! How the train pane reacts.

use super::effect::{Event, Question};
use super::state::State;
use crate::app::{Context, Input, Reaction};

/// Reacts to one input. Pure but for the state: no IO, no clock.
pub fn update(_state: &mut State, _context: &Context, _input: Input<Event, Question>) -> Vec<Reaction> {
    Vec::new()
}
