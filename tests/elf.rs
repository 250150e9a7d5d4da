//! Reads the dynamic section of an ELF file: the libraries that the loader looks for.

use std::fs;
use std::path::Path;

/// Kinds of program headers and dynamic entries, see elf(5).
const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const NEEDED: u64 = 1;
const STRING_TABLE: u64 = 5;

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// The `DT_NEEDED` names of a 64-bit little-endian ELF file.
pub fn needed_libraries(file: &Path) -> Vec<String> {
    let bytes = fs::read(file).unwrap();
    assert_eq!(&bytes[..6], b"\x7fELF\x02\x01", "{} is no 64-bit little-endian ELF file", file.display());
    let word = |at: u64| u64::from_le_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap());
    let half = |at: u64| u32::from_le_bytes(bytes[at as usize..at as usize + 4].try_into().unwrap());
    let short =
        |at: u64| u64::from(u16::from_le_bytes(bytes[at as usize..at as usize + 2].try_into().unwrap()));
    let (table, entry, count) = (word(0x20), short(0x36), short(0x38));
    let segments: Vec<Segment> = (0..count)
        .map(|index| table + index * entry)
        .map(|at| Segment {
            kind: half(at),
            offset: word(at + 8),
            address: word(at + 16),
            size: word(at + 32),
        })
        .collect();
    let dynamic = segments.iter().find(|segment| segment.kind == DYNAMIC).expect("a dynamic section");
    let entries: Vec<(u64, u64)> = (dynamic.offset..dynamic.offset + dynamic.size)
        .step_by(16)
        .map(|at| (word(at), word(at + 8)))
        .take_while(|(tag, _)| *tag != 0)
        .collect();
    let strings = entries.iter().find(|(tag, _)| *tag == STRING_TABLE).expect("a string table").1;
    let holder = segments
        .iter()
        .find(|segment| {
            segment.kind == LOAD && (segment.address..segment.address + segment.size).contains(&strings)
        })
        .expect("a segment with the string table");
    let strings = (strings - holder.address + holder.offset) as usize;
    let name = |offset: u64| {
        let text = &bytes[strings + offset as usize..];
        String::from_utf8_lossy(&text[..text.iter().position(|byte| *byte == 0).unwrap()]).into_owned()
    };
    entries.iter().filter(|(tag, _)| *tag == NEEDED).map(|(_, offset)| name(*offset)).collect()
}
