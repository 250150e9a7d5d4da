//! How the workbench reacts to an event.

use std::path::PathBuf;
use std::sync::Arc;

use luthier_core::config::Config;
use luthier_core::text;
use strum::IntoEnumIterator;

use super::layers::{Chooser, ConfirmBox, Layer, PromptBox, palette_candidates};
use super::{
    App, AppQuestion, Confirm, Editing, Effect, Ending, Event, Input, Link, Message, Now, Pick, PickItem,
    Question, Reaction, SettingsEffect, Severity, Tag, TerminalEffect,
};
use crate::command::{AppCommand, Command, ListCommand, ViewCommand};
use crate::keymap::{Key, Lookup};
use crate::panes::{PaneEvent, PaneId};
use crate::widgets::Scroll;

/// Heading of the box with the problems of the settings, and the mark by which that box is found.
const CONFIG_PROBLEM: &str = "luthier.toml";

impl App {
    /// Updates the state after `event` at the time `now` and returns the effects to perform. No IO, no clock.
    pub fn update(&mut self, now: Now, event: Event) -> Vec<Effect> {
        self.context.now = now;
        self.dirty = true;
        let mut effects = Vec::new();
        match event {
            Event::Started => {
                effects.push(Effect::Settings(SettingsEffect::Watch));
                if let Some(problem) = self.context.config_problem.clone() {
                    self.show_config_problem(&problem);
                }
                for pane in PaneId::iter() {
                    self.deliver(pane, Input::Started, &mut effects);
                }
                self.deliver(self.context.pane, Input::Shown, &mut effects);
            }
            Event::Key(key) => {
                self.messages.key_pressed(now);
                self.key(key, &mut effects);
            }
            Event::Paste(pasted) => self.paste(&pasted, &mut effects),
            Event::Resize(size) => self.context.size = size,
            Event::Attention(_) => self.dirty = false,
            Event::Wheel(lines) => self.wheel(lines, &mut effects),
            Event::Deadline => {
                let expired = self.messages.expire(now);
                let due = self.panes[self.context.pane].deadline(&self.context);
                if due.is_some_and(|due| due <= now.elapsed) {
                    let reactions = self.panes[self.context.pane].update(&self.context, Input::Deadline);
                    self.dirty = !reactions.contains(&Reaction::Unchanged) || expired;
                    self.react(self.context.pane, reactions, &mut effects);
                } else {
                    self.dirty = expired;
                }
            }
            Event::Signal(_) => effects.push(Effect::Terminal(TerminalEffect::Quit(Ending::Interrupted))),
            Event::Resumed => effects.push(Effect::Terminal(TerminalEffect::Redraw)),
            Event::Config(read) => self.config_read(*read, &mut effects),
            Event::Theme(theme, warnings) => {
                self.theme = *theme;
                for warning in warnings {
                    self.messages.push(Severity::Warning, &warning, now);
                }
            }
            Event::ThemeNames(names) => self.offer_themes(names),
            Event::Keymap(keymap, problems) => {
                self.keymap = *keymap;
                self.pending.clear();
                if problems.is_empty() {
                    self.messages.push(Severity::Success, "keymap.toml read again", now);
                }
                for problem in problems {
                    self.messages.push(Severity::Warning, &format!("keymap.toml: {problem}"), now);
                }
            }
            Event::Device(line) => {
                self.dirty = self.context.device != line;
                self.context.device = text::clean_line(&line).into_owned();
            }
            Event::Fault(problem) => self.messages.push(Severity::Error, &problem, now),
            Event::EditorClosed(path, outcome) => self.editor_closed(path, outcome, &mut effects),
            Event::Pane(tag, answer) => self.answered(tag, answer, &mut effects),
        }
        effects
    }

    fn key(&mut self, key: Key, effects: &mut Vec<Effect>) {
        self.pending.push(key);
        let contexts = self.contexts();
        match self.keymap.lookup(&contexts, &self.pending) {
            Lookup::Pending => {}
            Lookup::Matched(command) => {
                self.pending.clear();
                self.run(command, effects);
            }
            Lookup::NotFound => {
                let begun = self.pending.len() > 1;
                self.pending.clear();
                // An unknown sequence is dropped whole: its last key must not run something else.
                if !begun {
                    self.unbound(key, effects);
                }
            }
        }
    }

    fn unbound(&mut self, key: Key, effects: &mut Vec<Effect>) {
        match self.layers.last_mut() {
            None => self.deliver(self.context.pane, Input::Key(key), effects),
            Some(Layer::Prompt(asked)) => {
                if let Some(line) = asked.typed() {
                    line.key(key);
                }
            }
            Some(layer) => {
                if let Some(chooser) = layer.chooser()
                    && chooser.line.key(key)
                {
                    chooser.narrow();
                }
            }
        }
    }

