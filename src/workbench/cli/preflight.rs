//! What commands that check a project show: progress, and warnings about the theme.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::failure::Outcome;
use super::output;
use crate::project::{Progress, Project, Refusal};
use crate::theme::Library;
use luthier_core::paths::settings_folder;

/// Runs an operation that checks the data, with a bar on stderr where that is a terminal.
pub fn with_bar<T>(operation: impl FnOnce(&mut Progress) -> Result<T, Refusal>) -> Outcome<T> {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    let style = ProgressStyle::with_template("tokenising {pos}/{len} rows");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let done = operation(&mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    Ok(done?)
}

/// Warns of problems with the theme. The workbench opens nevertheless.
pub fn theme(project: &Project) {
    for problem in theme_problems(&project.config.ui.theme, settings_folder()) {
        output::note(&format!("warning: ui.theme: {problem} (the workbench opens nevertheless)"));
    }
}

/// Warns where a run that is started here would end with the log-out.
pub fn log_out() {
    if let Some(warning) = luthier_core::runs::log_out_warning() {
        output::note(&format!("warning: {warning}"));
    }
}

fn theme_problems(name: &str, settings: Option<PathBuf>) -> Vec<String> {
    let library = Library { folder: settings.map(|folder| folder.join("themes")), ..Library::default() };
    library.load(name).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_theme_is_named_with_those_there_are() {
        let settings = tempfile::tempdir().unwrap();
        std::fs::create_dir(settings.path().join("themes")).unwrap();
        std::fs::write(settings.path().join("themes/mine.toml"), "inherits = \"luthier\"\n").unwrap();
        let problems = |name: &str| theme_problems(name, Some(settings.path().to_owned()));
        assert_eq!(problems("mine"), Vec::<String>::new());
        assert_eq!(problems("luthier-light"), Vec::<String>::new());
        let told = problems("miné").join("\n");
        for known in ["no theme miné", "mine", "luthier-light", "high-contrast"] {
            assert!(told.contains(known), "{told}");
        }
    }
}
