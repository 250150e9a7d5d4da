//! What the terminal reports, as events.

use crossterm::event::{Event as Reported, KeyEventKind, MouseEventKind};

use crate::app::Event;
use crate::keymap::Key;

/// Lines the wheel moves by.
const WHEEL: i16 = 3;

/// The event a report means; nothing for those that mean nothing to the workbench.
pub fn read(reported: Reported) -> Option<Event> {
    if matches!(reported, Reported::Resize(..)) {
        wake();
    }
    translate(reported)
}

/// Makes the terminal say once more that there is input. crossterm waits for changes only, and of a resize and a key that
/// it learns of together it takes the first: the key would wait for the next one. Linux wakes all who wait for input
/// whenever the settings of a terminal are written, even if they are the same.
fn wake() {
    let input = rustix::stdio::stdin();
    // Without it the key still arrives with the next one.
    let _ = rustix::termios::tcgetattr(input)
        .and_then(|same| rustix::termios::tcsetattr(input, rustix::termios::OptionalActions::Now, &same));
}

/// The event a report means; nothing for those that mean nothing to the workbench.
fn translate(reported: Reported) -> Option<Event> {
    match reported {
        // Only terminals that were asked to report more than presses, which is never done here.
        Reported::Key(key) if key.kind != KeyEventKind::Press => None,
        Reported::Key(key) => Key::from_terminal(&key).map(Event::Key),
        Reported::Paste(text) => Some(Event::Paste(text)),
        // The loop listens to the signal itself, since crossterm loses that one, too.
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
