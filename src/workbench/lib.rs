//! The Luthier workbench: command line and terminal interface.

pub mod app;
#[cfg(test)]
mod boundaries;
pub mod cli;
pub mod command;
pub mod effects;
pub mod hub;
pub mod keymap;
pub mod panes;
mod project;
pub mod runtime;
pub mod telemetry;
pub mod term;
#[cfg(test)]
mod testing;
pub mod theme;
pub mod ui;
pub mod widgets;

pub use runtime::{OpenError, open};
