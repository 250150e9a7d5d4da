//! The table of all keys: the one place that knows what `luthier.toml` may hold.

use std::fmt;

use toml::Value;

use super::choices::{
    Algorithm, Bias, Dtype, Format, MethodKind, ObjectiveKind, OnNan, Optimizer, Overflow, Recompute,
    Schedule, TrainOn, Variant,
};
use super::fields::{Fault, Field};
use super::kinds::{Bounds, Kind, MOST};
use super::problems::Source;
use super::raw::Located;
use super::sections::Config;

/// One setting of `luthier.toml`.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its dotted name, such as `train.learning_rate`.
    pub path: &'static str,
    /// What it accepts.
    pub kind: Kind,
    /// Its default, as TOML. A required key's only stands in for it.
    pub default: &'static str,
    /// What it means, in one line.
    pub doc: &'static str,
    /// When a change of it reaches a run that is live.
    pub change: Change,
    /// Whether it must be given.
    pub required: bool,
    pub(super) read: fn(&mut Config, &Located, &Source) -> Result<(), Fault>,
    pub(super) write: fn(&Config) -> Value,
    pub(super) copy: fn(&mut Config, &Config),
}

impl Key {
    const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Whether it stands below a top-level section.
    pub(super) fn is_in(&self, section: &str) -> bool {
        self.path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The section, such as `train` or `train.early_stop`.
    pub fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// The name within the section, such as `learning_rate`.
    pub fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }
}

/// When a changed key reaches a run that is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// From the next step, frame or reply.
    Now,
    /// From the next evaluation.
    NextEvaluation,
    /// Only in a new run.
    NewRun,
    /// Not in this run, for this reason.
    Refused(&'static str),
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => formatter.pad("now"),
            Self::NextEvaluation => formatter.pad("next evaluation"),
            Self::NewRun => formatter.pad("new run"),
            Self::Refused(reason) => write!(formatter, "refused: {reason}"),
        }
    }
}

/// What a column of a dataset may be used as.
const ROLES: &[&str] = &[
    "prompt",
    "completion",
    "messages",
    "conversations",
    "role",
    "content",
    "from",
    "value",
    "system",
    "instruction",
    "input",
    "output",
    "text",
    "chosen",
    "rejected",
    "input_ids",
    "labels",
];

macro_rules! key {
    ($section:ident . $field:ident $(. $part:ident)? = $default:literal, $kind:expr, $change:expr, $doc:literal) => {
        Key {
            path: concat!(stringify!($section), ".", stringify!($field) $(, ".", stringify!($part))?),
            kind: $kind,
            default: $default,
            doc: $doc,
            change: $change,
            required: false,
            read: |config, value, source| {
                config.$section.$field $(.$part)? = Field::read(value, &$kind, source)?;
                Ok(())
            },
            write: |config| Field::write(&config.$section.$field $(.$part)?),
            copy: |config, from| config.$section.$field $(.$part)?.clone_from(&from.$section.$field $(.$part)?),
        }
    };
}

use Change::{NewRun, NextEvaluation, Now, Refused};

/// A share of a whole, which cannot be all of it.
const SHARE: Kind = Kind::Number(Bounds::below(0.0, 1.0));
/// An interval in steps, 0 = never.
const INTERVAL: Kind = Kind::Whole { least: 0, most: MOST };

const fn whole(least: u64, most: u64) -> Kind {
    Kind::Whole { least, most }
}

