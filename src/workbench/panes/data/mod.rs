//! Rows, loss mask and pre-flight of the project's data.

mod command;
mod effect;
mod event;
mod question;
mod state;
#[cfg(test)]
mod tests;
mod update;
mod view;

pub use command::DataCommand;
pub use effect::DataEffect;
pub use event::DataEvent;
pub use question::DataQuestion;
pub use state::{DataState, Rendered};
