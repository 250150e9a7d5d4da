//! Control over one run.

use luthier_core::config::{Config, Edit, write_key};
use luthier_core::files;
use luthier_core::runs::{
    self, Action, Checkpoint, Request, ResumeWay, RunDir, RunError, RunState, SETTINGS_FILE, SettingsHistory,
    Status, UNDO, journaled_edits, newest_to_undo, resume_way, start_detached_with,
};
use luthier_core::text::clean_line;

use super::{Host, Refusal};

/// Asks a live run for something. Returns what it answers.
pub fn ask(run: &RunDir, request: &Request) -> Result<String, Refusal> {
    let action = match request {
        Request::Pause => Some(Action::Pause),
        Request::Resume => Some(Action::Resume),
        Request::Checkpoint => Some(Action::Checkpoint),
        Request::Stop { .. } => Some(Action::Stop),
        Request::Edit { .. } => Some(Action::Edit),
        Request::Evaluate => Some(Action::Evaluate),
        Request::Sample { .. } => Some(Action::Sample),
        _ => None,
    };
    let status = run.status()?;
    // A live process knows more than the status that it wrote a moment ago.
    if let Some(action) = action.filter(|_| !status.state.is_live()) {
        action.check(&status, newest_checkpoint(run)).map_err(|reason| refused(run, &status, reason))?;
    }
    Ok(runs::ask(run, request)?)
}

/// Changes a setting of a live run, in the name of `who`. Returns what the run answers.
pub fn edit(run: &RunDir, key: &str, value: &str, who: &str) -> Result<String, Refusal> {
    // The run checks it too, but does not know how the setting was typed.
    Config::load_file(&run.config_path(), &[format!("{key}={value}")])?;
    let who = Some(who.to_owned());
    ask(run, &Request::Edit { key: key.to_owned(), value: value.to_owned(), who })
}

/// Takes back the newest edit of a run that was not taken back, in the name of `who`. Returns what happened.
pub fn undo_edit(run: &RunDir, who: &str) -> Result<String, Refusal> {
    let edits = journaled_edits(&run.journal_path());
    let status = run.status()?;
    let edit = newest_to_undo(&edits).ok_or_else(|| Refusal::State {
        run: run.id().to_owned(),
        reason: "there is no edit left to undo".to_owned(),
    })?;
    if status.state.is_live() {
        self::edit(run, &edit.key, &edit.old, &format!("{UNDO}{who}"))
    } else {
        write_setting(run, &edit.key, &edit.old)
    }
}

/// Changes a setting in the file of a run without a process, which reads it when it is resumed.
pub fn write_setting(run: &RunDir, key: &str, value: &str) -> Result<String, Refusal> {
    write_key(&run.config_path(), key, value)?;
    Ok(format!("{key} = {value} from when the run is resumed"))
}

/// Resumes a paused run, or starts the engine again on one whose process is gone. Returns what happened.
pub fn resume(run: &RunDir, host: &Host) -> Result<String, Refusal> {
    let status = run.status()?;
    if status.state.is_live() {
        // A live process knows more than the status that it wrote a moment ago.
        return runs::ask(run, &Request::Resume).map_err(|error| match error {
            RunError::Refused(reason) => refused(run, &status, &reason),
            _ if status.state != RunState::Paused => refused(run, &status, "it is already running"),
            other => other.into(),
        });
    }
    match resume_way(&status, newest_checkpoint(run)).map_err(|reason| refused(run, &status, reason))? {
        ResumeWay::Ask => ask(run, &Request::Resume),
        ResumeWay::Start { .. } => {
            let checkpoint = usable_checkpoint(run);
            let changes = fixed_changes(run, checkpoint.as_ref())?;
            if !changes.is_empty() {
                return Err(Refusal::Fixed { run: run.id().to_owned(), file: run.config_path(), changes });
            }
            let process = start_detached_with(&(host.engine)()?, run, &[])?;
            let from =
                checkpoint.map_or_else(|| "the beginning".to_owned(), |from| format!("step {}", from.step));
            Ok(format!("continues from {from}, process {process}"))
        }
    }
}

/// Puts settings that are fixed for the life of a run, and that its file has changed, back in the file; the whole file if
/// it is missing and a checkpoint has the settings. Returns what was put back, in words.
pub fn put_back(run: &RunDir) -> Result<Vec<String>, Refusal> {
    let (checkpoint, file) = (usable_checkpoint(run), run.config_path());
    let kept = checkpoint.as_ref().map(|checkpoint| checkpoint.path.join(SETTINGS_FILE));
    if let (Some(checkpoint), Some(kept)) = (&checkpoint, kept.filter(|kept| kept.is_file()))
        && file.symlink_metadata().is_err()
    {
        let then = Config::load_file(&kept, &[])?;
        let last = SettingsHistory::read(&then, Some(checkpoint), &run.journal_path())?.last;
        files::replace(&file, last.to_toml().as_bytes(), files::Access::Private)
            .map_err(|source| Refusal::System { doing: "writing config.toml", source })?;
        return Ok(vec![format!(
            "config.toml is written again from the checkpoint of step {}",
            checkpoint.step
        )]);
    }
    let changes = fixed_changes(run, checkpoint.as_ref())?;
    for Edit { key, old, .. } in &changes {
        write_key(&file, key, old)?;
    }
    let said = |Edit { key, old, new, .. }: &Edit| format!("{key} is put back from {new} to {old}");
    Ok(changes.iter().map(said).collect())
}

/// What a run's file has changed of what is fixed for the life of the run.
fn fixed_changes(run: &RunDir, checkpoint: Option<&Checkpoint>) -> Result<Vec<Edit>, Refusal> {
    // Without the file nothing can start, which says why.
    if checkpoint.is_none() || !run.config_path().is_file() {
        return Ok(Vec::new());
    }
    let file = Config::load_file(&run.config_path(), &[])?;
    Ok(SettingsHistory::read(&file, checkpoint, &run.journal_path())?.refused(&file))
}

/// A checkpoint with more bytes is not read before a resume: the engine reads it soon, and passes over a damaged one.
const READ_AT_MOST: u64 = 1 << 30;

/// The newest checkpoint that the engine would go on from, as far as can be seen without reading very large ones.
fn usable_checkpoint(run: &RunDir) -> Option<Checkpoint> {
    let is_usable = |checkpoint: &Checkpoint| match checkpoint.manifest() {
        Ok(manifest) => manifest.bytes() > READ_AT_MOST || checkpoint.verify().is_ok(),
        Err(_) => false,
    };
    run.checkpoints().into_iter().rev().find(is_usable)
}

fn newest_checkpoint(run: &RunDir) -> Option<u64> {
    run.checkpoints().last().map(|checkpoint| checkpoint.step)
}

/// Of a live run it also says who works on it, and what is wrong with it.
fn refused(run: &RunDir, status: &Status, reason: &str) -> Refusal {
    let reason = if status.state.is_live() {
        let host = clean_line(&status.host);
        let remark = status.remark.as_ref().map(|remark| format!("; {remark}")).unwrap_or_default();
        format!("{reason} (process {} on {host}){remark}", status.pid)
    } else {
        reason.to_owned()
    };
    Refusal::State { run: run.id().to_owned(), reason }
}
