//! The train pane on screen.

use jiff::Timestamp;
use luthier_core::runs::{
    AlertEvent, AlertKind, EditEvent, EvalEvent, EventBody, Failure, FailureClass, JournalEvent, Number,
    Request, RunEvent, RunState, RunSummary, SampleEvent, Status, StepEvent, StopWhen,
};

use super::effect::TrainEffect;
use super::event::TrainEvent;
use super::plan::{PlanSummary, Refusal};
use crate::app::{Effect, Event, Slot, Tag};
use crate::panes::{PaneEffect, PaneEvent};
use crate::testing::{START, TestApp, config, snapshot};
use crate::theme::ColorDepth;

/// What the performer of the pane posts.
fn posted(tag: Tag, event: TrainEvent) -> Event {
    Event::Pane(tag, PaneEvent::Train(event))
}

const RUN: &str = "20261123-135000-lora-r16";

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(START + seconds).unwrap()
}

fn summary(id: &str, state: RunState, started: i64) -> RunSummary {
    RunSummary {
        id: id.to_owned(),
        path: format!("/projects/tickets/runs/{id}").into(),
        state,
        method: "lora r16".to_owned(),
        step: 412,
        total_steps: 1200,
        loss: Some(0.871.into()),
        eval_loss: Some(0.913.into()),
        best_eval_loss: Some(0.913.into()),
        started: time(started),
        failure: None,
        reason: None,
        remark: None,
    }
}

fn runs() -> Vec<RunSummary> {
    let failed = RunSummary {
        failure: Some(Failure {
            class: FailureClass::Oom,
            message: "out of memory".to_owned(),
            remedy: "lower train.batch_size".to_owned(),
        }),
        step: 31,
        ..summary("20261123-125100-full", RunState::Failed, -4260)
    };
    vec![
        summary(RUN, RunState::Running, -720),
        summary("20261123-132000-lora-r8", RunState::Finished, -2520),
        failed,
        summary("20261123-124000-qlora", RunState::Lost, -4920),
    ]
}

fn journal() -> Vec<JournalEvent> {
    let event = |step: u64, body: EventBody| JournalEvent { time: time(step as i64), step: Some(step), body };
    let mut events =
        vec![event(0, RunEvent { total_steps: 1200, dtype: "f32".into(), ..RunEvent::default() }.into())];
    for step in 1..=412u64 {
        let x = step as f64;
        let loss =
            if step == 287 { f64::NAN } else { 0.8 + 1.6 * (-x / 120.0).exp() + 0.03 * (x / 3.0).sin() };
        let body = StepEvent {
            loss: loss.into(),
            learning_rate: (2e-4 * (x / 30.0).min(1.0)).into(),
            grad_norm: (0.4 + 0.1 * (x / 7.0).cos()).into(),
            tokens_per_second: 12_400.0.into(),
            seconds: 2.9.into(),
            memory_bytes: 61 << 30,
            load: Some(Number(0.78)),
            ..StepEvent::default()
        };
        events.push(event(step, body.into()));
        if step % 100 == 0 {
            let loss = 0.9 + 1.5 * (-x / 110.0).exp();
            let scores = [("conforms".to_owned(), Number(0.85))].into_iter().collect();
            let body = EvalEvent { loss: loss.into(), scores, ..EvalEvent::default() };
            events.push(event(step, body.into()));
            let category = if step == 400 { "hardware" } else { "other" };
            let body = SampleEvent {
                prompt: "Printer on floor 3 is on fire \u{1b}[31magain".to_owned(),
                reply: format!(
                    "{{\"category\": \"{category}\", \"priority\": \"urgent\", \"location\": \"floor 3\"}}"
                ),
                index: Some(0),
                passed: Some(step == 400),
                ..SampleEvent::default()
            };
            events.push(event(step, body.into()));
        }
    }
    let alert = AlertEvent {
        alert: AlertKind::Nan,
        message: "the loss of step 287 is NaN".into(),
        rows: vec![1041, 88],
    };
    events.push(event(287, alert.into()));
    let edit = EditEvent {
        key: "train.learning_rate".into(),
        old: "0.0002".into(),
        new: "0.00018".into(),
        who: "config.toml".into(),
        applied_at_step: 401,
    };
    events.push(event(400, edit.into()));
    events
}

