//! The review pane on screen, and how it reacts.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use indexmap::IndexMap;
use luthier_core::data::Message;
use luthier_core::eval::{Contender, Score, SuitePrompt, Verdict, VerdictChoice, Verdicts};
use luthier_core::runs::RunState;
use luthier_core::runs::serving::DoneReason;
use pretty_assertions::assert_eq;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::command::ReviewCommand;
use super::compare::{Broken, End};
use super::effect::{Ask, ReviewEffect};
use super::event::ReviewEvent;
use super::state::ReviewState;
use super::target::tests::candidate;
use crate::app::{Effect, Event, Link, Reaction, Tag, TerminalEffect};
use crate::keymap::{Key, KeyContext, Keymap, Lookup};
use crate::panes::{Pane, PaneEffect, PaneEvent};
use crate::testing::{TestApp, config_with, screen, snapshot};
use crate::theme::ColorDepth;

/// What the performer of the pane posts.
fn posted(tag: Tag, event: ReviewEvent) -> Event {
    Event::Pane(tag, PaneEvent::Review(event))
}

const RUN: &str = "20261123-135000-lora-r16";
const OLDER: &str = "20261123-132000-lora-r8";

const TUNED: &str = "{\"category\": \"access\", \"priority\": \"urgent\", \"location\": \"gate B\"}";
const BASE: &str = "I'm sorry to hear that the badge reader is not working. Here are some steps you can take to \
                    resolve the issue:\n\n1. Check the badge reader's power supply\n2. Make sure that the \
                    reader is \u{1b}[31mconnected\n3. Restart it";

const SETTINGS: &str = "[review]\nsuite = \"prompts.jsonl\"\nbaseline_system = \"Answer in JSON.\"\n";

/// The pane, with an engine that says what a test lets it say.
struct Review {
    app: TestApp,
    asked: Rc<RefCell<Vec<(Tag, Ask)>>>,
}

fn suite() -> Vec<SuitePrompt> {
    let texts = [
        "Printer on floor 3 is on fire again",
        "The badge reader at gate B rejects everyone since this morning, please hurry.",
        "Kann mich nicht anmelden, seit dem Update kommt immer Fehler 403",
    ];
    texts.map(SuitePrompt::typed).to_vec()
}

fn verdict(prompt: &str, choice: VerdictChoice) -> Verdict {
    let side = |who| luthier_core::eval::Side {
        who,
        reply: String::new(),
        weights: String::new(),
        seed: 1,
        scores: IndexMap::new(),
    };
    Verdict {
        time: jiff::Timestamp::UNIX_EPOCH,
        run: RUN.to_owned(),
        checkpoint: Some(400),
        prompt: vec![Message::new("user", prompt)],
        left: side(Contender::Tuned),
        right: side(Contender::Base),
        choice,
        blind: true,
        note: String::new(),
        edited: None,
    }
}

fn end(reason: DoneReason, who: Contender) -> End {
    let weights = if who == Contender::Tuned { "8c01d2e3f4a5b6c7" } else { "3fa9c1d2e3f4a5b6" };
    let details = [("valid", 1.0), ("conforms", 1.0), ("field.category", 1.0)];
    let score = if who == Contender::Tuned {
        Score {
            passed: true,
            details: details.map(|(name, value)| (name.to_owned(), value)).into(),
            reason: None,
        }
    } else {
        Score {
            passed: false,
            details: IndexMap::from([("valid".to_owned(), 0.0)]),
            reason: Some("not valid JSON: expected value at line 1 column 1".to_owned()),
        }
    };
    let (tokens, seconds) = if who == Contender::Tuned { (29, 1.6) } else { (61, 3.4) };
    End {
        reason,
        tokens,
        seconds,
        weights: weights.to_owned(),
        expected: weights.to_owned(),
        score: Some(Ok(score)),
    }
}

