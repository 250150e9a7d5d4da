//! A run's journal: single lines, and a file of them.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use luthier_core::runs::{JournalEvent, JournalReader};
use luthier_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|input: &[u8]| {
    if let Ok(event) = JournalEvent::from_line(input) {
        let line = event.to_line();
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        assert!(JournalEvent::from_line(&line).is_ok());
    }
    let mut reader = JournalReader::new(&SCRATCH.write("events.jsonl", input));
    let batch = reader.read(usize::MAX, Duration::from_secs(60)).expect("the file is there");
    assert!(!batch.restarted);
});
