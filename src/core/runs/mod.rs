//! Run directories and their files: the journal (written and read), the status, checkpoints, both ends of the
//! control socket, and starting engine processes.
//!
//! The journal is the truth about a run and the status file its summary. The socket is only a shortcut:
//! without it a run can still be followed, and edited through `config.toml`.

mod actions;
mod checkpoint;
mod client;
mod directory;
mod error;
mod event;
mod history;
mod journal;
mod last_words;
mod number;
mod outcome;
mod process;
mod protocol;
mod reader;
mod reserve;
mod server;
pub mod serving;
mod sight;
mod socket;
mod spawn;
mod status;
#[cfg(test)]
pub(crate) mod testing;
pub mod time;

pub use actions::{Action, ResumeWay, resume_way};
pub use checkpoint::{
    CHECKPOINT_FOLDER, Checkpoint, CheckpointError, CheckpointWriter, MANIFEST_FILE, Manifest, ManifestEntry,
    Pruned, list_checkpoints, newest_valid, prune, sweep_debris,
};
pub use client::{Client, Greeting, Heard, REQUEST_TIMEOUT, Subscription, ask};
pub(crate) use directory::FolderLock;
pub use directory::{
    CONFIG_FILE, ENGINE_LOG, JOURNAL_FILE, RUNS_FOLDER, RunDir, RunLock, RunSummary, list, method_label,
};
pub use error::RunError;
pub use event::{
    AlertEvent, AlertKind, CheckpointEvent, EditEvent, EvalEvent, EventBody, JournalEvent, Metrics,
    ParameterCount, RunEvent, SampleEvent, StateEvent, StepEvent,
};
pub use history::{SETTINGS_FILE, SettingsHistory, UNDO, journaled_edits, newest_to_undo};
pub use journal::JournalWriter;
pub(crate) use journal::ends_torn;
pub use last_words::{LAST_WORDS_FILE, PREPARED_WORDS_FILE};
pub use number::Number;
pub use outcome::{ResultForm, weights_fingerprint};
pub use process::{Host, ProcessIdentity, is_alive};
pub use protocol::{MESSAGE_LIMIT, PROTOCOL_VERSION, Reply, Request, StopWhen};
pub use reader::{Batch, JournalReader};
pub use reserve::{RESERVE_FILE, ROOM, Reserve, awaited};
pub use server::{Call, Responder, Server};
pub use socket::{
    Closer, LineReader, LineWriter, OwnListener, Peer, connect_checked, control_socket_path,
    serving_socket_path, socket_folder, sweep_stale_sockets,
};
pub use spawn::{
    ENGINE_VARIABLE, become_session_leader, engine_executable, log_out_warning, start_detached,
    start_detached_with, start_serving,
};
pub(crate) use spawn::{reap, spawn};
pub use status::{
    Failure, FailureClass, HEARTBEAT_INTERVAL, HEARTBEAT_LIMIT, RunState, STATUS_FILE, Status, replace_file,
};
