//! Checks that score a reply.

use std::path::Path;

use indexmap::IndexMap;
use regex::Regex;
use serde_json::Value;

use super::EvalError;
use super::schema::{Schema, Violation};
use crate::config::{Config, Goal};
use crate::text::clean_line;

/// The key of the overall result in averaged scores.
const PASSED: &str = "passed";

/// Longest explanation of a failed check, in characters.
const REASON_LIMIT: usize = 200;

/// The check that replies should pass.
#[derive(Debug)]
pub struct Objective {
    check: Check,
}

#[derive(Debug)]
enum Check {
    None,
    Json(Box<Schema>),
    Regex(Regex),
    Exact,
    Contains(Vec<String>),
    Length { least: usize, most: usize },
}

/// The scores of one reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    pub passed: bool,
    /// Scores by name, each from 0 to 1. `json`: `valid`, `conforms` and, with an expected reply, `fields`
    /// (share of its top-level fields that are equal), `equal` (the whole value) and `field.NAME` for each.
    /// `regex`: `matches`. `exact`: `equal`. `contains`: `contained` (share). `length`: `length`.
    pub details: IndexMap<String, f64>,
    /// Why it did not pass, in one line that is safe for a terminal.
    pub reason: Option<String>,
}

impl Objective {
    /// The objective of a configuration. Its paths are relative to the project folder.
    pub fn from_config(config: &Config, project: &Path) -> Result<Self, EvalError> {
        let goal = config.objective.goal().map_err(|missing| EvalError::Objective {
            key: missing.key,
            reason: format!("{}; {}", missing.message, missing.help),
        })?;
        let check = match goal {
            Goal::None => Check::None,
            Goal::Json(schema) => Check::Json(Box::new(Schema::load(&project.join(schema))?)),
            Goal::Regex(pattern) => Check::Regex(compiled(pattern)?),
            Goal::Exact => Check::Exact,
            Goal::Contains(texts) => Check::Contains(texts.to_vec()),
            Goal::Length { least, most } => Check::Length { least, most },
        };
        Ok(Self { check })
    }

    /// Whether there is nothing to check.
    pub fn is_none(&self) -> bool {
        matches!(self.check, Check::None)
    }

    /// Whether a score needs an expected reply.
    pub fn needs_expected(&self) -> bool {
        matches!(self.check, Check::Exact)
    }

    /// Scores one reply. `None` if there is nothing to check: no objective, or an objective that needs an
    /// expected reply that is not known. White space around a reply is ignored.
    pub fn score(&self, reply: &str, expected: Option<&str>) -> Option<Score> {
        let reply = reply.trim();
        let expected = expected.map(str::trim);
        match &self.check {
            Check::None => None,
            Check::Json(schema) => Some(score_json(reply, expected, schema)),
            Check::Regex(regex) => {
                let matches = regex.is_match(reply);
                Some(Score::one("matches", matches, || format!("does not match {regex}")))
            }
            Check::Exact => {
                let expected = expected?;
                Some(Score::one("equal", reply == expected, || format!("expected {expected}")))
            }
            Check::Contains(texts) => Some(score_contains(reply, texts)),
            Check::Length { least, most } => {
                let length = reply.chars().count();
                let fits = (*least..=*most).contains(&length);
                Some(Score::one("length", fits, || {
                    if length < *least {
                        format!("{length} characters long, must be at least {least}")
                    } else {
                        format!("{length} characters long, must be at most {most}")
                    }
                }))
            }
        }
    }
}

impl Score {
    fn one(name: &str, passed: bool, reason: impl FnOnce() -> String) -> Self {
        Self {
            passed,
            details: IndexMap::from([(name.to_owned(), share(passed))]),
            reason: (!passed).then(|| brief(&reason())),
        }
    }
}

/// Means over replies, by name, with `passed` first. A detail is averaged over the replies that have it.
/// Empty without replies.
pub fn average_scores<'a>(scores: impl IntoIterator<Item = &'a Score>) -> IndexMap<String, f64> {
    let mut sums: IndexMap<&str, (f64, usize)> = IndexMap::new();
    for score in scores {
        let passed = (PASSED, share(score.passed));
        for (name, value) in
            std::iter::once(passed).chain(score.details.iter().map(|(name, value)| (&**name, *value)))
        {
            let (sum, count) = sums.entry(name).or_default();
            *sum += value;
            *count += 1;
        }
    }
    sums.into_iter().map(|(name, (sum, count))| (name.to_owned(), sum / count as f64)).collect()
}

fn share(passed: bool) -> f64 {
    f64::from(u8::from(passed))
}

fn brief(reason: &str) -> String {
    let reason = clean_line(reason);
    match reason.char_indices().nth(REASON_LIMIT) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.into_owned(),
    }
}

fn score_contains(reply: &str, texts: &[String]) -> Score {
    let missing: Vec<_> = texts.iter().filter(|text| !reply.contains(text.as_str())).collect();
    let contained = (texts.len() - missing.len()) as f64 / texts.len() as f64;
    Score {
        passed: missing.is_empty(),
        details: IndexMap::from([("contained".to_owned(), contained)]),
        reason: missing.first().map(|text| brief(&format!("does not contain {text:?}"))),
    }
}

