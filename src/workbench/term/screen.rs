//! Frames: drawn into memory, compared with what the terminal shows, written at once.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use crossterm::queue;
use crossterm::terminal::{BeginSynchronizedUpdate, EndSynchronizedUpdate};
use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Rect;
use ratatui::style::Modifier;

/// Bytes kept for a frame before the buffer has to grow.
const CAPACITY: usize = 64 * 1024;

/// Collects what is written, so that a whole frame leaves in one write.
#[derive(Clone, Debug)]
struct Held(Rc<RefCell<Vec<u8>>>);

impl Write for Held {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Nothing leaves before the frame is complete.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Closes the synchronized update when dropped, also when drawing fails half-way.
struct Synchronized<'a> {
    held: &'a mut CrosstermBackend<Held>,
}

impl<'a> Synchronized<'a> {
    fn begin(held: &'a mut CrosstermBackend<Held>) -> io::Result<Self> {
        queue!(held, BeginSynchronizedUpdate)?;
        Ok(Self { held })
    }
}

impl Drop for Synchronized<'_> {
    fn drop(&mut self) {
        // Queueing goes to memory and cannot fail.
        drop(queue!(self.held, EndSynchronizedUpdate));
    }
}

/// The cells of a terminal and the way to change them.
#[derive(Debug)]
pub(super) struct Screen<W: Write> {
    out: W,
    waiting: Rc<RefCell<Vec<u8>>>,
    backend: CrosstermBackend<Held>,
    shown: Buffer,
    next: Buffer,
}

impl<W: Write> Screen<W> {
    /// A screen of which nothing is known.
    pub fn new(out: W) -> Self {
        let waiting = Rc::new(RefCell::new(Vec::with_capacity(CAPACITY)));
        let backend = CrosstermBackend::new(Held(Rc::clone(&waiting)));
        Self { out, waiting, backend, shown: Buffer::default(), next: Buffer::default() }
    }

    /// Forgets what is shown: the next frame writes every cell.
    ///
    /// Clearing instead would flash, and within a synchronized update it goes wrong in tmux 3.7
    /// (<https://github.com/tmux/tmux/issues/5340>).
    pub fn forget(&mut self) {
        self.shown = Buffer::default();
    }

    /// Draws a frame of `area`; returns the number of bytes written, 0 if nothing changed.
    pub fn draw(&mut self, area: Rect, render: impl FnOnce(Rect, &mut Buffer)) -> io::Result<usize> {
        if self.shown.area != area {
            // A cell that no frame contains, so that all of them differ.
            let mut unknown = Cell::new("\u{fffd}");
            unknown.modifier = Modifier::HIDDEN;
            self.shown = Buffer::filled(area, unknown);
        }
        self.next.resize(area);
        self.next.reset();
        render(area, &mut self.next);
        let changes = self.shown.diff(&self.next);
        if !changes.is_empty() {
            let frame = Synchronized::begin(&mut self.backend)?;
            frame.held.draw(changes.into_iter())?;
        }
        std::mem::swap(&mut self.shown, &mut self.next);
        self.release()
    }

    /// Writes something that is not a frame.
    pub fn send(&mut self, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        write(&mut self.waiting.borrow_mut())?;
        self.release().map(drop)
    }

    fn release(&mut self) -> io::Result<usize> {
        let mut waiting = self.waiting.borrow_mut();
        let bytes = waiting.len();
        if bytes == 0 {
            return Ok(0);
        }
        let written = self.out.write_all(&waiting).and_then(|()| self.out.flush());
        waiting.clear();
        written.map(|()| bytes)
    }
}

#[cfg(test)]
mod tests {
    use ratatui::style::Style;

    use super::*;

    /// Counts writes and feeds them to an emulator.
    #[derive(Clone)]
    struct Emulator(Rc<RefCell<(usize, vt100::Parser)>>);

    impl Emulator {
        fn new(width: u16, height: u16) -> Self {
            Self(Rc::new(RefCell::new((
                0,
                vt100::Parser::new(height.try_into().unwrap(), width.try_into().unwrap(), 0),
            ))))
        }

        fn contents(&self) -> String {
            let contents = self.0.borrow().1.screen().contents();
            contents.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned()
        }
    }

    impl Write for Emulator {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut inner = self.0.borrow_mut();
            inner.0 += 1;
            inner.1.process(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_write_a_frame_and_none_without_a_change() {
        let emulator = Emulator::new(20, 3);
        let mut screen = Screen::new(emulator.clone());
        let area = Rect::new(0, 0, 20, 3);
        let hello = |_: Rect, buffer: &mut Buffer| buffer.set_string(0, 0, "hello 世界", Style::new());
        assert!(screen.draw(area, hello).unwrap() > 0);
        assert_eq!(emulator.0.borrow().0, 1);
        assert_eq!(emulator.contents(), "hello 世界");
        assert_eq!(screen.draw(area, hello).unwrap(), 0);
        assert_eq!(emulator.0.borrow().0, 1, "an unchanged frame writes nothing");
        let changed =
            screen.draw(area, |_, buffer| buffer.set_string(0, 0, "hallo 世界", Style::new())).unwrap();
        assert!(changed < 60, "{changed} bytes for one letter");
        assert_eq!(emulator.contents(), "hallo 世界");
    }

    #[test]
    fn what_was_on_the_terminal_is_covered_after_forgetting_or_resizing() {
        let emulator = Emulator::new(20, 3);
        let mut screen = Screen::new(emulator.clone());
        let area = Rect::new(0, 0, 20, 3);
        let blank = |_: Rect, _: &mut Buffer| {};
        screen.draw(area, blank).unwrap();
        emulator.0.borrow_mut().1.process(b"\x1b[Hgarbage from elsewhere");
        screen.forget();
        screen.draw(area, blank).unwrap();
        assert_eq!(emulator.contents(), "");
        emulator.0.borrow_mut().1.process(b"\x1b[Hgarbage");
        screen.draw(Rect::new(0, 0, 20, 2), blank).unwrap();
        assert_eq!(emulator.contents(), "");
    }

    #[test]
    fn frames_are_synchronized() {
        let mut screen = Screen::new(Vec::new());
        screen.draw(Rect::new(0, 0, 4, 1), |_, buffer| buffer.set_string(0, 0, "x", Style::new())).unwrap();
        let written = String::from_utf8(screen.out.clone()).unwrap();
        assert!(written.starts_with("\x1b[?2026h") && written.ends_with("\x1b[?2026l"), "{written:?}");
    }
}
