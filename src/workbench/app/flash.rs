//! The last message, which expires, and all messages before it.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use luthier_core::config::headline;
use luthier_core::text;

use super::context::Now;

/// Messages kept for the list of messages.
const KEPT: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// For information.
    Note,
    /// A request was carried out.
    Success,
    /// Needs attention.
    Warning,
    /// Something failed.
    Error,
}

impl Severity {
    /// The sign shown with the message; it also works without colour.
    pub fn glyph(self) -> &'static str {
        match self {
            Self::Note => "·",
            Self::Success => "✓",
            Self::Warning => "!",
            Self::Error => "✗",
        }
    }

    fn lifetime(self) -> Duration {
        match self {
            Self::Note | Self::Success => Duration::from_secs(6),
            Self::Warning | Self::Error => Duration::from_secs(15),
        }
    }
}

/// The shortest time a message is shown, whatever keys are pressed: long enough to be read.
const READ: Duration = Duration::from_secs(2);

/// One message, on one line, cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flash {
    pub severity: Severity,
    pub text: String,
    /// When it was posted.
    pub time: Timestamp,
    expires: Duration,
}

/// All messages.
#[derive(Debug, Default)]
pub struct Messages {
    kept: VecDeque<Flash>,
    shown: bool,
}

impl Messages {
    pub fn push(&mut self, severity: Severity, text: &str, now: Now) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Flash {
            severity,
            text: in_a_line(text),
            time: now.wall,
            expires: now.elapsed + severity.lifetime(),
        });
        self.shown = true;
    }

    /// The message to show.
    pub fn current(&self) -> Option<&Flash> {
        self.kept.back().filter(|_| self.shown)
    }

    /// Oldest first.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Flash> {
        self.kept.iter()
    }

    /// A key was pressed: a note that was shown long enough goes away, since the user has moved on.
    pub fn key_pressed(&mut self, now: Now) {
        let over = |flash: &Flash| {
            flash.severity <= Severity::Success
                && flash.expires.saturating_sub(flash.severity.lifetime()) + READ <= now.elapsed
        };
        if self.current().is_some_and(over) {
            self.shown = false;
        }
    }

    /// Hides the message.
    pub fn dismiss(&mut self) {
        self.shown = false;
    }

    /// When the message expires.
    pub fn deadline(&self) -> Option<Duration> {
        self.current().map(|flash| flash.expires)
    }

    /// Hides the message if it has expired; returns whether it had.
    pub fn expire(&mut self, now: Now) -> bool {
        let expired = self.deadline().is_some_and(|expires| expires <= now.elapsed);
        self.shown &= !expired;
        expired
    }
}

/// `text` on one line. Of a problem drawn with its source line and carets, only the message is kept.
fn in_a_line(text: &str) -> String {
    let drawn = |line: &str| {
        let line = line.trim_start();
        line.starts_with("--> ") || line.strip_prefix('|').is_some_and(|marks| marks.trim().starts_with('^'))
    };
    if text.lines().any(drawn) { headline(text) } else { text::clean_line(text).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(seconds: u64) -> Now {
        Now { elapsed: Duration::from_secs(seconds), wall: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn messages_expire_but_are_kept() {
        let mut messages = Messages::default();
        messages.push(Severity::Success, "saved\n\u{1b}[31m", now(10));
        assert_eq!(messages.current().map(|flash| flash.text.as_str()), Some("saved⏎[31m"));
        messages.expire(now(15));
        assert!(messages.current().is_some());
        messages.expire(now(16));
        assert!(messages.current().is_none());
        assert_eq!(messages.all().count(), 1);
        assert_eq!(messages.deadline(), None);
    }

    #[test]
    fn of_a_drawn_problem_only_its_words_are_kept() {
        let said = |text| {
            let mut messages = Messages::default();
            messages.push(Severity::Error, text, now(0));
            messages.current().map(|flash| flash.text.clone()).unwrap_or_default()
        };
        assert_eq!(
            said("error: unknown key `rnak`\n --> luthier.toml:1:1\n  |\n1 | rnak\n  | ^^^^"),
            "unknown key `rnak` (luthier.toml:1:1)"
        );
        assert_eq!(
            said(
                "theme mine: TOML parse error at line 1, column 7\n  |\n1 | [roles\n  |       ^\nexpected `]`"
            ),
            "theme mine: TOML parse error at line 1, column 7"
        );
        assert_eq!(said("two\nlines"), "two⏎lines");
    }

    #[test]
    fn keys_take_away_what_was_read_and_was_no_warning() {
        let mut messages = Messages::default();
        messages.push(Severity::Note, "looking", now(10));
        messages.key_pressed(now(11));
        assert!(messages.current().is_some());
        messages.key_pressed(now(12));
        assert!(messages.current().is_none() && messages.deadline().is_none());
        messages.push(Severity::Warning, "careful", now(20));
        messages.key_pressed(now(30));
        assert!(messages.current().is_some());
        messages.dismiss();
        assert!(messages.current().is_none());
        assert_eq!(messages.all().count(), 2);
    }
}
