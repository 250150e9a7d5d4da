//! The rows of a dataset without what they say, which is read when it is needed.

use std::fs::File;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use super::columns::Columns;
use super::formats::{Detected, Shaped};
use super::{lines, split};
use crate::data::example::{hash_of_content, label_name};
use crate::data::{DataError, Example, Extras, Origin, Row, Split};
use crate::files;

/// Most files that stay open. The lines of others are read by their path.
const MOST_OPEN: usize = 64;

/// The rows of a dataset. What rows of uncompressed JSON Lines and text files say stays in the file, so that a dataset
/// may be larger than memory. Files of other kinds cannot be read from the middle, so what their rows say is kept.
/// Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    heads: Arc<Vec<RowHead>>,
    pub(super) contents: Arc<Contents>,
}

/// What is known of a row without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "facts that have nothing to do with each other")]
pub struct RowHead {
    /// As [`Row::index`].
    pub index: usize,
    /// As [`Origin::line`].
    pub line: usize,
    pub split: Split,
    /// Whether its answer is good, if the row has a label.
    pub label: Option<bool>,
    /// Whether it is a preference pair.
    pub is_pair: bool,
    /// Whether it is a conversation with more than one reply.
    pub has_several_replies: bool,
    /// Whether it offers tools or calls one.
    pub has_tools: bool,
    /// Length of all its texts; of a row of token ids, four bytes each.
    pub bytes: u32,
    /// The number that [`Row::hash`] writes in hexadecimal.
    pub(super) hash: u64,
    /// What the row is in its file, if it was edited.
    original: Option<Original>,
    /// Equal for rows that stay on one side of the split.
    pub(super) group: u64,
    /// Whether it has the column that `data.group_by` names.
    pub(super) has_group: bool,
    /// The file, as an index into [`Contents::files`].
    file: u32,
    content: Stored,
}

/// Where a row's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// In memory, as an index into [`Contents::kept`].
    Kept(usize),
    /// In its file, as a line without its end.
    Line {
        offset: u64,
        bytes: u32,
        /// How it is read, as an index into [`Contents::detected`].
        detected: u32,
    },
}

/// An edited row as it is in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Original {
    pub(super) hash: u64,
    pub(super) label: Option<bool>,
}

/// A line of a file, for a row that is read again from there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) offset: u64,
    pub(super) bytes: usize,
}

/// What the rows of a dataset say, or where that is.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    files: Vec<RowFile>,
    kept: Vec<Arc<(Example, Extras)>>,
    /// How lines were read, each way once.
    detected: Vec<Detected>,
    columns: Option<Arc<Columns>>,
}

#[derive(Debug, Clone)]
struct RowFile {
    /// As written in the configuration.
    shown: Arc<Path>,
    /// If its lines can be read again.
    lines: Option<LineFile>,
}

/// A file of lines.
#[derive(Debug, Clone)]
pub(super) struct LineFile {
    /// As it was opened, if not too many are open.
    pub(super) file: Option<Arc<File>>,
    pub(super) path: Arc<Path>,
    /// What reads a line.
    pub(super) parse: lines::Parse,
}

impl LineFile {
    fn read(&self, line: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.file {
            Some(file) => file.read_exact_at(line, offset),
            None => files::open(&self.path)?.0.read_exact_at(line, offset),
        }
    }
}

impl Contents {
    /// Whether one more file may stay open.
    pub(super) fn has_room_for_a_file(&self) -> bool {
        let is_open = |file: &&RowFile| file.lines.as_ref().is_some_and(|lines| lines.file.is_some());
        self.files.iter().filter(is_open).count() < MOST_OPEN
    }

    /// Begins with the rows of a file; `lines` if they need not be kept.
    pub(super) fn begin_file(&mut self, shown: &Path, lines: Option<LineFile>) {
        self.files.push(RowFile { shown: shown.into(), lines });
    }

    pub(super) fn read_with(&mut self, columns: &Arc<Columns>) {
        self.columns = Some(Arc::clone(columns));
    }

