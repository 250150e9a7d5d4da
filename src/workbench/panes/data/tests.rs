//! The data pane on screen.

use std::ops::ControlFlow;
use std::sync::Arc;

use luthier_core::data::{
    DataProblem, Example, Extras, HistogramBin, KindRows, LengthStatistics, Message, Origin, ProblemKind,
    Report, RoleLengths, Row, Severity, Split, TokenPiece,
};

use super::effect::DataEffect;
use super::event::{Checked, DataEvent, Found};
use super::listing::{Field, Filter, Order};
use super::pool::{Pool, Rendered, RowSize};
use super::search::Search;
use super::state::{DataState, Form};
use crate::app::{Effect, Event, Tag, TerminalEffect};
use crate::effects::data::rows as reading;
use crate::panes::{PaneEffect, PaneEvent};
use crate::project::{Draft, split_choices};
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
        other: None,
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
        roles: [("user", 300, 130), ("assistant", 232, 41)]
            .map(|(role, tokens, p50)| RoleLengths {
                role: role.into(),
                tokens,
                share: tokens as f64 / 612.0,
                lengths: LengthStatistics {
                    min: 1,
                    p50,
                    p95: 2 * p50,
                    max: 3 * p50,
                    histogram: (0..6)
                        .map(|bin| HistogramBin { from: bin * 70, to: bin * 70 + 69, rows: 6 - bin })
                        .collect(),
                },
            })
            .to_vec(),
        template: "chatml".into(),
        template_fingerprint: "a3f9c0de".into(),
        rows_of: vec![
            KindRows { kind: ProblemKind::NoTrainedTokens, rows: vec![3] },
            KindRows { kind: ProblemKind::EmptyReply, rows: vec![3] },
            KindRows { kind: ProblemKind::BrokenText, rows: vec![2] },
        ],
        findings: Vec::new(),
        advice: Vec::new(),
        quarantined: 0,
        truncated: 0,
        dropped: 0,
    }
}

fn checked(report: Report) -> DataEvent {
    let tokens = [(139, 52), (203, 60), (150, 50), (60, 0), (60, 70)];
    let sizes = tokens.map(|(tokens, trained)| RowSize { tokens, trained }).to_vec();
    DataEvent::Checked(Ok(Box::new(Checked { report: Arc::new(report), sizes, sequences: Some(2) })))
}

fn rendered(position: usize) -> Rendered {
    let (ticket, answer) = TICKETS[position];
    let piece = |text: &str, trained| TokenPiece { id: 1, text: text.to_owned(), trained };
    let mut tokens = vec![piece("<|im_start|>", false), piece("user\n", false), piece(ticket, false)];
    tokens.extend([piece("<|im_end|>", false), piece("\n", false), piece("<|im_start|>assistant\n", false)]);
    tokens.extend([piece(answer, !answer.is_empty()), piece("<|im_end|>", !answer.is_empty())]);
    let messages = vec![
        Message::new("system", "You turn support tickets into JSON."),
        Message::new("user", ticket),
        Message::new("assistant", answer),
    ];
    Rendered { position, messages: Some(messages), sides: Ok(vec![tokens]), truncated: false }
}

/// The rows, with none in quarantine.
fn all(rows: Vec<Row>) -> DataEvent {
    DataEvent::Rows(Ok((rows.into(), Pool::default())))
}

#[test]
fn the_selection_stays_in_its_place_while_found_rows_are_set_aside() {
    let mut state = DataState::default();
    state.read(rows().into(), Pool::default());
    state.search = "printer".to_owned();
    let find = |state: &mut DataState, rows: &[usize]| {
        assert!(state.relist().is_some());
        state.found(Found { typed: "printer".to_owned(), rows: rows.to_vec(), share: None });
    };
    find(&mut state, &[1, 3, 4]);
    state.list.changed(3, Some(0));
    // Row 1 is set aside, and those after it move up by one.
    state.read(rows()[1..].to_vec().into(), Pool::default());
    find(&mut state, &[2, 3]);
    assert_eq!((state.list.selected(), state.position()), (Some(0), Some(2)));
    // Where the last one is, the selection moves to the one before it.
    state.list.changed(2, Some(1));
    state.read(rows()[2..].to_vec().into(), Pool::default());
    find(&mut state, &[2]);
    assert_eq!(state.position(), Some(2));
}

