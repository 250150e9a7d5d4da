//! Rows, loss mask and pre-flight of the project's data.

mod command;
mod compare;
mod effect;
mod event;
mod facts;
mod lengths;
mod listing;
mod pool;
mod question;
mod search;
mod state;
#[cfg(test)]
mod tests;
mod update;
mod view;

pub use command::DataCommand;
pub use effect::DataEffect;
pub use event::{Checked, DataEvent, Found};
pub use listing::Field;
pub use pool::{Chosen, Pool, Rendered, RowSize};
pub use question::DataQuestion;
pub(crate) use search::Search;
pub use state::{DataState, Table};
