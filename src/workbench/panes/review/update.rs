//! How the review pane reacts.

use std::sync::Arc;
use std::time::Duration;

use luthier_core::eval::{SuitePrompt, Verdicts};

use super::command::ReviewCommand;
use super::compare::{Broken, Stage};
use super::effect::{Ask, ReviewEffect};
use super::event::ReviewEvent;
use super::judge;
use super::prompt::PromptField;
use super::question::ReviewQuestion;
use super::state::{Draft, ReviewState};
use super::target::{Candidate, Target};
use crate::app::{
    Context, Entry, Input, Link, Message, Pick, PickItem, Prompt, Question, Reaction, Reply, Severity,
};
use crate::command::{Command, InputCommand, ListCommand, ViewCommand};
use crate::panes::PaneCommand;
use crate::panes::train::look;
use crate::widgets::ListState;

/// Prompts kept of those typed before.
const HISTORY: usize = 200;

const SECOND: Duration = Duration::from_secs(1);

/// Reacts to one input. No IO, no clock.
pub(super) fn update(state: &mut ReviewState, context: &Context, input: Input) -> Vec<Reaction> {
    match input {
        Input::Shown => {
            let mut reactions =
                vec![Reaction::from(ReviewEffect::Watch), Reaction::from(ReviewEffect::Verdicts)];
            reactions.extend(read_suite(state, context));
            reactions
        }
        Input::Hidden => vec![Reaction::from(ReviewEffect::Rest)],
        Input::Command(command) => run(state, context, command),
        Input::Key(key) => {
            let written = state.typing.as_mut().is_some_and(|field| field.key(key));
            if written { Vec::new() } else { vec![Reaction::Unchanged] }
        }
        Input::Paste(text) => {
            // Pasting outside the field opens it.
            state.typing.get_or_insert_with(|| PromptField::new("")).paste(&text);
            Vec::new()
        }
        Input::Edited(path) => vec![Reaction::from(ReviewEffect::ReadDraft(path))],
        Input::Link(Link::Review(run, step)) => {
            state.linked = Some((run, step));
            choose_linked(state);
            Vec::new()
        }
        Input::Started | Input::Link(Link::Rows(..) | Link::Run(_) | Link::NewRun | Link::Trial(_)) => {
            Vec::new()
        }
        Input::ConfigChanged => {
            if context.config.as_ref().is_some_and(|config| config.review.baseline_system.is_empty()) {
                state.baseline = false;
                state.recount();
            }
            let wanted = context.config.as_ref().and_then(|config| config.review.suite.clone());
            if wanted == state.suite_file { Vec::new() } else { read_suite(state, context) }
        }
        Input::Deadline => {
            state.tick = tick(state, context);
            Vec::new()
        }
    }
}

/// Reacts to the reply to a question that the pane asked in a box.
pub(super) fn replied(
    state: &mut ReviewState,
    context: &Context,
    question: ReviewQuestion,
    reply: Reply,
) -> Vec<Reaction> {
    match reply {
        Reply::Yes => match question {
            ReviewQuestion::AddExample(verdict) => judge::add_example(state, context, *verdict),
            ReviewQuestion::Target(_)
            | ReviewQuestion::Prompt
            | ReviewQuestion::Note(_)
            | ReviewQuestion::Export => Vec::new(),
        },
        Reply::Text(text) => entered(state, &question, text.trim()),
        Reply::Choice(index) => picked(state, question, index),
    }
}

/// When the displayed seconds of waiting change next.
fn tick(state: &ReviewState, context: &Context) -> Option<Duration> {
    let waiting = |stage: &Stage| matches!(stage, Stage::Waiting(_));
    state.under_way().filter(|comparison| waiting(&comparison.stage)).map(|_| context.now.elapsed + SECOND)
}

fn read_suite(state: &mut ReviewState, context: &Context) -> Vec<Reaction> {
    let file = context.config.as_ref().and_then(|config| config.review.suite.clone());
    state.suite_file.clone_from(&file);
    if let Some(file) = file {
        return vec![Reaction::from(ReviewEffect::Suite(file))];
    }
    state.suite = None;
    state.suite_problem = None;
    state.list = ListState::default();
    state.recount();
    Vec::new()
}

fn run(state: &mut ReviewState, context: &Context, command: Command) -> Vec<Reaction> {
    match command {
        Command::Pane(PaneCommand::Review(command)) => own(state, context, command),
        Command::Input(command) => typed(state, context, command),
        Command::List(ListCommand::Open) => own(state, context, ReviewCommand::Ask),
        Command::List(command) => list(state, command),
        Command::View(command) => view(state, context, command),
        Command::App(_) | Command::Modal(_) | Command::Chart(_) | Command::Pane(_) => Vec::new(),
    }
}

