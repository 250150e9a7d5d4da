//! The resolved configuration: one struct per section of `luthier.toml`, every value checked.

use std::path::PathBuf;

use indexmap::IndexMap;

pub use super::choices::{
    Algorithm, Bias, Choice, Dtype, Format, MethodKind, ObjectiveKind, OnNan, Optimizer, Overflow, Recompute,
    Schedule, TrainOn, Variant,
};

/// Highest index of a GPU.
pub(super) const LAST_GPU: usize = 1023;

/// Everything a run uses. Paths are as written: relative ones are meant from the project folder.
///
/// [`Config::default`] holds every default; its `model.path` and `data.train` are empty, since those two
/// have none.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[model]`: the base model and where it computes.
    pub model: ModelSection,
    /// `[data]`: the dataset and how it becomes tokens.
    pub data: DataSection,
    /// `[method]`: what is trained.
    pub method: MethodSection,
    /// `[train]`: how it is trained.
    pub train: TrainSection,
    /// `[objective]`: what "better" means.
    pub objective: ObjectiveSection,
    /// `[review]`: how replies are drawn and compared.
    pub review: ReviewSection,
    /// `[ui]`: how the workbench looks.
    pub ui: UiSection,
}

impl Config {
    /// Whether several examples share a sequence. Preference pairs never do: `train.batch_size` counts pairs, and both
    /// sides of each lie end to end in the batch, without padding, as they are.
    pub fn packs(&self) -> bool {
        self.data.packing && self.train.algorithm == Algorithm::Sft
    }
}

/// `[model]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSection {
    /// A folder with `config.json` and safetensors, a `.gguf` file, or a model of the hub by name; see
    /// [`ModelFiles::find`](crate::model::ModelFiles::find).
    pub path: String,
    /// Number format of weights and activations.
    pub dtype: Dtype,
    /// Where the run computes.
    pub device: Device,
    /// Whether a GPU may round the operands of f32 products to TF32.
    pub tf32: bool,
}

/// `model.device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU where there is one, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// These GPUs, by index; never empty.
    Cuda(Vec<usize>),
}

impl Device {
    /// The device that a word names: `auto`, `cpu`, `cuda`, `cuda:N`.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(vec![0])),
            _ => word
                .strip_prefix("cuda:")
                .filter(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|index| index.parse().ok())
                .filter(|index| *index <= LAST_GPU)
                .map(|index| Self::Cuda(vec![index])),
        }
    }
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSection {
    /// Files with the training rows; never empty.
    pub train: Vec<PathBuf>,
    /// Where the held-out rows come from.
    pub eval: EvalSource,
    /// How a row is laid out.
    pub format: Format,
    /// Which column of the files plays which role: role → column.
    pub columns: IndexMap<String, String>,
    /// `auto`, a built-in name, or a `.jinja` file.
    pub template: String,
    /// System prompt put before conversations that have none; empty for none.
    pub system: String,
    /// Which tokens carry loss.
    pub train_on: TrainOn,
    /// Most tokens of an example; of a preference pair, of each of its sides.
    pub max_length: usize,
    /// What happens to longer ones.
    pub overflow: Overflow,
    /// Whether several short examples share a sequence, without seeing each other; [`Config::packs`] says whether they
    /// do.
    pub packing: bool,
    /// Whether rows are shuffled anew each epoch.
    pub shuffle: bool,
}

/// `data.eval`.
#[derive(Clone, Debug, PartialEq)]
pub enum EvalSource {
    /// This share of the training rows, 0 (nothing is held out) up to, not including, 1.
    Fraction(f64),
    /// Files of their own; never empty.
    Paths(Vec<PathBuf>),
}

/// `[method]`.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodSection {
    /// What is trained.
    pub kind: MethodKind,
    /// Rank of the low-rank factors, at least 1.
    pub rank: usize,
    /// Their scale is alpha / rank.
    pub alpha: f64,
    /// Share of the adapter's inputs zeroed in training, 0 up to, not including, 1.
    pub dropout: f64,
    /// Which linear layers get an adapter.
    pub targets: Targets,
    /// Which form of LoRA.
    pub variant: Variant,
    /// Which biases of the base model are trained as well.
    pub bias: Bias,
    /// Modules that are trained whole beside the adapter, each named as PEFT matches it: by the end of its name.
    pub modules_to_save: Vec<String>,
    /// A PEFT adapter folder to start from; for full fine-tuning a model folder.
    pub init: Option<PathBuf>,
    /// Length of a trained prefix or prompt.
    pub virtual_tokens: usize,
}