    /// The content of a row that was read from the last file.
    fn put(&mut self, row: &Row, line: Option<Line>, detected: &Detected) -> Stored {
        let can_read_again = self.files.last().is_some_and(|file| file.lines.is_some());
        let Some(line) = line.filter(|_| can_read_again) else {
            self.kept.push(Arc::new((row.example.clone(), row.extras.clone())));
            return Stored::Kept(self.kept.len() - 1);
        };
        let known = self.detected.iter().position(|known| known == detected);
        let detected = known.unwrap_or_else(|| {
            self.detected.push(detected.clone());
            self.detected.len() - 1
        });
        // A line is at most 64 MiB long.
        Stored::Line { offset: line.offset, bytes: line.bytes as u32, detected: detected as u32 }
    }

    fn get(&self, head: &RowHead) -> Result<(Example, Extras), DataError> {
        let file = self.files.get(head.file as usize);
        match head.content {
            Stored::Kept(place) => match self.kept.get(place) {
                Some(kept) => Ok((**kept).clone()),
                None => Err(changed(file, head)),
            },
            Stored::Line { offset, bytes, detected } => {
                let (Some(file), Some(columns)) = (file, &self.columns) else {
                    return Err(changed(file, head));
                };
                let (Some(lines), Some(detected)) = (&file.lines, self.detected.get(detected as usize))
                else {
                    return Err(changed(Some(file), head));
                };
                let mut line = vec![0; bytes as usize];
                lines.read(&mut line, offset).map_err(|error| DataError::read(&*file.shown, error))?;
                let shaped = (lines.parse)(&line).and_then(|read| columns.shape_as(detected, read.value));
                // Somebody may write the file in the meantime.
                let same = |shaped: &Shaped| {
                    hash_of_content(&shaped.example, &shaped.extras) == head.hash
                        && shaped.extras.label == head.label
                };
                match shaped {
                    Ok(shaped) if same(&shaped) => Ok((shaped.example, shaped.extras)),
                    Ok(_) | Err(_) => Err(changed(Some(file), head)),
                }
            }
        }
    }
}

fn changed(file: Option<&RowFile>, head: &RowHead) -> DataError {
    let shown = file.map_or(Path::new("?"), |file| &*file.shown);
    let what = format!("line {} is not what it was when the file was read; read the data again", head.line);
    DataError::file(shown, what)
}

impl Rows {
    /// A row that was read from the last file of `contents`. `original` is what it is there, if it was edited.
    pub(super) fn head_of(
        &mut self,
        row: &Row,
        line: Option<Line>,
        detected: &Detected,
        original: Option<Original>,
    ) -> RowHead {
        let contents = Arc::make_mut(&mut self.contents);
        let content = contents.put(row, line, detected);
        let file = contents.files.len().saturating_sub(1);
        RowHead { original, ..RowHead::new(row, file, content) }
    }

    pub(super) fn heads_mut(&mut self) -> &mut Vec<RowHead> {
        Arc::make_mut(&mut self.heads)
    }

    pub fn len(&self) -> usize {
        self.heads.len()
    }

    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// What is known of each row without reading it.
    pub fn heads(&self) -> &[RowHead] {
        &self.heads
    }

    /// The row at a position; `None` beyond the last.
    ///
    /// # Errors
    ///
    /// [`DataError::Read`], and [`DataError::File`] if its file has changed since.
    pub fn get(&self, position: usize) -> Result<Option<Row>, DataError> {
        self.heads.get(position).map(|head| self.row(head)).transpose()
    }

    /// Every row with its content, one after the other. Errors are those of [`Rows::get`].
    pub fn iter(&self) -> impl Iterator<Item = Result<Row, DataError>> {
        self.heads.iter().map(|head| self.row(head))
    }

    /// All rows with their contents.
    pub fn load(&self) -> Result<Vec<Row>, DataError> {
        self.iter().collect()
    }

    /// All rows, of a dataset that is known to be sound.
    #[cfg(test)]
    pub(crate) fn all(&self) -> Vec<Row> {
        self.load().unwrap()
    }

