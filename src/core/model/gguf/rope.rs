//! Rotary scaling for longer contexts as in llama.cpp: partly in metadata, partly in tensors
//! (`llama_model_base::load_hparams`, `llama_context`, and `rope_yarn` in `ggml-cpu/ops.cpp`).

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use super::header::{Header, Tensor};
use crate::model::Storage;
use crate::model::architecture::{Architecture, Position, RopeScaling, RopeSpec};
use crate::model::error::{Fault, ModelError};
use crate::model::families::GgufStyle;
use crate::model::settings::Settings;

/// LLaMA 3 files have these instead of scaling parameters: one f32 divisor per rotary frequency.
pub(super) const DIVISORS: &str = "rope_freqs.weight";
/// LongRoPE's divisors up to the context length of pre-training.
pub(super) const SHORT: &str = "rope_factors_short.weight";
/// LongRoPE's divisors beyond it.
pub(super) const LONG: &str = "rope_factors_long.weight";

/// The frequency divisors that a file has as tensors.
pub(super) struct Divisors {
    all: Option<Vec<f32>>,
    short: Option<Vec<f32>>,
    long: Option<Vec<f32>>,
}

impl Divisors {
    /// Whether a tensor with this name holds divisors.
    pub(super) fn are(name: &str) -> bool {
        [DIVISORS, SHORT, LONG].contains(&name)
    }

    /// Reads those that exist.
    pub(super) fn read(file: &mut BufReader<File>, header: &Header) -> Result<Self, Fault> {
        let mut divisors = |name: &str| {
            let tensor = header.tensors.iter().find(|tensor| tensor.name == name);
            tensor.map(|tensor| floats(file, tensor)).transpose()
        };
        Ok(Self { all: divisors(DIVISORS)?, short: divisors(SHORT)?, long: divisors(LONG)? })
    }

    fn check(&self, rope: &RopeSpec) -> Result<(), Fault> {
        for (name, divisors) in [(DIVISORS, &self.all), (SHORT, &self.short), (LONG, &self.long)] {
            let Some(divisors) = divisors else { continue };
            let (found, needed) = (divisors.len(), rope.rotated / 2);
            if found != needed {
                let problem = format!("tensor `{name}` has {found} values, needed {needed}");
                return Err(Fault::Damaged(problem));
            }
            if divisors.iter().any(|divisor| !divisor.is_finite() || *divisor <= 0.0) {
                return Err(Fault::Damaged(format!("tensor `{name}` holds values that are not above 0")));
            }
        }
        Ok(())
    }
}

/// Sets the scaling from metadata and tensors. If layers with a window have their own rotary embedding, only
/// the other layers are scaled.
pub(super) fn scale(
    architecture: &mut Architecture,
    style: GgufStyle,
    settings: &Settings,
    divisors: &Divisors,
) -> Result<(), ModelError> {
    let scaling = scaling(settings, architecture.positions, divisors)?;
    for layer in &mut architecture.layers {
        let Position::Rotary(rope) = &mut layer.attention.position else { continue };
        if style.local_rope && layer.attention.window.is_some() {
            continue;
        }
        divisors.check(rope).map_err(|fault| fault.at(settings.file()))?;
        rope.scaling = scaling.clone();
    }
    match architecture.contradiction() {
        Some((key, problem)) => Err(settings.wrong(key, problem)),
        None => Ok(()),
    }
}

fn scaling(settings: &Settings, positions: usize, divisors: &Divisors) -> Result<RopeScaling, ModelError> {
    let factor = settings.number_if_any("factor")?.filter(|&factor| factor != 0.0);
    let long = match (&divisors.short, &divisors.long) {
        (Some(short), Some(long)) => Some(RopeScaling::Long {
            short: short.clone(),
            long: long.clone(),
            original_positions: original_positions(settings, positions)?,
            attention_factor: attention_factor(settings, "attn_factor")?.unwrap_or(1.0),
        }),
        _ => None,
    };
    let scaling = match (settings.text_if_any("rope_type")?, long) {
        (Some("longrope") | None, Some(long)) => long,
        (Some("longrope"), None) => {
            return Err(settings.wrong("rope_type", &format!("needs the tensors `{SHORT}` and `{LONG}`")));
        }
        (Some("none"), _) => RopeScaling::None,
        (Some("linear") | None, _) => match factor {
            Some(factor) if (factor - 1.0).abs() > f64::EPSILON => RopeScaling::Linear { factor },
            _ => RopeScaling::None,
        },
        (Some("yarn"), _) => yarn(settings, positions, factor.unwrap_or(1.0))?,
        (Some(_), _) => {
            let remedy = "choose another model";
            return Err(settings.unsupported("rope_type", "this kind of rotary scaling", remedy));
        }
    };
    let Some(all) = &divisors.all else { return Ok(scaling) };
    if scaling != RopeScaling::None {
        let feature = format!("rotary scaling in addition to `{DIVISORS}`");
        return Err(settings.unsupported("rope_type", &feature, "choose another model"));
    }
    let is_one = |divisor: &f32| (divisor - 1.0).abs() <= f32::EPSILON;
    Ok(if all.iter().all(is_one) { RopeScaling::None } else { RopeScaling::Divisors(all.clone()) })
}

/// The converter writes `attention_factor`, the whole factor on cosine and sine, as `yarn_attn_factor`, and
/// `mscale_all_dim` as `yarn_log_multiplier` if `mscale` is 1.
fn yarn(settings: &Settings, positions: usize, factor: f64) -> Result<RopeScaling, ModelError> {
    let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let all = settings.number_if_any("mscale_all_dim")?.unwrap_or(0.0);
    let usual = if all == 0.0 { scale(1.0) } else { scale(1.0) / scale(all) };
    let own = attention_factor(settings, "attention_factor")?;
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: settings.number_if_any("beta_fast")?.unwrap_or(32.0),
        beta_slow: settings.number_if_any("beta_slow")?.unwrap_or(1.0),
        original_positions: original_positions(settings, positions)?,
        attention_factor: own.unwrap_or(usual) * attention_factor(settings, "attn_factor")?.unwrap_or(1.0),
        truncate: true,
    })
}

fn original_positions(settings: &Settings, positions: usize) -> Result<usize, ModelError> {
    Ok(settings.size_if_any("original_max_position_embeddings")?.unwrap_or(positions))
}

fn attention_factor(settings: &Settings, key: &str) -> Result<Option<f64>, ModelError> {
    match settings.number_if_any(key)? {
        Some(factor) if factor <= 0.0 => Err(settings.wrong(key, "must be above 0")),
        factor => Ok(factor),
    }
}

fn floats(file: &mut BufReader<File>, tensor: &Tensor) -> Result<Vec<f32>, Fault> {
    /// More frequencies than any head has. The tensor may claim as many as fit into the file, and every layer
    /// gets its own copy.
    const MOST: u64 = 1 << 10;
    if tensor.storage != Storage::F32 || tensor.bytes > 4 * MOST {
        return Err(Fault::Damaged(format!("tensor `{}` is not a short list of F32", tensor.name)));
    }
    let mut bytes = vec![0; tensor.bytes as usize];
    file.seek(SeekFrom::Start(tensor.offset)).map_err(Fault::Read)?;
    file.read_exact(&mut bytes).map_err(Fault::Read)?;
    Ok(bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect())
}
