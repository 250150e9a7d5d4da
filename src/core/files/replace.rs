//! Files and folders replaced as a whole. A reader sees the old content or the new, never a part, also after a crash: the
//! new content is written to a temporary name next to the old, synced, renamed over it, and the rename is synced.
//!
//! A file system that cannot exchange two folders (NFS) has neither of them in place for a moment. After a crash in that
//! moment the next [`replace_folder`] restores the old one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Who may read a file that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The user alone.
    Private,
    /// Those whom the umask lets.
    Shared,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Shared => 0o666,
        }
    }
}

/// Replaces a file, or makes it.
pub fn replace(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    let beside = beside(path);
    let replaced = write(&beside, content, access, None).and_then(|()| rename(&beside, path));
    end(&beside, path, replaced)
}

/// Replaces a file whose content still is `expected`; whether it was. The new file has the permissions of the old. A link
/// stays one: what it points at is replaced.
pub fn replace_if(path: &Path, expected: &[u8], content: &[u8]) -> io::Result<bool> {
    let path = fs::canonicalize(path)?;
    let beside = beside(&path);
    let permissions = fs::metadata(&path)?.permissions();
    let replaced = write(&beside, content, Access::Private, Some(permissions)).and_then(|()| {
        let unchanged = fs::read(&path)? == expected;
        if unchanged {
            rename(&beside, &path)?;
        }
        Ok(unchanged)
    });
    if matches!(replaced, Ok(false)) {
        remove(&beside);
        return Ok(false);
    }
    end(&beside, &path, replaced)
}

/// Replaces a folder, or makes it. `fill` writes its files into an empty folder next to it.
pub fn replace_folder<E: From<io::Error>>(
    folder: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let aside = folder.with_extension("tmp");
    let old = out_of_sight(&aside);
    // What a process left that died here.
    if old.exists() && !folder.exists() {
        rename(&old, folder)?;
    }
    for left in [&aside, &old] {
        if left.exists() {
            step(|| fs::remove_dir_all(left))?;
        }
    }
    step(|| fs::create_dir_all(&aside))?;
    fill(&aside)?;
    for entry in fs::read_dir(&aside)? {
        let path = entry?.path();
        step(|| File::open(&path)?.sync_all())?;
    }
    sync_folder(&aside)?;
    let replaced = exchange(&aside, folder)?;
    sync_parent(folder);
    // The new folder is in place: what is left of the old one is removed the next time at the latest.
    if replaced {
        let _ = step(|| fs::remove_dir_all(&aside));
    }
    Ok(())
}

/// Moves `aside` to `published`. Where that exists already the two change places in one operation, and the answer is
/// `true`.
pub fn exchange(aside: &Path, published: &Path) -> io::Result<bool> {
    if !published.exists() {
        return rename(aside, published).map(|()| false);
    }
    match exchange_at_once(aside, published) {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            let old = out_of_sight(aside);
            rename(published, &old)?;
            if let Err(error) = rename(aside, published) {
                rename(&old, published)?;
                return Err(error);
            }
            // Only a cleanup: the new one is in place.
            let _ = rename(&old, aside);
            Ok(true)
        }
        exchanged => exchanged.map(|()| true),
    }
}

fn exchange_at_once(aside: &Path, published: &Path) -> io::Result<()> {
    #[cfg(test)]
    faults::exchange()?;
    step(|| renameat_with(CWD, aside, CWD, published, RenameFlags::EXCHANGE).map_err(io::Error::from))
}

fn out_of_sight(aside: &Path) -> PathBuf {
    aside.with_extension("old.tmp")
}

/// Makes sure that what was renamed in a folder survives a crash of the machine.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    step(|| File::open(path)?.sync_all())
}

/// Some file systems cannot sync a folder; the new content is in place either way.
fn sync_parent(path: &Path) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let _ = sync_folder(parent.unwrap_or(Path::new(".")));
}

/// A temporary name next to `path` that no other thread or living process uses.
fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{count}.tmp", std::process::id()));
    path.with_file_name(name)
}

