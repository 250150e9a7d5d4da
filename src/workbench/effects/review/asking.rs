//! One comparison: from finding the weights to the last token of both answers.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use luthier_core::config::Config;
use luthier_core::data::Message;
use luthier_core::eval::{Contender, Objective};
use luthier_core::runs::serving::{GenerateRow, ServeReply, ServeRequest, ServingClient};
use luthier_core::runs::{RunDir, RunError};

use super::proof::Weights;
use crate::effects::Worker;
use crate::panes::review::{Ask, Broken, End, ReviewEvent as Event};
use crate::project::{Server, Unserved, sampling};

/// Interval between checks for cancellation while the engine is silent.
const LOOK: Duration = Duration::from_millis(50);

/// How long pieces are collected before they are posted: a frame.
const FLUSH: Duration = Duration::from_millis(25);

/// How long the engine may take to stop when asked.
const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// Lets both sides answer, and says everything about it through `worker`. The connection ends with it, so
/// that an idle engine can free its memory.
pub fn ask(project: &Path, server: &Server, given_up: &AtomicU64, ask: &Ask, worker: &Worker<Event>) {
    let asking = Asking { server, given_up, ask, worker };
    let broken = match asking.prepare(project) {
        Err(problem) => Broken::Failed(problem),
        Ok(prepared) => match asking.answer(&prepared).or_else(|again| match again {
            // An engine that died while idle, or has loaded weights that have changed since, is started once more.
            Stop::Again(_) => asking.answer(&prepared),
            other => Err(other),
        }) {
            Ok(()) => return,
            Err(Stop::GivenUp) => Broken::Cancelled,
            Err(Stop::Again(problem) | Stop::Failed(problem)) => Broken::Failed(problem),
        },
    };
    worker.send(Event::Broken(ask.id, broken));
}

/// Why an attempt ended early.
enum Stop {
    GivenUp,
    Failed(String),
    /// It failed, but a new engine may succeed.
    Again(String),
}

impl From<Unserved> for Stop {
    fn from(unserved: Unserved) -> Self {
        match unserved {
            Unserved::Cancelled => Self::GivenUp,
            Unserved::Failed(problem) => Self::Failed(problem),
            Unserved::Died { error, log } => Self::Again(death(&error, &log)),
        }
    }
}

/// What is known before the engine is asked.
struct Prepared {
    run: RunDir,
    weights: Weights,
    /// What each side is asked.
    conversations: [Vec<Message>; 2],
    /// What the tuned side is asked.
    asked: Vec<Message>,
    objective: Result<Objective, String>,
}

struct Asking<'a> {
    server: &'a Server,
    given_up: &'a AtomicU64,
    ask: &'a Ask,
    worker: &'a Worker<Event>,
}

