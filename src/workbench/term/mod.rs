//! The terminal: the only place that writes to it. Modes, frames, signals of job control, the editor's
//! turn, and giving all of it back whatever happens.

mod editor;
mod input;
mod limiter;
mod modes;
mod screen;
mod stderr;

use std::fs::File;
use std::io::{self, IsTerminal, Stdout, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossterm::clipboard::CopyToClipboard;
use crossterm::{queue, terminal};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use rustix::process::{Signal, kill_current_process_group};

pub use input::read;
pub use limiter::FrameLimiter;
use screen::Screen;

use crate::app::Size;

/// Whether the terminal is in our modes; read by the panic hook, from whatever thread.
static OURS: AtomicBool = AtomicBool::new(false);

/// Attempts to take the terminal back after a stop, during which the shell may still hold it.
const RETRIES: u32 = 10;

/// Largest text put on the clipboard: terminals drop longer ones, some with everything after them.
const CLIPBOARD: usize = 74_000;

/// Why there is no screen to draw on.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// Input or output is a file or a pipe.
    #[error(
        "the workbench needs a terminal, but {0} is not one. Without a terminal use the subcommands: \
         `luthier runs`, `luthier train`, `luthier data check`; `luthier --help` lists them"
    )]
    NotATerminal(&'static str),
    /// The terminal can only print lines.
    #[error(
        "TERM={0} cannot address the screen. Set TERM to what your terminal is, for instance \
         `TERM=xterm-256color luthier`, or use the subcommands; `luthier --help` lists them"
    )]
    Dumb(String),
    /// The terminal refused.
    #[error("the terminal could not be prepared: {0}. Try `reset`, or another terminal")]
    Io(#[from] io::Error),
}

/// Whether there is a terminal that can be drawn on.
pub fn check() -> Result<(), TerminalError> {
    if !io::stdout().is_terminal() {
        return Err(TerminalError::NotATerminal("standard output"));
    }
    if !io::stdin().is_terminal() {
        return Err(TerminalError::NotATerminal("standard input"));
    }
    match std::env::var("TERM") {
        Ok(term) if !term.is_empty() && term != "dumb" => Ok(()),
        Ok(term) => Err(TerminalError::Dumb(luthier_core::text::clean_line(&term).into_owned())),
        Err(_) => Err(TerminalError::Dumb(String::new())),
    }
}

/// The terminal's size in cells.
pub fn size() -> Result<Size, TerminalError> {
    let (width, height) = terminal::size()?;
    Ok(Size { width, height })
}

/// Opens the user's editor on a file, where the terminal is not ours, and waits until it exits.
pub fn run_editor(file: &Path) -> Result<(), String> {
    editor::run(&editor::editor(), file, None)
}

/// The terminal while the workbench runs; given back when dropped.
#[derive(Debug)]
pub struct Terminal {
    screen: Screen<Stdout>,
    log: Option<File>,
    mouse: bool,
}

impl Terminal {
    /// Takes the terminal. Error output goes to `log` as long as it is ours.
    pub fn enter(log: Option<File>, mouse: bool) -> Result<Self, TerminalError> {
        check()?;
        // Without it NO_COLOR makes crossterm write resets in the place of colours, which also take away
        // bold and reverse. The theme leaves colours out by itself.
        crossterm::style::force_color_output(true);
        let mut terminal = Self { screen: Screen::new(io::stdout()), log, mouse };
        terminal.resume()?;
        Ok(terminal)
    }

    /// Draws a frame; returns the number of bytes written.
    pub fn draw(
        &mut self,
        size: Size,
        render: impl FnOnce(Rect, &mut Buffer),
    ) -> Result<usize, TerminalError> {
        Ok(self.screen.draw(Rect::new(0, 0, size.width, size.height), render)?)
    }

    /// Makes the next frame write every cell.
    pub fn forget(&mut self) {
        self.screen.forget();
    }

    /// Puts `text` on the clipboard of the terminal, also over SSH and through tmux, where those allow it.
    pub fn copy(&mut self, text: &str) -> Result<(), TerminalError> {
        let end = text.floor_char_boundary(CLIPBOARD.min(text.len()));
        let text = &text[..end];
        Ok(self.screen.send(|out| queue!(out, CopyToClipboard::to_clipboard_from(text)))?)
    }

    /// Stops the whole process group, so that whatever started us stops as well; returns when continued.
    /// Where no shell could continue it the kernel does not stop it.
    pub fn suspend(&mut self) -> Result<(), TerminalError> {
        release();
        kill_current_process_group(Signal::TSTP).map_err(io::Error::from)?;
        self.resume()
    }

    /// Takes the terminal back and redraws it after the process was stopped and continued.
    pub fn resume(&mut self) -> Result<(), TerminalError> {
        let mut attempt = 0;
        while let Err(problem) = self.take() {
            attempt += 1;
            if attempt == RETRIES {
                return Err(problem.into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.forget();
        Ok(())
    }

    fn take(&mut self) -> io::Result<()> {
        terminal::enable_raw_mode()?;
        OURS.store(true, Ordering::Release);
        if let Some(log) = &self.log {
            stderr::divert(log)?;
        }
        modes::enter(&mut io::stdout().lock(), self.mouse)
    }

    /// Gives the terminal to the user's editor until it exits. Nothing else may read input meanwhile: drop
    /// the event stream before.
    pub fn edit(&mut self, file: &Path, line: Option<usize>) -> Result<Result<(), String>, TerminalError> {
        release();
        let outcome = editor::run(&editor::editor(), file, line);
        // Keys pressed while the editor closed were meant for it.
        let _ = rustix::termios::tcflush(rustix::stdio::stdin(), rustix::termios::QueueSelector::IFlush);
        self.resume()?;
        Ok(outcome)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        release();
    }
}

/// Gives the terminal back, if it is ours, in whatever state it is. Every step is taken even if one fails;
/// there would be nowhere to report to.
fn release() {
    if !OURS.swap(false, Ordering::AcqRel) {
        return;
    }
    let mut bytes = Vec::new();
    drop(modes::leave(&mut bytes));
    let mut out = io::stdout();
    drop(out.write_all(&bytes).and_then(|()| out.flush()));
    drop(terminal::disable_raw_mode());
    stderr::restore();
}

/// From now on a panic gives the terminal back before its message is printed. A panic on another thread
/// than this one is only logged: the work it was part of reports the failure.
pub fn install_panic_hook() {
    let ours = thread::current().id();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!("{panic}");
        if thread::current().id() == ours {
            release();
            before(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        for problem in [TerminalError::NotATerminal("standard output"), TerminalError::Dumb("dumb".into())] {
            assert!(problem.to_string().contains("luthier --help"), "{problem}");
        }
    }
}
