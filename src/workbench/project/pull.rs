//! A model fetched from the hub.

use luthier_core::hub::HubModel;
use luthier_core::model::ModelError;
use luthier_core::model::hub::{HubCache, HubFolders};

use super::Refusal;
use crate::hub::{self, Endpoint, Hub, Pulled, See, Token};

/// Fetches the model named `hf:org/name` (with `@revision` and `:file.gguf`) into the download cache. Endpoint, token and
/// cache are those of the environment. `see` is called with the progress and may cancel it.
pub fn pull(name: &str, see: &mut See) -> Result<Pulled, Refusal> {
    let model = HubModel::parse(name).map_err(ModelError::HubName)?;
    let folders = HubFolders::of_environment()?;
    let hub = Hub::new(Endpoint::of_environment()?, Token::of_environment(&folders.token)?)?;
    Ok(hub::pull(&hub, &HubCache::new(folders.cache), &model, see)?)
}
