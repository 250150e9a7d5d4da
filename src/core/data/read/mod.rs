//! Reads rows from dataset files: `.jsonl .json .csv .tsv .parquet .txt`, in any of the known formats.

mod amounts;
mod columns;
mod digits;
mod encoding;
mod formats;
mod json;
mod kinds;
mod lines;
mod nan;
mod parquet;
mod rows;
mod sources;
mod split;
mod table;
mod unpack;

pub(super) use formats::{Shaped, WEIGHTS, is_side};
pub use rows::{PlacedHead, RowHead, Rows};
pub(super) use split::prompt_key;

use std::collections::HashSet;
use std::fs;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::Detected;
use serde_json::{Map, Value};

use self::columns::Columns;
use self::kinds::{Content, KNOWN, Packing};
use self::rows::{Line, LineFile, Original};
use self::sources::{DataFile, Found, OpenCache};
use super::edits::Edits;
use super::example::hash_of_content;
use super::quarantine::Quarantine;
use super::{DataError, Extras, Origin, Row, RowProblem, RowProblemKind, Split};
use crate::algorithms::RowShape;
use crate::config::{Config, EvalSource, Format};
use crate::files;
use crate::model::ModelError;
use crate::model::hub::{HubCache, HubFolders};
use crate::text::clean_line;
use crate::units::counted;

/// Longest row, in bytes.
const MAX_ROW_BYTES: usize = 64 << 20;
/// Most values in a row: a million tokens with labels and mask are three million.
const MAX_ROW_VALUES: usize = 1 << 22;
/// Most row problems kept; the rest are counted.
const MAX_PROBLEMS: usize = 1000;
/// Most names of unused fields kept.
const MAX_UNUSED: usize = 100;
/// Rows between two reports of progress.
const ROWS_HEARD: usize = 256;
/// `data.group_by` for rows with one prompt.
pub const BY_PROMPT: &str = "prompt";
/// `data.group_by` for each row by itself.
pub const BY_ROW: &str = "row";

/// The content of a project's dataset files.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    /// Usable rows in reading order; [`Row::index`] is an index into this list.
    pub rows: Rows,
    /// Rows left out because the project's quarantine lists them. Their `index` is the place they would have
    /// had.
    pub quarantined: Rows,
    /// Rows that cannot be used; only the first 1000.
    pub problems: Vec<RowProblem>,
    /// Number of rows that cannot be used.
    pub unreadable: usize,
    /// What was decided while reading that the user should know.
    pub notices: Vec<String>,
    /// Fields of rows that nothing reads, in the order in which they were found.
    pub unused: Vec<UnusedField>,
    /// Whether there are other such fields, which were too many to keep.
    pub has_more_unused: bool,
    /// What shows whether the files are still those that were read.
    pub(super) stamp: String,
}

/// A field that rows have and nothing reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedField {
    pub name: String,
    /// Number of rows that have it.
    pub rows: usize,
    /// The first of them.
    pub first: Origin,
    /// The format as which that row was read.
    pub format: Format,
}

/// How far the reading of a dataset is.
#[derive(Debug)]
pub struct ReadProgress<'read> {
    /// The rows read so far. Which are held out, and which of several are used, is decided at the end.
    pub rows: &'read Rows,
    /// Bytes read so far. A file that is packed, or has no lines, counts once it is read.
    pub bytes: u64,
    /// Bytes of all files.
    pub total: u64,
}

/// Hears how far the reading is, and says whether to go on.
pub type ReadingHeard<'a> = dyn FnMut(&ReadProgress) -> ControlFlow<()> + 'a;

/// The project's rows: training files first, then evaluation files. If a row cannot be used, the error lists
/// every such row.
pub fn read_rows(config: &Config, project: &Path) -> Result<Rows, DataError> {
    let dataset = read_dataset(config, project)?;
    if dataset.problems.is_empty() { Ok(dataset.rows) } else { Err(DataError::Rows(dataset.problems)) }
}

