//! The data pane on screen.

use std::sync::Arc;

use luthier_core::data::{
    DataProblem, Example, Extras, HistogramBin, LengthStatistics, Message, Origin, ProblemKind, Report, Row,
    Severity, Split, TokenPiece,
};

use super::effect::DataEffect;
use super::event::DataEvent;
use super::state::{Form, Rendered};
use crate::app::{Effect, Event, Tag};
use crate::panes::{PaneEffect, PaneEvent};
use crate::testing::{TestApp, config, snapshot};
use crate::theme::ColorDepth;

/// What the performer of the pane posts.
fn posted(tag: Tag, event: DataEvent) -> Event {
    Event::Pane(tag, PaneEvent::Data(event))
}

const TICKETS: [(&str, &str); 5] = [
    ("Printer on floor 3 is on fire again", r#"{"category": "hardware", "location": "floor 3"}"#),
    (
        "The badge reader at gate B rejects everyone since this morning, please hurry.",
        r#"{"category": "access"}"#,
    ),
    ("Kann mich nicht anmelden seit dem Update \u{1b}[2J", r#"{"category": "account"}"#),
    ("wifi gone", ""),
    ("Kaffeemaschine leckt, 2. OG", r#"{"category": "facilities"}"#),
];

fn rows() -> Vec<Row> {
    let row = |(index, (ticket, answer)): (usize, &(&str, &str))| Row {
        index,
        origin: Origin { file: "train.jsonl".into(), line: index + 1 },
        split: if index == 4 { Split::Eval } else { Split::Train },
        example: Example::Messages(vec![Message::new("user", *ticket), Message::new("assistant", *answer)]),
        extras: Extras::default(),
    };
    TICKETS.iter().enumerate().map(row).collect()
}

fn report() -> Report {
    let problem = |kind, severity, row: usize, message: &str| DataProblem {
        kind,
        severity,
        row: Some(row),
        message: message.to_owned(),
    };
    Report {
        rows: 5,
        train_rows: 4,
        eval_rows: 1,
        tokens: 612,
        trained_tokens: 232,
        problems: vec![
            problem(ProblemKind::EmptyReply, Severity::Warning, 3, "row 3: the reply is empty"),
            problem(ProblemKind::NoTrainedTokens, Severity::Blocks, 3, "row 3: no token is trained on"),
            problem(ProblemKind::BrokenText, Severity::Note, 2, "row 2: control characters"),
        ],
        lengths: LengthStatistics {
            min: 3,
            p50: 139,
            p95: 203,
            max: 411,
            histogram: (0..8)
                .map(|bin| HistogramBin { from: bin * 50, to: bin * 50 + 50, rows: bin })
                .collect(),
        },
        template: "chatml".into(),
        template_fingerprint: "a3f9c0de".into(),
        quarantined: 0,
        truncated: 0,
        dropped: 0,
    }
}

fn rendered(index: usize) -> Rendered {
    let (ticket, answer) = TICKETS[index];
    let piece = |text: &str, trained| TokenPiece { id: 1, text: text.to_owned(), trained };
    let mut tokens = vec![piece("<|im_start|>", false), piece("user\n", false), piece(ticket, false)];
    tokens.extend([piece("<|im_end|>", false), piece("\n", false), piece("<|im_start|>assistant\n", false)]);
    tokens.extend([piece(answer, !answer.is_empty()), piece("<|im_end|>", !answer.is_empty())]);
    let messages = vec![
        Message::new("system", "You turn support tickets into JSON."),
        Message::new("user", ticket),
        Message::new("assistant", answer),
    ];
    Rendered { row: index, messages: Some(messages), sides: Ok(vec![tokens]), truncated: false }
}

fn answers(effect: &Effect) -> Vec<Event> {
    let Effect::Pane(tag, PaneEffect::Data(effect)) = effect else { return Vec::new() };
    let answers = match effect {
        DataEffect::Load => {
            vec![
                DataEvent::Rows(Ok((Arc::new(rows()), Arc::default()))),
                DataEvent::Checked(Ok(Arc::new(report()))),
            ]
        }
        DataEffect::Render(row) => vec![DataEvent::Rendered(Box::new(rendered(*row)))],
        DataEffect::Quarantine(_) => vec![DataEvent::Quarantined(Ok("the row is in quarantine".into()))],
    };
    answers.into_iter().map(|answer| posted(*tag, answer)).collect()
}

/// A preference pair, as the effects answer with it.
fn pair_answers(effect: &Effect) -> Vec<Event> {
    let Effect::Pane(tag, PaneEffect::Data(effect)) = effect else { return Vec::new() };
    let (chosen, rejected) = ("Turn it off first.", "Pour water on it.");
    let piece = |text: &str, trained| TokenPiece { id: 1, text: text.to_owned(), trained };
    let side = |answer: &str| {
        vec![piece("Printer on fire<|im_end|>\n", false), piece(answer, true), piece("<|im_end|>", true)]
    };
    let asked = vec![Message::new("user", "Printer on fire")];
    let row = Row {
        example: Example::Preference {
            prompt: asked,
            chosen: chosen.to_owned(),
            rejected: rejected.to_owned(),
        },
        ..rows().remove(0)
    };
    let answer = match effect {
        DataEffect::Load => DataEvent::Rows(Ok((Arc::new(vec![row]), Arc::default()))),
        DataEffect::Render(_) => DataEvent::Rendered(Box::new(Rendered {
            row: 0,
            messages: row.example.messages(),
            sides: Ok(vec![side(chosen), side(rejected)]),
            truncated: false,
        })),
        DataEffect::Quarantine(_) => return Vec::new(),
    };
    vec![posted(*tag, answer)]
}

fn opened(width: u16, height: u16) -> TestApp {
    let mut app = TestApp::respond(width, height, answers);
    app.keys("1");
    app
}

#[test]
fn rows_narrow() {
    let mut app = opened(80, 24);
    snapshot!(app, "j");
}

#[test]
fn tokens_narrow_without_colour() {
    let mut app = TestApp::open(80, 24, ColorDepth::None, "luthier", Ok(config()), Box::new(answers));
    snapshot!(app, "1j<tab><tab>");
}

#[test]
fn rows_as_sketched() {
    let mut app = opened(120, 32);
    snapshot!(app, "j<tab><tab>");
}

#[test]
fn rows_wide() {
    let mut app = opened(200, 60);
    snapshot!(app, "jj");
}

#[test]
fn a_pair_shows_both_answers() {
    let mut app = TestApp::respond(80, 24, pair_answers);
    snapshot!(app, "1");
}

#[test]
fn a_pair_shows_the_tokens_of_both_sides() {
    let mut app = TestApp::respond(80, 24, pair_answers);
    snapshot!(app, "1<tab><tab>");
}

#[test]
fn data_that_cannot_be_read_say_why() {
    let mut app = TestApp::respond(80, 24, |effect| match effect {
        Effect::Pane(tag, PaneEffect::Data(DataEffect::Load)) => {
            let problem = "1 row cannot be used\n  train.jsonl:3: not JSON: expected `,` or `}`".to_owned();
            vec![posted(*tag, DataEvent::Rows(Err(problem)))]
        }
        _ => Vec::new(),
    });
    snapshot!(app, "1");
}

#[test]
fn search_and_filter_narrow_the_list() {
    let mut app = opened(120, 32);
    app.keys("/update<enter>");
    assert_eq!(app.app.panes.data.listed, [2]);
    app.keys("<esc>");
    assert_eq!(app.app.panes.data.listed.len(), 5);
    app.keys("fempty<enter>");
    assert_eq!(app.app.panes.data.listed, [3]);
    app.keys("<esc>");
    assert_eq!(app.app.panes.data.listed.len(), 5);
}

#[test]
fn a_row_goes_into_quarantine_only_after_yes() {
    let mut app = opened(120, 32);
    let quarantined = |app: &mut TestApp| {
        let effects = app.take_effects().into_iter();
        effects
            .filter(|effect| matches!(effect, Effect::Pane(_, PaneEffect::Data(DataEffect::Quarantine(_)))))
            .count()
    };
    app.keys("x<enter>");
    assert_eq!(quarantined(&mut app), 0, "no is the default");
    app.keys("xy");
    assert_eq!(quarantined(&mut app), 1);
}

#[test]
fn enter_reads_the_row_and_escape_goes_back() {
    let mut app = opened(80, 24);
    app.keys("<enter>j");
    assert_eq!(app.app.panes.data.selected().map(|row| row.index), Some(0));
    app.keys("<esc>j");
    assert_eq!(app.app.panes.data.selected().map(|row| row.index), Some(1));
    app.keys("<tab>");
    assert_eq!(app.app.panes.data.form, Form::Text);
}
