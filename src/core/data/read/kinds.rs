//! The kinds of dataset files, by the endings of their names.

use std::path::Path;

/// What a dataset file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    JsonLines,
    Json,
    /// A table whose usual separator is this byte.
    Table(u8),
    Parquet,
    Text,
}

/// How a dataset file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstandard,
}

const CONTENTS: [(&str, Content); 7] = [
    ("jsonl", Content::JsonLines),
    ("ndjson", Content::JsonLines),
    ("json", Content::Json),
    ("csv", Content::Table(b',')),
    ("tsv", Content::Table(b'\t')),
    ("parquet", Content::Parquet),
    ("txt", Content::Text),
];

const PACKINGS: [(&str, Packing); 2] = [("gz", Packing::Gzip), ("zst", Packing::Zstandard)];

/// The endings of dataset files, for messages.
pub(super) const KNOWN: &str =
    ".jsonl, .ndjson, .json, .csv, .tsv, .parquet or .txt; all but .parquet also with .gz or .zst behind";

/// The kind of file that a name stands for; `None` if its ending is not known.
pub(super) fn of(path: &Path) -> Option<(Content, Packing)> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let (stem, ending) = name.rsplit_once('.')?;
    let Some(packing) = named(&PACKINGS, ending) else {
        return named(&CONTENTS, ending).map(|content| (content, Packing::None));
    };
    let (_, inner) = stem.rsplit_once('.')?;
    // Parquet compresses its own pages, and its footer cannot be found in a stream.
    named(&CONTENTS, inner).filter(|content| *content != Content::Parquet).map(|content| (content, packing))
}

fn named<T: Copy>(endings: &[(&str, T)], wanted: &str) -> Option<T> {
    endings.iter().find(|(ending, _)| *ending == wanted).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_tell_content_and_packing() {
        let of = |name: &str| of(Path::new(name));
        assert_eq!(of("data/a.JSONL"), Some((Content::JsonLines, Packing::None)));
        assert_eq!(of("a.b.csv.gz"), Some((Content::Table(b','), Packing::Gzip)));
        assert_eq!(of("a.txt.zst"), Some((Content::Text, Packing::Zstandard)));
        for unknown in
            ["a", "a.md", "a.gz", "gz", "a.parquet.gz", "a.jsonl.gz.zst", "a.jsonl.xz", "jsonl", ""]
        {
            assert_eq!(of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn every_ending_is_listed_in_messages() {
        let endings =
            CONTENTS.iter().map(|(ending, _)| ending).chain(PACKINGS.iter().map(|(ending, _)| ending));
        for ending in endings {
            assert!(KNOWN.contains(&format!(".{ending}")), "{ending}");
        }
    }
}
