//! A pseudo-terminal for tests: reads the screen, presses keys, waits with deadlines.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use vt100::{MouseProtocolMode, Parser, Screen};

use crate::process::send;
use crate::programs::luthier;
use crate::project::Project;
use crate::wait::PATIENCE;

/// The output of the program so far; waiters are notified of more.
struct Shown {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    parser: Parser,
    bytes: u64,
    closed: bool,
}

/// A `luthier` in its own terminal.
pub struct Terminal {
    shown: Arc<Shown>,
    keys: Box<dyn Write + Send>,
    master: Box<dyn MasterPty + Send>,
    child: Box<dyn Child + Send + Sync>,
}

impl Terminal {
    /// Opens the workbench on a project.
    pub fn open(project: &Project, columns: u16, rows: u16) -> Self {
        let size = PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).unwrap();
        let mut command = CommandBuilder::new(luthier());
        command.cwd(project.path());
        command.env_clear();
        for (name, value) in project.environment() {
            command.env(name, value);
        }
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("TERM", "xterm-256color");
        command.env("COLORTERM", "truecolor");
        command.env("LANG", "C.UTF-8");
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let parser = Parser::new(nonzero(rows), nonzero(columns), 0);
        let state = Mutex::new(State { parser, bytes: 0, closed: false });
        let shown = Arc::new(Shown { state, changed: Condvar::new() });
        let mut output = pair.master.try_clone_reader().unwrap();
        let seen = Arc::clone(&shown);
        thread::spawn(move || {
            let mut block = [0; 8192];
            loop {
                let count = output.read(&mut block).unwrap_or(0);
                let mut state = seen.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.parser.process(&block[..count]);
                state.bytes += count as u64;
                state.closed = count == 0;
                let closed = state.closed;
                drop(state);
                seen.changed.notify_all();
                if closed {
                    return;
                }
            }
        });
        Self { shown, keys: pair.master.take_writer().unwrap(), master: pair.master, child }
    }

    /// Presses keys: characters as they are, `\r` for enter, `\x1b` for escape, `\t` for tab.
    pub fn keys(&mut self, keys: &str) -> &mut Self {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
        self
    }

    /// Waits until `wanted` is true for the screen; returns its text.
    pub fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_for(what, |screen| wanted(&screen.contents())).contents()
    }

    /// Waits until the screen shows `text`; returns all of its text.
    pub fn see(&self, text: &str) -> String {
        self.wait(&format!("`{text}`"), |screen| screen.contains(text))
    }

    fn wait_for(&self, what: &str, wanted: impl Fn(&Screen) -> bool) -> Screen {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shown.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if wanted(state.parser.screen()) {
                return state.parser.screen().clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let screen = state.parser.screen().contents();
            assert!(!left.is_zero(), "timed out waiting for {what}; the screen shows:\n{screen}");
            assert!(!state.closed, "the program ended before {what}; the screen shows:\n{screen}");
            let waited = self.shown.changed.wait_timeout(state, left.min(Duration::from_secs(1)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn resize(&mut self, columns: u16, rows: u16) {
        let mut state = self.shown.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.parser.screen_mut().set_size(nonzero(rows), nonzero(columns));
        drop(state);
        self.master.resize(PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 }).unwrap();
    }

    /// Bytes written to the terminal so far.
    pub fn bytes(&self) -> u64 {
        self.shown.state.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Kills the program with SIGKILL, so that it cannot clean up.
    pub fn kill(mut self) {
        send("KILL", self.child.process_id().unwrap());
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: &str) {
        send(signal, self.child.process_id().unwrap());
    }

    /// Waits for the end of the program and checks that it restored the terminal; returns the exit status.
    pub fn ended(mut self) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shown.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed {
            let screen = state.parser.screen().contents();
            assert!(Instant::now() < deadline, "the program does not end; the screen shows:\n{screen}");
            let waited = self.shown.changed.wait_timeout(state, Duration::from_secs(1));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let screen = state.parser.screen();
        assert!(!screen.alternate_screen(), "the alternate screen was left on");
        assert!(!screen.bracketed_paste(), "bracketed paste was left on");
        assert!(!screen.hide_cursor(), "the cursor was left hidden");
        assert_eq!(screen.mouse_protocol_mode(), MouseProtocolMode::None, "the mouse was left on");
        drop(state);
        self.child.wait().unwrap().exit_code()
    }
}

fn nonzero(count: u16) -> std::num::NonZeroU16 {
    std::num::NonZeroU16::new(count).expect("a terminal has at least one row and column")
}
