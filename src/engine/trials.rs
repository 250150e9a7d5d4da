//! What makes a GPU faster is tried there before it is used: what a GPU, its driver and its compiler make of it shows only
//! there.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use luthier_core::paths::cache_folder;
use luthier_core::runs::FailureClass;
use luthier_core::text::clean_line;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::csrc::{self, NotLoaded, Program};
use crate::error::{EngineError, Result};
use crate::ops;

/// `off` does without our kernels, to compare.
const SWITCH: &str = "LUTHIER_KERNELS";

/// Something that makes a GPU faster and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// What it is, and why it cannot be used.
    pub what: String,
    pub remedy: String,
}

static MISSING: Mutex<Vec<Missing>> = Mutex::new(Vec::new());

/// What this process computes in more steps than on other GPUs.
pub fn missing() -> Vec<Missing> {
    MISSING.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn do_without(what: String, remedy: impl Into<String>) {
    tracing::warn!("{what}; going on without");
    let missing = Missing { what, remedy: remedy.into() };
    MISSING.lock().unwrap_or_else(PoisonError::into_inner).push(missing);
}

/// Whether a result is as close to what is expected as `bound`, relative to the largest magnitude or to 1; NaN is not.
pub fn are_close(found: &Tensor, expected: &Tensor, bound: f64) -> Result<bool> {
    Ok((0.0..=bound).contains(&ops::relative_distance(found, expected)?))
}

/// What a trial showed.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Works,
    /// Something is missing: go on without.
    Missing(Missing),
}

/// Judges a trial of `what`, which computed something and says whether it was right. An error is one after which the GPU
/// cannot be used in this process.
fn judge(what: &str, trial: Result<bool>, still_works: impl FnOnce() -> bool) -> Result<Outcome> {
    const REPORT: &str = "results are right without it; report this, with the output of `luthier doctor`";
    let missing = |what, remedy: &str| Ok(Outcome::Missing(Missing { what, remedy: remedy.to_owned() }));
    match trial {
        Ok(true) => Ok(Outcome::Works),
        Ok(false) => missing(format!("{what} gave wrong results on this GPU"), REPORT),
        Err(error) if error.class() == FailureClass::Oom => {
            let remedy = "free memory on the GPU, or use another one";
            missing(format!("{what} could not be tried: {error}"), remedy)
        }
        Err(error) if still_works() => missing(format!("{what} failed on this GPU: {error}"), REPORT),
        Err(error) => Err(EngineError::Device(format!(
            "a trial of {what} has left it unusable: {error}; start again: after {UNFINISHED} such trials it goes on without"
        ))),
    }
}

/// Whether the device still computes.
fn answers(device: Device) -> bool {
    let sum = ops::zeros(&[4], Kind::Float, device).and_then(|zeros| ops::sum(&zeros));
    sum.and_then(|sum| ops::value(&sum)).is_ok_and(|sum| sum == 0.0)
}

/// Where compiled programs and marks of trials are kept.
fn kept_in() -> Option<PathBuf> {
    cache_folder().map(|folder| folder.join("kernels"))
}

/// Tries something of libtorch on a device, and lets it be used by `allow` if its trial is right. Otherwise [`missing`]
/// tells of it; an error is one after which the GPU cannot be used in this process.
pub fn try_on(
    device: Device,
    what: &str,
    trial: impl FnOnce() -> Result<bool>,
    allow: impl FnOnce(),
) -> Result<()> {
    let name = format!("{}-{}", what.replace(' ', "-"), csrc::LIBTORCH_VERSION);
    let kept = kept_in().filter(|folder| std::fs::create_dir_all(folder).is_ok());
    try_with_mark(device, what, kept.map(|folder| folder.join(name)).as_deref(), trial, allow)
}

/// A trial of what is `kept` there, unless earlier ones did not come to an end.
fn try_with_mark(
    device: Device,
    what: &str,
    kept: Option<&Path>,
    trial: impl FnOnce() -> Result<bool>,
    allow: impl FnOnce(),
) -> Result<()> {
    let mark = match kept.and_then(Mark::set) {
        Some(Ok(mark)) => Some(mark),
        Some(Err(path)) => {
            let path = clean_line(&path.display().to_string()).into_owned();
            do_without(
                format!("{what} cannot be used: {UNFINISHED} trials did not come to an end"),
                format!("remove {path} to try once more"),
            );
            return Ok(());
        }
        None => None,
    };
    // The mark stays after an error, and where the process ends before it is removed.
    match judge(what, trial(), || answers(device))? {
        Outcome::Works => allow(),
        Outcome::Missing(Missing { what, remedy }) => do_without(what, remedy),
    }
    if let Some(mark) = mark {
        mark.remove();
    }
    Ok(())
}

