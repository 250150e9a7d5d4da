//! What every pane may know about the rest of the workbench.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use luthier_core::config::Config;

use super::event::Size;
use crate::panes::PaneId;

/// The time, as it came in with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Time since the workbench opened. Monotonic; deadlines are given in it.
    pub elapsed: Duration,
    /// Wall-clock time.
    pub wall: Timestamp,
}

/// What every pane may know, read-only.
#[derive(Clone, Debug)]
pub struct Context {
    pub project: PathBuf,
    /// Its name, cleaned for the screen.
    pub project_name: String,
    /// The last valid settings; nothing while there were none yet.
    pub config: Option<Arc<Config>>,
    /// What is wrong with `luthier.toml` now, with carets; nothing while it is valid.
    pub config_problem: Option<Arc<str>>,
    pub now: Now,
    /// The time zone in which times of day are shown.
    pub zone: TimeZone,
    pub size: Size,
    /// What the machine does, for the header; empty until known.
    pub device: String,
    pub pane: PaneId,
}

impl Context {
    /// `luthier.toml` of the project.
    pub fn config_path(&self) -> PathBuf {
        self.project.join("luthier.toml")
    }

    /// The time of day of `time`, `14:02`.
    pub fn clock(&self, time: Timestamp) -> String {
        let local = time.to_zoned_datetime(self.zone.clone());
        format!("{:02}:{:02}", local.hour(), local.minute())
    }
}
