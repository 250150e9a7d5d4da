//! The result of a run: its adapter or model folder.

use std::io;
use std::path::Path;

use luthier_core::files::replace_folder;

use crate::error::{EngineError, Result};
use crate::layers::Adapter;
use crate::methods::{self, Purpose};

/// Why a folder could not be replaced.
enum Refused {
    Files(io::Error),
    Engine(EngineError),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Files(error)
    }
}

/// Writes `adapter` to `folder`, which it replaces as a whole.
pub fn publish(adapter: &dyn Adapter, folder: &Path) -> Result<()> {
    let fill = |aside: &Path| methods::save(adapter, aside, Purpose::Result).map_err(Refused::Engine);
    replace_folder(folder, fill).map_err(|refused| match refused {
        Refused::Files(source) => EngineError::File { action: "write", path: folder.to_owned(), source },
        Refused::Engine(error) => error,
    })
}
