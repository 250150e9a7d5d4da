//! Rows, loss mask and pre-flight of the project's data.

mod command;
mod compare;
mod effect;
mod event;
mod lengths;
mod listing;
mod question;
mod search;
mod state;
#[cfg(test)]
mod tests;
mod update;
mod view;

pub use command::DataCommand;
pub use effect::DataEffect;
pub use event::{Checked, DataEvent};
pub use question::DataQuestion;
pub use state::{Chosen, DataState, Rendered, RowSize};