fn own(state: &mut ReviewState, context: &Context, command: ReviewCommand) -> Vec<Reaction> {
    if let Some(choice) = judge::choice_of(command) {
        return judge::judge(state, context, choice);
    }
    match command {
        ReviewCommand::Ask => go_on(state, context),
        ReviewCommand::Again => ask(state, context),
        ReviewCommand::Type => {
            state.typing = Some(PromptField::new(state.typed.as_ref().map_or("", SuitePrompt::text)));
            Vec::new()
        }
        ReviewCommand::Choose => vec![choose(state, context)],
        ReviewCommand::Baseline => {
            state.baseline = !state.baseline;
            state.recount();
            let against = if state.baseline { "the baseline" } else { "the base model as it is" };
            vec![Reaction::Flash(Severity::Note, format!("compared with {against}"))]
        }
        ReviewCommand::Names => {
            state.named = !state.named;
            state.recount();
            let text = if state.named {
                "the sides of the next comparisons are named; their verdicts are counted apart"
            } else {
                "the sides are hidden until you judge"
            };
            vec![Reaction::Flash(Severity::Note, text.to_owned())]
        }
        ReviewCommand::Note => judge::note(state),
        ReviewCommand::Details => judge::details(state),
        ReviewCommand::Edit => judge::edit(state),
        ReviewCommand::Export => vec![Reaction::Prompt(Prompt {
            title: "Write preference pairs to".to_owned(),
            initial: "preferences.jsonl".to_owned(),
            hint: "a new file, in the project folder unless the path says otherwise".to_owned(),
            question: Question::from(ReviewQuestion::Export),
        })],
        ReviewCommand::Left
        | ReviewCommand::Right
        | ReviewCommand::Tie
        | ReviewCommand::BothBad
        | ReviewCommand::Skip => Vec::new(),
    }
}

/// Handles enter: asks the prompt, or goes to the next one if it is judged.
fn go_on(state: &mut ReviewState, context: &Context) -> Vec<Reaction> {
    let Some(comparison) = state.current() else { return ask(state, context) };
    let (id, judged) = (comparison.id, comparison.choice.is_some());
    match comparison.stage {
        _ if judged => next(state, context),
        _ if comparison.wanted.is_some() => {
            state.hurried = Some(id);
            Vec::new()
        }
        Stage::Cancelled | Stage::Failed(_) => ask(state, context),
        Stage::Complete if comparison.is_void() => ask(state, context),
        Stage::Waiting(_) | Stage::Answering | Stage::Complete => {
            let text = "judge the answers first; `s` goes on without a judgement";
            vec![Reaction::Flash(Severity::Note, text.to_owned())]
        }
    }
}

/// The next prompt, asked at once.
pub(super) fn next(state: &mut ReviewState, context: &Context) -> Vec<Reaction> {
    if state.typed.is_some() {
        // A new prompt begins empty; the one before is one key up.
        state.typing = Some(PromptField::new(""));
        return Vec::new();
    }
    if !state.list.apply(ListCommand::Down) {
        let text = "that was the last prompt of the suite; `i` types one, `r` chooses another run";
        return vec![Reaction::Flash(Severity::Note, text.to_owned())];
    }
    if state.current().is_some() { Vec::new() } else { ask(state, context) }
}

/// Lets both answer the prompt shown.
fn ask(state: &mut ReviewState, context: &Context) -> Vec<Reaction> {
    let Some(config) = context.config.clone() else {
        let text = "luthier.toml has mistakes; `space e` opens it".to_owned();
        return vec![Reaction::Flash(Severity::Warning, text)];
    };
    // The engine drops the older request as well.
    if let Some(id) = state.under_way().map(|comparison| comparison.id)
        && let Some(older) = state.comparison(id)
    {
        older.break_off(Broken::Cancelled);
    }
    let Some(comparison) = state.begin(config.train.seed, context.now.elapsed) else { return Vec::new() };
    let ask = Ask {
        id: comparison.id,
        target: comparison.target.clone(),
        sides: [comparison.answers[0].who, comparison.answers[1].who],
        prompt: comparison.prompt.clone(),
        seed: comparison.seed,
        config: Arc::clone(&config),
    };
    state.hurried = None;
    state.tick = Some(context.now.elapsed + SECOND);
    vec![Reaction::from(ReviewEffect::Ask(Box::new(ask)))]
}

