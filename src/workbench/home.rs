//! Where a person's own themes and keys are.

use std::path::PathBuf;

/// `luthier` in `$XDG_CONFIG_HOME`, else in `~/.config`; `None` where neither is known.
pub fn settings_folder() -> Option<PathBuf> {
    std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))
        .map(|folder| folder.join("luthier"))
}
