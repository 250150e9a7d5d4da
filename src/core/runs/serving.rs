//! What is said between the workbench and `luthier-engine serve`: one JSON object a line, each way, over a
//! Unix socket.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::data::Message;

use super::RunError;
use super::socket::{LineReader, LineWriter, connect_checked};

/// Version of the serving protocol.
pub const SERVING_VERSION: u32 = 1;

/// What is asked of the server. The first request of a connection must be `Hello`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum ServeRequest {
    /// Opens the conversation; answered with `Ready` once the base model is loaded.
    Hello {
        /// [`SERVING_VERSION`] of the client.
        version: u32,
    },
    /// Load the base model of a run (its `config.toml`), or of the project where `run` is missing. Answered
    /// with `Ready`, or with `Error` with id 0.
    Load {
        /// Run directory.
        run: Option<PathBuf>,
    },
    /// Answer prompts, each row with the base model or with an adapter over it, as one batch.
    Generate {
        /// Chosen by the client; comes back with every token.
        id: u64,
        /// What to answer.
        rows: Vec<GenerateRow>,
        /// How to choose tokens.
        sampling: Sampling,
    },
    /// Give up a generation; its rows end with `Cancelled`.
    Cancel {
        /// The generation's id.
        id: u64,
    },
}

/// One conversation to answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerateRow {
    /// PEFT adapter folder; missing for the base model as it is.
    pub adapter: Option<PathBuf>,
    /// The conversation so far, the system prompt included.
    pub messages: Vec<Message>,
    /// Seed of this row's choices.
    pub seed: u64,
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 takes the most likely token each time.
    pub temperature: f64,
    /// Smallest set of tokens that holds this much probability.
    pub top_p: f64,
    /// Most likely tokens considered; 0 considers all.
    pub top_k: usize,
    /// Longest reply.
    pub max_new_tokens: usize,
}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum ServeReply {
    /// The base model is loaded.
    Ready {
        /// [`SERVING_VERSION`] of the server.
        version: u32,
        /// Identity of the base weights.
        base_fingerprint: String,
        /// `cpu`, `cuda:0` …
        device: String,
    },
    /// The model is being loaded: sent so that waiting can be shown.
    Loading {
        /// What is being done.
        message: String,
    },
    /// A piece of a reply.
    Token {
        /// The generation.
        id: u64,
        /// Row within it.
        row: usize,
        /// Text to append.
        text: String,
    },
    /// A row is finished.
    Done {
        /// The generation.
        id: u64,
        /// Row within it.
        row: usize,
        /// Why it ended.
        reason: DoneReason,
        /// Tokens generated.
        tokens: usize,
        /// Time from the request to the last token.
        seconds: f64,
        /// Fingerprint of what answered: of the base weights, or of the adapter's over them.
        weights: String,
    },
    /// A generation (or, with id 0, a load) failed, in words for the user.
    Error {
        /// The generation.
        id: u64,
        /// Why.
        message: String,
    },
}

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::Display, strum::EnumString)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DoneReason {
    /// The model ended it.
    Stop,
    /// It reached the longest length.
    Length,
    /// The client gave up.
    Cancelled,
}

/// The workbench's end: a sender and a receiver that may live in different threads.
pub struct ServingClient {
    /// Sends requests.
    pub sender: ServingSender,
    /// Receives replies.
    pub receiver: ServingReceiver,
}

/// Sends requests to the server.
pub struct ServingSender(LineWriter);

/// Receives what the server says.
pub struct ServingReceiver(LineReader);

impl ServingClient {
    /// Connects to a server of the same user. Says nothing yet.
    pub fn connect(socket: &Path) -> Result<Self, RunError> {
        Self::over(connect_checked(socket)?)
    }

    fn over(stream: UnixStream) -> Result<Self, RunError> {
        let writer = LineWriter::new(&stream)?;
        Ok(Self { sender: ServingSender(writer), receiver: ServingReceiver(LineReader::new(stream)) })
    }
}

impl ServingSender {
    /// Sends one request.
    pub fn send(&mut self, request: &ServeRequest) -> Result<(), RunError> {
        self.0.send(request)
    }
}

impl ServingReceiver {
    /// The next reply; `Ok(None)` where none came within `timeout`. An error where the server is gone.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<ServeReply>, RunError> {
        self.0.receive(Some(timeout))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{damage, damaged};

    #[test]
    fn both_ends_understand_each_other() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut client = ServingClient::over(here).unwrap();
        let mut server_writer = LineWriter::new(&there).unwrap();
        let mut server_reader = LineReader::new(there);
        let request = ServeRequest::Generate {
            id: 3,
            rows: vec![GenerateRow { adapter: None, messages: vec![Message::new("user", "hi")], seed: 1 }],
            sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, max_new_tokens: 8 },
        };
        client.sender.send(&request).unwrap();
        assert_eq!(server_reader.receive::<ServeRequest>(None).unwrap(), Some(request));
        assert_eq!(client.receiver.receive(Duration::from_millis(1)).unwrap(), None);
        let reply = ServeReply::Done {
            id: 3,
            row: 0,
            reason: DoneReason::Length,
            tokens: 8,
            seconds: 0.5,
            weights: "f00d".into(),
        };
        server_writer.send(&reply).unwrap();
        assert_eq!(client.receiver.receive(Duration::from_secs(30)).unwrap(), Some(reply));
        drop((server_writer, server_reader));
        assert!(client.receiver.receive(Duration::from_secs(30)).is_err());
    }

    proptest! {
        #[test]
        fn a_damaged_line_is_refused_or_understood(which in 0..3_usize, damage in damage()) {
            let lines = [
                r#"{"request":"generate","id":3,"rows":[{"adapter":null,"messages":[{"role":"user","content":"hi"}],"seed":1}],"sampling":{"temperature":0.0,"top_p":1.0,"top_k":0,"max_new_tokens":8}}"#,
                r#"{"request":"load","run":"runs/x"}"#,
                r#"{"reply":"done","id":3,"row":0,"reason":"length","tokens":8,"seconds":0.5,"weights":"f00d"}"#,
            ];
            let line = damaged(lines[which].as_bytes(), &damage);
            if let Ok(request) = serde_json::from_slice::<ServeRequest>(&line) {
                let text = serde_json::to_string(&request).unwrap();
                prop_assert_eq!(serde_json::from_str::<ServeRequest>(&text).unwrap(), request);
            }
            let _ = serde_json::from_slice::<ServeReply>(&line);
        }
    }
}
