//! The Luthier workbench: command line and terminal interface.

pub mod app;
pub mod cli;
pub mod command;
pub mod effects;
mod home;
pub mod hub;
pub mod keymap;
pub mod panes;
mod project;
#[cfg(test)]
mod rooms;
pub mod runtime;
pub mod telemetry;
pub mod term;
#[cfg(test)]
mod testing;
pub mod theme;
mod told;
pub mod ui;
pub mod widgets;

pub use runtime::{OpenError, open};
