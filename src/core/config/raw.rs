//! TOML text as a tree in which every value knows its place.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::problems::{Problem, Source};

/// A value with its bytes in the text.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub value: Raw,
    pub span: Range<usize>,
}

/// A TOML value before anything is known about what it should be.
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

/// A whole document: what could be read of it, and what could not.
///
/// A tree comes back even from broken text, so that its other mistakes can be told in the same breath.
pub(super) fn document(source: &Source) -> (Vec<(Name, Located)>, Vec<Problem>) {
    let (table, errors) = DeTable::parse_recoverable(source.text());
    let mut problems: Vec<Problem> = Vec::new();
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let problem = Problem::new(source, span, error.message());
        // One slip makes the parser stumble several times; only its first complaint helps.
        if problems.iter().all(|earlier| earlier.line != problem.line) {
            problems.push(problem);
        }
        if problems.len() >= super::resolve::MOST_PROBLEMS {
            break;
        }
    }
    (entries(table.get_ref(), 0), problems)
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
