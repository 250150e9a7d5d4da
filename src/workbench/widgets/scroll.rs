//! Scroll position of a long text.

use std::cell::Cell;

use crate::command::ListCommand;

/// Scroll position of a text. The heights become known when it is drawn; see [`Scroll::visible`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scroll {
    offset: Cell<usize>,
    lines: Cell<usize>,
    height: Cell<usize>,
}

impl Scroll {
    /// Moves; returns whether anything moved.
    pub fn apply(&mut self, command: ListCommand) -> bool {
        let page = self.height.get().max(2);
        let last = self.lines.get().saturating_sub(self.height.get());
        let before = self.offset.get();
        let after = match command {
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
        };
        self.offset.set(after.min(last));
        self.offset.get() != before
    }

    /// Scrolls to the start.
    pub fn reset(&mut self) {
        self.offset.set(0);
    }

    /// Scrolls to the end, and follows it until moved.
    pub fn to_end(&mut self) {
        self.offset.set(usize::MAX);
    }

    /// The first line to draw of `lines` in `height` rows.
    pub fn visible(&self, lines: usize, height: u16) -> usize {
        self.lines.set(lines);
        self.height.set(height.into());
        let last = lines.saturating_sub(height.into());
        self.offset.set(self.offset.get().min(last));
        self.offset.get()
    }

    /// Whether there are lines below the ones drawn last.
    pub fn has_more(&self) -> bool {
        self.offset.get() + self.height.get() < self.lines.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_at_both_ends() {
        let mut scroll = Scroll::default();
        assert_eq!(scroll.visible(30, 10), 0);
        assert!(scroll.has_more());
        assert!(!scroll.apply(ListCommand::Up));
        assert!(scroll.apply(ListCommand::PageDown));
        assert_eq!(scroll.visible(30, 10), 9);
        scroll.apply(ListCommand::Last);
        assert_eq!(scroll.visible(30, 10), 20);
        assert!(!scroll.has_more());
        assert_eq!(scroll.visible(5, 10), 0);
    }
}