/// As [`read_rows`], but returns the usable rows and the others.
pub fn read_dataset(config: &Config, project: &Path) -> Result<Dataset, DataError> {
    read_dataset_heard(config, project, &mut |_| ControlFlow::Continue(()))
}

/// As [`read_dataset`]. `heard` is called every few rows; if it ends the reading, the result is
/// [`DataError::Cancelled`].
pub fn read_dataset_heard(
    config: &Config,
    project: &Path,
    heard: &mut ReadingHeard,
) -> Result<Dataset, DataError> {
    read_without(config, project, &Quarantine::load(project)?, &hub_cache, heard)
}

/// As [`read_dataset`], with another list of rows to leave out than the project's.
pub fn read_dataset_without(
    config: &Config,
    project: &Path,
    quarantine: &Quarantine,
) -> Result<Dataset, DataError> {
    read_without(config, project, quarantine, &hub_cache, &mut |_| ControlFlow::Continue(()))
}

/// A text that changes when a file of the dataset, the quarantine or the edits is written.
pub(super) fn stamp(config: &Config, project: &Path) -> Result<String, DataError> {
    let files = source_files(config, project)?;
    let stamps = files.iter().map(|file| {
        let stamp =
            |found: fs::Metadata| (found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec());
        format!("{} {:?}\n", file.shown.display(), file.path.metadata().ok().map(stamp))
    });
    let beside =
        [Quarantine::load(project)?.entries().collect::<Vec<_>>().join(" "), Edits::load(project)?.text()];
    Ok(stamps.chain(beside).collect())
}

fn hub_cache() -> Result<HubCache, ModelError> {
    Ok(HubCache::new(HubFolders::of_environment()?.cache))
}

/// The tools and the template variables that a row of a dataset or a suite has.
///
/// # Errors
///
/// Which field is not what it should be.
pub(crate) fn extras_of(fields: &Map<String, Value>) -> Result<Extras, String> {
    formats::extras(fields)
}

/// What a row's fields say where no setting tells how to read them, and which of them nothing reads.
pub(super) fn reread(fields: Map<String, Value>, wanted: RowShape) -> Result<Shaped, String> {
    let present = fields.iter().filter(|(_, value)| !value.is_null());
    let names: Vec<&str> = present.map(|(name, _)| name.as_str()).collect();
    let detected = formats::detect(&names, &fields, wanted)?;
    formats::shape(detected.format, fields, wanted)
}

/// What the elements of `data.train` and of `data.eval` stand for.
struct Sources<'config> {
    train: Vec<(&'config Path, Found)>,
    eval: Vec<(&'config Path, Found)>,
}

fn find_sources<'config>(
    config: &'config Config,
    project: &Path,
    cache: OpenCache,
) -> Result<Sources<'config>, DataError> {
    let eval_paths: &[PathBuf] = match &config.data.eval {
        EvalSource::Fraction(_) => &[],
        EvalSource::Paths(paths) => paths,
    };
    let find = |path, split| sources::find(path, project, split, cache).map(|found| (path, found));
    let mut train: Vec<(&Path, Found)> = config
        .data
        .train
        .iter()
        .map(|source| find(source.path.as_path(), Split::Train))
        .collect::<Result<_, _>>()?;
    let eval: Vec<(&Path, Found)> =
        eval_paths.iter().map(|path| find(path.as_path(), Split::Eval)).collect::<Result<_, _>>()?;
    let held_out: Vec<&Found> = eval.iter().map(|(_, found)| found).collect();
    sources::keep_apart(&mut train, &held_out)?;
    Ok(Sources { train, eval })
}

/// A file that rows are read from.
pub(super) struct SourceFile<'config> {
    pub(super) path: PathBuf,
    /// As in [`Origin::file`].
    pub(super) shown: PathBuf,
    /// The element of `data.train` or `data.eval` that stands for it.
    pub(super) source: &'config Path,
    /// What was decided about the files of that element.
    pub(super) notice: Option<String>,
}

