//! Which keys run which command. Defaults come from the command table; the user's `keymap.toml` overrides them.

pub mod key;
mod trie;
mod user;

use std::collections::BTreeMap;

use strum::{EnumIter, IntoEnumIterator, IntoStaticStr};

pub use key::{Code, Key};
pub use trie::Lookup;
use trie::Trie;

use crate::command::{self, Command};
use crate::panes::PaneId;

/// Where a binding holds. What is active at a moment is an ordered list of these, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum KeyContext {
    /// Everywhere; searched last.
    Global,
    /// A list, table or scrolling text has the focus.
    List,
    Chart,
    /// Characters are being typed; keys that write text are never looked up elsewhere.
    Input,
    /// A box is open.
    Modal,
    /// A search is active.
    Search,
    /// A pane is shown.
    #[strum(disabled)]
    Pane(PaneId),
}

impl KeyContext {
    /// The name used in keymap files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pane(pane) => pane.name(),
            general => general.into(),
        }
    }

    /// All contexts, the panes' last.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::iter().chain(PaneId::iter().map(Self::Pane))
    }
}

/// All bindings in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keymap {
    tries: BTreeMap<KeyContext, Trie>,
}

/// One line of the box that shows what may follow the keys already pressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Following {
    pub key: Key,
    /// What it does; nothing where more keys must follow.
    pub command: Option<Command>,
}

impl Keymap {
    /// The bindings of the command table, with every clash found in it.
    pub fn defaults() -> (Self, Vec<String>) {
        let mut keymap = Self::default();
        let mut problems = Vec::new();
        for entry in command::table() {
            for (context, sequences) in entry.keys {
                for sequence in *sequences {
                    if let Err(problem) = keymap.bind(*context, sequence, entry.command) {
                        problems.push(problem);
                    }
                }
            }
        }
        (keymap, problems)
    }

    fn bind(&mut self, context: KeyContext, sequence: &str, command: Command) -> Result<(), String> {
        let keys = key::parse_sequence(sequence).map_err(|problem| problem.to_string())?;
        self.tries.entry(context).or_default().insert(&keys, command).map_err(|clash| {
            format!(
                "[{}] `{sequence}` of {} is already bound to {}",
                context.name(),
                command.name(),
                clash.with.name()
            )
        })
    }

    /// What `keys` mean where `contexts` are active, nearest first.
    pub fn lookup(&self, contexts: &[KeyContext], keys: &[Key]) -> Lookup {
        for context in searched(contexts, keys) {
            let found = self.tries.get(&context).map_or(Lookup::NotFound, |trie| trie.lookup(keys));
            if found != Lookup::NotFound {
                return found;
            }
        }
        Lookup::NotFound
    }

    /// What may follow `keys`, each next key once, with the meaning it would have.
    pub fn following(&self, contexts: &[KeyContext], keys: &[Key]) -> Vec<Following> {
        let mut next = BTreeMap::new();
        for context in searched(contexts, keys) {
            for (key, command) in
                self.tries.get(&context).map(|trie| trie.following(keys)).unwrap_or_default()
            {
                next.entry(key).or_insert(command);
            }
        }
        next.into_iter().map(|(key, command)| Following { key, command }).collect()
    }

    /// Every sequence that reaches `command` where `contexts` are active, shortest first.
    pub fn keys_of(&self, contexts: &[KeyContext], command: Command) -> Vec<Vec<Key>> {
        let mut found: Vec<Vec<Key>> = Vec::new();
        for context in contexts {
            let Some(trie) = self.tries.get(context) else { continue };
            for (keys, bound) in trie.bindings() {
                let reached = bound == command && self.lookup(contexts, &keys) == Lookup::Matched(command);
                if reached && !found.contains(&keys) {
                    found.push(keys);
                }
            }
        }
        found.sort_by_key(|keys| (keys.len(), declared_position(command, keys)));
        found
    }

    /// The sequence a hint shows for `command`, if any reaches it.
    pub fn label_of(&self, contexts: &[KeyContext], command: Command) -> Option<String> {
        self.keys_of(contexts, command).first().map(|keys| key::sequence_label(keys))
    }

