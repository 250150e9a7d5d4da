//! One key press: reading it, writing it, naming it on screen.

use std::fmt;
use std::str::FromStr;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// A key with its modifiers, in the one spelling that terminals agree on.
///
/// A character already carries its shift (`J` is not `shift-j`), and control makes letters lower-case,
/// so each key a terminal can send has exactly one value here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub code: Code,
    pub control: bool,
    pub alt: bool,
    /// Held with shift; never set on characters.
    pub shift: bool,
}

/// What was pressed, without modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    Char(char),
    Enter,
    Escape,
    /// Tab; shift-tab is tab with shift.
    Tab,
    Backspace,
    Delete,
    Insert,
    Left,
    Right,
    Up,
    Down,
    Home,
    End,
    PageUp,
    PageDown,
    /// F1 and so on.
    Function(u8),
}

/// Names of the keys that are not characters, as written in keymaps.
const NAMES: &[(&str, Code)] = &[
    ("enter", Code::Enter),
    ("esc", Code::Escape),
    ("tab", Code::Tab),
    ("backspace", Code::Backspace),
    ("delete", Code::Delete),
    ("insert", Code::Insert),
    ("left", Code::Left),
    ("right", Code::Right),
    ("up", Code::Up),
    ("down", Code::Down),
    ("home", Code::Home),
    ("end", Code::End),
    ("pageup", Code::PageUp),
    ("pagedown", Code::PageDown),
    ("space", Code::Char(' ')),
];

/// A key that could not be read, with the word that stood there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a key: write a character, or one of enter esc tab space up down f1, with ctrl- alt- shift- before it"
)]
pub struct KeyError(pub String);

impl Key {
    pub const fn plain(code: Code) -> Self {
        Self { code, control: false, alt: false, shift: false }
    }

    pub const fn char(character: char) -> Self {
        Self::plain(Code::Char(character))
    }

    pub const fn control(character: char) -> Self {
        Self { code: Code::Char(character), control: true, alt: false, shift: false }
    }

    /// What the terminal reported, or nothing for keys that no one binds (media keys, lone modifiers).
    pub fn from_terminal(event: &KeyEvent) -> Option<Self> {
        let code = match event.code {
            KeyCode::Char(character) => Code::Char(character),
            KeyCode::Enter => Code::Enter,
            KeyCode::Esc => Code::Escape,
            KeyCode::Tab | KeyCode::BackTab => Code::Tab,
            KeyCode::Backspace => Code::Backspace,
            KeyCode::Delete => Code::Delete,
            KeyCode::Insert => Code::Insert,
            KeyCode::Left => Code::Left,
            KeyCode::Right => Code::Right,
            KeyCode::Up => Code::Up,
            KeyCode::Down => Code::Down,
            KeyCode::Home => Code::Home,
            KeyCode::End => Code::End,
            KeyCode::PageUp => Code::PageUp,
            KeyCode::PageDown => Code::PageDown,
            KeyCode::F(number) => Code::Function(number),
            _ => return None,
        };
        Some(
            Self {
                code,
                control: event.modifiers.contains(KeyModifiers::CONTROL),
                alt: event.modifiers.contains(KeyModifiers::ALT),
                shift: event.modifiers.contains(KeyModifiers::SHIFT) || event.code == KeyCode::BackTab,
            }
            .normal(),
        )
    }

    /// The character this key writes into a text field, if it writes one.
    pub fn text(self) -> Option<char> {
        match self.code {
            Code::Char(character) if !self.control && !self.alt => Some(character),
            _ => None,
        }
    }

    /// A digit without modifiers.
    pub fn digit(self) -> Option<u32> {
        self.text().and_then(|character| character.to_digit(10))
    }

    /// How hints show it: short, with arrows and `↵`.
    pub fn label(self) -> String {
        let base = match self.code {
            Code::Enter => "↵".to_owned(),
            Code::Left => "←".to_owned(),
            Code::Right => "→".to_owned(),
            Code::Up => "↑".to_owned(),
            Code::Down => "↓".to_owned(),
            Code::Function(number) => format!("F{number}"),
            _ => Self { control: false, alt: false, shift: false, ..self }.to_string(),
        };
        format!("{}{base}", self.prefix())
    }

    fn prefix(self) -> String {
        let mut prefix = String::new();
        for (held, name) in [(self.control, "ctrl-"), (self.alt, "alt-"), (self.shift, "shift-")] {
            if held {
                prefix.push_str(name);
            }
        }
        prefix
    }

