//! What the review pane knows and shows.

use std::path::PathBuf;
use std::time::Duration;

use luthier_core::eval::{Contender, SuitePrompt, Tally, Verdict, VerdictChoice, tally_against};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::command::{COMMANDS, ReviewCommand};
use super::compare::{Asked, Comparison, Stage};
use super::effect::ReviewEffect;
use super::event::ReviewEvent;
use super::prompt::PromptField;
use super::question::ReviewQuestion;
use super::target::{Candidate, Target};
use super::{update, view};
use crate::app::{Context, Input, Reaction, Reply};
use crate::command::{AppCommand, Command, Entry, InputCommand, ListCommand, ViewCommand};
use crate::keymap::KeyContext;
use crate::panes::{Pane, PaneCommand, PaneId, PaneTypes};
use crate::theme::Theme;
use crate::ui::layout::WIDE;
use crate::widgets::ListState;

/// Comparisons kept, so that going back to a prompt shows its answers again.
const KEPT: usize = 64;

/// How a prompt of the suite was judged last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This one was better.
    Won(Contender),
    /// Neither was better.
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

#[derive(Debug, Default)]
pub struct ReviewState {
    /// What there is to compare, newest run first; nothing until read.
    pub candidates: Option<Vec<Candidate>>,
    /// Why that could not be read.
    pub problem: Option<String>,
    pub target: Option<Target>,
    /// What another pane asked to compare, until the candidates are read.
    pub linked: Option<(String, Option<u64>)>,
    /// Whether it is compared with the baseline.
    pub baseline: bool,
    /// Whether the sides are named from the start.
    pub named: bool,
    /// The suite; nothing until read, or if there is none.
    pub suite: Option<Vec<SuitePrompt>>,
    /// The suite's file as it was read last.
    pub suite_file: Option<PathBuf>,
    /// Why it could not be read.
    pub suite_problem: Option<String>,
    /// Selection in the list of the suite's prompts.
    pub list: ListState,
    /// A prompt that was typed, in place of the suite's.
    pub typed: Option<SuitePrompt>,
    /// The prompt while it is typed.
    pub typing: Option<PromptField>,
    /// Prompts typed before, oldest first.
    pub history: Vec<String>,
    /// Comparisons so far, oldest first.
    pub comparisons: Vec<Comparison>,
    /// The comparison whose verdict is followed by the next prompt.
    pub hurried: Option<u64>,
    /// All verdicts of the project, oldest first.
    pub verdicts: Vec<Verdict>,
    /// Verdicts that could not be written.
    pub unwritten: Vec<Verdict>,
    pub draft: Option<Draft>,
    /// When seconds of waiting are counted next.
    pub tick: Option<Duration>,
    /// The last verdict on each of the suite's prompts; see [`ReviewState::recount`].
    pub outcomes: Vec<Option<Outcome>>,
    /// See [`ReviewState::recount`].
    pub tally: Tally,
    last_id: u64,
}

impl ReviewState {
    /// Who the tuned side is compared with.
    pub fn opponent(&self) -> Contender {
        if self.baseline { Contender::Baseline } else { Contender::Base }
    }

    /// The prompt shown: the typed one, or the selected one of the suite.
    pub fn prompt(&self) -> Option<&SuitePrompt> {
        let of_suite = || self.list.selected().and_then(|index| self.suite.as_ref()?.get(index));
        self.typed.as_ref().or_else(of_suite)
    }

    /// The newest comparison of the chosen target on the prompt shown.
    pub fn current(&self) -> Option<&Comparison> {
        let (target, prompt, opponent) = (self.target.as_ref()?, self.prompt()?, self.opponent());
        self.comparisons.iter().rev().find(|comparison| {
            comparison.target.is_same(target)
                && comparison.opponent == opponent
                && comparison.prompt.messages == prompt.messages
        })
    }

    /// See [`ReviewState::current`].
    pub fn current_mut(&mut self) -> Option<&mut Comparison> {
        let id = self.current()?.id;
        self.comparison(id)
    }

