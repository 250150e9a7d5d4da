//! How open boxes react, and how their answers find their way back.

use super::layers::{Chooser, Layer, palette_commands};
use super::{App, AppQuestion, Effect, Ending, Input, Question, SettingsEffect, Severity, TerminalEffect};
use crate::command::{AppCommand, Command, InputCommand, ListCommand, ModalCommand, ViewCommand};
use crate::panes::{PaneId, data, review, sweep, train};

/// What a box was answered with.
enum Answer {
    Yes,
    Text(String),
    Choice(usize),
}

impl Answer {
    fn into_input<E, Q>(self, question: Q) -> Input<E, Q> {
        match self {
            Self::Yes => Input::Confirmed(question),
            Self::Text(text) => Input::Entered(question, text),
            Self::Choice(chosen) => Input::Picked(question, chosen),
        }
    }
}

impl App {
    /// Lets the box that was taken off the stack handle `command`; puts it back unless that closed it.
    pub(super) fn run_in_layer(&mut self, mut layer: Layer, command: Command, effects: &mut Vec<Effect>) {
        match command {
            Command::App(AppCommand::Suspend) => effects.push(Effect::Terminal(TerminalEffect::Suspend)),
            Command::App(AppCommand::Redraw) => effects.push(Effect::Terminal(TerminalEffect::Redraw)),
            Command::App(AppCommand::Interrupt)
            | Command::View(ViewCommand::Back)
            | Command::Input(InputCommand::Cancel)
            | Command::Modal(ModalCommand::No) => return,
            Command::App(AppCommand::Help) if matches!(layer, Layer::Help(_)) => return,
            Command::App(AppCommand::Palette) if matches!(layer, Layer::Palette(_)) => return,
            Command::Modal(ModalCommand::Yes) => {
                if let Layer::Confirm(asked) = layer {
                    self.answer(asked.confirm.question, Answer::Yes, effects);
                    return;
                }
            }
            Command::Input(InputCommand::Accept) | Command::List(ListCommand::Open) => {
                self.accept(layer, effects);
                return;
            }
            Command::Input(InputCommand::Editor) => {
                if let Layer::Prompt(..) = layer {
                    self.messages.push(Severity::Note, "the editor is for longer texts", self.context.now);
                }
            }
            Command::Input(command) => match &mut layer {
                Layer::Prompt(_, line) => {
                    line.apply(command);
                }
                other => {
                    if let Some(chooser) = other.chooser() {
                        apply_to_chooser(chooser, command);
                    }
                }
            },
            Command::List(ListCommand::Left | ListCommand::Right)
            | Command::View(ViewCommand::FocusNext | ViewCommand::FocusPrevious) => {
                if let Layer::Confirm(asked) = &mut layer {
                    asked.yes = !asked.yes;
                }
            }
            Command::List(command) => {
                if let Some(scroll) = layer.scroll() {
                    scroll.apply(command);
                }
            }
            _ => {}
        }
        self.layers.push(layer);
    }

    /// Enter in a box; closes it.
    fn accept(&mut self, layer: Layer, effects: &mut Vec<Effect>) {
        match layer {
            Layer::Palette(chooser) => {
                if let Some(command) = chooser.chosen().and_then(|chosen| palette_commands().nth(chosen)) {
                    self.run(command, effects);
                }
            }
            Layer::Confirm(asked) => {
                if asked.yes {
                    self.answer(asked.confirm.question, Answer::Yes, effects);
                }
            }
            Layer::Prompt(prompt, line) => {
                self.answer(prompt.question, Answer::Text(line.value().to_owned()), effects);
            }
            Layer::Pick(pick, chooser) => {
                if let Some(chosen) = chooser.chosen() {
                    self.answer(pick.question, Answer::Choice(chosen), effects);
                }
            }
            Layer::Help(_) | Layer::Messages(_) | Layer::Message(..) => {}
        }
    }

    fn answer(&mut self, question: Question, answer: Answer, effects: &mut Vec<Effect>) {
        let (pane, reactions) = match question {
            Question::App(question) => {
                self.answer_own(question, answer, effects);
                return;
            }
            Question::Data(question) => {
                let input = answer.into_input(question);
                (PaneId::Data, data::update(&mut self.panes.data, &self.context, input))
            }
            Question::Train(question) => {
                let input = answer.into_input(question);
                (PaneId::Train, train::update(&mut self.panes.train, &self.context, input))
            }
            Question::Sweep(question) => {
                let input = answer.into_input(question);
                (PaneId::Sweep, sweep::update(&mut self.panes.sweep, &self.context, input))
            }
            Question::Review(question) => {
                let input = answer.into_input(question);
                (PaneId::Review, review::update(&mut self.panes.review, &self.context, input))
            }
        };
        self.react(pane, reactions, effects);
    }

    fn answer_own(&mut self, question: AppQuestion, answer: Answer, effects: &mut Vec<Effect>) {
        match (question, answer) {
            (AppQuestion::Quit, Answer::Yes) => {
                effects.push(Effect::Terminal(TerminalEffect::Quit(Ending::Left)));
            }
            (AppQuestion::Theme(names), Answer::Choice(chosen)) => {
                if let Some(name) = names.into_iter().nth(chosen) {
                    self.theme_wanted.clone_from(&name);
                    let hint = format!("to keep it: theme = \"{name}\" under [ui] in luthier.toml");
                    self.messages.push(Severity::Note, &hint, self.context.now);
                    effects.push(Effect::Settings(SettingsEffect::LoadTheme(name)));
                }
            }
            (AppQuestion::Quit | AppQuestion::Theme(_), _) => {}
        }
    }
}

fn apply_to_chooser(chooser: &mut Chooser, command: InputCommand) {
    match command {
        InputCommand::Up => {
            chooser.list.apply(ListCommand::Up);
        }
        InputCommand::Down | InputCommand::Complete => {
            chooser.list.apply(ListCommand::Down);
        }
        _ => {
            if chooser.line.apply(command) {
                chooser.narrow();
            }
        }
    }
}
