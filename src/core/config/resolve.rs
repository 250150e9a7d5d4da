//! From text to a checked [`Config`]: finds the key of each value, reads it, checks keys against each other, and collects
//! every problem.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use indexmap::IndexMap;

use super::fields::{Fault, Field};
use super::keys::{Key, REMOVED_KEYS, RemovedKey, key};
use super::kinds::Kind;
use super::load::FILE_NAME;
use super::names::nearest;
use super::problems::{Problem, Problems, Source};
use super::raw::{self, Located, Name, Raw};
use super::rules;
use super::sections::{Config, KEYS};

/// No more problems are collected than these.
pub(super) const MOST_PROBLEMS: usize = 200;

/// Where a key was given.
#[derive(Debug)]
struct Entry {
    source: usize,
    name: Range<usize>,
    value: Located,
}

/// The values given for the keys, by the file and by the overrides over it.
#[derive(Debug)]
pub(super) struct Reader {
    sources: Vec<Source>,
    entries: BTreeMap<&'static str, Entry>,
    /// Single columns given by overrides, on top of the file's table.
    columns: Vec<(&'static Key, usize, Located)>,
    headers: BTreeMap<String, Range<usize>>,
    faulty: BTreeSet<&'static str>,
    /// Keys and sections suggested for a misspelt name.
    meant: BTreeSet<String>,
    problems: Vec<(usize, Problem)>,
}

/// Reads the first source as a file and each further one as `section.key=value` over it.
pub(super) fn resolve(sources: Vec<Source>) -> Result<Config, Problems> {
    let mut reader = Reader {
        sources,
        entries: BTreeMap::new(),
        columns: Vec::new(),
        headers: BTreeMap::new(),
        faulty: BTreeSet::new(),
        meant: BTreeSet::new(),
        problems: Vec::new(),
    };
    let mut document = raw::document(&reader.sources[0]);
    reader.walk(0, "", std::mem::take(&mut document.entries));
    for source in 1..reader.sources.len() {
        reader.read_override(source);
    }
    let mut config = Config::default();
    reader.fill(&mut config);
    if document.problems.is_empty() {
        reader.require();
        rules::check(&config, &mut reader);
    }
    reader.problems.retain(|(source, problem)| *source > 0 || !document.is_unread(problem.line));
    reader.problems.extend(document.problems.into_iter().map(|problem| (0, problem)));
    if reader.problems.is_empty() {
        return Ok(config);
    }
    reader.problems.sort_by_key(|(source, problem)| (*source, problem.line, problem.column));
    Err(Problems(reader.problems.into_iter().map(|(_, problem)| problem).collect()))
}

impl Reader {
    fn report(&mut self, source: usize, span: Range<usize>, key: &str, message: &str, help: Option<&str>) {
        if self.problems.len() >= MOST_PROBLEMS {
            return;
        }
        let problem = Problem::new(&self.sources[source], span, message).key(key);
        self.problems.push((
            source,
            match help {
                Some(help) => problem.help(help),
                None => problem,
            },
        ));
    }

    /// Finds the keys of the entries below `prefix`.
    fn walk(&mut self, source: usize, prefix: &str, entries: Vec<(Name, Located)>) {
        for (name, value) in entries {
            let path = if prefix.is_empty() { name.text.clone() } else { format!("{prefix}.{}", name.text) };
            if let Some(key) = key(&path) {
                self.entries.insert(key.path, Entry { source, name: name.span, value });
            } else if is_section(&path) {
                match value.value {
                    Raw::Table(below) => {
                        if source == 0 {
                            self.headers.insert(path.clone(), name.span);
                        }
                        self.walk(source, &path, below);
                    }
                    _ => self.report_flat_section(source, &path, name.span),
                }
            } else if let Some(removed) = removed_key(&path) {
                let is_its_value = matches!(&value.value, Raw::Text(text) if text == removed.value);
                if !(is_its_value && self.is_older_file(source)) {
                    self.report_removed(source, name.span.start..value.span.end, removed);
                }
            } else {
                let is_table = matches!(value.value, Raw::Table(_));
                self.report_unknown(source, prefix, &path, &name, is_table);
            }
        }
    }

