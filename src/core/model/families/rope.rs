//! The rotary embedding in configurations: transformers 5 uses `rope_parameters`, transformers 4
//! `rope_theta`, `rope_scaling` and `partial_rotary_factor`. Defaults and precedence are those of
//! transformers 5.23 (`modeling_rope_utils.py`, `RotaryEmbeddingConfigMixin`).

use crate::model::architecture::{RopeScaling, RopeSpec};
use crate::model::error::ModelError;
use crate::model::settings::Settings;

/// The number of rotated dimensions of a head; only GGUF has this key.
pub(in crate::model) const ROTATED: &str = "rope.dimension_count";

/// Context length of pre-training.
const ORIGINAL: &str = "original_max_position_embeddings";

/// Most frequency divisors in a configuration: every layer gets its own copy. Real heads have fewer than 256
/// pairs.
const MAX_DIVISORS: usize = 4096;

/// What a model's rotary embedding depends on, other than its own keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// Dimensions of a head.
    pub(super) head_size: usize,
    /// Longest context that the model was trained for.
    pub(super) positions: usize,
    /// Fraction of a head's dimensions that are rotated if no key gives it; `None` if the family rotates
    /// whole heads.
    pub(super) share: Option<f64>,
    /// Context length of pre-training, if the model's own key does not give it. Overrides that of the section.
    pub(super) original: Option<usize>,
}

impl Frame {
    /// Rotates whole heads; the context length of pre-training is the model's.
    pub(super) fn whole(head_size: usize, positions: usize) -> Self {
        Self { head_size, positions, share: None, original: None }
    }

    /// The rotary embedding of all layers.
    pub(super) fn read(&self, settings: &Settings) -> Result<RopeSpec, ModelError> {
        let section = section(settings)?;
        if let Some(section) = &section
            && let Some(kind) = LAYER_TYPES.into_iter().find(|kind| section.has(kind))
        {
            let remedy = "choose another model";
            return Err(section.unsupported(
                kind,
                "rotary embedding by type of layer in this family",
                remedy,
            ));
        }
        self.spec(settings, section.as_ref(), ("rope_theta", 10_000.0))
    }

    /// The rotary embeddings of Gemma 3: one for layers that see all tokens, one for layers with a window.
    pub(super) fn read_by_layer_type(&self, settings: &Settings) -> Result<(RopeSpec, RopeSpec), ModelError> {
        let parameters = settings.section_if_any("rope_parameters")?;
        let nested = |kind| match &parameters {
            Some(parameters) => parameters.section_if_any(kind),
            None => Ok(None),
        };
        if let Some(parameters) = &parameters
            && !LAYER_TYPES.into_iter().any(|kind| parameters.has(kind))
        {
            let [full, window] = LAYER_TYPES;
            return Err(settings.wrong("rope_parameters", &format!("must have `{full}` and `{window}`")));
        }
        let scaling = settings.section_if_any("rope_scaling")?;
        let [full, window] = LAYER_TYPES;
        let full = scaling.or(nested(full)?);
        let full = self.spec(settings, full.as_ref(), ("rope_theta", 1e6))?;
        let window = nested(window)?;
        Ok((full, self.spec(settings, window.as_ref(), ("rope_local_base_freq", 10_000.0))?))
    }

    /// The rotary embedding in `section`. If it has no base of the frequencies, the model's own key or the
    /// default is used.
    fn spec(
        &self,
        settings: &Settings,
        section: Option<&Settings>,
        (key, default): (&str, f64),
    ) -> Result<RopeSpec, ModelError> {
        let in_section = |key| section.map_or(Ok(None), |section| section.number_if_any(key));
        let theta = match in_section("rope_theta")? {
            Some(theta) => theta,
            None => settings.number_if_any(key)?.unwrap_or(default),
        };
        let rotated = match (settings.size_if_any(ROTATED)?, in_section("partial_rotary_factor")?) {
            (Some(rotated), _) => rotated,
            (None, Some(share)) => self.rotated(share),
            (None, None) => {
                let share = settings.number_if_any("partial_rotary_factor")?.or(self.share);
                self.rotated(share.unwrap_or(1.0))
            }
        };
        if self.share.is_none() && rotated != self.head_size {
            let key = if settings.has(ROTATED) { ROTATED } else { "partial_rotary_factor" };
            let remedy = "choose another model";
            return Err(settings.unsupported(key, "partial rotary embedding in this family", remedy));
        }
        let scaling = match section {
            Some(section) => self.scaling(settings, section)?,
            None => RopeScaling::None,
        };
        Ok(RopeSpec { theta, rotated, scaling })
    }

