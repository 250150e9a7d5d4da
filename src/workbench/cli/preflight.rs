//! What has to be right before a run may start: model, data, and room for both.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use luthier_core::config::MethodKind;
use luthier_core::data::{Prepared, Report, Severity, prepare};
use luthier_core::eval::{Objective, Suite};
use luthier_core::machine;
use luthier_core::model::forecast::{self, Plan};
use luthier_core::model::{AdapterFiles, ModelFiles};

use super::failure::{Failure, Outcome};
use super::project::Project;
use super::{output, problems, units};
use crate::home::settings_folder;
use crate::theme::Library;

/// Problems written out; the rest is counted.
const SHOWN_PROBLEMS: usize = 20;

/// Opens the project's base model.
pub fn model(project: &Project) -> Outcome<ModelFiles> {
    Ok(ModelFiles::find(&project.config.model.path, &project.folder)?)
}

/// Reads, tokenises and checks the project's data, with progress on stderr where that is a terminal.
pub fn data(project: &Project, files: &ModelFiles) -> Outcome<Prepared> {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    let style = ProgressStyle::with_template("tokenising {pos}/{len} rows");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let prepared = prepare(&project.config, &project.folder, files, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(prepared?)
}

/// Fails where the data would spoil a run, with everything that would.
pub fn passes(report: &Report) -> Outcome {
    if !report.blocks() {
        return Ok(());
    }
    let blocking: Vec<_> =
        report.problems.iter().filter(|problem| problem.severity == Severity::Blocks).collect();
    let count = blocking.len();
    let mut lines = vec![if count == 1 {
        "one problem keeps the data from being trained on:".to_owned()
    } else {
        format!("{count} problems keep the data from being trained on:")
    }];
    let groups = problems::grouped(blocking);
    lines.extend(groups.iter().take(SHOWN_PROBLEMS).map(|group| output::indented(&group.to_string(), 2)));
    if groups.len() > SHOWN_PROBLEMS {
        lines.push(format!("… and {} more; `luthier data check` lists all", groups.len() - SHOWN_PROBLEMS));
    }
    Err(Failure::check(lines.join("\n  ")))
}

/// Says what is wrong with the theme; the workbench opens all the same.
pub fn theme(project: &Project) {
    for problem in theme_problems(&project.config.ui.theme, settings_folder()) {
        output::note(&format!("warning: ui.theme: {problem} (the workbench opens all the same)"));
    }
}

fn theme_problems(name: &str, settings: Option<PathBuf>) -> Vec<String> {
    let library = Library { folder: settings.map(|folder| folder.join("themes")), ..Library::default() };
    library.load(name).1
}

/// Fails where the objective or the suite, which the run will need much later, cannot be used.
pub fn judgement(project: &Project) -> Outcome {
    Objective::from_config(&project.config, &project.folder)?;
    if let Some(suite) = &project.config.review.suite {
        Suite::load(&project.path(suite))?;
    }
    Ok(())
}

/// Fails where `method.init` names nothing that a run could start from.
pub fn start(project: &Project) -> Outcome {
    let Some(init) = &project.config.method.init else { return Ok(()) };
    let folder = project.path(init);
    match project.config.method.kind {
        MethodKind::Full => drop(ModelFiles::open(&folder)?),
        _ => drop(AdapterFiles::open(&folder)?),
    }
    Ok(())
}

/// What a run would train and need; fails where this machine cannot hold it.
pub fn plan(project: &Project, files: &ModelFiles, prepared: &Prepared) -> Outcome<Plan> {
    prepared.check_warmup(&project.config)?;
    Ok(forecast::plan(files, &project.config, &prepared.summary())?)
}

/// Fails where the disk cannot hold the checkpoints that the run will keep.
pub fn disk(project: &Project, plan: &Plan) -> Outcome {
    let train = &project.config.train;
    let written = plan.steps.checked_div(train.checkpoint_every).unwrap_or(0) + 1;
    let kept =
        if train.keep_checkpoints == 0 { written } else { written.min(train.keep_checkpoints as u64 + 1) };
    // The adapter at the end is smaller than a checkpoint; the journal is smaller still.
    let needed = plan.checkpoint_bytes.saturating_mul(kept + 1);
    match machine::free_disk_bytes(&project.folder) {
        Ok(free) if free < needed => Err(Failure::work(format!(
            "the disk is too full: {} are free at `{}`, the run's checkpoints need {}; \
             free some space, or lower train.keep_checkpoints",
            units::bytes(free),
            project.folder.display(),
            units::bytes(needed)
        ))),
        // Where the file system does not say, the run finds out.
        Ok(_) | Err(_) => Ok(()),
    }
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
