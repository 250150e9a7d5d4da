//! Edits of the run's `config.toml` while the run is live.

use std::collections::{BTreeMap, BTreeSet};

use luthier_core::config::{Config, edit_plan};
use luthier_core::runs::{AlertKind, EditEvent};

use super::control::refusal;
use super::record::Record;

/// The configuration in force, and the edits that were refused.
pub struct LiveSettings {
    config: Config,
    refused: BTreeSet<(String, String)>,
    broken: Option<String>,
    /// Who set a key's value that has not been applied yet.
    editors: BTreeMap<String, String>,
}

impl LiveSettings {
    /// Starts with the file's settings at the start of the process.
    pub fn new(config: Config) -> Self {
        Self { config, refused: BTreeSet::new(), broken: None, editors: BTreeMap::new() }
    }

    /// The settings in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Reads the file again after `step` steps. Changes that are allowed apply from the next step on and are
    /// journaled. The others are refused with a reason, once. A broken file changes nothing and is reported
    /// with the place of the error. `editors` says who set a key's value, if it was not an edit of the file.
    /// `total_steps` gives the last step of a configuration's run. Returns whether anything changed.
    pub fn reload(
        &mut self,
        record: &mut Record,
        step: u64,
        editors: BTreeMap<String, String>,
        total_steps: &dyn Fn(&Config) -> u64,
    ) -> bool {
        self.editors.extend(editors);
        let new = match Config::load_file(&record.run().config_path(), &[]) {
            Ok(new) => new,
            Err(error) => {
                let message = format!("config.toml is broken, so nothing has changed.\n{error}");
                if self.broken.as_ref() != Some(&message) {
                    record.alert(AlertKind::EditRefused, message.clone(), Vec::new());
                    self.broken = Some(message);
                }
                return false;
            }
        };
        self.broken = None;
        let mut plan = edit_plan(&self.config, &new);
        plan.refuse_past(step, total_steps(&new));
        let mut refused = BTreeSet::new();
        let mut changed = false;
        for edit in plan.edits {
            if let Some(why) = refusal(edit.when) {
                let known = (edit.key.clone(), edit.new.clone());
                if !self.refused.contains(&known) {
                    let message = format!("{} {why}; it stays {}", edit.key, edit.old);
                    record.alert(AlertKind::EditRefused, message, Vec::new());
                }
                refused.insert(known);
                continue;
            }
            changed |= self.config.adopt(&edit.key, &new);
            tracing::info!(key = edit.key, old = edit.old, new = edit.new, step, "edit");
            let who = self.editors.remove(&edit.key).unwrap_or_else(|| "config.toml".into());
            let (key, old, new) = (edit.key, edit.old, edit.new);
            record.event(EditEvent { key, old, new, who, applied_at_step: step + 1 });
        }
        self.refused = refused;
        changed
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
            Self { record, settings: LiveSettings::new(config), reader, _project: project }
        }

        fn replace(&mut self, from: &str, to: &str) {
            let file = self.record.run().config_path();
            let text = std::fs::read_to_string(&file).unwrap();
            assert!(text.contains(from), "{text}");
            std::fs::write(file, text.replace(from, to)).unwrap();
        }

        /// Reloads at step 7 of 100 and returns the events.
        fn reload(&mut self, who: &[(&str, &str)]) -> Vec<EventBody> {
            let editors = who.iter().map(|(key, who)| ((*key).into(), (*who).into())).collect();
            self.settings
                .reload(&mut self.record, 7, editors, &|config| config.train.max_steps.unwrap_or(100));
            let batch = self.reader.read(100, Duration::from_secs(5)).unwrap();
            batch.events.into_iter().map(|event| event.body).collect()
        }
    }

    #[test]
    fn an_edited_learning_rate_applies_from_the_next_step_and_is_journaled() {
        let mut live = Live::new();
        live.replace("learning_rate = 2e-4", "learning_rate = 1e-4");
        let events = live.reload(&[("train.learning_rate", "ann")]);
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
        let events = live.reload(&[("train.learning_rate", "ann")]);
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
}
