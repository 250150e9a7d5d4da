//! Settings that a person types in one line.

/// Splits `a.b=1 c.d="x y" e.f=[1, 2]` where a new setting begins, so that values may contain spaces. Any word that
/// could be a key begins one, known or not: an unknown key must not become part of the value before it.
pub fn settings_of(text: &str) -> Vec<String> {
    let mut settings: Vec<String> = Vec::new();
    let mut inside = Inside::default();
    let mut begin = 0;
    for (at, character) in text.char_indices() {
        let after_space = text[..at].ends_with(char::is_whitespace);
        if after_space && !inside.is_open() && begins_setting(&text[at..]) {
            settings.push(text[begin..at].trim().to_owned());
            begin = at;
            inside = Inside::default();
        }
        inside.take(character);
    }
    settings.push(text[begin..].trim().to_owned());
    settings.retain(|setting| !setting.is_empty());
    settings
}

/// Whether `text` starts with a word in the form of a key, directly followed by `=`.
fn begins_setting(text: &str) -> bool {
    let Some((key, _)) = text.split_once('=') else { return false };
    key.starts_with(|first: char| first.is_ascii_alphabetic())
        && key.chars().all(|character| character.is_ascii_alphanumeric() || "._-".contains(character))
}

/// What is open in a value: a quoted text, or brackets.
#[derive(Default)]
struct Inside {
    quote: Option<char>,
    depth: usize,
    escaped: bool,
    /// Whether the value has begun with something that is neither: quotes in it are then only characters.
    bare: bool,
    /// Whether the `=` has come.
    value: bool,
}

impl Inside {
    fn is_open(&self) -> bool {
        self.quote.is_some() || self.depth > 0
    }

    fn take(&mut self, character: char) {
        if let Some(quote) = self.quote {
            if self.escaped {
                self.escaped = false;
            } else if character == '\\' && quote == '"' {
                self.escaped = true;
            } else if character == quote {
                self.quote = None;
            }
            return;
        }
        match character {
            _ if !self.value => self.value = character == '=',
            _ if self.bare || character.is_whitespace() => {}
            '"' | '\'' => self.quote = Some(character),
            '[' | '{' => self.depth += 1,
            ']' | '}' => self.depth = self.depth.saturating_sub(1),
            _ if self.depth == 0 => self.bare = true,
            _ => {}
        }
    }
}
