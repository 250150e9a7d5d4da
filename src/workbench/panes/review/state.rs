//! What the review pane knows and shows.

use std::path::PathBuf;
use std::time::Duration;

use luthier_core::eval::{Contender, SuitePrompt, Tally, Verdict, VerdictChoice, tally_against};

use super::command::Command;
use super::compare::{Asked, Comparison, Stage};
use super::prompt::PromptField;
use super::target::{Candidate, Target};
use crate::app::Context;
use crate::command::{AppCommand, Command as Any, InputCommand, ListCommand, ViewCommand};
use crate::keymap::KeyContext;
use crate::panes::PaneId;
use crate::ui::layout::WIDE;
use crate::widgets::ListState;

/// Comparisons kept, so that going back to a prompt shows its answers again.
const KEPT: usize = 64;

/// How a prompt of the suite was judged last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This one was better.
    Won(Contender),
    /// None was better.
    Undecided(VerdictChoice),
}

/// What the external editor was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draft {
    /// The prompt being typed.
    Prompt,
    /// The answer of the comparison with this number.
    Answer(u64),
}

/// The state of the review pane.
#[derive(Debug, Default)]
pub struct State {
    /// What there is to compare, newest run first; nothing until read.
    pub candidates: Option<Vec<Candidate>>,
    /// Why that could not be read.
    pub problem: Option<String>,
    /// What is compared.
    pub target: Option<Target>,
    /// What another pane wants compared, until it is known.
    pub linked: Option<(String, Option<u64>)>,
    /// Whether it is compared with the baseline.
    pub baseline: bool,
    /// Whether the sides are named from the start.
    pub named: bool,
    /// The suite; nothing until read, or where there is none.
    pub suite: Option<Vec<SuitePrompt>>,
    /// The suite's file as it was read last.
    pub suite_file: Option<PathBuf>,
    /// Why it could not be read.
    pub suite_problem: Option<String>,
    /// Where the list of the suite's prompts stands.
    pub list: ListState,
    /// A prompt that was typed, in place of the suite's.
    pub typed: Option<SuitePrompt>,
    /// The prompt while it is typed.
    pub typing: Option<PromptField>,
    /// Prompts typed before, oldest first.
    pub history: Vec<String>,
    /// Comparisons so far, oldest first.
    pub comparisons: Vec<Comparison>,
    /// A comparison after whose verdict the next prompt is wanted.
    pub hurried: Option<u64>,
    /// All verdicts of the project, oldest first.
    pub verdicts: Vec<Verdict>,
    /// Verdicts that could not be written.
    pub unwritten: Vec<Verdict>,
    /// What the external editor was opened for.
    pub draft: Option<Draft>,
    /// When seconds of waiting are counted next.
    pub tick: Option<Duration>,
    /// How the suite's prompts were judged last, and how the verdicts stand; see [`State::recount`].
    pub outcomes: Vec<Option<Outcome>>,
    /// See [`State::recount`].
    pub tally: Tally,
    last_id: u64,
}

impl State {
    /// Whom the tuned side is compared with.
    pub fn opponent(&self) -> Contender {
        if self.baseline { Contender::Baseline } else { Contender::Base }
    }

    /// The prompt shown: the typed one, or the selected one of the suite.
    pub fn prompt(&self) -> Option<&SuitePrompt> {
        let of_suite = || self.list.selected().and_then(|index| self.suite.as_ref()?.get(index));
        self.typed.as_ref().or_else(of_suite)
    }

    /// The newest comparison of what is chosen, on the prompt shown.
    pub fn current(&self) -> Option<&Comparison> {
        let (target, prompt, opponent) = (self.target.as_ref()?, self.prompt()?, self.opponent());
        self.comparisons.iter().rev().find(|comparison| {
            comparison.target.is_same(target)
                && comparison.opponent == opponent
                && comparison.prompt.messages == prompt.messages
        })
    }

    /// See [`State::current`].
    pub fn current_mut(&mut self) -> Option<&mut Comparison> {
        let id = self.current()?.id;
        self.comparison(id)
    }

    /// The comparison with a number.
    pub fn comparison(&mut self, id: u64) -> Option<&mut Comparison> {
        self.comparisons.iter_mut().find(|comparison| comparison.id == id)
    }

    /// The comparison whose answers are awaited.
    pub fn under_way(&self) -> Option<&Comparison> {
        self.comparisons.iter().find(|comparison| comparison.is_under_way())
    }

