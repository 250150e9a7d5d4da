//! What is wrong with a file, in the form of a compiler's message: place, caret, remedy.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::text::{clean, clean_line};

/// Most problems written out; the first ones have to be repaired first anyway.
const MOST_SHOWN: usize = 40;
/// Characters of a line kept on each side of the place a problem points at.
const CONTEXT: usize = 120;
/// Characters marked by carets.
const LONGEST_MARK: usize = 120;
/// How a drawn problem begins.
const DRAWN: &str = "error: ";
/// How the line with the place of a drawn problem begins.
const PLACE: &str = "--> ";

/// A text with the name that its problems are reported under.
#[derive(Clone, Debug)]
pub struct Source {
    file: PathBuf,
    text: String,
}

impl Source {
    /// `file` is only shown, never opened.
    pub fn new(file: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { file: file.into(), text: text.into() }
    }

    /// The name.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// One thing that is wrong, with its place. Its texts are fit for a terminal; `Display` draws the line
/// with a caret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, in one line.
    pub message: String,
    /// Where it is: a file, or `--set`.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What to do about it.
    pub help: Option<String>,
    /// The key concerned, where it is one, such as `train.learning_rate`.
    pub key: Option<String>,
    excerpt: Option<Excerpt>,
}

/// The line at fault, fit for a terminal, and the bytes of it to mark.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    line: String,
    mark: Range<usize>,
}

impl Problem {
    /// A problem with the bytes `span` of `source`; a span past the end or inside a character is
    /// brought back into the text.
    pub fn new(source: &Source, span: Range<usize>, message: impl AsRef<str>) -> Self {
        let text = source.text();
        let start = text.floor_char_boundary(span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |length| start + length);
        let end = text.ceil_char_boundary(span.end).clamp(start, line_end);
        Self {
            message: clean_line(message.as_ref()).into_owned(),
            file: source.file.clone(),
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            help: None,
            key: None,
            excerpt: Some(Excerpt::cut(&text[line_start..start], &text[start..end], &text[end..line_end])),
        }
    }

    /// A problem with something that is not there, so that there is no line to show.
    pub fn with_whole(source: &Source, message: impl AsRef<str>) -> Self {
        Self { excerpt: None, ..Self::new(source, 0..0, message) }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl AsRef<str>) -> Self {
        self.help = Some(clean_line(help.as_ref()).into_owned());
        self
    }

    /// Adds the key concerned.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<str>) -> Self {
        self.key = Some(clean_line(key.as_ref()).into_owned());
        self
    }

    /// The message in one line with its place: `luthier.toml:3:5: …`.
    pub fn one_line(&self) -> String {
        let file = self.file.display().to_string();
        let place = format!("{}:{}:{}", clean_line(&file), self.line, self.column);
        match &self.help {
            Some(help) => format!("{place}: {} ({help})", self.message),
            None => format!("{place}: {}", self.message),
        }
    }
}

impl Excerpt {
    fn cut(before: &str, marked: &str, after: &str) -> Self {
        let mut line = String::new();
        let skipped = before.chars().count().saturating_sub(CONTEXT);
        if skipped > 0 {
            line.push('…');
        }
        line.extend(before.chars().skip(skipped));
        let mut line = clean_line(&line).into_owned();
        let start = line.len();
        let marked: String = marked.chars().take(LONGEST_MARK).collect();
        line.push_str(&clean_line(&marked));
        let end = line.len();
        let after: String = after.chars().take(CONTEXT).collect();
        line.push_str(clean_line(&after).trim_end());
        Self { mark: start..end.min(line.len()), line }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display().to_string();
        let origin = Origin::path(clean_line(&file).into_owned());
        let title = Level::ERROR.primary_title(&*self.message);
        let group = match &self.excerpt {
            Some(excerpt) => {
                let snippet = Snippet::source(&*excerpt.line)
                    .line_start(self.line)
                    .annotation(AnnotationKind::Primary.span(excerpt.mark.clone()));
                // The renderer counts columns in the excerpt, which is right only where nothing was
                // cut or cleaned away before the mark.
                if excerpt.line[..excerpt.mark.start].chars().count() + 1 == self.column {
                    title.element(snippet.path(clean_line(&file).into_owned()))
                } else {
                    title.element(origin.line(self.line).char_column(self.column)).element(snippet)
                }
            }
            None => Group::with_title(title).element(origin),
        };
        let group = match &self.help {
            Some(help) => group.element(Level::HELP.message(&**help)),
            None => group,
        };
        formatter.write_str(&Renderer::plain().render(&[group]))
    }
}

/// Everything that is wrong with a file, in the order of its lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().take(MOST_SHOWN).enumerate() {
            if position > 0 {
                formatter.write_str("\n\n")?;
            }
            problem.fmt(formatter)?;
        }
        match self.0.len().saturating_sub(MOST_SHOWN) {
            0 => Ok(()),
            more => write!(formatter, "\n\n… and {more} more problems"),
        }
    }
}

