//! Runs, their curves and what would run next.

mod command;
mod effect;
mod state;
mod update;
mod view;

pub use command::{COMMANDS, Command};
pub use effect::{Effect, Event, Question};
pub use state::{State, contexts, deadline, hints, status, unavailable, unsaved};
pub use update::update;
pub use view::view;