impl Review {
    fn open(width: u16, height: u16) -> Self {
        Self::with(
            width,
            height,
            ColorDepth::True,
            vec![
                candidate(RUN, RunState::Running, &[400, 500]),
                candidate(OLDER, RunState::Finished, &[200]),
            ],
        )
    }

    fn with(width: u16, height: u16, depth: ColorDepth, candidates: Vec<super::Candidate>) -> Self {
        let asked: Rc<RefCell<Vec<(Tag, Ask)>>> = Rc::default();
        let engine = Rc::clone(&asked);
        let respond = move |effect: &Effect| {
            let Effect::Pane(tag, PaneEffect::Review(effect)) = effect else { return Vec::new() };
            let answer = match effect {
                ReviewEffect::Watch => ReviewEvent::Candidates(Ok(candidates.clone())),
                ReviewEffect::Suite(_) => ReviewEvent::Suite(Ok(suite())),
                ReviewEffect::Verdicts => ReviewEvent::Verdicts(Ok(Verdicts {
                    verdicts: vec![verdict("Printer on floor 3 is on fire again", VerdictChoice::Left)],
                    broken_lines: 0,
                })),
                ReviewEffect::Save(verdict) => ReviewEvent::Saved(verdict.clone(), Ok(())),
                ReviewEffect::Ask(ask) => {
                    engine.borrow_mut().push((*tag, (**ask).clone()));
                    return Vec::new();
                }
                _ => return Vec::new(),
            };
            vec![posted(*tag, answer)]
        };
        let mut app =
            TestApp::open(width, height, depth, "luthier", Ok(config_with(SETTINGS)), Box::new(respond));
        app.keys("4");
        Self { app, asked }
    }

    fn state(&self) -> &ReviewState {
        &self.app.app.panes.review
    }

    fn ask(&self) -> (Tag, Ask) {
        self.asked.borrow().last().cloned().unwrap()
    }

    fn say(&mut self, event: impl FnOnce(u64) -> ReviewEvent) {
        let (tag, ask) = self.ask();
        self.app.event(posted(tag, event(ask.id)));
    }

    /// The side on which `who` answers.
    fn side(&self, who: Contender) -> usize {
        self.ask().1.sides.iter().position(|side| *side == who).unwrap()
    }

    fn begin(&mut self) {
        let conversation = self.ask().1.prompt.messages;
        self.say(|id| ReviewEvent::Began(id, conversation));
    }

    /// Both answer: the tuned side to its end, the base side as far as its text goes.
    fn answer(&mut self) {
        self.begin();
        let (tuned, base) = (self.side(Contender::Tuned), 1 - self.side(Contender::Tuned));
        self.say(|id| ReviewEvent::Pieces(id, vec![(tuned, TUNED.to_owned()), (base, BASE.to_owned())]));
        self.say(|id| ReviewEvent::Ended(id, tuned, Box::new(end(DoneReason::Stop, Contender::Tuned))));
    }

    fn finish(&mut self) {
        self.answer();
        let base = 1 - self.side(Contender::Tuned);
        self.say(|id| ReviewEvent::Ended(id, base, Box::new(end(DoneReason::Length, Contender::Base))));
    }

    fn effects(&mut self) -> Vec<ReviewEffect> {
        let effects = self.app.take_effects().into_iter();
        effects
            .filter_map(|effect| match effect {
                Effect::Pane(_, PaneEffect::Review(effect)) => Some(effect),
                _ => None,
            })
            .collect()
    }

    fn saved(&mut self) -> Vec<Verdict> {
        let effects = self.effects().into_iter();
        effects
            .filter_map(|effect| match effect {
                ReviewEffect::Save(verdict) => Some(*verdict),
                _ => None,
            })
            .collect()
    }

    /// The key that says the side of `who` is better.
    fn key(&self, who: Contender) -> &'static str {
        ["<left>", "<right>"][self.side(who)]
    }
}

