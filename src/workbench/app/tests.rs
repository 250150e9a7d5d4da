//! How the workbench reacts, whatever the panes do.

use std::time::Duration;

use super::*;
use crate::panes::PaneEvent;
use crate::panes::train::{TrainEffect, TrainEvent};
use crate::testing::{TestApp, config, config_with};

fn terminal(app: &mut TestApp) -> Vec<TerminalEffect> {
    let effects = app.take_effects().into_iter();
    effects
        .filter_map(|effect| if let Effect::Terminal(effect) = effect { Some(effect) } else { None })
        .collect()
}

#[test]
fn q_leaves_and_signals_interrupt() {
    for (keys, ending) in [("q", Ending::Left), ("<ctrl-c>", Ending::Left)] {
        let mut app = TestApp::new(80, 24);
        app.keys(keys);
        assert_eq!(terminal(&mut app), [TerminalEffect::Quit(ending)], "{keys}");
    }
    for signal in [Signal::Interrupt, Signal::Terminate, Signal::Hangup] {
        let mut app = TestApp::new(80, 24);
        app.event(Event::Signal(signal));
        assert_eq!(terminal(&mut app), [TerminalEffect::Quit(Ending::Interrupted)]);
    }
}

#[test]
fn keys_reach_the_box_on_top_and_nothing_behind_it() {
    let mut app = TestApp::new(80, 24);
    app.keys("?");
    assert_eq!(app.app.layers.len(), 1);
    app.keys("q");
    assert!(app.app.layers.is_empty() && terminal(&mut app).is_empty(), "q closes a box first");
    app.keys(":quit");
    assert!(terminal(&mut app).is_empty(), "letters are typed, not run");
    app.keys("<esc>3");
    assert_eq!(app.app.context.pane, PaneId::Sweep);
}

#[test]
fn panes_by_number_by_bracket_and_back() {
    let mut app = TestApp::new(80, 24);
    for (keys, pane) in [
        ("4", PaneId::Review),
        ("]", PaneId::Data),
        ("[", PaneId::Review),
        ("2", PaneId::Train),
        ("-", PaneId::Review),
        ("-", PaneId::Train),
    ] {
        app.keys(keys);
        assert_eq!(app.app.context.pane, pane, "after {keys}");
    }
}

#[test]
fn half_a_sequence_runs_nothing() {
    let mut app = TestApp::new(80, 24);
    app.take_effects();
    app.keys("<ctrl-w>q");
    assert!(terminal(&mut app).is_empty());
    assert!(app.app.pending.is_empty());
    app.keys("<ctrl-w><esc>");
    assert!(app.app.pending.is_empty());
}

#[test]
fn settings_that_do_not_parse_change_nothing() {
    let mut app = TestApp::new(80, 24);
    let before = app.app.context.config.clone();
    app.event(Event::Config(Box::new(Err("line 3".to_owned()))));
    assert_eq!(app.app.context.config, before);
    assert_eq!(app.app.context.config_problem.as_deref(), Some("line 3"));
    assert_eq!(app.app.layers.len(), 1);
    app.event(Event::Config(Box::new(Err("line 4".to_owned()))));
    assert_eq!(app.app.layers.len(), 1, "the newer problem takes the place of the older");
    app.event(Event::Config(Box::new(Ok(config()))));
    assert!(app.app.layers.is_empty() && app.app.context.config_problem.is_none());
}

#[test]
fn a_changed_theme_is_loaded_and_an_unchanged_file_is_no_news() {
    let mut app = TestApp::new(80, 24);
    app.take_effects();
    app.app.take_dirty();
    app.event(Event::Config(Box::new(Ok(config()))));
    assert!(!app.app.take_dirty());
    let light = config_with("[ui]\ntheme = \"luthier-light\"\n");
    app.event(Event::Config(Box::new(Ok(light))));
    let wanted = Effect::Settings(SettingsEffect::LoadTheme("luthier-light".to_owned()));
    assert!(app.take_effects().contains(&wanted));
}

#[test]
fn themes_are_chosen_from_a_list() {
    let mut app = TestApp::new(80, 24);
    app.take_effects();
    app.keys("<space>t");
    assert_eq!(app.take_effects(), [Effect::Settings(SettingsEffect::ListThemes)]);
    app.event(Event::ThemeNames(vec!["luthier".to_owned(), "sixteen".to_owned()]));
    app.keys("sixt<enter>");
    assert!(app.app.layers.is_empty());
    let wanted = Effect::Settings(SettingsEffect::LoadTheme("sixteen".to_owned()));
    assert_eq!(app.take_effects(), [wanted]);
}

#[test]
fn messages_go_away_by_themselves_and_nothing_ticks_after() {
    let mut app = TestApp::new(80, 24);
    app.keys("4");
    let own = app.app.panes[PaneId::Review].deadline(&app.app.context);
    let now = app.app.context.now;
    app.app.messages.push(Severity::Success, "done", now);
    assert!(app.app.deadline().is_some());
    app.pass(Duration::from_secs(7));
    assert!(app.app.messages.current().is_none());
    if own.is_none() {
        assert_eq!(app.app.deadline(), None);
    }
}

#[test]
fn answers_to_older_questions_are_dropped() {
    let mut app = TestApp::new(80, 24);
    let tag = |app: &mut TestApp| app.app.generations.issue(PaneId::Train, TrainEffect::Watch.slot());
    let (stale, current) = (tag(&mut app), tag(&mut app));
    let runs = || PaneEvent::Train(TrainEvent::Runs(Ok(Vec::new())));
    app.event(Event::Pane(stale, runs()));
    assert!(app.app.panes.train.runs.is_none());
    app.event(Event::Pane(current, runs()));
    assert!(app.app.panes.train.runs.is_some());
}

#[test]
fn an_editor_that_fails_says_why() {
    let mut app = TestApp::new(80, 24);
    app.keys("<space>e");
    let path = app.app.context.config_path();
    assert!(terminal(&mut app).contains(&TerminalEffect::Edit(path.clone(), None)));
    app.event(Event::EditorClosed(path, Err("there is no editor `foo`".to_owned())));
    assert!(app.app.messages.current().is_some_and(|flash| flash.severity == Severity::Error));
}