/// Every key, in the order in which files are written.
pub static KEYS: &[Key] = &[
    key!(
        model.path = r#""""#,
        Kind::Model,
        NewRun,
        "folder (config.json + safetensors), .gguf file or hf:org/name[@revision]"
    )
    .required(),
    key!(model.dtype = r#""auto""#, Kind::Choice(Dtype::CHOICES), NewRun, "number format"),
    key!(model.device = r#""auto""#, Kind::Device, NewRun, "auto | cpu | cuda:0"),
    key!(
        model.tf32 = "false",
        Kind::Flag,
        NewRun,
        "a GPU rounds operands of f32 products to TF32: faster, less exact"
    ),
    key!(data.train = "[]", Kind::Paths, NewRun, ".jsonl .json .csv .tsv .parquet .txt; one path or a list")
        .required(),
    key!(data.eval = "0.1", Kind::Eval, NewRun, "a path, or the share held out"),
    key!(data.format = r#""auto""#, Kind::Choice(Format::CHOICES), NewRun, "layout of a row"),
    key!(
        data.columns = "{}",
        Kind::Columns(ROLES),
        NewRun,
        r#"role = "column", such as { prompt = "question" }"#
    ),
    key!(
        data.template = r#""auto""#,
        Kind::Text,
        NewRun,
        "auto (the model's own), a built-in name, or a .jinja file"
    ),
    key!(data.system = r#""""#, Kind::Text, NewRun, "system prompt put before conversations that have none"),
    key!(data.train_on = r#""completion""#, Kind::Choice(TrainOn::CHOICES), NewRun, "tokens that carry loss"),
    key!(
        data.max_length = "1024",
        whole(2, 1 << 24),
        NewRun,
        "most tokens of an example, or of a pair's side"
    ),
    key!(
        data.overflow = r#""truncate""#,
        Kind::Choice(Overflow::CHOICES),
        NewRun,
        "what happens to longer examples"
    ),
    key!(
        data.packing = "true",
        Kind::Flag,
        NewRun,
        "short examples, not pairs, share a sequence without seeing each other"
    ),
    key!(data.shuffle = "true", Kind::Flag, NewRun, "a new order of rows in each epoch"),
    key!(method.kind = r#""lora""#, Kind::Choice(MethodKind::CHOICES), NewRun, "what is trained"),
    key!(method.rank = "16", whole(1, 1 << 16), NewRun, "rank of the low-rank factors"),
    key!(
        method.alpha = "32.0",
        Kind::Number(Bounds::above(0.0, 1e6)),
        NewRun,
        "the adapter counts alpha / rank"
    ),
    key!(method.dropout = "0.0", SHARE, NewRun, "share of the adapter's inputs zeroed in training"),
    key!(
        method.targets = r#""all-linear""#,
        Kind::Targets,
        NewRun,
        "all-linear, a list of module names, or one regular expression"
    ),
    key!(method.variant = r#""plain""#, Kind::Choice(Variant::CHOICES), NewRun, "form of LoRA"),
    key!(method.bias = r#""none""#, Kind::Choice(Bias::CHOICES), NewRun, "biases that LoRA trains as well"),
    key!(
        method.modules_to_save = "[]",
        Kind::Texts,
        NewRun,
        "modules trained whole beside the adapter, such as lm_head"
    ),
    key!(
        method.init = r#""""#,
        Kind::Path,
        NewRun,
        "a PEFT adapter folder to start from; for full a model folder"
    ),
    key!(method.virtual_tokens = "20", whole(1, 1 << 16), NewRun, "length of a trained prefix or prompt"),
    key!(train.algorithm = r#""sft""#, Kind::Choice(Algorithm::CHOICES), NewRun, "what the loss is"),
    key!(
        train.dpo_beta = "0.1",
        Kind::Number(Bounds::above(0.0, 1e3)),
        NewRun,
        "for dpo: how strongly the model is held to its base"
    ),
    key!(
        train.dpo_label_smoothing = "0.0",
        Kind::Number(Bounds::below(0.0, 0.5)),
        NewRun,
        "for dpo: share of pairs taken to be labelled the wrong way round"
    ),
    key!(train.epochs = "3.0", Kind::Number(Bounds::above(0.0, 1e6)), Now, "passes over the training rows"),
    key!(train.max_steps = "0", INTERVAL, Now, "end after this many steps instead; 0 = epochs decide"),
    key!(train.batch_size = "4", whole(1, 1 << 20), NewRun, "sequences per micro-batch"),
    key!(train.accumulate = "4", whole(1, 1 << 20), NewRun, "micro-batches per step"),
    key!(
        train.learning_rate = "2e-4",
        Kind::Number(Bounds::above(0.0, 1.0)),
        Now,
        "the highest, after warm-up"
    ),
    key!(
        train.schedule = r#""cosine""#,
        Kind::Choice(Schedule::CHOICES),
        NewRun,
        "course of the learning rate"
    ),
    key!(train.warmup = "0.03", Kind::Warmup, NewRun, "share of all steps (0.03), or a number of steps (10)"),
    key!(
        train.min_learning_rate = "0.0",
        Kind::Number(Bounds::closed(0.0, 1.0)),
        Now,
        "where the schedule ends"
    ),
    key!(train.optimizer = r#""adamw""#, Kind::Choice(Optimizer::CHOICES), NewRun, "update rule"),
    key!(
        train.weight_decay = "0.01",
        Kind::Number(Bounds::closed(0.0, 10.0)),
        Now,
        "decoupled from the gradient"
    ),
    key!(
        train.betas = "[0.9, 0.999]",
        Kind::Betas,
        Refused("the optimiser's moments were averaged with the old ones; start a new run"),
        "decay of the optimiser's two moments"
    ),
    key!(
        train.max_grad_norm = "1.0",
        Kind::Number(Bounds::closed(0.0, 1e9)),
        Now,
        "longer gradients are scaled down; 0 = off"
    ),
    key!(
        train.seed = "42",
        INTERVAL,
        Refused("the rows trained on so far were drawn with the old one; start a new run"),
        "decides split, order, dropout and first weights"
    ),
    key!(
        train.recompute = r#""auto""#,
        Kind::Choice(Recompute::CHOICES),
        NewRun,
        "activations computed again to save memory"
    ),
    key!(
        train.deterministic = "false",
        Kind::Flag,
        NewRun,
        "the same bits each time on a GPU too: slower, or an error if it cannot"
    ),
    key!(train.eval_every = "50", INTERVAL, Now, "steps between evaluations; 0 = only at the end"),
    key!(train.sample_every = "100", INTERVAL, Now, "steps between samples of the suite; 0 = never"),
    key!(train.checkpoint_every = "100", INTERVAL, Now, "steps between checkpoints; 0 = off"),
    key!(train.keep_checkpoints = "3", whole(0, 1 << 20), Now, "older ones are removed; 0 = keep all"),
    key!(
        train.early_stop.patience = "0",
        INTERVAL,
        Now,
        "evaluations without a better loss before the run ends; 0 = off"
    ),
    key!(train.on_nan = r#""stop""#, Kind::Choice(OnNan::CHOICES), Now, "when a loss is not a number"),
    key!(
        objective.kind = r#""none""#,
        Kind::Choice(ObjectiveKind::CHOICES),
        NextEvaluation,
        "check that scores a reply"
    ),
    key!(objective.schema = r#""""#, Kind::Path, NextEvaluation, "JSON Schema file, for kind json"),
    key!(objective.pattern = r#""""#, Kind::Pattern, NextEvaluation, "regular expression, for kind regex"),
    key!(
        objective.contains = "[]",
        Kind::Texts,
        NextEvaluation,
        "texts a reply must hold, for kind contains"
    ),
    key!(
        objective.min_length = "0",
        whole(0, 1 << 32),
        NextEvaluation,
        "fewest characters, for kind length; 0 = any"
    ),
    key!(
        objective.max_length = "0",
        whole(0, 1 << 32),
        NextEvaluation,
        "most characters, for kind length; 0 = any"
    ),
    key!(review.suite = r#""""#, Kind::Path, Now, "prompts used again and again, a .jsonl file"),
    key!(review.baseline_system = r#""""#, Kind::Text, Now, "system prompt of the prompt-only baseline"),
    key!(
        review.temperature = "0.7",
        Kind::Number(Bounds::closed(0.0, 10.0)),
        Now,
        "0 = the likeliest token each time"
    ),
    key!(
        review.top_p = "0.95",
        Kind::Number(Bounds::above(0.0, 1.0)),
        Now,
        "share of the probability drawn from"
    ),
    key!(review.top_k = "0", whole(0, 1 << 24), Now, "number of likeliest tokens drawn from; 0 = all"),
    key!(review.max_new_tokens = "256", whole(1, 1 << 24), Now, "longest reply"),
    key!(ui.theme = r#""luthier""#, Kind::Text, Now, "built in, or a file of the themes folder"),
];

/// The key of that dotted name.
pub fn key(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The sections with their meaning, in the order in which files are written.
pub(super) static SECTIONS: &[(&str, &str)] = &[
    ("model", "the base model and where it computes"),
    ("data", "what it learns from"),
    ("method", "what is trained"),
    ("train", "how it is trained"),
    ("objective", "what \"better\" means; scored on the held-out examples and in review"),
    ("review", "how replies are drawn and compared"),
    ("ui", "how the workbench looks"),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_key_stands_once_under_its_section() {
        let paths: HashSet<_> = KEYS.iter().map(|key| key.path).collect();
        assert_eq!(paths.len(), KEYS.len());
        let mut sections: Vec<_> = KEYS.iter().filter_map(|key| key.path.split('.').next()).collect();
        sections.dedup();
        assert_eq!(sections, SECTIONS.iter().map(|(section, _)| *section).collect::<Vec<_>>());
        assert_eq!(key("train.early_stop.patience").map(Key::section), Some("train.early_stop"));
        assert_eq!(key("train.early_stop.patience").map(Key::name), Some("patience"));
        assert!(key("train").is_none());
    }

    #[test]
    fn docs_fit_beside_their_key() {
        for key in KEYS {
            assert!(!key.doc.is_empty() && key.doc.len() <= 72, "{}: {}", key.path, key.doc.len());
            assert!(!key.doc.contains('\n'), "{}", key.path);
        }
    }
}
