//! The user's `keymap.toml`: `[context]` tables of `"keys" = "command"`, `"none"` to unbind.

use super::key::parse_sequence;
use super::{KeyContext, Keymap};
use crate::command::{self, Command};

impl Keymap {
    /// The defaults with `text` over them. Whatever is wrong in it is reported, line by line, and skipped.
    pub fn with_user(text: &str) -> (Self, Vec<String>) {
        let (mut keymap, mut problems) = Self::defaults();
        let tables = match toml::from_str::<toml::Table>(text) {
            Ok(tables) => tables,
            Err(problem) => {
                problems.push(problem.to_string());
                return (keymap, problems);
            }
        };
        for (name, bindings) in tables {
            let Some(context) = KeyContext::all().find(|context| context.name() == name) else {
                problems.push(format!("[{name}] is not a key context; there are {}", context_names()));
                continue;
            };
            let toml::Value::Table(bindings) = bindings else {
                problems.push(format!("`{name}` must be a table: [{name}]"));
                continue;
            };
            for (sequence, target) in bindings {
                if let Err(problem) = keymap.rebind(context, &sequence, &target) {
                    problems.push(format!("[{name}] {problem}"));
                }
            }
        }
        (keymap, problems)
    }

    fn rebind(&mut self, context: KeyContext, sequence: &str, target: &toml::Value) -> Result<(), String> {
        let keys = parse_sequence(sequence).map_err(|problem| problem.to_string())?;
        let Some(name) = target.as_str() else {
            return Err(format!("`{sequence}` must name a command in quotes, or \"none\""));
        };
        let command = match name {
            "none" => None,
            _ => Some(named(name).ok_or_else(|| unknown(name))?),
        };
        let trie = self.tries.entry(context).or_default();
        trie.clear_path(&keys);
        match command {
            None => Ok(()),
            Some(command) => trie.insert(&keys, command).map_err(|clash| {
                format!(
                    "`{sequence}` is the start of longer keys of {}; unbind those first",
                    clash.with.name()
                )
            }),
        }
    }
}

fn named(name: &str) -> Option<Command> {
    command::table().find(|entry| entry.name == name).map(|entry| entry.command)
}

fn unknown(name: &str) -> String {
    let near = command::table()
        .map(|entry| entry.name)
        .filter(|candidate| candidate.contains(name) || name.contains(candidate))
        .min_by_key(|candidate| candidate.len().abs_diff(name.len()));
    match near {
        Some(near) => format!("there is no command `{name}`; did you mean `{near}`?"),
        None => format!("there is no command `{name}`; press : to see them all"),
    }
}

fn context_names() -> String {
    KeyContext::all().map(KeyContext::name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::{Key, Lookup};
    use super::*;
    use crate::command::AppCommand;

    #[test]
    fn keys_move_unbind_and_complain() {
        let text = "[global]\n\"x x\" = \"quit\"\nq = \"none\"\n\"nokey\" = \"quit\"\nz = \"qui\"\n[here]\n";
        let (keymap, problems) = Keymap::with_user(text);
        let contexts = [KeyContext::Global];
        assert_eq!(keymap.lookup(&contexts, &[Key::char('q')]), Lookup::NotFound);
        let quit = Lookup::Matched(Command::App(AppCommand::Quit));
        assert_eq!(keymap.lookup(&contexts, &[Key::char('x'), Key::char('x')]), quit);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems.iter().any(|problem| problem.contains("did you mean `quit`")), "{problems:?}");
    }

    #[test]
    fn a_broken_file_leaves_the_defaults() {
        let (keymap, problems) = Keymap::with_user("[global\n");
        assert_eq!(keymap, Keymap::defaults().0);
        assert_eq!(problems.len(), 1);
    }
}
