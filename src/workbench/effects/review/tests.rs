//! The performer against an engine that is played by a thread.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use luthier_core::config::Config;
use luthier_core::data::Message;
use luthier_core::eval::{Contender, SuitePrompt, Verdict};
use luthier_core::hash::sha256;
use luthier_core::model::ModelFiles;
use luthier_core::runs::serving::{DoneReason, GenerateRow, SERVING_VERSION, ServeReply, ServeRequest};
use luthier_core::runs::{
    CheckpointWriter, LineReader, LineWriter, OwnListener, ResultForm, RunDir, RunError, serving_socket_path,
};
use pretty_assertions::assert_eq;
use rustix::process::{Pid, test_kill_process};
use tokio::sync::mpsc;

use super::*;
use crate::app::{Event as AnyEvent, Slot, Tag};
use crate::effects::Lanes;
use crate::panes::review::{Ask, Broken, End, Target};
use crate::panes::{PaneEvent, PaneId};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny/llama");

/// A project with one finished run, and the performer that works on it.
struct Desk {
    folder: tempfile::TempDir,
    run: RunDir,
    runtime: tokio::runtime::Runtime,
    lanes: Lanes,
    events: mpsc::Sender<AnyEvent>,
    received: mpsc::Receiver<AnyEvent>,
    performer: Performer,
    generation: u64,
    _socket: Tidy,
}

/// Removes the socket that a played engine left.
struct Tidy(PathBuf);

impl Drop for Tidy {
    fn drop(&mut self) {
        // There is none where no engine was played.
        drop(fs::remove_file(&self.0));
    }
}

/// What a played engine does once it is asked: gets the rows and what it may say.
type Play = dyn Fn(&[GenerateRow], &mut dyn FnMut(ServeReply), &mut LineReader) + Send + Sync;

fn config(more: &str) -> Config {
    let text = format!(
        "[model]\npath = \"{MODEL}\"\n[data]\ntrain = \"train.jsonl\"\nsystem = \"Be brief.\"\n{more}"
    );
    Config::parse(&text, Path::new("luthier.toml"), &[]).unwrap()
}

fn adapter(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_config.json"), "{}").unwrap();
    fs::write(folder.join("adapter_model.safetensors"), "weights").unwrap();
}

fn no_start(_: &Path) -> Result<(std::process::Child, PathBuf), RunError> {
    Err(RunError::Engine("the engine is missing: build it with `make build`".to_owned()))
}

impl Desk {
    fn new(
        start: impl Fn(&Path) -> Result<(std::process::Child, PathBuf), RunError> + Send + Sync + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), &config(""), Some("a")).unwrap();
        adapter(&run.result_path(ResultForm::Adapter));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (events, received) = mpsc::channel(64);
        Self {
            lanes: Lanes::new(runtime.handle().clone()),
            performer: Performer::with(run.project().to_owned(), Box::new(start)),
            _socket: Tidy(serving_socket_path(run.project()).unwrap()),
            folder,
            run,
            runtime,
            events,
            received,
            generation: 0,
        }
    }

    fn perform(&mut self, effect: Effect) {
        self.generation += 1;
        let slot = effect.slot();
        let generation = if slot == Slot::Each { 0 } else { self.generation };
        let tag = Tag { slot, generation };
        let job = Job::new(&self.lanes, &self.events, PaneId::Review, tag, |tag, event| {
            AnyEvent::Pane(tag, PaneEvent::Review(event))
        });
        self.performer.perform(effect, job);
    }

    fn next(&mut self) -> Event {
        match self.received.blocking_recv().unwrap() {
            AnyEvent::Pane(_, PaneEvent::Review(event)) => event,
            other => panic!("{other:?}"),
        }
    }

    /// What comes next that is no progress.
    fn result(&mut self) -> Event {
        loop {
            match self.next() {
                Event::Progress(..) => {}
                event => return event,
            }
        }
    }

    fn ask(&self, step: Option<u64>, config: Config) -> Ask {
        Ask {
            id: 7,
            target: Target { run: self.run.id().to_owned(), step, method: "lora r16".into(), best: false },
            sides: [Contender::Tuned, Contender::Base],
            prompt: SuitePrompt::typed("hi"),
            seed: 5,
            config: Arc::new(config),
        }
    }

    fn asks(&mut self, ask: Ask) {
        self.perform(Effect::Ask(Box::new(ask)));
    }

    fn failure(&mut self) -> String {
        match self.result() {
            Event::Broken(7, Broken::Failed(problem)) => problem,
            other => panic!("{other:?}"),
        }
    }
}