/// What the performer answers where it needs nothing but the rows.
fn look_up(effect: &DataEffect) -> Option<DataEvent> {
    match effect {
        DataEffect::Fetch(pool, positions) => {
            Some(DataEvent::Fetched(pool.clone(), reading::fetch(pool, positions).unwrap()))
        }
        DataEffect::Search(pool, among, typed) => {
            let search = Search::parse(typed).unwrap().unwrap();
            let mut go_on = |_, _| ControlFlow::Continue(());
            let rows = reading::search(pool, among, &search, &reading::Texts::default(), &mut go_on);
            let found = Found { typed: typed.clone(), rows: rows.unwrap().unwrap(), share: None };
            Some(DataEvent::Found(pool.clone(), found))
        }
        DataEffect::Fields(pool) => Some(DataEvent::Fields(pool.clone(), reading::fields(pool).unwrap())),
        DataEffect::Values(pool, field) => {
            let values = reading::values(pool, field, &mut || ControlFlow::Continue(()));
            Some(DataEvent::Values(pool.clone(), field.clone(), values.unwrap().unwrap()))
        }
        DataEffect::Compare(pool, positions) => {
            let [(_, one), (_, other)] = reading::fetch(pool, positions).unwrap().try_into().unwrap();
            Some(DataEvent::Compared(pool.clone(), Box::new([one, other])))
        }
        _ => None,
    }
}

/// Answers as the performer would to what it is asked about the rows, and with `special` to the rest.
fn answering(special: impl Fn(&DataEffect) -> Vec<DataEvent>) -> impl FnMut(&Effect) -> Vec<Event> {
    move |effect| {
        let Effect::Pane(tag, PaneEffect::Data(effect)) = effect else { return Vec::new() };
        let answers = look_up(effect).map_or_else(|| special(effect), |answer| vec![answer]);
        answers.into_iter().map(|answer| posted(*tag, answer)).collect()
    }
}

fn answers(effect: &Effect) -> Vec<Event> {
    answering(|effect| match effect {
        DataEffect::Load { .. } => vec![all(rows()), checked(report())],
        DataEffect::Render(pool, row) => {
            vec![DataEvent::Rendered(pool.clone(), Box::new(rendered(*row)))]
        }
        DataEffect::Quarantine(..) => vec![DataEvent::Changed(Ok("1 row is in quarantine".into()))],
        _ => Vec::new(),
    })(effect)
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
            chosen: Message::new("assistant", chosen),
            rejected: Message::new("assistant", rejected),
        },
        ..rows().remove(0)
    };
    let answers = match effect {
        DataEffect::Load { .. } => vec![all(vec![row])],
        DataEffect::Render(pool, _) => {
            let rendered = Rendered {
                position: 0,
                messages: row.example.messages(),
                sides: Ok(vec![side(chosen), side(rejected)]),
                truncated: false,
            };
            vec![DataEvent::Rendered(pool.clone(), Box::new(rendered))]
        }
        other => look_up(other).into_iter().collect(),
    };
    answers.into_iter().map(|answer| posted(*tag, answer)).collect()
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
    let mut app = TestApp::respond(
        80,
        24,
        answering(|effect| match effect {
            DataEffect::Load { .. } => {
                let problem =
                    "1 row cannot be used\n  train.jsonl:3: not JSON: expected `,` or `}`".to_owned();
                vec![DataEvent::Rows(Err(problem))]
            }
            _ => Vec::new(),
        }),
    );
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

