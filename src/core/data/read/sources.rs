//! The files that an element of `data.train` or `data.eval` stands for: one file, a folder, a pattern, or a dataset
//! of the hub.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use super::kinds::{self, Content, KNOWN};
use crate::data::{DataError, Split};
use crate::files::Folder;
use crate::hub::HubModel;
use crate::model::ModelError;
use crate::model::hub::HubCache;
use crate::units::counted;

/// Deepest folder below the one named.
const MAX_DEPTH: usize = 32;
/// Most files and folders looked at for one element.
const MAX_ENTRIES: usize = 1 << 20;
/// Most names listed in one message.
const SHOWN_NAMES: usize = 5;

/// Words in names of files and folders that hold training rows.
const TRAIN_WORDS: [&str; 2] = ["train", "training"];
/// Words in names of files and folders that hold rows for evaluation.
const HELD_OUT_WORDS: [&str; 8] =
    ["test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"];

/// Texts beside a dataset that are not part of it, by the first word of their names.
const ABOUT_WORDS: [&str; 8] =
    ["readme", "license", "licence", "notice", "copying", "citation", "changelog", "requirements"];
/// What the library `datasets` writes beside the rows.
const DESCRIPTIONS: [&str; 4] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

/// How a pattern is matched: `*` stays within a name and skips hidden files, as in a shell.
const MATCHING: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// Opens the hub's download cache, for the elements that need it.
pub(super) type OpenCache<'a> = &'a dyn Fn() -> Result<HubCache, ModelError>;

/// What an element stands for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// In reading order.
    pub files: Vec<DataFile>,
    /// What was decided about the files, for the user.
    pub notice: Option<String>,
    /// Whether the element names the file itself.
    pub is_named: bool,
}

/// A dataset file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    pub path: PathBuf,
    /// As messages and rows name it: from the project folder on, or below the dataset of the hub.
    pub shown: PathBuf,
}

/// The files that `source` stands for, for this part of the dataset.
pub(super) fn find(
    source: &Path,
    project: &Path,
    split: Split,
    cache: OpenCache,
) -> Result<Found, DataError> {
    if let Some(name) = source.to_str().filter(|name| HubModel::is_meant_by(name)) {
        return hub_dataset(name, split, cache);
    }
    let path = project.join(source);
    if path.is_dir() {
        folder(source, &path, project, split)
    } else if is_pattern(source) && path.symlink_metadata().is_err() {
        pattern(source, project)
    } else {
        let files = vec![DataFile { path, shown: source.to_owned() }];
        Ok(Found { files, notice: None, is_named: true })
    }
}

impl Found {
    fn add_notice(&mut self, more: &str) {
        let notice = self.notice.take().map_or_else(|| more.to_owned(), |notice| format!("{notice}; {more}"));
        self.notice = Some(notice);
    }
}

/// Takes files that are held out, or read already, from those that a folder, pattern or dataset found for training.
pub(super) fn keep_apart(sources: &mut [(&Path, Found)], held_out: &[&Found]) -> Result<(), DataError> {
    let real = |file: &DataFile| file.path.canonicalize().unwrap_or_else(|_| file.path.clone());
    let held_out: HashSet<PathBuf> = held_out.iter().flat_map(|found| &found.files).map(real).collect();
    let mut read: HashSet<PathBuf> = HashSet::new();
    for (source, found) in sources {
        let all = found.files.len();
        found.files.retain(|file| read.insert(real(file)));
        if found.files.len() < all {
            let files = counted(all - found.files.len(), "file is", "files are");
            found.add_notice(&format!("{files} read already for another entry of data.train"));
        }
        let before = found.files.len();
        found.files.retain(|file| !held_out.contains(&real(file)));
        let removed = before - found.files.len();
        if removed > 0 && found.files.is_empty() {
            let what = if found.is_named { "it is" } else { "all its files are" };
            return Err(DataError::file(
                *source,
                format!("{what} both in data.train and in data.eval; set data.eval to a share such as 0.1"),
            ));
        }
        if removed > 0 {
            let files = counted(removed, "file is", "files are");
            found.add_notice(&format!("{files} held out by data.eval, and so not trained on"));
        }
    }
    Ok(())
}