fn status(state: RunState) -> Status {
    Status {
        state,
        step: 412,
        total_steps: 1200,
        epoch: 1.03,
        started: time(-720),
        device: "cpu · 2 threads".to_owned(),
        ..Status::default()
    }
}

fn answers(state: RunState) -> impl FnMut(&Effect) -> Vec<Event> {
    move |effect| {
        let Effect::Pane(tag, PaneEffect::Train(effect)) = effect else { return Vec::new() };
        let answers = match effect {
            TrainEffect::Watch => vec![TrainEvent::Runs(Ok(runs()))],
            TrainEffect::Follow(run) if run == RUN => vec![
                TrainEvent::Status {
                    run: run.clone(),
                    status: Box::new(status(state)),
                    checkpoints: vec![200, 400],
                    config: Some(Box::new(config())),
                },
                TrainEvent::Journal {
                    run: run.clone(),
                    events: journal(),
                    restarted: false,
                    caught_up: true,
                },
            ],
            TrainEffect::Ask(run, Request::Edit { key, value, .. }) => {
                let outcome = match value.as_str() {
                    "oops" => Err("error: `train.learning_rate` must be a number\n --> --set:1:21\n  |\n\
                                   1 | train.learning_rate=oops\n  |                     ^^^^"
                        .to_owned()),
                    _ => Ok(format!("{key}: → {value}, from the next step on")),
                };
                vec![TrainEvent::Edited { run: run.clone(), key: key.clone(), outcome }]
            }
            TrainEffect::Overlay(run) => vec![TrainEvent::Overlay(run.clone(), journal())],
            TrainEffect::Log(run) => {
                vec![TrainEvent::Log(run.clone(), vec!["one".into(), "two \u{7}bells".into()])]
            }
            TrainEffect::Plan(settings) if settings.is_empty() => {
                let lines =
                    vec!["trains     4,884,480 of 139,399,488 parameters".into(), "steps      1,200".into()];
                vec![TrainEvent::Planned(
                    settings.clone(),
                    Ok(PlanSummary { method: "lora r16".into(), lines }),
                )]
            }
            TrainEffect::Plan(settings) => {
                let refusal =
                    Refusal { title: "The settings have mistakes".into(), text: settings.join("\n") };
                vec![TrainEvent::Planned(settings.clone(), Err(refusal))]
            }
            TrainEffect::Rows(_, step) => vec![TrainEvent::Rows(*step, Err("the data changed".into()))],
            _ => Vec::new(),
        };
        answers.into_iter().map(|answer| posted(*tag, answer)).collect()
    }
}

fn opened(width: u16, height: u16, state: RunState) -> TestApp {
    let mut app = TestApp::respond(width, height, answers(state));
    app.keys("2");
    app
}

fn asked(app: &mut TestApp) -> Vec<TrainEffect> {
    let effects = app.take_effects().into_iter();
    effects
        .filter_map(|effect| match effect {
            Effect::Pane(_, PaneEffect::Train(effect)) => Some(effect),
            _ => None,
        })
        .collect()
}

#[test]
fn a_live_run_narrow() {
    let mut app = opened(80, 24, RunState::Running);
    snapshot!(app, "");
}

#[test]
fn a_live_run_wide() {
    let mut app = opened(200, 60, RunState::Running);
    snapshot!(app, "");
}

#[test]
fn a_live_run_as_sketched() {
    let mut app = opened(120, 32, RunState::Running);
    snapshot!(app, "");
}

#[test]
fn what_is_wrong_with_a_run_is_in_the_list_and_the_header() {
    let remark = Some("no sign of life for 1 m 15 s: stopped by a signal".to_owned());
    let mut app = TestApp::respond(120, 32, move |effect| {
        let Effect::Pane(tag, PaneEffect::Train(effect)) = effect else { return Vec::new() };
        let answer = match effect {
            TrainEffect::Watch => {
                let run = summary(RUN, RunState::Running, -720);
                TrainEvent::Runs(Ok(vec![RunSummary { remark: remark.clone(), ..run }]))
            }
            TrainEffect::Follow(run) => TrainEvent::Status {
                run: run.clone(),
                status: Box::new(Status { remark: remark.clone(), ..status(RunState::Running) }),
                checkpoints: Vec::new(),
                config: None,
            },
            _ => return Vec::new(),
        };
        vec![posted(*tag, answer)]
    });
    app.keys("2");
    let screen = app.screen();
    assert!(screen.contains("▶!") && screen.contains("no sign of life for 1 m 15 s: stopped"), "{screen}");
}

