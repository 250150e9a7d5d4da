//! The tensors that each method trains, by name and shape. The forecast counts them; the engine creates them.

use super::architecture::{Architecture, AttentionSpec, Parameter, Qkv};
use super::roles::{Part, Role};
use super::targets::{TargetError, match_targets};
use super::{Arrangement, LinearModule};
use crate::config::{Bias, MethodKind, MethodSection, Targets, Variant, nearest};
use crate::text::Shown;

/// A base tensor whose copy a method trains and uses instead of the base's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The module's Hugging Face name.
    pub module: String,
    pub part: Part,
    /// Shape in the architecture.
    pub shape: Vec<usize>,
    /// Arrangement in Hugging Face's files.
    pub arrangement: Arrangement,
}

impl Copied {
    fn new(architecture: &Architecture, parameter: &Parameter, module: String) -> Self {
        let Parameter { role, part, shape, .. } = parameter;
        let turned =
            architecture.transposed && role.is_linear() && *part == Part::Weight && *role != Role::Head;
        let arrangement = if turned { Arrangement::Transposed } else { Arrangement::Plain };
        Self { module, part: *part, shape: shape.clone(), arrangement }
    }

    /// The tensor's Hugging Face name.
    pub fn tensor(&self) -> String {
        format!("{}.{}", self.module, self.part.suffix())
    }

    fn elements(&self) -> u64 {
        self.shape.iter().map(|&length| length as u64).product()
    }
}

/// A linear layer with IA3's scales (arXiv 2205.05638).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaledLayer {
    pub module: LinearModule,
    /// Whether its input is scaled, as for the down projection; otherwise its output.
    pub input: bool,
}

/// Every tensor of the model, as trained by full fine-tuning; a tied head only once, as the embedding.
pub fn every_tensor(architecture: &Architecture) -> Vec<Copied> {
    architecture.parameters().iter().filter_map(|parameter| copied(architecture, parameter)).collect()
}

fn copied(architecture: &Architecture, parameter: &Parameter) -> Option<Copied> {
    let module = architecture.module(parameter.role, parameter.layer.unwrap_or(0))?;
    Some(Copied::new(architecture, parameter, module))
}

/// The tensors of `modules`, and the biases that LoRA trains in addition to its factors on `targets`, without
/// duplicates.
///
/// A name selects the modules whose name ends with it, as in PEFT's `modules_to_save`; `bias` is that of
/// PEFT's LoRA. A tied head that is named gets its own weight, and a named embedding does not change a tied
/// head.
pub fn copied_tensors(
    modules: &[String],
    bias: Bias,
    targets: &[LinearModule],
    architecture: &Architecture,
) -> Result<Vec<Copied>, TargetError> {
    let mut all = every_tensor(architecture);
    if architecture.tied_head
        && let Some(module) = architecture.module(Role::Head, 0)
    {
        let shape = vec![architecture.vocabulary, architecture.hidden];
        all.push(Copied { module, part: Part::Weight, shape, arrangement: Arrangement::Plain });
    }
    let unmatched: Vec<_> = modules
        .iter()
        .filter(|name| !all.iter().any(|copied| copied.module.ends_with(name.as_str())))
        .map(|name| {
            let known = all.iter().filter_map(|copied| copied.module.rsplit('.').next());
            (Shown::new(name), nearest(name, known).map(str::to_owned))
        })
        .collect();
    if !unmatched.is_empty() {
        return Err(TargetError::Unsaved { names: unmatched });
    }
    let is_target = |copied: &Copied| targets.iter().any(|target| target.name == copied.module);
    let is_named = |copied: &Copied| modules.iter().any(|name| copied.module.ends_with(name.as_str()));
    if let Some(twice) = all.iter().find(|copied| is_target(copied) && is_named(copied)) {
        return Err(TargetError::Twice { module: Shown::new(&twice.module) });
    }
    let has_trained_bias = |copied: &Copied| match bias {
        Bias::None => false,
        Bias::All => copied.part == Part::Bias,
        Bias::LoraOnly => copied.part == Part::Bias && is_target(copied),
    };
    all.retain(|copied| is_named(copied) || has_trained_bias(copied));
    Ok(all)
}

/// The layers that IA3 scales: those that `targets` selects, by default keys, values and the down projection
/// (section 3.3 of the paper). If query, key and value are one layer, that layer.
pub fn scaled_layers(
    targets: &Targets,
    architecture: &Architecture,
) -> Result<Vec<ScaledLayer>, TargetError> {
    let modules = architecture.linear_modules();
    let chosen = match targets {
        Targets::AllLinear => {
            let usual = [Role::Key, Role::Value, Role::Qkv, Role::Down];
            modules.into_iter().filter(|module| usual.contains(&module.role)).collect()
        }
        Targets::Names(_) | Targets::Pattern(_) => match_targets(targets, &modules)?,
    };
    let scaled = |module: LinearModule| ScaledLayer { input: module.role == Role::Down, module };
    Ok(chosen.into_iter().map(scaled).collect())
}

/// Heads of a prefix's keys and values in a layer, as in PEFT: the key-value heads, except for Falcon with
/// grouped heads, where transformers repeats keys and values for every head before it caches them
/// (`FalconAttention._split_heads`).
pub fn prefix_heads(attention: &AttentionSpec) -> usize {
    let repeated = attention.qkv == Qkv::FusedByGroup && attention.key_value_heads > 1;
    if repeated { attention.heads } else { attention.key_value_heads }
}

