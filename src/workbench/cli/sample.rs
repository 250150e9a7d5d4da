//! The sample base model, where `make setup` has left it.

use std::path::PathBuf;

use luthier_core::paths::cache_folder;

/// The file that `make setup` fetches.
const FILE: &str = "smollm2-135m-instruct-q4_1.gguf";

/// The sample base model, if it is there.
pub fn cached_model() -> Option<PathBuf> {
    let model = cache_folder()?.join("models").join(FILE);
    model.is_file().then_some(model)
}