#[test]
fn without_a_run_it_says_what_to_do() {
    let mut review = Review::with(80, 24, ColorDepth::True, Vec::new());
    snapshot!(review.app, "");
    let mut young = Review::with(80, 24, ColorDepth::True, vec![candidate(RUN, RunState::Running, &[])]);
    snapshot!(young.app, "", "a_run_without_checkpoints_says_what_to_do");
    young.app.keys("<enter>");
    assert!(young.effects().iter().all(|effect| !matches!(effect, ReviewEffect::Ask(_))));
}

#[test]
fn the_suite_waits_with_its_outcomes() {
    let mut review = Review::open(80, 24);
    snapshot!(review.app, "j");
    let mut wide = Review::open(200, 60);
    snapshot!(wide.app, "j", "the_suite_waits_with_its_outcomes_wide");
}

#[test]
fn answers_grow_side_by_side_unnamed() {
    let mut review = Review::open(80, 24);
    review.app.keys("j<enter>");
    review.app.pass(Duration::from_secs(3));
    review.answer();
    snapshot!(review.app, "");
    let mut wide = Review::open(200, 60);
    wide.app.keys("j<enter>");
    wide.app.pass(Duration::from_secs(3));
    wide.answer();
    snapshot!(wide.app, "", "answers_grow_side_by_side_unnamed_wide");
}

#[test]
fn the_verdict_names_the_sides() {
    let mut review = Review::open(80, 24);
    review.app.keys("j<enter>");
    review.finish();
    let key = review.key(Contender::Tuned);
    snapshot!(review.app, key);
    snapshot!(review.app, "d", "details_show_what_is_proved");
    let mut wide = Review::open(200, 60);
    wide.app.keys("j<enter>");
    wide.finish();
    let key = wide.key(Contender::Tuned);
    snapshot!(wide.app, key, "the_verdict_names_the_sides_wide");
}

#[test]
fn everything_reads_without_colour() {
    let mut review = Review::with(80, 24, ColorDepth::None, vec![candidate(RUN, RunState::Running, &[400])]);
    review.app.keys("j<enter>");
    review.finish();
    let key = review.key(Contender::Base);
    snapshot!(review.app, key);
}

#[test]
fn waiting_and_failing_are_shown() {
    let mut review = Review::open(80, 24);
    review.app.keys("<enter>");
    review.say(|id| ReviewEvent::Progress(id, "loading models/tiny".to_owned()));
    review.app.pass(Duration::from_millis(12_300));
    snapshot!(review.app, "");
    let problem = "the engine is missing: `/usr/bin/luthier-engine` is not there; build it with `make build`";
    review.say(|id| ReviewEvent::Broken(id, Broken::Failed(problem.to_owned())));
    snapshot!(review.app, "", "a_missing_engine_says_what_to_do");
    assert_eq!(review.state().tick, None);
    review.app.keys("<enter>");
    assert_eq!(review.asked.borrow().len(), 2);
}

#[test]
fn a_prompt_is_typed_over_several_lines() {
    let mut review = Review::open(80, 24);
    review.app.keys("iMy mouse<alt-enter>is <ctrl-j>");
    review.app.event(Event::Paste("dead\u{202e}\rplease\u{1b}[2Jhelp".to_owned()));
    snapshot!(review.app, "");
    review.app.keys("<enter>");
    assert_eq!(review.ask().1.prompt.text(), "My mouse\nis \ndead\nplease[2Jhelp");
    review.finish();
    review.app.keys("s<enter>");
    assert!(review.state().typing.as_ref().is_some_and(|field| field.value().is_empty()));
    review.app.keys("<up>");
    assert!(review.state().typing.as_ref().is_some_and(|field| field.value().starts_with("My mouse")));
    review.app.keys("<esc>j");
    assert!(review.state().typed.is_none(), "the first step leads back to the suite");
}