/// What was asked of the quarantine since the last time: positions, and whether to put them in.
fn quarantined(app: &mut TestApp) -> Vec<(Vec<usize>, bool)> {
    let effects = app.take_effects().into_iter();
    effects
        .filter_map(|effect| match effect {
            Effect::Pane(_, PaneEffect::Data(DataEffect::Quarantine(rows, inside))) => {
                Some((rows.positions, inside))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_row_goes_into_quarantine_only_after_yes() {
    let mut app = opened(120, 32);
    app.keys("x<enter>");
    assert!(quarantined(&mut app).is_empty(), "no is the default");
    app.keys("xy");
    assert_eq!(quarantined(&mut app), [(vec![0], true)]);
}

#[test]
fn marked_rows_go_together() {
    let mut app = opened(120, 32);
    snapshot!(app, "mjvx");
    app.keys("y");
    assert_eq!(quarantined(&mut app), [(vec![0, 2], true)]);
    assert!(app.app.panes.data.marked.is_empty(), "the rows are read again");
    app.keys("m<esc>");
    assert!(app.app.panes.data.marked.is_empty());
}

#[test]
fn all_listed_rows_go_after_a_question_that_says_how_many() {
    let mut app = opened(120, 32);
    app.keys("Xy");
    assert!(quarantined(&mut app).is_empty(), "all rows are listed");
    snapshot!(app, "ftraining<enter>X");
    app.keys("y");
    assert_eq!(quarantined(&mut app), [(vec![0, 1, 2, 3], true)]);
}

#[test]
fn rows_come_back_from_quarantine() {
    let mut app = TestApp::respond(
        120,
        32,
        answering(|effect| match effect {
            DataEffect::Load { .. } => {
                let mut rows = rows();
                let out = rows.split_off(3);
                vec![DataEvent::Rows(Ok((rows.into(), out.into())))]
            }
            _ => Vec::new(),
        }),
    );
    app.keys("1fquarantine<enter>");
    assert_eq!(app.app.panes.data.filter, Filter::Quarantined);
    app.keys("jx");
    assert_eq!(quarantined(&mut app), [(vec![1], false)]);
    app.keys("kmmx");
    assert_eq!(quarantined(&mut app), [(vec![0, 1], false)]);
}

#[test]
fn filters_are_offered_with_their_shares() {
    let mut app = opened(120, 32);
    snapshot!(app, "f");
}

#[test]
fn kinds_without_room_are_counted() {
    let mut report = report();
    let problem = |kind: &str| DataProblem {
        kind: ProblemKind::from_name(kind).unwrap(),
        severity: Severity::Note,
        row: Some(2),
        other: None,
        message: kind.to_owned(),
    };
    report.problems = ProblemKind::names().map(problem).collect();
    let kinds = report.problems.len();
    let mut app = TestApp::respond(
        120,
        32,
        answering(move |effect| match effect {
            DataEffect::Load { .. } => vec![all(rows()), checked(report.clone())],
            _ => Vec::new(),
        }),
    );
    app.keys("1");
    let said = app.screen().lines().find_map(|line| {
        let (before, _) = line.split_once(" more kinds;")?;
        before.split_whitespace().last()?.parse::<usize>().ok()
    });
    assert!(said.is_some_and(|more| more > 20 && more < kinds), "{said:?} of {kinds}");
}

#[test]
fn problems_beyond_those_kept_are_listed_too() {
    let mut report = report();
    report.problems.retain(|problem| problem.kind != ProblemKind::BrokenText);
    report.problems.push(DataProblem {
        kind: ProblemKind::BrokenText,
        severity: Severity::Note,
        row: None,
        other: None,
        message: "broken text: 1 more rows".to_owned(),
    });
    let mut app = TestApp::respond(
        120,
        32,
        answering(move |effect| match effect {
            DataEffect::Load { .. } => vec![all(rows()), checked(report.clone())],
            _ => Vec::new(),
        }),
    );
    app.keys("1fbroken<enter>");
    let data = &app.app.panes.data;
    assert_eq!(data.listed, [2]);
    let row = data.selected_head().unwrap();
    assert_eq!(data.problems_of(row), ["broken text"]);
    assert_eq!(data.worst(row), Some(Severity::Note));
}

#[test]
fn the_list_is_sorted_and_says_so() {
    let mut app = opened(120, 32);
    snapshot!(app, "slongest<enter>");
    assert_eq!(app.app.panes.data.listed, [1, 2, 0, 3, 4]);
    app.keys("sshortest<enter>");
    assert_eq!(app.app.panes.data.listed, [3, 4, 0, 2, 1]);
    app.keys("strained<enter>");
    assert_eq!(app.app.panes.data.listed, [4, 1, 0, 2, 3]);
    app.keys("sfindings<enter>");
    assert_eq!(app.app.panes.data.listed, [3, 2, 0, 1, 4]);
    assert_eq!(app.app.panes.data.order, Order::Findings);
    app.keys("flongest<enter>");
    assert_eq!(app.app.panes.data.listed, [1]);
}

#[test]
fn an_unfinished_pattern_keeps_what_was_found() {
    let mut app = opened(120, 32);
    snapshot!(app, "/re:(wi");
    assert_eq!(app.app.panes.data.listed.len(), 5);
    app.keys("fi|leckt)<enter>");
    assert_eq!(app.app.panes.data.listed, [3, 4]);
    assert_eq!(app.app.panes.data.search_problem, None);
    app.keys("<esc>/~kfmsch");
    assert_eq!(app.app.panes.data.listed, [4]);
    app.keys("<esc>/KANN nicht<enter>");
    assert_eq!(app.app.panes.data.listed, [2]);
}

#[test]
fn what_is_found_so_far_is_no_result_to_narrow_down() {
    let found = |pool: &Pool, typed: &str, rows: Vec<usize>, share| {
        DataEvent::Found(pool.clone(), Found { typed: typed.to_owned(), rows, share })
    };
    let respond = answering(move |effect| match effect {
        DataEffect::Load { .. } => vec![all(rows()), checked(report())],
        _ => Vec::new(),
    });
    let mut respond = respond;
    let mut asked = Vec::new();
    let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = std::rc::Rc::clone(&seen);
    let mut app = TestApp::respond(120, 32, move |effect| match effect {
        Effect::Pane(tag, PaneEffect::Data(DataEffect::Search(pool, among, typed))) => {
            log.borrow_mut().push((typed.clone(), among.len()));
            // A search of one letter is done at once, a longer one is not finished.
            let share = (typed.len() > 1).then_some(0.3);
            let rows = if share.is_some() { vec![1] } else { vec![0, 1, 2] };
            vec![posted(*tag, found(pool, typed, rows, share))]
        }
        other => respond(other),
    });
    app.keys("1/b");
    assert_eq!(app.app.panes.data.searching, None);
    app.keys("a");
    assert_eq!((app.app.panes.data.searching, app.app.panes.data.listed.len()), (Some(0.3), 1));
    app.keys("d");
    asked.extend(seen.borrow().iter().cloned());
    let expected = [("b", 5), ("ba", 3), ("bad", 5)].map(|(typed, among)| (typed.to_owned(), among));
    assert_eq!(asked, expected);
    app.keys("<enter>X");
    assert!(quarantined(&mut app).is_empty(), "the search is not finished");
}

#[test]
fn rows_are_not_changed_while_files_are_read() {
    let mut app = TestApp::respond(80, 24, |effect| match effect {
        Effect::Pane(tag, PaneEffect::Data(DataEffect::Load { early: true })) => {
            vec![posted(*tag, DataEvent::Reading(0.25, Some(rows().into())))]
        }
        other => answering(|_| Vec::new())(other),
    });
    app.keys("1jmv");
    let data = &app.app.panes.data;
    assert_eq!((data.listed.len(), data.marked.len()), (5, 0));
    app.keys("xy");
    assert!(quarantined(&mut app).is_empty());
    assert!(app.screen().contains("reading: 25 %"), "{}", app.screen());
}

#[test]
fn what_was_found_is_marked_in_the_row() {
    let mut app = opened(80, 24);
    app.keys("/badge gate<enter>");
    let places = app.app.panes.data.found_in("The badge reader at gate B");
    assert_eq!(places, [4..9, 20..24]);
    snapshot!(app, "");
    app.keys("<esc>");
    assert!(app.app.panes.data.found_in("The badge reader").is_empty());
}

#[test]
fn a_search_narrows_and_widens_again() {
    let mut app = opened(80, 24);
    app.keys("/category ac");
    assert_eq!(app.app.panes.data.listed, [1, 2, 4]);
    app.keys("ce");
    assert_eq!(app.app.panes.data.listed, [1]);
    app.keys("<backspace><backspace><backspace><backspace>");
    assert_eq!(app.app.panes.data.listed, [0, 1, 2, 4]);
    snapshot!(app, "nowhere<enter>");
}

#[test]
fn token_numbers_are_shown_on_request() {
    let mut app = opened(120, 32);
    snapshot!(app, "j<tab><tab>i");
}

#[test]
fn wide_and_joined_characters_hold_their_columns() {
    let texts = ["日本語のテキスト。", "مرحبا بالعالم", "👩‍💻 ok 🇩🇪", "e\u{301}te\u{301}"];
    let row = |(index, text): (usize, &&str)| Row {
        index,
        example: Example::Messages(vec![Message::new("user", *text), Message::new("assistant", "はい")]),
        ..rows().remove(0)
    };
    let respond = answering(move |effect| match effect {
        DataEffect::Load { .. } => vec![all(texts.iter().enumerate().map(row).collect())],
        DataEffect::Render(pool, position) => {
            let pieces = texts.iter().flat_map(|text| text.split_inclusive(' '));
            let pieces = pieces.cycle().take(40).enumerate();
            let tokens = pieces.map(|(place, text)| TokenPiece {
                id: place as u32,
                text: text.to_owned(),
                trained: place % 5 > 2,
            });
            let sides = Ok(vec![tokens.collect()]);
            let rendered = Rendered { position: *position, messages: None, sides, truncated: false };
            vec![DataEvent::Rendered(pool.clone(), Box::new(rendered))]
        }
        _ => Vec::new(),
    });
    let mut app = TestApp::respond(120, 24, respond);
    snapshot!(app, "1j<tab><tab>");
}

#[test]
fn a_row_stands_beside_the_one_that_it_is_like() {
    let mut app = TestApp::respond(
        120,
        32,
        answering(|effect| match effect {
            DataEffect::Load { .. } => {
                let mut rows = rows();
                rows[1].example = Example::Messages(vec![
                    Message::new("user", "Printer on floor 4 is on fire again"),
                    Message::new("assistant", TICKETS[0].1),
                ]);
                let mut report = report();
                report.problems.push(DataProblem {
                    kind: ProblemKind::NearDuplicate,
                    severity: Severity::Warning,
                    row: Some(1),
                    other: Some(0),
                    message: "train.jsonl:2: nearly equal to row 0 (train.jsonl:1): 91 % of its pieces"
                        .to_owned(),
                });
                report.rows_of.push(KindRows { kind: ProblemKind::NearDuplicate, rows: vec![1] });
                vec![all(rows), checked(report)]
            }
            DataEffect::Render(pool, row) => {
                vec![DataEvent::Rendered(pool.clone(), Box::new(rendered(*row)))]
            }
            _ => Vec::new(),
        }),
    );
    app.keys("1=");
    assert_eq!(app.app.panes.data.beside, None, "row 0 is like no earlier one");
    snapshot!(app, "j=");
    assert!(app.app.panes.data.beside.is_some());
    app.keys("<esc>");
    assert_eq!(app.app.panes.data.beside, None);
    assert_eq!(app.app.panes.data.selected().map(|row| row.index), Some(1));
}

#[test]
fn values_of_a_field_are_counted_and_listed() {
    let mut app = opened(120, 32);
    snapshot!(app, "treply<enter>");
    app.keys("account<enter>");
    let filter = Filter::Value(Field::FirstWords, "{\"category\": \"account\"}".to_owned());
    assert_eq!(app.app.panes.data.filter, filter);
    assert_eq!(app.app.panes.data.listed, [2]);
}

#[test]
fn lengths_are_shown_in_a_box() {
    let mut app = opened(80, 24);
    snapshot!(app, "h");
}

#[test]
fn findings_are_read_in_a_box() {
    let mut app = opened(80, 24);
    snapshot!(app, "p");
}

#[test]
fn ways_to_split_show_what_leaks() {
    let respond = |effect: &Effect| {
        let Effect::Pane(tag, PaneEffect::Data(DataEffect::Splits(rows, quarantined))) = effect else {
            return answers(effect);
        };
        let choices = split_choices(&config(), rows, quarantined);
        vec![posted(*tag, DataEvent::Splits(rows.clone(), choices))]
    };
    let mut app = TestApp::respond(100, 24, respond);
    snapshot!(app, "1S");
    app.keys("20<down><enter>");
    let effects = app.take_effects();
    let set = effects.iter().find_map(|effect| match effect {
        Effect::Pane(_, PaneEffect::Data(DataEffect::SetSplit(choice))) => Some(choice.title.clone()),
        _ => None,
    });
    assert_eq!(set.as_deref(), Some("20 % row by row"));
}

#[test]
fn what_was_edited_is_refused_in_words_and_opened_again() {
    let written = |pool: &Pool, position: usize| {
        let head = pool.heads()[position];
        Draft::of(&pool.row(&head).unwrap(), &head).unwrap()
    };
    let respond = move |effect: &Effect| match effect {
        Effect::Pane(tag, PaneEffect::Data(DataEffect::Draft(pool, position))) => {
            vec![posted(*tag, DataEvent::Drafted(Ok(written(pool, *position))))]
        }
        Effect::Pane(tag, PaneEffect::Data(DataEffect::TakeDraft(draft))) => {
            let problem = "the row stays as it is: not JSON: EOF while parsing at line 1".to_owned();
            vec![posted(*tag, DataEvent::Rewritten(draft.clone(), Err(problem)))]
        }
        other => answers(other),
    };
    let mut app = TestApp::respond(80, 24, respond);
    app.keys("1je");
    let draft = app.app.panes.data.drafts[0].clone();
    app.event(Event::EditorClosed(draft.path.clone(), Ok(())));
    snapshot!(app, "");
    app.take_effects();
    app.keys("<esc>e");
    let opened = |effect: &Effect| matches!(effect, Effect::Terminal(TerminalEffect::Edit(path, None)) if *path == draft.path);
    assert!(app.take_effects().iter().any(opened));
    std::fs::remove_file(&draft.path).unwrap();
}

#[test]
fn labels_and_trained_shares_stand_in_the_list() {
    let mut app = TestApp::respond(
        160,
        24,
        answering(|effect| match effect {
            DataEffect::Load { .. } => {
                let mut rows = rows();
                rows[0].extras.label = Some(true);
                rows[1].extras.label = Some(false);
                vec![all(rows), checked(report())]
            }
            _ => Vec::new(),
        }),
    );
    snapshot!(app, "1j");
    app.keys("fbad<enter>");
    assert_eq!(app.app.panes.data.listed, [1]);
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
