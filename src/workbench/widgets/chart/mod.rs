//! Charts of values against steps: braille curves, axes with round numbers, marks and a cursor.
//!
//! Curves are painted one over the other and a later one covers an earlier one: a braille cell has one
//! colour, so mixing the dots of two curves would show one of them in the other's colour. The x domain is
//! the caller's and should stay the same while values come in: a window that slides repaints nearly every
//! cell, and each of them goes over the line.

mod canvas;
mod ticks;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use self::canvas::Canvas;
use self::ticks::Scale;
use super::text;
use crate::theme::{Role, Theme};

/// How a curve's points are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Joined by lines.
    Line,
    /// Joined by lines, each point marked by a sign.
    Signs(&'static str),
    /// Signs alone.
    Points(&'static str),
}

#[derive(Clone, Debug)]
pub struct Series<'a> {
    /// Points with rising x. Values that are no numbers leave a gap and do not move the axis.
    pub points: &'a [(f64, f64)],
    pub style: Style,
    pub shape: Shape,
}

/// A sign on the x axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    pub x: f64,
    /// One column wide.
    pub sign: &'static str,
    pub style: Style,
}

/// A chart about to be drawn.
pub struct Chart<'a> {
    /// Curves, the ones to be covered first.
    pub series: Vec<Series<'a>>,
    /// First and last x shown.
    pub x: (f64, f64),
    /// Whether y is logarithmic; values that are not above zero are gaps then.
    pub logarithmic: bool,
    pub marks: Vec<Mark>,
    /// The x under the cursor.
    pub cursor: Option<f64>,
    /// How values are written at the y axis.
    pub label: &'a dyn Fn(f64) -> String,
}

/// Rows that the x axis takes.
const AXIS_HEIGHT: u16 = 2;

