//! The engine that answers prompts, as the command line uses it.

use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use luthier_core::runs::serving::{SERVING_VERSION, ServeReply, ServeRequest, ServingClient};
use luthier_core::runs::{RUNS_FOLDER, RunError, serving_socket_path, start_serving};

use rustix::process::{Pid, Signal, kill_process};

use super::failure::{Failure, Outcome};
use super::output;

/// How long an engine may take to load libtorch and listen.
const LISTENS_WITHIN: Duration = Duration::from_mins(2);

/// How often a starting engine is knocked at.
const KNOCK: Duration = Duration::from_millis(50);

/// A loading engine says something at least this often, or is asked whether it still lives.
const SILENCE: Duration = Duration::from_millis(200);

/// A conversation with a serving engine, which ends with it where it was started for it.
pub struct Serving {
    /// Our end of the conversation.
    pub client: ServingClient,
    child: Option<Child>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // One that ended by itself is what is wanted.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
            let _ = child.wait();
        }
    }
}

/// Connects to the project's serving engine, starts one where there is none, and lets it load the base model
/// of `run`.
pub fn connect(project: &Path, run: &Path) -> Outcome<Serving> {
    let mut serving = match ServingClient::connect(&serving_socket_path(project)?) {
        Ok(client) => Serving { client, child: None },
        Err(_) => start(project)?,
    };
    serving.client.sender.send(&ServeRequest::Hello { version: SERVING_VERSION })?;
    serving.client.sender.send(&ServeRequest::Load { run: Some(run.to_owned()) })?;
    let mut ready = 0;
    // One answer to the greeting, one to the loading.
    while ready < 2 {
        match serving.client.receiver.receive(SILENCE)? {
            Some(ServeReply::Ready { .. }) => ready += 1,
            Some(ServeReply::Loading { message }) => output::note(&message),
            Some(ServeReply::Error { message, .. }) => return Err(Failure::work(message)),
            Some(ServeReply::Token { .. } | ServeReply::Done { .. }) => {}
            None => {
                if let Some(child) = &mut serving.child {
                    still_lives(child, project)?;
                }
            }
        }
    }
    Ok(serving)
}

fn start(project: &Path) -> Outcome<Serving> {
    output::note("starting the engine");
    let (mut child, socket) = start_serving(project)?;
    let deadline = Instant::now() + LISTENS_WITHIN;
    loop {
        match ServingClient::connect(&socket) {
            Ok(client) => return Ok(Serving { client, child: Some(child) }),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => {
                still_lives(&mut child, project)?;
                thread::sleep(KNOCK);
            }
        }
    }
}

fn still_lives(child: &mut Child, project: &Path) -> Outcome {
    match child.try_wait() {
        Ok(None) => Ok(()),
        Ok(Some(status)) => {
            let log = project.join(RUNS_FOLDER).join("serve.log");
            Err(Failure::work(format!("the engine ended: {status}; its log is {}", log.display())))
        }
        Err(error) => Err(RunError::Engine(format!("the engine cannot be watched: {error}")).into()),
    }
}
