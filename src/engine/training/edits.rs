//! Edits of the run's `config.toml` while the run is live.

use std::collections::BTreeSet;

use indexmap::IndexSet;
use luthier_core::config::{Change, Config, Edit, edit_plan};
use luthier_core::runs::{AlertKind, EditEvent, SettingsHistory};

use super::control::refusal;
use super::record::Record;

/// An edit that a client asked for and that was written to the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedEdit {
    pub key: String,
    /// The new value, as TOML.
    pub new: String,
    pub who: String,
}

/// The configuration in force, and the edits that were refused.
pub struct LiveSettings {
    config: Config,
    /// Edits of former processes, for steps that are made again, by the step from which they apply.
    coming: Vec<EditEvent>,
    /// What is in force after these: what the file says but for what was refused.
    last: Config,
    /// Changes that a resume has made and that are not journaled yet.
    moved: Vec<Edit>,
    refused: BTreeSet<(String, String)>,
    broken: Option<String>,
    /// Edits that have not been applied yet.
    asked: Vec<AskedEdit>,
}

/// What [`LiveSettings::reload`] must know of the run.
pub struct Situation<'a> {
    /// Steps made.
    pub step: u64,
    /// Edits that clients asked for, in their order; others were made in the file.
    pub asked: Vec<AskedEdit>,
    /// The last step of a configuration's run.
    pub total_steps: &'a dyn Fn(&Config) -> u64,
    /// Why a run cannot use a configuration, if it cannot.
    pub unusable: &'a dyn Fn(&Config) -> Option<String>,
}

impl LiveSettings {
    /// The settings at the start of a process. `file` decides only where things are.
    pub fn new(history: SettingsHistory, file: &Config) -> Self {
        let SettingsHistory { then: mut config, later: coming, mut last } = history;
        let mut moved = edit_plan(&last, file).edits;
        moved.retain(|edit| edit.when == Change::NextResume);
        for edit in &moved {
            config.adopt(&edit.key, file);
            last.adopt(&edit.key, file);
        }
        let (refused, broken, asked) = (BTreeSet::new(), None, Vec::new());
        Self { config, coming, last, moved, refused, broken, asked }
    }

    /// The settings in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether edits of former processes are still to come.
    pub fn repeats(&self) -> bool {
        !self.coming.is_empty()
    }

    /// Applies the edits of former processes that count for the step after `step`. Returns whether there were any.
    pub fn repeat(&mut self, step: u64) -> bool {
        let due = self.coming.iter().take_while(|edit| edit.applied_at_step <= step + 1).count();
        let set: Vec<String> =
            self.coming.drain(..due).map(|edit| format!("{}={}", edit.key, edit.new)).collect();
        match self.config.with(&set) {
            Ok(config) => self.config = config,
            // Each could be taken after the one before.
            Err(error) => tracing::warn!(step, ?set, "edits were not made again: {error}"),
        }
        due > 0
    }

