//! What is typed after `/`: words, a regular expression, or letters in order.

use std::ops::Range;

use nucleo_matcher::pattern::{CaseMatching, Normalization, Pattern};
use nucleo_matcher::{Config, Matcher, Utf32Str};
use regex::{Regex, RegexBuilder};

/// Before a regular expression.
const REGEX: &str = "re:";

/// Before letters that need only come in order.
const FUZZY: char = '~';

/// Most bytes of a compiled regular expression.
const MAX_COMPILED: usize = 1 << 20;

/// Characters of a row in which letters are looked for: in a long text any letters come in order somewhere.
const FUZZY_CHARACTERS: usize = 400;

/// A search that can be made.
#[derive(Debug)]
pub(crate) enum Search {
    /// Rows with all of these, in either case.
    Words(Vec<Regex>),
    /// Rows that a regular expression fits.
    Regex(Box<Regex>),
    /// Rows that begin with something like it, the most alike first.
    Fuzzy(Pattern),
}

impl Search {
    /// Reads what is typed; nothing if nothing is looked for, an error where it is no regular expression.
    pub(crate) fn parse(typed: &str) -> Result<Option<Self>, String> {
        let typed = typed.trim();
        if let Some(pattern) = typed.strip_prefix(REGEX) {
            if pattern.is_empty() {
                return Ok(None);
            }
            let built = RegexBuilder::new(pattern).size_limit(MAX_COMPILED).build();
            return built.map(|regex| Some(Self::Regex(Box::new(regex)))).map_err(|error| reason(&error));
        }
        if let Some(letters) = typed.strip_prefix(FUZZY) {
            let pattern = Pattern::parse(letters, CaseMatching::Ignore, Normalization::Smart);
            return Ok((!letters.trim().is_empty()).then_some(Self::Fuzzy(pattern)));
        }
        let words: Result<Vec<Regex>, regex::Error> = typed
            .split_whitespace()
            .map(|word| RegexBuilder::new(&regex::escape(word)).case_insensitive(true).build())
            .collect();
        let words = words.map_err(|error| reason(&error))?;
        Ok((!words.is_empty()).then_some(Self::Words(words)))
    }

    /// Whether every row that `now` finds is one that `before` found, so that only those need be looked at.
    pub(super) fn narrows(before: &str, now: &str) -> bool {
        let plain = |text: &str| !text.starts_with(FUZZY) && !REGEX.starts_with(text);
        // With a sign among them, letters may mean something else: `^`, `!` and `$` say where and whether.
        let letters = |text: &str| {
            text.strip_prefix(FUZZY).is_some_and(|letters| {
                !letters.trim().is_empty()
                    && letters.chars().all(|letter| letter.is_alphanumeric() || letter == ' ')
            })
        };
        let same = (plain(before) && plain(now)) || (letters(before) && letters(now));
        same && !before.is_empty() && now.starts_with(before) && !now.starts_with(REGEX)
    }

    /// Looks at one text after the other.
    pub(crate) fn matches(&self) -> Matches<'_> {
        Matches {
            search: self,
            matcher: Matcher::new(Config::DEFAULT),
            characters: Vec::new(),
            found: Vec::new(),
        }
    }

    fn score(&self, text: &str, matcher: &mut Matcher, characters: &mut Vec<char>) -> Option<u32> {
        match self {
            Self::Words(words) => words.iter().all(|word| word.is_match(text)).then_some(0),
            Self::Regex(regex) => regex.is_match(text).then_some(0),
            Self::Fuzzy(pattern) => {
                let end = text.char_indices().nth(FUZZY_CHARACTERS).map_or(text.len(), |(at, _)| at);
                let beginning = text.get(..end).unwrap_or(text);
                pattern.score(Utf32Str::new(beginning, characters), matcher)
            }
        }
    }

    /// The places in `text` that fit, ascending, none over another. Letters in order have none.
    pub(super) fn places(&self, text: &str) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = match self {
            Self::Words(words) => words
                .iter()
                .flat_map(|word| word.find_iter(text))
                .map(|found| found.start()..found.end())
                .collect(),
            Self::Regex(regex) => regex.find_iter(text).map(|found| found.start()..found.end()).collect(),
            Self::Fuzzy(_) => Vec::new(),
        };
        found.sort_by_key(|place| place.start);
        let mut end = 0;
        found.retain(|place| {
            let free = !place.is_empty() && place.start >= end;
            if free {
                end = place.end;
            }
            free
        });
        found
    }
}

/// What a search has found in the texts that it has looked at.
pub(crate) struct Matches<'search> {
    search: &'search Search,
    matcher: Matcher,
    characters: Vec<char>,
    /// How like the search each is, and its position.
    found: Vec<(u32, usize)>,
}

impl Matches<'_> {
    pub(crate) fn look_at(&mut self, position: usize, text: &str) {
        if let Some(score) = self.search.score(text, &mut self.matcher, &mut self.characters) {
            self.found.push((score, position));
        }
    }

    /// The positions of the texts that fit, in the order in which they were looked at; of letters, the most alike first.
    pub(crate) fn found(&self) -> Vec<usize> {
        let mut found = self.found.clone();
        found.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
        found.into_iter().map(|(_, position)| position).collect()
    }
}

/// Why a regular expression cannot be read, on one line.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim();
    format!("not a regular expression yet: {}", last.strip_prefix("error: ").unwrap_or(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(typed: &str) -> Vec<usize> {
        let search = Search::parse(typed).unwrap().unwrap();
        let mut matches = search.matches();
        for (position, text) in ["The badge reader", "BADGE 7", "café", "Straße"].iter().enumerate() {
            matches.look_at(position, text);
        }
        matches.found()
    }

    #[test]
    fn words_patterns_and_letters() {
        assert_eq!(found("badge"), [0, 1]);
        assert_eq!(found("reader THE"), [0]);
        assert_eq!(found("badge ("), Vec::<usize>::new());
        assert_eq!(found(r"re:\d$"), [1]);
        let mut alike = found("~bdg");
        alike.sort_unstable();
        assert_eq!(alike, [0, 1]);
        assert!(Search::parse("  ").unwrap().is_none());
        assert!(Search::parse("re:").unwrap().is_none());
        assert!(Search::parse("~").unwrap().is_none());
        let problem = Search::parse("re:(a").unwrap_err();
        assert_eq!(problem, "not a regular expression yet: unclosed group");
        assert!(!Search::parse("re:a{9999}{9999}").unwrap_err().contains('\n'));
    }

    #[test]
    fn places_are_in_order_and_apart() {
        let places = |typed: &str| Search::parse(typed).unwrap().unwrap().places("abc ABCD b");
        assert_eq!(places("bc abc"), [0..3, 4..7]);
        assert!(places("re:x*").is_empty());
        assert_eq!(places("re:b.?"), [1..3, 9..10]);
        assert!(places("~abc").is_empty());
    }

    #[test]
    fn only_a_longer_search_of_the_same_sort_narrows() {
        assert!(Search::narrows("bad", "badge"));
        assert!(Search::narrows("~bad", "~badge"));
        for (before, now) in
            [("", "b"), ("bad", "ba"), ("r", "re"), ("re:a", "re:a|b"), ("~a", "~a$"), ("~", "~a")]
        {
            assert!(!Search::narrows(before, now), "{before} {now}");
        }
    }
}