fn base_fingerprint() -> String {
    ModelFiles::open(Path::new(MODEL)).unwrap().fingerprint
}

/// As the engine names base weights with an adapter over them.
fn tuned_fingerprint() -> String {
    let content = sha256("{}weights");
    sha256(format!("{}\n{content}", base_fingerprint()))
}

/// Plays an engine at the project's socket.
fn play(
    project: &Path,
    play: impl Fn(&[GenerateRow], &mut dyn FnMut(ServeReply), &mut LineReader) + Send + Sync + 'static,
) {
    let listener = OwnListener::bind(&serving_socket_path(project).unwrap()).unwrap();
    let play: Arc<Play> = Arc::new(play);
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let play = Arc::clone(&play);
            thread::spawn(move || {
                let mut writer = LineWriter::new(&stream).unwrap();
                let mut reader = LineReader::new(stream);
                // The client may have disconnected.
                let mut say = move |reply: ServeReply| drop(writer.send(&reply));
                while let Ok(Some(request)) = reader.receive::<ServeRequest>(None) {
                    match request {
                        ServeRequest::Hello { version } => assert_eq!(version, SERVING_VERSION),
                        ServeRequest::Load { run } => {
                            assert!(run.is_some());
                            say(ServeReply::Loading { message: "loading tiny".into() });
                            for _ in 0..2 {
                                say(ServeReply::Ready {
                                    version: SERVING_VERSION,
                                    base_fingerprint: base_fingerprint(),
                                    device: "cpu".into(),
                                });
                            }
                        }
                        ServeRequest::Generate { id, rows, .. } => {
                            assert_eq!(id, 7);
                            play(&rows, &mut say, &mut reader);
                            return;
                        }
                        ServeRequest::Cancel { .. } => {}
                    }
                }
            });
        }
    });
}

fn token(row: usize, text: &str) -> ServeReply {
    ServeReply::Token { id: 7, row, text: text.into() }
}

fn done(row: usize, reason: DoneReason, weights: &str) -> ServeReply {
    ServeReply::Done { id: 7, row, reason, tokens: 2, seconds: 0.5, weights: weights.into() }
}