    /// Reads the file again. Changes that are allowed apply from the next step on and are journaled. The others are
    /// refused with a reason, once. A broken file changes nothing and is reported with the place of the error. Returns
    /// whether anything changed.
    pub fn reload(&mut self, record: &mut Record, situation: Situation) -> bool {
        let Situation { step, asked, total_steps, unusable } = situation;
        self.asked.extend(asked);
        let mut journal = Journal { record, step };
        for edit in self.moved.drain(..) {
            journal.edit(edit.key, edit.old, edit.new, IN_FILE.into());
        }
        let new = match Config::load_file(&journal.record.run().config_path(), &[]) {
            Ok(new) => new,
            Err(error) => {
                let message = format!("config.toml is broken, so nothing has changed.\n{error}");
                if self.broken.as_ref() != Some(&message) {
                    journal.record.alert(AlertKind::EditRefused, message.clone(), Vec::new());
                    self.broken = Some(message);
                }
                return false;
            }
        };
        self.broken = None;
        let mut plan = edit_plan(&self.last, &new);
        plan.refuse_past(step, total_steps(&new));
        let (mut allowed, mut refused) = (Vec::new(), Vec::new());
        for edit in plan.edits {
            match refusal(edit.when) {
                Some(why) => refused.push((edit, why)),
                None => allowed.push(edit),
            }
        }
        // Some settings can be used only together.
        let mut together = self.config.clone();
        for edit in &allowed {
            together.adopt(&edit.key, &new);
        }
        if unusable(&together).is_some() {
            allowed.retain(|edit| {
                let mut alone = self.config.clone();
                alone.adopt(&edit.key, &new);
                let why = unusable(&alone);
                if let Some(why) = &why {
                    refused.push((edit.clone(), format!("cannot be used: {why}")));
                }
                why.is_none()
            });
        }
        let changed = !allowed.is_empty();
        let asked = std::mem::take(&mut self.asked);
        let names = allowed.iter().map(|edit| &edit.key).chain(asked.iter().map(|asked| &asked.key));
        let names: IndexSet<String> =
            names.filter(|key| refused.iter().all(|(edit, _)| edit.key != **key)).cloned().collect();
        self.refused = journal.refuse(refused, &self.refused);
        for key in names {
            let before = self.config.get_text(&key).unwrap_or_default();
            if allowed.iter().any(|edit| edit.key == key) {
                self.config.adopt(&key, &new);
                self.last.adopt(&key, &new);
                self.coming.retain(|coming| coming.key != key);
            }
            let after = self.config.get_text(&key).unwrap_or_default();
            journal.steps(&key, before, asked.iter().filter(|asked| asked.key == key), after);
        }
        changed
    }
}

/// Who made an edit that no client asked for.
const IN_FILE: &str = "config.toml";

/// Writes what became of edits.
struct Journal<'a> {
    record: &'a mut Record,
    step: u64,
}