/// The same answers on swapped sides: nothing on the screen may tell them apart.
#[test]
fn nothing_tells_the_sides_apart_before_the_verdict() {
    let mut seen = [None, None];
    let mut review = Review::open(120, 36);
    review.app.keys("<enter>");
    for _ in 0..40 {
        review.begin();
        let (same, sides) = (end(DoneReason::Stop, Contender::Base), review.ask().1.sides);
        review.say(|id| ReviewEvent::Pieces(id, vec![(0, "same".into()), (1, "same".into())]));
        let growing = review.app.screen();
        for (side, who) in sides.iter().enumerate() {
            let end = End { weights: who.to_string(), ..same.clone() };
            let end = End { expected: end.weights.clone(), ..end };
            review.say(|id| ReviewEvent::Ended(id, side, Box::new(end)));
        }
        let screens = (growing, review.app.screen());
        assert!(screens.1.contains("which is better? they are equal"));
        let place = &mut seen[usize::from(sides[0] == Contender::Tuned)];
        assert_eq!(*place.get_or_insert_with(|| screens.clone()), screens);
        if seen.iter().all(Option::is_some) {
            break;
        }
        review.app.keys("a");
    }
    let [one, other] = seen;
    assert_eq!(one.expect("the base side was left once"), other.expect("the tuned side was left once"));
}

#[test]
fn a_verdict_is_stored_at_once_and_counted() {
    let mut review = Review::open(80, 24);
    review.app.keys("j<enter>");
    review.finish();
    review.effects();
    let key = review.key(Contender::Base);
    review.app.keys("nlooks <enter>").keys(key);
    let saved = review.saved();
    assert_eq!(saved.len(), 1);
    let verdict = &saved[0];
    assert_eq!((verdict.run.as_str(), verdict.checkpoint), (RUN, Some(400)));
    assert_eq!(verdict.winner(), Some(Contender::Base));
    assert_eq!((verdict.note.as_str(), verdict.blind), ("looks", true));
    let (better, worse) = verdict.preferred().unwrap();
    assert_eq!((better.reply.as_str(), worse.reply.as_str()), (BASE, TUNED));
    assert_eq!(worse.scores.get("passed"), Some(&1.0));
    assert_eq!((review.state().tally.tuned, review.state().tally.base), (1, 1));
    review.app.keys("<left><right>=");
    assert!(review.saved().is_empty(), "a verdict is given once");
}

#[test]
fn an_early_verdict_stops_the_other_answer_first() {
    let mut review = Review::open(80, 24);
    review.app.keys("j<enter>");
    review.answer();
    let base_key = review.key(Contender::Base);
    review.app.keys(base_key);
    assert!(review.saved().is_empty(), "a fragment is not preferred");
    let key = review.key(Contender::Tuned);
    review.app.keys(key).keys("<enter>");
    let id = review.ask().1.id;
    assert_eq!(review.effects(), [ReviewEffect::Cancel(id)]);
    assert!(!review.app.screen().contains("base model"), "still hidden");
    let base = 1 - review.side(Contender::Tuned);
    review.say(|id| ReviewEvent::Ended(id, base, Box::new(end(DoneReason::Cancelled, Contender::Base))));
    let effects = review.effects();
    assert!(matches!(&effects[0], ReviewEffect::Save(verdict) if verdict.winner() == Some(Contender::Tuned)));
    assert!(matches!(&effects[1], ReviewEffect::Ask(ask) if ask.prompt == suite()[2]), "enter was not lost");
}

#[test]
fn what_other_weights_answered_does_not_count() {
    let mut review = Review::open(80, 24);
    review.app.keys("<enter>");
    review.answer();
    let base = 1 - review.side(Contender::Tuned);
    let other = End { weights: "0000".into(), ..end(DoneReason::Stop, Contender::Base) };
    review.say(|id| ReviewEvent::Ended(id, base, Box::new(other)));
    review.effects();
    snapshot!(review.app, "<left>=");
    assert!(review.saved().is_empty());
    review.app.keys("<enter>");
    assert_eq!(review.asked.borrow().len(), 2);
}

