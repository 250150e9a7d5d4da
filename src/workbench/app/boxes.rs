//! How open boxes handle commands, and how a reply goes back to the asker: the workbench or a pane.

use super::layers::{Chooser, Layer, PromptBox, Standing, palette_commands};
use super::{
    App, AppQuestion, Effect, Ending, Entry, Question, Reaction, Reply, SettingsEffect, Severity,
    TerminalEffect,
};
use crate::command::{AppCommand, Command, InputCommand, ListCommand, ModalCommand, ViewCommand};
use crate::panes::PaneId;
use crate::widgets::Scroll;

impl App {
    /// Lets a box that was popped off the stack handle `command`; pushes it back unless the command closed it.
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
                    self.answer(asked.confirm.question, Reply::Yes, effects);
                    return;
                }
            }
            Command::Input(InputCommand::Accept) | Command::List(ListCommand::Open) => {
                self.accept(layer, effects);
                return;
            }
            Command::Input(InputCommand::Editor) => {
                if let Layer::Prompt(..) = layer {
                    self.messages.push(
                        Severity::Note,
                        "the editor is only for longer texts",
                        self.context.now,
                    );
                }
            }
            Command::Input(command) => match &mut layer {
                Layer::Prompt(asked) => {
                    if let Some(line) = asked.typed() {
                        line.apply(command);
                    }
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

    /// Handles enter in a box; closes it unless nothing was chosen or the answer must be checked first.
    fn accept(&mut self, layer: Layer, effects: &mut Vec<Effect>) {
        match layer {
            // Nothing matches: keep the box open so that the text can be corrected.
            Layer::Palette(ref chooser) | Layer::Pick(_, ref chooser) if chooser.chosen().is_none() => {
                self.layers.push(layer);
            }
            Layer::Palette(chooser) => {
                if let Some(command) = chooser.chosen().and_then(|chosen| palette_commands().nth(chosen)) {
                    self.run(command, effects);
                }
            }
            Layer::Confirm(asked) => {
                if asked.yes {
                    self.answer(asked.confirm.question, Reply::Yes, effects);
                }
            }
            Layer::Prompt(asked) => self.enter(asked, effects),
            Layer::Pick(pick, chooser) => {
                if let Some(chosen) = chooser.chosen() {
                    self.answer(pick.question, Reply::Choice(chosen), effects);
                }
            }
            Layer::Help(_) | Layer::Messages(_) | Layer::Message(..) => {}
        }
    }

    /// Gives the pane the text entered; the box closes unless the pane keeps it open.
    fn enter(&mut self, mut asked: PromptBox, effects: &mut Vec<Effect>) {
        if asked.is_checked() {
            self.layers.push(Layer::Prompt(asked));
            return;
        }
        let question = asked.prompt.question.clone();
        let reply = Reply::Text(asked.line.value().to_owned());
        let Some((pane, reactions)) = self.reactions_to(question, reply, effects) else { return };
        let kept = |reaction: &Reaction| {
            matches!(reaction, Reaction::Entry(question, Entry::Checked | Entry::Refused(_))
                if *question == asked.prompt.question)
        };
        if reactions.iter().any(kept) {
            asked.standing = Standing::Checked;
            self.layers.push(Layer::Prompt(asked));
        }
        self.react(pane, reactions, effects);
    }

    /// Applies a pane's decision about the text entered for `question`.
    pub(super) fn judge_entry(&mut self, question: &Question, entry: Entry) {
        let asked = self
            .layers
            .iter()
            .position(|layer| matches!(layer, Layer::Prompt(asked) if asked.awaits(question)));
        match (asked, entry) {
            (Some(position), Entry::Taken) => drop(self.layers.remove(position)),
            (Some(position), Entry::Refused(reason)) => {
                if let Some(Layer::Prompt(asked)) = self.layers.get_mut(position) {
                    asked.standing = Standing::Refused(reason);
                }
            }
            (None, Entry::Refused(reason)) if reason.text.contains('\n') => {
                self.layers.push(Layer::Message(reason, Scroll::default()));
            }
            (None, Entry::Refused(reason)) => {
                self.messages.push(reason.severity, &reason.text, self.context.now);
            }
            (_, Entry::Checked) | (None, Entry::Taken) => {}
        }
    }

    fn answer(&mut self, question: Question, reply: Reply, effects: &mut Vec<Effect>) {
        if let Some((pane, reactions)) = self.reactions_to(question, reply, effects) {
            self.react(pane, reactions, effects);
        }
    }

    /// What the pane that asked does with the reply; nothing where the workbench itself asked.
    fn reactions_to(
        &mut self,
        question: Question,
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) -> Option<(PaneId, Vec<Reaction>)> {
        match question {
            Question::App(question) => {
                self.answer_own(question, reply, effects);
                None
            }
            Question::Pane(question) => {
                let pane = question.pane();
                Some((pane, self.panes.replied(&self.context, question, reply)))
            }
        }
    }

    fn answer_own(&mut self, question: AppQuestion, reply: Reply, effects: &mut Vec<Effect>) {
        match (question, reply) {
            (AppQuestion::Quit, Reply::Yes) => {
                effects.push(Effect::Terminal(TerminalEffect::Quit(Ending::Left)));
            }
            (AppQuestion::Theme(names), Reply::Choice(chosen)) => {
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
