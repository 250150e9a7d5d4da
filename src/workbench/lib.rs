//! The Luthier workbench: command line and terminal interface.

pub mod app;
pub mod cli;
pub mod command;
pub mod effects;
pub mod keymap;
pub mod panes;
pub mod theme;
pub mod widgets;
