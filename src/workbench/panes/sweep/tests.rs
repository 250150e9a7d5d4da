//! The sweep pane on screen.

use jiff::Timestamp;
use luthier_core::runs::{Failure, FailureClass};
use luthier_core::sweep::{Goal, Place, Sweep, Trial, TrialState};

use super::effect::SweepEffect;
use super::event::SweepEvent;
use super::state::Snapshot;
use crate::app::{Effect, Event, Tag};
use crate::panes::{PaneEffect, PaneEvent};
use crate::testing::{START, TestApp, snapshot};

/// What the performer of the pane posts.
fn posted(tag: Tag, event: SweepEvent) -> Event {
    Event::Pane(tag, PaneEvent::Sweep(event))
}

fn trial(id: i64, state: TrialState, result: Option<f64>, rate: &str, rank: &str) -> Trial {
    let time = |minutes: i64| Timestamp::from_second(START + 60 * minutes).unwrap();
    Trial {
        id,
        sweep: 1,
        sweep_name: "lr × rank".into(),
        number: id as u64 - 1,
        position: id,
        state,
        cancelling: false,
        settings: [("train.learning_rate".into(), rate.into()), ("method.rank".into(), rank.into())]
            .into_iter()
            .collect(),
        run: (!state.waits()).then(|| format!("20261123-1{id}0000-lora-r{rank}")),
        result: result.map(Into::into),
        failure: None,
        attempts: u64::from(!state.waits()),
        created: time(0),
        started: (!state.waits()).then(|| time(id)),
        ended: state.is_over().then(|| time(id + 5)),
    }
}

fn queue() -> Snapshot {
    let failed = Trial {
        failure: Some(Failure {
            class: FailureClass::Nan,
            message: "the loss is NaN at step 71".into(),
            remedy: "lower train.learning_rate".into(),
        }),
        ..trial(3, TrialState::Failed, None, "9.0e-3", "16")
    };
    let trials = vec![
        trial(4, TrialState::Running, None, "2.4e-4", "16"),
        trial(6, TrialState::Queued, None, "1.1e-4", "64"),
        trial(5, TrialState::Held, None, "8.0e-5", "32"),
        trial(1, TrialState::Finished, Some(0.953), "5.1e-4", "8"),
        trial(2, TrialState::Finished, Some(0.841), "1.9e-4", "32"),
        failed,
    ];
    let goal = Goal::default();
    let sweep = Sweep {
        id: 1,
        name: "lr × rank".into(),
        sampler: "random".into(),
        goal,
        config: String::new(),
        created: Timestamp::from_second(START).unwrap(),
    };
    let progress = [("20261123-140000-lora-r16".to_owned(), (300, 900))].into_iter().collect();
    Snapshot { trials, sweeps: vec![sweep], progress }
}

fn opened(width: u16, height: u16, queue: Snapshot) -> TestApp {
    let respond = move |effect: &Effect| {
        let Effect::Pane(tag, PaneEffect::Sweep(effect)) = effect else { return Vec::new() };
        let answer = match effect {
            SweepEffect::Watch => SweepEvent::Queue(Ok(queue.clone())),
            SweepEffect::Files => SweepEvent::Files(vec!["/projects/tickets/rate.toml".into()]),
            SweepEffect::Look(file) => SweepEvent::Looked(
                file.clone(),
                Ok(("Queue 6 trials of lr × rank?".into(), vec!["rank = 8".into()])),
            ),
            SweepEffect::Add(settings) if settings.iter().any(|setting| setting.contains("rnak")) => {
                SweepEvent::Added(Err("error: unknown key `rnak` in [method]\n --> --set:1:1".into()))
            }
            SweepEffect::Add(_) => SweepEvent::Added(Ok("trial 7 is queued".into())),
            SweepEffect::Create(name) if name == "sweep.txt" => {
                SweepEvent::Created(Err("sweep.txt is not the name of a TOML file in the project".into()))
            }
            SweepEffect::Create(name) => SweepEvent::Created(Ok(format!("/projects/tickets/{name}").into())),
            _ => return Vec::new(),
        };
        vec![posted(*tag, answer)]
    };
    let mut app = TestApp::respond(width, height, respond);
    app.keys("3");
    app
}

