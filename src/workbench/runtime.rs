//! The event loop: wait for an event, update the state, perform the effects, draw if something changed.

use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::task::Poll;
use std::time::{Duration, Instant};

use crossterm::event::EventStream;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::signal::unix::{Signal as Listener, SignalKind, signal};
use tokio::sync::mpsc;

use crate::app::{App, Effect, Ending, Event, Now, Opening, Signal, TerminalEffect};
use crate::effects::{Performer, QUEUE, Settings};
use crate::project::Host;
use crate::telemetry::{self, SLOW_TURN};
use crate::term::{self, FrameLimiter, Terminal, TerminalError};
use crate::theme::{ColorHints, DEFAULT, Library};
use crate::ui;
use luthier_core::paths::{settings_folder, state_folder};

/// The longest time that ready events are handled before a frame is drawn.
const DRAIN: Duration = Duration::from_millis(8);

/// Least time between two deadlines, so that one that stays in the past cannot keep the processor busy.
const PATIENCE: Duration = Duration::from_millis(10);

/// Exit status of a process that a signal ended.
const INTERRUPTED: u8 = 130;

/// Why the workbench did not open, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no project.
    #[error(
        "{} has no luthier.toml, so it is not a project. `luthier new {}` starts one there, `luthier FOLDER` \
         opens another", shown(.0), shown(.0)
    )]
    NoProject(PathBuf),
    /// There is no terminal that could be drawn on.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// The operating system refused something.
    #[error("{what}: {problem}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why it was not.
        problem: io::Error,
    },
}

impl OpenError {
    /// The exit status: 2 if another invocation would work, 1 otherwise.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::NoProject(_) | Self::Terminal(TerminalError::NotATerminal(_) | TerminalError::Dumb(_)) => 2,
            Self::Terminal(TerminalError::Io(_)) | Self::System { .. } => 1,
        }
    }
}

fn shown(path: &Path) -> String {
    luthier_core::text::clean_line(&path.display().to_string()).into_owned()
}

/// Opens the workbench on a project and returns when it is closed.
pub fn open(project: &Path) -> Result<ExitCode, OpenError> {
    term::check()?;
    if !project.join("luthier.toml").exists() {
        return Err(OpenError::NoProject(project.to_owned()));
    }
    let project = project.canonicalize().map_err(|problem| system("the project folder", problem))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|problem| system("the event loop did not start", problem))?;
    let outcome = runtime.block_on(run(project));
    // Background work has nothing to save; a thread that waits for a disk must not delay the exit.
    runtime.shutdown_background();
    Ok(match outcome? {
        Ending::Left => ExitCode::SUCCESS,
        Ending::Interrupted => ExitCode::from(INTERRUPTED),
    })
}

fn system(what: &'static str, problem: io::Error) -> OpenError {
    OpenError::System { what, problem }
}

async fn run(project: PathBuf) -> Result<Ending, OpenError> {
    let log = state_folder().and_then(|folder| telemetry::start(&folder.join("luthier.log")).ok());
    term::install_panic_hook();
    let settings = settings(project);
    let clock = Clock::start();
    let config = settings.read_config();
    let theme = settings.read_theme(config.as_ref().map_or(DEFAULT, |config| config.ui.theme.as_str()));
    let keymap = settings.read_keymap();
    let signals = Signals::listen().map_err(|problem| system("signals cannot be received", problem))?;
    let log_file = log.as_ref().and_then(|log| log.file.try_clone().ok());
    let terminal = Terminal::enter(log_file.or_else(null_device), mouse_wanted())?;
    let app = App::new(Opening {
        project: settings.project.clone(),
        config,
        keymap,
        theme,
        now: clock.now(),
        zone: TimeZone::system(),
        size: term::size()?,
    });
    let (sender, events) = mpsc::channel(QUEUE);
    let theme = app.theme.name().to_owned();
    let performer = Performer::new(sender, tokio::runtime::Handle::current(), settings, theme, Host::THIS);
    let mut workbench = Loop {
        app,
        terminal,
        performer,
        clock,
        limiter: FrameLimiter::default(),
        changed: true,
        woken: Duration::ZERO,
        ending: None,
        input: EventStream::new(),
        signals,
    };
    workbench.run(events).await
}

