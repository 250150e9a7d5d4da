//! Runs the workbench without a terminal: a script of keys goes in, the screen comes out.
//!
//! ```ignore
//! let mut app = TestApp::new(80, 24);
//! snapshot!(app, "jj<enter>");
//! ```

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use luthier_core::config::Config;
use luthier_core::hash::fnv1a;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::app::{App, Effect, Event, Now, Opening, Size};
use crate::keymap::{Key, Keymap};
use crate::theme::{ColorDepth, Library};
use crate::ui;

/// Answers an effect with the events its performer would post.
type Respond = Box<dyn FnMut(&Effect) -> Vec<Event>>;

/// When every test begins: 14:02 UTC on 23 November 2026.
pub const START: i64 = 1_795_442_520;

/// A workbench without a terminal. Effects are collected, and answered where [`TestApp::respond`] says how.
pub struct TestApp {
    /// The workbench.
    pub app: App,
    /// Effects so far, oldest first.
    pub effects: Vec<Effect>,
    now: Now,
    respond: Respond,
}

/// Settings for tests: a model, two data files, the rest as by default.
pub fn config() -> Config {
    config_with("")
}

/// As [`config`], with more TOML after it.
pub fn config_with(more: &str) -> Config {
    let text = format!("[model]\npath = \"models/tiny\"\n[data]\ntrain = \"train.jsonl\"\n{more}");
    Config::parse(&text, Path::new("/projects/tickets/luthier.toml"), &[]).unwrap()
}

impl TestApp {
    /// The workbench opened on `/projects/tickets` with [`config`], in true colours.
    pub fn new(width: u16, height: u16) -> Self {
        Self::open(width, height, ColorDepth::True, "luthier", Ok(config()), Box::new(|_| Vec::new()))
    }

    /// As [`TestApp::new`], with the answers that performers would give.
    pub fn respond(width: u16, height: u16, respond: impl FnMut(&Effect) -> Vec<Event> + 'static) -> Self {
        Self::open(width, height, ColorDepth::True, "luthier", Ok(config()), Box::new(respond))
    }

    /// The workbench opened as said.
    pub fn open(
        width: u16,
        height: u16,
        depth: ColorDepth,
        theme: &str,
        config: Result<Config, String>,
        respond: Respond,
    ) -> Self {
        let now = Now { elapsed: Duration::ZERO, wall: Timestamp::from_second(START).unwrap() };
        let library = Library { depth: Some(depth), ..Library::default() };
        let app = App::new(Opening {
            project: "/projects/tickets".into(),
            config,
            keymap: Keymap::defaults(),
            theme: library.load(theme),
            now,
            zone: TimeZone::UTC,
            size: Size { width, height },
        });
        let mut test = Self { app, effects: Vec::new(), now, respond };
        test.event(Event::Started);
        test
    }

    /// Lets something happen, and everything that follows from it.
    pub fn event(&mut self, event: Event) {
        let mut waiting = std::collections::VecDeque::from([event]);
        while let Some(event) = waiting.pop_front() {
            for effect in self.app.update(self.now, event) {
                waiting.extend((self.respond)(&effect));
                self.effects.push(effect);
            }
        }
    }

    /// Presses keys: `jj<tab><ctrl-p>quit<enter>`; `<lt>` is `<`.
    pub fn keys(&mut self, script: &str) -> &mut Self {
        let mut rest = script;
        while let Some(first) = rest.chars().next() {
            let key = if first == '<' {
                let end = rest.find('>').expect("a name in angle brackets ends");
                let name = &rest[1..end];
                rest = &rest[end + 1..];
                if name == "lt" { Key::char('<') } else { name.parse().expect("a key's name") }
            } else {
                rest = &rest[first.len_utf8()..];
                Key::char(first)
            };
            self.event(Event::Key(key));
        }
        self
    }

    /// Lets time pass, with every deadline in it.
    pub fn pass(&mut self, time: Duration) -> &mut Self {
        let end = self.now.elapsed + time;
        while let Some(due) = self.app.deadline().filter(|due| *due <= end) {
            self.set_time(due.max(self.now.elapsed));
            self.event(Event::Deadline);
            // A deadline that stays in the past would never let time pass.
            assert_ne!(self.app.deadline(), Some(due), "the deadline was not moved");
        }
        self.set_time(end);
        self
    }

    fn set_time(&mut self, elapsed: Duration) {
        let wall = self.now.wall + elapsed.saturating_sub(self.now.elapsed);
        self.now = Now { elapsed, wall };
    }

    /// The effects since this was asked last.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What is drawn.
    pub fn buffer(&self) -> Buffer {
        let Size { width, height } = self.app.context.size;
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        ui::render(&self.app, area, &mut buffer);
        buffer
    }

    /// The text of every row, each ended by `|`, and a fingerprint of which cells are styled alike. The
    /// fingerprint does not depend on which colours a theme has, only on what has which.
    pub fn screen(&self) -> String {
        screen(&self.buffer())
    }
}

/// See [`TestApp::screen`].
pub fn screen(buffer: &Buffer) -> String {
    let mut text = String::new();
    let mut classes: HashMap<Style, u8> = HashMap::new();
    let mut cells = Vec::new();
    for y in buffer.area.top()..buffer.area.bottom() {
        let mut skip = 0;
        for x in buffer.area.left()..buffer.area.right() {
            let cell = &buffer[(x, y)];
            let next = u8::try_from(classes.len()).unwrap();
            let class = *classes.entry(cell.style()).or_insert(next);
            cells.push(class);
            if skip == 0 {
                text.push_str(cell.symbol());
                skip = crate::widgets::text::width(cell.symbol()).saturating_sub(1);
            } else {
                skip -= 1;
            }
        }
        text.push_str("|\n");
    }
    writeln!(text, "styles: {:016x}", fnv1a(cells)).unwrap();
    text
}

/// A file of the repository by its path from the root.
pub fn repository_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Compares a committed file with the text that is generated for it. `INSTA_UPDATE=always` writes it first, as it does
/// with snapshots.
pub fn assert_generated(path: &Path, text: &str) {
    if std::env::var_os("INSTA_UPDATE").is_some_and(|update| update == "always") {
        std::fs::write(path, text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    pretty_assertions::assert_eq!(
        committed,
        text,
        "{} is out of date; run `INSTA_UPDATE=always cargo test -p luthier` and read the diff",
        path.display()
    );
}

/// Presses keys and compares the screen with the one stored under the test's name.
macro_rules! snapshot {
    ($app:expr, $keys:expr) => {{
        let app = &mut $app;
        app.keys($keys);
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(app.screen());
        });
    }};
    ($app:expr, $keys:expr, $name:expr) => {{
        let app = &mut $app;
        app.keys($keys);
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($name, app.screen());
        });
    }};
}
pub(crate) use snapshot;
