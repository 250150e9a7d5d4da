//! The messages between the workbench and `luthier-engine serve`: one JSON object per line, in both
//! directions, over a Unix socket.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::data::{Extras, Message};

use super::RunError;
use super::socket::{LineReader, LineWriter, connect_checked};

/// Version of the serving protocol.
pub const SERVING_VERSION: u32 = 1;

/// Requests to the server. The first request on a connection must be `Hello`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum ServeRequest {
    /// Opens the connection; answered with `Ready` once the base model is loaded.
    Hello {
        /// [`SERVING_VERSION`] of the client.
        version: u32,
    },
    /// Load the base model of a run (from its `config.toml`), or of the project if `run` is missing. Answered
    /// with `Ready`, or with `Error` with id 0.
    Load {
        /// Run directory.
        run: Option<PathBuf>,
    },
    /// Answer prompts as one batch, each row with the base model or an adapter over it.
    Generate {
        /// Chosen by the client; returned with every token.
        id: u64,
        rows: Vec<GenerateRow>,
        sampling: Sampling,
    },
    /// Cancel a generation; its rows end with `Cancelled`.
    Cancel { id: u64 },
}

/// One conversation to answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerateRow {
    /// PEFT adapter folder; missing for the base model alone.
    pub adapter: Option<PathBuf>,
    /// The conversation so far, including the system prompt.
    pub messages: Vec<Message>,
    /// Tools and variables for the chat template.
    #[serde(default, skip_serializing_if = "Extras::is_empty")]
    pub extras: Extras,
    /// Seed for sampling this row.
    pub seed: u64,
}

/// How tokens are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 always takes the most likely token.
    pub temperature: f64,
    /// Samples from the smallest set of tokens with this total probability.
    pub top_p: f64,
    /// Samples from this many most likely tokens; 0 from all.
    pub top_k: usize,
    /// Limit on the length of a reply.
    pub max_new_tokens: usize,
}

/// Replies of the server.
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
    /// The model is being loaded. Sent so that the client can show progress.
    Loading {
        /// What is being done, in words.
        message: String,
    },
    /// A piece of a reply.
    Token {
        /// The generation's id.
        id: u64,
        /// Row in the generation.
        row: usize,
        /// Text to append.
        text: String,
    },
    /// A row is finished.
    Done {
        /// The generation's id.
        id: u64,
        /// Row in the generation.
        row: usize,
        reason: DoneReason,
        /// Number of tokens generated.
        tokens: usize,
        /// Time from the request to the last token.
        seconds: f64,
        /// Fingerprint of the weights used: of the base model, or of the adapter over it.
        weights: String,
    },
    /// A generation (or, with id 0, a load) failed.
    Error {
        /// The generation's id.
        id: u64,
        /// The reason, in words for the user.
        message: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::Display, strum::EnumString)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DoneReason {
    /// The model ended it.
    Stop,
    /// It reached `max_new_tokens`.
    Length,
    /// The client cancelled it.
    Cancelled,
}

/// The client's end: a sender and a receiver, which can be used in different threads.
pub struct ServingClient {
    pub sender: ServingSender,
    pub receiver: ServingReceiver,
}

/// Sends requests to the server.
pub struct ServingSender(LineWriter);

/// Receives replies from the server.
pub struct ServingReceiver(LineReader);

impl ServingClient {
    /// Connects to a server of the same user. Sends nothing yet.
    pub fn connect(socket: &Path) -> Result<Self, RunError> {
        Self::over(connect_checked(socket)?)
    }

    fn over(stream: UnixStream) -> Result<Self, RunError> {
        let writer = LineWriter::new(&stream)?;
        Ok(Self { sender: ServingSender(writer), receiver: ServingReceiver(LineReader::new(stream)) })
    }
}

impl ServingSender {
    pub fn send(&mut self, request: &ServeRequest) -> Result<(), RunError> {
        self.0.send(request)
    }
}

impl ServingReceiver {
    /// The next reply; `Ok(None)` if none came within `timeout`. An error if the server is gone.
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
            rows: vec![GenerateRow {
                adapter: None,
                messages: vec![Message::new("user", "hi")],
                extras: Extras::default(),
                seed: 1,
            }],
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
