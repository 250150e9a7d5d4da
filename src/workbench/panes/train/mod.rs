//! Runs: planning, starting, following and controlling them.

mod command;
mod curves;
mod effect;
mod event;
pub(crate) mod look;
mod plan;
mod question;
mod settings;
mod state;
#[cfg(test)]
mod tests;
mod update;
mod view;

pub use command::TrainCommand;
pub use effect::TrainEffect;
pub use event::TrainEvent;
pub use plan::{PlanSummary, Refusal};
pub use question::TrainQuestion;
pub use settings::settings_of;
pub use state::TrainState;