#[test]
fn without_colour_everything_still_reads() {
    let respond = Box::new(answers(RunState::Running));
    let mut app = TestApp::open(80, 24, ColorDepth::None, "luthier", Ok(config()), respond);
    snapshot!(app, "2");
}

#[test]
fn no_runs_yet() {
    let mut app = TestApp::respond(80, 24, |effect| match effect {
        Effect::Pane(tag, PaneEffect::Train(TrainEffect::Watch)) => {
            vec![posted(*tag, TrainEvent::Runs(Ok(Vec::new())))]
        }
        _ => Vec::new(),
    });
    snapshot!(app, "2");
}

#[test]
fn the_cursor_reads_the_chart() {
    let mut app = opened(120, 32, RunState::Running);
    snapshot!(app, "<enter>HHh++");
    app.keys("<enter>");
    assert!(matches!(asked(&mut app).last(), Some(TrainEffect::Rows(run, _)) if run == RUN));
}

#[test]
fn a_plan_is_shown_before_anything_starts() {
    let mut app = opened(80, 24, RunState::Running);
    snapshot!(app, "n");
    app.keys("<enter>");
    assert!(
        !asked(&mut app).iter().any(|effect| matches!(effect, TrainEffect::Start(_))),
        "no is the default"
    );
    app.keys("ny");
    assert!(asked(&mut app).contains(&TrainEffect::Start(Vec::new())));
}

#[test]
fn settings_of_a_run_are_refused_in_full() {
    let mut app = opened(80, 24, RunState::Running);
    snapshot!(app, "Ntrain.epochs=0 data.system=\"a b\"<enter>");
    let plan = asked(&mut app).into_iter().find_map(|effect| match effect {
        TrainEffect::Plan(settings) => Some(settings),
        _ => None,
    });
    assert_eq!(plan.unwrap(), ["train.epochs=0", "data.system=\"a b\""]);
}

#[test]
fn stopping_at_once_is_asked_twice() {
    let mut app = opened(80, 24, RunState::Running);
    app.keys("s<enter>");
    assert!(asked(&mut app).contains(&TrainEffect::Ask(RUN.into(), Request::Stop { when: StopWhen::Save })));
    app.keys("s<down><down><enter>");
    assert!(!asked(&mut app).iter().any(|effect| matches!(effect, TrainEffect::Ask(..))));
    app.keys("y");
    assert!(asked(&mut app).contains(&TrainEffect::Ask(RUN.into(), Request::Stop { when: StopWhen::Now })));
}

#[test]
fn an_edit_reaches_the_live_run_and_undo_takes_it_back() {
    let mut app = opened(80, 24, RunState::Running);
    app.keys("e<enter><ctrl-u>1e-4<enter>u");
    let edit = |value: &str, who: &str| {
        let key = "train.learning_rate".to_owned();
        TrainEffect::Ask(RUN.into(), Request::Edit { key, value: value.into(), who: Some(who.into()) })
    };
    let asked = asked(&mut app);
    assert!(asked.contains(&edit("1e-4", "workbench")), "{asked:?}");
    assert!(asked.contains(&edit("0.0002", "undo by workbench")), "{asked:?}");
}

#[test]
fn a_refused_value_stays_in_its_box_and_can_be_put_right() {
    let mut app = opened(80, 24, RunState::Running);
    snapshot!(app, "e<enter><ctrl-u>oops<enter>");
    // What is typed next is typed, not run.
    app.keys("qp");
    let asked_for = asked(&mut app);
    assert!(!asked_for.contains(&TrainEffect::Ask(RUN.into(), Request::Pause)), "{asked_for:?}");
    app.keys("<ctrl-u>1e-4<enter>");
    assert!(app.app.layers.is_empty());
    assert!(app.app.messages.current().is_some_and(|flash| flash.text.contains("1e-4")));
}

