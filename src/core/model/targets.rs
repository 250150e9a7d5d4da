//! Which linear layers get an adapter, by PEFT's rules (`peft/tuners/tuners_utils.py`, `check_target_module_exists`).

use regex::Regex;

use super::LinearModule;
use super::roles::Role;
use crate::config::{Targets, nearest};
use crate::text::Shown;

/// Why `method.targets` cannot be used with a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// All listed names that match no linear layer.
    #[error("method.targets names {}; linear layers of this model: {}", list(names), valid.join(", "))]
    Unmatched {
        /// Each with the nearest existing name.
        names: Vec<(Shown, Option<String>)>,
        /// The last parts of the linear layers' names.
        valid: Vec<String>,
    },
    /// A regular expression that matches no whole name.
    #[error(
        "method.targets = \"{pattern}\" matches no linear layer of this model; it must match whole names such as {}",
        examples.join(", ")
    )]
    Nothing {
        pattern: Shown,
        /// Some whole names.
        examples: Vec<String>,
    },
    /// All names in `method.modules_to_save` with which no module's name ends.
    #[error("method.modules_to_save names {}", list(names))]
    Unsaved {
        /// Each with the nearest existing name.
        names: Vec<(Shown, Option<String>)>,
    },
    /// A module that would both have an adapter and be trained itself.
    #[error(
        "method.modules_to_save names a module that method.targets names too: {module} has an adapter already"
    )]
    Twice { module: Shown },
    #[error(
        "method.targets is not a regular expression (without look-around and back-references): {problem}"
    )]
    Pattern {
        /// The error of the parser, with a caret.
        problem: String,
    },
}

fn list(names: &[(Shown, Option<String>)]) -> String {
    let each = names.iter().map(|(name, nearest)| match nearest {
        Some(nearest) => format!("`{name}`, which does not exist (did you mean `{nearest}`?)"),
        None => format!("`{name}`, which does not exist"),
    });
    each.collect::<Vec<_>>().join(", ")
}

/// The linear layers that `targets` selects, in the order of `modules`; never empty.
///
/// A name selects the layers with that name and those whose name ends with `.` and the name. A pattern
/// selects the layers whose whole name it matches. `all-linear` selects all but the output head. Unlike in
/// PEFT, a listed name that selects nothing is an error even if other names select something.
pub fn match_targets(targets: &Targets, modules: &[LinearModule]) -> Result<Vec<LinearModule>, TargetError> {
    let choose = |wanted: &dyn Fn(&LinearModule) -> bool| -> Vec<LinearModule> {
        modules.iter().filter(|module| wanted(module)).cloned().collect()
    };
    match targets {
        Targets::AllLinear => Ok(choose(&|module| module.role != Role::Head)),
        Targets::Names(names) => {
            let valid = last_parts(modules);
            let unmatched: Vec<_> = names
                .iter()
                .filter(|name| !modules.iter().any(|module| is_named(module, name)))
                .map(|name| {
                    (Shown::new(name), nearest(name, valid.iter().map(String::as_str)).map(str::to_owned))
                })
                .collect();
            if !unmatched.is_empty() || names.is_empty() {
                return Err(TargetError::Unmatched { names: unmatched, valid });
            }
            Ok(choose(&|module| names.iter().any(|name| is_named(module, name))))
        }
        Targets::Pattern(pattern) => {
            // The pattern must be valid by itself: `a)|(b` is not.
            let whole = Regex::new(pattern)
                .and_then(|_| Regex::new(&format!(r"\A(?:{pattern})\z")))
                .map_err(|error| TargetError::Pattern { problem: error.to_string() })?;
            let chosen = choose(&|module| whole.is_match(&module.name));
            if chosen.is_empty() {
                let examples = modules.iter().take(3).map(|module| module.name.clone()).collect();
                return Err(TargetError::Nothing { pattern: Shown::new(pattern), examples });
            }
            Ok(chosen)
        }
    }
}

fn is_named(module: &LinearModule, name: &str) -> bool {
    match module.name.strip_suffix(name) {
        Some(before) => before.is_empty() || before.ends_with('.'),
        None => false,
    }
}

fn last_parts(modules: &[LinearModule]) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for module in modules {
        let part = module.name.rsplit('.').next().unwrap_or_default();
        if !parts.iter().any(|known| known == part) {
            parts.push(part.to_owned());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;

    fn chosen(targets: &Targets) -> Result<Vec<String>, TargetError> {
        let modules = testing::architecture(2).linear_modules();
        match_targets(targets, &modules).map(|chosen| chosen.into_iter().map(|module| module.name).collect())
    }

    fn names(names: &[&str]) -> Targets {
        Targets::Names(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn all_linear_excludes_the_head() {
        let chosen = chosen(&Targets::AllLinear).unwrap();
        assert_eq!(chosen.len(), 2 * 7);
        assert!(!chosen.contains(&"lm_head".to_owned()));
    }

    #[test]
    fn names_match_whole_or_after_a_dot() {
        let layers = |part: &str| vec![format!("model.layers.0.{part}"), format!("model.layers.1.{part}")];
        assert_eq!(chosen(&names(&["q_proj"])).unwrap(), layers("self_attn.q_proj"));
        assert_eq!(chosen(&names(&["mlp.up_proj"])).unwrap(), layers("mlp.up_proj"));
        assert_eq!(chosen(&names(&["lm_head"])).unwrap(), ["lm_head"]);
        let whole = "model.layers.1.mlp.down_proj";
        assert_eq!(chosen(&names(&[whole])).unwrap(), [whole]);
        assert!(chosen(&names(&["_proj"])).is_err());
        assert!(chosen(&names(&["proj"])).is_err());
    }

    #[test]
    fn names_that_select_nothing_are_all_reported() {
        let error = chosen(&names(&["q_proj", "qproj", "query_key_value"])).unwrap_err().to_string();
        assert!(error.contains("`qproj`, which does not exist (did you mean `q_proj`?)"), "{error}");
        assert!(error.contains("`query_key_value`, which does not exist;"), "{error}");
        assert!(
            error.ends_with("q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head"),
            "{error}"
        );
    }

    #[test]
    fn a_pattern_matches_whole_names() {
        let pattern = |pattern: &str| chosen(&Targets::Pattern(pattern.to_owned()));
        assert_eq!(pattern(r".*\.1\..*[qv]_proj").unwrap().len(), 2);
        assert_eq!(pattern(r"lm_head|.*\.0\.mlp\.up_proj").unwrap().len(), 2);
        assert!(pattern("q_proj").unwrap_err().to_string().contains("model.layers.0.self_attn.q_proj"));
        assert!(matches!(pattern(r".*)|(.*"), Err(TargetError::Pattern { .. })));
        assert!(matches!(pattern(r"(?=x).*"), Err(TargetError::Pattern { .. })));
    }
}