impl Asking<'_> {
    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire) == self.ask.id || self.worker.is_stale()
    }

    fn progress(&self, what: impl Into<String>) {
        self.worker.send(Event::Progress(self.ask.id, what.into()));
    }

    fn prepare(&self, project: &Path) -> Result<Prepared, String> {
        self.progress("looking at the weights");
        let Ask { target, sides, prompt, config, .. } = self.ask;
        let run = RunDir::named(project, &target.run).map_err(|error| error.to_string())?;
        // The tuned side answers as it was trained: with the run's own settings.
        let settings = Config::load_file(&run.config_path(), &[]).map_err(|error| error.to_string())?;
        let weights = Weights::find(&run, target, &settings.model.path)?;
        let asked = prompt.conversation(&settings.data.system);
        let conversation = |who| match who {
            Contender::Tuned | Contender::Base => asked.clone(),
            Contender::Baseline => with_baseline(&prompt.messages, &config.review.baseline_system),
        };
        Ok(Prepared {
            conversations: sides.map(conversation),
            objective: Objective::from_config(config, project).map_err(|error| error.to_string()),
            run,
            weights,
            asked,
        })
    }

    fn answer(&self, prepared: &Prepared) -> Result<(), Stop> {
        let mut client = self.serve(prepared)?;
        let rows =
            self.ask.sides.iter().zip(&prepared.conversations).map(|(who, conversation)| GenerateRow {
                adapter: prepared.weights.adapter_of(*who),
                messages: conversation.clone(),
                extras: self.ask.prompt.extras.clone(),
                seed: self.ask.seed,
            });
        let request = ServeRequest::Generate {
            id: self.ask.id,
            rows: rows.collect(),
            sampling: sampling(&self.ask.config.review),
        };
        client.sender.send(&request).map_err(|error| self.died(&error))?;
        self.worker.send(Event::Began(self.ask.id, prepared.asked.clone()));
        self.progress("reading the prompt");
        self.listen(&mut client, prepared)
    }

    /// Has the engine load the base model of the run, and makes sure that it is the one asked for.
    fn serve(&self, prepared: &Prepared) -> Result<ServingClient, Stop> {
        let served = self.server.serve(prepared.run.path(), &mut |what| {
            if let Some(what) = what {
                self.progress(what);
            }
            if self.is_given_up() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if served.base == prepared.weights.base {
            return Ok(served.client);
        }
        self.server.end(STOPS_WITHIN);
        Err(Stop::Again(
            "The engine has loaded other base weights than the model's files have now. Close the other \
             workbenches of this project and ask again."
                .to_owned(),
        ))
    }

    /// Passes the answers on as they come.
    fn listen(&self, client: &mut ServingClient, prepared: &Prepared) -> Result<(), Stop> {
        let id = self.ask.id;
        let mut replies = [String::new(), String::new()];
        let mut ended = [false; 2];
        let mut pieces = Vec::new();
        let mut collected_since = Instant::now();
        let mut stops_by = None;
        while ended != [true; 2] {
            let patience = if pieces.is_empty() { LOOK } else { FLUSH };
            match client.receiver.receive(patience) {
                Ok(Some(ServeReply::Token { id: of, row, text })) if of == id => {
                    if let Some(reply) = replies.get_mut(row) {
                        reply.push_str(&text);
                        if pieces.is_empty() {
                            collected_since = Instant::now();
                        }
                        pieces.push((row, text));
                    }
                }
                Ok(Some(ServeReply::Done { id: of, row, reason, tokens, seconds, weights })) if of == id => {
                    self.flush(&mut pieces);
                    if let (Some(reply), Some(who)) = (replies.get(row), self.ask.sides.get(row)) {
                        let end = End {
                            reason,
                            tokens,
                            seconds,
                            weights,
                            expected: prepared.weights.of(*who).to_owned(),
                            score: self.score(prepared, reply),
                        };
                        self.worker.send(Event::Ended(id, row, Box::new(end)));
                        ended[row] = true;
                    }
                }
                Ok(Some(ServeReply::Error { id: of, message })) if of == id || of == 0 => {
                    return Err(Stop::Failed(message));
                }
                Ok(Some(_) | None) => {}
                Err(error) => {
                    self.flush(&mut pieces);
                    let nothing = replies.iter().all(String::is_empty) && ended == [false; 2];
                    return Err(if nothing { self.died(&error) } else { Stop::Failed(self.death(&error)) });
                }
            }
            if !pieces.is_empty() && collected_since.elapsed() >= FLUSH {
                self.flush(&mut pieces);
            }
            if self.worker.is_stale() {
                // The end of the connection gives the answers up.
                return Err(Stop::GivenUp);
            }
            if self.is_given_up() && stops_by.is_none() {
                stops_by = Some(Instant::now() + STOPS_WITHIN);
                let sent = client.sender.send(&ServeRequest::Cancel { id });
                sent.map_err(|error| Stop::Failed(self.death(&error)))?;
            }
            if stops_by.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Stop::GivenUp);
            }
        }
        Ok(())
    }

    fn flush(&self, pieces: &mut Vec<(usize, String)>) {
        if !pieces.is_empty() {
            self.worker.send(Event::Pieces(self.ask.id, std::mem::take(pieces)));
        }
    }

    fn score(&self, prepared: &Prepared, reply: &str) -> Option<Result<luthier_core::eval::Score, String>> {
        match &prepared.objective {
            Err(problem) => Some(Err(problem.clone())),
            Ok(objective) => objective.score(reply, self.ask.prompt.expected.as_deref()).map(Ok),
        }
    }

    /// The engine went away before it said anything.
    fn died(&self, error: &RunError) -> Stop {
        Stop::Again(self.death(error))
    }

    fn death(&self, error: &RunError) -> String {
        death(&error.to_string(), &self.server.log())
    }
}

fn death(error: &str, log: &str) -> String {
    format!("The engine died: {error}. ↵ starts it again and asks again.\n\n{log}")
}

/// A conversation with `system` in place of every system prompt of its own.
fn with_baseline(messages: &[Message], system: &str) -> Vec<Message> {
    let own = messages.iter().filter(|message| message.role != "system").cloned();
    [Message::new("system", system)].into_iter().chain(own).collect()
}