/// `method.targets`, with PEFT's meaning of each form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Every linear layer but the output head; for IA3 the layers of its paper: keys, values and the way down from the
    /// feed-forward part.
    AllLinear,
    /// Layers whose name is, or ends with `.` and, one of these; never empty.
    Names(Vec<String>),
    /// Layers whose whole name matches this regular expression.
    Pattern(String),
}

/// `[train]`. Intervals are in steps; 0 switches off what they time.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSection {
    /// What the loss is.
    pub algorithm: Algorithm,
    /// β of DPO, above 0: rewards are β times how much likelier an answer is than to the base model.
    pub dpo_beta: f64,
    /// Share of pairs that DPO takes to be labelled the wrong way round, 0 up to, not including, 0.5.
    pub dpo_label_smoothing: f64,
    /// Passes over the training rows, above 0; `max_steps` goes before it.
    pub epochs: f64,
    /// Where the run ends, in steps, whatever the epochs.
    pub max_steps: Option<u64>,
    /// Sequences per micro-batch, at least 1.
    pub batch_size: usize,
    /// Micro-batches per step, at least 1.
    pub accumulate: usize,
    /// Highest learning rate, above 0.
    pub learning_rate: f64,
    /// Its course after warm-up.
    pub schedule: Schedule,
    /// How long it rises from 0.
    pub warmup: Warmup,
    /// Where the schedule ends, at most `learning_rate`.
    pub min_learning_rate: f64,
    /// The update rule.
    pub optimizer: Optimizer,
    /// Decoupled weight decay, at least 0.
    pub weight_decay: f64,
    /// Decay of AdamW's two moments, each 0 up to, not including, 1.
    pub betas: [f64; 2],
    /// Gradients are scaled down to this norm; 0 leaves them as they are.
    pub max_grad_norm: f64,
    /// Decides the split, the order of rows, dropout and the adapter's first weights.
    pub seed: u64,
    /// Whether activations are computed again to save memory.
    pub recompute: Recompute,
    /// Whether a GPU, too, must compute the same bits each time.
    pub deterministic: bool,
    /// Steps between evaluations; 0 = only at the end.
    pub eval_every: u64,
    /// Steps between samples of the suite; 0 = never.
    pub sample_every: u64,
    /// Steps between checkpoints; 0 = none but the one asked for or made when stopping.
    pub checkpoint_every: u64,
    /// How many of them stay; 0 = all.
    pub keep_checkpoints: usize,
    /// When a run ends because it stopped getting better.
    pub early_stop: EarlyStop,
    /// What happens on a loss or gradient that is not a number.
    pub on_nan: OnNan,
}

/// `train.warmup`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// This share of all steps, 0 up to, not including, 1.
    Fraction(f64),
    /// This many steps.
    Steps(u64),
}

/// `train.early_stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlyStop {
    /// Evaluations without a better loss after which the run ends; 0 = never.
    pub patience: u64,
}

/// `[objective]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectiveSection {
    /// The check that scores a reply.
    pub kind: ObjectiveKind,
    /// A JSON Schema file; set where `kind` is `json`.
    pub schema: Option<PathBuf>,
    /// A regular expression that compiles; set where `kind` is `regex`.
    pub pattern: Option<String>,
    /// Texts a reply must hold; not empty where `kind` is `contains`.
    pub contains: Vec<String>,
    /// Fewest characters of a reply.
    pub min_length: Option<usize>,
    /// Most characters of a reply.
    pub max_length: Option<usize>,
}

/// `[review]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReviewSection {
    /// A JSONL file of prompts used again and again.
    pub suite: Option<PathBuf>,
    /// The system prompt of the baseline; empty for no baseline.
    pub baseline_system: String,
    /// 0 takes the likeliest token every time.
    pub temperature: f64,
    /// Tokens are drawn from the smallest set with this share of the probability, above 0 up to 1.
    pub top_p: f64,
    /// Tokens are drawn from this many likeliest; 0 = off.
    pub top_k: usize,
    /// Longest reply, at least 1.
    pub max_new_tokens: usize,
}

/// `[ui]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UiSection {
    /// Name of a theme, built in or in the user's themes folder.
    pub theme: String,
}
