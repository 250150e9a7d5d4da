//! Rows, loss mask and pre-flight of the project's data.

mod command;
mod effect;
mod state;
#[cfg(test)]
mod tests;
mod update;
mod view;

pub use command::{COMMANDS, Command};
pub use effect::{Effect, Event, Question, Rendered};
pub use state::{State, contexts, deadline, hints, status, unavailable, unsaved};
pub use update::update;
pub use view::view;