/// Whether a path is written as a pattern.
fn is_pattern(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte))
}

fn folder(source: &Path, path: &Path, project: &Path, split: Split) -> Result<Found, DataError> {
    let real = |path: &Path| path.canonicalize().map_err(|error| DataError::read(source, error));
    if real(path)? == real(project)? {
        return Err(DataError::file(
            source,
            "the project folder itself, which holds runs as well; put the data into a folder of its own",
        ));
    }
    let names = dataset_files(path, source)?;
    let file = |name: PathBuf| DataFile { path: path.join(&name), shown: source.join(&name) };
    let (names, notice) = of_split(names, split);
    Ok(Found { files: names.into_iter().map(file).collect(), notice, is_named: false })
}

fn hub_dataset(name: &str, split: Split, cache: OpenCache) -> Result<Found, DataError> {
    let fail = |message: String| DataError::file(name, message);
    let no_name = |problem: &str| {
        fail(format!("names no dataset of the hub: {problem}; write hf:org/name or hf:org/name@revision"))
    };
    let dataset = HubModel::parse(name).map_err(|error| no_name(error.problem))?;
    if dataset.file().is_some() {
        return Err(no_name("it ends with a model's file"));
    }
    let cache = cache().map_err(|error| fail(error.to_string()))?;
    let folder = cache.find_dataset(&dataset).ok_or_else(|| {
        let revision = match dataset.revision() {
            "main" => String::new(),
            revision => format!(" --revision {revision}"),
        };
        fail(format!(
            "not in the hub's download cache ({}); fetch it with `hf download {} --repo-type dataset{revision}`",
            cache.dataset(&dataset).display(),
            dataset.repository()
        ))
    })?;
    let names = dataset_files(&folder, Path::new(name))?;
    let within = Folder::open(&folder).map_err(|error| fail(error.to_string()))?;
    let (names, notice) = of_split(names, split);
    let mut files = Vec::with_capacity(names.len());
    for name_below in names {
        let shown = Path::new(name).join(&name_below);
        match within.find(&name_below) {
            Ok(Some(path)) => files.push(DataFile { path, shown }),
            Ok(None) => return Err(DataError::file(shown, "a link to a file that is gone; fetch it again")),
            Err(error) => return Err(DataError::file(shown, error.to_string())),
        }
    }
    Ok(Found { files, notice, is_named: false })
}

/// The dataset files below a folder by their names below it; never none.
fn dataset_files(folder: &Path, shown: &Path) -> Result<Vec<PathBuf>, DataError> {
    let names = Walk::of(folder, shown, MAX_DEPTH, false)?;
    let (files, others): (Vec<PathBuf>, Vec<PathBuf>) = names.into_iter().partition(|name| is_dataset(name));
    if !files.is_empty() {
        return Ok(files);
    }
    let is_arrow = |name: &PathBuf| name.extension().is_some_and(|ending| ending == "arrow");
    let more = if others.iter().any(is_arrow) {
        ". Arrow files are not read: load them with Python's `datasets` and write them with to_parquet"
    } else {
        ""
    };
    Err(DataError::file(shown, format!("a folder without a dataset file: looked for {KNOWN}{more}")))
}

fn is_dataset(name: &Path) -> bool {
    let Some((content, _)) = kinds::of(name) else { return false };
    let name = name.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if !matches!(content, Content::Text | Content::Json) {
        return true;
    }
    let first = words(&name).next().unwrap_or_default();
    !ABOUT_WORDS.contains(&first) && !DESCRIPTIONS.contains(&name.as_str())
}

