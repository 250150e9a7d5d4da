//! Settings, themes and keys: read, and read again when their files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use luthier_core::config::{Config, Watcher};
use luthier_core::files::read_text;
use luthier_core::text;
use tokio::sync::mpsc;

use super::{Lanes, device};
use crate::app::{Event, SettingsEffect};
use crate::keymap::Keymap;
use crate::theme::{DEFAULT, Library, Theme};

/// Largest keymap file read, in bytes.
const MAX_KEYMAP: u64 = 256 * 1024;

/// Where settings, themes and keys are read from.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The project folder.
    pub project: PathBuf,
    /// Themes.
    pub themes: Library,
    /// The person's keymap, whether or not it exists.
    pub keymap: Option<PathBuf>,
}

impl Settings {
    /// Reads the project's settings; an error is the text of all problems, with carets.
    pub fn read_config(&self) -> Result<Config, String> {
        Config::load(&self.project, &[]).map_err(|problem| problem.to_string())
    }

    /// Reads the keymap; the defaults where there is none.
    pub fn read_keymap(&self) -> (Keymap, Vec<String>) {
        match self.keymap.as_deref().map(read_bounded) {
            None | Some(Ok(None)) => Keymap::defaults(),
            Some(Ok(Some(text))) => Keymap::with_user(&text),
            Some(Err(problem)) => (Keymap::defaults().0, vec![problem]),
        }
    }

    /// Reads a theme; the one used by default where there is none of that name.
    pub fn read_theme(&self, name: &str) -> (Theme, Vec<String>) {
        let (theme, warnings) = self.themes.load(name);
        let known = self.themes.names();
        if known.iter().any(|known| known == name) {
            return (theme, warnings);
        }
        let unknown = format!(
            "there is no theme \"{}\", so {DEFAULT} is used; ui.theme in luthier.toml can be {}",
            text::clean_line(name),
            known.join(", ")
        );
        (theme, vec![unknown])
    }

    fn config_path(&self) -> PathBuf {
        self.project.join("luthier.toml")
    }

    /// The files whose change is noticed while `theme` is in use.
    fn watched(&self, theme: &str) -> Vec<PathBuf> {
        let mut files = vec![self.config_path()];
        files.extend(self.keymap.clone());
        files.extend(self.themes.files(theme));
        files
    }
}

/// Reads settings, themes and keys, and posts them.
#[derive(Debug)]
pub(super) struct Performer {
    settings: Settings,
    theme: Arc<Mutex<String>>,
    watcher: Option<Watcher>,
}

impl Performer {
    /// A performer for settings of which `theme` is in use.
    pub fn new(settings: Settings, theme: String) -> Self {
        Self { settings, theme: Arc::new(Mutex::new(theme)), watcher: None }
    }

    /// Begins `effect`, answering on `events`.
    pub fn perform(&mut self, effect: SettingsEffect, events: &mpsc::Sender<Event>, lanes: &Lanes) {
        let settings = self.settings.clone();
        let events = events.clone();
        // When the workbench is closing, what cannot be posted is dropped.
        match effect {
            SettingsEffect::Watch => {
                device::watch(&events);
                let theme = Arc::clone(&self.theme);
                let files = settings.watched(&locked(&theme));
                self.watcher = Some(Watcher::new(files, move |path| {
                    drop(events.blocking_send(changed(&settings, &path, &theme)));
                }));
            }
            SettingsEffect::LoadTheme(name) => {
                locked(&self.theme).clone_from(&name);
                if let Some(watcher) = &self.watcher {
                    watcher.set_files(settings.watched(&name));
                }
                lanes.handle().spawn_blocking(move || {
                    let (theme, warnings) = settings.read_theme(&name);
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

fn locked(theme: &Mutex<String>) -> std::sync::MutexGuard<'_, String> {
    theme.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the change of a watched file means.
fn changed(settings: &Settings, path: &Path, theme: &Mutex<String>) -> Event {
    if path == settings.config_path() {
        Event::Config(Box::new(settings.read_config()))
    } else if settings.keymap.as_deref() == Some(path) {
        let (keymap, problems) = settings.read_keymap();
        Event::Keymap(Box::new(keymap), problems)
    } else {
        let (theme, warnings) = settings.read_theme(&locked(theme));
        Event::Theme(Box::new(theme), warnings)
    }
}

/// The text of a file that need not exist.
fn read_bounded(path: &Path) -> Result<Option<String>, String> {
    match read_text(path, MAX_KEYMAP) {
        Ok(text) => Ok(Some(text)),
        Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(problem) => Err(format!("{}: {problem}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::theme::{ColorDepth, Role};

    const GOOD: &str = "[model]\npath = \"models/tiny\"\n[data]\ntrain = \"train.jsonl\"\n";

    #[test]
    fn an_unknown_theme_is_reported_with_those_there_are() {
        let settings = Settings {
            themes: Library { depth: Some(ColorDepth::True), ..Library::default() },
            ..Settings::default()
        };
        for unknown in ["nonsense", "../mine", "", "\u{1b}[31m"] {
            let (theme, warnings) = settings.read_theme(unknown);
            assert_eq!(theme.style(Role::Error), settings.read_theme(DEFAULT).0.style(Role::Error));
            let [warning] = &warnings[..] else { panic!("{warnings:?}") };
            assert!(warning.contains("luthier is used") && !warning.contains('\u{1b}'), "{warning}");
            for known in settings.themes.names() {
                assert!(warning.contains(&known), "{warning}");
                assert_eq!(settings.read_theme(&known).1, Vec::<String>::new());
            }
        }
    }

    #[test]
    fn an_edited_file_arrives_as_an_event() {
        let folder = tempfile::tempdir().unwrap();
        let own = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("luthier.toml", GOOD);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let lanes = Lanes::new(runtime.handle().clone());
        let (events, mut received) = mpsc::channel(16);
        let settings = Settings {
            project: folder.path().into(),
            themes: Library { folder: Some(own.path().join("themes")), ..Library::default() },
            keymap: Some(own.path().join("keymap.toml")),
        };
        let mut performer = Performer::new(settings, "mine".to_owned());
        performer.perform(SettingsEffect::Watch, &events, &lanes);
        let mut next = || loop {
            match received.blocking_recv().unwrap() {
                Event::Device(_) => {}
                event => return event,
            }
        };
        write("luthier.toml", &format!("{GOOD}[train]\nlearning_rate = 1e-5\n"));
        assert!(
            matches!(next(), Event::Config(config) if config.as_ref().as_ref().unwrap().train.learning_rate < 2e-5)
        );
        write("luthier.toml", "[model\n");
        assert!(
            matches!(next(), Event::Config(config) if config.as_ref().as_ref().unwrap_err().contains("luthier.toml"))
        );
        std::fs::write(own.path().join("keymap.toml"), "[global]\nx = \"quit\"\n").unwrap();
        assert!(matches!(next(), Event::Keymap(_, problems) if problems.is_empty()));
        std::fs::create_dir(own.path().join("themes")).unwrap();
        std::fs::write(own.path().join("themes/mine.toml"), "inherits = \"luthier\"\n").unwrap();
        let event = next();
        let Event::Theme(theme, warnings) = event else { panic!("{event:?}") };
        assert_eq!((theme.name(), warnings), ("mine", Vec::new()));
    }
}
