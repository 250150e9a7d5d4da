//! The settings of a LoRA adapter, as in PEFT's `LoraConfig`.

use luthier_core::config::Bias;
use luthier_core::model::adapter::CONFIG_FILE;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::super::peft::PeftConfig;
use super::PEFT_TYPE;
use crate::models::Model;

/// Largest rank that is accepted.
const LARGEST_RANK: usize = 65_536;

/// The keys of PEFT's `LoraConfig` that are applied, or that only decide how a new adapter starts or which
/// layers it has; for an existing adapter, its weights tell.
const KNOWN: [&str; 22] = [
    "alpha_pattern",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
    "ensure_weight_tying",
];

/// Values of `init_lora_weights` that do not change the base weights.
const HARMLESS_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    pub rank_stabilised: bool,
    pub weight_decomposed: bool,
    pub bias: Bias,
    pub modules_to_save: Vec<String>,
    pub patterns: Patterns,
    /// Whether the base stores its weights `[in, out]`.
    pub transposed: bool,
    pub base: String,
}

/// Ranks and alphas of modules whose name ends with a match of a regular expression (PEFT's
/// `get_pattern_key`). The first match applies.
#[derive(Debug, Clone, Default)]
pub(super) struct Patterns {
    ranks: Vec<(String, Regex, usize)>,
    alphas: Vec<(String, Regex, f64)>,
}

impl Settings {
    /// Reads `adapter_config.json`. Anything that Luthier does not support becomes a problem.
    pub fn read(config: &mut PeftConfig, model: &Model) -> Self {
        config.check(PEFT_TYPE, &KNOWN);
        match config.value("init_lora_weights") {
            None | Some(Value::Bool(_)) => {}
            Some(Value::String(start)) if HARMLESS_STARTS.contains(&start.as_str()) => {}
            Some(other) => {
                let start = luthier_core::text::clean_line(&other.to_string()).into_owned();
                config.problem(format!(
                    "its init_lora_weights is {start}, which changes the base model; save it with PEFT's \
                     path_initial_model_for_weight_conversion"
                ));
            }
        }
        let modules_to_save = config.names("modules_to_save");
        if config.flag("ensure_weight_tying") && model.architecture().tied_head && !modules_to_save.is_empty()
        {
            config.problem("it uses ensure_weight_tying, which this version of Luthier cannot apply".into());
        }
        let bias = config.text("bias").unwrap_or(Bias::None.name()).to_owned();
        let bias = Bias::from_name(&bias).unwrap_or_else(|| {
            config.problem(format!("{CONFIG_FILE} has no valid bias"));
            Bias::None
        });
        let dropout =
            if config.value("lora_dropout").is_some() { config.number("lora_dropout") } else { 0.0 };
        if !(0.0..1.0).contains(&dropout) {
            config.problem(format!("lora_dropout is {dropout}"));
        }
        Self {
            rank: config.size("r", 1, LARGEST_RANK),
            alpha: config.number("lora_alpha"),
            dropout,
            rank_stabilised: config.flag("use_rslora"),
            weight_decomposed: config.flag("use_dora"),
            bias,
            modules_to_save,
            patterns: Patterns::read(config),
            transposed: model.architecture().transposed,
            base: config.base(),
        }
    }

    pub fn write(&self, targets: &[String]) -> Value {
        let ranks = self.patterns.ranks.iter().map(|(key, _, rank)| (key.clone(), json!(rank)));
        let alphas = self.patterns.alphas.iter().map(|(key, _, alpha)| (key.clone(), whole(*alpha)));
        let saved = &self.modules_to_save;
        json!({
            "peft_type": PEFT_TYPE,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": whole(self.alpha),
            "lora_dropout": self.dropout,
            "use_rslora": self.rank_stabilised,
            "use_dora": self.weight_decomposed,
            "target_modules": targets,
            "bias": self.bias.name(),
            "fan_in_fan_out": self.transposed,
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
            "rank_pattern": ranks.collect::<Map<_, _>>(),
            "alpha_pattern": alphas.collect::<Map<_, _>>(),
        })
    }

    pub fn rank_of(&self, module: &str) -> usize {
        first_match(&self.patterns.ranks, module).unwrap_or(self.rank)
    }

    /// The factor of the product of a module's factors.
    pub fn scale_of(&self, module: &str) -> f64 {
        let alpha = first_match(&self.patterns.alphas, module).unwrap_or(self.alpha);
        let rank = self.rank_of(module) as f64;
        if self.rank_stabilised { alpha / rank.sqrt() } else { alpha / rank }
    }
}

impl Patterns {
    fn read(config: &mut PeftConfig) -> Self {
        let rank = |value: &Value| {
            let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok());
            rank.filter(|rank| (1..=LARGEST_RANK).contains(rank))
        };
        let alpha = |value: &Value| value.as_f64().filter(|alpha| alpha.is_finite());
        Self {
            ranks: read_pattern(config, "rank_pattern", &rank),
            alphas: read_pattern(config, "alpha_pattern", &alpha),
        }
    }
}

fn read_pattern<T>(
    config: &mut PeftConfig,
    key: &str,
    read: &dyn Fn(&Value) -> Option<T>,
) -> Vec<(String, Regex, T)> {
    let entries = match config.value(key) {
        None => return Vec::new(),
        Some(Value::Object(entries)) => entries.clone(),
        Some(_) => {
            config.problem(format!("{CONFIG_FILE} has no valid {key}"));
            return Vec::new();
        }
    };
    let mut patterns = Vec::with_capacity(entries.len());
    for (pattern, value) in entries {
        let whole = Regex::new(&pattern).and_then(|_| Regex::new(&format!(r"\A(?:.*\.)?(?:{pattern})\z")));
        if let (Ok(whole), Some(value)) = (whole, read(&value)) {
            patterns.push((pattern, whole, value));
        } else {
            let pattern = luthier_core::text::clean_line(&pattern).into_owned();
            config.problem(format!("{CONFIG_FILE} has no valid {key}: {pattern}"));
        }
    }
    patterns
}

fn first_match<T: Copy>(patterns: &[(String, Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(_, pattern, _)| pattern.is_match(module)).map(|(_, _, value)| *value)
}

/// PEFT declares alpha as an integer.
fn whole(alpha: f64) -> Value {
    if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) }
}
