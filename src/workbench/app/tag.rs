//! Which effect an answer belongs to, so that stale answers can be dropped.

use std::collections::HashMap;

use crate::panes::PaneId;

/// Whether a newer effect of the same kind replaces this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// Effects are independent, and every answer is delivered.
    Each,
    /// Only the newest effect of this name is wanted: a preview of the selected row, a followed journal.
    /// Older work is stopped and its answers are dropped.
    Latest(&'static str),
}

/// Goes out with an effect and comes back with each of its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// What replaces what.
    pub slot: Slot,
    /// Counts the effects of one slot.
    pub generation: u64,
}

/// The newest generation of every slot of every pane.
#[derive(Debug, Default)]
pub struct Generations {
    newest: HashMap<(PaneId, &'static str), u64>,
}

impl Generations {
    /// The tag for a new effect; answers to older ones of its slot are stale from now on.
    pub fn issue(&mut self, pane: PaneId, slot: Slot) -> Tag {
        let generation = match slot {
            Slot::Each => 0,
            Slot::Latest(name) => {
                let newest = self.newest.entry((pane, name)).or_default();
                *newest += 1;
                *newest
            }
        };
        Tag { slot, generation }
    }

    /// Whether an answer is still wanted.
    pub fn is_current(&self, pane: PaneId, tag: Tag) -> bool {
        match tag.slot {
            Slot::Each => true,
            Slot::Latest(name) => self.newest.get(&(pane, name)) == Some(&tag.generation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_of_a_slot_is_current() {
        let mut generations = Generations::default();
        let first = generations.issue(PaneId::Data, Slot::Latest("row"));
        let other = generations.issue(PaneId::Train, Slot::Latest("row"));
        let second = generations.issue(PaneId::Data, Slot::Latest("row"));
        assert!(!generations.is_current(PaneId::Data, first));
        assert!(generations.is_current(PaneId::Data, second));
        assert!(generations.is_current(PaneId::Train, other));
        let each = generations.issue(PaneId::Data, Slot::Each);
        generations.issue(PaneId::Data, Slot::Each);
        assert!(generations.is_current(PaneId::Data, each));
    }
}
