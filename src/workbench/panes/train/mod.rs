//! Runs: what would run, what runs, how it is going.

mod command;
mod curves;
mod effect;
pub(crate) mod look;
mod state;
#[cfg(test)]
mod tests;
mod update;
mod view;

pub use command::{COMMANDS, Command};
pub use effect::{Effect, Event, PlanSummary, Question, Refusal};
pub use state::{State, contexts, deadline, hints, status, unavailable, unsaved};
pub use update::{settings_of, update};
pub use view::view;
