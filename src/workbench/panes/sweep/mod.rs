//! The queue of trials and their results.

mod command;
mod effect;
mod event;
mod question;
mod state;
#[cfg(test)]
mod tests;
mod update;
mod view;

pub use command::SweepCommand;
pub use effect::SweepEffect;
pub use event::SweepEvent;
pub use question::SweepQuestion;
pub use state::{Snapshot, SweepState};