#[test]
fn escape_gives_up_and_going_elsewhere_does_not() {
    let mut review = Review::open(80, 24);
    review.app.keys("<enter>");
    review.begin();
    review.effects();
    review.app.keys("j");
    assert!(review.state().current().is_none());
    assert_eq!(review.effects(), []);
    review.app.keys("<esc>");
    assert_eq!(review.effects(), [ReviewEffect::Cancel(1)]);
    review.say(|id| ReviewEvent::Broken(id, Broken::Cancelled));
    review.app.keys("k");
    assert!(review.app.screen().contains("cancelled; ↵ asks again"));
    // A newer asking ends the older one without a word from the engine.
    review.app.keys("<enter>j<enter>");
    assert_eq!(review.state().comparisons.iter().filter(|comparison| comparison.is_under_way()).count(), 1);
}

#[test]
fn the_baseline_takes_the_base_models_place() {
    let mut review = Review::open(200, 60);
    review.app.keys("B<enter>");
    assert!(review.ask().1.sides.contains(&Contender::Baseline));
    assert_eq!(review.state().tally.tuned, 0, "counted apart");
    review.app.keys("B");
    assert!(review.state().current().is_none());
    assert_eq!(review.state().tally.tuned, 1);
    let mut without = TestApp::new(80, 24);
    without.keys("4B");
    assert!(without.app.panes.review.opponent() == Contender::Base);
}

#[test]
fn another_pane_can_choose_what_is_compared() {
    let mut review = Review::open(80, 24);
    let place = |review: &Review| review.state().target.as_ref().unwrap().name();
    assert_eq!(place(&review), "lora r16 @ best");
    review.app.keys("r");
    snapshot!(review.app, "");
    review.app.keys("<down><enter>");
    assert_eq!(place(&review), "lora r16 @ 500");
    let context = review.app.app.context.clone();
    let state = &mut review.app.app.panes.review;
    let link = Link::Review(OLDER.to_owned(), None);
    let reactions = state.update(&context, crate::app::Input::Link(link));
    assert_eq!(reactions, Vec::<Reaction>::new());
    assert_eq!(place(&review), "lora r16 @ result");
    assert_eq!(review.state().target.as_ref().unwrap().run, OLDER);
}

#[test]
fn the_better_answer_becomes_a_training_row() {
    let mut review = Review::open(80, 24);
    review.app.keys("j<enter>");
    review.finish();
    let key = review.key(Contender::Tuned);
    review.app.keys(key);
    review.effects();
    review.app.keys("e");
    assert_eq!(review.effects(), [ReviewEffect::Draft(TUNED.to_owned())]);
    let tag = Tag { slot: ReviewEffect::Draft(String::new()).slot(), generation: 1 };
    review.app.event(posted(tag, ReviewEvent::DraftReady(Ok("/run/draft.md".into()))));
    let edit = Effect::Terminal(TerminalEffect::Edit("/run/draft.md".into(), None));
    assert_eq!(review.app.take_effects(), [edit]);
    review.app.event(Event::EditorClosed("/run/draft.md".into(), Ok(())));
    assert_eq!(review.effects(), [ReviewEffect::ReadDraft("/run/draft.md".into())]);
    let tag = Tag { generation: 2, ..tag };
    review.app.event(posted(tag, ReviewEvent::Draft(Ok("{\"category\": \"door\"}\n".into()))));
    snapshot!(review.app, "");
    review.app.keys("y");
    let effects = review.effects();
    let ReviewEffect::AddExample { file, messages } = &effects[0] else { panic!("{effects:?}") };
    assert_eq!(file, std::path::Path::new("train.jsonl"));
    let reply = Message::new("assistant", "{\"category\": \"door\"}");
    assert_eq!(*messages, [suite()[1].messages[0].clone(), reply]);
    let ReviewEffect::Save(verdict) = &effects[1] else { panic!("{effects:?}") };
    assert_eq!(
        (verdict.choice, verdict.edited.as_deref()),
        (VerdictChoice::Skip, Some("{\"category\": \"door\"}"))
    );
    assert_eq!(review.state().tally.skipped, 0, "an edit is no judgement");
}

