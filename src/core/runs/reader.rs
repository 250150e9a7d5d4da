//! Reads a journal while another process writes it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::RunError;
use super::error::io_error;
use super::event::JournalEvent;
use crate::files;

const CHUNK: usize = 256 * 1024;

/// A longer line is skipped; no event is that long.
const LINE_LIMIT: usize = 4 << 20;

/// Number of bytes before the read position that are compared before reading on. Usually enough to include
/// the time of the last line.
const WITNESS: usize = 1024;

/// Lines read between two checks of the time limit.
const LINES_PER_LOOK: usize = 64;

#[derive(Debug, Default)]
pub struct Batch {
    /// New events, oldest first.
    pub events: Vec<JournalEvent>,
    /// The file was replaced or truncated: these events are from its beginning, and those read earlier are
    /// void.
    pub restarted: bool,
    /// Lines that could not be parsed and were skipped, such as those torn by a kill.
    pub broken_lines: u64,
    /// More data is available: read again without waiting.
    pub more: bool,
}

/// Follows a journal from its beginning. A line is returned once it is complete; an unfinished last line
/// waits.
pub struct JournalReader {
    path: PathBuf,
    open: Option<Open>,
    /// Bytes read and not returned yet; the next line begins at `begin`.
    buffer: Vec<u8>,
    begin: usize,
    /// No line end before this position.
    searched: usize,
    /// In the middle of a line that is too long.
    skipping: bool,
}

struct Open {
    file: File,
    device: u64,
    inode: u64,
    /// File position of the next read.
    offset: u64,
    /// The last bytes before `offset`.
    witness: Vec<u8>,
}

impl JournalReader {
    /// Starts at the beginning of the journal, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None, buffer: Vec::new(), begin: 0, searched: 0, skipping: false }
    }

    /// Reads new events: at most `max_events`, and for not much longer than `max_time`. The batch is empty if
    /// there is nothing new or no journal yet.
    pub fn read(&mut self, max_events: usize, max_time: Duration) -> Result<Batch, RunError> {
        let begun = Instant::now();
        let mut batch = Batch { restarted: self.follow()?, ..Batch::default() };
        let mut lines = 0;
        loop {
            match self.next_line() {
                Some(range) => {
                    let line = &self.buffer[range];
                    match JournalEvent::from_line(line) {
                        Ok(event) => batch.events.push(event),
                        Err(_) if line.trim_ascii().is_empty() => {}
                        Err(_) => batch.broken_lines += 1,
                    }
                    lines += 1;
                    let late = lines % LINES_PER_LOOK == 0 && begun.elapsed() >= max_time;
                    if batch.events.len() >= max_events || late {
                        batch.more = true;
                        return Ok(batch);
                    }
                }
                None => {
                    if !self.fill(&mut batch)? {
                        return Ok(batch);
                    }
                }
            }
        }
    }

    /// Checks that the open file is still the one at the path and still has the bytes that were read. `true`
    /// if reading started over.
    fn follow(&mut self) -> Result<bool, RunError> {
        let found = match fs::metadata(&self.path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => {
                return Err(RunError::Io { doing: "read", path: self.path.clone(), source });
            }
        };
        if let Some(open) = &self.open
            && open.device == found.dev()
            && open.inode == found.ino()
            && open.offset <= found.len()
            && open.still_true().map_err(io_error("read", &self.path))?
        {
            return Ok(false);
        }
        let restarted = self.open.is_some();
        let (file, _) = files::open(&self.path).map_err(io_error("open", &self.path))?;
        let found = file.metadata().map_err(io_error("read", &self.path))?;
        self.open =
            Some(Open { file, device: found.dev(), inode: found.ino(), offset: 0, witness: Vec::new() });
        self.buffer.clear();
        self.begin = 0;
        self.searched = 0;
        self.skipping = false;
        Ok(restarted)
    }

    fn next_line(&mut self) -> Option<std::ops::Range<usize>> {
        loop {
            let Some(found) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let end = self.searched + found;
            let line = self.begin..end;
            self.begin = end + 1;
            self.searched = self.begin;
            if !std::mem::take(&mut self.skipping) {
                return Some(line);
            }
        }
    }

    /// Reads the next bytes; `false` at the end of the file.
    fn fill(&mut self, batch: &mut Batch) -> Result<bool, RunError> {
        self.buffer.drain(..self.begin);
        self.searched -= self.begin;
        self.begin = 0;
        if self.buffer.len() > LINE_LIMIT {
            batch.broken_lines += u64::from(!self.skipping);
            self.skipping = true;
        }
        if self.skipping {
            self.buffer.clear();
            self.searched = 0;
        }
        let Some(open) = &mut self.open else { return Ok(false) };
        let count = open.read_into(&mut self.buffer).map_err(io_error("read", &self.path))?;
        Ok(count > 0)
    }
}

