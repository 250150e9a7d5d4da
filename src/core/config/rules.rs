//! Cross-key validation: settings that are legal one by one and contradict each other.

use std::path::Path;

use super::choices::{Algorithm, Bias, MethodKind, OnNan, TrainOn, Variant};
use super::keys::{Key, key};
use super::names::nearest;
use super::resolve::Reader;
use super::sections::Config;
use super::toml_text::number;
use super::values::{EvalSource, Targets, Warmup};
use crate::algorithms::BaseUse;
use crate::data::ProblemKind;
use crate::hub::HubModel;

/// Reports every contradiction in `config`.
pub(super) fn check(config: &Config, reader: &mut Reader) {
    check_algorithm(config, reader);
    check_method(config, reader);
    check_course(config, reader);
    check_evaluation(config, reader);
    check_allowed(config, reader);
    check_objective(config, reader);
}

fn check_algorithm(config: &Config, reader: &mut Reader) {
    let algorithm = config.train.algorithm;
    let rows = algorithm.declaration().rows;
    if let Some((problem, help)) = rows.refused_format(algorithm, config.data.format) {
        reader.contradict(&["train.algorithm", "data.format"], &problem, &help);
    }
    let others = Algorithm::ALL.iter().filter(|other| **other != algorithm);
    for (other, setting) in
        others.flat_map(|other| other.declaration().settings.iter().map(move |key| (other, *key)))
    {
        if config.get_text(setting).as_deref() != key(setting).map(Key::default).as_deref() {
            reader.contradict(
                &[setting, "train.algorithm"],
                &format!("`{setting}` belongs to \"{other}\", and `train.algorithm` is \"{algorithm}\""),
                &format!("leave {setting} out, or set train.algorithm = \"{other}\""),
            );
        }
    }
    if algorithm.declaration().base == BaseUse::EachStep && config.method.kind == MethodKind::Full {
        reader.contradict(
            &["train.algorithm", "method.kind"],
            &format!(
                "`train.algorithm` = \"{algorithm}\" measures each step against the base model, which \
                 `method.kind` = \"full\" does not keep"
            ),
            "set method.kind = \"lora\", or another method with an adapter",
        );
    }
    if let Some(learns) = rows.trains_on_completion()
        && config.data.train_on != TrainOn::Completion
    {
        reader.contradict(
            &["train.algorithm", "data.train_on"],
            &format!("`train.algorithm` = \"{algorithm}\" {learns}"),
            "leave data.train_on out",
        );
    }
}

/// Settings that the chosen method does not use.
fn check_method(config: &Config, reader: &mut Reader) {
    let method = &config.method;
    let kind = method.kind;
    let low_rank = matches!(kind, MethodKind::Lora | MethodKind::Qlora);
    let by_layer = low_rank || kind == MethodKind::Ia3;
    let misplaced = [
        ("method.variant", method.variant != Variant::Plain && !low_rank, "is a form of LoRA"),
        ("method.dropout", method.dropout > 0.0 && !low_rank, "belongs to LoRA"),
        ("method.bias", method.bias != Bias::None && !low_rank, "belongs to LoRA"),
        (
            "method.modules_to_save",
            !method.modules_to_save.is_empty() && !by_layer,
            "belongs to LoRA and IA3",
        ),
        (
            "method.targets",
            method.targets != Targets::AllLinear && !by_layer,
            "names layers for LoRA and IA3",
        ),
    ];
    for (key, wrong, why) in misplaced {
        if wrong {
            reader.contradict(
                &[key, "method.kind"],
                &format!("`{key}` {why}, and `method.kind` is \"{kind}\""),
                &format!("leave {key} out, or choose another method"),
            );
        }
    }
}

fn check_course(config: &Config, reader: &mut Reader) {
    let train = &config.train;
    if let (Warmup::Steps(warmup), Some(steps)) = (train.warmup, train.max_steps)
        && warmup > steps
    {
        reader.contradict(
            &["train.warmup", "train.max_steps"],
            &format!("warm-up takes {warmup} steps, but the run ends after {steps}"),
            "shorten train.warmup, or raise train.max_steps",
        );
    }
    if train.min_learning_rate > train.learning_rate {
        reader.contradict(
            &["train.min_learning_rate", "train.learning_rate"],
            &format!(
                "`train.min_learning_rate` is {}, above `train.learning_rate`, which is {}",
                number(train.min_learning_rate),
                number(train.learning_rate)
            ),
            "the schedule falls from the one to the other",
        );
    }
    if train.on_nan == OnNan::Rollback && train.checkpoint_every == 0 {
        reader.contradict(
            &["train.on_nan", "train.checkpoint_every"],
            "`train.on_nan` = \"rollback\" has no checkpoint to go back to",
            "set train.checkpoint_every",
        );
    }
}

fn check_evaluation(config: &Config, reader: &mut Reader) {
    let train = &config.train;
    if train.early_stop_patience > 0 {
        let help = "early stopping watches the held-out loss";
        if train.eval_every == 0 {
            reader.contradict(
                &["train.early_stop.patience", "train.eval_every"],
                "`train.early_stop` never sees an evaluation, since `train.eval_every` is 0",
                help,
            );
        }
        if config.data.eval == EvalSource::Fraction(0.0) {
            reader.contradict(
                &["train.early_stop.patience", "data.eval"],
                "`train.early_stop` has nothing to evaluate, since `data.eval` is 0",
                help,
            );
        }
    }
    if let EvalSource::Paths(paths) = &config.data.eval
        && let Some(path) = paths.iter().find(|path| is_trained_on(path, config))
    {
        reader.contradict(
            &["data.eval", "data.train"],
            &format!("{} is both trained on and held out", path.display()),
            "give a share such as eval = 0.1 to split one file",
        );
    }
}

fn check_allowed(config: &Config, reader: &mut Reader) {
    for name in &config.data.allow {
        match ProblemKind::from_name(name) {
            Some(kind) if kind.can_be_allowed() => {}
            Some(_) => reader.contradict(
                &["data.allow"],
                &format!("\"{name}\" cannot be allowed: no run could start with it"),
                "leave it out, and do what the finding says",
            ),
            None => {
                let near = nearest(name, ProblemKind::names());
                let help = near.map_or_else(
                    || "`luthier data check --json` shows the kind of each finding".to_owned(),
                    |near| format!("did you mean \"{near}\"?"),
                );
                reader.contradict(&["data.allow"], &format!("no finding is called \"{name}\""), &help);
            }
        }
    }
}

/// Whether a held-out path is one of `data.train`. A dataset of the hub is read in parts by each of the two.
fn is_trained_on(path: &Path, config: &Config) -> bool {
    let is_of_hub = path.to_str().is_some_and(HubModel::is_meant_by);
    !is_of_hub && config.data.train.iter().any(|source| source.path == path)
}

fn check_objective(config: &Config, reader: &mut Reader) {
    let objective = &config.objective;
    if let Err(missing) = objective.goal() {
        reader.contradict(&["objective.kind", missing.key], missing.message, missing.help);
    }
    if let (Some(least), Some(most)) = (objective.min_length, objective.max_length)
        && least > most
    {
        reader.contradict(
            &["objective.min_length", "objective.max_length"],
            &format!("`objective.min_length` is {least}, above `objective.max_length`, which is {most}"),
            "no reply can be both that long and that short",
        );
    }
}