    fn paste(&mut self, pasted: &str, effects: &mut Vec<Effect>) {
        // Terminals send line ends as carriage returns.
        let pasted = text::clean(&pasted.replace("\r\n", "\n").replace('\r', "\n")).into_owned();
        match self.layers.last_mut() {
            None => self.deliver(self.context.pane, Input::Paste(pasted), effects),
            Some(Layer::Prompt(asked)) => {
                if let Some(line) = asked.typed() {
                    line.paste(&pasted);
                }
            }
            Some(layer) => {
                if let Some(chooser) = layer.chooser() {
                    chooser.line.paste(&pasted);
                    chooser.narrow();
                }
            }
        }
    }

    fn wheel(&mut self, lines: i16, effects: &mut Vec<Effect>) {
        let command = if lines > 0 { ListCommand::Down } else { ListCommand::Up };
        for _ in 0..lines.unsigned_abs() {
            self.run(Command::List(command), effects);
        }
    }

    pub(super) fn run(&mut self, command: Command, effects: &mut Vec<Effect>) {
        if let Some(reason) = self.unavailable(command) {
            self.messages.push(
                Severity::Note,
                &format!("{}: {reason}", command.entry().label),
                self.context.now,
            );
            return;
        }
        if let Some(layer) = self.layers.pop() {
            self.run_in_layer(layer, command, effects);
            return;
        }
        match command {
            Command::App(command) => self.run_app(command, effects),
            Command::Modal(_) => {}
            _ => {
                if command == Command::View(ViewCommand::Back) {
                    self.messages.dismiss();
                }
                let pane = command.pane().unwrap_or(self.context.pane);
                self.show(pane, effects);
                self.deliver(pane, Input::Command(command), effects);
            }
        }
    }

    fn run_app(&mut self, command: AppCommand, effects: &mut Vec<Effect>) {
        match command {
            AppCommand::Quit | AppCommand::Interrupt => self.leave(effects),
            AppCommand::Help => self.layers.push(Layer::Help(Scroll::default())),
            AppCommand::Palette => self.layers.push(Layer::Palette(Chooser::new(palette_candidates(), 0))),
            AppCommand::Show(pane) => self.show(pane, effects),
            AppCommand::NextPane => self.show(self.context.pane.next(), effects),
            AppCommand::PreviousPane => self.show(self.context.pane.previous(), effects),
            AppCommand::LastPane => self.show(self.last_pane, effects),
            AppCommand::Suspend => effects.push(Effect::Terminal(TerminalEffect::Suspend)),
            AppCommand::Redraw => effects.push(Effect::Terminal(TerminalEffect::Redraw)),
            AppCommand::Messages => {
                let mut scroll = Scroll::default();
                scroll.to_end();
                self.layers.push(Layer::Messages(scroll));
            }
            AppCommand::Theme => effects.push(Effect::Settings(SettingsEffect::ListThemes)),
            AppCommand::EditConfig => {
                self.editing = Some(Editing::Config);
                effects.push(Effect::Terminal(TerminalEffect::Edit(self.context.config_path(), None)));
            }
        }
    }

    /// Gives an answer to its pane, unless a newer effect made it stale.
    fn answered(&mut self, tag: Tag, answer: PaneEvent, effects: &mut Vec<Effect>) {
        let pane = answer.pane();
        if self.generations.is_current(pane, tag) {
            let reactions = self.panes.answered(&self.context, answer);
            // A hidden pane changes the screen only through the shell.
            self.dirty = reactions.iter().any(Reaction::reaches_the_shell)
                || (pane == self.context.pane && !reactions.contains(&Reaction::Unchanged));
            self.react(pane, reactions, effects);
        } else {
            self.dirty = false;
        }
    }

    /// Lets `pane` react to `input`.
    pub(super) fn deliver(&mut self, pane: PaneId, input: Input, effects: &mut Vec<Effect>) {
        let reactions = self.panes[pane].update(&self.context, input);
        self.react(pane, reactions, effects);
    }

    /// Carries out what `pane` asked for.
    pub(super) fn react(&mut self, pane: PaneId, reactions: Vec<Reaction>, effects: &mut Vec<Effect>) {
        for reaction in reactions {
            match reaction {
                Reaction::Perform(effect) => {
                    let tag = self.generations.issue(effect.pane(), effect.slot());
                    effects.push(Effect::Pane(tag, effect));
                }
                Reaction::Flash(severity, text) => self.messages.push(severity, &text, self.context.now),
                Reaction::Confirm(confirm) => {
                    self.layers.push(Layer::Confirm(ConfirmBox { confirm, yes: false }));
                }
                Reaction::Prompt(prompt) => self.layers.push(Layer::Prompt(PromptBox::new(prompt))),
                Reaction::Entry(question, entry) => self.judge_entry(&question, entry),
                Reaction::Pick(pick) => self.layers.push(picker(pick)),
                Reaction::Message(message) => self.layers.push(Layer::Message(message, Scroll::default())),
                Reaction::Show(shown) => self.show(shown, effects),
                Reaction::Follow(link) => self.follow(link, effects),
                Reaction::Run(command) => self.run(command, effects),
                Reaction::Copy(text) => {
                    effects.push(Effect::Terminal(TerminalEffect::Copy(text)));
                    self.messages.push(
                        Severity::Success,
                        "copied to the terminal's clipboard",
                        self.context.now,
                    );
                }
                Reaction::Edit(path, line) => {
                    self.editing = Some(Editing::Pane(pane));
                    effects.push(Effect::Terminal(TerminalEffect::Edit(path, line)));
                }
                Reaction::Unchanged => {}
            }
        }
    }

