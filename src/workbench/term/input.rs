//! What the terminal reports, as events.

use crossterm::event::{Event as Reported, KeyEventKind, MouseEventKind};

use crate::app::Event;
use crate::keymap::Key;

/// Lines the wheel moves by.
const WHEEL: i16 = 3;

/// The event a report means; nothing for those that mean nothing to the workbench.
pub fn translate(reported: Reported) -> Option<Event> {
    match reported {
        // Only terminals that were asked to report more than presses, which is never done here.
        Reported::Key(key) if key.kind != KeyEventKind::Press => None,
        Reported::Key(key) => Key::from_terminal(&key).map(Event::Key),
        Reported::Paste(text) => Some(Event::Paste(text)),
        // The loop listens to the signal itself: crossterm loses one that arrives together with a key.
        Reported::Resize(..) => None,
        Reported::FocusGained => Some(Event::Attention(true)),
        Reported::FocusLost => Some(Event::Attention(false)),
        Reported::Mouse(mouse) => match mouse.kind {
            MouseEventKind::ScrollDown => Some(Event::Wheel(WHEEL)),
            MouseEventKind::ScrollUp => Some(Event::Wheel(-WHEEL)),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::*;

    #[test]
    fn only_presses_count() {
        let press = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        assert!(matches!(translate(Reported::Key(press)), Some(Event::Key(key)) if key == Key::char('q')));
        let release = KeyEvent { kind: KeyEventKind::Release, ..press };
        assert!(translate(Reported::Key(release)).is_none());
    }
}
