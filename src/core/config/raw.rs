//! TOML text as a tree in which every value has its place in the text.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::problems::{Problem, Source};

/// Most lines skipped in one document; a file with more is no configuration.
const MOST_UNREAD: usize = 40;
/// Parts of messages about something that was opened and not closed, so that the parser read the next lines as part of
/// it.
const RUNNING_ON: [&str; 4] = ["unclosed", "missing comma", "multi-line", "missing array"];

/// Parts of messages about a value that is not TOML, most often a text without quotes.
const UNQUOTED: [&str; 2] = ["must be quoted", "invalid boolean"];

/// A value with its bytes in the text.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub value: Raw,
    pub span: Range<usize>,
}

/// A TOML value whose key is not known yet.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    Text(String),
    /// `None` when it does not fit.
    Whole(Option<i64>),
    /// `None` when it does not fit.
    Number(Option<f64>),
    Flag(bool),
    Date,
    List(Vec<Located>),
    Table(Vec<(Name, Located)>),
}

/// A key as written.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub text: String,
    pub span: Range<usize>,
}

impl Located {
    /// The value as a message would name it.
    pub fn found(&self, source: &Source) -> String {
        match &self.value {
            Raw::List(_) => "a list".to_owned(),
            Raw::Table(_) => "a table".to_owned(),
            _ => {
                let written = source.text().get(self.span.clone()).unwrap_or_default();
                match written.char_indices().nth(40) {
                    Some((cut, _)) => format!("{}…", &written[..cut]),
                    None => written.to_owned(),
                }
            }
        }
    }
}

/// What could be read of a document, and what could not.
#[derive(Debug)]
pub(super) struct Document {
    pub entries: Vec<(Name, Located)>,
    pub problems: Vec<Problem>,
    /// Lines, from 1, for which no other problem is reported: they could not be read, or their section is unknown.
    unread: Vec<Range<usize>>,
}

impl Document {
    /// Whether no other problem is reported for a line, from 1.
    pub fn is_unread(&self, line: usize) -> bool {
        self.unread.iter().any(|lines| lines.contains(&line))
    }
}

/// Reads a whole document.
///
/// A line that cannot be read is skipped and the rest read without it, so that the other mistakes are reported together
/// with it.
pub(super) fn document(source: &Source) -> Document {
    let mut text = source.text().to_owned();
    let mut problems: Vec<Problem> = Vec::new();
    let mut unread = Vec::new();
    loop {
        let error = match DeTable::parse(&text) {
            Ok(table) => return Document { entries: entries(table.get_ref(), 0), problems, unread },
            Err(error) => error,
        };
        let span = error.span().unwrap_or(0..0);
        let line = line_at(&text, span.start);
        let is_header = text[line.clone()].trim_start().starts_with('[');
        let before = text.get(line.start..span.start).unwrap_or_default();
        let opened_here =
            is_header || before.split_once('=').is_some_and(|(_, value)| value.contains(['[', '{']));
        let runs_on = !opened_here && RUNNING_ON.iter().any(|sign| error.message().contains(sign));
        let problem = syntax_problem(source, span, error.message(), runs_on);
        let number = problem.line;
        problems.push(problem);
        if runs_on || text[line.clone()].trim().is_empty() || problems.len() >= MOST_UNREAD {
            unread.push(number..usize::MAX);
            let (table, _) = DeTable::parse_recoverable(&text);
            return Document { entries: entries(table.get_ref(), 0), problems, unread };
        }
        let below = if is_header { lines_to_next_header(&text[line.end..]) } else { 0 };
        unread.push(number..number + 1 + below);
        text.replace_range(line.clone(), &" ".repeat(line.len()));
    }
}

fn syntax_problem(source: &Source, span: Range<usize>, message: &str, runs_on: bool) -> Problem {
    let line = &source.text()[line_at(source.text(), span.start)];
    match line.trim_end().strip_suffix('=') {
        Some(name) if span.is_empty() && !name.contains(['=', '#']) => {
            Problem::new(source, span, format!("`{}` has no value", name.trim()))
        }
        _ if runs_on => Problem::new(source, span, message)
            .help("is a list, table or text opened above and not closed? What follows was not read"),
        _ if UNQUOTED.iter().any(|sign| message.contains(sign)) => {
            Problem::new(source, span, message).help("a text needs quotes")
        }
        _ => Problem::new(source, span, message),
    }
}

/// The line around a byte, without its end.
fn line_at(text: &str, position: usize) -> Range<usize> {
    let position = text.floor_char_boundary(position);
    let start = text[..position].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[position..].find('\n').map_or(text.len(), |length| position + length);
    start..end
}

fn lines_to_next_header(text: &str) -> usize {
    text.lines().skip(1).take_while(|line| !line.trim_start().starts_with('[')).count()
}

/// One value, starting `offset` bytes into the text of `source`.
pub(super) fn value(source: &Source, offset: usize) -> Result<Located, Box<Problem>> {
    let text = source.text().get(offset..).unwrap_or_default();
    match DeValue::parse(text) {
        Ok(value) => Ok(located(value.get_ref(), &value.span(), offset)),
        Err(error) => {
            let span = error.span().unwrap_or(0..text.len());
            let span = span.start + offset..span.end + offset;
            Err(Box::new(Problem::new(source, span, error.message())))
        }
    }
}

fn entries(table: &DeTable<'_>, offset: usize) -> Vec<(Name, Located)> {
    let mut entries: Vec<_> = table
        .iter()
        .map(|(name, value)| {
            let span = name.span();
            let span = span.start + offset..span.end + offset;
            let name = Name { text: name.get_ref().to_string(), span };
            (name, located(value.get_ref(), &value.span(), offset))
        })
        .collect();
    entries.sort_by_key(|(name, _)| name.span.start);
    entries
}

fn located(value: &DeValue<'_>, span: &Range<usize>, offset: usize) -> Located {
    let value = match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(whole) => Raw::Whole(i64::from_str_radix(whole.as_str(), whole.radix()).ok()),
        DeValue::Float(number) => {
            Raw::Number(number.as_str().parse().ok().filter(|value: &f64| value.is_finite()))
        }
        DeValue::Boolean(flag) => Raw::Flag(*flag),
        DeValue::Datetime(_) => Raw::Date,
        DeValue::Array(list) => {
            Raw::List(list.iter().map(|item| located(item.get_ref(), &item.span(), offset)).collect())
        }
        DeValue::Table(table) => Raw::Table(entries(table, offset)),
    };
    Located { value, span: span.start + offset..span.end + offset }
}
