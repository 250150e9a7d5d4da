//! Switching the terminal's modes on and off again, as bytes.

use std::io::{self, Write};

use crossterm::cursor::{Hide, Show};
use crossterm::event::{DisableBracketedPaste, DisableFocusChange, EnableBracketedPaste, EnableFocusChange};
use crossterm::queue;
use crossterm::style::ResetColor;
use crossterm::terminal::{EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen};

/// Buttons and wheel with SGR coordinates; no motion, which would flood a slow line.
const MOUSE_ON: &[u8] = b"\x1b[?1000h\x1b[?1006h";
const MOUSE_OFF: &[u8] = b"\x1b[?1006l\x1b[?1000l";

/// Switches the workbench's modes on.
pub(super) fn enter(out: &mut impl Write, mouse: bool) -> io::Result<()> {
    queue!(out, EnterAlternateScreen, EnableBracketedPaste, EnableFocusChange, Hide)?;
    if mouse {
        out.write_all(MOUSE_ON)?;
    }
    out.flush()
}

/// Switches them off again, whatever state the terminal is in, also in the middle of a frame.
pub(super) fn leave(out: &mut impl Write) -> io::Result<()> {
    queue!(out, EndSynchronizedUpdate)?;
    out.write_all(MOUSE_OFF)?;
    queue!(out, DisableFocusChange, DisableBracketedPaste, ResetColor, Show, LeaveAlternateScreen)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_undoes_entering() {
        let mut parser = vt100::Parser::new(24.try_into().unwrap(), 80.try_into().unwrap(), 0);
        parser.process(b"before");
        let mut bytes = Vec::new();
        enter(&mut bytes, true).unwrap();
        parser.process(&bytes);
        let screen = parser.screen();
        assert!(screen.alternate_screen() && screen.bracketed_paste() && screen.hide_cursor());
        assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::PressRelease);
        parser.process(b"\x1b[?2026h\x1b[1;31mhalf a frame");
        let mut bytes = Vec::new();
        leave(&mut bytes).unwrap();
        parser.process(&bytes);
        let screen = parser.screen();
        assert!(!screen.alternate_screen() && !screen.bracketed_paste() && !screen.hide_cursor());
        assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::None);
        assert_eq!(screen.fgcolor(), vt100::Color::Default);
        assert_eq!(screen.contents(), "before");
    }

    #[test]
    fn the_mouse_is_left_alone_unless_asked_for() {
        let mut bytes = Vec::new();
        enter(&mut bytes, false).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        for mode in ["1000", "1002", "1003", "1006"] {
            assert!(!text.contains(mode), "{text:?}");
        }
    }
}