fn score_json(reply: &str, expected: Option<&str>, schema: &Schema) -> Score {
    let parsed: Result<Value, _> = serde_json::from_str(reply);
    let mut score = Score { passed: parsed.is_ok(), ..Score::default() };
    score.details.insert("valid".to_owned(), share(parsed.is_ok()));
    if let Err(error) = &parsed {
        score.reason = Some(brief(&format!("not valid JSON: {error}")));
    }
    let reply = parsed.ok();
    let violation = reply.as_ref().map(|reply| schema.violation(reply));
    let conforms = matches!(violation, Some(None));
    score.details.insert("conforms".to_owned(), share(conforms));
    score.passed &= conforms;
    if let Some(Some(Violation { place, problem })) = violation {
        let place = if place.is_empty() { String::new() } else { format!(" at {place}") };
        score.reason = Some(brief(&format!("does not conform{place}: {problem}")));
    }
    if let Some(Ok(expected)) = expected.map(serde_json::from_str::<Value>) {
        compare(reply.as_ref(), &expected, &mut score.details);
    }
    score
}

/// Compares the reply with the expected one: the whole, and each top-level field.
fn compare(reply: Option<&Value>, expected: &Value, details: &mut IndexMap<String, f64>) {
    if let Value::Object(fields) = expected
        && !fields.is_empty()
    {
        let found = reply.and_then(Value::as_object);
        let equal: Vec<_> = fields
            .iter()
            .map(|(name, value)| {
                (name, found.and_then(|found| found.get(name)).is_some_and(|found| same(found, value)))
            })
            .collect();
        let count = equal.iter().filter(|(_, equal)| *equal).count();
        details.insert("fields".to_owned(), count as f64 / fields.len() as f64);
        details.insert("equal".to_owned(), share(reply.is_some_and(|reply| same(reply, expected))));
        for (name, equal) in equal {
            details.insert(format!("field.{}", clean_line(name)), share(equal));
        }
    } else {
        details.insert("equal".to_owned(), share(reply.is_some_and(|reply| same(reply, expected))));
    }
}

/// Equality of JSON values. The order of an object's fields is ignored, and 1 equals 1.0.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left == right || left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(name, left)| right.get(name).is_some_and(|right| same(left, right)))
        }
        _ => left == right,
    }
}

