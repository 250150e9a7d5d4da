//! Base and tuned answers side by side, hidden until judged.

mod command;
mod compare;
mod effect;
mod event;
mod judge;
mod prompt;
mod question;
mod state;
mod target;
mod update;
mod view;
mod words;

#[cfg(test)]
mod tests;

pub use command::ReviewCommand;
pub use compare::{Broken, End};
pub use effect::{Ask, ReviewEffect};
pub use event::ReviewEvent;
pub use question::ReviewQuestion;
pub use state::ReviewState;
pub use target::{Candidate, Target};