impl Open {
    fn still_true(&self) -> io::Result<bool> {
        let mut again = vec![0; self.witness.len()];
        let at = self.offset - self.witness.len() as u64;
        match self.file.read_exact_at(&mut again, at) {
            Ok(()) => Ok(again == self.witness),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read_into(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let before = buffer.len();
        self.file.seek(SeekFrom::Start(self.offset))?;
        let count = (&mut self.file).take(CHUNK as u64).read_to_end(buffer)?;
        self.offset += count as u64;
        self.witness.extend_from_slice(&buffer[before.max(buffer.len().saturating_sub(WITNESS))..]);
        let surplus = self.witness.len().saturating_sub(WITNESS);
        self.witness.drain(..surplus);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::runs::event::{EventBody, StateEvent, StepEvent};

    const LONG: Duration = Duration::from_hours(1);

    fn step(number: u64) -> JournalEvent {
        JournalEvent::now(Some(number), StepEvent { loss: 0.5.into(), ..StepEvent::default() })
    }

    fn lines(steps: impl IntoIterator<Item = u64>) -> Vec<u8> {
        steps.into_iter().flat_map(|number| step(number).to_line()).collect()
    }

    fn steps(batch: &Batch) -> Vec<u64> {
        batch.events.iter().filter_map(|event| event.step).collect()
    }

    fn append(path: &Path, bytes: &[u8]) {
        File::options().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
    }

    struct Folder {
        _folder: tempfile::TempDir,
        path: PathBuf,
    }

    fn journal() -> Folder {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        Folder { _folder: folder, path }
    }

    #[test]
    fn a_line_is_returned_once_it_is_complete() {
        let journal = journal();
        let mut reader = JournalReader::new(&journal.path);
        assert!(reader.read(10, LONG).unwrap().events.is_empty());
        let bytes = lines([1, 2]);
        let (first, second) = bytes.split_at(bytes.len() - 20);
        append(&journal.path, first);
        assert_eq!(steps(&reader.read(10, LONG).unwrap()), [1]);
        assert!(reader.read(10, LONG).unwrap().events.is_empty());
        append(&journal.path, second);
        let batch = reader.read(10, LONG).unwrap();
        assert_eq!((steps(&batch), batch.restarted, batch.broken_lines), (vec![2], false, 0));
    }

    #[test]
    fn a_batch_is_limited_by_count_and_time() {
        let journal = journal();
        append(&journal.path, &lines(1..=1000));
        let mut reader = JournalReader::new(&journal.path);
        let batch = reader.read(10, LONG).unwrap();
        assert_eq!((steps(&batch), batch.more), ((1..=10).collect(), true));
        let batch = reader.read(usize::MAX, Duration::ZERO).unwrap();
        assert!(batch.more && batch.events.len() <= LINES_PER_LOOK, "{}", batch.events.len());
        let mut seen = 10 + batch.events.len();
        loop {
            let batch = reader.read(100, LONG).unwrap();
            seen += batch.events.len();
            if !batch.more {
                break;
            }
        }
        assert_eq!(seen, 1000);
    }

    #[test]
    fn broken_lines_are_counted_and_skipped() {
        let journal = journal();
        let mut bytes = lines([1]);
        bytes.extend_from_slice(b"{\"kind\":\"st\n\n\xff\xfe\nnull\n");
        bytes.extend(lines([2]));
        append(&journal.path, &bytes);
        let batch = JournalReader::new(&journal.path).read(10, LONG).unwrap();
        assert_eq!((steps(&batch), batch.broken_lines), (vec![1, 2], 3));
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let journal = journal();
        append(&journal.path, &lines([1]));
        for _ in 0..LINE_LIMIT / CHUNK + 4 {
            append(&journal.path, &vec![b'x'; CHUNK]);
        }
        let mut reader = JournalReader::new(&journal.path);
        let batch = reader.read(10, LONG).unwrap();
        assert_eq!((steps(&batch), batch.broken_lines), (vec![1], 1));
        assert!(reader.buffer.len() <= LINE_LIMIT);
        append(&journal.path, b"\n");
        append(&journal.path, &lines([2]));
        let batch = reader.read(10, LONG).unwrap();
        assert_eq!((steps(&batch), batch.broken_lines), (vec![2], 0));
    }

    #[test]
    fn a_replaced_or_truncated_journal_is_read_again() {
        let journal = journal();
        append(&journal.path, &lines(1..=5));
        let mut reader = JournalReader::new(&journal.path);
        assert_eq!(steps(&reader.read(10, LONG).unwrap()), [1, 2, 3, 4, 5]);

        let other = journal.path.with_extension("new");
        append(&other, &lines(11..=20));
        fs::rename(&other, &journal.path).unwrap();
        let batch = reader.read(3, LONG).unwrap();
        assert_eq!((steps(&batch), batch.restarted), (vec![11, 12, 13], true));
        let batch = reader.read(100, LONG).unwrap();
        assert_eq!((steps(&batch), batch.restarted), ((14..=20).collect(), false));

        fs::write(&journal.path, lines([31])).unwrap();
        let batch = reader.read(100, LONG).unwrap();
        assert_eq!((steps(&batch), batch.restarted), (vec![31], true));

        fs::write(&journal.path, lines(41..=43)).unwrap();
        let batch = reader.read(100, LONG).unwrap();
        assert_eq!(
            (steps(&batch), batch.restarted),
            (vec![41, 42, 43], true),
            "longer than before, same file"
        );

        fs::remove_file(&journal.path).unwrap();
        assert!(reader.read(100, LONG).unwrap().events.is_empty());
    }

    proptest! {
        #[test]
        fn every_event_is_returned_once(
            kinds in prop::collection::vec(0..3_u8, 0..40),
            cuts in prop::collection::vec(1..400_usize, 1..60),
            most in 1..7_usize,
        ) {
            let events: Vec<JournalEvent> = kinds.iter().enumerate().map(|(number, kind)| match kind {
                0 => step(number as u64),
                1 => JournalEvent::now(None, StateEvent::default()),
                _ => JournalEvent::now(Some(number as u64), EventBody::Unknown { kind: "rung".into(), keys: serde_json::Map::new() }),
            }).collect();
            let bytes: Vec<u8> = events.iter().flat_map(JournalEvent::to_line).collect();
            let journal = journal();
            let mut reader = JournalReader::new(&journal.path);
            let mut rest = bytes.as_slice();
            let mut read = Vec::new();
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                append(&journal.path, now);
                rest = later;
                let batch = reader.read(most, LONG).unwrap();
                prop_assert!(!batch.restarted && batch.broken_lines == 0);
                read.extend(batch.events);
                if rest.is_empty() && !batch.more {
                    break;
                }
            }
            prop_assert_eq!(read, events);
        }

        #[test]
        fn no_bytes_stop_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let journal = journal();
            append(&journal.path, &bytes);
            append(&journal.path, b"\n");
            append(&journal.path, &lines([7]));
            let batch = JournalReader::new(&journal.path).read(usize::MAX, LONG).unwrap();
            prop_assert_eq!(steps(&batch).pop(), Some(7));
        }
    }
}