/// Where error output is redirected to without a log.
fn null_device() -> Option<std::fs::File> {
    std::fs::OpenOptions::new().write(true).open("/dev/null").ok()
}

/// Mouse reports disable the terminal's own selection, so they are off by default.
fn mouse_wanted() -> bool {
    std::env::var_os("LUTHIER_MOUSE").is_some_and(|value| value == "1" || value == "on")
}

fn settings(project: PathBuf) -> Settings {
    let folder = settings_folder();
    let themes = Library {
        folder: folder.as_ref().map(|folder| folder.join("themes")),
        depth: Some(ColorHints::from_environment().depth()),
        ascii: !speaks_unicode(),
    };
    Settings { project, themes, keymap: folder.map(|folder| folder.join("keymap.toml")) }
}

/// Whether the locale uses UTF-8; an unset locale is assumed to.
fn speaks_unicode() -> bool {
    let named = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(|name| std::env::var(name).ok());
    let locale = named.map(|locale| locale.to_ascii_lowercase()).find(|locale| !locale.is_empty());
    locale.is_none_or(|locale| {
        locale.contains("utf-8") || locale.contains("utf8") || locale == "c" || locale == "posix"
    })
}

/// The two clocks of the workbench.
#[derive(Clone, Copy, Debug)]
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    fn now(self) -> Now {
        Now { elapsed: self.elapsed(), wall: Timestamp::now() }
    }

    fn at(self, elapsed: Duration) -> tokio::time::Instant {
        (self.0 + elapsed).into()
    }
}

/// The signals that the workbench handles.
struct Signals {
    interrupt: Listener,
    terminate: Listener,
    hangup: Listener,
    resumed: Listener,
    resized: Listener,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            resumed: signal(SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()))?,
            resized: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            // A terminal that goes away sends a hangup and, right after it, a continue.
            biased;
            _ = self.terminate.recv() => Event::Signal(Signal::Terminate),
            _ = self.hangup.recv() => Event::Signal(Signal::Hangup),
            _ = self.interrupt.recv() => Event::Signal(Signal::Interrupt),
            _ = self.resumed.recv() => Event::Resumed,
            // A terminal that cannot tell its size is gone.
            _ = self.resized.recv() => term::size().map_or(Event::Signal(Signal::Hangup), Event::Resize),
        }
    }

    /// Drops an interrupt that was meant for the program that had the terminal.
    fn forget_interrupt(&mut self) {
        let _ = self.interrupt.recv().now_or_never();
        let _ = self.resumed.recv().now_or_never();
    }
}

struct Loop {
    app: App,
    terminal: Terminal,
    performer: Performer,
    clock: Clock,
    limiter: FrameLimiter,
    changed: bool,
    /// When the last deadline was handled.
    woken: Duration,
    ending: Option<Ending>,
    input: EventStream,
    signals: Signals,
}