    /// Begins a comparison of what is chosen, on the prompt shown.
    pub fn begin(&mut self, seed: u64, now: Duration) -> Option<&Comparison> {
        let (target, prompt) = (self.target.clone()?, self.prompt()?.clone());
        let opponent = self.opponent();
        let asked = self.comparisons.iter().filter(|comparison| {
            comparison.target.is_same(&target)
                && comparison.opponent == opponent
                && comparison.prompt.messages == prompt.messages
        });
        // Earlier visits are known by their verdicts. It only matters that the number goes up.
        let judged = self.verdicts.iter().filter(|verdict| {
            verdict.run == target.run
                && verdict.prompt.last().is_some_and(|last| last.content == prompt.text())
        });
        let attempt = (asked.count() + judged.count()) as u64;
        self.last_id += 1;
        let asked = Asked { target, opponent, prompt, attempt, seed, blind: !self.named };
        if self.comparisons.len() == KEPT {
            self.comparisons.remove(0);
        }
        self.comparisons.push(Comparison::new(self.last_id, asked, now));
        self.comparisons.last()
    }

    /// Counts the verdicts on the chosen models again.
    pub fn recount(&mut self) {
        let opponent = self.opponent();
        let Some(target) = self.target.clone() else {
            self.tally = Tally { p: 1.0, ..Tally::default() };
            self.outcomes = Vec::new();
            return;
        };
        let counts = |verdict: &&Verdict| {
            verdict.run == target.run
                && verdict.checkpoint == target.step
                && verdict.is_between(Contender::Tuned, opponent)
                && verdict.blind != self.named
                && verdict.edited.is_none()
        };
        let counted: Vec<&Verdict> = self.verdicts.iter().filter(counts).collect();
        self.tally = tally_against(counted.iter().copied(), opponent);
        let outcome = |prompt: &SuitePrompt| {
            let asked =
                |verdict: &&&Verdict| verdict.prompt.last().is_some_and(|last| last.content == prompt.text());
            counted
                .iter()
                .rev()
                .find(asked)
                .map(|verdict| verdict.winner().map_or(Outcome::Undecided(verdict.choice), Outcome::Won))
        };
        self.outcomes = self.suite.iter().flatten().map(outcome).collect();
    }

    /// Everything that can be compared, newest run first.
    pub fn targets(&self) -> Vec<Target> {
        self.candidates.iter().flatten().flat_map(Candidate::targets).collect()
    }
}

/// The key contexts active now, nearest first; the global one is added by the shell.
pub fn contexts(state: &State, _context: &Context) -> Vec<KeyContext> {
    if state.typing.is_some() {
        return vec![KeyContext::Input];
    }
    vec![KeyContext::Review, KeyContext::List]
}

/// The commands worth a place in the footer now, most useful first.
pub fn hints(state: &State, context: &Context) -> Vec<Any> {
    use Command::{
        Again, Ask, Baseline, BothBad, Choose, Details, Edit, Export, Left, Names, Note, Right, Skip, Tie,
        Type,
    };
    use InputCommand::{Accept, Cancel, Editor, Newline, Up};
    if state.typing.is_some() {
        return [Accept, Newline, Editor, Up, Cancel].map(Any::Input).to_vec();
    }
    if state.target.is_none() {
        return vec![Any::App(AppCommand::Show(PaneId::Train)), Any::Review(Type)];
    }
    let current = state.current();
    let judgeable = current.is_some_and(|comparison| {
        comparison.choice.is_none() && (comparison.is_under_way() || comparison.stage == Stage::Complete)
    });
    let first = if judgeable { &[Left, Right, Tie, BothBad, Skip, Note][..] } else { &[Ask] };
    let mut hints: Vec<Any> = first.iter().copied().map(Any::Review).collect();
    if state.under_way().is_some() {
        hints.push(Any::View(ViewCommand::Back));
    }
    hints.extend([Edit, Type, Choose, Baseline, Details, Again, Export, Names].map(Any::Review));
    hints.push(Any::View(ViewCommand::Search));
    hints.retain(|command| unavailable(state, context, *command).is_none());
    hints
}

