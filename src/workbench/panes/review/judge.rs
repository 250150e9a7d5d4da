//! Verdicts, notes and edited answers.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use luthier_core::data::Message as ChatMessage;
use luthier_core::eval::{Verdict, VerdictChoice};
use luthier_core::units;

use super::command::ReviewCommand;
use super::compare::{Answer, Comparison, Stage};
use super::effect::ReviewEffect;
use super::question::ReviewQuestion;
use super::state::{Draft, ReviewState};
use super::update::next;
use super::words;
use crate::app::{Confirm, Context, Message, Prompt, Question, Reaction, Severity};
use crate::widgets::text::fit;

/// Columns of the prompt and the reply in the question whether to add a row.
const SHOWN: usize = 60;

/// What a verdict command chooses.
pub(super) fn choice_of(command: ReviewCommand) -> Option<VerdictChoice> {
    Some(match command {
        ReviewCommand::Left => VerdictChoice::Left,
        ReviewCommand::Right => VerdictChoice::Right,
        ReviewCommand::Tie => VerdictChoice::Tie,
        ReviewCommand::BothBad => VerdictChoice::BothBad,
        ReviewCommand::Skip => VerdictChoice::Skip,
        _ => return None,
    })
}

/// A choice was made. It is recorded at once if both answers are complete; otherwise they are stopped
/// first, so that the verdict holds exactly the text that was judged and the weights that wrote it.
pub(super) fn judge(state: &mut ReviewState, context: &Context, choice: VerdictChoice) -> Vec<Reaction> {
    let Some(comparison) = state.current_mut().filter(|comparison| comparison.unjudgeable(choice).is_none())
    else {
        return vec![Reaction::Unchanged];
    };
    comparison.wanted = Some(choice);
    let id = comparison.id;
    if comparison.stage == Stage::Complete {
        ended(state, context, id)
    } else {
        vec![Reaction::from(ReviewEffect::Cancel(id))]
    }
}

/// Saves the verdict on a complete comparison, if one was given.
pub(super) fn ended(state: &mut ReviewState, context: &Context, id: u64) -> Vec<Reaction> {
    let Some(comparison) = state.comparison(id) else { return Vec::new() };
    if comparison.is_void() {
        comparison.wanted = None;
    }
    let Some(verdict) = comparison.judge(context.now.wall) else { return Vec::new() };
    state.verdicts.push(verdict.clone());
    state.recount();
    let mut reactions = vec![Reaction::from(ReviewEffect::Save(Box::new(verdict)))];
    if state.hurried.take() == Some(id) {
        reactions.extend(next(state, context));
    }
    reactions
}

pub(super) fn note(state: &ReviewState) -> Vec<Reaction> {
    let Some(comparison) = state.current() else { return Vec::new() };
    vec![Reaction::Prompt(Prompt {
        title: "Note".to_owned(),
        initial: comparison.note.clone(),
        hint: "kept with the verdict".to_owned(),
        question: Question::from(ReviewQuestion::Note(comparison.id)),
    })]
}

/// Everything known about both sides.
pub(super) fn details(state: &ReviewState) -> Vec<Reaction> {
    let Some(comparison) = state.current().filter(|comparison| comparison.is_named()) else {
        return Vec::new();
    };
    let mut text = String::new();
    for (place, answer) in ["left", "right"].into_iter().zip(&comparison.answers) {
        describe(&mut text, place, answer, comparison);
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "seed      {} on both sides", comparison.seed);
    if !comparison.note.is_empty() {
        let _ = writeln!(text, "note      {}", comparison.note);
    }
    let message = Message {
        title: comparison.target.name(),
        text: text.trim_end().to_owned(),
        severity: Severity::Note,
    };
    vec![Reaction::Message(message)]
}