fn asked(app: &mut TestApp) -> Vec<SweepEffect> {
    let effects = app.take_effects().into_iter();
    effects
        .filter_map(|effect| match effect {
            Effect::Pane(_, PaneEffect::Sweep(effect)) => Some(effect),
            _ => None,
        })
        .collect()
}

#[test]
fn a_queue_narrow() {
    let mut app = opened(80, 24, queue());
    snapshot!(app, "j");
}

#[test]
fn a_queue_wide() {
    let mut app = opened(200, 60, queue());
    snapshot!(app, "G");
}

#[test]
fn nothing_queued() {
    let mut app = opened(80, 24, Snapshot::default());
    snapshot!(app, "");
}

#[test]
fn trials_are_reordered_held_and_cancelled() {
    let mut app = opened(80, 24, queue());
    app.keys("jJKth");
    assert_eq!(
        asked(&mut app)[1..],
        [
            SweepEffect::Move(6, Place::Down),
            SweepEffect::Move(6, Place::Up),
            SweepEffect::Move(6, Place::Top),
            SweepEffect::Hold(6)
        ]
    );
    app.keys("jh");
    assert_eq!(asked(&mut app), [SweepEffect::Release(5)]);
    app.keys("x<enter>");
    assert!(asked(&mut app).is_empty(), "no is the default");
    app.keys("xy");
    assert_eq!(asked(&mut app), [SweepEffect::Cancel(5)]);
}

#[test]
fn what_is_over_is_neither_moved_nor_cancelled() {
    let mut app = opened(80, 24, queue());
    app.keys("GJx");
    assert_eq!(asked(&mut app).len(), 1, "only the queue was watched");
    assert!(app.app.messages.current().is_some_and(|flash| flash.text.contains("trial 3")));
    app.keys("r");
    assert_eq!(asked(&mut app), [SweepEffect::Retry(3)]);
}

#[test]
fn a_sweep_is_looked_at_before_it_is_queued() {
    let mut app = opened(80, 24, queue());
    snapshot!(app, "n<enter>");
    app.keys("y");
    assert!(asked(&mut app).contains(&SweepEffect::Start("/projects/tickets/rate.toml".into())));
}

#[test]
fn what_is_refused_stays_in_its_box() {
    let mut app = opened(80, 24, queue());
    app.keys("amethod.rnak=3<enter>");
    assert!(app.screen().contains("method.rnak=3 ") && app.screen().contains("unknown key `rnak`"));
    app.keys("<ctrl-u>method.rank=3<enter>");
    assert!(app.app.layers.is_empty());
    assert!(app.app.messages.current().is_some_and(|flash| flash.text == "trial 7 is queued"));

    app.keys("n<down><enter><ctrl-u>sweep.txt<enter>");
    assert!(app.screen().contains("is not the name of a TOML file"), "{}", app.screen());
    app.keys("<ctrl-u>other.toml<enter>");
    assert!(app.app.layers.is_empty());
}

#[test]
fn the_best_settings_are_promoted_after_a_look() {
    let mut app = opened(80, 24, queue());
    app.keys("Py");
    let promoted = asked(&mut app).into_iter().find_map(|effect| match effect {
        SweepEffect::Promote(settings) => Some(settings),
        _ => None,
    });
    assert_eq!(promoted.unwrap()["train.learning_rate"], "1.9e-4");
}

#[test]
fn by_result_the_best_stands_first() {
    let mut app = opened(80, 24, queue());
    app.keys("o");
    let order: Vec<i64> = app.app.panes.sweep.shown().iter().map(|trial| trial.id).collect();
    assert_eq!(order, [2, 1, 4, 6, 5, 3]);
    assert_eq!(app.app.panes.sweep.selected().map(|trial| trial.id), Some(4), "what was selected stays so");
}