impl Chart<'_> {
    /// Draws the chart into `area`; nothing where that is too small to read.
    pub fn draw(&self, area: Rect, buffer: &mut Buffer, theme: &Theme) {
        let area = area.intersection(buffer.area);
        let plot_height = area.height.saturating_sub(AXIS_HEIGHT);
        if plot_height < 2 || area.width < 16 {
            return;
        }
        let Some(scale) = Scale::of(self.values(), self.logarithmic, plot_height) else {
            text::put(buffer, area.x, area.y, area.right(), "no values yet", theme.style(Role::Muted));
            return;
        };
        let ticks: Vec<(f64, String)> =
            scale.ticks().into_iter().map(|tick| (tick, (self.label)(tick))).collect();
        let label_width = ticks.iter().map(|(_, label)| text::width(label)).max().unwrap_or(0) as u16;
        let left = (area.x + label_width + 2).min(area.right());
        let plot = Rect { x: left, y: area.y, width: area.right() - left, height: plot_height };
        if plot.width < 8 {
            return;
        }
        y_axis(plot, &scale, &ticks, area.x, buffer, theme);
        self.x_axis(plot, buffer, theme);
        self.curves(plot, &scale, buffer, theme);
        self.draw_cursor(plot, buffer, theme);
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        let (from, to) = self.x;
        self.series
            .iter()
            .flat_map(move |series| visible(series.points, from, to))
            .filter(move |point| (from..=to).contains(&point.0))
            .map(|point| point.1)
    }

    fn curves(&self, plot: Rect, scale: &Scale, buffer: &mut Buffer, theme: &Theme) {
        let mut canvas = Canvas::new(plot.width, plot.height, theme.markers());
        let (columns, rows) = canvas.size();
        for (index, series) in self.series.iter().enumerate() {
            if matches!(series.shape, Shape::Points(_)) {
                continue;
            }
            let place = |(x, y): (f64, f64)| {
                Some((self.across(x)? * (columns - 1) as f64, scale.down(y)? * (rows - 1) as f64))
            };
            canvas.line(index, visible(series.points, self.x.0, self.x.1).map(|point| place(*point)));
        }
        canvas.paint(plot, buffer, |index| self.series[index].style);
        for series in &self.series {
            let (Shape::Signs(sign) | Shape::Points(sign)) = series.shape else { continue };
            for &(x, y) in visible(series.points, self.x.0, self.x.1) {
                if let (Some(across), Some(down)) =
                    (self.across(x).filter(|x| (0.0..=1.0).contains(x)), scale.down(y))
                {
                    let column = plot.x + (across * f64::from(plot.width - 1)).round() as u16;
                    let row = plot.y + (down * f64::from(plot.height - 1)).round() as u16;
                    buffer[(column, row)].set_symbol(sign).set_style(series.style);
                }
            }
        }
    }

    /// Position of `x` between the first and the last one shown, from 0 to 1.
    fn across(&self, x: f64) -> Option<f64> {
        let width = self.x.1 - self.x.0;
        (width > 0.0 && x.is_finite()).then(|| (x - self.x.0) / width)
    }

    fn x_axis(&self, plot: Rect, buffer: &mut Buffer, theme: &Theme) {
        let style = theme.style(Role::Axis);
        let row = plot.bottom();
        for column in plot.left()..plot.right() {
            buffer[(column, row)].set_symbol("─").set_style(style);
        }
        buffer[(plot.x - 1, row)].set_symbol("└").set_style(style);
        let mut free = plot.x;
        for tick in ticks::steps(self.x.0, self.x.1, plot.width / 10) {
            let Some(across) = self.across(tick) else { continue };
            let column = plot.x + (across * f64::from(plot.width - 1)).round() as u16;
            buffer[(column, row)].set_symbol("┬").set_style(style);
            let label = format!("{tick:.0}");
            let width = label.len() as u16;
            let start = column.saturating_sub(width / 2).max(plot.x).min(plot.right().saturating_sub(width));
            if start >= free {
                free = text::put(buffer, start, row + 1, plot.right(), &label, style) + 1;
            }
        }
        for mark in &self.marks {
            if let Some(across) = self.across(mark.x).filter(|across| (0.0..=1.0).contains(across)) {
                let column = plot.x + (across * f64::from(plot.width - 1)).round() as u16;
                buffer[(column, row)].set_symbol(mark.sign).set_style(mark.style);
            }
        }
    }

    fn draw_cursor(&self, plot: Rect, buffer: &mut Buffer, theme: &Theme) {
        let Some(across) = self.cursor.and_then(|x| self.across(x)).filter(|x| (0.0..=1.0).contains(x))
        else {
            return;
        };
        let column = plot.x + (across * f64::from(plot.width - 1)).round() as u16;
        let style = theme.style(Role::ChartCursor);
        for row in plot.top()..plot.bottom() {
            let cell = &mut buffer[(column, row)];
            if cell.symbol() == " " {
                cell.set_symbol("│");
            }
            cell.set_style(style);
        }
    }
}

fn y_axis(plot: Rect, scale: &Scale, ticks: &[(f64, String)], left: u16, buffer: &mut Buffer, theme: &Theme) {
    let style = theme.style(Role::Axis);
    for row in plot.top()..plot.bottom() {
        buffer[(plot.x - 1, row)].set_symbol("│").set_style(style);
    }
    for (tick, label) in ticks {
        let Some(down) = scale.down(*tick) else { continue };
        let row = plot.y + (down * f64::from(plot.height - 1)).round() as u16;
        buffer[(plot.x - 1, row)].set_symbol("┤").set_style(style);
        text::put_right(buffer, left, row, plot.x - 1, label, style);
    }
}

