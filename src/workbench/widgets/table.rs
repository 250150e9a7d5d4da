//! Lists and tables: rows of columns, one of them selected.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::ListState;
use super::text::{self, Piece};
use crate::theme::{Role, Theme};

#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub title: &'static str,
    pub width: Width,
    /// Whether its cells end at its right edge, as numbers do.
    pub right: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// This many columns of the screen.
    Fixed(u16),
    /// What the others leave, shared among all such columns, but not less than this.
    Rest(u16),
}

/// The spaces between two columns.
const GAP: u16 = 2;

/// What a table is drawn with.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// Its columns. Those that do not fit are left out, the last first.
    pub columns: &'a [Column],
    pub headings: bool,
    /// Its state.
    pub state: &'a ListState,
    pub focused: bool,
}

impl Table<'_> {
    /// Draws the rows in sight. `row` gives the cells of one row, in the order of the columns; only rows
    /// that are drawn are asked for.
    pub fn draw<'r>(
        &self,
        area: Rect,
        buffer: &mut Buffer,
        theme: &Theme,
        mut row: impl FnMut(usize) -> Vec<Piece<'r>>,
    ) {
        let area = area.intersection(buffer.area);
        let widths = widths(self.columns, area.width.saturating_sub(2));
        let mut body = area;
        if self.headings && area.height > 0 {
            let cells: Vec<Piece<'_>> = self
                .columns
                .iter()
                .map(|column| Piece::new(column.title, theme.style(Role::Muted)))
                .collect();
            self.draw_row(&cells, &widths, area, buffer, None);
            body.y += 1;
            body.height -= 1;
        }
        for (index, y) in self.state.visible(body.height).zip(body.top()..) {
            let line = Rect { y, height: 1, ..body };
            let selected = self.state.selected() == Some(index);
            let over = selected
                .then(|| theme.style(if self.focused { Role::Selection } else { Role::SelectionIdle }));
            if let Some(style) = over {
                buffer.set_style(line, style);
                text::put(buffer, line.x, y, line.right(), "▸", style);
            }
            self.draw_row(&row(index), &widths, line, buffer, over);
        }
    }

    fn draw_row(
        &self,
        cells: &[Piece<'_>],
        widths: &[u16],
        line: Rect,
        buffer: &mut Buffer,
        over: Option<Style>,
    ) {
        let mut x = line.x + 2.min(line.width);
        for ((cell, column), width) in cells.iter().zip(self.columns).zip(widths) {
            // The colour of a state stays on the selected row; its background is the selection's.
            let style = match over {
                Some(over) => {
                    Style { fg: cell.style.fg.or(over.fg), ..over.add_modifier(cell.style.add_modifier) }
                }
                None => cell.style,
            };
            let end = (x + width).min(line.right());
            if column.right {
                text::put_right(buffer, x.min(end), line.y, end, &cell.text, style);
            } else {
                text::put(buffer, x, line.y, end, &cell.text, style);
            }
            x = end + GAP;
        }
    }
}

/// The widths of the columns that fit into `room`.
fn widths(columns: &[Column], room: u16) -> Vec<u16> {
    let least = |column: &Column| match column.width {
        Width::Fixed(width) | Width::Rest(width) => width,
    };
    let mut count = columns.len();
    let needed = |count: usize| {
        columns[..count].iter().map(|column| u32::from(least(column)) + u32::from(GAP)).sum::<u32>()
    };
    while count > 1 && needed(count) > u32::from(room) + u32::from(GAP) {
        count -= 1;
    }
    let mut left = (u32::from(room) + u32::from(GAP)).saturating_sub(needed(count)) as u16;
    let mut sharing =
        columns[..count].iter().filter(|column| matches!(column.width, Width::Rest(_))).count() as u16;
    columns[..count]
        .iter()
        .map(|column| match column.width {
            Width::Fixed(width) => width.min(room),
            Width::Rest(width) => {
                let share = left / sharing.max(1);
                left -= share;
                sharing -= 1;
                (width + share).min(room)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::theme::Library;

    const COLUMNS: &[Column] = &[
        Column { title: "#", width: Width::Fixed(3), right: true },
        Column { title: "name", width: Width::Rest(6), right: false },
        Column { title: "loss", width: Width::Fixed(6), right: true },
    ];

    fn drawn(width: u16, height: u16, state: &ListState) -> Vec<String> {
        let theme = Library::default().load("luthier").0;
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        let table = Table { columns: COLUMNS, headings: true, state, focused: true };
        table.draw(area, &mut buffer, &theme, |index| {
            let style = Style::new();
            vec![
                Piece::new(index.to_string(), style),
                Piece::new(format!("run {index} with\na long name"), style),
                Piece::new("0.913", style),
            ]
        });
        (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect()).collect()
    }

    #[test]
    fn columns_share_the_room_and_the_selection_is_in_sight() {
        let mut state = ListState::new(20);
        state.select(10);
        let rows = drawn(30, 4, &state);
        assert_eq!(rows[0], "    #  name               loss");
        assert!(rows[1..].iter().any(|row| row.starts_with("▸  10  run 10 with⏎a …")), "{rows:#?}");
        assert!(rows[1].ends_with("0.913"));
    }

    #[test]
    fn columns_that_do_not_fit_are_left_out() {
        let state = ListState::new(1);
        let rows = drawn(16, 2, &state);
        assert!(!rows[0].contains("loss") && rows[0].contains("name"), "{rows:#?}");
        for (width, height) in [(0, 0), (1, 1), (3, 1)] {
            drawn(width, height, &state);
        }
    }
}
