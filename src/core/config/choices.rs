//! Settings that take one of a list of names, each name declared once with its meaning.

use std::fmt;

use toml::Value;

use super::fields::{Fault, Field, read_choice};
use super::kinds::Kind;
use super::problems::Source;
use super::raw::Located;

/// One value that a setting with a closed list of names may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The name written in the file.
    pub name: &'static str,
    /// What it means, in one line.
    pub doc: &'static str,
}

/// Names that other tools take, and what to use here.
pub(super) const FOREIGN: [(&str, &str); 3] = [
    ("f16", "16-bit floats need loss scaling; use \"bf16\" or \"f32\""),
    ("fp16", "16-bit floats need loss scaling; use \"bf16\" or \"f32\""),
    ("float16", "16-bit floats need loss scaling; use \"bf16\" or \"f32\""),
];

macro_rules! choices {
    ($(
        #[doc = $key:literal]
        pub enum $enum:ident {
            $( $variant:ident = $name:literal, $doc:literal; )+
        }
    )+) => { $(
        #[doc = $key]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $enum {
            $( #[doc = $doc] $variant, )+
        }

        impl $enum {
            /// Every value with its name and meaning, in the order in which they are documented.
            pub const CHOICES: &'static [Choice] = &[
                $( Choice { name: $name, doc: $doc }, )+
            ];

            /// Every value, in the same order.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The name written in `luthier.toml`.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$variant => $name, )+
                }
            }

            /// The value of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }

        impl Field for $enum {
            const KIND: Kind = Kind::Choice(Self::CHOICES);

            fn read(value: &Located, _: &Kind, source: &Source) -> Result<Self, Fault> {
                read_choice(value, Self::CHOICES, source).map(|position| Self::ALL[position])
            }

            fn write(&self) -> Value {
                Value::from(self.name())
            }
        }

        impl fmt::Display for $enum {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.name())
            }
        }
    )+ };
}

choices! {
    /// `model.dtype`.
    pub enum Dtype {
        Auto = "auto", "bf16 where the device is fast at it, else f32";
        F32 = "f32", "32-bit floats";
        Bf16 = "bf16", "bfloat16: the range of f32 in half the memory";
    }

    /// `data.format`.
    pub enum Format {
        Auto = "auto", "detected from the first rows";
        PromptCompletion = "prompt-completion", "fields `prompt` and `completion`, and `label` (true or false) for algorithm \"kto\"";
        Messages = "messages", "field `messages`, a list of {role, content}";
        ShareGpt = "sharegpt", "field `conversations`, a list of {from, value}";
        Alpaca = "alpaca", "fields `instruction`, `input` and `output`";
        Text = "text", "field `text`, trained on whole";
        Preference = "preference", "fields `prompt`, `chosen` and `rejected`, for algorithm \"dpo\"";
        Tokens = "tokens", "fields `input_ids` and `labels` (-100 = not trained)";
    }

    /// `data.train_on`.
    pub enum TrainOn {
        Completion = "completion", "the last reply";
        Assistant = "assistant", "every assistant message";
        All = "all", "every token";
    }

    /// `data.system_role`.
    pub enum SystemRole {
        Auto = "auto", "a message of its own; merged where the template refuses that";
        Merge = "merge", "put before the first user message, in the same turn";
    }

    /// `data.reasoning`.
    pub enum Reasoning {
        Train = "train", "learned where the template writes it";
        Mask = "mask", "stands in the text, and is not learned";
        DropHistory = "drop-history", "removed from replies before the last question";
    }

    /// `data.overflow`.
    pub enum Overflow {
        Truncate = "truncate", "cut off at the end";
        KeepEnd = "keep-end", "cut off at the beginning";
        Split = "split", "texts become as many examples as they fill; others are cut off at the end";
        Drop = "drop", "left out, and counted";
        Error = "error", "the run does not start";
    }

    /// `method.kind`.
    pub enum MethodKind {
        Full = "full", "every weight of the model";
        Lora = "lora", "low-rank adapters on frozen weights";
        Qlora = "qlora", "LoRA over quantised weights: NF4, or a GGUF file's own";
        Prefix = "prefix", "trained keys and values before every layer";
        Prompt = "prompt", "trained embeddings before the input";
        Ia3 = "ia3", "trained scales on keys, values and the MLP";
    }

    /// `method.variant`.
    pub enum Variant {
        Plain = "plain", "scaled by alpha / rank";
        Rslora = "rslora", "scaled by alpha / sqrt(rank)";
        Dora = "dora", "magnitude and direction trained apart";
    }

    /// `method.bias`.
    pub enum Bias {
        None = "none", "none";
        All = "all", "every bias of the model";
        LoraOnly = "lora_only", "those of the layers that have an adapter";
    }

    /// `train.schedule`.
    pub enum Schedule {
        Cosine = "cosine", "half a cosine down to min_learning_rate";
        Linear = "linear", "a straight line down to min_learning_rate";
        Constant = "constant", "no decay";
        Wsd = "wsd", "warm-up, a long constant stretch, a decay at the end";
    }

    /// `train.recompute`.
    pub enum Recompute {
        Auto = "auto", "only where memory would not suffice otherwise";
        On = "on", "always";
        Off = "off", "never";
    }

    /// `train.on_nan`.
    pub enum OnNan {
        Stop = "stop", "the run fails and says at which step";
        Skip = "skip", "the step is left out, and marked";
        Rollback = "rollback", "back to the last checkpoint, past the offending rows";
    }

    /// `objective.kind`.
    pub enum ObjectiveKind {
        None = "none", "no check";
        Json = "json", "valid JSON that conforms to `schema`";
        Regex = "regex", "matches `pattern`";
        Exact = "exact", "equal to the expected reply";
        Contains = "contains", "contains every text of `contains`";
        Length = "length", "between `min_length` and `max_length` characters";
    }
}

crate::algorithms::algorithms!(choices);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_value() {
        for choice in Format::CHOICES {
            let format = Format::from_name(choice.name).expect("listed");
            assert_eq!(format.name(), choice.name);
            assert_eq!(format.to_string(), choice.name);
        }
        assert_eq!(Format::from_name("Messages"), None);
    }
}