/// The points between `from` and `to`, with one more on each side, so that lines reach the edges.
fn visible(points: &[(f64, f64)], from: f64, to: f64) -> std::slice::Iter<'_, (f64, f64)> {
    let first = points.partition_point(|point| point.0 < from).saturating_sub(1);
    let last = (points.partition_point(|point| point.0 <= to) + 1).min(points.len());
    points[first.min(last)..last].iter()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::theme::{ColorDepth, Library};

    fn drawn(chart: &Chart<'_>, width: u16, height: u16) -> Vec<String> {
        let library = Library { depth: Some(ColorDepth::None), ..Library::default() };
        let theme = library.load("luthier").0;
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        chart.draw(area, &mut buffer, &theme);
        (0..height)
            .map(|y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>())
            .collect()
    }

    fn label(value: f64) -> String {
        format!("{value:.1}")
    }

    fn chart(points: &[(f64, f64)], x: (f64, f64)) -> Chart<'_> {
        Chart {
            series: vec![Series { points, style: Style::new(), shape: Shape::Line }],
            x,
            logarithmic: false,
            marks: Vec::new(),
            cursor: None,
            label: &label,
        }
    }

    #[test]
    fn a_falling_line_falls() {
        let points: Vec<(f64, f64)> = (0..=100).map(|x| (f64::from(x), f64::from(100 - x))).collect();
        let rows = drawn(&chart(&points, (0.0, 100.0)), 40, 10);
        assert_eq!(rows.len(), 10);
        let column = |row: &str| row.chars().position(|sign| ('⠁'..='⣿').contains(&sign)).unwrap();
        let starts: Vec<usize> = rows[..8].iter().map(|row| column(row)).collect();
        assert!(starts.is_sorted() && starts[0] == 7, "{rows:#?}");
        assert!(rows[7].ends_with('⣄'), "{rows:#?}");
        assert!(rows[9].contains("100"));
    }

    #[test]
    fn what_is_no_number_is_a_gap_and_moves_no_axis() {
        let points = [(0.0, 1.0), (1.0, f64::NAN), (2.0, f64::INFINITY), (3.0, 2.0)];
        let rows = drawn(&chart(&points, (0.0, 3.0)), 40, 8);
        assert!(rows.iter().all(|row| !row.contains("inf") && !row.contains("NaN")), "{rows:#?}");
        let dots: usize =
            rows.iter().flat_map(|row| row.chars()).filter(|sign| ('⠁'..='⣿').contains(sign)).count();
        assert_eq!(dots, 2, "{rows:#?}");
    }

    #[test]
    fn later_series_cover_earlier_ones() {
        let flat = [(0.0, 1.0), (10.0, 1.0)];
        let mut twice = chart(&flat, (0.0, 10.0));
        twice.series.push(Series { points: &flat, style: Style::new().bold(), shape: Shape::Line });
        let area = Rect::new(0, 0, 30, 8);
        let mut buffer = Buffer::empty(area);
        let theme = Library::default().load("luthier").0;
        twice.draw(area, &mut buffer, &theme);
        let curve: Vec<_> = buffer
            .content()
            .iter()
            .filter(|cell| cell.symbol().chars().all(|sign| ('⠁'..='⣿').contains(&sign)))
            .collect();
        assert!(!curve.is_empty());
        assert!(curve.iter().all(|cell| cell.modifier.contains(ratatui::style::Modifier::BOLD)));
    }

    #[test]
    fn marks_and_cursor_stand_where_their_step_is() {
        let points = [(0.0, 1.0), (100.0, 2.0)];
        let mut chart = chart(&points, (0.0, 100.0));
        chart.marks.push(Mark { x: 100.0, sign: "▲", style: Style::new() });
        chart.cursor = Some(0.0);
        let rows = drawn(&chart, 40, 8);
        assert!(rows[6].ends_with('▲'), "{rows:#?}");
        assert!(rows[1].contains("│"), "{rows:#?}");
    }

    proptest! {
        #[test]
        fn no_values_and_no_size_make_it_panic(
            points in proptest::collection::vec((0.0f64..100.0, proptest::num::f64::ANY), 0..60),
            width in 0u16..60, height in 0u16..20, logarithmic: bool, cursor in proptest::option::of(0.0f64..120.0)
        ) {
            let mut points = points;
            points.sort_by(|left, right| left.0.total_cmp(&right.0));
            let mut chart = chart(&points, (0.0, 100.0));
            chart.logarithmic = logarithmic;
            chart.cursor = cursor;
            drawn(&chart, width, height);
        }
    }
}
