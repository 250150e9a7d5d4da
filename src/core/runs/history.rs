//! Which settings a run has used at which step: those that its checkpoint was made with, then the edits in its journal.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use indexmap::IndexMap;

use super::checkpoint::Checkpoint;
use super::event::{EditEvent, EventBody, JournalEvent};
use crate::config::{Change, Config, ConfigError, Edit, edit_plan};

/// The settings in force when a checkpoint was made, in its folder.
pub const SETTINGS_FILE: &str = "settings.toml";

/// Longest line of the journal that can be an edit.
const LONGEST: u64 = 1 << 20;

/// How a line of the journal with an edit begins.
const EDIT: &[u8] = br#"{"kind":"edit","#;

/// The settings of a run that goes on from a checkpoint, or begins again.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingsHistory {
    /// In force at the checkpoint, or at the start.
    pub then: Config,
    /// Later edits that were journaled, by the step from which they apply.
    pub later: Vec<EditEvent>,
    /// In force after all of them. The run's `config.toml` says the same if nobody has changed it since.
    pub last: Config,
}

impl SettingsHistory {
    /// What a run's checkpoint and journal say. `file` is its `config.toml`, which says the rest.
    pub fn read(file: &Config, checkpoint: Option<&Checkpoint>, journal: &Path) -> Result<Self, ConfigError> {
        let mut later = edits(journal);
        later.retain(|edit| edit.applied_at_step > checkpoint.map_or(0, |checkpoint| checkpoint.step));
        let kept = checkpoint.map(|checkpoint| checkpoint.path.join(SETTINGS_FILE));
        let then = match kept.filter(|path| path.exists()) {
            Some(path) => Config::load_file(&path, &[])?,
            None => before(file, &mut later),
        };
        let mut last = then.clone();
        // One that this version cannot read changes nothing.
        later.retain(|edit| last.take(&edit.key, &edit.new));
        Ok(Self { then, later, last })
    }

    /// How a file differs from what is in force in keys that a resumed run cannot change.
    pub fn refused(&self, file: &Config) -> Vec<Edit> {
        let mut plan = edit_plan(&self.last, file);
        plan.edits.retain(|edit| matches!(edit.when, Change::NewRun | Change::Refused(_)));
        plan.edits
    }
}

impl Config {
    /// Takes a key's value, as TOML; whether it could be taken.
    fn take(&mut self, key: &str, value: &str) -> bool {
        self.with(&[format!("{key}={value}")]).map(|new| *self = new).is_ok()
    }
}

/// The settings before some edits, if those after them are a file's. Drops the edits of keys that the file has changed
/// again.
fn before(file: &Config, later: &mut Vec<EditEvent>) -> Config {
    let mut last: IndexMap<&str, &str> = IndexMap::new();
    for edit in later.iter() {
        last.insert(&edit.key, &edit.new);
    }
    let changed = |(key, value): (&&str, &&str)| file.get_text(key).is_none_or(|text| text != **value);
    let changed: Vec<String> =
        last.iter().filter(|&entry| changed(entry)).map(|(key, _)| (*key).to_owned()).collect();
    later.retain(|edit| !changed.contains(&edit.key));
    let mut then = file.clone();
    for edit in later.iter().rev() {
        then.take(&edit.key, &edit.old);
    }
    then
}

/// Prefix of [`EditEvent::who`] where an edit undoes another.
pub const UNDO: &str = "undo by ";

/// The newest edit that was not undone, of edits in the order in which they were journaled.
pub fn newest_to_undo<'a>(edits: impl IntoIterator<Item = &'a EditEvent>) -> Option<&'a EditEvent> {
    let mut made: Vec<&EditEvent> = Vec::new();
    for edit in edits {
        let undoes = edit.who.starts_with(UNDO)
            && made.last().is_some_and(|last| last.key == edit.key && last.old == edit.new);
        if undoes {
            made.pop();
        } else {
            made.push(edit);
        }
    }
    made.pop()
}

/// The edits in a journal that count, by the step from which they apply. One that was written later replaces those of its
/// key that would apply at the same step or after it: these belong to steps that were lost.
fn edits(journal: &Path) -> Vec<EditEvent> {
    let mut found: Vec<EditEvent> = Vec::new();
    for edit in journaled_edits(journal) {
        found.retain(|known| known.key != edit.key || known.applied_at_step < edit.applied_at_step);
        found.push(edit);
    }
    found.sort_by_key(|edit| edit.applied_at_step);
    found
}

