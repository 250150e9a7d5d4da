//! Which files of a repository are fetched: those that loading needs, and none that could run code.

use luthier_core::hub::{HubModel, is_plain_file_name};
use luthier_core::model::{TOOL_TEMPLATE, is_pickle};
use std::path::Path;

use super::error::HubError;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Read in addition to `config.json`, the weights and every `tokenizer*.json`.
const SETTINGS: [&str; 6] = [
    CONFIG,
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    TOOL_TEMPLATE,
];

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub files: Vec<String>,
    /// This index, and then the shards it names.
    pub index: Option<&'static str>,
}

/// Whether a file that an untrusted listing names can be fetched: files in folders cannot, but for one.
pub(super) fn can_be_fetched(name: &str) -> bool {
    name == TOOL_TEMPLATE || is_plain_file_name(name)
}

/// Chooses among the names of a repository's files.
pub(super) fn choose(model: &HubModel, listed: &[String]) -> Result<Choice, HubError> {
    let has = |name: &str| listed.iter().any(|listed| listed == name);
    if let Some(file) = model.file() {
        if has(file) {
            return Ok(Choice { files: vec![file.to_owned()], index: None });
        }
        let found = with_extension(listed, "gguf");
        return Err(HubError::NoFile { repository: repository(model), file: file.to_owned(), found });
    }
    let weights = if has(WEIGHTS) {
        Some(WEIGHTS)
    } else if has(INDEX) {
        None
    } else {
        return Err(no_weights(model, listed));
    };
    if !has(CONFIG) {
        let found = "it has no config.json".to_owned();
        return Err(HubError::NotAModel { repository: repository(model), found });
    }
    let mut files: Vec<String> = listed.iter().filter(|name| is_setting(name)).cloned().collect();
    files.extend(weights.map(str::to_owned));
    Ok(Choice { files, index: weights.is_none().then_some(INDEX) })
}

/// Checks the shards that a fetched index names: the index is untrusted, and its repository may lack some of them.
pub(super) fn shards(
    model: &HubModel,
    listed: &[String],
    named: Vec<String>,
) -> Result<Vec<String>, HubError> {
    let wrong = |found: String| HubError::NotAModel { repository: repository(model), found };
    for name in &named {
        if !is_plain_file_name(name) || !has_extension(name, "safetensors") {
            return Err(wrong(format!(
                "its {INDEX} names a file that is not safetensors in the same folder"
            )));
        }
        if !listed.contains(name) {
            return Err(wrong(format!("its {INDEX} names {name}, which it does not have")));
        }
    }
    Ok(named)
}

fn no_weights(model: &HubModel, listed: &[String]) -> HubError {
    let repository = repository(model);
    let found = with_extension(listed, "gguf");
    if !found.is_empty() {
        return HubError::GgufAlone { repository, found };
    }
    let found = if listed.iter().any(|name| name == "adapter_config.json") {
        "it is an adapter; fetch the model that it was trained for"
    } else if let Some(file) = listed.iter().find(|name| is_pickle(Path::new(name))) {
        return HubError::Pickle { repository, file: file.clone() };
    } else {
        "it has neither model.safetensors nor model.safetensors.index.json"
    };
    HubError::NotAModel { repository, found: found.to_owned() }
}

fn is_setting(name: &str) -> bool {
    SETTINGS.contains(&name) || (name.starts_with("tokenizer") && has_extension(name, "json"))
}

fn with_extension(listed: &[String], wanted: &str) -> Vec<String> {
    listed.iter().filter(|name| has_extension(name, wanted)).cloned().collect()
}

fn has_extension(name: &str, wanted: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == wanted)
}

fn repository(model: &HubModel) -> String {
    model.repository().to_owned()
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn chosen(model: &str, listed: &[&str]) -> Result<Choice, String> {
        choose(&HubModel::parse(model).unwrap(), &names(listed)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_loading_needs_is_chosen_and_nothing_else() {
        let listed = [
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "generation_config.json",
            "merges.txt",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "tf_model.h5",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/rag.jinja",
            "training_args.bin",
            "model-Q8_0.gguf",
            "handler.py",
        ];
        let choice = chosen("hf:a/b", &listed).unwrap();
        assert_eq!(choice.index, None);
        assert_eq!(
            choice.files,
            names(&[
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "chat_template.jinja",
                "additional_chat_templates/tool_use.jinja",
                "model.safetensors",
            ])
        );
        for name in ["../a.json", "a/b.json", "additional_chat_templates/../x.jinja"] {
            assert!(!can_be_fetched(name), "{name}");
        }
        assert!(can_be_fetched(TOOL_TEMPLATE) && can_be_fetched("config.json"));
        let choice = chosen("hf:a/b:model-Q8_0.gguf", &listed).unwrap();
        assert_eq!(choice, Choice { files: names(&["model-Q8_0.gguf"]), index: None });
    }

    #[test]
    fn of_a_sharded_model_the_index_says_what_is_needed() {
        let listed = ["config.json", "model-1.safetensors", "model.fp16-1.safetensors", INDEX];
        let choice = chosen("hf:a/b", &listed).unwrap();
        assert_eq!(choice, Choice { files: names(&["config.json"]), index: Some(INDEX) });
        let model = HubModel::parse("hf:a/b").unwrap();
        let check =
            |named: &[&str]| shards(&model, &names(&listed), names(named)).map_err(|error| error.to_string());
        assert_eq!(check(&["model-1.safetensors"]), Ok(names(&["model-1.safetensors"])));
        assert!(check(&["model-2.safetensors"]).unwrap_err().contains("names model-2.safetensors, which"));
        for name in ["../model-1.safetensors", "/etc/x.safetensors", "model-1.bin", "a/b.safetensors", ""] {
            assert!(check(&[name]).unwrap_err().contains("not safetensors in the same folder"), "{name}");
        }
    }

    #[test]
    fn what_is_no_base_model_says_what_it_is() {
        let cases: [(&[&str], &str); 6] = [
            (&["config.json", "pytorch_model.bin"], "only as pickle (pytorch_model.bin)"),
            (&["config.json", "consolidated.00.pth"], "only as pickle (consolidated.00.pth)"),
            (&["a.gguf", "b.gguf"], "name one, as in hf:a/b:a.gguf. It has a.gguf, b.gguf"),
            (&["adapter_config.json", "adapter_model.bin"], "it is an adapter"),
            (&["README.md"], "neither model.safetensors nor"),
            (&["model.safetensors"], "no config.json"),
        ];
        for (listed, said) in cases {
            let error = chosen("hf:a/b", listed).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        let error = chosen("hf:a/b:c.gguf", &["a.gguf"]).unwrap_err();
        assert_eq!(error, "a/b has no file c.gguf; its GGUF files are a.gguf");
    }
}