    pub fn comparison(&mut self, id: u64) -> Option<&mut Comparison> {
        self.comparisons.iter_mut().find(|comparison| comparison.id == id)
    }

    /// The comparison whose answers are awaited.
    pub fn under_way(&self) -> Option<&Comparison> {
        self.comparisons.iter().find(|comparison| comparison.is_under_way())
    }

    /// Begins a comparison of the chosen target on the prompt shown.
    pub fn begin(&mut self, seed: u64, now: Duration) -> Option<&Comparison> {
        let (target, prompt) = (self.target.clone()?, self.prompt()?.clone());
        let opponent = self.opponent();
        let asked = self.comparisons.iter().filter(|comparison| {
            comparison.target.is_same(&target)
                && comparison.opponent == opponent
                && comparison.prompt.messages == prompt.messages
        });
        // Earlier sessions are known by their verdicts; it is enough that the number grows.
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

impl Pane for ReviewState {
    fn update(&mut self, context: &Context, input: Input) -> Vec<Reaction> {
        update::update(self, context, input)
    }

    fn view(&self, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
        view::view(self, context, area, buffer, theme);
    }

    fn contexts(&self, _context: &Context) -> Vec<KeyContext> {
        if self.typing.is_some() {
            return vec![KeyContext::Input];
        }
        vec![KeyContext::Pane(PaneId::Review), KeyContext::List]
    }

    fn hints(&self, context: &Context) -> Vec<Command> {
        use InputCommand::{Accept, Cancel, Editor, Newline, Up};
        use ReviewCommand::{
            Again, Ask, Baseline, BothBad, Choose, Details, Edit, Export, Left, Names, Note, Right, Skip,
            Tie, Type,
        };
        if self.typing.is_some() {
            return [Accept, Newline, Editor, Up, Cancel].map(Command::Input).to_vec();
        }
        if self.target.is_none() {
            return vec![Command::App(AppCommand::Show(PaneId::Train)), Command::from(Type)];
        }
        let current = self.current();
        let judgeable = current.is_some_and(|comparison| {
            comparison.choice.is_none() && (comparison.is_under_way() || comparison.stage == Stage::Complete)
        });
        let first = if judgeable { &[Left, Right, Tie, BothBad, Skip, Note][..] } else { &[Ask] };
        let mut hints: Vec<Command> = first.iter().copied().map(Command::from).collect();
        if self.under_way().is_some() {
            hints.push(Command::View(ViewCommand::Back));
        }
        hints.extend([Edit, Type, Choose, Baseline, Details, Again, Export, Names].map(Command::from));
        hints.push(Command::View(ViewCommand::Search));
        hints.retain(|command| self.unavailable(context, *command).is_none());
        hints
    }

    fn unavailable(&self, context: &Context, command: Command) -> Option<String> {
        let nothing = || {
            self.target.is_none().then(|| {
                "there is no run to compare yet; `2` shows the runs, and `n` starts one there".to_owned()
            })
        };
        match command {
            Command::Pane(PaneCommand::Review(command)) => nothing_or(self, context, command, nothing()),
            Command::List(ListCommand::Open) => nothing_or(self, context, ReviewCommand::Ask, nothing()),
            Command::View(ViewCommand::Search) => {
                let prompts = self.suite.as_ref().map_or(0, Vec::len);
                (prompts == 0).then(|| "there is no suite to search".to_owned())
            }
            _ => None,
        }
    }

    fn status(&self, context: &Context) -> Option<String> {
        let target = self.target.as_ref()?;
        let current = self.current();
        let sides = match current {
            Some(comparison) if comparison.choice.is_some() => "judged",
            _ if self.named => "named",
            _ => "blind",
        };
        let wide = context.size.width >= WIDE;
        let prompt = match (&self.typed, self.list.selected()) {
            (Some(_), _) => Some("typed".to_owned()),
            (None, Some(index)) if wide => Some(format!("prompt {}/{}", index + 1, self.list.length())),
            (None, Some(index)) => Some(format!("{}/{}", index + 1, self.list.length())),
            (None, None) => None,
        };
        let target = if wide { target.name() } else { target.place() };
        let parts: Vec<String> =
            [Some(sides.to_owned()), prompt, Some(target)].into_iter().flatten().collect();
        Some(parts.join(" · "))
    }

    fn deadline(&self, _context: &Context) -> Option<Duration> {
        self.tick
    }

    fn unsaved(&self) -> Vec<String> {
        match self.unwritten.len() {
            0 => Vec::new(),
            1 => vec![
                "A verdict could not be written to verdicts.jsonl; `R` in Review tries again.".to_owned(),
            ],
            count => vec![format!(
                "{count} verdicts could not be written to verdicts.jsonl; `R` in Review tries again."
            )],
        }
    }
}

impl PaneTypes for ReviewState {
    type Command = ReviewCommand;
    type Effect = ReviewEffect;
    type Event = ReviewEvent;
    type Question = ReviewQuestion;

    const COMMANDS: &[Entry<ReviewCommand>] = COMMANDS;

    fn answered(&mut self, context: &Context, event: ReviewEvent) -> Vec<Reaction> {
        update::answered(self, context, event)
    }

    fn replied(&mut self, context: &Context, question: ReviewQuestion, reply: Reply) -> Vec<Reaction> {
        update::replied(self, context, question, reply)
    }
}

fn nothing_or(
    state: &ReviewState,
    context: &Context,
    command: ReviewCommand,
    nothing: Option<String>,
) -> Option<String> {
    let current = state.current();
    let judged = |choice| match current {
        Some(comparison) => comparison.unjudgeable(choice),
        None => Some("there are no answers yet; ↵ asks both".to_owned()),
    };
    match command {
        ReviewCommand::Ask => nothing
            .or_else(|| state.prompt().is_none().then(|| "there is no prompt yet; `i` types one".to_owned())),
        ReviewCommand::Left => nothing.or_else(|| judged(VerdictChoice::Left)),
        ReviewCommand::Right => nothing.or_else(|| judged(VerdictChoice::Right)),
        ReviewCommand::Tie => nothing.or_else(|| judged(VerdictChoice::Tie)),
        ReviewCommand::BothBad => nothing.or_else(|| judged(VerdictChoice::BothBad)),
        ReviewCommand::Skip => nothing.or_else(|| judged(VerdictChoice::Skip)),
        ReviewCommand::Note => match current {
            None => Some("nothing has been asked yet".to_owned()),
            Some(comparison) if comparison.choice.is_some() => {
                Some("the verdict is saved already; write the note before judging".to_owned())
            }
            Some(_) => None,
        },
        ReviewCommand::Again => nothing.or_else(|| match current {
            None => Some("nothing has been asked yet; ↵ asks both".to_owned()),
            Some(comparison) if comparison.is_under_way() => {
                Some("the answers are still being written; esc cancels them".to_owned())
            }
            Some(comparison) if comparison.stage == Stage::Complete => None,
            Some(_) => Some("there are no answers; ↵ asks both".to_owned()),
        }),
        ReviewCommand::Details => match current {
            None => Some("nothing has been asked yet".to_owned()),
            Some(comparison) => {
                (!comparison.is_named()).then(|| "the sides are hidden until you judge".to_owned())
            }
        },
        ReviewCommand::Edit => match current {
            Some(comparison) if comparison.choice.is_some() => None,
            _ => Some("judge the answers first: the better one is edited".to_owned()),
        },
        ReviewCommand::Baseline => {
            let set = context.config.as_ref().is_some_and(|config| !config.review.baseline_system.is_empty());
            (!set && !state.baseline)
                .then(|| "there is no baseline: review.baseline_system in luthier.toml is empty".to_owned())
        }
        ReviewCommand::Export => {
            let written = state
                .verdicts
                .iter()
                .any(|verdict| verdict.preferred().is_some() || verdict.edited.is_some());
            (!written).then(|| "no verdict prefers an answer yet".to_owned())
        }
        ReviewCommand::Choose => nothing,
        ReviewCommand::Names | ReviewCommand::Type => None,
    }
}
