//! `luthier chat`.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use luthier_core::config::Config;
use luthier_core::data::{Extras, Message, with_system};
use luthier_core::runs::serving::{
    DoneReason, GenerateRow, Sampling, ServeReply, ServeRequest, ServingClient,
};
use luthier_core::runs::{RunDir, start_serving};

use super::failure::{Failure, Outcome};
use super::interrupts::Interrupts;
use super::output;
use super::project::Folder;
use crate::project::{Server, sampling};

/// Interval between checks for ctrl-C while the engine answers.
const LOOK: Duration = Duration::from_millis(50);

/// Talk to the model a run has trained; a line on stdin is a message, the end of stdin ends the chat
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  luthier chat latest -C tickets
  echo 'The badge reader at gate B is broken' | luthier chat latest --ab

Replies are sampled as [review] in the run's settings says (temperature, top_p, max_new_tokens). ctrl-C ends a
reply early; a second one, or ctrl-D, ends the chat.")]
pub struct Arguments {
    /// Id of the run, a part of it that no other run has, or `latest`
    #[arg(value_name = "RUN")]
    run: String,
    #[command(flatten)]
    folder: Folder,
    /// Let the base model answer too
    #[arg(long)]
    ab: bool,
    /// Seed for sampling where the temperature is above 0
    #[arg(long, value_name = "NUMBER", default_value_t = 42)]
    seed: u64,
}

/// One model of the chat, with its conversation so far.
struct Voice {
    name: &'static str,
    adapter: Option<PathBuf>,
    said: Vec<Message>,
}

struct Chat {
    client: ServingClient,
    voices: Vec<Voice>,
    sampling: Sampling,
    seed: u64,
    turns: u64,
}

/// What one model has answered.
#[derive(Default)]
struct Reply {
    text: String,
    ended: Option<DoneReason>,
}

pub fn run(arguments: &Arguments, interrupts: &Interrupts) -> Outcome {
    let project = arguments.folder.find()?;
    let run = RunDir::find(&project, &arguments.run)?;
    let config = Config::load_file(&run.config_path(), &[])?;
    let voices = voices(&run, &config, arguments.ab)?;
    // An engine that is started here ends with this function.
    let server = Server::new(project, Box::new(start_serving));
    let served = server.serve(run.path(), &mut |what| {
        if let Some(what) = what {
            output::note(what);
        }
        ControlFlow::Continue(())
    })?;
    let mut chat = Chat {
        voices,
        client: served.client,
        sampling: sampling(&config.review),
        seed: arguments.seed,
        turns: 0,
    };
    let prompts = io::stdin().is_terminal() && io::stderr().is_terminal();
    if prompts {
        output::note("a line is a message; ctrl-D ends the chat");
    }
    for line in io::stdin().lines() {
        let line =
            line.map_err(|error| Failure::work(format!("cannot read from standard input: {error}")))?;
        if line.trim().is_empty() {
            continue;
        }
        interrupts.hold();
        let answered = chat.answer(line.trim(), interrupts);
        interrupts.release();
        answered?;
    }
    Ok(())
}

fn voices(run: &RunDir, config: &Config, ab: bool) -> Outcome<Vec<Voice>> {
    let Some((_, adapter)) = run.result() else {
        return Err(Failure::work(format!(
            "run {} has no result yet: it is {}; `luthier run show {0}` shows its state",
            run.id(),
            run.status()?.state
        )));
    };
    let voice = |name, adapter| Voice { name, adapter, said: with_system(&[], &config.data.system) };
    let base = ab.then(|| voice("base", None));
    Ok(base.into_iter().chain([voice("tuned", Some(adapter))]).collect())
}

impl Chat {
    /// Sends a message to every model and prints the answers: the first as it comes, the others after it.
    fn answer(&mut self, message: &str, interrupts: &Interrupts) -> Outcome {
        for voice in &mut self.voices {
            voice.said.push(Message::new("user", message));
        }
        self.turns += 1;
        let rows = self
            .voices
            .iter()
            .map(|voice| GenerateRow {
                adapter: voice.adapter.clone(),
                messages: voice.said.clone(),
                extras: Extras::default(),
                seed: self.seed.wrapping_add(self.turns),
            })
            .collect();
        self.client.sender.send(&ServeRequest::Generate { id: self.turns, rows, sampling: self.sampling })?;
        let replies = self.listen(interrupts)?;
        for (voice, reply) in self.voices.iter_mut().zip(replies) {
            voice.said.push(Message::new("assistant", reply.text));
        }
        Ok(())
    }

    fn listen(&mut self, interrupts: &Interrupts) -> Outcome<Vec<Reply>> {
        let mut replies: Vec<Reply> = self.voices.iter().map(|_| Reply::default()).collect();
        let mut shown = Shown { voice: 0, bytes: 0, named: self.voices.len() > 1 };
        while replies.iter().any(|reply| reply.ended.is_none()) {
            match self.client.receiver.receive(LOOK)? {
                Some(ServeReply::Token { id, row, text }) if id == self.turns => {
                    if let Some(reply) = replies.get_mut(row) {
                        reply.text.push_str(&text);
                    }
                }
                Some(ServeReply::Done { id, row, reason, .. }) if id == self.turns => {
                    if let Some(reply) = replies.get_mut(row) {
                        reply.ended = Some(reason);
                    }
                }
                Some(ServeReply::Error { id, message }) if id == self.turns || id == 0 => {
                    return Err(Failure::work(message));
                }
                Some(_) | None => {}
            }
            if interrupts.came() {
                self.client.sender.send(&ServeRequest::Cancel { id: self.turns })?;
            }
            shown.show(&self.voices, &replies)?;
        }
        shown.show(&self.voices, &replies)?;
        Ok(replies)
    }
}

/// How much of the answers is printed.
struct Shown {
    voice: usize,
    bytes: usize,
    named: bool,
}

impl Shown {
    fn show(&mut self, voices: &[Voice], replies: &[Reply]) -> Outcome {
        while let (Some(voice), Some(reply)) = (voices.get(self.voice), replies.get(self.voice)) {
            if self.bytes == 0 && self.named && !(reply.text.is_empty() && reply.ended.is_none()) {
                output::line(&format!("{}:", voice.name))?;
            }
            output::piece(&reply.text[self.bytes..])?;
            self.bytes = reply.text.len();
            let Some(reason) = reply.ended else { return Ok(()) };
            output::line("")?;
            if reason == DoneReason::Length {
                output::note("(cut at review.max_new_tokens)");
            }
            self.voice += 1;
            self.bytes = 0;
        }
        Ok(())
    }
}
