//! How much of something is done.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::text;
use crate::theme::{Role, Theme};

/// A bar over the width of `area`, filled to `share` between 0 and 1; a share that is not finite is drawn as 0.
pub fn gauge(share: f64, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if area.is_empty() {
        return;
    }
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (share * f64::from(area.width) * 8.0).round() as usize;
    let filled = format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8]);
    let x = text::put(buffer, area.x, area.y, area.right(), &filled, theme.style(Role::Gauge));
    let rest = "░".repeat(usize::from(area.right() - x));
    text::put(buffer, x, area.y, area.right(), &rest, theme.style(Role::GaugeRest));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::theme::Library;

    #[test]
    fn fills_by_eighths_and_survives_nonsense() {
        let theme = Library::default().load("luthier").0;
        let drawn = |share| {
            let area = Rect::new(0, 0, 4, 1);
            let mut buffer = Buffer::empty(area);
            gauge(share, area, &mut buffer, &theme);
            (0..4).map(|x| buffer[(x, 0)].symbol().to_owned()).collect::<String>()
        };
        assert_eq!(drawn(0.0), "░░░░");
        assert_eq!(drawn(0.375), "█▌░░");
        assert_eq!(drawn(1.0), "████");
        assert_eq!(drawn(7.0), "████");
        assert_eq!(drawn(f64::NAN), "░░░░");
    }
}
