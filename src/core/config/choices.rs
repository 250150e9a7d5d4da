//! Settings with a closed list of names: the enum, its names, what each means and whether this version
//! has it stand in one table each.

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
    /// What to use instead, where this version does not have it yet.
    pub missing: Option<&'static str>,
}

macro_rules! choices {
    (
        $(#[$meta:meta])*
        pub enum $enum:ident {
            $( $variant:ident = $name:literal, $doc:literal $(, instead $instead:literal)?; )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $enum {
            $( #[doc = $doc] $variant, )+
        }

        impl $enum {
            /// Every value with its name and meaning, in the order in which they are documented.
            pub const CHOICES: &'static [Choice] = &[
                $( Choice { name: $name, doc: $doc, missing: choices!(@missing $($instead)?) }, )+
            ];

            /// Every value, in the same order.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The name written in `luthier.toml`.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$variant => $name, )+
                }
            }

            /// The value of that name, whether or not this version has it.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }

        impl Field for $enum {
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
    };
    (@missing) => { None };
    (@missing $instead:literal) => { Some($instead) };
}

choices! {
    /// `model.dtype`: the number format in which the base model's weights and activations are computed.
    pub enum Dtype {
        Auto = "auto", "bf16 where the device is fast at it, else f32";
        F32 = "f32", "32-bit floats";
        Bf16 = "bf16", "bfloat16: the range of f32 in half the memory";
        F16 = "f16", "16-bit floats, which need loss scaling", instead "use \"bf16\" or \"f32\"";
    }
}

choices! {
    /// `data.format`: how a row of the dataset is laid out.
    pub enum Format {
        Auto = "auto", "found out from the first rows";
        PromptCompletion = "prompt-completion", "fields `prompt` and `completion`";
        Messages = "messages", "field `messages`, a list of {role, content}";
        ShareGpt = "sharegpt", "field `conversations`, a list of {from, value}";
        Alpaca = "alpaca", "fields `instruction`, `input` and `output`";
        Text = "text", "field `text`, trained on whole";
        Preference = "preference", "fields `prompt`, `chosen` and `rejected`, for algorithm \"dpo\"";
        Tokens = "tokens", "fields `input_ids` and `labels` (-100 = not trained)";
    }
}

choices! {
    /// `data.train_on`: which tokens of an example carry loss.
    pub enum TrainOn {
        Completion = "completion", "the last reply";
        Assistant = "assistant", "every assistant message";
        All = "all", "every token";
    }
}

choices! {
    /// `data.overflow`: what happens to an example longer than `data.max_length`.
    pub enum Overflow {
        Truncate = "truncate", "cut off at the end";
        Drop = "drop", "left out, and counted";
        Error = "error", "the run does not start";
    }
}

choices! {
    /// `method.kind`: what is trained.
    pub enum MethodKind {
        Full = "full", "every weight of the model";
        Lora = "lora", "low-rank adapters beside frozen weights";
        Qlora = "qlora", "LoRA over quantised weights: NF4, or a GGUF file's own";
        Prefix = "prefix", "trained keys and values before every layer";
        Prompt = "prompt", "trained embeddings before the input";
        Ia3 = "ia3", "trained scales on keys, values and the MLP";
    }
}

choices! {
    /// `method.variant`: which form of LoRA.
    pub enum Variant {
        Plain = "plain", "scaled by alpha / rank";
        Rslora = "rslora", "scaled by alpha / sqrt(rank)";
        Dora = "dora", "magnitude and direction trained apart";
    }
}

choices! {
    /// `method.bias`: which biases of the base model LoRA trains as well.
    pub enum Bias {
        None = "none", "none";
        All = "all", "every bias of the model";
        LoraOnly = "lora_only", "those of the layers that have an adapter";
    }
}

choices! {
    /// `train.algorithm`: what the loss is.
    pub enum Algorithm {
        Sft = "sft", "supervised fine-tuning: likelihood of the reply";
        Dpo = "dpo", "direct preference optimisation: the chosen reply over the rejected one";
    }
}

choices! {
    /// `train.schedule`: the course of the learning rate after warm-up.
    pub enum Schedule {
        Cosine = "cosine", "half a cosine down to min_learning_rate";
        Linear = "linear", "a straight line down to min_learning_rate";
        Constant = "constant", "no decay";
        Wsd = "wsd", "warm-up, a long constant stretch, a decay at the end";
    }
}

choices! {
    /// `train.optimizer`: the rule that turns gradients into an update.
    pub enum Optimizer {
        Adamw = "adamw", "Adam with decoupled weight decay";
        Adamw8bit = "adamw8bit", "AdamW with 8-bit state", instead "use \"adamw\"";
        Sgd = "sgd", "plain stochastic gradient descent", instead "use \"adamw\"";
        Lion = "lion", "sign of the momentum", instead "use \"adamw\"";
    }
}

choices! {
    /// `train.recompute`: whether activations are computed again in the backward pass to save memory.
    pub enum Recompute {
        Auto = "auto", "where memory would not do otherwise";
        On = "on", "always";
        Off = "off", "never";
    }
}

choices! {
    /// `train.on_nan`: what happens when a step's loss or gradient is not a number.
    pub enum OnNan {
        Stop = "stop", "the run fails and says at which step";
        Skip = "skip", "the step is left out, and marked";
        Rollback = "rollback", "back to the last checkpoint, past the offending rows";
    }
}

choices! {
    /// `objective.kind`: the check that scores a reply.
    pub enum ObjectiveKind {
        None = "none", "no check";
        Json = "json", "valid JSON that conforms to `schema`";
        Regex = "regex", "matches `pattern`";
        Exact = "exact", "equal to the expected reply";
        Contains = "contains", "holds every text of `contains`";
        Length = "length", "between `min_length` and `max_length` characters";
    }
}

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

    #[test]
    fn what_is_missing_says_what_to_use() {
        let missing: Vec<_> =
            Optimizer::CHOICES.iter().filter(|choice| choice.missing.is_some()).map(|c| c.name).collect();
        assert_eq!(missing, ["adamw8bit", "sgd", "lion"]);
    }
}