fn list(state: &mut ReviewState, command: ListCommand) -> Vec<Reaction> {
    match command {
        ListCommand::Down | ListCommand::Up | ListCommand::First | ListCommand::Last => {
            // The first step away from a typed prompt goes back to the suite.
            let left = state.typed.take().is_some();
            let moved = !left && state.list.apply(command);
            if left || moved { Vec::new() } else { vec![Reaction::Unchanged] }
        }
        ListCommand::HalfDown | ListCommand::HalfUp | ListCommand::PageDown | ListCommand::PageUp => {
            if state.current().is_none() {
                return if state.list.apply(command) { Vec::new() } else { vec![Reaction::Unchanged] };
            }
            if let Some(comparison) = state.current_mut() {
                for answer in &mut comparison.answers {
                    answer.scroll.apply(command);
                }
                comparison.follows = comparison.answers.iter().all(|answer| !answer.scroll.has_more());
            }
            Vec::new()
        }
        ListCommand::Left
        | ListCommand::Right
        | ListCommand::ScrollLeft
        | ListCommand::ScrollRight
        | ListCommand::Open
        | ListCommand::Mark => vec![Reaction::Unchanged],
    }
}

fn view(state: &mut ReviewState, context: &Context, command: ViewCommand) -> Vec<Reaction> {
    match command {
        ViewCommand::Back => {
            if let Some(comparison) = state.under_way() {
                return vec![Reaction::from(ReviewEffect::Cancel(comparison.id))];
            }
            if state.typed.take().is_some() { Vec::new() } else { vec![Reaction::Unchanged] }
        }
        ViewCommand::Search => {
            let prompts = state.suite.iter().flatten();
            let items = prompts.enumerate().map(|(index, prompt)| PickItem {
                label: format!("{:>3}  {}", index + 1, prompt.text()),
                detail: String::new(),
            });
            vec![Reaction::Pick(Pick {
                title: "Prompts of the suite".to_owned(),
                items: items.collect(),
                selected: state.list.selected().unwrap_or(0),
                question: Question::from(ReviewQuestion::Prompt),
            })]
        }
        ViewCommand::Refresh => {
            let mut reactions =
                vec![Reaction::from(ReviewEffect::Watch), Reaction::from(ReviewEffect::Verdicts)];
            reactions.extend(read_suite(state, context));
            let unwritten = std::mem::take(&mut state.unwritten);
            reactions.extend(
                unwritten.into_iter().map(|verdict| Reaction::from(ReviewEffect::Save(Box::new(verdict)))),
            );
            reactions
        }
        ViewCommand::Copy => {
            let Some(prompt) = state.prompt() else { return vec![Reaction::Unchanged] };
            let text = match state.current() {
                None => prompt.text().to_owned(),
                Some(comparison) => {
                    let [left, right] = &comparison.answers;
                    format!("> {}\n\nleft:\n{}\n\nright:\n{}\n", prompt.text(), left.reply, right.reply)
                }
            };
            vec![Reaction::Copy(text)]
        }
        ViewCommand::SearchNext
        | ViewCommand::SearchPrevious
        | ViewCommand::FocusNext
        | ViewCommand::FocusPrevious
        | ViewCommand::FocusLeft
        | ViewCommand::FocusDown
        | ViewCommand::FocusUp
        | ViewCommand::FocusRight => vec![Reaction::Unchanged],
    }
}

fn typed(state: &mut ReviewState, context: &Context, command: InputCommand) -> Vec<Reaction> {
    let Some(field) = &mut state.typing else { return vec![Reaction::Unchanged] };
    match command {
        InputCommand::Accept => {
            let text = field.value().trim().to_owned();
            state.typing = None;
            if text.is_empty() {
                return Vec::new();
            }
            remember(&mut state.history, &text);
            state.typed = Some(SuitePrompt::typed(text));
            match state.current() {
                _ if state.target.is_none() => {
                    let text = "there is no run to compare yet; the prompt waits".to_owned();
                    vec![Reaction::Flash(Severity::Note, text)]
                }
                // Asked already and not judged: its answers are kept.
                Some(comparison) if comparison.choice.is_none() && comparison.stage == Stage::Complete => {
                    Vec::new()
                }
                _ => ask(state, context),
            }
        }
        InputCommand::Cancel => {
            state.typing = None;
            Vec::new()
        }
        InputCommand::Editor => {
            let text = field.value();
            state.draft = Some(Draft::Prompt);
            vec![Reaction::from(ReviewEffect::Draft(text))]
        }
        _ => {
            if field.apply(command, &state.history) {
                Vec::new()
            } else {
                vec![Reaction::Unchanged]
            }
        }
    }
}