impl std::error::Error for Problems {}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// The first line of a text; of drawn problems the first message with its place, and how many more there are.
pub fn headline(text: &str) -> String {
    let cleaned = clean(text);
    let mut lines = cleaned.lines().map(str::trim).filter(|line| !line.is_empty());
    let Some(first) = lines.next() else { return String::new() };
    let rest: Vec<&str> = lines.collect();
    let (said, message) = match first.strip_prefix(DRAWN) {
        Some(message) => (None, Some(message)),
        None => (Some(first), rest.iter().find_map(|line| line.strip_prefix(DRAWN))),
    };
    let Some(message) = message else { return clean_line(first).into_owned() };
    let said = said.map_or_else(String::new, |said| format!("{}: ", said.trim_end_matches(['.', ':'])));
    let place = rest.iter().find_map(|line| line.strip_prefix(PLACE));
    let place = place.map_or_else(String::new, |place| format!(" ({place})"));
    let drawn = rest.iter().filter(|line| line.starts_with(DRAWN)).count();
    let more = match if first.starts_with(DRAWN) { drawn } else { drawn.saturating_sub(1) } {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    clean_line(&format!("{said}{message}{place}{more}")).into_owned()
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::super::Config;
    use super::*;

    #[test]
    fn a_problem_shows_its_line_with_a_caret() {
        let source = Source::new("luthier.toml", "[train]\nlearning_rat = 1\n");
        let problem = Problem::new(&source, 8..20, "unknown key").help("did you mean `learning_rate`?");
        assert_eq!((problem.line, problem.column), (2, 1));
        let drawn = problem.to_string();
        let expected = "\
error: unknown key
 --> luthier.toml:2:1
  |
2 | learning_rat = 1
  | ^^^^^^^^^^^^
  |
  = help: did you mean `learning_rate`?";
        assert_eq!(drawn, expected);
        assert_eq!(problem.one_line(), "luthier.toml:2:1: unknown key (did you mean `learning_rate`?)");
    }

    #[test]
    fn places_are_counted_in_characters() {
        let source = Source::new("a.toml", "größe = \"ä\" # x");
        let problem = Problem::new(&source, 11..14, "m");
        assert_eq!((problem.line, problem.column), (1, 10));
        assert!(problem.to_string().contains("a.toml:1:10"), "{problem}");
    }

    #[test]
    fn the_end_of_the_text_can_be_pointed_at() {
        let text = "[train]\nseed = ";
        let problem = Problem::new(&Source::new("a.toml", text), text.len()..text.len(), "m");
        assert_eq!((problem.line, problem.column), (2, 8));
        assert!(problem.to_string().contains("  |        ^"), "{problem}");
    }

    #[test]
    fn spans_outside_the_text_or_inside_a_character_are_harmless() {
        let source = Source::new("a.toml", "ä\nb");
        for span in [1..1, 0..1, 99..100, 1..99] {
            let problem = Problem::new(&source, span, "m");
            assert!(problem.to_string().contains("error: m"));
        }
        assert!(Problem::new(&Source::new("", ""), 0..0, "").to_string().contains("error"));
    }

    #[test]
    fn text_from_the_file_cannot_steer_the_terminal() {
        let source = Source::new("a\x1b[2J.toml", "x = \"\u{202e}\x1b]0;t\x07\"\r\n");
        let problem = Problem::new(&source, 4..8, "bad \x1b[31m\nvalue").help("\x1b[0m").key("\x07");
        let drawn = problem.to_string() + &problem.one_line();
        assert!(!drawn.contains(['\x1b', '\x07', '\r', '\u{202e}']), "{drawn:?}");
        assert_eq!(drawn.lines().next(), Some("error: bad [31m⏎value"));
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let text = format!("a = \"{}\" oops {}", "x".repeat(5000), "y".repeat(5000));
        let problem = Problem::new(&Source::new("a.toml", &*text), 5007..5011, "m");
        let drawn = problem.to_string();
        assert!(drawn.len() < 2000, "{}", drawn.len());
        assert!(drawn.contains("oops"), "{drawn}");
        assert_eq!(problem.column, 5008);
    }

    #[test]
    fn a_missing_thing_names_its_file() {
        let drawn = Problem::with_whole(&Source::new("luthier.toml", ""), "no model").to_string();
        assert_eq!(drawn, "error: no model\n--> luthier.toml");
    }

    #[test]
    fn many_problems_end_with_a_count() {
        let source = Source::new("a.toml", "x");
        let problems = Problems(vec![Problem::new(&source, 0..1, "m"); MOST_SHOWN + 3]);
        assert!(problems.to_string().ends_with("and 3 more problems"));
    }

    fn drawn(set: &[&str]) -> String {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        let text = "[model]\npath = \"m\"\n[data]\ntrain = \"t.jsonl\"\n";
        Config::parse(text, Path::new("luthier.toml"), &set).unwrap_err().to_string()
    }

    #[test]
    fn a_drawn_problem_becomes_its_message_and_place() {
        let one = drawn(&["train.epochs=0"]);
        let message = "`train.epochs` must be a number above 0 and at most 1000000, not 0 (--set:1:14)";
        assert_eq!(headline(&one), message);
        let two = drawn(&["train.epochs=0", "method.rank=0"]);
        assert!(headline(&two).ends_with("(--set:1:14), and 1 more"), "{}", headline(&two));
        let led = format!("config.toml is broken, so nothing has changed.\n{one}");
        assert_eq!(headline(&led), format!("config.toml is broken, so nothing has changed: {message}"));
    }

    #[test]
    fn other_texts_give_their_first_line() {
        assert_eq!(headline(" the disk is full\nmore\u{1b}[2J"), "the disk is full");
        assert_eq!(headline("\n\n"), "");
        assert_eq!(headline("a\u{1b}[31m\tb"), "a[31m b");
    }
}