    pub fn bindings(&self, context: KeyContext) -> Vec<(Vec<Key>, Command)> {
        self.tries.get(&context).map(Trie::bindings).unwrap_or_default()
    }
}

/// While text is typed, a key that writes a character belongs to the text and to nothing behind it.
fn searched(contexts: &[KeyContext], keys: &[Key]) -> impl Iterator<Item = KeyContext> {
    let typing =
        contexts.contains(&KeyContext::Input) && keys.first().is_some_and(|key| key.text().is_some());
    contexts.iter().copied().filter(move |context| !typing || *context == KeyContext::Input)
}

/// Where the table lists `keys` for `command`: the first listed is the one to teach.
fn declared_position(command: Command, keys: &[Key]) -> usize {
    let sequences = command.entry().keys.iter().flat_map(|(_, sequences)| sequences.iter());
    let mut parsed = sequences.map(|sequence| key::parse_sequence(sequence));
    parsed.position(|sequence| sequence.as_deref() == Ok(keys)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{AppCommand, ListCommand, ViewCommand};

    #[test]
    fn no_key_is_bound_twice() {
        let (_, problems) = Keymap::defaults();
        assert_eq!(problems, Vec::<String>::new());
    }

    #[test]
    fn nearer_contexts_win_and_prefixes_wait() {
        let (keymap, _) = Keymap::defaults();
        let contexts = [KeyContext::List, KeyContext::Global];
        let keys = |text: &str| key::parse_sequence(text).unwrap();
        assert_eq!(keymap.lookup(&contexts, &keys("g")), Lookup::Pending);
        assert_eq!(
            keymap.lookup(&contexts, &keys("g g")),
            Lookup::Matched(Command::List(ListCommand::First))
        );
        assert_eq!(keymap.lookup(&contexts, &keys("q")), Lookup::Matched(Command::App(AppCommand::Quit)));
        assert_eq!(keymap.lookup(&contexts, &keys("g q")), Lookup::NotFound);
        assert!(keymap.following(&contexts, &keys("g")).iter().any(|next| next.key == Key::char('g')));
    }

    #[test]
    fn typed_text_never_runs_a_command() {
        let (keymap, _) = Keymap::defaults();
        let contexts = [KeyContext::Input, KeyContext::Global];
        for character in ' '..='~' {
            assert_eq!(keymap.lookup(&contexts, &[Key::char(character)]), Lookup::NotFound, "{character}");
        }
        let palette = keymap.lookup(&contexts, &[Key::control('p')]);
        assert_eq!(palette, Lookup::Matched(Command::App(AppCommand::Palette)));
    }

    #[test]
    fn hints_teach_the_first_key_listed() {
        let (keymap, _) = Keymap::defaults();
        let contexts = [KeyContext::List, KeyContext::Global];
        assert_eq!(keymap.label_of(&contexts, Command::List(ListCommand::Down)).as_deref(), Some("j"));
        assert_eq!(keymap.label_of(&contexts, Command::App(AppCommand::Help)).as_deref(), Some("?"));
        assert_eq!(keymap.label_of(&contexts, Command::View(ViewCommand::Search)).as_deref(), Some("/"));
    }

    #[test]
    fn nothing_hangs_on_keys_that_terminals_cannot_tell_apart() {
        let risky =
            ["ctrl-i", "ctrl-m", "ctrl-h", "ctrl-[", "shift-enter", "ctrl-b", "ctrl-a", "ctrl-s", "ctrl-q"];
        let (keymap, _) = Keymap::defaults();
        for entry in command::table() {
            let all: Vec<String> = KeyContext::all()
                .flat_map(|context| keymap.bindings(context))
                .filter(|(_, command)| *command == entry.command)
                .map(|(keys, _)| key::print_sequence(&keys))
                .collect();
            let safe =
                |keys: &String| !keys.starts_with("alt-") && keys.split(' ').all(|key| !risky.contains(&key));
            assert!(all.is_empty() || all.iter().any(safe), "{} is only on {all:?}", entry.name);
        }
    }
}