    fn normal(mut self) -> Self {
        if let Code::Char(character) = self.code {
            if self.shift && character.is_lowercase() && !self.control {
                let mut upper = character.to_uppercase();
                if let (Some(one), None) = (upper.next(), upper.next()) {
                    self.code = Code::Char(one);
                }
            }
            if self.control {
                self.code = Code::Char(character.to_ascii_lowercase());
            }
            self.shift = false;
        }
        self
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.prefix())?;
        if let Some((name, _)) = NAMES.iter().find(|(_, code)| *code == self.code) {
            return formatter.write_str(name);
        }
        match self.code {
            Code::Char(character) => write!(formatter, "{character}"),
            Code::Function(number) => write!(formatter, "f{number}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut key = Self::char(' ');
        let mut rest = text;
        loop {
            let (held, after) = if let Some(after) = rest.strip_prefix("ctrl-") {
                (&mut key.control, after)
            } else if let Some(after) = rest.strip_prefix("alt-") {
                (&mut key.alt, after)
            } else if let Some(after) = rest.strip_prefix("shift-") {
                (&mut key.shift, after)
            } else {
                break;
            };
            if after.is_empty() || *held {
                return Err(KeyError(text.to_owned()));
            }
            *held = true;
            rest = after;
        }
        let mut characters = rest.chars();
        key.code = match (characters.next(), characters.next()) {
            (Some(one), None) if !one.is_control() => Code::Char(one),
            _ => NAMES
                .iter()
                .find(|(name, _)| *name == rest)
                .map(|(_, code)| *code)
                .or_else(|| {
                    let number: u8 = rest.strip_prefix('f')?.parse().ok()?;
                    (1..=24).contains(&number).then_some(Code::Function(number))
                })
                .ok_or_else(|| KeyError(text.to_owned()))?,
        };
        Ok(key.normal())
    }
}

/// Reads a sequence as keymaps write it: keys with spaces between them, `"g g"` or `"ctrl-w h"`.
pub fn parse_sequence(text: &str) -> Result<Vec<Key>, KeyError> {
    let keys: Vec<Key> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    if keys.is_empty() { Err(KeyError(text.to_owned())) } else { Ok(keys) }
}

/// Writes a sequence so that [`parse_sequence`] reads it back.
pub fn print_sequence(keys: &[Key]) -> String {
    keys.iter().map(Key::to_string).collect::<Vec<_>>().join(" ")
}

/// How hints show a sequence: `gg`, `ctrl-w h`.
pub fn sequence_label(keys: &[Key]) -> String {
    let labels: Vec<String> = keys.iter().map(|key| key.label()).collect();
    let separator = if labels.iter().all(|label| label.chars().count() == 1) { "" } else { " " };
    labels.join(separator)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = Key> {
        let code = prop_oneof![
            any::<char>()
                .prop_filter("no control or blank", |c| !c.is_control() && (*c == ' ' || !c.is_whitespace()))
                .prop_map(Code::Char),
            proptest::sample::select(NAMES).prop_map(|(_, code)| code),
            (1u8..=24).prop_map(Code::Function),
        ];
        (code, any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(code, control, alt, shift)| Key { code, control, alt, shift }.normal())
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(keys in proptest::collection::vec(any_key(), 1..4)) {
            prop_assert_eq!(parse_sequence(&print_sequence(&keys)), Ok(keys));
        }

        #[test]
        fn any_text_parses_or_is_refused(text in ".*") {
            if let Ok(keys) = parse_sequence(&text) {
                prop_assert_eq!(parse_sequence(&print_sequence(&keys)), Ok(keys));
            }
        }
    }

    #[test]
    fn spellings() {
        assert_eq!("ctrl-P".parse(), Ok(Key::control('p')));
        assert_eq!("shift-tab".parse(), Ok(Key { shift: true, ..Key::plain(Code::Tab) }));
        assert_eq!("shift-j".parse(), Ok(Key::char('J')));
        assert_eq!("-".parse(), Ok(Key::char('-')));
        assert_eq!("ctrl--".parse(), Ok(Key::control('-')));
        assert_eq!("<".parse(), Ok(Key::char('<')));
        for wrong in ["", "ctrl-", "f0", "f99", "enterr", "ctrl-ctrl-x"] {
            assert!(wrong.parse::<Key>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn shift_reported_with_a_character_is_dropped() {
        let event = KeyEvent::new(KeyCode::Char('J'), KeyModifiers::SHIFT);
        assert_eq!(Key::from_terminal(&event), Some(Key::char('J')));
        let back = KeyEvent::new(KeyCode::BackTab, KeyModifiers::NONE);
        assert_eq!(Key::from_terminal(&back).map(|key| key.to_string()), Some("shift-tab".to_owned()));
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(sequence_label(&parse_sequence("g g").unwrap()), "gg");
        assert_eq!(sequence_label(&parse_sequence("ctrl-w h").unwrap()), "ctrl-w h");
        assert_eq!(sequence_label(&parse_sequence("enter").unwrap()), "↵");
    }
}
