//! The run's `config.toml` as it is edited while the run lives.

use std::collections::{BTreeMap, BTreeSet};

use luthier_core::config::{Config, edit_plan};
use luthier_core::runs::{AlertKind, EditEvent};

use super::control::refusal;
use super::record::Record;

/// The configuration in force, and what was refused to change it.
pub struct Settings {
    config: Config,
    refused: BTreeSet<(String, String)>,
    broken: Option<String>,
}

impl Settings {
    /// Begins with what the file says at the start of the process.
    pub fn new(config: Config) -> Self {
        Self { config, refused: BTreeSet::new(), broken: None }
    }

    /// What is in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Reads the file again. What may change does, from step `next` on, and is journaled; the rest is refused with its
    /// reason, once; a file that is broken changes nothing and is reported with the place. `editors` says who asked for a
    /// key's value, where it was not an edit of the file. Returns whether anything changed.
    pub fn reload(&mut self, record: &mut Record, next: u64, editors: &BTreeMap<String, String>) -> bool {
        let file = record.run().config_path();
        let new = match Config::load_file(&file, &[]) {
            Ok(new) => new,
            Err(error) => {
                let message = format!("config.toml was not taken over; nothing has changed. {error}");
                if self.broken.as_ref() != Some(&message) {
                    record.alert(AlertKind::EditRefused, message.clone(), Vec::new());
                    self.broken = Some(message);
                }
                return false;
            }
        };
        self.broken = None;
        let mut accepted = Vec::new();
        let mut still_refused = BTreeSet::new();
        for edit in edit_plan(&self.config, &new).edits {
            let Some(why) = refusal(edit.when) else {
                accepted.push(edit);
                continue;
            };
            let refused = (edit.key.clone(), edit.new.clone());
            if !self.refused.contains(&refused) {
                let message = format!("{} {why}; it stays {}", edit.key, edit.old);
                record.alert(AlertKind::EditRefused, message, Vec::new());
            }
            still_refused.insert(refused);
        }
        self.refused = still_refused;
        let set: Vec<String> = accepted.iter().map(|edit| format!("{}={}", edit.key, edit.new)).collect();
        let changed = match self.config.with(&set) {
            Ok(changed) => changed,
            // Each value is valid with the file's others, but not with those that stay in force.
            Err(problems) => {
                record.alert(
                    AlertKind::EditRefused,
                    format!("the edit does not fit what stays in force: {problems}"),
                    Vec::new(),
                );
                return false;
            }
        };
        self.config = changed;
        for edit in &accepted {
            tracing::info!(key = edit.key, old = edit.old, new = edit.new, step = next, "edit");
            record.event(EditEvent {
                key: edit.key.clone(),
                old: edit.old.clone(),
                new: edit.new.clone(),
                who: editors.get(&edit.key).cloned().unwrap_or_else(|| "config.toml".into()),
                applied_at_step: next,
            });
        }
        !accepted.is_empty()
    }
}