#[test]
fn both_answers_are_passed_on_with_proof_and_score() {
    let mut desk = Desk::new(no_start);
    let asked: Arc<Mutex<Vec<GenerateRow>>> = Arc::default();
    let heard = Arc::clone(&asked);
    play(desk.run.project(), move |rows, say, _| {
        heard.lock().unwrap().extend_from_slice(rows);
        for reply in [token(0, "{"), token(1, "hel"), token(0, "}"), token(1, "lo")] {
            say(reply);
        }
        say(done(0, DoneReason::Stop, &tuned_fingerprint()));
        say(done(1, DoneReason::Length, "something else"));
    });
    let ask = desk.ask(None, config("[objective]\nkind = \"regex\"\npattern = '^.}$'\n"));
    desk.asks(ask);
    let mut texts = [String::new(), String::new()];
    let mut ends: Vec<(usize, End)> = Vec::new();
    let mut conversation = Vec::new();
    let mut progress = Vec::new();
    while ends.len() < 2 {
        match desk.next() {
            Event::Progress(7, what) => progress.push(what),
            Event::Began(7, asked) => conversation = asked,
            Event::Pieces(7, pieces) => {
                for (side, piece) in pieces {
                    texts[side].push_str(&piece);
                }
            }
            Event::Ended(7, side, end) => ends.push((side, *end)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(texts, ["{}", "hello"]);
    assert!(progress.contains(&"loading tiny".to_owned()), "{progress:?}");
    assert_eq!(conversation, [Message::new("system", "Be brief."), Message::new("user", "hi")]);
    let [(_, tuned), (_, base)] = &ends[..] else { panic!("{ends:?}") };
    assert!(tuned.is_proved() && !base.is_proved());
    assert_eq!(base.expected, base_fingerprint());
    assert_eq!((tuned.tokens, tuned.reason), (2, DoneReason::Stop));
    let passed = |end: &End| end.score.clone().unwrap().unwrap().passed;
    assert!(passed(tuned) && !passed(base));
    let rows = asked.lock().unwrap();
    assert_eq!(rows[0].adapter, Some(desk.run.result_path(ResultForm::Adapter)));
    assert_eq!((rows[1].adapter.clone(), rows[1].seed), (None, 5));
    assert_eq!(rows[0].messages, rows[1].messages);
}

#[test]
fn the_baseline_is_asked_with_its_own_system_prompt() {
    let mut desk = Desk::new(no_start);
    let asked: Arc<Mutex<Vec<GenerateRow>>> = Arc::default();
    let heard = Arc::clone(&asked);
    play(desk.run.project(), move |rows, say, _| {
        heard.lock().unwrap().extend_from_slice(rows);
        say(done(0, DoneReason::Stop, &base_fingerprint()));
        say(done(1, DoneReason::Stop, &tuned_fingerprint()));
    });
    let mut ask = desk.ask(None, config("[review]\nbaseline_system = \"Answer in JSON.\"\n"));
    ask.sides = [Contender::Baseline, Contender::Tuned];
    desk.asks(ask);
    assert!(matches!(desk.result(), Event::Began(..)));
    for side in 0..2 {
        assert!(
            matches!(desk.result(), Event::Ended(7, found, end) if found == side && end.is_proved() && end.score.is_none())
        );
    }
    let rows = asked.lock().unwrap();
    assert_eq!(rows[0].messages, [Message::new("system", "Answer in JSON."), Message::new("user", "hi")]);
    assert_eq!(rows[0].adapter, None);
    assert_eq!(rows[1].messages[0].content, "Be brief.");
}

#[test]
fn giving_up_reaches_the_engine_and_what_was_said_counts() {
    let mut desk = Desk::new(no_start);
    play(desk.run.project(), |_, say, reader| {
        say(token(0, "one"));
        let request = reader.receive::<ServeRequest>(None).unwrap();
        assert_eq!(request, Some(ServeRequest::Cancel { id: 7 }));
        for row in 0..2 {
            say(done(row, DoneReason::Cancelled, "w"));
        }
    });
    let ask = desk.ask(None, config(""));
    desk.asks(ask);
    assert!(matches!(desk.result(), Event::Began(..)));
    assert!(matches!(desk.result(), Event::Pieces(7, pieces) if pieces == [(0, "one".to_owned())]));
    desk.perform(Effect::Cancel(7));
    for side in 0..2 {
        assert!(
            matches!(desk.result(), Event::Ended(7, found, end) if found == side && end.reason == DoneReason::Cancelled)
        );
    }
}

#[test]
fn an_engine_that_died_before_it_spoke_is_asked_again_once() {
    let mut desk = Desk::new(no_start);
    let times = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&times);
    play(desk.run.project(), move |_, say, _| {
        if asked.fetch_add(1, Ordering::SeqCst) > 0 {
            say(done(0, DoneReason::Stop, "w"));
            say(done(1, DoneReason::Stop, "w"));
        }
    });
    let ask = desk.ask(None, config(""));
    desk.asks(ask);
    assert!(matches!(desk.result(), Event::Began(..)));
    assert!(matches!(desk.result(), Event::Began(..)));
    assert!(matches!(desk.result(), Event::Ended(7, 0, _)));
    assert!(matches!(desk.result(), Event::Ended(7, 1, _)));
    assert_eq!(times.load(Ordering::SeqCst), 2);
}

#[test]
fn an_engine_that_dies_while_it_speaks_says_so() {
    let mut desk = Desk::new(no_start);
    play(desk.run.project(), |_, say, _| say(token(1, "half a ")));
    let ask = desk.ask(None, config(""));
    desk.asks(ask);
    assert!(matches!(desk.result(), Event::Began(..)));
    assert!(matches!(desk.result(), Event::Pieces(..)));
    let problem = desk.failure();
    assert!(problem.contains("The engine died") && problem.contains("serve.log"), "{problem}");
}

#[test]
fn what_the_engine_refuses_is_passed_on() {
    let mut desk = Desk::new(no_start);
    play(desk.run.project(), |_, say, _| {
        say(ServeReply::Error { id: 7, message: "out of memory; lower review.max_new_tokens".into() });
    });
    let ask = desk.ask(None, config(""));
    desk.asks(ask);
    assert!(matches!(desk.result(), Event::Began(..)));
    assert_eq!(desk.failure(), "out of memory; lower review.max_new_tokens");
}

#[test]
fn a_missing_engine_and_one_that_ends_at_once_say_what_to_do() {
    let mut desk = Desk::new(no_start);
    let ask = desk.ask(None, config(""));
    desk.asks(ask.clone());
    assert!(desk.failure().contains("make build"));
    let mut ending = Desk::new(|project| {
        let log = project.join("runs/serve.log");
        let before = fs::read_to_string(&log).unwrap();
        fs::write(log, before + "error: cannot load \u{1b}[31mlibtorch.so\n").unwrap();
        let child = Command::new("sh").args(["-c", "exit 3"]).stdin(Stdio::null()).spawn().unwrap();
        Ok((child, serving_socket_path(project)?))
    });
    fs::write(ending.run.project().join("runs/serve.log"), "of another time\n").unwrap();
    let ask = ending.ask(None, config(""));
    ending.asks(ask);
    let problem = ending.failure();
    assert!(!problem.contains("of another time"), "{problem}");
    assert!(
        problem.contains("exit status: 3") && problem.contains("cannot load [31mlibtorch.so"),
        "{problem}"
    );
}

#[test]
fn an_engine_is_started_when_first_needed_and_ends_with_the_workbench() {
    let started: Arc<Mutex<Vec<Pid>>> = Arc::default();
    let pids = Arc::clone(&started);
    let mut desk = Desk::new(move |project| {
        // It begins to listen some time after it was started.
        let project = project.to_owned();
        let socket = serving_socket_path(&project)?;
        thread::spawn(move || {
            play(&project, |_, say, _| {
                say(done(0, DoneReason::Stop, "w"));
                say(done(1, DoneReason::Stop, "w"));
            });
        });
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        pids.lock().unwrap().push(Pid::from_child(&child));
        Ok((child, socket))
    });
    for _ in 0..2 {
        let ask = desk.ask(None, config(""));
        desk.asks(ask);
        while !matches!(desk.result(), Event::Ended(7, 1, _)) {}
    }
    let pids = started.lock().unwrap().clone();
    assert_eq!(pids.len(), 1, "one engine answers both times");
    assert!(test_kill_process(pids[0]).is_ok());
    let Desk { performer, runtime, .. } = desk;
    drop(performer);
    drop(runtime);
    assert!(test_kill_process(pids[0]).is_err(), "its memory is given back");
}

#[test]
fn weights_that_are_gone_are_missed_before_the_engine_is_asked() {
    let mut desk = Desk::new(no_start);
    let ask = desk.ask(Some(400), config(""));
    desk.asks(ask);
    let problem = desk.failure();
    assert!(problem.contains("step 400 was deleted") && problem.contains("keep_checkpoints"), "{problem}");
    fs::remove_file(desk.run.result_path(ResultForm::Adapter).join("adapter_model.safetensors")).unwrap();
    let ask = desk.ask(None, config(""));
    desk.asks(ask);
    assert!(desk.failure().contains("has no result yet"));
}

#[test]
fn results_and_checkpoints_are_listed() {
    let mut desk = Desk::new(no_start);
    let writer = CheckpointWriter::begin(desk.run.path(), 400).unwrap();
    adapter(writer.path());
    writer.finish(serde_json::Value::Null).unwrap();
    desk.perform(Effect::Watch);
    let Event::Candidates(Ok(found)) = desk.next() else { panic!() };
    assert_eq!(found.len(), 1);
    assert!(found[0].result);
    assert_eq!(found[0].checkpoints, [400]);
    desk.perform(Effect::Rest);
    let ask = desk.ask(Some(400), config(""));
    desk.asks(ask);
    assert!(desk.failure().contains("make build"), "the checkpoint is found, the engine is not");
}

#[test]
fn rows_are_added_to_conversations_only() {
    let mut desk = Desk::new(no_start);
    let file = desk.folder.path().join("train.jsonl");
    let first = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    // The last line has no end.
    fs::write(&file, first).unwrap();
    let messages = vec![Message::new("user", "hi"), Message::new("assistant", "line\nbreak")];
    let add = || Effect::AddExample { file: "train.jsonl".into(), messages: messages.clone() };
    desk.perform(add());
    assert!(matches!(desk.next(), Event::ExampleAdded(Ok(path)) if path == Path::new("train.jsonl")));
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, first));
    let row: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
    assert_eq!(row["messages"][1]["content"], "line\nbreak");
    fs::write(&file, "{\"prompt\": \"a\", \"completion\": \"b\"}\n").unwrap();
    desk.perform(add());
    assert!(matches!(desk.next(), Event::ExampleAdded(Err(problem)) if problem.contains("one form")));
    fs::remove_file(&file).unwrap();
    desk.perform(add());
    assert!(matches!(desk.next(), Event::ExampleAdded(Err(problem)) if problem.contains("train.jsonl")));
}

