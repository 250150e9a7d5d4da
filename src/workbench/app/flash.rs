//! The last message, which expires, and all messages before it.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use luthier_core::text;

use super::context::Now;

/// Messages kept for the list of messages.
const KEPT: usize = 500;

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Note,
    /// Something asked for was done.
    Success,
    /// Something to look at.
    Warning,
    /// Something failed.
    Error,
}

impl Severity {
    /// The sign that stands for it where there is no colour.
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

/// One message, on one line, cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flash {
    /// How bad it is.
    pub severity: Severity,
    /// What it says.
    pub text: String,
    /// When it came.
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
    /// Adds a message and shows it.
    pub fn push(&mut self, severity: Severity, text: &str, now: Now) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Flash {
            severity,
            text: text::clean_line(text).into_owned(),
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

    /// When the message shown goes away.
    pub fn deadline(&self) -> Option<Duration> {
        self.current().map(|flash| flash.expires)
    }

    /// Takes a message away whose time has passed; whether there was one.
    pub fn expire(&mut self, now: Now) -> bool {
        let expired = self.deadline().is_some_and(|expires| expires <= now.elapsed);
        self.shown &= !expired;
        expired
    }
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
}
