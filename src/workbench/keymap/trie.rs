//! Key sequences to commands: one trie per context; contexts are searched in order.

use std::collections::BTreeMap;

use super::key::Key;
use crate::command::Command;

/// What a sequence of keys means so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The sequence is bound.
    Matched(Command),
    /// The sequence is the beginning of others.
    Pending,
    /// Nothing begins like this.
    NotFound,
}

/// The node after a key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Leaf(Command),
    Branch(Trie),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trie {
    children: BTreeMap<Key, Node>,
}

/// Two bindings that exclude each other: the same sequence, or one a prefix of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    /// The command bound already.
    pub with: Command,
}

impl Trie {
    /// Adds a binding; refuses one that would hide another or be hidden by it.
    pub fn insert(&mut self, keys: &[Key], command: Command) -> Result<(), Clash> {
        let Some((first, rest)) = keys.split_first() else { return Ok(()) };
        match self.children.get_mut(first) {
            None => {
                let node = if rest.is_empty() {
                    Node::Leaf(command)
                } else {
                    let mut branch = Self::default();
                    branch.insert(rest, command)?;
                    Node::Branch(branch)
                };
                self.children.insert(*first, node);
                Ok(())
            }
            Some(Node::Leaf(with)) => Err(Clash { with: *with }),
            Some(Node::Branch(branch)) => match (rest.is_empty(), branch.any()) {
                (true, Some(with)) => Err(Clash { with }),
                (true, None) => {
                    self.children.insert(*first, Node::Leaf(command));
                    Ok(())
                }
                (false, _) => branch.insert(rest, command),
            },
        }
    }

    /// Removes every binding at `keys` or in conflict with them.
    pub fn clear_path(&mut self, keys: &[Key]) {
        let Some((first, rest)) = keys.split_first() else { return };
        match self.children.get_mut(first) {
            None => {}
            Some(Node::Branch(branch)) if !rest.is_empty() => {
                branch.clear_path(rest);
                if branch.children.is_empty() {
                    self.children.remove(first);
                }
            }
            Some(_) => {
                self.children.remove(first);
            }
        }
    }

    pub fn lookup(&self, keys: &[Key]) -> Lookup {
        let Some((first, rest)) = keys.split_first() else { return Lookup::Pending };
        match self.children.get(first) {
            Some(Node::Leaf(command)) if rest.is_empty() => Lookup::Matched(*command),
            Some(Node::Branch(branch)) => branch.lookup(rest),
            Some(Node::Leaf(_)) | None => Lookup::NotFound,
        }
    }

    /// The keys that may follow `keys`, each with its command, or none if more keys must follow.
    pub fn following(&self, keys: &[Key]) -> Vec<(Key, Option<Command>)> {
        let mut trie = self;
        for key in keys {
            match trie.children.get(key) {
                Some(Node::Branch(branch)) => trie = branch,
                _ => return Vec::new(),
            }
        }
        let next = trie.children.iter();
        next.map(|(key, node)| (*key, if let Node::Leaf(command) = node { Some(*command) } else { None }))
            .collect()
    }

    /// Every binding, in key order.
    pub fn bindings(&self) -> Vec<(Vec<Key>, Command)> {
        let mut all = Vec::new();
        for (key, node) in &self.children {
            match node {
                Node::Leaf(command) => all.push((vec![*key], *command)),
                Node::Branch(branch) => {
                    for (mut rest, command) in branch.bindings() {
                        rest.insert(0, *key);
                        all.push((rest, command));
                    }
                }
            }
        }
        all
    }

    fn any(&self) -> Option<Command> {
        self.bindings().first().map(|(_, command)| *command)
    }
}
