//! Base and tuned answers side by side, hidden until judged.

mod command;
mod compare;
mod effect;
mod judge;
mod prompt;
mod state;
mod target;
mod update;
mod view;
mod words;

#[cfg(test)]
mod tests;

pub use command::{COMMANDS, Command};
pub use effect::{Ask, Broken, Effect, End, Event, Question};
pub use state::{State, contexts, deadline, hints, status, unavailable, unsaved};
pub use target::{Candidate, Target};
pub use update::update;
pub use view::view;
