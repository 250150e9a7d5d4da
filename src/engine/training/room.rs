//! Holds a run still while the disk refuses what must not be lost.

use super::control::Control;
use super::record::Record;
use crate::error::Result;

/// Does `write` until the disk takes it. While it is full the run holds still, and says so. `None` if the run is to end
/// without it.
pub fn until_written<T>(
    record: &mut Record,
    control: &Control,
    mut write: impl FnMut() -> Result<T>,
) -> Result<Option<T>> {
    loop {
        let written = record.room().and_then(|()| write());
        if let Err(error) = &written
            && let Some(awaited) = error.awaited()
        {
            record.wait_for(awaited, &error.to_string());
            if !control.wait_to_retry() {
                return Ok(None);
            }
            continue;
        }
        record.go_on();
        return written.map(Some);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use luthier_core::runs::{
        AlertKind, EventBody, JournalReader, Request, RunDir, RunState, StateEvent, Status, StopWhen,
    };

    use super::*;
    use crate::error::EngineError;
    use crate::process::Termination;

    struct Held {
        _project: tempfile::TempDir,
        run: RunDir,
        record: Record,
        control: Control,
    }

    fn held() -> Held {
        let project = tempfile::tempdir().unwrap();
        let config = luthier_core::config::Config::default();
        let run = RunDir::create(project.path(), &config, Some("test")).unwrap();
        let mut record = Record::open(&run).unwrap();
        record.state(RunState::Stopping, Some("asked to stop".into()));
        record.activity(Some("saving the result"));
        Held { _project: project, run, record, control: Control::new(Termination::default()) }
    }

    fn refused(kind: io::ErrorKind) -> EngineError {
        EngineError::File { action: "write", path: "adapter".into(), source: kind.into() }
    }

    fn status(run: &RunDir) -> Status {
        Status::read(run.path()).unwrap().unwrap()
    }

    fn ask(control: &Control, request: &Request) {
        let reply = control.take(request, 1, "config.toml".as_ref());
        assert!(matches!(reply, luthier_core::runs::Reply::Ok { .. }), "{reply:?}");
    }

    #[test]
    fn a_run_holds_still_says_so_and_goes_on_when_it_is_asked_to() {
        let Held { _project, run, mut record, control } = held();
        let mut tries = 0;
        let written = until_written(&mut record, &control, || {
            tries += 1;
            if tries > 1 {
                let waiting = status(&run);
                assert_eq!(waiting.state, RunState::Paused);
                assert_eq!(waiting.reason.as_deref(), Some("waiting for room on the disk"));
                let activity = waiting.activity.unwrap();
                assert!(activity.contains("room on the disk") && activity.contains("adapter"), "{activity}");
            }
            if tries == 3 {
                return Ok(7);
            }
            // As a person does who has made room, before the next try is due.
            control.resume();
            Err(refused(io::ErrorKind::StorageFull))
        });
        assert_eq!((written.unwrap(), tries), (Some(7), 3));
        let after = status(&run);
        assert_eq!((after.state, after.reason.as_deref()), (RunState::Stopping, Some("asked to stop")));
        assert_eq!(after.activity.as_deref(), Some("saving the result"));
        let events =
            JournalReader::new(&run.journal_path()).read(100, Duration::from_secs(5)).unwrap().events;
        let told: Vec<String> = events
            .into_iter()
            .map(|event| match event.body {
                EventBody::State(StateEvent { state, .. }) => state.to_string(),
                EventBody::Alert(alert) => {
                    assert_eq!(alert.alert, AlertKind::DiskLow);
                    alert.message
                }
                other => panic!("{other:?}"),
            })
            .collect();
        let [before @ .., alert] = &told[..] else { panic!("{told:?}") };
        assert_eq!(before, ["starting", "stopping", "paused", "stopping"]);
        assert!(alert.starts_with("the disk works again") && alert.contains("room on the disk"), "{alert}");
    }

    #[test]
    fn only_a_refusal_that_may_pass_is_waited_for() {
        let Held { _project, run, mut record, control } = held();
        let mut tries = 0;
        let written = until_written::<()>(&mut record, &control, || {
            tries += 1;
            Err(refused(io::ErrorKind::NotADirectory))
        });
        assert!(written.is_err() && tries == 1);
        assert_eq!(status(&run).state, RunState::Stopping);
    }

    #[test]
    fn stop_now_and_a_second_signal_end_the_wait() {
        let Held { _project, mut record, control, .. } = held();
        let mut tries = 0;
        let written = until_written::<()>(&mut record, &control, || {
            tries += 1;
            match tries {
                1 => ask(&control, &Request::Stop { when: StopWhen::Save }),
                _ => control.stop(StopWhen::Now),
            }
            control.resume();
            Err(refused(io::ErrorKind::StorageFull))
        });
        assert_eq!((written.unwrap(), tries), (None, 2));

        let termination = Termination::default();
        let control = Control::new(termination.clone());
        let mut tries = 0;
        let written = until_written::<()>(&mut record, &control, || {
            tries += 1;
            // The first asks it to stop and came before, the second came while it waited.
            if tries < 3 {
                termination.raise();
                assert!(control.stopping().is_some());
            }
            control.resume();
            Err(refused(io::ErrorKind::StorageFull))
        });
        assert_eq!((written.unwrap(), tries), (None, 2));
    }
}
