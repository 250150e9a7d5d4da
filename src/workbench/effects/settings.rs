//! Settings, themes and keys: read, read again when they change.

use std::path::{Path, PathBuf};

use luthier_core::config::Config;
use tokio::sync::mpsc;

use super::Lanes;
use crate::app::{Event, SettingsEffect};
use crate::keymap::Keymap;
use crate::theme::{Library, Theme};

/// Largest keymap file read, in bytes.
const MAX_KEYMAP: u64 = 256 * 1024;

/// Where settings, themes and keys are read from.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The project folder.
    pub project: PathBuf,
    /// Settings given on the command line, over the file.
    pub set: Vec<String>,
    /// Themes.
    pub themes: Library,
    /// The person's keymap, whether or not it exists.
    pub keymap: Option<PathBuf>,
}

impl Settings {
    /// Reads the project's settings.
    pub fn read_config(&self) -> Result<Config, String> {
        Config::load(&self.project, &self.set).map_err(|problem| problem.to_string())
    }

    /// Reads the keymap; the defaults where there is none.
    pub fn read_keymap(&self) -> (Keymap, Vec<String>) {
        match self.keymap.as_deref().map(read_bounded) {
            None | Some(Ok(None)) => Keymap::defaults(),
            Some(Ok(Some(text))) => Keymap::with_user(&text),
            Some(Err(problem)) => (Keymap::defaults().0, vec![problem]),
        }
    }

    /// Reads a theme.
    pub fn read_theme(&self, name: &str) -> (Theme, Vec<String>) {
        self.themes.load(name)
    }

    /// Begins `effect`, answering on `events`.
    pub(super) fn perform(&mut self, effect: SettingsEffect, events: &mpsc::Sender<Event>, lanes: &Lanes) {
        let settings = self.clone();
        let events = events.clone();
        match effect {
            SettingsEffect::Watch => {}
            SettingsEffect::LoadTheme(name) => {
                lanes.handle().spawn_blocking(move || {
                    let (theme, warnings) = settings.read_theme(&name);
                    // Nobody listens any more when the workbench is closing.
                    drop(events.blocking_send(Event::Theme(Box::new(theme), warnings)));
                });
            }
            SettingsEffect::ListThemes => {
                lanes.handle().spawn_blocking(move || {
                    drop(events.blocking_send(Event::ThemeNames(settings.themes.names())));
                });
            }
        }
    }
}

/// The text of a file that need not exist.
fn read_bounded(path: &Path) -> Result<Option<String>, String> {
    match std::fs::metadata(path) {
        Err(_) => Ok(None),
        Ok(metadata) if metadata.len() > MAX_KEYMAP => {
            Err(format!("{} is larger than {MAX_KEYMAP} bytes", path.display()))
        }
        Ok(_) => match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(problem) => Err(format!("{}: {problem}", path.display())),
        },
    }
}