/// The files of a project's dataset, in reading order.
pub(super) fn source_files<'config>(
    config: &'config Config,
    project: &Path,
) -> Result<Vec<SourceFile<'config>>, DataError> {
    let Sources { train, eval } = find_sources(config, project, &hub_cache)?;
    let files = train.into_iter().chain(eval).flat_map(|(source, found)| {
        let Found { files, notice, .. } = found;
        let file = move |file: DataFile| SourceFile {
            path: file.path,
            shown: file.shown,
            source,
            notice: notice.clone(),
        };
        files.into_iter().map(file)
    });
    Ok(files.collect())
}

fn read_without(
    config: &Config,
    project: &Path,
    quarantine: &Quarantine,
    cache: OpenCache,
    heard: &mut ReadingHeard,
) -> Result<Dataset, DataError> {
    let stamp = stamp(config, project).unwrap_or_default();
    let Sources { train, eval } = find_sources(config, project, cache)?;
    let files = || train.iter().chain(&eval).flat_map(|(_, found)| &found.files);
    let total = files().filter_map(|file| Some(file.path.metadata().ok()?.len())).sum();
    let columns = Arc::new(Columns::new(config));
    let edits = Edits::load(project)?;
    let mut dataset = Dataset { stamp, ..Dataset::default() };
    Arc::make_mut(&mut dataset.rows.contents).read_with(&columns);
    let mut reading = Reading {
        config,
        columns,
        quarantine,
        edits: &edits,
        edited: HashSet::new(),
        kept: HashSet::new(),
        dataset,
        heard,
        bytes: 0,
        total,
    };
    let mut ranges = Vec::with_capacity(train.len());
    for ((path, found), source) in train.iter().zip(&config.data.train) {
        let start = reading.dataset.rows.len();
        reading.read(path, found, Split::Train)?;
        amounts::limit(&mut reading.dataset, start, source, config.train.seed);
        ranges.push((start..reading.dataset.rows.len(), source));
    }
    for (path, found) in &eval {
        reading.read(path, found, Split::Eval)?;
    }
    let gone = edits.keys().filter(|key| !reading.edited.contains(*key)).count();
    let mut dataset = reading.dataset;
    dataset.quarantined.contents = Arc::clone(&dataset.rows.contents);
    edit_notices(gone, &mut dataset);
    if let EvalSource::Fraction(fraction) = config.data.eval {
        let by_row = config.data.group_by == BY_ROW;
        let (rows, quarantined) = (dataset.rows.heads_mut(), dataset.quarantined.heads_mut());
        hold_out(rows, quarantined, fraction, config.train.seed, by_row);
        if config.data.group_by != BY_ROW && config.data.group_by != BY_PROMPT {
            let without = dataset.rows.heads().iter().filter(|row| !row.has_group).count();
            if without == dataset.rows.len() && without > 0 {
                return Err(DataError::Settings(format!(
                    "no row has the column {:?}, which data.group_by names; name another, or \"prompt\" or \"row\"",
                    clean_line(&config.data.group_by)
                )));
            }
            if without > 0 {
                dataset.notices.push(format!(
                    "{without} of {} rows have no {:?} (data.group_by) and are grouped by their prompts",
                    dataset.rows.len(),
                    config.data.group_by
                ));
            }
        }
        let held_out = dataset.rows.heads().iter().filter(|row| row.split == Split::Eval).count();
        let asked = (dataset.rows.len() as f64 * fraction).round() as usize;
        if held_out > asked.max(1) * 2 || held_out * 2 < asked {
            dataset.notices.push(format!(
                "data.eval = {fraction} asks for {asked} of {} rows, and {held_out} are held out, since rows of one group \
                 (data.group_by = {:?}) stay together",
                dataset.rows.len(),
                config.data.group_by
            ));
        }
    }
    amounts::repeat(&mut dataset, &ranges, config.train.seed);
    Ok(dataset)
}