fn write(path: &Path, content: &[u8], access: Access, permissions: Option<Permissions>) -> io::Result<()> {
    let create = || OpenOptions::new().write(true).create_new(true).mode(access.mode()).open(path);
    let mut file = match step(create) {
        // Left by a process that died with the same id: ids repeat in containers.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            step(|| fs::remove_file(path))?;
            step(create)?
        }
        created => created?,
    };
    if let Some(permissions) = permissions {
        step(|| file.set_permissions(permissions))?;
    }
    step(|| file.write_all(content))?;
    step(|| file.sync_all())
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step(|| fs::rename(from, to))
}

/// Removes the temporary file after a failure, and syncs the folder after a success.
fn end<T>(beside: &Path, path: &Path, replaced: io::Result<T>) -> io::Result<T> {
    match &replaced {
        Ok(_) => sync_parent(path),
        Err(_) => remove(beside),
    }
    replaced
}

/// The first failure is the one to report; a temporary file that is left does no harm.
fn remove(beside: &Path) {
    let _ = step(|| fs::remove_file(beside));
}

/// One call that can fail. A test makes the Nth one fail, and those after it too where it plays a crash.
fn step<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    #[cfg(test)]
    faults::next()?;
    call()
}

#[cfg(test)]
mod faults {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static CAN_EXCHANGE: Cell<bool> = const { Cell::new(true) };
    }

    /// Does `work` as on a file system that cannot exchange two folders.
    pub fn without_exchange<T>(work: impl FnOnce() -> T) -> T {
        CAN_EXCHANGE.set(false);
        let result = work();
        CAN_EXCHANGE.set(true);
        result
    }

    pub fn exchange() -> io::Result<()> {
        if CAN_EXCHANGE.get() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    #[derive(Clone, Copy, Debug)]
    pub enum Fault {
        /// The call of this number fails.
        One(usize),
        /// The process ends at this call: it and all later ones do nothing.
        Crash(usize),
    }

    thread_local! {
        static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
        static CALLS: Cell<usize> = const { Cell::new(0) };
    }

    /// Does `work` with a fault; its result, and whether the fault came.
    pub fn with<T>(fault: Fault, work: impl FnOnce() -> T) -> (T, bool) {
        CALLS.set(0);
        FAULT.set(Some(fault));
        let result = work();
        FAULT.set(None);
        let (Fault::One(at) | Fault::Crash(at)) = fault;
        (result, CALLS.get() > at)
    }

    pub fn next() -> io::Result<()> {
        let call = CALLS.replace(CALLS.get() + 1);
        let fails = match FAULT.get() {
            Some(Fault::One(at)) => call == at,
            Some(Fault::Crash(at)) => call >= at,
            None => false,
        };
        if fails { Err(io::Error::other("a fault of the test")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use pretty_assertions::assert_eq;

    use super::faults::{Fault, with, without_exchange};
    use super::*;

    /// Does `work` over `start` with every fault in turn; `check` sees the folder and whether the work succeeded.
    fn with_every_fault(
        start: impl Fn(&Path),
        work: impl Fn(&Path) -> io::Result<()>,
        check: impl Fn(&Path, bool, Fault),
    ) {
        for fault in [Fault::One, Fault::Crash] {
            for at in 0.. {
                let folder = tempfile::tempdir().unwrap();
                start(folder.path());
                let (result, came) = with(fault(at), || work(folder.path()));
                check(folder.path(), result.is_ok(), fault(at));
                if !came {
                    assert!(at > 3 && result.is_ok(), "{at} calls: {result:?}");
                    break;
                }
            }
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_the_old_one_or_the_new_one_whatever_fails() {
        with_every_fault(
            |folder| fs::write(folder.join("a"), "old").unwrap(),
            |folder| replace(&folder.join("a"), b"new", Access::Private),
            |folder, succeeded, fault| {
                let text = fs::read_to_string(folder.join("a")).unwrap();
                assert_eq!(text, if succeeded { "new" } else { "old" }, "{fault:?}");
                if matches!(fault, Fault::One(_)) {
                    assert_eq!(names(folder), ["a"], "{fault:?}");
                }
            },
        );
    }

    #[test]
    fn a_file_that_changed_meanwhile_is_left_alone() {
        with_every_fault(
            |folder| fs::write(folder.join("a"), "old").unwrap(),
            |folder| replace_if(&folder.join("a"), b"old", b"new").map(|replaced| assert!(replaced)),
            |folder, succeeded, fault| {
                let text = fs::read_to_string(folder.join("a")).unwrap();
                assert_eq!(text, if succeeded { "new" } else { "old" }, "{fault:?}");
            },
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "other").unwrap();
        assert!(!replace_if(&path, b"old", b"new").unwrap());
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(folder.path()).len()), ("other", 1));
    }

    #[test]
    fn a_folder_is_the_old_one_or_the_new_one_whatever_fails() {
        let fill = |name: &'static str| {
            move |folder: &Path| -> io::Result<()> {
                fs::write(folder.join(name), name)?;
                fs::write(folder.join("both"), name)
            }
        };
        with_every_fault(
            |folder| replace_folder(&folder.join("result"), fill("old")).unwrap(),
            |folder| replace_folder(&folder.join("result"), fill("new")),
            |folder, succeeded, fault| {
                let result = folder.join("result");
                let content = fs::read_to_string(result.join("both")).unwrap();
                assert_eq!(names(&result), ["both", content.as_str()], "{fault:?}");
                assert!(!succeeded || content == "new", "{fault:?}");
                // Whatever was left, the next time succeeds and leaves nothing.
                replace_folder(&result, fill("new")).unwrap();
                assert_eq!(
                    (names(folder), names(&result)),
                    (vec!["result".into()], vec!["both".into(), "new".into()])
                );
            },
        );
    }

    #[test]
    fn without_an_exchange_a_folder_is_restored_at_the_latest_by_the_next_one() {
        let fill = |name: &'static str| move |folder: &Path| fs::write(folder.join("name"), name);
        with_every_fault(
            |folder| replace_folder(&folder.join("result"), fill("old")).unwrap(),
            |folder| without_exchange(|| replace_folder(&folder.join("result"), fill("new"))),
            |folder, succeeded, fault| {
                let result = folder.join("result");
                let content = fs::read_to_string(result.join("name"));
                match (&content, fault) {
                    (Ok(content), _) => assert!(!succeeded || content == "new", "{fault:?}"),
                    (Err(_), Fault::Crash(_)) => {
                        let refused = replace_folder(&result, |_| Err(io::Error::other("no")));
                        assert!(refused.is_err());
                        assert_eq!(fs::read_to_string(result.join("name")).unwrap(), "old", "{fault:?}");
                    }
                    (Err(_), Fault::One(_)) => panic!("{fault:?} left nothing in place"),
                }
                replace_folder(&result, fill("new")).unwrap();
                assert_eq!(names(folder), ["result"], "{fault:?}");
            },
        );
    }

    #[test]
    fn what_a_process_of_the_same_id_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let next = beside(&path);
        let number: u64 = next.to_str().unwrap().rsplit(['-', '.']).nth(1).unwrap().parse().unwrap();
        for later in number..number + 1000 {
            let left = format!(".a.{}-{later}.tmp", std::process::id());
            fs::write(folder.path().join(left), "torn").unwrap();
        }
        replace(&path, b"new", Access::Private).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn permissions_are_those_that_were_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
        replace(&folder.path().join("private"), b"", Access::Private).unwrap();
        assert_eq!(mode("private"), 0o600);
        replace(&folder.path().join("shared"), b"", Access::Shared).unwrap();
        File::create(folder.path().join("usual")).unwrap();
        assert_eq!(mode("shared"), mode("usual"));
        let path = folder.path().join("kept");
        fs::write(&path, "a").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(replace_if(&path, b"a", b"b").unwrap());
        assert_eq!(mode("kept"), 0o640);
    }
}