    fn rotated(&self, share: f64) -> usize {
        (self.head_size as f64 * share) as usize
    }

    fn scaling(&self, settings: &Settings, section: &Settings) -> Result<RopeScaling, ModelError> {
        let number = |key| section.number_if_any(key)?.ok_or_else(|| section.wrong(key, "is missing"));
        let original = match settings.size_if_any(ORIGINAL)?.or(self.original) {
            Some(original) => original,
            None => section.size_if_any(ORIGINAL)?.unwrap_or(self.positions),
        };
        let key = if section.get("rope_type").is_some() { "rope_type" } else { "type" };
        match section.text_if_any(key)? {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
            Some("dynamic") => {
                Ok(RopeScaling::Dynamic { factor: number("factor")?, original_positions: self.positions })
            }
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_frequency_factor: number("low_freq_factor")?,
                high_frequency_factor: number("high_freq_factor")?,
                original_positions: original,
            }),
            // Phi-3 called LongRoPE `su`, and for some time `yarn`.
            Some("yarn") if !section.has("short_factor") => self.yarn(section, original),
            Some("longrope" | "su" | "yarn") => self.long(section, original),
            Some(_) => {
                let remedy =
                    "supported are default, linear, dynamic, llama3, yarn and longrope; choose another model";
                Err(section.unsupported(key, "this kind of rotary scaling", remedy))
            }
        }
    }

    fn yarn(&self, section: &Settings, original_positions: usize) -> Result<RopeScaling, ModelError> {
        let factor = self.factor(section, original_positions)?;
        let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        let weights = (section.number_if_any("mscale")?, section.number_if_any("mscale_all_dim")?);
        let default = match weights {
            (Some(own), Some(all)) if own != 0.0 && all != 0.0 => scale(own) / scale(all),
            _ => scale(1.0),
        };
        let turns =
            |key, default| Ok(section.number_if_any(key)?.filter(|&turns| turns != 0.0).unwrap_or(default));
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: turns("beta_fast", 32.0)?,
            beta_slow: turns("beta_slow", 1.0)?,
            original_positions,
            attention_factor: attention_factor(section, default)?,
            truncate: section.flag_if_any("truncate")?.unwrap_or(true),
        })
    }

    fn long(&self, section: &Settings, original_positions: usize) -> Result<RopeScaling, ModelError> {
        let divisors = |key| {
            let numbers = section.numbers_if_any(key)?.ok_or_else(|| section.wrong(key, "is missing"))?;
            if numbers.len() > MAX_DIVISORS {
                return Err(section.wrong(key, &format!("must be a list of at most {MAX_DIVISORS} numbers")));
            }
            Ok(numbers.into_iter().map(|number| number as f32).collect())
        };
        let factor = self.factor(section, original_positions)?;
        let default = long_attention_factor(factor, original_positions);
        Ok(RopeScaling::Long {
            short: divisors("short_factor")?,
            long: divisors("long_factor")?,
            original_positions,
            attention_factor: attention_factor(section, default)?,
        })
    }

    /// How many times longer the context is than in pre-training.
    fn factor(&self, section: &Settings, original_positions: usize) -> Result<f64, ModelError> {
        let factor = section.number_if_any("factor")?;
        Ok(factor.unwrap_or(self.positions as f64 / original_positions as f64))
    }
}

const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

/// LongRoPE's factor on cosine and sine if the model gives none (arXiv 2402.13753, section 4).
fn long_attention_factor(factor: f64, original_positions: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_positions as f64).ln()).sqrt() }
}

fn attention_factor(section: &Settings, default: f64) -> Result<f64, ModelError> {
    let factor = section.number_if_any("attention_factor")?.unwrap_or(default);
    if factor.is_finite() && factor > 0.0 {
        return Ok(factor);
    }
    Err(section.wrong("attention_factor", "must be above 0"))
}

fn section(settings: &Settings) -> Result<Option<Settings>, ModelError> {
    match settings.section_if_any("rope_scaling")? {
        Some(section) if !section.is_empty() => Ok(Some(section)),
        _ => settings.section_if_any("rope_parameters"),
    }
}