/// Says how many rows are edited, and how many edits have no row.
fn edit_notices(gone: usize, dataset: &mut Dataset) {
    let heads = dataset.rows.heads().iter().chain(dataset.quarantined.heads());
    let edited = heads.filter(|head| head.is_edited()).count();
    if edited > 0 {
        dataset.notices.push(format!("{} edited (edits.jsonl)", counted(edited, "row is", "rows are")));
    }
    if gone > 0 {
        let rows = counted(gone, "edited row is", "edited rows are");
        dataset.notices.push(format!("edits.jsonl: {rows} not in the data any more"));
    }
}

/// A dataset that grows file by file.
struct Reading<'read, 'heard> {
    config: &'read Config,
    columns: Arc<Columns>,
    quarantine: &'read Quarantine,
    edits: &'read Edits,
    /// The keys of the edits that have a row.
    edited: HashSet<String>,
    /// The hashes of rows that are used and whose copies are not.
    kept: HashSet<String>,
    dataset: Dataset,
    heard: &'read mut ReadingHeard<'heard>,
    /// Bytes of the files read before.
    bytes: u64,
    /// Bytes of all files.
    total: u64,
}

impl Reading<'_, '_> {
    /// Reads the files that one element of `data.train` or `data.eval` stands for.
    fn read(&mut self, source: &Path, found: &Found, split: Split) -> Result<(), DataError> {
        if let Some(notice) = &found.notice {
            self.dataset.notices.push(format!("{}: {notice}", source.display()));
        }
        for file in &found.files {
            let mut sink = Sink {
                path: &file.shown,
                split,
                columns: &self.columns,
                wanted: self.config.data.format,
                found: None,
                quarantine: self.quarantine,
                edits: self.edits,
                edited: &mut self.edited,
                kept: &mut self.kept,
                dataset: &mut self.dataset,
                heard: &mut *self.heard,
                bytes: self.bytes,
                total: self.total,
            };
            self.bytes += read_file(&file.path, &mut sink)?;
        }
        Ok(())
    }
}

/// Reads a file. Returns its length in bytes.
fn read_file(path: &Path, sink: &mut Sink) -> Result<u64, DataError> {
    let shown = sink.path;
    let (file, size) = files::open(path).map_err(|error| DataError::read(shown, error))?;
    let Some((content, packing)) = kinds::of(shown) else {
        return Err(DataError::file(shown, format!("not a known kind of dataset; use {KNOWN}")));
    };
    let unpacked = |file| unpack::open(file, size, packing).map_err(|error| DataError::read(shown, error));
    let parse: lines::Parse = if content == Content::Text { lines::text } else { lines::json };
    let is_lines = matches!(content, Content::JsonLines | Content::Text) && packing == Packing::None;
    let lines = if is_lines {
        let stays_open = sink.dataset.rows.contents.has_room_for_a_file();
        let file = stays_open.then(|| file.try_clone().map(Arc::new)).transpose();
        let file = file.map_err(|error| DataError::read(shown, error))?;
        Some(LineFile { file, path: path.into(), parse })
    } else {
        None
    };
    Arc::make_mut(&mut sink.dataset.rows.contents).begin_file(shown, lines);
    match content {
        Content::JsonLines | Content::Text => lines::read(BufReader::new(unpacked(file)?), parse, sink)?,
        Content::Json => json::read(unpacked(file)?, sink)?,
        Content::Table(separator) => table::read(unpacked(file)?, separator, sink)?,
        Content::Parquet => parquet::read(file, sink)?,
    }
    Ok(size)
}

/// Receives the rows of one file.
struct Sink<'read, 'heard> {
    /// As written in the configuration.
    path: &'read Path,
    split: Split,
    columns: &'read Columns,
    wanted: Format,
    /// The format of the file's last usable row.
    found: Option<Detected>,
    quarantine: &'read Quarantine,
    edits: &'read Edits,
    edited: &'read mut HashSet<String>,
    kept: &'read mut HashSet<String>,
    dataset: &'read mut Dataset,
    heard: &'read mut ReadingHeard<'heard>,
    bytes: u64,
    total: u64,
}