fn remember(history: &mut Vec<String>, text: &str) {
    history.retain(|known| known != text);
    if history.len() == HISTORY {
        history.remove(0);
    }
    history.push(text.to_owned());
}

fn choose(state: &ReviewState, context: &Context) -> Reaction {
    let mut items = Vec::new();
    let mut targets = Vec::new();
    for candidate in state.candidates.iter().flatten() {
        for target in candidate.targets() {
            let place = match target.step {
                None => "result".to_owned(),
                Some(step) if target.best => format!("step {step}, lowest held-out loss"),
                Some(step) => format!("step {step}"),
            };
            items.push(PickItem {
                label: format!(
                    "{} {} {}  {place}",
                    look::glyph(candidate.state),
                    context.clock(candidate.started),
                    target.method
                ),
                detail: candidate.run.clone(),
            });
            targets.push(target);
        }
    }
    let current = |target: &Target| state.target.as_ref().is_some_and(|chosen| chosen.is_same(target));
    Reaction::Pick(Pick {
        title: "Compare with the base model".to_owned(),
        items,
        selected: targets.iter().position(current).unwrap_or(0),
        question: Question::from(ReviewQuestion::Target(targets)),
    })
}

fn picked(state: &mut ReviewState, question: ReviewQuestion, index: usize) -> Vec<Reaction> {
    match question {
        ReviewQuestion::Target(targets) => {
            if let Some(target) = targets.into_iter().nth(index) {
                state.target = Some(target);
                state.linked = None;
                state.recount();
            }
        }
        ReviewQuestion::Prompt => {
            state.typed = None;
            state.list.select(index);
        }
        ReviewQuestion::Note(_) | ReviewQuestion::Export | ReviewQuestion::AddExample(_) => {}
    }
    Vec::new()
}

fn entered(state: &mut ReviewState, question: &ReviewQuestion, text: &str) -> Vec<Reaction> {
    match question {
        ReviewQuestion::Note(id) => {
            if let Some(comparison) = state.comparison(*id).filter(|comparison| comparison.choice.is_none()) {
                text.clone_into(&mut comparison.note);
            }
            Vec::new()
        }
        ReviewQuestion::Export if text.is_empty() => Vec::new(),
        ReviewQuestion::Export => vec![
            Reaction::from(ReviewEffect::Export(text.into())),
            Reaction::Entry(Question::from(ReviewQuestion::Export), Entry::Checked),
        ],
        ReviewQuestion::Target(_) | ReviewQuestion::Prompt | ReviewQuestion::AddExample(_) => Vec::new(),
    }
}

