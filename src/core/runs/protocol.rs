//! The messages on a run's control socket: one JSON object per line, in both directions.

use serde::{Deserialize, Serialize};

use super::event::JournalEvent;

/// Protocol version. Raised when a request or reply changes its meaning, not when one is added.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest line that either side accepts, in bytes.
pub const MESSAGE_LIMIT: usize = 1 << 20;

/// Requests to a run. The first request on a connection must be `Hello`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Opens the connection.
    Hello {
        /// [`PROTOCOL_VERSION`] of the client.
        version: u32,
    },
    /// Wait after the current step.
    Pause,
    /// Continue after a pause.
    Resume,
    /// Write a checkpoint after the current step.
    Checkpoint,
    /// End the run.
    Stop { when: StopWhen },
    /// Change a setting.
    Edit {
        /// Dotted key, such as `train.learning_rate`.
        key: String,
        /// The new value, as TOML.
        value: String,
        /// The client's name, for the journal.
        #[serde(default)]
        who: Option<String>,
    },
    /// Evaluate after the current step.
    Evaluate,
    /// Answer a prompt with the current weights.
    Sample { prompt: String },
    /// Also send every journal event from now on.
    Subscribe,
}

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, strum::Display, strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum StopWhen {
    /// After the current step, with a checkpoint and the adapter saved.
    #[default]
    Save,
    /// After one more evaluation, and saved as well.
    AfterEval,
    /// Immediately, without saving: steps after the last checkpoint are lost.
    Now,
}

/// Replies of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Reply to `Hello`.
    Hello {
        /// [`PROTOCOL_VERSION`] of the engine.
        version: u32,
        run: String,
        /// Process id of the engine.
        pid: u32,
        engine: String,
    },
    /// Done, or will be done; in words for the user.
    Ok { message: String },
    /// Refused; in words for the user.
    Error { message: String },
    /// A journal event, for subscribers.
    Event { event: Box<JournalEvent> },
    /// The subscriber was too slow: events before the next one were dropped. The journal has them.
    Missed { events: u64 },
}

impl Reply {
    pub fn ok(message: impl Into<String>) -> Self {
        Self::Ok { message: message.into() }
    }

    pub fn error(message: impl Into<String>) -> Self {
        Self::Error { message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{damage, damaged};

    #[test]
    fn requests_are_plain_json_lines() {
        let cases = [
            (Request::Pause, r#"{"request":"pause"}"#),
            (Request::Stop { when: StopWhen::AfterEval }, r#"{"request":"stop","when":"after_eval"}"#),
            (
                Request::Edit { key: "train.learning_rate".into(), value: "1e-4".into(), who: None },
                r#"{"request":"edit","key":"train.learning_rate","value":"1e-4","who":null}"#,
            ),
            (Request::Hello { version: 1 }, r#"{"request":"hello","version":1}"#),
        ];
        for (request, text) in cases {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
        assert!(serde_json::from_str::<Request>(r#"{"request":"explode"}"#).is_err());
    }

    proptest! {
        #[test]
        fn any_text_reads_back_equal(key in "\\PC*", value in "[\\PC\n\u{0}-\u{1f}]*", who in prop::option::of("\\PC*")) {
            let requests = [
                Request::Edit { key: key.clone(), value: value.clone(), who },
                Request::Sample { prompt: value.clone() },
            ];
            for request in requests {
                let text = serde_json::to_string(&request).unwrap();
                prop_assert!(!text.contains('\n'));
                prop_assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
            }
            for reply in [Reply::ok(key.as_str()), Reply::error(value.as_str())] {
                let text = serde_json::to_string(&reply).unwrap();
                prop_assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
            }
        }

        #[test]
        fn a_damaged_line_is_refused_or_parsed(which in 0..4_usize, damage in damage()) {
            let lines = [
                r#"{"request":"edit","key":"train.learning_rate","value":"1e-4","who":null}"#,
                r#"{"request":"stop","when":"after_eval"}"#,
                r#"{"reply":"event","event":{"kind":"step","time":"2026-08-23T14:02:11.250Z","step":3,"loss":"NaN"}}"#,
                r#"{"reply":"hello","version":1,"run":"r","pid":1,"engine":"0.1.0"}"#,
            ];
            let line = damaged(lines[which].as_bytes(), &damage);
            if let Ok(request) = serde_json::from_slice::<Request>(&line) {
                let text = serde_json::to_string(&request).unwrap();
                prop_assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
            }
            let _ = serde_json::from_slice::<Reply>(&line);
        }
    }
}
