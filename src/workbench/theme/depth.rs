//! How many colours the terminal has, and the nearest ones where it has few.

use ratatui::style::{Color, Style};
use strum::{EnumString, IntoStaticStr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EnumString, IntoStaticStr)]
pub enum ColorDepth {
    /// None: bold, reverse and underline only.
    #[strum(serialize = "none")]
    None,
    /// The terminal's own sixteen.
    #[strum(serialize = "16")]
    Ansi16,
    /// The 256 of xterm.
    #[strum(serialize = "256")]
    Ansi256,
    /// 24 bits.
    #[strum(serialize = "true")]
    True,
}

/// The environment variables about colours.
#[derive(Clone, Debug, Default)]
pub struct ColorHints {
    /// `LUTHIER_COLORS`: `true`, `256`, `16` or `none`; overrides the others.
    pub wanted: Option<String>,
    pub no_color: Option<String>,
    pub colorterm: Option<String>,
    pub term: Option<String>,
}

impl ColorHints {
    /// Reads this process's environment.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok();
        Self {
            wanted: variable("LUTHIER_COLORS"),
            no_color: variable("NO_COLOR"),
            colorterm: variable("COLORTERM"),
            term: variable("TERM"),
        }
    }

    pub fn depth(&self) -> ColorDepth {
        if let Some(depth) = self.wanted.as_deref().and_then(|wanted| wanted.parse().ok()) {
            return depth;
        }
        if self.no_color.as_deref().is_some_and(|value| !value.is_empty()) {
            return ColorDepth::None;
        }
        if matches!(self.colorterm.as_deref(), Some("truecolor" | "24bit")) {
            return ColorDepth::True;
        }
        let term = self.term.as_deref().unwrap_or_default();
        if term.ends_with("-direct") {
            ColorDepth::True
        } else if term.contains("256color") {
            ColorDepth::Ansi256
        } else if term.is_empty() || term == "dumb" || term.starts_with("vt") {
            ColorDepth::None
        } else {
            ColorDepth::Ansi16
        }
    }
}

/// `style` with nothing in it that `depth` cannot show. Colours beyond sixteen have no counterpart among
/// the terminal's own, which differ from one to the next; a theme made for sixteen is used there instead.
pub(super) fn degrade(style: Style, depth: ColorDepth) -> Style {
    let color = |color: Color| match (depth, color) {
        (ColorDepth::None, _) | (ColorDepth::Ansi16, Color::Rgb(..) | Color::Indexed(16..)) => Color::Reset,
        (ColorDepth::Ansi256, Color::Rgb(red, green, blue)) => Color::Indexed(nearest(red, green, blue)),
        _ => color,
    };
    Style { fg: style.fg.map(color), bg: style.bg.map(color), underline_color: None, ..style }
}

/// Whether the sixteen colours of the terminal suffice for `style`.
pub(super) fn fits_sixteen(style: Style) -> bool {
    [style.fg, style.bg]
        .into_iter()
        .flatten()
        .all(|color| !matches!(color, Color::Rgb(..) | Color::Indexed(16..)))
}

/// Levels of the 6×6×6 cube of xterm's palette.
const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];

/// The nearest of xterm's 240 fixed colours (cube and greys), by the "redmean" distance
/// (<https://www.compuphase.com/cmetric.htm>).
fn nearest(red: u8, green: u8, blue: u8) -> u8 {
    let cube = (0..216u8).map(|index| {
        let level = |digit: u8| LEVELS[usize::from(digit % 6)];
        (16 + index, [level(index / 36), level(index / 6), level(index)])
    });
    let greys = (0..24u8).map(|index| (232 + index, [8 + 10 * index; 3]));
    let wanted = [red, green, blue];
    cube.chain(greys).min_by_key(|(_, candidate)| distance(wanted, *candidate)).map_or(16, |(index, _)| index)
}

fn distance(left: [u8; 3], right: [u8; 3]) -> i64 {
    let mean = i64::midpoint(left[0].into(), right[0].into());
    let square = |channel: usize| {
        let difference = i64::from(left[channel]) - i64::from(right[channel]);
        difference * difference
    };
    (((512 + mean) * square(0)) >> 8) + 4 * square(1) + (((767 - mean) * square(2)) >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides() {
        let hints = |wanted: &str, no_color: &str, colorterm: &str, term: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            ColorHints {
                wanted: some(wanted),
                no_color: some(no_color),
                colorterm: some(colorterm),
                term: some(term),
            }
            .depth()
        };
        assert_eq!(hints("", "", "truecolor", "xterm"), ColorDepth::True);
        assert_eq!(hints("", "1", "truecolor", "xterm"), ColorDepth::None);
        assert_eq!(hints("256", "1", "", "xterm"), ColorDepth::Ansi256);
        assert_eq!(hints("", "", "", "tmux-256color"), ColorDepth::Ansi256);
        assert_eq!(hints("", "", "", "screen"), ColorDepth::Ansi16);
        assert_eq!(hints("", "", "", "vt100"), ColorDepth::None);
        assert_eq!(hints("blue", "", "", "xterm-direct"), ColorDepth::True);
    }

    #[test]
    fn exact_colours_of_the_palette_map_to_themselves() {
        assert_eq!(nearest(0, 0, 0), 16);
        assert_eq!(nearest(255, 255, 255), 231);
        assert_eq!(nearest(95, 135, 175), 67);
        assert_eq!(nearest(118, 118, 118), 243);
    }

    #[test]
    fn no_depth_lets_a_finer_colour_through() {
        let style = Style::new().fg(Color::Rgb(10, 200, 30)).bg(Color::Red);
        let none = degrade(style, ColorDepth::None);
        assert_eq!((none.fg, none.bg), (Some(Color::Reset), Some(Color::Reset)));
        let sixteen = degrade(style, ColorDepth::Ansi16);
        assert_eq!((sixteen.fg, sixteen.bg), (Some(Color::Reset), Some(Color::Red)));
        assert!(matches!(degrade(style, ColorDepth::Ansi256).fg, Some(Color::Indexed(_))));
        assert_eq!(degrade(style, ColorDepth::True), style);
    }
}