pub(super) fn answered(state: &mut ReviewState, context: &Context, answer: ReviewEvent) -> Vec<Reaction> {
    match answer {
        ReviewEvent::Candidates(Ok(candidates)) => {
            state.problem = None;
            candidates_changed(state, candidates);
            Vec::new()
        }
        ReviewEvent::Candidates(Err(problem)) => {
            state.problem = Some(problem);
            Vec::new()
        }
        ReviewEvent::Suite(Ok(prompts)) => {
            state.suite_problem = None;
            let position = state.list.selected().unwrap_or(0);
            state.list.changed(prompts.len(), Some(position));
            state.suite = Some(prompts);
            state.recount();
            Vec::new()
        }
        ReviewEvent::Suite(Err(problem)) => {
            state.suite = None;
            state.list = ListState::default();
            state.recount();
            let message = failure("The suite cannot be read", problem.clone());
            let known = state.suite_problem.as_deref() == Some(&problem);
            state.suite_problem = Some(problem);
            if known { Vec::new() } else { vec![message] }
        }
        ReviewEvent::Verdicts(Ok(found)) => verdicts_read(state, found),
        ReviewEvent::Progress(id, what) => {
            if let Some(comparison) = state.comparison(id)
                && let Stage::Waiting(waiting) = &mut comparison.stage
            {
                *waiting = what;
            }
            Vec::new()
        }
        ReviewEvent::Began(id, asked) => {
            if let Some(comparison) = state.comparison(id) {
                comparison.asked = asked;
                comparison.handed_over = context.now.elapsed;
            }
            Vec::new()
        }
        ReviewEvent::Pieces(id, pieces) => {
            if let Some(comparison) = state.comparison(id) {
                comparison.add(pieces);
            }
            state.tick = None;
            Vec::new()
        }
        ReviewEvent::Ended(id, side, end) => {
            if let Some(comparison) = state.comparison(id) {
                comparison.end(side, *end);
            }
            state.tick = tick(state, context);
            judge::ended(state, context, id)
        }
        ReviewEvent::Broken(id, broken) => {
            if let Some(comparison) = state.comparison(id) {
                comparison.break_off(broken);
            }
            state.tick = tick(state, context);
            Vec::new()
        }
        ReviewEvent::Saved(verdict, Err(problem)) => {
            state.unwritten.push(*verdict);
            let text = format!("{problem}\n\nIt is kept until you leave; `R` tries again.");
            vec![failure("The verdict could not be written", text)]
        }
        ReviewEvent::Saved(_, Ok(())) => vec![Reaction::Unchanged],
        ReviewEvent::Exported(Ok((count, path))) => {
            let pairs = luthier_core::units::counted(count, "pair", "pairs");
            vec![
                Reaction::Entry(Question::from(ReviewQuestion::Export), Entry::Taken),
                Reaction::Flash(Severity::Success, format!("{pairs} written to {}", path.display())),
            ]
        }
        ReviewEvent::Exported(Err(problem)) => {
            let reason =
                Message { title: "Nothing was written".to_owned(), text: problem, severity: Severity::Error };
            vec![Reaction::Entry(Question::from(ReviewQuestion::Export), Entry::Refused(reason))]
        }
        ReviewEvent::Verdicts(Err(problem)) => vec![Reaction::Flash(Severity::Error, problem)],
        ReviewEvent::DraftReady(Ok(path)) => vec![Reaction::Edit(path, None)],
        ReviewEvent::DraftReady(Err(problem)) | ReviewEvent::Draft(Err(problem)) => {
            state.draft = None;
            vec![Reaction::Flash(Severity::Error, problem)]
        }
        ReviewEvent::Draft(Ok(text)) => match state.draft.take() {
            None => Vec::new(),
            Some(Draft::Prompt) => {
                state.typing = Some(PromptField::new(text.trim_end()));
                Vec::new()
            }
            Some(Draft::Answer(id)) => judge::edited(state, context, id, text.trim()),
        },
        ReviewEvent::ExampleAdded(Ok(path)) => {
            let text = format!("a row was added to {}; the next run trains on it", path.display());
            vec![Reaction::Flash(Severity::Success, text)]
        }
        ReviewEvent::ExampleAdded(Err(problem)) => vec![failure("The row could not be added", problem)],
    }
}

pub(super) fn failure(title: &str, text: String) -> Reaction {
    Reaction::Message(Message { title: title.to_owned(), text, severity: Severity::Error })
}

/// Keeps the chosen target if it still exists, and chooses one if there is none yet.
fn candidates_changed(state: &mut ReviewState, candidates: Vec<Candidate>) {
    state.candidates = Some(candidates);
    choose_linked(state);
    let targets = state.targets();
    match &mut state.target {
        // A target that is gone stays chosen: its answers and verdicts are still shown.
        Some(chosen) => {
            if let Some(found) = targets.iter().find(|target| target.is_same(chosen)) {
                chosen.clone_from(found);
            }
        }
        None => state.target = targets.into_iter().next(),
    }
    state.recount();
}

/// Chooses what another pane asked to compare, once it is among the candidates.
fn choose_linked(state: &mut ReviewState) {
    let Some((run, step)) = &state.linked else { return };
    let Some(candidate) = state.candidates.iter().flatten().find(|candidate| candidate.run == *run) else {
        return;
    };
    let targets = candidate.targets();
    let wanted = targets.iter().find(|target| target.step == *step).or(targets.first());
    if let Some(target) = wanted.cloned() {
        state.target = Some(target);
        state.linked = None;
        state.recount();
    }
}

fn verdicts_read(state: &mut ReviewState, found: Verdicts) -> Vec<Reaction> {
    state.verdicts = found.verdicts;
    state.recount();
    let of_suite = |text: &str| state.suite.iter().flatten().any(|prompt| prompt.text() == text);
    let asked: Vec<String> = state
        .verdicts
        .iter()
        .filter_map(|verdict| verdict.prompt.last())
        .map(|message| message.content.clone())
        .filter(|text| !of_suite(text))
        .collect();
    let typed_now = std::mem::take(&mut state.history);
    for text in asked.into_iter().chain(typed_now) {
        remember(&mut state.history, &text);
    }
    match found.broken_lines {
        0 => Vec::new(),
        count => {
            let lines = luthier_core::units::counted(count, "line", "lines");
            let text = format!("{lines} of verdicts.jsonl cannot be read and were skipped");
            vec![Reaction::Flash(Severity::Warning, text)]
        }
    }
}
