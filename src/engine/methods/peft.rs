//! Adapter folders as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::{Adapter, Parameters};
use crate::error::{EngineError, Result};
use crate::weights::safetensors;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Largest `adapter_config.json` that is read.
const LARGEST_CONFIG: u64 = 1 << 20;

/// Writes an adapter folder; makes the folder where it is missing.
pub fn save(adapter: &dyn Adapter, folder: &Path) -> Result<()> {
    let failed = |path: &Path, source| EngineError::File { action: "write", path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    let config = folder.join(CONFIG);
    let text = format!("{:#}\n", adapter.peft_config());
    fs::write(&config, text).map_err(|source| failed(&config, source))?;
    let tensors = adapter.parameters().iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::write(&folder.join(WEIGHTS), tensors)
}

/// Reads an adapter folder, checking nothing but the formats.
pub(super) fn read(folder: &Path) -> Result<(Value, Parameters)> {
    let path = folder.join(CONFIG);
    let failed = |source| EngineError::File { action: "read", path: path.clone(), source };
    let metadata = fs::metadata(&path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > LARGEST_CONFIG {
        return Err(failed(io::Error::other("it is no ordinary file, or too large")));
    }
    let config = serde_json::from_slice(&fs::read(&path).map_err(failed)?).map_err(|error| {
        EngineError::Adapter { path: folder.to_owned(), problems: vec![format!("{CONFIG}: {error}")] }
    })?;
    let weights = folder.join(WEIGHTS);
    if !weights.exists() && folder.join("adapter_model.bin").exists() {
        return Err(EngineError::Adapter {
            path: folder.to_owned(),
            problems: vec![
                "adapter_model.bin is a pickle file, which can run code when it is read; convert it to \
                 adapter_model.safetensors with PEFT"
                    .into(),
            ],
        });
    }
    Ok((config, safetensors::read(&weights)?))
}