#[test]
fn verdicts_are_kept_and_pairs_exported_to_new_files_only() {
    let mut desk = Desk::new(no_start);
    let verdict: Verdict = serde_json::from_value(serde_json::json!({
        "time": "2026-11-23T14:02:00Z", "run": "a", "prompt": [{"role": "user", "content": "hi"}],
        "left": {"who": "tuned", "reply": "a"}, "right": {"who": "base", "reply": "b"}, "choice": "left",
    }))
    .unwrap();
    desk.perform(Effect::Save(Box::new(verdict.clone())));
    assert!(matches!(desk.next(), Event::Saved(_, Ok(()))));
    desk.perform(Effect::Verdicts);
    assert!(matches!(desk.next(), Event::Verdicts(Ok(found)) if found.verdicts == [verdict]));
    desk.perform(Effect::Export("pairs.jsonl".into()));
    assert!(matches!(desk.next(), Event::Exported(Ok((1, _)))));
    desk.perform(Effect::Export("pairs.jsonl".into()));
    assert!(matches!(desk.next(), Event::Exported(Err(problem)) if problem.contains("is there already")));
}

#[test]
fn a_draft_comes_back_clean_and_leaves_nothing() {
    let mut desk = Desk::new(no_start);
    desk.perform(Effect::Draft("an \u{202e}answer".to_owned()));
    let Event::DraftReady(Ok(path)) = desk.next() else { panic!() };
    assert_eq!(fs::read_to_string(&path).unwrap(), "an answer");
    fs::write(&path, "a better \u{1b}[31manswer\n").unwrap();
    desk.perform(Effect::ReadDraft(path.clone()));
    assert!(matches!(desk.next(), Event::Draft(Ok(text)) if text == "a better [31manswer\n"));
    assert!(!path.exists());
}