    /// Every row with its place.
    pub fn places(&self) -> impl ExactSizeIterator<Item = PlacedHead<'_>> {
        self.heads.iter().map(|head| PlacedHead { head, file: self.file(head) })
    }

    /// The place of one of these rows.
    pub fn origin(&self, head: &RowHead) -> Origin {
        Origin { file: self.file(head).to_owned(), line: head.line }
    }

    /// One of these rows with its content. Errors are those of [`Rows::get`].
    pub fn row(&self, head: &RowHead) -> Result<Row, DataError> {
        let (example, extras) = self.contents.get(head)?;
        Ok(Row { index: head.index, origin: self.origin(head), split: head.split, example, extras })
    }

    fn file(&self, head: &RowHead) -> &Path {
        self.contents.files.get(head.file as usize).map_or(Path::new("?"), |file| &file.shown)
    }
}

impl From<Vec<Row>> for Rows {
    /// Rows that are in memory already.
    fn from(rows: Vec<Row>) -> Self {
        let mut contents = Contents::default();
        let mut heads = Vec::with_capacity(rows.len());
        for row in rows {
            let known = contents.files.iter().position(|file| *file.shown == *row.origin.file);
            let file = known.unwrap_or_else(|| {
                contents.begin_file(&row.origin.file, None);
                contents.files.len() - 1
            });
            heads.push(RowHead::new(&row, file, Stored::Kept(contents.kept.len())));
            contents.kept.push(Arc::new((row.example, row.extras)));
        }
        Rows { heads: Arc::new(heads), contents: Arc::new(contents) }
    }
}

impl Original {
    /// Equal rows with different labels are different ones to edit.
    pub(super) fn key(self) -> String {
        let label = match self.label {
            None => "",
            Some(true) => "-good",
            Some(false) => "-bad",
        };
        format!("{:016x}{label}", self.hash)
    }
}

impl RowHead {
    fn new(row: &Row, file: usize, content: Stored) -> Self {
        RowHead {
            index: row.index,
            line: row.origin.line,
            split: row.split,
            label: row.extras.label,
            is_pair: row.example.is_pair(),
            has_several_replies: row.example.has_several_replies(),
            has_tools: row.has_tools(),
            bytes: u32::try_from(row.example.text_bytes()).unwrap_or(u32::MAX),
            hash: hash_of_content(&row.example, &row.extras),
            original: None,
            group: split::group_key(row),
            has_group: row.extras.group.is_some(),
            file: file as u32,
            content,
        }
    }

    /// The label in words; `None` if the row has none.
    pub fn label_name(&self) -> Option<&'static str> {
        label_name(self.label)
    }

    /// Whether the user has edited it.
    pub fn is_edited(&self) -> bool {
        self.original.is_some()
    }

    /// What [`Edits`](crate::data::Edits) lists it by, edited or not.
    pub fn edit_key(&self) -> String {
        let as_it_is = Original { hash: self.hash, label: self.label };
        self.original.unwrap_or(as_it_is).key()
    }

    /// The hash that it has in its file.
    pub fn hash_in_file(&self) -> String {
        format!("{:016x}", self.number_in_file())
    }

    /// Equal for rows of one file.
    pub(super) fn file_number(&self) -> u32 {
        self.file
    }

    /// The number that [`RowHead::hash_in_file`] writes.
    pub(super) fn number_in_file(&self) -> u64 {
        self.original.map_or(self.hash, |original| original.hash)
    }

    /// As [`Row::hash`].
    pub fn hash(&self) -> String {
        format!("{:016x}", self.hash)
    }
}

/// What is known of a row without reading it, and its place.
#[derive(Debug, Clone, Copy)]
pub struct PlacedHead<'rows> {
    head: &'rows RowHead,
    file: &'rows Path,
}

impl PlacedHead<'_> {
    pub fn origin(&self) -> Origin {
        Origin { file: PathBuf::from(self.file), line: self.head.line }
    }
}

impl Deref for PlacedHead<'_> {
    type Target = RowHead;

    fn deref(&self) -> &RowHead {
        self.head
    }
}

