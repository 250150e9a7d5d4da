//! What others said at length, in full or in a line.

use luthier_core::text::{clean, clean_line};

/// How a drawn problem begins.
const PROBLEM: &str = "error: ";

/// How the line of a drawn problem begins that names its place.
const PLACE: &str = "--> ";

/// What a text of several lines says, in one: its first line, and of drawn problems the first message with its
/// place.
pub fn in_a_line(text: &str) -> String {
    let cleaned = clean(text);
    let mut lines = cleaned.lines().map(str::trim).filter(|line| !line.is_empty());
    let Some(first) = lines.next() else { return String::new() };
    let rest: Vec<&str> = lines.collect();
    let (said, message) = match first.strip_prefix(PROBLEM) {
        Some(message) => (None, Some(message)),
        None => (Some(first), rest.iter().find_map(|line| line.strip_prefix(PROBLEM))),
    };
    let Some(message) = message else { return clean_line(first).into_owned() };
    let said = said.map_or_else(String::new, |said| format!("{}: ", said.trim_end_matches(['.', ':'])));
    let place = rest.iter().find_map(|line| line.strip_prefix(PLACE));
    let place = place.map_or_else(String::new, |place| format!(" ({place})"));
    let drawn = rest.iter().filter(|line| line.starts_with(PROBLEM)).count();
    let more = match if first.starts_with(PROBLEM) { drawn } else { drawn.saturating_sub(1) } {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    clean_line(&format!("{said}{message}{place}{more}")).into_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use luthier_core::config::Config;
    use pretty_assertions::assert_eq;

    use super::*;

    fn problems(set: &[&str]) -> String {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        let text = "[model]\npath = \"m\"\n[data]\ntrain = \"t.jsonl\"\n";
        Config::parse(text, Path::new("luthier.toml"), &set).unwrap_err().to_string()
    }

    #[test]
    fn a_drawn_problem_becomes_its_message_and_place() {
        let one = problems(&["train.epochs=0"]);
        let message = "`train.epochs` must be a number above 0 and at most 1000000, not 0 (--set:1:14)";
        assert_eq!(in_a_line(&one), message);
        let two = problems(&["train.epochs=0", "method.rank=0"]);
        assert!(in_a_line(&two).ends_with("(--set:1:14), and 1 more"), "{}", in_a_line(&two));
        let led = format!("config.toml is broken, so nothing has changed.\n{one}");
        assert_eq!(in_a_line(&led), format!("config.toml is broken, so nothing has changed: {message}"));
    }

    #[test]
    fn other_texts_give_their_first_line() {
        assert_eq!(in_a_line(" the disk is full\nmore\u{1b}[2J"), "the disk is full");
        assert_eq!(in_a_line("\n\n"), "");
        assert_eq!(in_a_line("a\u{1b}[31m\tb"), "a[31m b");
    }
}
