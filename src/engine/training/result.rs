//! The result of a run: its adapter or model folder, replaced as a whole.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::error::{EngineError, Result};
use crate::methods::{self, Adapter, Purpose};

/// Writes `adapter` to `folder`, beside it first, so that the folder is never half-written.
pub fn publish(adapter: &dyn Adapter, folder: &Path) -> Result<()> {
    replace(folder, &|aside| methods::save(adapter, aside, Purpose::Result))
}

fn replace(folder: &Path, write: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    let (aside, old) = (folder.with_extension("new.tmp"), folder.with_extension("old.tmp"));
    for left in [&aside, &old] {
        if left.exists() {
            fs::remove_dir_all(left).map_err(file_error("remove", left))?;
        }
    }
    fs::create_dir_all(&aside).map_err(file_error("make", &aside))?;
    write(&aside)?;
    for entry in fs::read_dir(&aside).map_err(file_error("read", &aside))? {
        let path = entry.map_err(file_error("read", &aside))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(file_error("sync", &path))?;
    }
    if folder.exists() {
        fs::rename(folder, &old).map_err(file_error("replace", folder))?;
    }
    fs::rename(&aside, folder).map_err(file_error("write", folder))?;
    if old.exists() {
        fs::remove_dir_all(&old).map_err(file_error("remove", &old))?;
    }
    Ok(())
}

fn file_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> EngineError + 'a {
    move |source| EngineError::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str) -> Result<()> {
        fs::write(folder.join(name), name).map_err(file_error("write", folder))
    }

    #[test]
    fn a_folder_is_replaced_as_a_whole_and_a_failure_leaves_the_old_one() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("adapter");
        replace(&folder, &|aside| write(aside, "a")).unwrap();
        replace(&folder, &|aside| write(aside, "b")).unwrap();
        assert!(!folder.join("a").exists());
        assert_eq!(fs::read_to_string(folder.join("b")).unwrap(), "b");
        let refused = replace(&folder, &|_| Err(EngineError::Data("no".into())));
        assert!(refused.is_err());
        assert_eq!(fs::read_to_string(folder.join("b")).unwrap(), "b");
        replace(&folder, &|aside| write(aside, "c")).unwrap();
        let left: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["adapter"]);
    }
}
