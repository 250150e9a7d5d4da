//! `luthier-engine serve`: answers prompts with the base model and with adapters, from one set of base
//! weights.
//!
//! One thread owns the model and runs one generation at a time. The rows of a generation are one batch, each
//! with its own adapter, so that base and tuned answers together cost about as much as one.

mod adapters;
mod clients;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use luthier_core::config::{self, Config};
use luthier_core::data::DecodeStream;
use luthier_core::panics;
use luthier_core::runs::serving::{
    DoneReason, GenerateRow, SERVING_VERSION, Sampling as WantedSampling, ServeReply, ServeRequest,
};
use luthier_core::runs::{CONFIG_FILE, RunDir, RunError};

use crate::base::{Base, model_files};
use crate::device;
use crate::error::{EngineError, Result};
use crate::generation::{Row, Sampling, generate};
use crate::process::Termination;
use adapters::{Adapters, Loaded};
use clients::{Arrival, ClientId, Clients};

/// The process ends after this long without clients.
const IDLE: Duration = Duration::from_mins(10);

/// How often a waiting server checks for signals and the idle limit.
const LOOK: Duration = Duration::from_millis(200);

/// How long a `Hello` waits for the `Load` that usually follows it, so that no model is loaded in vain.
const FOLLOW_UP: Duration = Duration::from_millis(100);

/// Most rows of one generation.
const ROWS: usize = 64;

/// Serves `project` at `socket` until a signal ends the process or no client has been connected for ten
/// minutes. `device` overrides the configuration.
pub fn serve(
    project: &Path,
    socket: &Path,
    device: Option<config::Device>,
    termination: &Termination,
) -> Result<(), RunError> {
    let clients = Clients::listen(socket)?;
    tracing::info!(socket = %socket.display(), "listening");
    let mut server = Server {
        project: project.to_owned(),
        device,
        clients,
        waiting: VecDeque::new(),
        base: None,
        adapters: Adapters::default(),
    };
    let mut last_seen = Instant::now();
    while !termination.asked() && last_seen.elapsed() < IDLE {
        if server.clients.count() > 0 {
            last_seen = Instant::now();
        }
        let arrival = server.waiting.pop_front().or_else(|| server.clients.wait(LOOK));
        if let Some(Arrival::Request(client, request)) = arrival
            && server.take(client, request).is_break()
        {
            break;
        }
    }
    Ok(())
}

struct Server {
    project: PathBuf,
    device: Option<config::Device>,
    clients: Clients,
    /// Messages that arrived during other work.
    waiting: VecDeque<Arrival>,
    base: Option<Serving>,
    adapters: Adapters,
}

/// The loaded base model and the settings that it was loaded with.
struct Serving {
    base: Base,
    config: Config,
}