    fn report_flat_section(&mut self, source: usize, path: &str, span: Range<usize>) {
        let message = format!("`{path}` is a section, which takes keys, not a value");
        let help = match below(path).next() {
            Some(first) if path.contains('.') => format!("write {{ {first} = … }}"),
            _ => format!("write [{path}] on a line of its own, its keys below it"),
        };
        self.report(source, span, path, &message, Some(&help));
    }

    /// A run's `config.toml` and a queued sweep may have been written by an earlier version.
    fn is_older_file(&self, source: usize) -> bool {
        source == 0 && !self.sources[0].file().ends_with(FILE_NAME)
    }

    fn report_removed(&mut self, source: usize, span: Range<usize>, removed: &RemovedKey) {
        let message = format!("`{}` is no longer a setting: {}", removed.path, removed.why);
        self.report(source, span, removed.path, &message, Some("remove this line"));
    }

    fn report_unknown(&mut self, source: usize, prefix: &str, path: &str, name: &Name, is_table: bool) {
        let text = name.text.as_str();
        let message = match (prefix, is_table) {
            ("", true) => format!("unknown section [{text}]"),
            ("", false) => format!("unknown key `{text}` outside any section"),
            _ => format!("unknown key `{text}` in [{prefix}]"),
        };
        let help = if let Some(near) = nearest(text, below(prefix)) {
            self.meant.insert(if prefix.is_empty() { near.to_owned() } else { format!("{prefix}.{near}") });
            format!("did you mean `{near}`?")
        } else if let Some(key) = KEYS.iter().find(|key| key.name() == text) {
            format!("`{text}` belongs in [{}]", key.section())
        } else if let Some(near) = nearest(text, KEYS.iter().map(Key::name)) {
            let key = KEYS.iter().find(|key| key.name() == near);
            format!("did you mean `{}`?", key.map_or(near, |key| key.path))
        } else {
            let valid: Vec<_> = below(prefix).collect();
            format!("there is {}", valid.join(", "))
        };
        self.report(source, name.span.clone(), path, &message, Some(&help));
    }

    /// Reads one `section.key=value`.
    fn read_override(&mut self, source: usize) {
        let text = self.sources[source].text().to_owned();
        let Some((written, _)) = text.split_once('=') else {
            let help = "write section.key=value, such as train.learning_rate=1e-4";
            self.report(source, 0..text.len(), "", "has no `=`", Some(help));
            return;
        };
        let path = written.trim();
        let start = written.len() - written.trim_start().len();
        let name = start..start + path.len();
        let given = text[written.len() + 1..].trim_start();
        let offset = text.len() - given.len();
        let found = key(path);
        let column = path.rsplit_once('.').filter(|_| found.is_none()).and_then(|(above, role)| {
            key(above).filter(|key| matches!(key.kind, Kind::Columns(_))).map(|key| (key, role))
        });
        if let Some(key) = found {
            if let Some(value) = self.override_value(source, offset, key.kind.is_text()) {
                self.entries.insert(key.path, Entry { source, name, value });
            } else {
                self.faulty.insert(key.path);
            }
        } else if let Some((key, role)) = column {
            if let Some(value) = self.override_value(source, offset, true) {
                let span = value.span.clone();
                let role = Name { text: role.to_owned(), span: name };
                self.columns.push((key, source, Located { value: Raw::Table(vec![(role, value)]), span }));
            }
        } else if is_section(path) {
            match self.override_value(source, offset, false) {
                Some(Located { value: Raw::Table(below), .. }) => self.walk(source, path, below),
                Some(_) => self.report_flat_section(source, path, name),
                None => {}
            }
        } else if let Some(removed) = removed_key(path) {
            self.report_removed(source, start..text.len(), removed);
        } else if let Some((section, _)) = path.split_once('.').filter(|(section, _)| !is_section(section)) {
            let unknown = Name { text: section.to_owned(), span: name.start..name.start + section.len() };
            self.report_unknown(source, "", path, &unknown, true);
        } else {
            let (prefix, last) = path.rsplit_once('.').unwrap_or(("", path));
            let prefix = if is_section(prefix) { prefix } else { "" };
            let unknown = Name { text: last.to_owned(), span: name };
            self.report_unknown(source, prefix, path, &unknown, false);
        }
    }