impl Journal<'_> {
    fn edit(&mut self, key: String, old: String, new: String, who: String) {
        tracing::info!(key, old, new, step = self.step, "edit");
        self.record.event(EditEvent { key, old, new, who, applied_at_step: self.step + 1 });
    }

    /// A key's way from one value to another, through those that clients asked for since the file was last read.
    fn steps<'e>(
        &mut self,
        key: &str,
        before: String,
        asked: impl Iterator<Item = &'e AskedEdit>,
        after: String,
    ) {
        let mut old = before;
        let asked = asked.map(|AskedEdit { new, who, .. }| (new.clone(), who.clone()));
        for (new, who) in asked.chain([(after, IN_FILE.to_owned())]) {
            if new != old {
                self.edit(key.to_owned(), std::mem::replace(&mut old, new.clone()), new, who);
            }
        }
    }

    /// Reports what is refused and was not known to be. Returns all of it.
    fn refuse(
        &mut self,
        refused: Vec<(Edit, String)>,
        known: &BTreeSet<(String, String)>,
    ) -> BTreeSet<(String, String)> {
        let mut all = BTreeSet::new();
        for (Edit { key, old, new, .. }, why) in refused {
            let entry = (key, new);
            if !known.contains(&entry) {
                let message = format!("{} {why}; it stays {old}", entry.0);
                self.record.alert(AlertKind::EditRefused, message, Vec::new());
            }
            all.insert(entry);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use luthier_core::runs::{EventBody, JournalReader, RunDir};

    use super::*;

    struct Live {
        record: Record,
        settings: LiveSettings,
        reader: JournalReader,
        _project: tempfile::TempDir,
    }

    impl Live {
        fn new() -> Self {
            let project = tempfile::tempdir().unwrap();
            let mut config = Config::default();
            config.model.path = "m".into();
            config.data.train = vec!["t.jsonl".into()];
            let run = RunDir::create(project.path(), &config, Some("test")).unwrap();
            let record = Record::open(&run).unwrap();
            let mut reader = JournalReader::new(&run.journal_path());
            reader.read(100, Duration::from_secs(5)).unwrap();
            let history = SettingsHistory { then: config.clone(), later: Vec::new(), last: config.clone() };
            Self { record, settings: LiveSettings::new(history, &config), reader, _project: project }
        }

        fn replace(&mut self, from: &str, to: &str) {
            let file = self.record.run().config_path();
            let text = std::fs::read_to_string(&file).unwrap();
            assert!(text.contains(from), "{text}");
            std::fs::write(file, text.replace(from, to)).unwrap();
        }

        /// Reloads at step 7 of 100 and returns the events.
        fn reload(&mut self, asked: &[(&str, &str, &str)]) -> Vec<EventBody> {
            let edit = |(key, new, who): &(&str, &str, &str)| AskedEdit {
                key: (*key).into(),
                new: (*new).into(),
                who: (*who).into(),
            };
            let situation = Situation {
                step: 7,
                asked: asked.iter().map(edit).collect(),
                total_steps: &|config| config.train.max_steps.unwrap_or(100),
                unusable: &|config| {
                    let gone = config.review.suite.as_deref() == Some("gone.jsonl".as_ref());
                    gone.then(|| "it is gone".into())
                },
            };
            self.settings.reload(&mut self.record, situation);
            let batch = self.reader.read(100, Duration::from_secs(5)).unwrap();
            batch.events.into_iter().map(|event| event.body).collect()
        }
    }

    #[test]
    fn an_edited_learning_rate_applies_from_the_next_step_and_is_journaled() {
        let mut live = Live::new();
        live.replace("learning_rate = 2e-4", "learning_rate = 1e-4");
        let events = live.reload(&[("train.learning_rate", "1e-4", "ann")]);
        let [EventBody::Edit(edit)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(
            (edit.key.as_str(), edit.who.as_str(), edit.applied_at_step),
            ("train.learning_rate", "ann", 8)
        );
        assert!((live.settings.config().train.learning_rate - 1e-4).abs() < 1e-12);
        assert!(live.reload(&[]).is_empty());
    }

    #[test]
    fn a_refused_change_is_reported_once() {
        let mut live = Live::new();
        live.replace("rank = 16", "rank = 8");
        live.replace("eval_every = 50", "eval_every = 5");
        let events = live.reload(&[]);
        let [EventBody::Alert(alert), EventBody::Edit(edit)] = &events[..] else { panic!("{events:?}") };
        assert!(alert.message.contains("method.rank") && alert.message.contains("16"), "{}", alert.message);
        assert_eq!((edit.key.as_str(), edit.who.as_str()), ("train.eval_every", "config.toml"));
        assert_eq!(live.settings.config().method.rank, 16);
        assert!(live.reload(&[]).is_empty());
    }

    #[test]
    fn a_broken_file_changes_nothing_and_is_reported_with_its_place() {
        let mut live = Live::new();
        let before = live.settings.config().clone();
        live.replace("learning_rate = 2e-4", "learning_rate = ");
        let events = live.reload(&[("train.learning_rate", "1e-4", "ann")]);
        let [EventBody::Alert(alert)] = &events[..] else { panic!("{events:?}") };
        assert!(alert.message.contains("config.toml:"), "{}", alert.message);
        assert_eq!(*live.settings.config(), before);
        assert!(live.reload(&[]).is_empty(), "reported once");
        live.replace("\nlearning_rate = ", "\nlearning_rate = 1e-4");
        let events = live.reload(&[]);
        assert!(matches!(&events[..], [EventBody::Edit(edit)] if edit.who == "ann"), "{events:?}");
    }

    #[test]
    fn max_steps_below_the_current_step_is_refused() {
        let mut live = Live::new();
        live.replace("max_steps = 0", "max_steps = 3");
        let events = live.reload(&[]);
        assert!(matches!(&events[..], [EventBody::Alert(_)]), "{events:?}");
        assert_eq!(live.settings.config().train.max_steps, None);
    }

    #[test]
    fn each_of_many_edits_of_a_key_is_journaled() {
        let mut live = Live::new();
        live.replace("learning_rate = 2e-4", "learning_rate = 3e-4");
        let rate = "train.learning_rate";
        let asked = [(rate, "1e-4", "ann"), (rate, "2e-4", "ben"), (rate, "3e-4", "ann")];
        let steps = |events: Vec<EventBody>| -> Vec<(String, String, String)> {
            let step = |event| match event {
                EventBody::Edit(EditEvent { old, new, who, .. }) => (old, new, who),
                other => panic!("{other:?}"),
            };
            events.into_iter().map(step).collect()
        };
        let own = |parts: [&str; 3]| {
            let [old, new, who] = parts.map(str::to_owned);
            (old, new, who)
        };
        let expected = [["2e-4", "1e-4", "ann"], ["1e-4", "2e-4", "ben"], ["2e-4", "3e-4", "ann"]].map(own);
        assert_eq!(steps(live.reload(&asked)), expected);
        // There and back, so that the file is as before; then an edit of the file that came after a client's.
        let back = [(rate, "1e-4", "ann"), (rate, "3e-4", "ben")];
        assert_eq!(steps(live.reload(&back)), [["3e-4", "1e-4", "ann"], ["1e-4", "3e-4", "ben"]].map(own));
        live.replace("learning_rate = 3e-4", "learning_rate = 5e-4");
        assert_eq!(
            steps(live.reload(&[(rate, "4e-4", "ann")])),
            [["3e-4", "4e-4", "ann"], ["4e-4", "5e-4", "config.toml"]].map(own)
        );
    }

    #[test]
    fn a_value_that_cannot_be_used_is_refused_before_it_is_in_force() {
        let mut live = Live::new();
        live.replace("suite = \"\"", "suite = \"gone.jsonl\"");
        live.replace("eval_every = 50", "eval_every = 5");
        let events = live.reload(&[]);
        let [EventBody::Alert(alert), EventBody::Edit(edit)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(edit.key, "train.eval_every");
        assert!(alert.message.starts_with("review.suite cannot be used: it is gone"), "{}", alert.message);
        assert_eq!(live.settings.config().review.suite, None);
        assert!(live.reload(&[]).is_empty());
    }

    #[test]
    fn edits_of_a_former_process_apply_at_their_steps_and_are_not_journaled_again() {
        let mut live = Live::new();
        let mut last = live.settings.config().clone();
        last.train.learning_rate = 1e-4;
        last.train.eval_every = 5;
        let edit = |key: &str, new: &str, applied_at_step| {
            let [key, new] = [key, new].map(str::to_owned);
            EditEvent { key, new, applied_at_step, ..EditEvent::default() }
        };
        let later = vec![edit("train.learning_rate", "1e-4", 9), edit("train.eval_every", "5", 12)];
        let then = live.settings.config().clone();
        live.settings = LiveSettings::new(SettingsHistory { then, later, last: last.clone() }, &last);
        live.replace("learning_rate = 2e-4", "learning_rate = 1e-4");
        live.replace("eval_every = 50", "eval_every = 5");
        assert!(live.reload(&[]).is_empty());
        assert!(!live.settings.repeat(7) && live.settings.repeats());
        assert!((live.settings.config().train.learning_rate - 2e-4).abs() < 1e-12);
        assert!(live.settings.repeat(8));
        assert!((live.settings.config().train.learning_rate - 1e-4).abs() < 1e-12);
        // A change of the file takes the place of what was to come.
        live.replace("eval_every = 5\n", "eval_every = 7\n");
        assert!(matches!(&live.reload(&[])[..], [EventBody::Edit(edit)] if edit.new == "7"));
        assert!(!live.settings.repeat(20) && !live.settings.repeats());
        assert_eq!(live.settings.config().train.eval_every, 7);
    }

    #[test]
    fn a_resume_takes_places_from_the_file_and_journals_them() {
        let mut live = Live::new();
        live.replace("path = \"m\"", "path = \"elsewhere\"");
        let file = Config::load_file(&live.record.run().config_path(), &[]).unwrap();
        let then = live.settings.config().clone();
        let history = SettingsHistory { then: then.clone(), later: Vec::new(), last: then };
        live.settings = LiveSettings::new(history, &file);
        assert_eq!(live.settings.config().model.path, "elsewhere");
        let events = live.reload(&[]);
        assert!(matches!(&events[..], [EventBody::Edit(edit)] if edit.key == "model.path"), "{events:?}");
        assert!(live.reload(&[]).is_empty());
    }
}