    fn follow(&mut self, link: Link, effects: &mut Vec<Effect>) {
        let pane = link.pane();
        self.show(pane, effects);
        self.deliver(pane, Input::Link(link), effects);
    }

    fn show(&mut self, pane: PaneId, effects: &mut Vec<Effect>) {
        let before = self.context.pane;
        if before == pane {
            return;
        }
        self.last_pane = before;
        self.deliver(before, Input::Hidden, effects);
        self.context.pane = pane;
        self.deliver(pane, Input::Shown, effects);
    }

    fn leave(&mut self, effects: &mut Vec<Effect>) {
        let lines = self.panes.unsaved();
        if lines.is_empty() {
            effects.push(Effect::Terminal(TerminalEffect::Quit(Ending::Left)));
            return;
        }
        let confirm = Confirm {
            title: "Leave the workbench?".to_owned(),
            lines,
            yes: "Leave".to_owned(),
            question: Question::App(AppQuestion::Quit),
        };
        self.layers.push(Layer::Confirm(ConfirmBox { confirm, yes: false }));
    }

    fn config_read(&mut self, read: Result<Config, String>, effects: &mut Vec<Effect>) {
        match read {
            Ok(config) => {
                let same = self.context.config.as_deref() == Some(&config);
                let repaired = self.context.config_problem.take().is_some();
                if same && !repaired {
                    self.dirty = false;
                    return;
                }
                if config.ui.theme != self.theme_wanted {
                    self.theme_wanted.clone_from(&config.ui.theme);
                    effects.push(Effect::Settings(SettingsEffect::LoadTheme(config.ui.theme.clone())));
                }
                self.context.config = Some(Arc::new(config));
                self.layers.retain(|layer| !is_config_problem(layer));
                self.messages.push(Severity::Success, "luthier.toml read again", self.context.now);
            }
            Err(problem) => {
                if self.context.config_problem.as_deref() == Some(&problem) {
                    self.dirty = false;
                    return;
                }
                self.show_config_problem(&problem);
                self.context.config_problem = Some(Arc::from(problem));
            }
        }
        for pane in PaneId::iter() {
            self.deliver(pane, Input::ConfigChanged, effects);
        }
    }

    fn show_config_problem(&mut self, problem: &str) {
        self.layers.retain(|layer| !is_config_problem(layer));
        let message =
            Message { title: CONFIG_PROBLEM.to_owned(), text: problem.to_owned(), severity: Severity::Error };
        // Below any open box, so that a key meant for that box does not reach this one.
        self.layers.insert(0, Layer::Message(message, Scroll::default()));
        self.messages.push(
            Severity::Error,
            "luthier.toml has problems; nothing was changed",
            self.context.now,
        );
    }

    fn offer_themes(&mut self, names: Vec<String>) {
        let current = self.theme.name();
        let items = names.iter().map(|name| PickItem {
            label: text::clean_line(name).into_owned(),
            detail: if name == current { "in use".to_owned() } else { String::new() },
        });
        self.layers.push(picker(Pick {
            title: "Theme".to_owned(),
            items: items.collect(),
            selected: names.iter().position(|name| name == current).unwrap_or(0),
            question: Question::App(AppQuestion::Theme(names)),
        }));
    }

    fn editor_closed(&mut self, path: PathBuf, outcome: Result<(), String>, effects: &mut Vec<Effect>) {
        let editing = self.editing.take();
        if let Err(problem) = outcome {
            self.messages.push(Severity::Error, &problem, self.context.now);
            return;
        }
        match editing {
            Some(Editing::Pane(pane)) => self.deliver(pane, Input::Edited(path), effects),
            // The watcher sees a changed luthier.toml by itself.
            Some(Editing::Config) | None => {}
        }
    }
}

fn picker(pick: Pick) -> Layer {
    let candidates = pick.items.iter().map(|item| format!("{}  {}", item.label, item.detail)).collect();
    let chooser = Chooser::new(candidates, pick.selected);
    Layer::Pick(pick, chooser)
}

fn is_config_problem(layer: &Layer) -> bool {
    matches!(layer, Layer::Message(message, _) if message.title == CONFIG_PROBLEM)
}
