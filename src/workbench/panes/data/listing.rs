//! Which rows are listed, in which order, and by what they can be told apart.

use std::collections::BTreeSet;

use luthier_core::data::{Message, ProblemKind, Row};
use luthier_core::units;
use serde_json::Value;

use crate::widgets::text::fit;

/// Words of a reply's beginning.
const FIRST_WORDS: usize = 3;

/// Columns of a value in a table. A longer one is cut, and values with one beginning count as one.
const VALUE_COLUMNS: usize = 60;

/// What stands for a value that a row does not have.
const ABSENT: &str = "(none)";

/// Which rows are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    #[default]
    All,
    /// The training split.
    Train,
    /// The held-out split.
    Eval,
    /// Those with a problem of this kind.
    Problem(ProblemKind),
    /// Those labelled as a good answer, or as a bad one.
    Label(bool),
    /// Those with more than one reply.
    SeveralReplies,
    /// Those that offer tools or call one.
    Tools,
    /// Those that the user has edited.
    Edited,
    /// The longest rows, [`Filter::LONGEST`] of all.
    Longest,
    /// Those with this value of a field.
    Value(Field, String),
    Quarantined,
}

impl Filter {
    /// One of so many rows is among the longest.
    pub const LONGEST: usize = 20;

    /// What is listed, in words.
    pub fn title(&self) -> String {
        match self {
            Self::All => "all rows".to_owned(),
            Self::Train => "training rows".to_owned(),
            Self::Eval => "held-out rows".to_owned(),
            Self::Problem(kind) => kind.label().to_owned(),
            Self::Label(true) => "good answers".to_owned(),
            Self::Label(false) => "bad answers".to_owned(),
            Self::SeveralReplies => "several replies".to_owned(),
            Self::Tools => "with tools".to_owned(),
            Self::Edited => "edited rows".to_owned(),
            Self::Longest => "longest 5 %".to_owned(),
            Self::Value(field, value) => format!("{}: {value}", field.title()),
            Self::Quarantined => "in quarantine".to_owned(),
        }
    }
}

/// In which order rows are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    File,
    Longest,
    Shortest,
    /// Most trained tokens first.
    Trained,
    /// Most findings first.
    Findings,
}

impl Order {
    /// All orders, as they are offered.
    pub const ALL: [Self; 5] = [Self::File, Self::Longest, Self::Shortest, Self::Trained, Self::Findings];

    /// The order in words.
    pub fn title(self) -> &'static str {
        match self {
            Self::File => "file order",
            Self::Longest => "longest first",
            Self::Shortest => "shortest first",
            Self::Trained => "most trained tokens first",
            Self::Findings => "most findings first",
        }
    }
}

/// Something that every row has a value of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// The roles of its messages, in turn.
    Roles,
    /// How many messages it has.
    Turns,
    /// Whether its answer is good or bad.
    Label,
    File,
    /// The first words of its last reply.
    FirstWords,
    SystemPrompt,
    /// A field of its messages that is neither role nor text.
    OfMessages(String),
}

impl Field {
    /// The fields that tell rows apart, with `names` of fields of their messages.
    pub fn all(has_labels: bool, names: BTreeSet<String>) -> Vec<Self> {
        let mut fields = vec![Self::Roles, Self::Turns];
        fields.extend(has_labels.then_some(Self::Label));
        fields.extend([Self::File, Self::FirstWords, Self::SystemPrompt]);
        fields.extend(names.into_iter().map(Self::OfMessages));
        fields
    }

    /// The names of the fields of a row's messages.
    pub fn names_in(row: &Row) -> BTreeSet<String> {
        let messages = row.example.messages().unwrap_or_default();
        messages.into_iter().flat_map(|message| message.fields.into_iter().map(|(name, _)| name)).collect()
    }

    /// The field in words.
    pub fn title(&self) -> String {
        match self {
            Self::Roles => "roles".to_owned(),
            Self::Turns => "turns".to_owned(),
            Self::Label => "label".to_owned(),
            Self::File => "file".to_owned(),
            Self::FirstWords => "reply begins".to_owned(),
            Self::SystemPrompt => "system prompt".to_owned(),
            Self::OfMessages(name) => format!("messages' {name}"),
        }
    }

