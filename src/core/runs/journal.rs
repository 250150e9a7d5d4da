//! Writes a run's journal. A failing disk never fails the run.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use jiff::Timestamp;

use super::RunError;
use super::error::io_error;
use super::event::{AlertEvent, AlertKind, JournalEvent};
use super::time;

/// Most lines kept in memory while the disk fails.
const KEPT_LINES: usize = 1 << 16;

/// Most bytes kept in memory while the disk fails.
const KEPT_BYTES: usize = 32 << 20;

/// Where journal lines are written.
trait Sink: Write + Send {
    fn sync(&mut self) -> io::Result<()>;
}

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Appends events to `events.jsonl`, each with one write of one whole line. If the disk is full or failing,
/// up to 65,536 lines are kept in memory. They are written once the disk works again, followed by an `alert`
/// that marks the gap. The run continues in any case.
pub struct JournalWriter {
    sink: Box<dyn Sink>,
    /// Lines not written yet, oldest first.
    kept: VecDeque<Vec<u8>>,
    kept_bytes: usize,
    gap: Option<Gap>,
    /// Whether the file ends in the middle of a line.
    torn: bool,
}

struct Gap {
    since: Timestamp,
    error: io::Error,
    delayed: u64,
    lost: u64,
}

impl JournalWriter {
    /// Opens the journal for appending and creates it if missing. If a killed process left a torn last line,
    /// a line end is added, so that the next event starts on its own line.
    pub fn open(path: &Path) -> Result<Self, RunError> {
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(io_error("open", path))?;
        let torn = ends_torn(&mut file).map_err(io_error("read", path))?;
        Ok(Self::over(Box::new(file), torn))
    }

    fn over(sink: Box<dyn Sink>, torn: bool) -> Self {
        Self { sink, kept: VecDeque::new(), kept_bytes: 0, gap: None, torn }
    }

    /// Appends one event. Never fails: see [`JournalWriter::problem`].
    pub fn append(&mut self, event: &JournalEvent) {
        let line = event.to_line();
        if self.gap.is_none() {
            match self.write(&line) {
                Ok(()) => return,
                Err(error) => self.begin_gap(error),
            }
        }
        self.keep(line);
        self.flush();
    }

    /// Appends one event as if the disk were full: it is kept in memory until the next [`JournalWriter::append`] or
    /// [`JournalWriter::sync`].
    pub fn keep_back(&mut self, event: &JournalEvent) {
        if self.gap.is_none() {
            self.begin_gap(io::ErrorKind::StorageFull.into());
        }
        self.keep(event.to_line());
    }

    /// Why the journal cannot be written at present.
    pub fn problem(&self) -> Option<&io::Error> {
        self.gap.as_ref().map(|gap| &gap.error)
    }

    /// Writes the lines kept in memory, if the disk allows it, and syncs the file. For checkpoints and the
    /// end of a run.
    pub fn sync(&mut self) {
        self.flush();
        if self.gap.is_none()
            && let Err(error) = self.sink.sync()
        {
            tracing::warn!(%error, "the journal could not be synced");
        }
    }

    fn begin_gap(&mut self, error: io::Error) {
        tracing::warn!(%error, "the journal cannot be written; its lines are kept in memory");
        self.gap = Some(Gap { since: time::now(), error, delayed: 0, lost: 0 });
    }

    fn keep(&mut self, line: Vec<u8>) {
        self.kept_bytes += line.len();
        self.kept.push_back(line);
        while self.kept.len() > KEPT_LINES || self.kept_bytes > KEPT_BYTES {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.kept_bytes -= oldest.len();
            if let Some(gap) = &mut self.gap {
                gap.lost += 1;
            }
        }
    }

    fn flush(&mut self) {
        while let Some(line) = self.kept.pop_front() {
            if let Err(error) = self.write(&line) {
                self.kept.push_front(line);
                if let Some(gap) = &mut self.gap {
                    gap.error = error;
                }
                return;
            }
            self.kept_bytes -= line.len();
            if let Some(gap) = &mut self.gap {
                gap.delayed += 1;
            }
        }
        if let Some(gap) = self.gap.take() {
            let mark = gap.mark().to_line();
            if self.write(&mark).is_err() {
                self.gap = Some(gap);
            }
        }
    }