impl Sink<'_, '_> {
    /// Takes a row that begins at the line `number`.
    fn row(&mut self, number: usize, value: Result<Value, String>) -> Result<(), DataError> {
        self.line(number, None, value)
    }

    /// Takes a row that is a line of its file, at `place`.
    fn line(
        &mut self,
        number: usize,
        place: Option<Line>,
        value: Result<Value, String>,
    ) -> Result<(), DataError> {
        self.take(number, place, value);
        let dataset = &self.dataset;
        let seen = dataset.rows.len() + dataset.quarantined.len() + dataset.unreadable;
        if seen.is_multiple_of(ROWS_HEARD) {
            let within = place.map_or(0, |line| line.offset);
            let progress =
                ReadProgress { rows: &dataset.rows, bytes: self.bytes + within, total: self.total };
            if (self.heard)(&progress).is_break() {
                return Err(DataError::Cancelled);
            }
        }
        Ok(())
    }

    fn take(&mut self, line: usize, place: Option<Line>, value: Result<Value, String>) {
        let read = value.and_then(|value| self.example(value));
        match read.and_then(|(shaped, detected)| Ok((self.edited(shaped)?, detected))) {
            Ok(((shaped, original), detected)) => {
                let origin = self.origin(line);
                self.count_unused(shaped.unused, detected.format, &origin);
                let (example, extras) = (shaped.example, shaped.extras);
                let row = Row { index: self.dataset.rows.len(), origin, split: self.split, example, extras };
                // An edited row is not what stands in its file.
                let place = place.filter(|_| original.is_none());
                let head = self.dataset.rows.head_of(&row, place, &detected, original);
                // An edit takes no row out of quarantine.
                let before = head.is_edited().then(|| head.hash_in_file());
                if self.is_left_out(head.hash()) || before.is_some_and(|hash| self.is_left_out(hash)) {
                    self.dataset.quarantined.heads_mut().push(head);
                } else {
                    self.dataset.rows.heads_mut().push(head);
                }
            }
            Err(message) => {
                self.dataset.unreadable += 1;
                if self.dataset.problems.len() < MAX_PROBLEMS {
                    let origin = self.origin(line);
                    let kind = RowProblemKind::Unreadable;
                    self.dataset.problems.push(RowProblem { kind, origin, row: None, message });
                }
            }
        }
    }

    /// A row as the user has edited it, with what it is in its file; as it is, if it is not edited.
    fn edited(&mut self, shaped: Shaped) -> Result<(Shaped, Option<Original>), String> {
        if self.edits.is_empty() {
            return Ok((shaped, None));
        }
        let hash = hash_of_content(&shaped.example, &shaped.extras);
        let original = Original { hash, label: shaped.extras.label };
        let Some(replacement) = self.edits.replacement(&original.key(), self.columns.wanted) else {
            return Ok((shaped, None));
        };
        self.edited.insert(original.key());
        let mut replaced = replacement?;
        replaced.extras.group = shaped.extras.group;
        Ok((replaced, Some(original)))
    }

    /// Whether the quarantine lists a row with this hash.
    fn is_left_out(&mut self, hash: String) -> bool {
        self.quarantine.contains(&hash) || (self.quarantine.contains_copies(&hash) && !self.kept.insert(hash))
    }

    /// Says something about the file as a whole.
    fn notice(&mut self, what: &str) {
        self.dataset.notices.push(format!("{}: {what}", self.path.display()));
    }

    fn origin(&self, line: usize) -> Origin {
        Origin { file: self.path.to_path_buf(), line }
    }

