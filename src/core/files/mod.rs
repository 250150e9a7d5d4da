//! Opens files that others wrote (ordinary ones only, up to a size limit, and of a folder only what lies in it), and
//! replaces files and folders as a whole.

mod debris;
mod replace;

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

pub use debris::sweep;
pub use replace::{Access, exchange, replace, replace_folder, replace_if, sync_folder};
use rustix::fs::OFlags;

/// Opens an ordinary file for reading and tells its size. Whatever else stands there is refused: a pipe would block
/// until somebody writes into it, a device may never end.
pub fn open(path: &Path) -> io::Result<(File, u64)> {
    // Opening a device can do something by itself, so it is looked at before; what was looked at may have been
    // replaced since, so the opening does not wait and what was opened is looked at again.
    size_of_ordinary(&path.metadata()?)?;
    let without_waiting = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(without_waiting).open(path)?;
    let size = size_of_ordinary(&file.metadata()?)?;
    Ok((file, size))
}

fn size_of_ordinary(found: &Metadata) -> io::Result<u64> {
    if found.is_file() {
        return Ok(found.len());
    }
    let what = if found.is_dir() { "a folder" } else { "a pipe, socket or device" };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not an ordinary file")))
}

/// The content of an ordinary file; more than `limit` bytes of it are an error and not read.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let (file, size) = open(path)?;
    let too_large = || {
        let text = format!("it is larger than the {limit} bytes that such a file may have");
        io::Error::new(io::ErrorKind::FileTooLarge, text)
    };
    if size > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // It may have grown since.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

/// As [`read`], of UTF-8 text.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|error| {
        let text = format!("it is not UTF-8 text from byte {} on", error.utf8_error().valid_up_to());
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

/// A folder that others filled: names in it may be links, and names that its files say may lead anywhere.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    /// Where links may lead: the folder itself, and the blobs of a hub cache that it belongs to.
    allowed: Vec<PathBuf>,
}

/// A place that is not in the folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Following it failed.
    #[error("cannot follow {}: {source}", path.display())]
    Follow {
        /// What was followed.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The name is absolute, or climbs.
    #[error("the name points outside of the folder")]
    Name,
    /// A link leads out.
    #[error("it is a link to {}, outside of the folder", target.display())]
    Link {
        /// Where it leads.
        target: PathBuf,
    },
}

impl Folder {
    /// The folder at `path`, which may itself be reached through links: it is what the user named.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let real = follow(path)?;
        let blobs = blobs_of(&real);
        Ok(Self { path: path.to_owned(), allowed: std::iter::once(real).chain(blobs).collect() })
    }

    /// The folder as the user named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` in the folder; `None` where nothing is there.
    pub fn find(&self, name: impl AsRef<Path>) -> Result<Option<PathBuf>, FolderError> {
        let name = name.as_ref();
        if !name.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(FolderError::Name);
        }
        let path = self.path.join(name);
        let target = match follow(&path) {
            Ok(target) => target,
            Err(FolderError::Follow { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if self.allowed.iter().any(|allowed| target.starts_with(allowed)) {
            return Ok(Some(path));
        }
        Err(FolderError::Link { target })
    }
}

fn follow(path: &Path) -> Result<PathBuf, FolderError> {
    path.canonicalize().map_err(|source| FolderError::Follow { path: path.to_owned(), source })
}

/// In the hub's download cache a model is a folder `models--…/snapshots/<revision>`, or one below it, of links into
/// `models--…/blobs`.
fn blobs_of(real: &Path) -> Option<PathBuf> {
    let snapshots =
        real.ancestors().skip(1).find(|folder| folder.file_name().is_some_and(|name| name == "snapshots"))?;
    Some(snapshots.parent()?.join("blobs"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn more_than_the_limit_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, b"12345678").unwrap();
        assert_eq!(read(&path, 8).unwrap(), b"12345678");
        let error = read(&path, 7).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("larger than the 7 bytes"), "{error}");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read(&path, 7).is_err());
    }

    #[test]
    fn text_must_be_utf8() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "Grüße").unwrap();
        assert_eq!(read_text(&path, 7).unwrap(), "Grüße");
        fs::write(&path, b"Gr\xfc").unwrap();
        assert!(read_text(&path, 7).unwrap_err().to_string().contains("from byte 2 on"));
    }

    #[test]
    fn what_is_no_ordinary_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        for (path, what) in [
            (folder.path(), "a folder"),
            (&pipe, "a pipe"),
            (&socket, "socket"),
            (Path::new("/dev/zero"), "device"),
        ] {
            let error = open(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}");
            assert!(error.to_string().contains(what), "{error}");
        }
        assert_eq!(open(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn names_and_links_out_of_a_folder_are_refused() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = outside.path().join("secret");
        fs::write(&secret, b"x").unwrap();
        fs::create_dir(folder.path().join("inner")).unwrap();
        fs::write(folder.path().join("inner/a"), b"x").unwrap();
        symlink("inner/a", folder.path().join("link")).unwrap();
        symlink(&secret, folder.path().join("leak")).unwrap();
        symlink(outside.path(), folder.path().join("out")).unwrap();
        symlink("loop", folder.path().join("loop")).unwrap();
        symlink("nowhere", folder.path().join("dangling")).unwrap();
        let found = Folder::open(folder.path()).unwrap();
        assert_eq!(found.find("inner/a").unwrap(), Some(folder.path().join("inner/a")));
        assert_eq!(found.find("link").unwrap(), Some(folder.path().join("link")));
        assert_eq!(found.find("none").unwrap(), None);
        assert_eq!(found.find("dangling").unwrap(), None);
        for name in ["..", "../x", "inner/../../x", "/etc/hostname", "./link/..", ""] {
            let error = found.find(name);
            assert!(matches!(error, Err(FolderError::Name)) || name.is_empty(), "{name}: {error:?}");
        }
        for name in ["leak", "out/secret"] {
            assert!(matches!(found.find(name), Err(FolderError::Link { .. })), "{name}");
        }
        assert!(matches!(found.find("loop"), Err(FolderError::Follow { .. })));
    }

    #[test]
    fn a_hub_snapshot_may_link_into_its_own_blobs_alone() {
        let cache = tempfile::tempdir().unwrap();
        let snapshot = cache.path().join("models--a--b/snapshots/0123/inner");
        fs::create_dir_all(&snapshot).unwrap();
        for model in ["models--a--b", "models--c--d"] {
            fs::create_dir_all(cache.path().join(model).join("blobs")).unwrap();
            fs::write(cache.path().join(model).join("blobs/f00d"), b"x").unwrap();
        }
        symlink("../../../blobs/f00d", snapshot.join("own")).unwrap();
        symlink("../../../../models--c--d/blobs/f00d", snapshot.join("foreign")).unwrap();
        let found = Folder::open(&snapshot).unwrap();
        assert!(found.find("own").unwrap().is_some());
        assert!(matches!(found.find("foreign"), Err(FolderError::Link { .. })));
    }

    #[test]
    fn the_folder_itself_may_be_a_link() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("real")).unwrap();
        fs::write(base.path().join("real/a"), b"x").unwrap();
        symlink("real", base.path().join("named")).unwrap();
        let named = base.path().join("named");
        assert_eq!(Folder::open(&named).unwrap().find("a").unwrap(), Some(named.join("a")));
    }
}