    /// Writes one line with one write. If only a part was written, the next write begins with a line end, so
    /// that the torn line does not swallow the next.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let joined;
        let bytes = if self.torn {
            joined = [b"\n", line].concat();
            &joined
        } else {
            line
        };
        loop {
            match self.sink.write(bytes) {
                Ok(count) if count == bytes.len() => {
                    self.torn = false;
                    return Ok(());
                }
                Ok(count) if count + 1 == bytes.len() => {
                    // The event is complete; only its line end is missing.
                    self.torn = true;
                    return Ok(());
                }
                Ok(count) => {
                    // A single line end closes the torn line; anything longer begins a new one.
                    self.torn = if self.torn { count != 1 } else { count > 0 };
                    return Err(io::Error::new(
                        io::ErrorKind::StorageFull,
                        "only part of a line was written",
                    ));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Gap {
    fn mark(&self) -> JournalEvent {
        let lost = match self.lost {
            0 => "none was lost".to_owned(),
            1 => "1 older one was lost".to_owned(),
            lost => format!("{lost} older ones were lost"),
        };
        JournalEvent::now(
            None,
            AlertEvent {
                alert: AlertKind::JournalGap,
                message: format!(
                    "the journal could not be written from {} ({}); {} events were written late, {lost}",
                    time::text(self.since),
                    self.error,
                    self.delayed
                ),
                rows: Vec::new(),
            },
        )
    }
}

/// Whether a file ends in the middle of a line.
pub(crate) fn ends_torn(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::runs::event::{EventBody, StepEvent};

    /// The result of each write in turn: the number of bytes accepted, or an error. After the script, every
    /// write succeeds.
    #[derive(Default)]
    struct Disk {
        script: VecDeque<Result<usize, io::ErrorKind>>,
        content: Vec<u8>,
    }

    struct ScriptedSink(Arc<Mutex<Disk>>);

    impl Write for ScriptedSink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let count = disk.script.pop_front().unwrap_or(Ok(usize::MAX))?.min(bytes.len());
            disk.content.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink for ScriptedSink {
        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn step(number: u64) -> JournalEvent {
        JournalEvent::now(Some(number), StepEvent { loss: 0.5.into(), ..StepEvent::default() })
    }

    fn write_all(
        script: Vec<Result<usize, io::ErrorKind>>,
        events: u64,
    ) -> (JournalWriter, Arc<Mutex<Disk>>) {
        let disk = Arc::new(Mutex::new(Disk { script: script.into(), content: Vec::new() }));
        let mut writer = JournalWriter::over(Box::new(ScriptedSink(Arc::clone(&disk))), false);
        for number in 1..=events {
            writer.append(&step(number));
        }
        (writer, disk)
    }

    fn read_back(disk: &Mutex<Disk>) -> (Vec<u64>, Vec<String>) {
        let content = disk.lock().unwrap().content.clone();
        let (mut steps, mut alerts) = (Vec::new(), Vec::new());
        for line in content.split(|byte| *byte == b'\n') {
            match JournalEvent::from_line(line) {
                Ok(JournalEvent { step: Some(step), .. }) => steps.push(step),
                Ok(JournalEvent { body: EventBody::Alert(alert), .. }) => alerts.push(alert.message),
                _ => {}
            }
        }
        (steps, alerts)
    }

    #[test]
    fn a_full_disk_delays_events_and_marks_the_gap() {
        let full = Err(io::ErrorKind::StorageFull);
        let (writer, disk) = write_all(vec![Ok(usize::MAX), full, full, full], 6);
        assert!(writer.problem().is_none());
        let (steps, alerts) = read_back(&disk);
        assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
        assert_eq!(alerts.len(), 1);
        assert!(alerts[0].contains("none was lost"), "{alerts:?}");
    }

    #[test]
    fn events_that_are_kept_back_are_written_with_the_next_one_in_order() {
        let (mut writer, disk) = write_all(vec![], 1);
        writer.keep_back(&step(2));
        writer.keep_back(&step(3));
        assert!(writer.problem().is_some());
        assert_eq!(read_back(&disk).0, [1]);
        writer.append(&step(4));
        assert!(writer.problem().is_none());
        let (steps, alerts) = read_back(&disk);
        assert_eq!((steps, alerts.len()), (vec![1, 2, 3, 4], 1));
    }

    #[test]
    fn a_partly_written_line_never_swallows_another() {
        let line = step(1).to_line().len();
        for taken in 0..=line {
            let (_, disk) = write_all(vec![Ok(taken)], 3);
            let (steps, _) = read_back(&disk);
            assert_eq!(steps, [1, 2, 3], "after {taken} of {line} bytes");
        }
        for taken in 0..=line + 1 {
            let (_, disk) = write_all(vec![Ok(5), Ok(taken)], 3);
            let (steps, _) = read_back(&disk);
            assert_eq!(steps, [1, 2, 3], "after 5 bytes, then {taken} of {line}");
        }
    }

    #[test]
    fn kept_lines_are_bounded_and_the_loss_is_reported() {
        let script = vec![Err(io::ErrorKind::StorageFull); 2 * KEPT_LINES];
        let (mut writer, disk) = write_all(script, KEPT_LINES as u64 + 100);
        assert!(writer.problem().is_some());
        assert_eq!(writer.kept.len(), KEPT_LINES);
        disk.lock().unwrap().script.clear();
        writer.sync();
        assert!(writer.problem().is_none());
        let (steps, alerts) = read_back(&disk);
        assert_eq!((steps[0], steps.len()), (101, KEPT_LINES));
        assert!(alerts[0].contains("100 older ones were lost"), "{alerts:?}");
    }

    #[test]
    fn a_full_device_does_not_fail_the_run() {
        let mut writer = JournalWriter::open(Path::new("/dev/full")).unwrap();
        writer.append(&step(1));
        writer.append(&step(2));
        writer.sync();
        assert!(writer.problem().unwrap().to_string().contains("No space left"));
    }

    #[test]
    fn the_torn_line_of_a_killed_process_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut text = step(1).to_line();
        text.extend_from_slice(b"{\"kind\":\"step\",\"ti");
        std::fs::write(&path, text).unwrap();
        JournalWriter::open(&path).unwrap().append(&step(2));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().map(|line| JournalEvent::from_line(line.as_bytes()).ok()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1], None);
        assert_eq!(lines[2].as_ref().and_then(|event| event.step), Some(2));
    }
}
