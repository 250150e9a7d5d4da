//! Spoiled projects: the command line and the workbench refuse the same, in the same words.

use std::fs;
use std::path::{Path, PathBuf};

use luthier_core::config::Config;
use luthier_core::plan::Place;
use luthier_core::runs::{Request, RunDir, RunError};
use luthier_core::sweep::Place as QueuePlace;
use pretty_assertions::assert_eq;
use tokio::sync::mpsc;

use super::Host;
use crate::app::{Effect, Event, Slot, Tag};
use crate::cli;
use crate::effects::{Performer, Settings};
use crate::panes::{PaneEffect, PaneEvent, review, sweep, train};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny/llama");

const SWEEP: &str = "trials = 2\n[space]\ntrain.learning_rate = { uniform = [1e-4, 1e-3] }\n";

/// A project that could be trained, and the machine it is on; each case spoils one thing.
struct Spoiled {
    folder: tempfile::TempDir,
    /// What is set over `luthier.toml`, each `KEY=VALUE`.
    set: Vec<String>,
    host: Host,
}

impl Spoiled {
    fn new() -> Self {
        let spoiled = Self {
            folder: tempfile::tempdir().unwrap(),
            set: Vec::new(),
            host: Host {
                engine: || Ok(PathBuf::from("/nonexistent/luthier-engine")),
                place: |config| Ok(Place { available: 1 << 40, ..(Host::THIS.place)(config)? }),
                free_disk: |_| Ok(1 << 40),
            },
        };
        let row = |number: usize| {
            format!(
                "{{\"messages\": [{{\"role\": \"user\", \"content\": \"item {number}?\"}}, \
                 {{\"role\": \"assistant\", \"content\": \"answer {number}\"}}]}}\n"
            )
        };
        spoiled.write("train.jsonl", &(0..12).map(row).collect::<String>());
        spoiled.write("held-out.jsonl", &(12..15).map(row).collect::<String>());
        spoiled.write(
            "luthier.toml",
            &format!(
                "[model]\npath = \"{MODEL}\"\ndevice = \"cpu\"\n[data]\ntrain = \"train.jsonl\"\n\
                 eval = \"held-out.jsonl\"\ntemplate = \"chatml\"\nmax_length = 96\n[train]\nepochs = 2\n\
                 batch_size = 4\naccumulate = 1\nwarmup = 0\n"
            ),
        );
        spoiled.write("sweep.toml", SWEEP);
        spoiled
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    fn set(&mut self, setting: &str) {
        self.set.push(setting.to_owned());
    }

    /// What the command line complains of.
    fn command(&self, words: &[&str]) -> String {
        let folder = self.path().to_str().unwrap();
        let words = words.iter().copied().chain(["-C", folder]);
        cli::attempt(words, &self.host).unwrap_err()
    }

    fn command_with_settings(&self, words: &[&str]) -> String {
        let set = self.set.iter().flat_map(|setting| ["--set", setting.as_str()]);
        let words: Vec<&str> = words.iter().copied().chain(set).collect();
        self.command(&words)
    }

    /// What the workbench posts first that is no progress, for an effect that is performed.
    fn event(&self, effect: impl FnOnce(Tag) -> Effect) -> Event {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (events, mut received) = mpsc::channel(64);
        let settings = Settings { project: self.path().to_owned(), ..Settings::default() };
        let mut performer =
            Performer::new(events, runtime.handle().clone(), settings, "luthier".to_owned(), self.host);
        performer.perform(effect(Tag { slot: Slot::Each, generation: 0 }));
        loop {
            match received.blocking_recv().unwrap() {
                Event::Pane(_, PaneEvent::Train(train::TrainEvent::Planning(..))) => {}
                event => return event,
            }
        }
    }

    fn train(&self, effect: train::TrainEffect) -> String {
        match self.event(|tag| Effect::Pane(tag, PaneEffect::Train(effect))) {
            Event::Pane(_, PaneEvent::Train(train::TrainEvent::Planned(_, Err(refusal)))) => refusal.text,
            Event::Pane(
                _,
                PaneEvent::Train(
                    train::TrainEvent::Started(Err(text))
                    | train::TrainEvent::Asked(Err(text))
                    | train::TrainEvent::Edited { outcome: Err(text), .. },
                ),
            ) => text,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn sweep(&self, effect: sweep::SweepEffect) -> String {
        match self.event(|tag| Effect::Pane(tag, PaneEffect::Sweep(effect))) {
            Event::Pane(
                _,
                PaneEvent::Sweep(sweep::SweepEvent::Done(Err(text)) | sweep::SweepEvent::Added(Err(text))),
            ) => text,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// The refusal of a run that is planned, started or queued, which must be the same everywhere.
    fn refused_run(&self, case: &Case) -> String {
        let set = || self.set.clone();
        let text = self.command_with_settings(&["train"]);
        assert_eq!(self.train(train::TrainEffect::Plan(set())), text, "{}: planned in the pane", case.name);
        assert_eq!(self.train(train::TrainEffect::Start(set())), text, "{}: started in the pane", case.name);
        if case.at != Checked::AtStart {
            assert_eq!(self.command_with_settings(&["queue", "add"]), text, "{}: queued", case.name);
            assert_eq!(self.sweep(sweep::SweepEffect::Add(set())), text, "{}: queued in the pane", case.name);
        }
        assert!(!self.path().join("runs").exists(), "{}: a run was made", case.name);
        text
    }

    /// The refusal of `sweep.toml`.
    fn refused_sweep(&self) -> String {
        let file = self.path().join("sweep.toml");
        let text = self.command(&["sweep", "start", file.to_str().unwrap()]);
        assert_eq!(self.sweep(sweep::SweepEffect::Start(file)), text);
        assert!(!self.path().join("luthier.db").exists(), "something was queued: {text}");
        text
    }
}

/// When something is checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checked {
    /// When a run is queued, and when it is started.
    Always,
    /// Only when a run is started: at another time the machine may have room.
    AtStart,
}

struct Case {
    name: &'static str,
    at: Checked,
    spoil: fn(&mut Spoiled),
    /// What the refusal names.
    says: &'static [&'static str],
}

const fn case(name: &'static str, spoil: fn(&mut Spoiled), says: &'static [&'static str]) -> Case {
    Case { name, at: Checked::Always, spoil, says }
}

const fn at_start(name: &'static str, spoil: fn(&mut Spoiled), says: &'static [&'static str]) -> Case {
    Case { name, at: Checked::AtStart, spoil, says }
}

const RUNS: &[Case] = &[
    case("missing initial adapter", |it| it.set("method.init=gone"), &["method.init", "gone"]),
    case(
        "missing schema",
        |it| {
            it.set("objective.kind=json");
            it.set("objective.schema=gone.json");
        },
        &["objective.schema", "gone.json"],
    ),
    case("missing suite", |it| it.set("review.suite=gone.jsonl"), &["review.suite", "gone.jsonl"]),
    case(
        "broken template",
        |it| {
            it.write("bad.jinja", "{% for message in messages %}");
            it.set("data.template=bad.jinja");
        },
        &["chat template", "bad.jinja"],
    ),
    case(
        "blocking row",
        |it| {
            let rows = fs::read_to_string(it.path().join("train.jsonl")).unwrap();
            it.write("train.jsonl", &format!("{rows}{{\"messages\": 3}}\n"));
        },
        &["one problem keeps", "train.jsonl:13"],
    ),
    case("too long warm-up", |it| it.set("train.warmup=500"), &["train.warmup = 500", "ends after"]),
    case("no GPU of that number", |it| it.set("model.device=cuda:7"), &["cuda:7", "luthier doctor"]),
    case("missing data file", |it| it.set("data.train=gone.jsonl"), &["gone.jsonl", "check data.train"]),
    case("missing model", |it| it.set("model.path=gone"), &["gone"]),
    case(
        "damaged model",
        |it| {
            fs::create_dir(it.path().join("damaged")).unwrap();
            for file in fs::read_dir(MODEL).unwrap().map(Result::unwrap) {
                let bytes = fs::read(file.path()).unwrap();
                let is_weights = file.file_name() == "model.safetensors";
                let kept = if is_weights { bytes.len() / 2 } else { bytes.len() };
                fs::write(it.path().join("damaged").join(file.file_name()), &bytes[..kept]).unwrap();
            }
            it.set("model.path=damaged");
        },
        &["model.safetensors"],
    ),
    case("targets of another model", |it| it.set("method.targets=[\"gone\"]"), &["gone"]),
    case("unknown key", |it| it.set("train.epoch=2"), &["train.epoch=2", "epochs"]),
    case(
        "unknown key in the file",
        |it| {
            let text = fs::read_to_string(it.path().join("luthier.toml")).unwrap();
            it.write("luthier.toml", &format!("{text}wurmup = 3\n"));
        },
        &["wurmup", "luthier.toml:"],
    ),
    case(
        "missing engine",
        |it| it.host.engine = || Err(RunError::Engine("the engine is missing; build it".to_owned())),
        &["the engine is missing"],
    ),
    at_start(
        "disk too full",
        |it| it.host.free_disk = |_| Ok(999),
        &["disk is too full", "999 B are free", "keep_checkpoints"],
    ),
    at_start(
        "model too large",
        |it| it.host.place = |_| Ok(Place { available: 1 << 20, ..Place::default() }),
        &["of memory, but", "are free"],
    ),
];

#[test]
fn a_run_is_refused_in_the_same_words_wherever_it_is_asked_for() {
    let mut missing = Vec::new();
    for case in RUNS {
        let mut spoiled = Spoiled::new();
        (case.spoil)(&mut spoiled);
        let text = spoiled.refused_run(case);
        let unsaid = case.says.iter().filter(|said| !text.contains(**said));
        missing.extend(unsaid.map(|said| format!("{}: `{said}` is not in: {text}", case.name)));
    }
    assert_eq!(missing, [""; 0]);
}

#[test]
fn a_sound_project_passes_every_check() {
    let sound = Spoiled::new();
    let event = sound.event(|tag| Effect::Pane(tag, PaneEffect::Train(train::TrainEffect::Plan(Vec::new()))));
    let Event::Pane(_, PaneEvent::Train(train::TrainEvent::Planned(_, Ok(plan)))) = event else {
        panic!("{event:?}")
    };
    assert!(plan.lines.iter().any(|line| line.contains("12 rows")), "{plan:?}");
    let refused = sound.command(&["train"]);
    assert!(refused.contains("/nonexistent/luthier-engine"), "all but the start went well: {refused}");
}

#[test]
fn a_sweep_is_refused_for_any_of_its_trials() {
    let cases: [(&str, &[&str]); 5] = [
        (
            "sampler = \"grid\"\n[space]\ntrain.warmup = { choice = [0, 500] }\n",
            &["trial 1 (warmup=500)", "train.warmup = 500"],
        ),
        (
            "sampler = \"grid\"\n[space]\nmethod.init = { choice = [\"gone\"] }\n",
            &["trial 0", "method.init: ", "gone"],
        ),
        (
            "sampler = \"grid\"\n[space]\ndata.train = { choice = [\"train.jsonl\", \"gone.jsonl\"] }\n",
            &["trial 1", "gone.jsonl"],
        ),
        ("trials = 2\n[space]\ntrain.learning_rte = 1e-3\n", &["train.learning_rte", "train.learning_rate"]),
        (
            "trials = 2\n[space]\nmodel.device = \"cuda:7\"\n",
            &["trial 0 (device=\"cuda:7\")", "luthier doctor"],
        ),
    ];
    for (text, says) in cases {
        let spoiled = Spoiled::new();
        spoiled.write("sweep.toml", text);
        let refused = spoiled.refused_sweep();
        for said in says {
            assert!(refused.contains(said), "`{said}` is not in: {refused}");
        }
    }
    let mut engineless = Spoiled::new();
    engineless.host.engine = || Err(RunError::Engine("the engine is missing".to_owned()));
    assert_eq!(engineless.refused_sweep(), "the engine is missing");
    let fileless = Spoiled::new();
    fs::remove_file(fileless.path().join("sweep.toml")).unwrap();
    assert!(fileless.refused_sweep().contains("sweep.toml"));
}

#[test]
fn a_queue_refuses_alike() {
    let spoiled = Spoiled::new();
    let text = spoiled.command(&["queue", "move", "7", "top"]);
    assert!(text.contains("nothing was ever queued"), "{text}");
    assert_eq!(spoiled.sweep(sweep::SweepEffect::Move(7, QueuePlace::Top)), text);
    drop(luthier_core::sweep::Queue::open(spoiled.path()).unwrap());
    let text = spoiled.command(&["queue", "retry", "7"]);
    assert!(text.contains("no trial 7"), "{text}");
    assert_eq!(spoiled.sweep(sweep::SweepEffect::Retry(7)), text);
}

#[test]
fn a_run_refuses_alike() {
    let spoiled = Spoiled::new();
    let config = Config::load(spoiled.path(), &[]).unwrap();
    let run = RunDir::create(spoiled.path(), &config, Some("a")).unwrap();
    let id = || run.id().to_owned();
    let text = spoiled.command(&["run", "pause", "latest"]);
    assert_eq!(text, format!("run {}: it has not started yet", run.id()));
    assert_eq!(spoiled.train(train::TrainEffect::Ask(id(), Request::Pause)), text);
    for (key, value) in [("train.learning_rate", "fast"), ("train.learning_rate", "1e-3")] {
        let text = spoiled.command(&["run", "edit", "latest", &format!("{key}={value}")]);
        let request = Request::Edit { key: key.into(), value: value.into(), who: None };
        assert_eq!(spoiled.train(train::TrainEffect::Ask(id(), request)), text);
    }
    let text = spoiled.command(&["run", "resume", "latest"]);
    assert!(text.contains("/nonexistent/luthier-engine"), "{text}");
    assert_eq!(spoiled.train(train::TrainEffect::Restart(id())), text);
}

#[test]
fn verdicts_are_not_written_over_a_file() {
    let spoiled = Spoiled::new();
    let file = spoiled.path().join("sweep.toml");
    let text = spoiled.command(&["review", "export", file.to_str().unwrap()]);
    assert!(text.contains("is there already"), "{text}");
    let event = spoiled
        .event(|tag| Effect::Pane(tag, PaneEffect::Review(review::ReviewEffect::Export(file.clone()))));
    let Event::Pane(_, PaneEvent::Review(review::ReviewEvent::Exported(Err(refused)))) = event else {
        panic!("{event:?}")
    };
    assert_eq!(refused, text);
    assert_eq!(fs::read_to_string(file).unwrap(), SWEEP);
}

#[test]
fn differences_go_from_old_to_new() {
    let spoiled = Spoiled::new();
    let run = |rate: &str| {
        let config = Config::load(spoiled.path(), &[format!("train.learning_rate={rate}")]).unwrap();
        RunDir::create(spoiled.path(), &config, Some(rate)).unwrap()
    };
    let (first, second) = (run("1e-3"), run("2e-3"));
    for (one, other) in [(&first, &second), (&second, &first)] {
        let super::Difference { old, new, edits } = super::diff(one, Some(other)).unwrap();
        let found: Vec<_> = edits.iter().map(|edit| (edit.old.as_str(), edit.new.as_str())).collect();
        // Of two runs made in the same second, the names decide: `1e-3` is before `2e-3`.
        assert_eq!(
            (old.as_str(), new.as_str(), &found[..]),
            (first.id(), second.id(), &[("1e-3", "2e-3")][..])
        );
    }
    let event = spoiled
        .event(|tag| Effect::Pane(tag, PaneEffect::Train(train::TrainEffect::Diff(second.id().to_owned()))));
    let Event::Pane(_, PaneEvent::Train(train::TrainEvent::Diff(title, text))) = event else {
        panic!("{event:?}")
    };
    assert_eq!(title, format!("{} → luthier.toml", second.id()));
    assert_eq!(text, "train.learning_rate  2e-3 → 2e-4");
}

#[test]
fn the_example_is_a_sweep() {
    let sound = Spoiled::new();
    let base = Config::load(sound.path(), &[]).unwrap();
    let sweep =
        luthier_core::sweep::SweepFile::parse(super::SWEEP_EXAMPLE, Path::new("sweep.toml"), &base).unwrap();
    assert_eq!((sweep.space.len(), sweep.trials), (3, Some(6)));
}