    fn count_unused(&mut self, names: Vec<String>, format: Format, first: &Origin) {
        let Dataset { unused, has_more_unused, .. } = &mut *self.dataset;
        for name in names {
            if let Some(field) = unused.iter_mut().find(|field| field.name == name) {
                field.rows += 1;
            } else if unused.len() < MAX_UNUSED {
                unused.push(UnusedField { name, rows: 1, first: first.clone(), format });
            } else {
                *has_more_unused = true;
            }
        }
    }

    fn example(&mut self, value: Value) -> Result<(Shaped, Detected), String> {
        let (fields, group) = self.columns.fields(value)?;
        let detected = match (self.wanted, &self.found) {
            (Format::Auto, Some(found)) => self.columns.detect_again(found, &fields),
            (Format::Auto, None) => self.columns.detect(&fields)?,
            (wanted, _) => wanted.into(),
        };
        self.columns.check_taken(detected.format)?;
        let shaped = self.columns.shape(&detected, fields, group)?;
        if self.found.is_none() && !detected.columns.is_empty() {
            let columns = detected.columns.iter().map(|(role, column)| format!("{role} = {column:?}"));
            let columns: Vec<String> = columns.collect();
            self.dataset.notices.push(format!(
                "{}: read as data.columns = {{ {} }}",
                self.path.display(),
                columns.join(", ")
            ));
        }
        self.found = Some(detected.clone());
        Ok((shaped, detected))
    }
}

/// Chooses the held-out rows. Rows in quarantine take part, so that setting rows aside moves no other row between
/// training and evaluation.
fn hold_out(rows: &mut Vec<RowHead>, quarantined: &mut Vec<RowHead>, fraction: f64, seed: u64, by_row: bool) {
    let used = rows.len();
    rows.append(quarantined);
    split::hold_out(rows, fraction, seed, by_row);
    *quarantined = rows.split_off(used);
    let held_out = rows.iter().filter(|row| row.split == Split::Eval).count();
    let is_one_sided = held_out == 0 || held_out == used;
    if is_one_sided && used > 1 && fraction > 0.0 {
        for row in rows.iter_mut() {
            row.split = Split::Train;
        }
        split::hold_out(rows, fraction, seed, by_row);
    }
}

/// What a split of rows comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitSizes {
    pub train: usize,
    pub held_out: usize,
    /// Held-out rows whose prompt, or whose value of `data.group_by`, is also trained on.
    pub shared: usize,
}

impl SplitSizes {
    /// The split that rows have.
    pub fn of(rows: &Rows) -> Self {
        Self::of_heads(rows.heads())
    }

    fn of_heads(heads: &[RowHead]) -> Self {
        let of = |split: Split| heads.iter().filter(move |row| row.split == split);
        let trained: HashSet<u64> = of(Split::Train).map(|row| row.group).collect();
        Self {
            train: of(Split::Train).count(),
            held_out: of(Split::Eval).count(),
            shared: of(Split::Eval).filter(|row| trained.contains(&row.group)).count(),
        }
    }
}

/// What it comes to if `fraction` of the rows is held out. Rows of files that are all held out do not take part.
pub fn split_sizes(
    rows: &Rows,
    quarantined: &Rows,
    config: &Config,
    fraction: f64,
    by_row: bool,
) -> SplitSizes {
    let is_fraction = matches!(config.data.eval, EvalSource::Fraction(_));
    let train = |rows: &Rows| -> Vec<RowHead> {
        let heads = rows.heads().iter().filter(|row| is_fraction || row.split == Split::Train);
        // A row that its source's share repeats is split once.
        let mut seen = HashSet::new();
        let mut heads: Vec<RowHead> =
            heads.filter(|row| seen.insert((row.file_number(), row.line))).copied().collect();
        for head in &mut heads {
            head.split = Split::Train;
        }
        heads
    };
    let mut used = train(rows);
    hold_out(&mut used, &mut train(quarantined), fraction, config.train.seed, by_row);
    SplitSizes::of_heads(&used)
}

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod tests;