impl Server {
    /// Handles one request. Breaks if the device can do no more work in this process.
    fn take(&mut self, client: ClientId, request: ServeRequest) -> ControlFlow<()> {
        let (id, outcome) = match request {
            ServeRequest::Hello { version } if version != SERVING_VERSION => {
                let message = format!(
                    "this engine speaks version {SERVING_VERSION} of the serving protocol, the client version {version}; use \
                     the `luthier` that came with it"
                );
                self.clients.reply(client, ServeReply::Error { id: 0, message });
                return ControlFlow::Continue(());
            }
            ServeRequest::Hello { .. } => (0, self.greet(client)),
            ServeRequest::Load { run } => (0, self.load(client, run.as_deref(), 1)),
            ServeRequest::Generate { id, rows, sampling } => {
                (id, catching(|| self.generate(client, id, &rows, &sampling)))
            }
            // The generation that it was meant for has ended.
            ServeRequest::Cancel { .. } => return ControlFlow::Continue(()),
        };
        let Err(error) = outcome else { return ControlFlow::Continue(()) };
        tracing::warn!(%error, "a request failed");
        let message = format!("{error}; {}", error.remedy());
        self.clients.reply(client, ServeReply::Error { id, message });
        if matches!(error, EngineError::Device(_)) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Answers a `Hello` with the loaded model, with the one that a following `Load` asks for, or with the
    /// project's.
    fn greet(&mut self, client: ClientId) -> Result<()> {
        if self.base.is_some() {
            self.ready(client, 1);
            return Ok(());
        }
        let next = self.waiting.pop_front().or_else(|| self.clients.wait(FOLLOW_UP));
        match next {
            Some(Arrival::Request(other, ServeRequest::Load { run })) if other == client => {
                self.load(client, run.as_deref(), 2)
            }
            other => {
                self.waiting.extend(other);
                self.load(client, None, 1)
            }
        }
    }

    fn ready(&self, client: ClientId, times: usize) {
        let Some(Serving { base, .. }) = &self.base else { return };
        for _ in 0..times {
            self.clients.reply(
                client,
                ServeReply::Ready {
                    version: SERVING_VERSION,
                    base_fingerprint: base.files.fingerprint.clone(),
                    device: device::name(base.model.device()),
                },
            );
        }
    }

    /// Loads the base model of a run or of the project, unless it is already loaded. Answers `ready` times.
    fn load(&mut self, client: ClientId, run: Option<&Path>, ready: usize) -> Result<()> {
        let configured = match run {
            Some(run) => RunDir::open(run)
                .map_err(|error| EngineError::Config(error.to_string()))
                .and_then(|run| read_config(&run.path().join(CONFIG_FILE))),
            None => read_config(&self.project.join(config::FILE_NAME)),
        };
        let mut config = configured?;
        if let Some(device) = self.device {
            config.model.device = device;
        }
        match &mut self.base {
            Some(serving)
                if serving.config.model == config.model
                    && serving.config.data.template == config.data.template =>
            {
                device::prepare(&config, serving.base.model.device())?;
                serving.config = config;
            }
            _ => {
                let message = format!("loading {}", config.model.path);
                self.clients.reply(client, ServeReply::Loading { message });
                // The old weights are freed first, because both may not fit into memory.
                self.adapters.clear();
                self.base = None;
                let base =
                    catching(|| Base::load(model_files(&config, &self.project)?, &config, &self.project))?;
                self.base = Some(Serving { base, config });
            }
        }
        self.ready(client, ready);
        Ok(())
    }

    fn generate(
        &mut self,
        client: ClientId,
        id: u64,
        rows: &[GenerateRow],
        wanted: &WantedSampling,
    ) -> Result<()> {
        let began = Instant::now();
        if self.base.is_none() {
            self.load(client, None, 0)?;
        }
        let Some(Serving { base, config }) = &self.base else {
            return Err(EngineError::Config("no base model is loaded".into()));
        };
        if rows.is_empty() || rows.len() > ROWS {
            return Err(EngineError::Data(format!(
                "1 to {ROWS} rows can be answered at a time, not {}",
                rows.len()
            )));
        }
        let folders: Vec<&Path> = rows.iter().filter_map(|row| row.adapter.as_deref()).collect();
        self.adapters.load(&folders, &base.model)?;

        let prompts = rows
            .iter()
            .map(|row| base.prompt(&row.messages, &row.extras, config))
            .collect::<Result<Vec<_>>>()?;
        let adapters: Vec<_> =
            rows.iter().map(|row| row.adapter.as_deref().and_then(|path| self.adapters.get(path))).collect();
        let before = |loaded: Option<&Loaded>| loaded.map_or(0, |loaded| loaded.adapter.virtual_tokens());
        let lengths = prompts.iter().zip(&adapters).map(|(prompt, loaded)| prompt.len() + before(*loaded));
        let longest = lengths.max().unwrap_or(0);
        let room = base.files.architecture.positions.saturating_sub(longest);
        if room == 0 {
            return Err(EngineError::Data(format!(
                "the conversation has {longest} tokens, and the model can hold {}; start a new one",
                base.files.architecture.positions
            )));
        }
        let sampling = Sampling { temperature: wanted.temperature, top_k: wanted.top_k, top_p: wanted.top_p };
        let max_new_tokens = wanted.max_new_tokens.min(room);
        let batch: Vec<Row> = rows
            .iter()
            .zip(&prompts)
            .zip(&adapters)
            .map(|((row, prompt), adapter)| Row {
                prompt,
                adapter: adapter.map(|loaded| loaded.adapter.as_ref()),
                sampling,
                seed: row.seed,
                stop: &base.stop,
                max_new_tokens,
            })
            .collect();
        let fingerprints = adapters.iter().map(|adapter| {
            adapter.map_or_else(|| base.files.fingerprint.clone(), |loaded| loaded.fingerprint.clone())
        });
        let mut speakers: Vec<Speaker> = fingerprints
            .map(|weights| Speaker { text: base.tokenizer.stream(), tokens: 0, weights, done: false })
            .collect();
        let clients = &self.clients;
        let waiting = &mut self.waiting;
        let mut cancelled = waiting.iter().any(|arrival| gives_up(arrival, client, id));
        generate(&base.model, &batch, &mut |row, token| {
            cancelled = cancelled || is_cancelled(clients, waiting, client, id);
            if cancelled {
                return ControlFlow::Break(());
            }
            let Some(speaker) = speakers.get_mut(row) else { return ControlFlow::Break(()) };
            for reply in speaker.hear(id, row, token, &base.stop, max_new_tokens, began.elapsed()) {
                clients.reply(client, reply);
            }
            ControlFlow::Continue(())
        })?;
        for (row, speaker) in speakers.iter_mut().enumerate().filter(|(_, speaker)| !speaker.done) {
            let reason = if cancelled { DoneReason::Cancelled } else { DoneReason::Length };
            for reply in speaker.end(id, row, reason, began.elapsed()) {
                clients.reply(client, reply);
            }
        }
        Ok(())
    }
}

/// Whether this generation was cancelled since the last call. Other messages are kept for later.
fn is_cancelled(clients: &Clients, waiting: &mut VecDeque<Arrival>, client: ClientId, id: u64) -> bool {
    let mut cancelled = false;
    while let Some(arrival) = clients.poll() {
        if gives_up(&arrival, client, id) {
            cancelled = true;
        } else {
            waiting.push_back(arrival);
        }
    }
    cancelled
}

/// Whether a message ends the generation `id` of `client`.
fn gives_up(arrival: &Arrival, client: ClientId, id: u64) -> bool {
    match arrival {
        Arrival::Gone(gone) => *gone == client,
        Arrival::Request(from, ServeRequest::Cancel { id: given_up }) => *from == client && *given_up == id,
        Arrival::Request(..) => false,
    }
}

/// Converts one row's tokens to text.
struct Speaker {
    text: DecodeStream,
    tokens: usize,
    weights: String,
    done: bool,
}

impl Speaker {
    /// The reply for one more token.
    fn hear(
        &mut self,
        id: u64,
        row: usize,
        token: u32,
        stop: &[u32],
        most: usize,
        elapsed: Duration,
    ) -> Vec<ServeReply> {
        if stop.contains(&token) {
            return self.end(id, row, DoneReason::Stop, elapsed);
        }
        self.tokens += 1;
        let mut replies: Vec<ServeReply> =
            self.text.push(token).map(|text| ServeReply::Token { id, row, text }).into_iter().collect();
        if self.tokens >= most {
            replies.extend(self.end(id, row, DoneReason::Length, elapsed));
        }
        replies
    }

    fn end(&mut self, id: u64, row: usize, reason: DoneReason, elapsed: Duration) -> Vec<ServeReply> {
        self.done = true;
        let rest = self.text.finish().map(|text| ServeReply::Token { id, row, text });
        let (tokens, weights, seconds) = (self.tokens, self.weights.clone(), elapsed.as_secs_f64());
        let done = ServeReply::Done { id, row, reason, tokens, seconds, weights };
        rest.into_iter().chain([done]).collect()
    }
}

fn read_config(path: &Path) -> Result<Config> {
    Config::load_file(path, &[]).map_err(|error| EngineError::Config(error.to_string()))
}

/// tch panics if a call without a fallible form fails. The server must survive that.
fn catching<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    panics::caught(work).unwrap_or_else(|panic| Err(EngineError::torch("an operation", &panic)))
}
