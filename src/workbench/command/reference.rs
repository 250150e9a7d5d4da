//! The reference of commands and keys, written from the table.

use std::fmt::Write;

use super::table;
use crate::keymap::key;

/// Markdown: a table of every command with its default keys and what it does.
pub fn reference() -> String {
    let mut text = String::from(
        "# Commands and keys\n\nKeys are the defaults; `$XDG_CONFIG_HOME/luthier/keymap.toml` changes them: \
         `[context]` tables of `\"keys\" = \"command\"`, `\"none\"` to unbind.\n\n\
         | command | keys | does |\n|---|---|---|\n",
    );
    for entry in table() {
        let mut keys = Vec::new();
        for (context, sequences) in entry.keys {
            let written: Vec<String> = sequences
                .iter()
                .filter_map(|sequence| key::parse_sequence(sequence).ok())
                .map(|sequence| format!("`{}`", key::print_sequence(&sequence).replace('|', "\\|")))
                .collect();
            keys.push(format!("{} ({})", written.join(" "), context.name()));
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| `{}` | {} | {} |", entry.name, keys.join(", "), entry.doc);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_the_reference() {
        let text = reference();
        for entry in table() {
            assert!(text.contains(&format!("| `{}` |", entry.name)), "{}", entry.name);
        }
        assert!(text.contains("`ctrl-w h`"));
    }
}