impl fmt::Display for PlacedHead<'_> {
    /// As [`Origin`].
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file.display(), self.line)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pretty_assertions::assert_eq;

    use super::*;
    use crate::data::read_dataset;
    use crate::data::testing::config;

    fn read(name: &str, content: &[u8], settings: &[&str]) -> (tempfile::TempDir, Rows) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), content).unwrap();
        let settings: Vec<&str> = settings.iter().copied().chain(["data.eval=0"]).collect();
        let dataset = read_dataset(&config(name, &settings), folder.path()).unwrap();
        assert_eq!(dataset.problems, []);
        (folder, dataset.rows)
    }

    #[test]
    fn rows_of_lines_stay_in_their_file() {
        let lines = "\u{feff}{\"Frage\": \"a\", \"Antwort\": \"b\", \"thema\": 7}\r\n\n\
                     {\"Frage\": \"ä\", \"Antwort\": \"d\", \"x\": NaN}\n{\"Frage\": \"e\", \"Antwort\": \"f\"}";
        let columns = "data.columns={ prompt = \"Frage\", completion = \"Antwort\" }";
        let (_folder, rows) = read("a.jsonl", lines.as_bytes(), &[columns, "data.group_by=thema"]);
        assert!(rows.contents.kept.is_empty());
        let texts: Vec<String> = rows.all().iter().map(|row| row.example.plain_text()).collect();
        assert_eq!(texts, ["a\nb", "ä\nd", "e\nf"]);
        let first = rows.get(0).unwrap().unwrap();
        assert_eq!((first.extras.group.as_deref(), first.origin.line), (Some("7"), 1));
        assert_eq!(rows.heads()[2].hash(), rows.all()[2].hash());
        assert_eq!(rows.get(3).unwrap(), None);

        let (_folder, texts) = read("a.txt", b"one\r\n\ntwo", &[]);
        assert!(texts.contents.kept.is_empty());
        assert_eq!(texts.all()[1].example, Example::Text("two".to_owned()));
        assert_eq!(texts.heads().iter().map(|head| head.bytes).collect::<Vec<_>>(), [3, 3]);
    }

    #[test]
    fn a_label_that_is_changed_meanwhile_is_noticed() {
        let row = |label: bool| format!("{{\"prompt\": \"a\", \"completion\": \"b\", \"label\": {label}}}");
        let (folder, rows) = read("a.jsonl", row(true).as_bytes(), &["train.algorithm=kto"]);
        assert!(rows.get(0).is_ok());
        fs::write(folder.path().join("a.jsonl"), row(false).replace("false", "0   ")).unwrap();
        assert!(rows.get(0).is_err());
    }

    #[test]
    fn rows_of_other_files_are_kept() {
        let (folder, rows) = read("a.csv", b"prompt,completion\na,b\n", &[]);
        fs::write(folder.path().join("a.csv"), "").unwrap();
        assert_eq!(rows.all()[0].example.plain_text(), "a\nb");
        let again = Rows::from(rows.all());
        assert_eq!((again.all(), again.heads()), (rows.all(), rows.heads()));
    }

    #[test]
    fn a_file_that_is_written_meanwhile_is_noticed() {
        let content = b"{\"text\": \"one\"}\n{\"text\": \"two\"}\n";
        let (folder, rows) = read("a.jsonl", content, &[]);
        let path = folder.path().join("a.jsonl");
        for (now, is_read) in [
            (&b"{\"text\": \"one\"}\n{\"text\": \"two\"}\n{\"text\": \"three\"}\n"[..], true),
            (b"{\"text\": \"one\"}\n{\"text\": \"new\"}\n", false),
            (b"{\"text\": \"one\"}\n{\"text\"", false),
        ] {
            fs::write(&path, now).unwrap();
            let told = rows.get(1).map(drop).map_err(|error| error.to_string());
            assert_eq!(told.is_ok(), is_read, "{told:?}");
            assert!(rows.get(0).is_ok());
            if let Err(told) = told {
                assert!(
                    told.starts_with("a.jsonl: line 2 is not") || told.starts_with("cannot read a.jsonl"),
                    "{told}"
                );
            }
        }
        // A file that is replaced as a whole leaves the old one readable.
        fs::write(&path, content).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(rows.get(1).is_ok());
    }
}
