//! Selection and scroll position of a list.

use std::cell::Cell;
use std::ops::Range;

use crate::command::ListCommand;

/// Rows kept visible above and below the selection.
const MARGIN: usize = 2;

/// Selection and scroll position of a list or table.
///
/// The height is not known before a frame is drawn; a view sets it through [`ListState::visible`], and
/// that is the only thing a view ever changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListState {
    selected: usize,
    length: usize,
    offset: Cell<usize>,
    height: Cell<usize>,
}

impl ListState {
    /// A list of `length` entries with the first selected.
    pub fn new(length: usize) -> Self {
        Self { length, ..Self::default() }
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// The selected entry; nothing in an empty list.
    pub fn selected(&self) -> Option<usize> {
        (self.length > 0).then_some(self.selected)
    }

    /// Selects an entry, the last one if there are fewer.
    pub fn select(&mut self, index: usize) {
        self.selected = index.min(self.length.saturating_sub(1));
    }

    /// The entries changed: `position` is the new position of the selected one, if it still exists. The selected
    /// entry stays selected, and stays where it was on screen.
    pub fn changed(&mut self, length: usize, position: Option<usize>) {
        self.length = length;
        let target = position.unwrap_or(self.selected).min(length.saturating_sub(1));
        self.offset.set((self.offset.get() + target).saturating_sub(self.selected));
        self.selected = target;
    }

    /// Moves; returns whether anything moved.
    pub fn apply(&mut self, command: ListCommand) -> bool {
        let page = self.height.get().max(2);
        let last = self.length.saturating_sub(1);
        let before = self.selected;
        self.selected = match command {
            ListCommand::Down => before.saturating_add(1),
            ListCommand::Up => before.saturating_sub(1),
            ListCommand::First => 0,
            ListCommand::Last => last,
            ListCommand::HalfDown => before.saturating_add(page / 2),
            ListCommand::HalfUp => before.saturating_sub(page / 2),
            ListCommand::PageDown => before.saturating_add(page - 1),
            ListCommand::PageUp => before.saturating_sub(page - 1),
            ListCommand::Left
            | ListCommand::Right
            | ListCommand::ScrollLeft
            | ListCommand::ScrollRight
            | ListCommand::Open
            | ListCommand::Mark => before,
        }
        .min(last);
        self.selected != before
    }

    /// The entries to draw in `height` rows; the selection is among them, with some around it.
    pub fn visible(&self, height: u16) -> Range<usize> {
        let height = usize::from(height);
        self.height.set(height);
        if height == 0 {
            return 0..0;
        }
        let margin = MARGIN.min((height - 1) / 2);
        let lowest = (self.selected + margin + 1).saturating_sub(height);
        let highest = self.selected.saturating_sub(margin);
        let end = self.length.saturating_sub(height);
        let offset = self.offset.get().max(lowest).min(highest).min(end);
        self.offset.set(offset);
        offset..(offset + height).min(self.length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn selection_survives_new_entries_and_stays_in_place() {
        let mut list = ListState::new(10);
        list.select(5);
        let before = list.visible(4);
        list.changed(12, Some(7));
        assert_eq!(list.selected(), Some(7));
        let after = list.visible(4);
        assert_eq!(after.start, before.start + 2);
        list.changed(3, None);
        assert_eq!(list.selected(), Some(2));
        list.changed(0, None);
        assert_eq!(list.selected(), None);
        assert_eq!(list.visible(4), 0..0);
    }

    #[test]
    fn pages_follow_the_height_last_drawn() {
        let mut list = ListState::new(100);
        list.visible(20);
        list.apply(ListCommand::HalfDown);
        assert_eq!(list.selected(), Some(10));
        list.apply(ListCommand::PageDown);
        assert_eq!(list.selected(), Some(29));
        assert!(!list.apply(ListCommand::Open));
        list.apply(ListCommand::Last);
        assert_eq!(list.visible(20), 80..100);
    }

    proptest! {
        #[test]
        fn the_selection_is_always_in_sight(
            length in 0usize..60, height in 0u16..30, steps in proptest::collection::vec(0u8..8, 0..40)
        ) {
            let mut list = ListState::new(length);
            for step in steps {
                list.apply([
                    ListCommand::Down, ListCommand::Up, ListCommand::First, ListCommand::Last,
                    ListCommand::HalfDown, ListCommand::HalfUp, ListCommand::PageDown, ListCommand::PageUp,
                ][usize::from(step)]);
                let visible = list.visible(height);
                prop_assert!(visible.end <= length && visible.len() <= usize::from(height));
                if let (Some(selected), true) = (list.selected(), height > 0) {
                    prop_assert!(visible.contains(&selected));
                    prop_assert_eq!(visible.len(), usize::from(height).min(length));
                }
            }
        }
    }
}
