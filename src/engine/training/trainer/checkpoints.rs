//! Checkpoints of the loop: written at once or by a thread, reported when they are published.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use luthier_core::machine;
use luthier_core::runs::{AlertKind, Checkpoint, CheckpointEvent, RunDir, prune};
use tch::Device;

use super::Trainer;
use crate::device;
use crate::error::{EngineError, Result};
use crate::training::room::until_written;
use crate::training::state::Contents;

/// A checkpoint that a thread writes.
pub(super) struct Writing {
    step: u64,
    /// How long training waited for it.
    waited: Duration,
    thread: JoinHandle<Result<Written>>,
}

/// A published checkpoint.
struct Written {
    checkpoint: Checkpoint,
    /// Why older ones were kept or could not be removed.
    kept: Option<String>,
}

/// Where a checkpoint is written and what stays beside it.
#[derive(Clone)]
struct Place {
    run: RunDir,
    /// As [`prune`] takes them; `keep` 0 keeps all.
    keep: usize,
    best: Option<u64>,
}

impl Place {
    /// Publishes a checkpoint and removes those no longer needed.
    fn write(&self, contents: Contents) -> Result<Written> {
        let checkpoint = contents.write(self.run.path())?;
        // A copy takes much memory, and looking for damage before older ones are removed takes long.
        drop(contents);
        let kept = match self.keep {
            0 => None,
            keep => match prune(self.run.path(), keep, self.best) {
                Ok(pruned) => pruned.kept_all.map(|error| error.to_string()),
                Err(error) => Some(format!("older checkpoints could not be removed: {error}")),
            },
        };
        Ok(Written { checkpoint, kept })
    }
}

impl Trainer<'_> {
    /// Writes a checkpoint and removes those no longer needed. A large one is written by a thread, from a copy of the
    /// state, if there is memory for one. A disk error does not end the run.
    pub(super) fn checkpoint(&mut self) {
        self.await_checkpoint();
        self.watch_base();
        let began = self.clock.ran();
        self.record.activity(Some("writing a checkpoint"));
        let step = self.state.progress.step;
        let written = match self.record.room().and_then(|()| self.algorithm.save()) {
            Ok(()) => {
                let place = self.place();
                let contents = self.state.contents(self.config());
                if let Some(thread) = self.write_aside(&contents, &place) {
                    self.record.activity(None);
                    self.writing = Some(Writing { step, waited: self.clock.since(began), thread });
                    return;
                }
                place.write(contents)
            }
            Err(error) => Err(error),
        };
        self.record.activity(None);
        self.report_checkpoint(step, self.clock.since(began), written);
    }

    /// Writes the checkpoint that a run ends with, and waits until the disk takes it if it is full. `false` if the run is
    /// to end without it.
    pub(super) fn last_checkpoint(&mut self) -> bool {
        let began = self.clock.ran();
        self.record.activity(Some("writing a checkpoint"));
        let (step, place) = (self.state.progress.step, self.place());
        let (algorithm, state, config) = (&mut self.algorithm, &self.state, self.settings.config());
        let written = until_written(self.record, self.control, || {
            algorithm.save()?;
            place.write(state.contents(config))
        });
        self.record.activity(None);
        let Some(written) = written.transpose() else { return false };
        self.report_checkpoint(step, self.clock.since(began), written);
        true
    }

    fn place(&self) -> Place {
        Place {
            run: self.record.run().clone(),
            keep: self.config().train.keep_checkpoints,
            best: self.state.progress.best.map(|best| best.step),
        }
    }

    /// Reports the checkpoint that a thread writes if it is done.
    pub(super) fn look_for_checkpoint(&mut self) {
        if self.writing.as_ref().is_some_and(|writing| writing.thread.is_finished()) {
            self.await_checkpoint();
        }
    }

    /// Waits for the checkpoint that a thread writes, if there is one, and reports it.
    pub(super) fn await_checkpoint(&mut self) {
        let Some(Writing { step, waited, thread }) = self.writing.take() else { return };
        let began = self.clock.ran();
        self.record.activity(Some("writing a checkpoint"));
        let panicked = |_| Err(EngineError::torch("a checkpoint", "the thread that wrote it panicked"));
        let written = thread.join().unwrap_or_else(panicked);
        self.record.activity(None);
        self.report_checkpoint(step, waited + self.clock.since(began), written);
    }

    /// Whether there is a checkpoint of `step`, or a thread writes it.
    pub(super) fn is_saved(&self, step: u64) -> bool {
        self.saved == Some(step) || self.writing.as_ref().is_some_and(|writing| writing.step == step)
    }

    /// Begins to write a copy of `contents` in a thread; `None` if they are to be written at once.
    fn write_aside(&self, contents: &Contents, place: &Place) -> Option<JoinHandle<Result<Written>>> {
        let bytes = contents.bytes();
        if bytes <= self.overlap.checkpoint_bytes {
            return None;
        }
        let room = self.room();
        if bytes > room {
            tracing::info!(
                bytes,
                room,
                "no memory for a copy: training waits until the checkpoint is written"
            );
            return None;
        }
        let place = place.clone();
        let thread = contents.snapshot().map_err(|error| error.to_string()).and_then(|copy| {
            let named = thread::Builder::new().name("checkpoint".into());
            named.spawn(move || place.write(copy)).map_err(|error| error.to_string())
        });
        let failed =
            |error| tracing::warn!(%error, "no copy: training waits until the checkpoint is written");
        thread.map_err(failed).ok()
    }

    /// Host memory that is free for a copy of the state, in bytes. On the processor, a step may need more than is in
    /// use between steps.
    fn room(&self) -> u64 {
        let memory = machine::memory();
        let free = match self.base.model.device() {
            Device::Cuda(_) => memory.available,
            processor => device::place(processor).available.saturating_sub(self.forecast),
        };
        // Left for other processes, and for files on their way to the disk.
        free.saturating_sub(memory.total / 10)
    }

    fn report_checkpoint(&mut self, step: u64, waited: Duration, written: Result<Written>) {
        let Written { checkpoint, kept } = match written {
            Ok(written) => written,
            Err(error) => {
                let message = format!(
                    "the checkpoint could not be written ({error}); the run continues and earlier checkpoints stay"
                );
                self.record.of_step(step, |record| record.alert(AlertKind::Checkpoint, message, Vec::new()));
                return;
            }
        };
        let run = self.record.run().path();
        let path = checkpoint.path.strip_prefix(run).unwrap_or(&checkpoint.path).display().to_string();
        self.checkpoint_bytes =
            checkpoint.manifest().map_or(self.checkpoint_bytes, |manifest| manifest.bytes());
        self.saved = Some(step);
        let event =
            CheckpointEvent { path, bytes: self.checkpoint_bytes, seconds: waited.as_secs_f64().into() };
        self.record.of_step(step, |record| {
            record.event(event);
            record.sync();
            record.update(|status| status.checkpoint = Some(step));
            if let Some(kept) = kept {
                record.alert(AlertKind::Checkpoint, kept, Vec::new());
            }
        });
    }
}
