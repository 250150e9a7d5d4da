//! Room on the disk that a live run keeps for its last words.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::machine::free_disk_bytes;

/// The file in a run's folder that keeps the room, while the run is live.
pub const RESERVE_FILE: &str = "disk.reserve";

/// A status and thousands of journal lines.
const RESERVE_BYTES: u64 = 1 << 20;

/// What a refused write waits for where a disk, a quota or a limit is full.
pub const ROOM: &str = "room on the disk";

/// What must come about before the disk takes what it refused with `error`, in words that follow "waiting for"; `None` if
/// waiting would not help.
pub fn awaited(error: &io::Error) -> Option<&'static str> {
    const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Some(ROOM),
        io::ErrorKind::ReadOnlyFilesystem => Some("the disk to be writable"),
        _ if error.raw_os_error() == Some(EIO) => Some("the disk to work"),
        _ => None,
    }
}

/// A file whose only use is the room that it takes. It is removed when the disk is full, so that the status and the last
/// lines of the journal still fit, made again once there is room, and removed when dropped.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    kept: bool,
    spent: bool,
}

impl Reserve {
    /// Takes the room in a run's folder, if the disk has it twice.
    pub fn take(run: &Path) -> Self {
        let mut reserve = Self { path: run.join(RESERVE_FILE), kept: false, spent: false };
        // A process that was killed leaves its own, beside which there may be no room for another.
        let left = fs::symlink_metadata(&reserve.path);
        reserve.kept = left.is_ok_and(|left| left.is_file() && left.len() == RESERVE_BYTES);
        reserve.restore();
        reserve
    }

    /// Whether the room was given up and is not taken again yet: what is left is for the status and the last words.
    pub fn is_spent(&self) -> bool {
        self.spent
    }

    /// Gives up the room; whether there was any.
    pub fn spend(&mut self) -> bool {
        let spends = self.kept && fs::remove_file(&self.path).is_ok();
        if spends {
            (self.kept, self.spent) = (false, true);
        }
        spends
    }

    /// Takes the room again if it was given up, or could not be taken, and the disk has it twice.
    pub fn restore(&mut self) {
        let has_room = || free_disk_bytes(&self.path).is_ok_and(|free| free >= 2 * RESERVE_BYTES);
        if self.kept || !has_room() {
            return;
        }
        match self.fill() {
            Ok(()) => (self.kept, self.spent) = (true, false),
            Err(error) => {
                tracing::debug!(%error, "no room is kept for the last words");
                self.remove();
            }
        }
    }

    /// Of bytes that no file system can store in less room.
    fn fill(&self) -> io::Result<()> {
        self.remove();
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&self.path)?;
        io::copy(&mut File::open("/dev/urandom")?.take(RESERVE_BYTES), &mut file)?;
        file.sync_all()
    }

    fn remove(&self) {
        // It may not exist; one that is left only takes up its room.
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_given_up_once_and_taken_again() {
        let run = tempfile::tempdir().unwrap();
        let bytes = || fs::metadata(run.path().join(RESERVE_FILE)).map(|found| found.len()).ok();
        let mut reserve = Reserve::take(run.path());
        assert_eq!((bytes(), reserve.is_spent()), (Some(RESERVE_BYTES), false));
        assert!(reserve.spend() && reserve.is_spent() && !reserve.spend());
        assert_eq!(bytes(), None);
        reserve.restore();
        assert_eq!((bytes(), reserve.is_spent()), (Some(RESERVE_BYTES), false));
        drop(reserve);
        assert_eq!(bytes(), None);
    }

    #[test]
    fn what_a_killed_process_left_is_taken_over() {
        let run = tempfile::tempdir().unwrap();
        std::mem::forget(Reserve::take(run.path()));
        let mut reserve = Reserve::take(run.path());
        assert!(reserve.spend());
        assert!(!run.path().join(RESERVE_FILE).exists());
    }

    #[test]
    fn without_a_folder_there_is_no_room_to_give_up() {
        let run = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::take(&run.path().join("gone"));
        assert!(!reserve.spend() && !reserve.is_spent());
    }

    #[test]
    fn only_errors_that_may_pass_are_waited_for() {
        assert_eq!(
            awaited(
                &File::create("/dev/full")
                    .and_then(|mut file| io::Write::write_all(&mut file, b"a"))
                    .unwrap_err()
            ),
            Some(ROOM)
        );
        for (errno, waits) in [
            (rustix::io::Errno::DQUOT, true),
            (rustix::io::Errno::FBIG, true),
            (rustix::io::Errno::ROFS, true),
            (rustix::io::Errno::IO, true),
            (rustix::io::Errno::NOENT, false),
            (rustix::io::Errno::ACCESS, false),
            (rustix::io::Errno::NOTDIR, false),
        ] {
            assert_eq!(awaited(&errno.into()).is_some(), waits, "{errno}");
        }
    }
}