#[test]
fn a_value_being_looked_at_takes_no_keys_and_its_box_can_be_left() {
    let mut respond = answers(RunState::Running);
    let mut app = TestApp::respond(80, 24, move |effect| match effect {
        Effect::Pane(_, PaneEffect::Train(TrainEffect::Ask(..))) => Vec::new(),
        _ => respond(effect),
    });
    app.keys("2e<enter><ctrl-u>1e-4<enter>xq<enter>");
    assert!(app.screen().contains("1e-4 ") && !app.screen().contains("1e-4x"), "{}", app.screen());
    assert_eq!(asked(&mut app).iter().filter(|effect| matches!(effect, TrainEffect::Ask(..))).count(), 1);
    app.keys("<esc>");
    assert!(app.app.layers.is_empty());
    let (key, outcome) = ("train.learning_rate".to_owned(), Err("the run is stopping".to_owned()));
    let tag = Tag { slot: Slot::Each, generation: 0 };
    app.event(posted(tag, TrainEvent::Edited { run: RUN.into(), key, outcome }));
    assert!(app.app.layers.is_empty());
    assert!(app.app.messages.current().is_some_and(|flash| flash.text == "the run is stopping"));
}

#[test]
fn an_alert_of_several_lines_is_told_in_one() {
    let mut app = opened(200, 60, RunState::Running);
    let alert = AlertEvent {
        alert: AlertKind::EditRefused,
        message: "config.toml is broken, so nothing has changed.\nerror: unknown key `rnak`\n --> config.toml:6:1\n  |\n\
                  6 | rnak = 8\n  | ^^^^"
            .into(),
        rows: Vec::new(),
    };
    let events = vec![JournalEvent { time: time(500), step: Some(412), body: alert.into() }];
    let tag = Tag { slot: Slot::Each, generation: 0 };
    let journal = TrainEvent::Journal { run: RUN.into(), events, restarted: false, caught_up: true };
    app.event(posted(tag, journal));
    let told = "config.toml is broken, so nothing has changed: unknown key `rnak` (config.toml:6:1)";
    assert!(app.screen().contains(told) && !app.screen().contains('⏎'), "{}", app.screen());
}

#[test]
fn settings_begin_where_a_key_does_known_or_not() {
    let cases: [(&str, &[&str]); 9] = [
        ("", &[]),
        ("train.epochs=1  method.rank=8", &["train.epochs=1", "method.rank=8"]),
        ("train.epochs=1 train.foo=2 bar=3", &["train.epochs=1", "train.foo=2", "bar=3"]),
        (
            "data.system=\"a  b=c \\\" d=e\" train.epochs=1",
            &["data.system=\"a  b=c \\\" d=e\"", "train.epochs=1"],
        ),
        ("data.system='it''s' x=1", &["data.system='it''s'", "x=1"]),
        ("data.system=Don't shout train.epochs=1", &["data.system=Don't shout", "train.epochs=1"]),
        (
            "train.betas=[0.9, 0.95] data.columns={ prompt = \"q\", completion=\"a\" } a.b=1",
            &["train.betas=[0.9, 0.95]", "data.columns={ prompt = \"q\", completion=\"a\" }", "a.b=1"],
        ),
        ("data.system=\"open train.epochs=1", &["data.system=\"open train.epochs=1"]),
        ("nonsense 1=2", &["nonsense 1=2"]),
    ];
    for (text, settings) in cases {
        assert_eq!(super::settings_of(text), settings, "{text}");
    }
}

#[test]
fn what_cannot_be_done_says_why() {
    let mut app = opened(80, 24, RunState::Finished);
    app.keys("p");
    assert!(app.app.messages.current().is_some_and(|flash| flash.text.contains("finished")));
    assert!(!asked(&mut app).iter().any(|effect| matches!(effect, TrainEffect::Ask(..))));
}

#[test]
fn the_filter_narrows_the_list_and_escape_gives_it_back() {
    let mut app = opened(120, 32, RunState::Running);
    app.keys("/oom<enter>");
    assert_eq!(app.app.panes.train.shown().len(), 1);
    app.keys("<esc>");
    assert_eq!(app.app.panes.train.shown().len(), 4);
}

#[test]
fn runs_lie_over_one_another() {
    let mut app = opened(120, 32, RunState::Running);
    snapshot!(app, "jok");
    app.keys("joj");
    assert!(app.app.panes.train.overlays.is_empty());
}
