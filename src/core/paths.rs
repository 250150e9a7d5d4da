//! The folders of the user, as the XDG Base Directory Specification defines them.

use std::env;
use std::path::PathBuf;

/// The user's themes and keys: `luthier` in `$XDG_CONFIG_HOME`, else in `~/.config`; `None` without a home folder.
pub fn settings_folder() -> Option<PathBuf> {
    base("XDG_CONFIG_HOME", ".config")
}

/// What can be fetched again: `luthier` in `$XDG_CACHE_HOME`, else in `~/.cache`; `None` without a home folder.
pub fn cache_folder() -> Option<PathBuf> {
    base("XDG_CACHE_HOME", ".cache")
}

/// Logs: `luthier` in `$XDG_STATE_HOME`, else in `~/.local/state`; `None` without a home folder.
pub fn state_folder() -> Option<PathBuf> {
    base("XDG_STATE_HOME", ".local/state")
}

fn base(variable: &str, below_home: &str) -> Option<PathBuf> {
    let chosen = env::var_os(variable).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let folder = chosen.or_else(|| Some(env::home_dir()?.join(below_home)))?;
    Some(folder.join("luthier"))
}