/// All edits in a journal, in their order.
pub fn journaled_edits(journal: &Path) -> Vec<EditEvent> {
    let Ok(file) = File::open(journal) else { return Vec::new() };
    let (mut reader, mut line) = (BufReader::with_capacity(1 << 20, file), Vec::new());
    let mut found = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return found,
            Ok(_) if !line.starts_with(EDIT) => continue,
            Ok(_) => {}
        }
        if let Ok(JournalEvent { body: EventBody::Edit(edit), .. }) = JournalEvent::from_line(&line) {
            found.push(edit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pretty_assertions::assert_eq;

    use super::super::testing::config;
    use super::*;

    fn edit(key: &str, old: &str, new: &str, applied_at_step: u64) -> EditEvent {
        let [key, old, new] = [key, old, new].map(str::to_owned);
        EditEvent { key, old, new, who: "ann".into(), applied_at_step }
    }

    fn rate(old: &str, new: &str, step: u64) -> EditEvent {
        edit("train.learning_rate", old, new, step)
    }

    /// A journal with other lines around the edits.
    fn journal(folder: &Path, edits: &[EditEvent]) -> std::path::PathBuf {
        let path = folder.join("events.jsonl");
        let mut text = b"{\"kind\":\"step\",\"loss\":1}\nnot a line of a journal\n".to_vec();
        for edit in edits {
            text.extend(JournalEvent::now(Some(1), edit.clone()).to_line());
        }
        text.extend(b"{\"kind\":\"edit\",\"ti");
        fs::write(&path, text).unwrap();
        path
    }

    fn checkpoint(folder: &Path, step: u64, settings: Option<&Config>) -> Checkpoint {
        let path = folder.join(format!("step-{step}"));
        fs::create_dir_all(&path).unwrap();
        if let Some(settings) = settings {
            fs::write(path.join(SETTINGS_FILE), settings.to_toml()).unwrap();
        }
        Checkpoint { step, path }
    }

    #[test]
    fn edits_after_a_checkpoint_apply_at_their_steps_again() {
        let folder = tempfile::tempdir().unwrap();
        let edits =
            [rate("2e-4", "1e-4", 12), edit("train.eval_every", "50", "5", 25), rate("1e-4", "5e-5", 31)];
        let journal = journal(folder.path(), &edits);
        let then = config(&["train.learning_rate=1e-4"]);
        let file = config(&["train.learning_rate=5e-5", "train.eval_every=5"]);
        for settings in [Some(&then), None] {
            let checkpoint = checkpoint(folder.path(), if settings.is_some() { 20 } else { 21 }, settings);
            let history = SettingsHistory::read(&file, Some(&checkpoint), &journal).unwrap();
            assert_eq!((&history.then, &history.last), (&then, &file));
            assert_eq!(history.later, edits[1..]);
        }
        let history = SettingsHistory::read(&file, None, &journal).unwrap();
        assert_eq!((history.then, history.later), (config(&[]), edits.to_vec()));
    }

    #[test]
    fn an_edit_of_lost_steps_gives_way_to_a_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let edits = [rate("2e-4", "1e-4", 25), rate("2e-4", "3e-4", 21), edit("train.nothing", "1", "2", 22)];
        let journal = journal(folder.path(), &edits);
        let then = config(&[]);
        let checkpoint = checkpoint(folder.path(), 20, Some(&then));
        let history = SettingsHistory::read(&then, Some(&checkpoint), &journal).unwrap();
        assert_eq!(history.later, edits[1..2]);
        assert_eq!(history.last, config(&["train.learning_rate=3e-4"]));
    }

    #[test]
    fn a_file_that_was_changed_since_is_what_the_first_steps_begin_with() {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(folder.path(), &[rate("2e-4", "1e-4", 25)]);
        let file = config(&["train.learning_rate=7e-4"]);
        let history = SettingsHistory::read(&file, None, &journal).unwrap();
        assert_eq!((&history.then, history.later.len()), (&file, 0));
    }

    #[test]
    fn changes_that_a_live_run_refuses_are_refused() {
        let then = config(&[]);
        let history = SettingsHistory { then: then.clone(), later: Vec::new(), last: then };
        let file =
            config(&["train.schedule=constant", "train.learning_rate=1e-3", "train.betas=[0.9, 0.95]"]);
        let keys: Vec<String> = history.refused(&file).into_iter().map(|edit| edit.key).collect();
        assert_eq!(keys, ["train.schedule", "train.betas"]);
        let elsewhere = config(&["model.path=other", "model.device=cuda:1", "data.train=moved.jsonl"]);
        assert_eq!(history.refused(&elsewhere), []);
    }

    #[test]
    fn undo_takes_back_one_edit_after_another() {
        let by = |who: &str, edit: EditEvent| EditEvent { who: who.into(), ..edit };
        let mut made = vec![
            rate("2e-4", "1e-4", 3),
            edit("train.eval_every", "50", "5", 5),
            by("workbench", rate("1e-4", "5e-5", 9)),
        ];
        assert_eq!(newest_to_undo(&made), Some(&made[2]));
        made.push(by("undo by workbench", rate("5e-5", "1e-4", 10)));
        assert_eq!(newest_to_undo(&made), Some(&made[1]));
        made.push(by("undo by workbench", edit("train.eval_every", "5", "50", 11)));
        assert_eq!(newest_to_undo(&made), Some(&made[0]));
        // The same change by someone who does not undo is an edit of its own.
        made.push(by("ann", rate("1e-4", "2e-4", 12)));
        assert_eq!(newest_to_undo(&made), Some(&made[5]));
        assert_eq!(newest_to_undo(&[]), None);
    }
}