/// Number of parameters that a method trains.
pub fn trained_count(method: &MethodSection, architecture: &Architecture) -> Result<u64, TargetError> {
    let sum = |copies: &[Copied]| copies.iter().map(Copied::elements).sum::<u64>();
    let virtual_tokens = method.virtual_tokens as u64;
    match method.kind {
        MethodKind::Full => Ok(sum(&every_tensor(architecture))),
        MethodKind::Lora | MethodKind::Qlora => {
            let targets = match_targets(&method.targets, &architecture.linear_modules())?;
            let factors = |module: &LinearModule| {
                let magnitudes = if method.variant == Variant::Dora { module.out_features } else { 0 };
                (method.rank * (module.in_features + module.out_features) + magnitudes) as u64
            };
            let copies = copied_tensors(&method.modules_to_save, method.bias, &targets, architecture)?;
            Ok(targets.iter().map(factors).sum::<u64>() + sum(&copies))
        }
        MethodKind::Ia3 => {
            let scaled = scaled_layers(&method.targets, architecture)?;
            let targets: Vec<LinearModule> = scaled.iter().map(|layer| layer.module.clone()).collect();
            let copies = copied_tensors(&method.modules_to_save, Bias::None, &targets, architecture)?;
            let scales = |layer: &ScaledLayer| {
                let ScaledLayer { module, input } = layer;
                (if *input { module.in_features } else { module.out_features }) as u64
            };
            Ok(scaled.iter().map(scales).sum::<u64>() + sum(&copies))
        }
        MethodKind::Prefix => {
            let attentions = architecture.layers.iter().map(|layer| &layer.attention);
            let widths = attentions.map(|attention| 2 * prefix_heads(attention) * attention.head_size);
            Ok(virtual_tokens * widths.sum::<usize>() as u64)
        }
        MethodKind::Prompt => Ok(virtual_tokens * architecture.hidden as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::model::testing;

    fn method(change: impl FnOnce(&mut MethodSection)) -> MethodSection {
        let mut method = Config::default().method;
        change(&mut method);
        method
    }

    fn count(change: impl FnOnce(&mut MethodSection)) -> u64 {
        trained_count(&method(change), &testing::architecture(30)).unwrap()
    }

    #[test]
    fn counts_equal_those_of_peft_for_smollm2() {
        assert_eq!(count(|method| method.kind = MethodKind::Full), 134_515_008);
        assert_eq!(count(|_| ()), 4_884_480);
        let outputs = 30 * (576 + 2 * 192 + 576 + 2 * 1536 + 576);
        assert_eq!(count(|method| method.variant = Variant::Dora), 4_884_480 + outputs);
        assert_eq!(count(|method| method.variant = Variant::Rslora), 4_884_480);
        assert_eq!(count(|method| method.kind = MethodKind::Ia3), 30 * (2 * 192 + 1536));
        assert_eq!(count(|method| method.kind = MethodKind::Prefix), 20 * 30 * 2 * 192);
        assert_eq!(count(|method| method.kind = MethodKind::Prompt), 20 * 576);
        let head = |method: &mut MethodSection| method.modules_to_save = vec!["lm_head".to_owned()];
        assert_eq!(count(head), 4_884_480 + 49_152 * 576);
    }

    #[test]
    fn modules_to_save_match_the_end_of_names_without_duplicates() {
        let architecture = testing::architecture(2);
        let copies = |names: &[&str], targets: &[LinearModule]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let found = copied_tensors(&names, Bias::None, targets, &architecture)?;
            Ok::<_, TargetError>(found.iter().map(Copied::tensor).collect::<Vec<_>>())
        };
        assert_eq!(copies(&["embed_tokens"], &[]).unwrap(), ["model.embed_tokens.weight"]);
        assert_eq!(copies(&["lm_head", "head"], &[]).unwrap(), ["lm_head.weight"]);
        assert_eq!(copies(&["1.mlp.up_proj"], &[]).unwrap(), ["model.layers.1.mlp.up_proj.weight"]);
        let problem = copies(&["lm_heads", "score"], &[]).unwrap_err().to_string();
        assert!(problem.contains("`lm_heads`") && problem.contains("`score`"), "{problem}");
        assert!(problem.contains("did you mean `lm_head`?"), "{problem}");
        let head = architecture.linear_modules().pop().unwrap();
        let problem = copies(&["lm_head"], &[head]).unwrap_err().to_string();
        assert!(problem.contains("lm_head has an adapter already"), "{problem}");
    }

    #[test]
    fn ia3_scales_the_papers_layers_by_default() {
        let architecture = testing::architecture(1);
        let layers = |targets: &Targets| -> Vec<(String, bool)> {
            let layers = scaled_layers(targets, &architecture).unwrap();
            layers.into_iter().map(|layer| (layer.module.name, layer.input)).collect()
        };
        let name = |part: &str| format!("model.layers.0.{part}");
        let usual = [
            (name("self_attn.k_proj"), false),
            (name("self_attn.v_proj"), false),
            (name("mlp.down_proj"), true),
        ];
        assert_eq!(layers(&Targets::AllLinear), usual);
        let queries = Targets::Names(vec!["q_proj".to_owned()]);
        assert_eq!(layers(&queries), [(name("self_attn.q_proj"), false)]);
    }
}