/// Why `command` cannot be done now, or nothing if it can.
pub fn unavailable(state: &State, context: &Context, command: Any) -> Option<String> {
    let nothing = || {
        state.target.is_none().then(|| {
            "there is no run to compare yet; `2` shows the runs, and `n` starts one there".to_owned()
        })
    };
    match command {
        Any::Review(command) => nothing_or(state, context, command, nothing()),
        Any::List(ListCommand::Open) => nothing_or(state, context, Command::Ask, nothing()),
        Any::View(ViewCommand::Search) => {
            let prompts = state.suite.as_ref().map_or(0, Vec::len);
            (prompts == 0).then(|| "there is no suite to search".to_owned())
        }
        _ => None,
    }
}

fn nothing_or(state: &State, context: &Context, command: Command, nothing: Option<String>) -> Option<String> {
    let current = state.current();
    let judged = |choice| match current {
        Some(comparison) => comparison.unjudgeable(choice),
        None => Some("nothing is answered yet; ↵ asks both".to_owned()),
    };
    match command {
        Command::Ask => nothing
            .or_else(|| state.prompt().is_none().then(|| "there is no prompt yet; `i` types one".to_owned())),
        Command::Left => nothing.or_else(|| judged(VerdictChoice::Left)),
        Command::Right => nothing.or_else(|| judged(VerdictChoice::Right)),
        Command::Tie => nothing.or_else(|| judged(VerdictChoice::Tie)),
        Command::BothBad => nothing.or_else(|| judged(VerdictChoice::BothBad)),
        Command::Skip => nothing.or_else(|| judged(VerdictChoice::Skip)),
        Command::Note => match current {
            None => Some("nothing is asked yet".to_owned()),
            Some(comparison) if comparison.choice.is_some() => {
                Some("the verdict is written; write a note before you judge".to_owned())
            }
            Some(_) => None,
        },
        Command::Again => nothing.or_else(|| match current {
            None => Some("nothing is asked yet; ↵ asks both".to_owned()),
            Some(comparison) if comparison.is_under_way() => {
                Some("the answers are still being written; esc gives them up".to_owned())
            }
            Some(comparison) if comparison.stage == Stage::Complete => None,
            Some(_) => Some("there are no answers; ↵ asks both".to_owned()),
        }),
        Command::Details => match current {
            None => Some("nothing is asked yet".to_owned()),
            Some(comparison) => {
                (!comparison.is_named()).then(|| "the sides are hidden until you judge".to_owned())
            }
        },
        Command::Edit => match current {
            Some(comparison) if comparison.choice.is_some() => None,
            _ => Some("judge the answers first: the better one is edited".to_owned()),
        },
        Command::Baseline => {
            let set = context.config.as_ref().is_some_and(|config| !config.review.baseline_system.is_empty());
            (!set && !state.baseline)
                .then(|| "there is no baseline: review.baseline_system in luthier.toml is empty".to_owned())
        }
        Command::Export => {
            let written = state
                .verdicts
                .iter()
                .any(|verdict| verdict.preferred().is_some() || verdict.edited.is_some());
            (!written).then(|| "no verdict prefers an answer yet".to_owned())
        }
        Command::Choose => nothing,
        Command::Names | Command::Type => None,
    }
}

/// What the right end of the header says instead of the machine's state.
pub fn status(state: &State, context: &Context) -> Option<String> {
    let target = state.target.as_ref()?;
    let current = state.current();
    let sides = match current {
        Some(comparison) if comparison.choice.is_some() => "judged",
        _ if state.named => "named",
        _ => "blind",
    };
    let wide = context.size.width >= WIDE;
    let prompt = match (&state.typed, state.list.selected()) {
        (Some(_), _) => Some("typed".to_owned()),
        (None, Some(index)) if wide => Some(format!("prompt {}/{}", index + 1, state.list.length())),
        (None, Some(index)) => Some(format!("{}/{}", index + 1, state.list.length())),
        (None, None) => None,
    };
    let target = if wide { target.name() } else { target.place() };
    let parts: Vec<String> = [Some(sides.to_owned()), prompt, Some(target)].into_iter().flatten().collect();
    Some(parts.join(" · "))
}

/// When the pane next wants `Input::Deadline`, in time since the workbench opened. Asked only while it is shown.
pub fn deadline(state: &State, _context: &Context) -> Option<Duration> {
    state.tick
}

/// What would be lost if the workbench were left now, a line each.
pub fn unsaved(state: &State) -> Vec<String> {
    match state.unwritten.len() {
        0 => Vec::new(),
        1 => vec!["A verdict could not be written to verdicts.jsonl; `R` in Review tries again.".to_owned()],
        count => vec![format!(
            "{count} verdicts could not be written to verdicts.jsonl; `R` in Review tries again."
        )],
    }
}