    /// The value of an override: TOML, or a text without its quotes.
    fn override_value(&mut self, source: usize, offset: usize, is_text: bool) -> Option<Located> {
        let text = &self.sources[source].text()[offset..];
        let bare =
            Located { value: Raw::Text(text.trim_end().to_owned()), span: offset..offset + text.len() };
        let opens = |marks: &[char]| text.starts_with(marks);
        match raw::value(&self.sources[source], offset) {
            Ok(Located { value: Raw::Date, .. }) => Some(bare),
            Ok(value) if is_text && !matches!(value.value, Raw::Text(_)) => Some(bare),
            Ok(value) => Some(value),
            Err(problem) if opens(&['"', '\'']) || (!is_text && opens(&['[', '{'])) => {
                self.problems.push((source, *problem));
                None
            }
            Err(_) => Some(bare),
        }
    }

    /// Reads every key given into `config`.
    fn fill(&mut self, config: &mut Config) {
        let mut faults: Vec<(&'static Key, usize, Fault)> = Vec::new();
        for key in KEYS {
            let Some(entry) = self.entries.get(key.path) else { continue };
            let source = &self.sources[entry.source];
            if let Err(fault) = (key.read)(config, &entry.value, &key.kind, source) {
                faults.push((key, entry.source, fault));
            }
        }
        for (key, source, table) in &self.columns {
            match IndexMap::<String, String>::read(table, &key.kind, &self.sources[*source]) {
                Ok(columns) => config.data.columns.extend(columns),
                Err(fault) => faults.push((key, *source, fault)),
            }
        }
        for (key, source, fault) in faults {
            self.faulty.insert(key.path);
            let message = format!("`{}` {}", key.path, fault.message);
            self.report(source, fault.span, key.path, &message, fault.help.as_deref());
        }
    }

    /// Reports required keys that are not given.
    fn require(&mut self) {
        for key in KEYS.iter().filter(|key| key.required) {
            let is_given = self.entries.contains_key(key.path) || self.faulty.contains(key.path);
            if is_given || self.meant.contains(key.path) || self.meant.contains(key.section()) {
                continue;
            }
            let message = format!("`{}` is missing", key.path);
            let help = format!("add {} = … to [{}]: {}", key.name(), key.section(), key.doc);
            self.report_absent(key, &message, &help);
        }
    }

    /// Points at the section of a key that was not given, or at the file as a whole.
    fn report_absent(&mut self, key: &Key, message: &str, help: &str) {
        if let Some(span) = self.headers.get(key.section()).cloned() {
            self.report(0, span, key.path, message, Some(help));
        } else if self.problems.len() < MOST_PROBLEMS {
            let problem = Problem::with_whole(&self.sources[0], message).key(key.path).help(help);
            self.problems.push((0, problem));
        }
    }

    /// Reports that keys contradict each other: at the one given by the latest override, else at the first that the file
    /// gives. Skipped if one of these keys already has a problem.
    pub(super) fn contradict(&mut self, keys: &[&'static str], message: &str, help: &str) {
        if keys.iter().any(|key| self.faulty.contains(key)) {
            return;
        }
        let given = keys.iter().rev().filter_map(|key| Some((*key, self.entries.get(key)?)));
        let given = given.max_by_key(|(_, entry)| entry.source);
        if let Some((path, entry)) = given {
            let (source, span) = (entry.source, entry.name.start..entry.value.span.end);
            self.report(source, span, path, message, Some(help));
        } else if let Some(key) = keys.first().and_then(|path| key(path)) {
            self.report_absent(key, message, help);
        }
    }
}

fn is_section(path: &str) -> bool {
    !path.is_empty() && below(path).next().is_some()
}

fn removed_key(path: &str) -> Option<&'static RemovedKey> {
    REMOVED_KEYS.iter().find(|removed| removed.path == path)
}

/// The names directly below a section, or the sections themselves.
fn below(prefix: &str) -> impl Iterator<Item = &'static str> {
    let mut last = "";
    KEYS.iter().filter_map(move |key| {
        let rest = match prefix {
            "" => key.path,
            _ => key.path.strip_prefix(prefix)?.strip_prefix('.')?,
        };
        let name = rest.split('.').next().unwrap_or(rest);
        (std::mem::replace(&mut last, name) != name).then_some(name)
    })
}