/// Compiles and loads a program for a CUDA device with bf16, and lets it be used if `agrees`, which compares its kernels
/// with their definitions there, says so. Compiled programs are kept in the user's cache. A process tries each once.
/// Errors as [`try_on`].
pub fn try_program(
    program: Program,
    device: Device,
    agrees: impl FnOnce(Device) -> Result<bool>,
) -> Result<()> {
    static TRIED: Mutex<BTreeSet<(&str, usize)>> = Mutex::new(BTreeSet::new());
    let Device::Cuda(index) = device else { return Ok(()) };
    // Whoever comes during a trial waits for its end.
    let mut tried = TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    if !tried.insert((program.name(), index)) {
        return Ok(());
    }
    let what = format!("the kernels {}", program.name());
    if std::env::var_os(SWITCH).is_some_and(|value| value == "off") {
        do_without(format!("{what} are switched off"), format!("unset {SWITCH}"));
        return Ok(());
    }
    let (reason, remedy) = match csrc::load_program(program, device, kept_in().as_deref()) {
        Ok(kept) => {
            let allow = || csrc::allow_program(program, device);
            return try_with_mark(device, &what, kept.as_deref(), || agrees(device), allow);
        }
        // There is nothing to mend.
        Err(NotLoaded::NoBf16) => return Ok(()),
        Err(NotLoaded::Library(reason)) => (
            reason,
            "install torch with its NVIDIA packages: `make setup` does, or `pip install torch==2.11.0`",
        ),
        Err(NotLoaded::Refused(reason)) => {
            (reason, "update the GPU's driver; if it is up to date, report this")
        }
    };
    do_without(format!("{what} are not available: {reason}"), remedy);
    Ok(())
}

/// A file that counts the trials that did not come to an end. It is locked by the process that tries.
#[derive(Debug)]
struct Mark {
    path: PathBuf,
    #[expect(dead_code, reason = "held for its lock alone")]
    file: File,
}

/// So many trials may end without a result before no more are made: a process may have been killed for another reason.
const UNFINISHED: u8 = 2;

impl Mark {
    /// Counts this trial as unfinished. `None` if that cannot be done, or another process is trying the program: then the
    /// trial is only less safe. The error is the mark's path if too many trials did not come to an end.
    fn set(kept: &Path) -> Option<std::result::Result<Self, PathBuf>> {
        let path = kept.with_extension("tried");
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).ok()?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return None,
        }
        let mut count = [0];
        let read = file.read(&mut count).ok()?;
        let before = if read == 0 { 0 } else { count[0].saturating_sub(b'0') };
        if before >= UNFINISHED {
            return Some(Err(path));
        }
        file.rewind().ok()?;
        file.write_all(&[b'1' + before]).ok()?;
        Some(Ok(Self { path, file }))
    }

    /// The trial came to an end.
    fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(trial: Result<bool>, still_works: bool) -> Result<Outcome> {
        judge("the kernels norm", trial, || still_works)
    }

    #[test]
    fn what_is_not_right_is_done_without() {
        let gone = || EngineError::torch("a kernel", "CUDA error: an illegal memory access was encountered");
        let full = || EngineError::torch("a kernel", "CUDA out of memory");
        assert_eq!(judged(Ok(true), true).unwrap(), Outcome::Works);
        for trial in [Ok(false), Err(gone()), Err(full())] {
            let Outcome::Missing(missing) = judged(trial, true).unwrap() else { panic!("it is not right") };
            assert!(
                missing.what.starts_with("the kernels norm ") && !missing.remedy.is_empty(),
                "{missing:?}"
            );
        }
        let error = judged(Err(gone()), false).unwrap_err();
        assert_eq!(error.class(), FailureClass::Device);
        assert!(error.to_string().contains("illegal memory access"), "{error}");
        assert!(error.to_string().contains("start again"), "{error}");
    }

    #[test]
    fn a_device_that_computes_answers() {
        assert!(answers(Device::Cpu));
    }

    #[test]
    fn what_ended_two_processes_is_not_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("norm-sm_90-0123.cubin");
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        let set = || Mark::set(&kept).unwrap();
        set().unwrap().remove();
        assert_eq!(files(), 0);
        let held = set().unwrap();
        assert!(Mark::set(&kept).is_none(), "another process tries it");
        drop(held);
        drop(set().unwrap());
        let path = set().unwrap_err();
        assert_eq!(path, folder.path().join("norm-sm_90-0123.tried"));
        assert!(Mark::set(&folder.path().join("nf4-sm_90-0123.cubin")).unwrap().is_ok(), "another program");
        std::fs::remove_file(path).unwrap();
        set().unwrap().remove();
    }

    #[test]
    fn there_is_nothing_to_try_on_a_processor() {
        try_program(Program::Norm, Device::Cpu, |_| panic!("there is nothing to try")).unwrap();
        assert!(!csrc::has_program(Program::Norm, Device::Cpu));
    }
}