/// The runs of letters in a name.
fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(|character: char| !character.is_alphabetic()).filter(|word| !word.is_empty())
}

/// The part of a dataset that a file's name, or else the nearest folder's, says it belongs to.
fn named_split(name: &Path) -> Option<Split> {
    name.components().rev().find_map(|component| {
        let name = component.as_os_str().to_string_lossy().to_lowercase();
        let says = |wanted: &[&str]| words(&name).any(|word| wanted.contains(&word));
        if says(&TRAIN_WORDS) {
            Some(Split::Train)
        } else if says(&HELD_OUT_WORDS) {
            Some(Split::Eval)
        } else {
            None
        }
    })
}

/// Of a dataset whose files are named for training and for evaluation, the files of one part, and what is said
/// about the others.
fn of_split(names: Vec<PathBuf>, split: Split) -> (Vec<PathBuf>, Option<String>) {
    let count = |wanted: Option<Split>| names.iter().filter(|name| named_split(name) == wanted).count();
    let (train, held_out, others) = (count(Some(Split::Train)), count(Some(Split::Eval)), count(None));
    if train == 0 || held_out == 0 {
        return (names, None);
    }
    let train_files = counted(train, "train file", "train files");
    let held_out_files = counted(held_out, "file", "files");
    let be = |count: usize| if count == 1 { "is" } else { "are" };
    let look = if held_out == 1 { "looks like a test split" } else { "look like test splits" };
    let mut notice = match split {
        Split::Train => {
            format!("{train_files} {} read; {held_out_files} that {look} {} not", be(train), be(held_out))
        }
        Split::Eval => {
            format!("{held_out_files} that {look} {} read; {train_files} {} not", be(held_out), be(train))
        }
    };
    if others > 0 {
        let files = counted(others, "file", "files");
        notice = format!("{notice}, nor {} {files} of no named split", be(others));
    }
    let names = names.into_iter().filter(|name| named_split(name) == Some(split)).collect();
    (names, Some(notice))
}

fn pattern(source: &Path, project: &Path) -> Result<Found, DataError> {
    let fail = |message: String| DataError::file(source, message);
    let fixed: PathBuf = source.components().take_while(|part| !is_pattern(Path::new(part))).collect();
    let varying: PathBuf = source.components().skip(fixed.components().count()).collect();
    let text = varying.to_str().ok_or_else(|| fail("a pattern that is not UTF-8".to_owned()))?;
    let pattern = Pattern::new(text).map_err(|error| {
        fail(format!("not a pattern: {} (`*`, `?`, `[a-z]` and `**` are known)", error.msg))
    })?;
    let parts = varying.components().count();
    let depth = if text.contains("**") { MAX_DEPTH } else { parts.saturating_sub(1) };
    let hidden = varying.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."));
    let base = project.join(&fixed);
    let names = if base.is_dir() { Walk::of(&base, source, depth, hidden)? } else { Vec::new() };
    let matched: Vec<PathBuf> =
        names.into_iter().filter(|name| pattern.matches_path_with(name, MATCHING)).collect();
    if matched.is_empty() {
        return Err(fail(format!("no file matches this pattern (looked in {})", base.display())));
    }
    let unknown: Vec<&PathBuf> = matched.iter().filter(|name| kinds::of(name).is_none()).collect();
    if !unknown.is_empty() {
        let mut shown: Vec<String> =
            unknown.iter().take(SHOWN_NAMES).map(|name| fixed.join(name).display().to_string()).collect();
        if unknown.len() > SHOWN_NAMES {
            shown.push("…".to_owned());
        }
        return Err(fail(format!(
            "{} of the {} files that match are not of a known kind ({}); narrow the pattern to {KNOWN}",
            unknown.len(),
            matched.len(),
            shown.join(", ")
        )));
    }
    let file = |name: PathBuf| DataFile { path: base.join(&name), shown: fixed.join(&name) };
    Ok(Found { files: matched.into_iter().map(file).collect(), notice: None, is_named: false })
}

