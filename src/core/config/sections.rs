//! Every setting of `luthier.toml`, declared once: its doc, name, type, default, and when a change of it reaches a live
//! run. The structs, their defaults, [`KEYS`], `luthier new`, the sample project and `docs/settings.md` are made from it.
//!
//! A key reads `name: type [kind] = default, change;`. Without a kind, the type accepts what [`Field::KIND`] says. A key
//! without a default must be given. `name as "table.name"` is written inside a table of the section.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::choices::{
    Algorithm, Bias, Dtype, Format, MethodKind, ObjectiveKind, OnNan, Overflow, Reasoning, Recompute,
    Schedule, SystemRole, TrainOn, Variant,
};
use super::fields::Field;
use super::keys::Change::{NewRun, NextEvaluation, NextResume, Now, Refused};
use super::keys::{Key, settings};
use super::kinds::{Bounds, Kind};
use super::values::{DataSource, Device, EvalSource, Targets, Warmup};

const fn whole(least: u64, most: u64) -> Kind {
    Kind::Whole { least, most }
}

const fn above(least: f64, most: f64) -> Kind {
    Kind::Number(Bounds::above(least, most))
}

const fn below(least: f64, most: f64) -> Kind {
    Kind::Number(Bounds::below(least, most))
}

const fn closed(least: f64, most: f64) -> Kind {
    Kind::Number(Bounds::closed(least, most))
}

