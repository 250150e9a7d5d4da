//! The sample base model, where `make setup` has left it.

use std::path::PathBuf;

use etcetera::BaseStrategy;

/// The file that `make setup` fetches.
const FILE: &str = "smollm2-135m-instruct-q4_1.gguf";

/// Luthier's cache, shared by all clones of a user; it need not exist.
pub fn cache_folder() -> Option<PathBuf> {
    Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("luthier"))
}

/// The sample base model, if it is there.
pub fn cached_model() -> Option<PathBuf> {
    let model = cache_folder()?.join("models").join(FILE);
    model.is_file().then_some(model)
}