/// The ordinary files below a folder.
struct Walk<'a> {
    root: &'a Path,
    /// As the user wrote it, for errors.
    shown: &'a Path,
    /// Whether hidden files and folders count.
    hidden: bool,
    entries: usize,
    /// Folders by device and number: links may lead back.
    seen: HashSet<(u64, u64)>,
    /// Names below the root.
    files: Vec<PathBuf>,
}

impl<'a> Walk<'a> {
    /// Names below `root`, sorted by their parts, with at most `depth` folders before a file.
    fn of(root: &'a Path, shown: &'a Path, depth: usize, hidden: bool) -> Result<Vec<PathBuf>, DataError> {
        let (seen, files) = (HashSet::new(), Vec::new());
        let mut walk = Walk { root, shown, hidden, entries: 0, seen, files };
        walk.folder(Path::new(""), depth)?;
        walk.files.sort_unstable();
        Ok(walk.files)
    }

    fn folder(&mut self, below: &Path, depth: usize) -> Result<(), DataError> {
        let path = self.root.join(below);
        let shown = self.shown;
        let fail = |error: io::Error| {
            let text = format!("cannot read the folder {}: {error}", path.display());
            DataError::file(shown, text)
        };
        let found = fs::metadata(&path).map_err(fail)?;
        if !self.seen.insert((found.dev(), found.ino())) {
            return Ok(());
        }
        let mut folders = Vec::new();
        for entry in fs::read_dir(&path).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                let text = format!("more than {MAX_ENTRIES} files and folders; name the ones that are meant");
                return Err(DataError::file(shown, text));
            }
            if !self.hidden && is_hidden(&name) {
                continue;
            }
            // A link may lead nowhere; whether it is read shows by its name.
            let is_folder = path.join(&name).is_dir();
            if is_folder {
                folders.push(below.join(&name));
            } else {
                self.files.push(below.join(&name));
            }
        }
        // Links make the same folder appear at several places: the first by name counts.
        folders.sort_unstable();
        match depth.checked_sub(1) {
            Some(depth) => folders.iter().try_for_each(|folder| self.folder(folder, depth)),
            None => Ok(()),
        }
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") || name.as_encoded_bytes().starts_with(b"__")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use pretty_assertions::assert_eq;

    use super::*;

    fn project(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        folder
    }

    fn no_cache() -> Result<HubCache, ModelError> {
        Err(ModelError::NoHubCache)
    }

    fn found(project: &Path, source: &str, split: Split) -> Found {
        find(Path::new(source), project, split, &no_cache).unwrap_or_else(|error| panic!("{error}"))
    }

    fn shown(found: &Found) -> Vec<String> {
        found.files.iter().map(|file| file.shown.display().to_string()).collect()
    }

    fn refused(project: &Path, source: &str) -> String {
        find(Path::new(source), project, Split::Train, &no_cache).unwrap_err().to_string()
    }

    #[test]
    fn patterns_match_in_the_order_of_names() {
        let project = project(&[
            "part-2.jsonl",
            "part-10.jsonl",
            "part-1.jsonl",
            ".part-0.jsonl",
            "data/a/x.csv",
            "data/b/x.csv",
            "data/b/c/y.csv",
            "data/.git/z.csv",
            "odd[1].jsonl",
        ]);
        let names = |source: &str| shown(&found(project.path(), source, Split::Train));
        assert_eq!(names("part-*.jsonl"), ["part-1.jsonl", "part-10.jsonl", "part-2.jsonl"]);
        assert_eq!(names("part-?.jsonl"), ["part-1.jsonl", "part-2.jsonl"]);
        assert_eq!(names("./part-[2-9].jsonl"), ["./part-2.jsonl"]);
        assert_eq!(names("data/*/x.csv"), ["data/a/x.csv", "data/b/x.csv"]);
        assert_eq!(names("data/**/*.csv"), ["data/a/x.csv", "data/b/c/y.csv", "data/b/x.csv"]);
        assert_eq!(names("data/.git/*"), ["data/.git/z.csv"]);
        let absolute = project.path().join("data/b/*.csv");
        assert_eq!(
            names(absolute.to_str().unwrap()),
            [project.path().join("data/b/x.csv").to_str().unwrap()]
        );
        // A file of that very name is that file.
        assert_eq!(names("odd[1].jsonl"), ["odd[1].jsonl"]);
        assert!(found(project.path(), "odd[1].jsonl", Split::Train).is_named);
    }

    #[test]
    fn patterns_that_cannot_be_read_say_why() {
        let project = project(&["a.jsonl", "b.md", "c.xlsx"]);
        let nothing = refused(project.path(), "gone/*.jsonl");
        assert!(nothing.starts_with("gone/*.jsonl: no file matches this pattern"), "{nothing}");
        let unknown = refused(project.path(), "*");
        assert!(unknown.contains("2 of the 3 files") && unknown.contains("(b.md, c.xlsx)"), "{unknown}");
        assert!(unknown.contains(KNOWN), "{unknown}");
        assert!(refused(project.path(), "a***.jsonl").contains("not a pattern"));
        assert!(refused(project.path(), "[a.jsonl").contains("not a pattern"));
    }

    #[test]
    fn folders_hold_their_dataset_files_alone() {
        let project = project(&[
            "data/b.jsonl",
            "data/a.csv.gz",
            "data/inner/c.parquet",
            "data/README.txt",
            "data/LICENSE.txt",
            "data/dataset_info.json",
            "data/state.json",
            "data/.hidden.jsonl",
            "data/.git/d.jsonl",
            "data/notes.md",
            "data/notice.jsonl",
            "empty/notes.md",
            "saved/data-00000-of-00001.arrow",
        ]);
        let data = found(project.path(), "data", Split::Train);
        let names = ["data/a.csv.gz", "data/b.jsonl", "data/inner/c.parquet", "data/notice.jsonl"];
        assert_eq!((shown(&data), data.notice), (names.map(str::to_owned).to_vec(), None));
        let empty = refused(project.path(), "empty");
        assert!(
            empty.starts_with("empty: a folder without a dataset file") && empty.contains(KNOWN),
            "{empty}"
        );
        assert!(refused(project.path(), "saved").contains("to_parquet"));
        assert!(refused(project.path(), ".").contains("the project folder itself"));
    }

    #[test]
    fn links_within_a_folder_do_not_lead_in_circles() {
        let project = project(&["data/a/x.jsonl", "outside/y.jsonl"]);
        symlink("..", project.path().join("data/a/up")).unwrap();
        symlink("../outside", project.path().join("data/more")).unwrap();
        symlink("nowhere", project.path().join("data/z.jsonl")).unwrap();
        let data = found(project.path(), "data", Split::Train);
        assert_eq!(shown(&data), ["data/a/x.jsonl", "data/more/y.jsonl", "data/z.jsonl"]);
    }

    #[test]
    fn parts_are_told_apart_by_names_of_files_and_folders() {
        for (name, wanted) in [
            ("train-00000-of-00002.parquet", Some(Split::Train)),
            ("data/train_sft.parquet", Some(Split::Train)),
            ("test/part-1.jsonl", Some(Split::Eval)),
            ("train/test.jsonl", Some(Split::Eval)),
            ("Validation.csv", Some(Split::Eval)),
            ("dev2.jsonl", Some(Split::Eval)),
            ("latest.jsonl", None),
            ("trained/device.jsonl", None),
        ] {
            assert_eq!(named_split(Path::new(name)), wanted, "{name}");
        }
        let folder = project(&[
            "data/train-1.jsonl",
            "data/train-2.jsonl",
            "data/test.jsonl",
            "data/more.jsonl",
            "half/test.jsonl",
            "half/more.jsonl",
        ]);
        let train = found(folder.path(), "data", Split::Train);
        assert_eq!(shown(&train), ["data/train-1.jsonl", "data/train-2.jsonl"]);
        assert_eq!(
            train.notice.unwrap(),
            "2 train files are read; 1 file that looks like a test split is not, nor is 1 file of no named split"
        );
        let eval = found(folder.path(), "data", Split::Eval);
        assert_eq!(shown(&eval), ["data/test.jsonl"]);
        assert!(
            eval.notice.unwrap().starts_with("1 file that looks like a test split is read; 2 train files")
        );
        let half = found(folder.path(), "half", Split::Train);
        assert_eq!((half.files.len(), half.notice), (2, None));
    }

    #[test]
    fn held_out_files_are_not_trained_on() {
        let project = project(&["a.jsonl", "b.jsonl", "held.jsonl"]);
        let held = found(project.path(), "held.jsonl", Split::Eval);
        let apart = |source: &'static str| {
            let mut sources = [(Path::new(source), found(project.path(), source, Split::Train))];
            keep_apart(&mut sources, &[&held]).map(|()| {
                let [(_, found)] = sources;
                (shown(&found), found.notice)
            })
        };
        let (names, notice) = apart("*.jsonl").unwrap();
        assert_eq!(names, ["a.jsonl", "b.jsonl"]);
        assert_eq!(notice.unwrap(), "1 file is held out by data.eval, and so not trained on");
        assert_eq!(apart("a.jsonl").unwrap(), (vec!["a.jsonl".to_owned()], None));
        for source in ["./held.jsonl", "h*.jsonl"] {
            let error = apart(source).unwrap_err().to_string();
            assert!(error.contains("both in data.train and in data.eval"), "{error}");
        }
    }

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn datasets_of_the_hub_are_read_from_its_cache() {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("datasets--org--name");
        let snapshot = repository.join("snapshots").join(COMMIT);
        for below in ["blobs", "refs"] {
            fs::create_dir_all(repository.join(below)).unwrap();
        }
        fs::create_dir_all(snapshot.join("data")).unwrap();
        fs::write(repository.join("refs/main"), COMMIT).unwrap();
        fs::write(repository.join("blobs/f00d"), b"").unwrap();
        for name in ["train.jsonl", "test.jsonl"] {
            symlink("../../../blobs/f00d", snapshot.join("data").join(name)).unwrap();
        }
        fs::write(snapshot.join("README.md"), b"").unwrap();
        let cache = || Ok(HubCache::new(folder.path().to_owned()));
        let find = |name: &str| find(Path::new(name), Path::new("/"), Split::Train, &cache);
        for name in ["hf:org/name".to_owned(), format!("hf:org/name@{COMMIT}")] {
            let found = find(&name).unwrap();
            assert_eq!(shown(&found), [format!("{name}/data/train.jsonl")]);
            assert_eq!(found.files[0].path, snapshot.join("data/train.jsonl"));
            assert!(found.notice.unwrap().starts_with("1 train file is read; 1 file that looks like"));
        }
        let missing = find("hf:org/other@v1").unwrap_err().to_string();
        assert!(missing.contains("datasets--org--other"), "{missing}");
        assert!(missing.contains("`hf download org/other --repo-type dataset --revision v1`"), "{missing}");
        for wrong in ["hf:name", "hf:org/name:a.gguf", "hf:../name"] {
            assert!(find(wrong).unwrap_err().to_string().contains("names no dataset of the hub"), "{wrong}");
        }
        // A link out of the dataset's own blobs.
        symlink("/etc/hostname", snapshot.join("data/train-2.jsonl")).unwrap();
        assert!(find("hf:org/name").unwrap_err().to_string().contains("outside of the folder"));
    }
}