impl Loop {
    async fn run(&mut self, mut events: mpsc::Receiver<Event>) -> Result<Ending, OpenError> {
        self.handle(Event::Started)?;
        self.draw()?;
        while self.ending.is_none() {
            let wake = self.wake_time();
            let sleep = async {
                match wake {
                    Some(wake) => tokio::time::sleep_until(self.clock.at(wake)).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                event = self.signals.next() => Some(event),
                reported = self.input.next() => match reported {
                    Some(Ok(reported)) => term::read(reported),
                    // The terminal is gone.
                    Some(Err(_)) | None => Some(Event::Signal(Signal::Hangup)),
                },
                event = events.recv() => event,
                () = sleep => None,
            };
            let turn = Instant::now();
            if let Some(event) = event {
                self.handle(event)?;
            }
            self.drain(&mut events, turn).await?;
            self.meet_deadline()?;
            if self.ending.is_none()
                && self.changed
                && self.limiter.earliest(self.clock.elapsed()) <= self.clock.elapsed()
            {
                self.draw()?;
            }
            if turn.elapsed() > SLOW_TURN {
                tracing::warn!("a turn took {:?}", turn.elapsed());
            }
        }
        Ok(self.ending.unwrap_or(Ending::Left))
    }

    /// When the loop must wake although no event arrives.
    fn wake_time(&self) -> Option<Duration> {
        let frame = self.changed.then(|| self.limiter.earliest(self.clock.elapsed()));
        let deadline = self.app.deadline().map(|deadline| deadline.max(self.woken + PATIENCE));
        [frame, deadline].into_iter().flatten().min()
    }

    /// Handles all ready events, so that a burst becomes one frame.
    async fn drain(&mut self, events: &mut mpsc::Receiver<Event>, turn: Instant) -> Result<(), OpenError> {
        while self.ending.is_none() && turn.elapsed() < DRAIN {
            // Polled in this task: the stream wakes only the task that polled it first.
            let reported = poll_fn(|context| Poll::Ready(self.input.poll_next_unpin(context))).await;
            if let Poll::Ready(Some(Ok(reported))) = reported {
                if let Some(event) = term::read(reported) {
                    self.handle(event)?;
                }
                continue;
            }
            match events.try_recv() {
                Ok(event) => self.handle(event)?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn meet_deadline(&mut self) -> Result<(), OpenError> {
        let now = self.clock.elapsed();
        if self.app.deadline().is_some_and(|deadline| deadline <= now && self.woken + PATIENCE <= now) {
            self.woken = now;
            self.handle(Event::Deadline)?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), OpenError> {
        if matches!(event, Event::Resumed) && self.terminal.resume().is_err() {
            self.ending = Some(Ending::Interrupted);
            return Ok(());
        }
        let effects = self.app.update(self.clock.now(), event);
        self.changed |= self.app.take_dirty();
        for effect in effects {
            self.perform(effect)?;
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<(), OpenError> {
        let Some(effect) = self.performer.perform(effect) else { return Ok(()) };
        match effect {
            TerminalEffect::Quit(ending) => self.ending = Some(ending),
            TerminalEffect::Suspend => {
                self.terminal.suspend()?;
                self.signals.forget_interrupt();
                self.redraw()?;
            }
            TerminalEffect::Redraw => self.redraw()?,
            TerminalEffect::Copy(text) => self.terminal.copy(&text)?,
            TerminalEffect::Edit(path, line) => {
                // Two readers would share the keys between them.
                self.input = EventStream::new();
                let outcome = self.terminal.edit(&path, line)?;
                self.signals.forget_interrupt();
                self.redraw()?;
                self.handle(Event::EditorClosed(path, outcome))?;
            }
        }
        Ok(())
    }

    /// Reads the terminal's size again, which may have changed meanwhile, and redraws every cell.
    fn redraw(&mut self) -> Result<(), OpenError> {
        self.app.context.size = term::size()?;
        self.terminal.forget();
        self.changed = true;
        Ok(())
    }

    fn draw(&mut self) -> Result<(), OpenError> {
        let size = self.app.context.size;
        let app = &self.app;
        self.terminal.draw(size, |area, buffer| ui::render(app, area, buffer))?;
        self.limiter.drawn(self.clock.elapsed());
        self.changed = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_call_would_mend_is_bad_usage() {
        let missing = OpenError::NoProject("/some\u{1b}where".into());
        assert_eq!(missing.exit_status(), 2);
        assert!(missing.to_string().contains("luthier new /somewhere"));
        assert_eq!(OpenError::from(TerminalError::Dumb("dumb".into())).exit_status(), 2);
        assert_eq!(OpenError::from(TerminalError::NotATerminal("standard output")).exit_status(), 2);
    }
}