fn describe(text: &mut String, place: &str, answer: &Answer, comparison: &Comparison) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{place:<9} {}", words::name(answer.who, comparison));
    let Some(end) = &answer.end else { return };
    let _ = writeln!(text, "weights   {}", end.weights);
    let proof = if end.is_proved() { "the same" } else { &end.expected };
    let _ = writeln!(text, "asked     {proof}");
    let _ = writeln!(
        text,
        "answer    {} in {:.1} s, {}",
        units::counted(end.tokens, "token", "tokens"),
        end.seconds,
        words::reason(end.reason)
    );
    match &end.score {
        None => {}
        Some(Err(problem)) => {
            let _ = writeln!(text, "score     {problem}");
        }
        Some(Ok(score)) => {
            let passed = if score.passed { "passes" } else { "fails" };
            let reason = score.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            let _ = writeln!(text, "score     {passed}{reason}");
            for (name, value) in &score.details {
                let _ = writeln!(text, "          {name} {}", units::percent(*value));
            }
        }
    }
    text.push('\n');
}

/// Opens the better answer in the editor.
pub(super) fn edit(state: &mut ReviewState) -> Vec<Reaction> {
    let Some(comparison) = state.current() else { return Vec::new() };
    let (id, reply) = (comparison.id, comparison.answers[comparison.editable()].reply.clone());
    state.draft = Some(Draft::Answer(id));
    vec![Reaction::from(ReviewEffect::Draft(reply))]
}

/// The editor returned `text` as the right answer: asks whether to add it to the training data.
pub(super) fn edited(state: &mut ReviewState, context: &Context, id: u64, text: &str) -> Vec<Reaction> {
    let file = match training_file(context) {
        Ok(file) => file,
        Err(problem) => return vec![Reaction::Flash(Severity::Warning, problem)],
    };
    let Some(comparison) = state.comparison(id) else { return Vec::new() };
    if text.is_empty() {
        return vec![Reaction::Flash(Severity::Note, "the answer is empty: nothing was added".to_owned())];
    }
    // Verdicts are append-only: the edit is a record of its own and judges nothing.
    let mut verdict = comparison.verdict(VerdictChoice::Skip, context.now.wall);
    verdict.note = String::new();
    verdict.edited = Some(text.to_owned());
    vec![Reaction::Confirm(Confirm {
        title: format!("Add a row to {}?", file.display()),
        lines: vec![
            format!("prompt  {}", fit(comparison.prompt.text(), SHOWN)),
            format!("reply   {}", fit(text, SHOWN)),
            "The next run trains on it, and the export prefers it to both answers.".to_owned(),
            "A run that is resumed later finds its data changed.".to_owned(),
        ],
        yes: "Add".to_owned(),
        question: Question::from(ReviewQuestion::AddExample(Box::new(verdict))),
    })]
}

/// Adds the edited answer to the training data and keeps it with the verdicts.
pub(super) fn add_example(state: &mut ReviewState, context: &Context, verdict: Verdict) -> Vec<Reaction> {
    let (Ok(file), Some(reply)) = (training_file(context), verdict.edited.clone()) else { return Vec::new() };
    let asked = state.comparisons.iter().find(|comparison| comparison.asked == verdict.prompt);
    // The prompt as in the suite: training puts the system prompt of the settings before it.
    let prompt =
        asked.map_or_else(|| verdict.prompt.clone(), |comparison| comparison.prompt.messages.clone());
    let messages = prompt.into_iter().chain([ChatMessage::new("assistant", reply)]).collect();
    state.verdicts.push(verdict.clone());
    state.recount();
    vec![
        Reaction::from(ReviewEffect::AddExample { file, messages }),
        Reaction::from(ReviewEffect::Save(Box::new(verdict))),
    ]
}

/// The first file of the training data, if rows can be added to it.
fn training_file(context: &Context) -> Result<PathBuf, String> {
    use luthier_core::config::Format;
    let config = context.config.as_ref().ok_or("luthier.toml has mistakes; `space e` opens it")?;
    if !matches!(config.data.format, Format::Auto | Format::Messages) || !config.data.columns.is_empty() {
        return Err("rows can be added to `messages` data without data.columns only".to_owned());
    }
    let lines = |file: &&PathBuf| Path::new(file).extension().is_some_and(|end| end == "jsonl");
    config
        .data
        .train
        .iter()
        .map(|source| &source.path)
        .find(lines)
        .cloned()
        .ok_or_else(|| "rows can be added to a .jsonl file only, and data.train names none".to_owned())
}