    /// The values that `row` has, each once.
    pub fn values(&self, row: &Row) -> Vec<String> {
        let messages = || row.example.messages().unwrap_or_default();
        let found = match self {
            Self::Roles => {
                let roles: Vec<String> = messages().into_iter().map(|message| message.role).collect();
                Some(roles.join(" ")).filter(|roles| !roles.is_empty())
            }
            Self::Turns => Some(messages().len()).filter(|turns| *turns > 0).map(|turns| turns.to_string()),
            Self::Label => row.extras.label_name().map(str::to_owned),
            Self::File => Some(row.origin.file.display().to_string()),
            Self::FirstWords => row.example.reply().map(|reply| {
                let shown = reply.shown();
                let words: Vec<&str> = shown.split_whitespace().take(FIRST_WORDS).collect();
                if words.is_empty() { "(empty)".to_owned() } else { words.join(" ") }
            }),
            Self::SystemPrompt => {
                messages().into_iter().find(Message::is_system).map(|message| message.content)
            }
            Self::OfMessages(name) => {
                let values: BTreeSet<String> = messages()
                    .iter()
                    .filter_map(|message| message.fields.get(name))
                    .map(|value| match value {
                        Value::String(text) => fit(text, VALUE_COLUMNS),
                        other => fit(&other.to_string(), VALUE_COLUMNS),
                    })
                    .collect();
                if values.is_empty() {
                    return vec![ABSENT.to_owned()];
                }
                return values.into_iter().collect();
            }
        };
        vec![fit(found.as_deref().unwrap_or(ABSENT), VALUE_COLUMNS)]
    }
}

/// `12 rows   3 %`.
pub(super) fn share(count: usize, of: usize) -> String {
    let share = if of == 0 { 0.0 } else { count as f64 / of as f64 };
    // A few rows of many are not none.
    let percent = if count > 0 && share < 0.005 { "< 1 %".to_owned() } else { units::percent(share) };
    format!("{:>12}  {percent:>5}", units::counted(count, "row", "rows"))
}

#[cfg(test)]
mod tests {
    use luthier_core::data::{Example, Extras, Origin, Split};
    use serde_json::json;

    use super::*;

    fn row(messages: Vec<Message>) -> Row {
        Row {
            index: 0,
            origin: Origin { file: "a.jsonl".into(), line: 1 },
            split: Split::Train,
            example: Example::Messages(messages),
            extras: Extras::default(),
        }
    }

    #[test]
    fn fields_have_values() {
        let mut named = Message::new("user", "hello");
        named.fields.insert("name".to_owned(), json!("Ann"));
        let reply = |text: &str| Message::new("assistant", text);
        let rows = [
            row(vec![named, reply("I see that you are well.")]),
            row(vec![
                Message::new("system", "Be brief."),
                Message::new("user", "x"),
                reply("I see that too."),
            ]),
            row(vec![Message::new("user", "x"), reply("one"), Message::new("user", "y"), reply("")]),
        ];
        let names = rows.iter().flat_map(Field::names_in).collect();
        let fields = Field::all(false, names);
        assert!(!fields.contains(&Field::Label));
        assert!(fields.contains(&Field::OfMessages("name".to_owned())));
        assert_eq!(Field::FirstWords.values(&rows[0]), ["I see that"]);
        assert_eq!(Field::FirstWords.values(&rows[2]), ["(empty)"]);
        assert_eq!(Field::Turns.values(&rows[1]), ["3"]);
        assert_eq!(Field::SystemPrompt.values(&rows[0]), [ABSENT]);
        assert_eq!(Field::OfMessages("name".to_owned()).values(&rows[0]), ["Ann"]);
        assert_eq!(Field::Roles.values(&rows[0]), ["user assistant"]);
    }

    #[test]
    fn shares_are_aligned_and_a_few_are_not_none() {
        assert_eq!(share(1, 1000), "       1 row  < 1 %");
        assert_eq!(share(500, 1000), "    500 rows   50 %");
        assert_eq!(share(0, 0), "      0 rows    0 %");
    }
}
