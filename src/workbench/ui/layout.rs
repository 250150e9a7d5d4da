//! How the screen is divided.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::theme::Theme;
use crate::widgets::rule;

/// Narrowest screen that shows a list next to its detail.
pub const WIDE: u16 = 100;

/// The parts of the whole screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Project, panes, and the state of the machine.
    pub header: Rect,
    /// The rule under the header.
    pub upper_rule: Rect,
    pub body: Rect,
    /// The rule above the footer.
    pub lower_rule: Rect,
    /// Keys that work here, and the last message.
    pub footer: Rect,
}

impl Screen {
    /// The parts of `area`, which is at least five rows high.
    pub fn new(area: Rect) -> Self {
        let row = |y: u16| Rect {
            y: area.y + y.min(area.height.saturating_sub(1)),
            height: 1.min(area.height),
            ..area
        };
        Self {
            header: row(0),
            upper_rule: row(1),
            body: Rect { y: area.y + 2.min(area.height), height: area.height.saturating_sub(4), ..area },
            lower_rule: row(area.height.saturating_sub(2)),
            footer: row(area.height.saturating_sub(1)),
        }
    }
}

/// A list and the detail of what is selected in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Side by side.
    Wide { list: Rect, detail: Rect },
    /// The list is one line above the detail: the selected one, with how many there are.
    Narrow { selector: Rect, detail: Rect },
}

/// Splits `area` into a list of `list_width` columns and its detail, and draws the rule between them. On a
/// narrow screen the list becomes one line.
pub fn list_and_detail(area: Rect, list_width: u16, buffer: &mut Buffer, theme: &Theme) -> Split {
    if area.width < WIDE {
        let selector = Rect { height: area.height.min(1), ..area };
        let below = Rect { y: area.y + selector.height, height: area.height - selector.height, ..area };
        rule::horizontal(below, buffer, theme);
        let detail =
            Rect { y: (below.y + 1).min(area.bottom()), height: below.height.saturating_sub(1), ..area };
        return Split::Narrow { selector, detail };
    }
    let list_width = list_width.min(area.width / 2);
    let list = Rect { width: list_width, ..area };
    let rest = Rect { x: area.x + list_width, width: area.width - list_width, ..area };
    rule::vertical(rest, buffer, theme);
    Split::Wide { list, detail: Rect { x: rest.x + 2, width: rest.width - 2, ..rest } }
}

/// On a screen that is too narrow for [`list_and_detail`] to have a list, and high enough: a list of `list_height` rows
/// and its detail below, with the rule between them drawn.
pub fn list_over_detail(
    area: Rect,
    list_height: u16,
    buffer: &mut Buffer,
    theme: &Theme,
) -> Option<(Rect, Rect)> {
    if area.width >= WIDE || area.height < 3 * list_height {
        return None;
    }
    let list = Rect { height: list_height, ..area };
    let below = Rect { y: area.y + list_height, height: area.height - list_height, ..area };
    rule::horizontal(below, buffer, theme);
    Some((list, Rect { y: below.y + 1, height: below.height - 1, ..below }))
}

/// `width`×`height` in the middle of `area`, smaller where that does not fit.
pub fn centered(area: Rect, width: u16, height: u16) -> Rect {
    let width = width.min(area.width);
    let height = height.min(area.height);
    Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 3, width, height }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::theme::Library;

    #[test]
    fn parts_fill_the_screen_and_never_overlap() {
        for height in 0..60 {
            let screen = Screen::new(Rect::new(0, 0, 80, height));
            assert!(screen.body.bottom() <= height && screen.footer.bottom() <= height);
            if height >= 5 {
                assert_eq!(screen.body, Rect::new(0, 2, 80, height - 4));
            }
        }
    }

    #[test]
    fn the_list_collapses_on_narrow_screens() {
        let theme = Library::default().load("luthier").0;
        let split = |width, height| {
            let area = Rect::new(0, 0, width, height);
            list_and_detail(area, 33, &mut Buffer::empty(area), &theme)
        };
        assert_eq!(
            split(120, 28),
            Split::Wide { list: Rect::new(0, 0, 33, 28), detail: Rect::new(35, 0, 85, 28) }
        );
        assert_eq!(
            split(80, 20),
            Split::Narrow { selector: Rect::new(0, 0, 80, 1), detail: Rect::new(0, 2, 80, 18) }
        );
        split(80, 0);
        split(200, 0);
        let over = |width, height| {
            let area = Rect::new(0, 0, width, height);
            list_over_detail(area, 6, &mut Buffer::empty(area), &theme)
        };
        assert_eq!(over(80, 20), Some((Rect::new(0, 0, 80, 6), Rect::new(0, 7, 80, 13))));
        assert_eq!((over(80, 17), over(200, 20)), (None, None));
    }
}
