//! What a changed configuration means for a run that is live.

use super::keys::{Change, key};
use super::sections::{Config, KEYS};
use super::toml_text::literal;

/// The keys that decide where a run ends.
const END: [&str; 2] = ["train.epochs", "train.max_steps"];

/// The difference between two configurations, key by key in the order of [`KEYS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EditPlan {
    /// One entry for each key whose value differs.
    pub edits: Vec<Edit>,
}

/// One changed key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Its dotted name.
    pub key: String,
    /// The value before, as TOML.
    pub old: String,
    /// The value after, as TOML.
    pub new: String,
    /// When it reaches the run.
    pub when: Change,
}

/// Compares two configurations.
///
/// How far a run has come is not known here: where it is, follow with [`EditPlan::refuse_past`].
pub fn edit_plan(old: &Config, new: &Config) -> EditPlan {
    let edits = KEYS
        .iter()
        .filter_map(|key| {
            let (old, new) = ((key.write)(old), (key.write)(new));
            (old != new).then(|| Edit {
                key: key.path.to_owned(),
                old: literal(&old),
                new: literal(&new),
                when: key.change,
            })
        })
        .collect();
    EditPlan { edits }
}

impl EditPlan {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// Refuses to move the run's end before the step it has reached: `total_steps` is what the new
    /// configuration comes to, `step` how many are done.
    pub fn refuse_past(&mut self, step: u64, total_steps: u64) {
        if total_steps >= step {
            return;
        }
        for edit in self.edits.iter_mut().filter(|edit| END.contains(&edit.key.as_str())) {
            edit.when = Change::Refused("the run is already past that end; stop it instead");
        }
    }

    /// Brings the edits of one kind into `running`, from the configuration that the plan was made with.
    pub fn apply(&self, running: &mut Config, new: &Config, when: Change) {
        for edit in self.edits.iter().filter(|edit| edit.when == when) {
            running.adopt(&edit.key, new);
        }
    }
}

impl Config {
    /// Takes the value of one dotted key from another configuration; whether there is such a key.
    pub fn adopt(&mut self, path: &str, from: &Self) -> bool {
        let key = key(path);
        if let Some(key) = key {
            (key.copy)(self, from);
        }
        key.is_some()
    }
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    fn with(set: &[&str]) -> Config {
        let set: Vec<_> = set.iter().map(ToString::to_string).collect();
        sound().with(&set).expect("valid")
    }

    fn sound() -> Config {
        let mut config = Config::default();
        config.model.path = "m".to_owned();
        config.data.train = vec!["t".into()];
        config
    }

    #[test]
    fn each_change_knows_its_moment() {
        let new = with(&[
            "train.learning_rate=1.8e-4",
            "objective.kind=exact",
            "method.rank=8",
            "train.betas=[0.9, 0.95]",
            "ui.theme=paper",
        ]);
        let plan = edit_plan(&sound(), &new);
        let found: Vec<_> = plan
            .edits
            .iter()
            .map(|edit| format!("{} {} -> {}: {}", edit.key, edit.old, edit.new, edit.when))
            .collect();
        assert_eq!(
            found,
            [
                "method.rank 16 -> 8: new run",
                "train.learning_rate 2e-4 -> 1.8e-4: now",
                "train.betas [0.9, 0.999] -> [0.9, 0.95]: refused: the optimizer's moments were averaged \
                 with the old ones; start a new run",
                "objective.kind \"none\" -> \"exact\": next evaluation",
                "ui.theme \"luthier\" -> \"paper\": now",
            ]
        );
    }

    #[test]
    fn the_same_configuration_needs_no_edit() {
        assert!(edit_plan(&sound(), &sound()).is_empty());
    }

    #[test]
    fn an_end_that_has_passed_is_refused() {
        let new = with(&["train.max_steps=100", "train.learning_rate=1e-4"]);
        let mut plan = edit_plan(&sound(), &new);
        plan.refuse_past(100, 100);
        assert!(plan.edits.iter().all(|edit| edit.when == Change::Now));
        plan.refuse_past(101, 100);
        let refused: Vec<_> = plan.edits.iter().filter(|edit| edit.when != Change::Now).collect();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].key, "train.max_steps");
    }

    #[test]
    fn applying_takes_only_what_may_change() {
        let new = with(&["train.learning_rate=1e-4", "method.rank=8", "objective.kind=exact"]);
        let plan = edit_plan(&sound(), &new);
        let mut running = sound();
        plan.apply(&mut running, &new, Change::Now);
        assert_eq!(running, with(&["train.learning_rate=1e-4"]));
        plan.apply(&mut running, &new, Change::NextEvaluation);
        assert_eq!(running, with(&["train.learning_rate=1e-4", "objective.kind=exact"]));
    }

    #[test]
    fn every_key_can_be_adopted() {
        let text = include_str!("../../../tests/configs/valid/full.toml");
        let other = Config::parse(text, std::path::Path::new("full.toml"), &[]).expect("valid");
        let mut config = sound();
        for key in KEYS {
            assert!(config.adopt(key.path, &other));
        }
        assert_eq!(config, other);
        assert!(!config.adopt("train.nothing", &other));
    }
}
