//! What processes leave behind that die while they replace something: the list of all temporary names, and their removal.
//!
//! | name | made by |
//! |---|---|
//! | `.NAME.PID-N.tmp` | `replace`, `replace_if`: the new content of `NAME` |
//! | `NAME.tmp`, `NAME.old.tmp` | `replace_folder`: the new `NAME`; the old one, on its way out |
//! | `.step-N.PID.tmp`, `.step-N.PID.old.tmp` | the writer of checkpoints, likewise |
//! | `.step-N.removed.tmp` | the removal of a checkpoint |

use std::fs;
use std::path::Path;

/// A temporary name.
#[derive(Debug, PartialEq, Eq)]
struct Leftover<'a> {
    /// What it was to become, or was.
    of: &'a str,
    /// The process that may still need it; `None` where only the owner of the folder makes it.
    process: Option<u32>,
    /// Whether it is the old one, which belongs back if there is no new one.
    is_old: bool,
}

impl<'a> Leftover<'a> {
    /// `results` are the folders that are replaced here.
    fn named(name: &'a str, results: &[&str]) -> Option<Self> {
        let rest = name.strip_suffix(".tmp")?;
        let (rest, is_old) = rest.strip_suffix(".old").map_or((rest, false), |rest| (rest, true));
        let Some(hidden) = rest.strip_prefix('.') else {
            return results.contains(&rest).then_some(Self { of: rest, process: None, is_old });
        };
        let (of, maker) = hidden.rsplit_once('.')?;
        let is_checkpoint = of.strip_prefix("step-").is_some_and(is_number);
        if is_checkpoint && (is_number(maker) || maker == "removed") {
            return Some(Self { of, process: None, is_old });
        }
        let (process, count) = maker.split_once('-')?;
        if of.is_empty() || is_old || !is_number(count) {
            return None;
        }
        Some(Self { of, process: Some(process.parse().ok()?), is_old })
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Removes from a folder what processes left that died, and puts back what they were replacing. `results` are the folders
/// in it that [`super::replace_folder`] replaces; these, and checkpoints, belong to the caller alone. To be called before
/// this process replaces anything there: what has its id is of an earlier process. Returns how many were removed.
pub fn sweep(folder: &Path, results: &[&str]) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let mut removed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(left) = name.to_str().and_then(|name| Leftover::named(name, results)) else { continue };
        let is_needed =
            |pid: u32| pid != std::process::id() && Path::new("/proc").join(pid.to_string()).exists();
        if left.process.is_some_and(is_needed) {
            continue;
        }
        let path = entry.path();
        let published = folder.join(left.of);
        if left.is_old && !published.exists() && fs::rename(&path, published).is_ok() {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let gone = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed += usize::from(gone.is_ok());
    }
    removed
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn what_dead_processes_left_goes_and_all_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let dead = u32::MAX;
        let own = std::process::id();
        for name in [
            format!(".status.json.{dead}-7.tmp"),
            format!(".config.toml.{own}-0.tmp"),
            "events.jsonl".into(),
            ".status.json.1-3.tmp".into(),
            "notes.tmp".into(),
            ".a.tmp".into(),
            format!(".a.{dead}-x.tmp"),
        ] {
            fs::write(at(&name), "").unwrap();
        }
        for name in [
            "adapter.tmp",
            "adapter.old.tmp",
            ".step-5.1.tmp",
            ".step-7.removed.tmp",
            "model",
            "model.old.tmp",
        ] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("x"), name).unwrap();
        }
        fs::create_dir(at(".step-x.1.tmp")).unwrap();
        assert_eq!(sweep(folder.path(), &["adapter", "model"]), 6);
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let number = format!(".a.{dead}-x.tmp");
        // Process 1 lives.
        let mut kept = [
            ".a.tmp",
            &number,
            ".status.json.1-3.tmp",
            ".step-x.1.tmp",
            "adapter",
            "events.jsonl",
            "model",
            "notes.tmp",
        ];
        kept.sort_unstable();
        assert_eq!(left, kept);
        assert_eq!(fs::read_to_string(at("adapter/x")).unwrap(), "adapter.old.tmp");
        assert_eq!(fs::read_to_string(at("model/x")).unwrap(), "model");
    }

    #[test]
    fn folders_of_others_are_nobodys_result() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("model.tmp")).unwrap();
        assert_eq!(sweep(folder.path(), &[]), 0);
        assert_eq!(sweep(&folder.path().join("none"), &[]), 0);
    }
}