fn compiled(pattern: &str) -> Result<Regex, EvalError> {
    Regex::new(pattern).map_err(|error| EvalError::Objective {
        key: "objective.pattern",
        reason: format!("is not a regular expression: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use pretty_assertions::assert_eq;

    use super::*;
    use crate::runs::testing::config;

    const SCHEMA: &str = r#"{
        "type": "object",
        "properties": {"category": {"enum": ["hardware", "access"]}, "location": {"type": ["string", "null"]}},
        "required": ["category", "location"],
        "additionalProperties": false
    }"#;

    fn objective(set: &[&str]) -> Result<Objective, EvalError> {
        let project = tempfile::tempdir().unwrap();
        std::fs::write(project.path().join("schema.json"), SCHEMA).unwrap();
        std::fs::write(project.path().join("any.json"), "{}").unwrap();
        std::fs::write(project.path().join("broken.json"), "{").unwrap();
        std::fs::write(project.path().join("wrong.json"), r#"{"type": "strnig"}"#).unwrap();
        std::fs::write(project.path().join("remote.json"), r#"{"$ref": "https://example.org/schema"}"#)
            .unwrap();
        std::fs::write(project.path().join("local.json"), r#"{"$ref": "file:///etc/hostname"}"#).unwrap();
        std::fs::write(project.path().join("slow.json"), r#"{"pattern": "^(a+)+$"}"#).unwrap();
        Objective::from_config(&config(set), project.path())
    }

    fn json() -> Objective {
        objective(&["objective.kind=json", "objective.schema=schema.json"]).unwrap()
    }

    fn details(score: &Score) -> Vec<(&str, f64)> {
        score.details.iter().map(|(name, value)| (name.as_str(), *value)).collect()
    }

    #[test]
    fn json_is_scored_in_stages() {
        let expected = r#"{"category": "hardware", "location": "floor 3"}"#;
        let right =
            json().score(" {\"location\":\"floor 3\",\"category\":\"hardware\"}\n", Some(expected)).unwrap();
        assert_eq!((right.passed, right.reason.as_deref()), (true, None));
        assert!(right.details.values().all(|value| *value > 0.99), "{:?}", right.details);
        let half = json().score(r#"{"category": "access", "location": "floor 3"}"#, Some(expected)).unwrap();
        assert!(half.passed);
        assert_eq!(
            details(&half),
            [
                ("valid", 1.0),
                ("conforms", 1.0),
                ("fields", 0.5),
                ("equal", 0.0),
                ("field.category", 0.0),
                ("field.location", 1.0)
            ]
        );
        let foreign = json().score(r#"{"category": "pets", "location": null}"#, None).unwrap();
        assert_eq!((foreign.passed, details(&foreign)), (false, vec![("valid", 1.0), ("conforms", 0.0)]));
        assert!(foreign.reason.unwrap().contains("/category"));
        let prose = json().score("Sure! Here is the JSON you asked for:", Some(expected)).unwrap();
        assert!(!prose.passed && prose.details.values().all(|value| *value < 0.01), "{prose:?}");
        assert!(prose.reason.unwrap().contains("not valid JSON"));
    }

    #[test]
    fn any_json_conforms_to_an_empty_schema() {
        let objective = objective(&["objective.kind=json", "objective.schema=any.json"]).unwrap();
        let score = objective.score("[1, 2]", Some("[1.0, 2]")).unwrap();
        let expected = vec![("valid", 1.0), ("conforms", 1.0), ("equal", 1.0)];
        assert_eq!((score.passed, details(&score)), (true, expected));
        let deep = "[".repeat(100_000);
        assert!(!objective.score(&deep, None).unwrap().passed);
    }

    #[test]
    fn a_missing_setting_is_reported() {
        let mut config = config(&["objective.kind=contains", "objective.contains=a"]);
        config.objective.contains.clear();
        let error = Objective::from_config(&config, Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.starts_with("objective.contains: ") && error.contains("add contains"), "{error}");
    }

    #[test]
    fn an_unusable_schema_is_an_error_with_its_reason() {
        for (file, word) in [
            ("broken.json", "not JSON"),
            ("wrong.json", "strnig"),
            ("remote.json", "example.org"),
            ("local.json", "hostname"),
        ] {
            let set = format!("objective.schema={file}");
            let error = objective(&["objective.kind=json", &set]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(file), "{file}: {error}");
        }
        let missing =
            objective(&["objective.kind=json", "objective.schema=gone.json"]).unwrap_err().to_string();
        assert!(missing.contains("cannot be read") && missing.contains("gone.json"), "{missing}");
    }

    #[test]
    fn no_reply_makes_a_schemas_pattern_slow() {
        let objective = objective(&["objective.kind=json", "objective.schema=slow.json"]).unwrap();
        let begun = Instant::now();
        let reply = format!("\"{}!\"", "a".repeat(5_000));
        assert!(!objective.score(&reply, None).unwrap().passed);
        assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    }

    #[test]
    fn the_simple_kinds() {
        let regex = objective(&["objective.kind=regex", r"objective.pattern='^\d+$'"]).unwrap();
        assert!(regex.score(" 42\n", None).unwrap().passed);
        assert!(!regex.score("forty-two", None).unwrap().passed);
        let exact = objective(&["objective.kind=exact"]).unwrap();
        assert!(exact.needs_expected());
        assert_eq!(exact.score("yes", None), None);
        assert!(exact.score("yes ", Some("yes")).unwrap().passed);
        assert!(!exact.score("Yes", Some("yes")).unwrap().passed);
        let contains = objective(&["objective.kind=contains", "objective.contains=['a', 'b']"]).unwrap();
        assert!(contains.score("a or b", None).unwrap().passed);
        let one = contains.score("only a", None).unwrap();
        assert_eq!(
            (one.passed, details(&one), one.reason.as_deref()),
            (false, vec![("contained", 0.5)], Some("does not contain \"b\""))
        );
        let length =
            objective(&["objective.kind=length", "objective.min_length=2", "objective.max_length=4"])
                .unwrap();
        for (reply, passed) in [("é", false), ("éé", true), ("éééé", true), ("ééééé", false)] {
            assert_eq!(length.score(reply, None).unwrap().passed, passed, "{reply}");
        }
        let none = objective(&["objective.kind=none"]).unwrap();
        assert!(none.is_none());
        assert_eq!(none.score("anything", Some("else")), None);
    }

    #[test]
    fn reasons_are_short_and_clean() {
        let exact = objective(&["objective.kind=exact"]).unwrap();
        let expected = format!("\u{1b}[31m{}", "long ".repeat(1000));
        let reason = exact.score("", Some(&expected)).unwrap().reason.unwrap();
        assert!(!reason.contains('\u{1b}') && reason.chars().count() <= REASON_LIMIT + 1, "{reason}");
    }

    #[test]
    fn means_use_only_replies_with_the_score() {
        let expected = r#"{"category": "hardware", "location": null}"#;
        let scores = [json().score(expected, Some(expected)).unwrap(), json().score("no", None).unwrap()];
        let means = average_scores(&scores);
        let means: Vec<_> = means.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(
            means,
            [
                ("passed", 0.5),
                ("valid", 0.5),
                ("conforms", 0.5),
                ("fields", 1.0),
                ("equal", 1.0),
                ("field.category", 1.0),
                ("field.location", 1.0)
            ]
        );
        assert!(average_scores(&[]).is_empty());
    }
}