settings! {
    /// the base model and where it computes
    model: ModelSection {
        /// folder (config.json + safetensors), .gguf file or hf:org/name[@revision]
        path: String [Kind::Model], NextResume;
        /// number format
        dtype: Dtype = Dtype::Auto, NewRun;
        /// auto | cpu | cuda:0
        device: Device = Device::Auto, NextResume;
        /// a GPU rounds operands of f32 products to TF32: faster, less exact
        tf32: bool = false, NewRun;
    }

    /// what it learns from
    data: DataSection {
        /// .jsonl .json .csv .tsv .parquet .txt (also .gz .zst); one or a list
        train: Vec<DataSource>, NextResume;
        /// a path, or the share held out
        eval: EvalSource = EvalSource::Fraction(0.1), NewRun;
        /// layout of a row
        format: Format = Format::Auto, NewRun;
        /// role = "column", such as { prompt = "question" }
        columns: IndexMap<String, String> = IndexMap::new(), NewRun;
        /// auto (the model's own), a built-in name, or a .jinja file
        template: String = "auto".to_owned(), NewRun;
        /// variables of the template, such as { enable_thinking = false }
        template_variables: Map<String, Json> = Map::new(), NewRun;
        /// system prompt put before conversations that have none
        system: String = String::new(), NewRun;
        /// where system prompts go
        system_role: SystemRole = SystemRole::Auto, NewRun;
        /// tokens that carry loss, unless a message has a weight
        train_on: TrainOn = TrainOn::Completion, NewRun;
        /// what replies think before they answer
        reasoning: Reasoning = Reasoning::Train, NewRun;
        /// also train what follows a reply's end-of-turn token, as TRL does
        train_after_end: bool = false, NewRun;
        /// most tokens of an example, or of a pair's side
        max_length: usize [whole(2, 1 << 24)] = 1024, NewRun;
        /// what happens to longer examples
        overflow: Overflow = Overflow::Truncate, NewRun;
        /// share of rows that max_length may leave without a reply
        cut_limit: f64 [closed(0.0, 1.0)] = 0.5, NewRun;
        /// rows on one side of the split: "prompt", "row", or a column
        group_by: String = "prompt".to_owned(), NewRun;
        /// findings that do not block a run, such as mask_uncertain
        allow: Vec<String> = Vec::new(), NewRun;
        /// short examples share a sequence without seeing each other; for sft
        packing: bool = true, NewRun;
        /// a new order of rows in each epoch
        shuffle: bool = true, NewRun;
    }

    /// what is trained
    method: MethodSection {
        /// what is trained
        kind: MethodKind = MethodKind::Lora, NewRun;
        /// rank of the low-rank factors
        rank: usize [whole(1, 1 << 16)] = 16, NewRun;
        /// the adapter's output is scaled by alpha / rank
        alpha: f64 [above(0.0, 1e6)] = 32.0, NewRun;
        /// share of the adapter's inputs zeroed in training
        dropout: f64 [below(0.0, 1.0)] = 0.0, NewRun;
        /// all-linear, a list of module names, or one regular expression
        targets: Targets = Targets::AllLinear, NewRun;
        /// form of LoRA
        variant: Variant = Variant::Plain, NewRun;
        /// biases that LoRA trains as well
        bias: Bias = Bias::None, NewRun;
        /// modules trained whole beside the adapter, such as lm_head
        modules_to_save: Vec<String> = Vec::new(), NewRun;
        /// a PEFT adapter folder to start from; for full a model folder
        init: Option<PathBuf> = None, NewRun;
        /// length of a trained prefix or prompt
        virtual_tokens: usize [whole(1, 1 << 16)] = 20, NewRun;
    }

    /// how it is trained
    train: TrainSection {
        /// what the loss is
        algorithm: Algorithm = Algorithm::Sft, NewRun;
        /// for dpo: how strongly the model is kept near its base
        dpo_beta: f64 [above(0.0, 1e3)] = 0.1, NewRun;
        /// for dpo: assumed probability that a pair's labels are swapped
        dpo_label_smoothing: f64 [below(0.0, 0.5)] = 0.0, NewRun;
        /// for kto: how strongly the model is kept near its base
        kto_beta: f64 [above(0.0, 1e3)] = 0.1, NewRun;
        /// for kto: what the loss of a good reply counts
        kto_desirable_weight: f64 [above(0.0, 1e3)] = 1.0, NewRun;
        /// for kto: what the loss of a bad reply counts
        kto_undesirable_weight: f64 [above(0.0, 1e3)] = 1.0, NewRun;
        /// passes over the training rows
        epochs: f64 [above(0.0, 1e6)] = 3.0, Now;
        /// end after this many steps instead; 0 = epochs decide
        max_steps: Option<u64> = None, Now;
        /// sequences per micro-batch
        batch_size: usize [whole(1, 1 << 20)] = 4, NewRun;
        /// micro-batches per step
        accumulate: usize [whole(1, 1 << 20)] = 4, NewRun;
        /// the highest, after warm-up
        learning_rate: f64 [above(0.0, 1.0)] = 2e-4, Now;
        /// course of the learning rate
        schedule: Schedule = Schedule::Cosine, NewRun;
        /// share of all steps (0.03), or a number of steps (10)
        warmup: Warmup = Warmup::Fraction(0.03), NewRun;
        /// where the schedule ends
        min_learning_rate: f64 [closed(0.0, 1.0)] = 0.0, Now;
        /// decoupled from the gradient
        weight_decay: f64 [closed(0.0, 10.0)] = 0.01, Now;
        /// decay of AdamW's two moments
        betas: [f64; 2] = [0.9, 0.999],
            Refused("the optimizer's moments were averaged with the old ones; start a new run");
        /// longer gradients are scaled down; 0 = off
        max_grad_norm: f64 [closed(0.0, 1e9)] = 1.0, Now;
        /// decides split, order, dropout and first weights
        seed: u64 = 42, Refused("the rows trained on so far were drawn with the old one; start a new run");
        /// activations computed again to save memory
        recompute: Recompute = Recompute::Auto, NewRun;
        /// the same bits each time on a GPU too: slower, or an error if it cannot
        deterministic: bool = false, NewRun;
        /// steps between evaluations; 0 = only at the end
        eval_every: u64 = 50, Now;
        /// steps between samples of the suite; 0 = never
        sample_every: u64 = 100, Now;
        /// steps between checkpoints; 0 = off
        checkpoint_every: u64 = 100, Now;
        /// older ones are removed; 0 = keep all
        keep_checkpoints: usize [whole(0, 1 << 20)] = 3, Now;
        /// evaluations without a better loss before the run ends; 0 = off
        early_stop_patience as "early_stop.patience": u64 = 0, Now;
        /// when a loss is not a number
        on_nan: OnNan = OnNan::Stop, Now;
    }

    /// what "better" means; scored on the held-out examples and in review
    objective: ObjectiveSection {
        /// check that scores a reply
        kind: ObjectiveKind = ObjectiveKind::None, NextEvaluation;
        /// JSON Schema file, for kind json
        schema: Option<PathBuf> = None, NextEvaluation;
        /// regular expression, for kind regex
        pattern: Option<String> = None, NextEvaluation;
        /// texts a reply must contain, for kind contains
        contains: Vec<String> = Vec::new(), NextEvaluation;
        /// fewest characters, for kind length; 0 = any
        min_length: Option<usize> [whole(0, 1 << 32)] = None, NextEvaluation;
        /// most characters, for kind length; 0 = any
        max_length: Option<usize> [whole(0, 1 << 32)] = None, NextEvaluation;
    }

    /// how replies are drawn and compared
    review: ReviewSection {
        /// prompts used again and again, a .jsonl file
        suite: Option<PathBuf> = None, Now;
        /// system prompt of the prompt-only baseline
        baseline_system: String = String::new(), Now;
        /// 0 = the likeliest token each time
        temperature: f64 [closed(0.0, 10.0)] = 0.7, Now;
        /// share of the probability drawn from
        top_p: f64 [above(0.0, 1.0)] = 0.95, Now;
        /// number of likeliest tokens drawn from; 0 = all
        top_k: usize [whole(0, 1 << 24)] = 0, Now;
        /// longest reply
        max_new_tokens: usize [whole(1, 1 << 24)] = 256, Now;
    }

    /// how the workbench looks
    ui: UiSection {
        /// built in, or a file of the themes folder
        theme: String = "luthier".to_owned(), Now;
    }
}

impl Config {
    /// Whether several examples share a sequence. Rows whose answers count as a whole never do: `train.batch_size`
    /// counts rows.
    pub fn packs(&self) -> bool {
        self.data.packing && self.train.algorithm.declaration().packs
    }
}