#[test]
fn verdicts_that_cannot_be_written_are_kept() {
    let mut review = Review::open(80, 24);
    review.app.keys("<enter>");
    review.finish();
    review.app.keys("=");
    let verdict = review.saved().remove(0);
    let tag = Tag { slot: crate::app::Slot::Each, generation: 0 };
    let failed = ReviewEvent::Saved(Box::new(verdict.clone()), Err("no space left on device".to_owned()));
    review.app.event(posted(tag, failed));
    assert!(review.app.screen().contains("no space left"));
    review.app.keys("<esc>q");
    assert!(review.app.screen().contains("A verdict could not be written"));
    review.app.keys("<esc>R");
    assert_eq!(review.saved(), [verdict]);
    assert!(review.state().unwritten.is_empty());
}

#[test]
fn verdict_keys_reach_verdicts_and_typed_text_does_not() {
    let (keymap, problems) = Keymap::defaults();
    assert_eq!(problems, Vec::<String>::new());
    let mut review = Review::open(80, 24);
    let reviewing = review.app.app.contexts();
    let commands = [
        ("left", ReviewCommand::Left),
        ("right", ReviewCommand::Right),
        ("=", ReviewCommand::Tie),
        ("b", ReviewCommand::BothBad),
        ("s", ReviewCommand::Skip),
        ("n", ReviewCommand::Note),
        ("B", ReviewCommand::Baseline),
        ("e", ReviewCommand::Edit),
        ("x", ReviewCommand::Export),
        ("enter", ReviewCommand::Ask),
    ];
    for (key, command) in commands {
        let key: Key = key.parse().unwrap();
        assert_eq!(keymap.lookup(&reviewing, &[key]), Lookup::Matched(command.into()));
    }
    review.app.keys("i");
    assert_eq!(review.app.app.contexts(), [KeyContext::Input, KeyContext::Global]);
    review.app.keys("bsn=<left><right>");
    assert!(review.state().typing.as_ref().is_some_and(|field| field.value() == "bsn="));
}

#[test]
fn long_answers_scroll_together() {
    let mut review = Review::open(80, 24);
    review.app.keys("<enter>");
    review.begin();
    let long: String = (1..=60).map(|line| format!("line {line}\n")).collect::<Vec<_>>().concat();
    review.say(|id| ReviewEvent::Pieces(id, vec![(0, long.clone()), (1, long)]));
    let screen = review.app.screen();
    assert!(screen.contains("line 60") && !screen.contains("line 2 "), "the end is followed: {screen}");
    review.app.keys("<pageup><pageup>");
    let above = review.app.screen();
    assert!(!above.contains("line 60"), "{above}");
    review.say(|id| ReviewEvent::Pieces(id, vec![(0, "more".into()), (1, "more".into())]));
    assert!(!review.app.screen().contains("line 60"), "what is read stays in sight");
}

#[test]
fn the_sides_stand_one_above_the_other_where_there_is_no_room() {
    let mut review = Review::open(80, 24);
    review.app.keys("j<enter>");
    review.answer();
    let area = Rect::new(0, 0, 60, 24);
    let mut buffer = Buffer::empty(area);
    review.state().view(&review.app.app.context, area, &mut buffer, &review.app.app.theme);
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("the_sides_stand_one_above_the_other", screen(&buffer));
    });
}

#[test]
fn no_size_makes_it_panic() {
    let mut review = Review::open(80, 24);
    review.app.keys("j<enter>");
    review.finish();
    for (width, height) in (0..60).flat_map(|width| (0..12).map(move |height| (width, height))) {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        review.state().view(&review.app.app.context, area, &mut buffer, &review.app.app.theme);
    }
}
