//! What a template makes of a conversation, found by rendering the conversation with a mark in place of each
//! thing it says. Templates look at roles and at which fields there are, hardly ever at words, so rows of one
//! shape have one answer, which is kept.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::{Rendered, Template};
use crate::data::message::inline_reasoning;
use crate::data::{Extras, Message};
use crate::hash::fnv1a;
use crate::json::python_text;

/// Most shapes of conversations that are kept.
const MAX_SHAPES: usize = 4096;

/// Something that a row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    /// The content of the message of this index.
    Content(usize),
    /// What the message of this index thinks.
    Reasoning(usize),
    /// The name of a tool call: index of the message, and of the call in it.
    CallName(usize, usize),
    /// The arguments of a tool call.
    CallArguments(usize, usize),
    /// The tool of this index.
    Tool(usize),
    /// The description of the tool of this index.
    Description(usize),
    /// Another field of a message that is a text: index of the message, and of the field in it.
    Field(usize, usize),
}

impl Part {
    /// The message that says it; `None` for a tool.
    pub(crate) fn message(self) -> Option<usize> {
        match self {
            Part::Content(message)
            | Part::Reasoning(message)
            | Part::CallName(message, _)
            | Part::CallArguments(message, _) => Some(message),
            Part::Tool(_) | Part::Description(_) | Part::Field(..) => None,
        }
    }
}

/// A conversation rendered with marks.
#[derive(Debug)]
pub(crate) struct Probe {
    rendered: Rendered,
    /// The first place of each mark with what it stands for, in the order of the text.
    places: Vec<(Range<usize>, Part)>,
    /// What the template leaves out.
    lost: Vec<Part>,
}

/// The conversations that were probed, by their shape.
#[derive(Default)]
pub(super) struct Probes {
    by_shape: Mutex<HashMap<u64, Option<Arc<Probe>>>>,
}

impl Template {
    /// The conversation rendered with marks; `None` if the template refuses that.
    pub(crate) fn probe(&self, messages: &[Message], extras: &Extras) -> Option<Arc<Probe>> {
        let probes = &self.compiled.as_ref()?.probes;
        let shape = shape(messages, extras);
        if let Some(known) = probes.by_shape.lock().unwrap_or_else(PoisonError::into_inner).get(&shape) {
            return known.clone();
        }
        let mut marks = Marks::default();
        let (marked, marked_extras) = marks.replace(messages, extras);
        let rendered = self.render_marked(&marked, &marked_extras, false).ok();
        let probe = rendered.map(|rendered| Arc::new(Probe::new(rendered, &marks.all)));
        let mut known = probes.by_shape.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MAX_SHAPES {
            known.insert(shape, probe.clone());
        }
        probe
    }
}

impl Probe {
    fn new(rendered: Rendered, marks: &[(String, Part)]) -> Self {
        let lower = rendered.text.to_lowercase();
        let mut lost: Vec<Part> =
            marks.iter().filter(|(mark, _)| !lower.contains(mark)).map(|&(_, part)| part).collect();
        // The arguments of a call have a mark for each value.
        lost.dedup();
        let place = |(mark, part): &(String, Part)| {
            let at = rendered.text.find(mark.as_str())?;
            Some((at..at + mark.len(), *part))
        };
        let mut places: Vec<(Range<usize>, Part)> = marks.iter().filter_map(place).collect();
        places.sort_unstable_by_key(|(place, _)| place.start);
        Probe { rendered, places, lost }
    }

    /// What the template leaves out.
    pub(crate) fn lost(&self) -> &[Part] {
        &self.lost
    }

    /// The places of what messages say, with the message.
    fn said(&self) -> impl DoubleEndedIterator<Item = (&Range<usize>, usize)> {
        self.places.iter().filter_map(|(place, part)| Some((place, part.message()?)))
    }

    /// For each generation block, the message that wrote it. A block without words of its own belongs to the reply
    /// whose words come next, or to the last one.
    pub(crate) fn owners(&self, is_reply: impl Fn(usize) -> bool) -> Vec<Option<usize>> {
        let owner = |span: &Range<usize>| {
            let inside = self.said().find(|(place, _)| span.contains(&place.start));
            let next = self.said().find(|(place, _)| place.start >= span.end);
            let last = self.said().rfind(|(place, _)| place.start < span.start);
            let next = next.filter(|(_, message)| is_reply(*message));
            let last = last.filter(|(_, message)| is_reply(*message));
            inside.or(next).or(last).map(|(_, message)| message)
        };
        self.rendered.generation.iter().map(owner).collect()
    }

    /// What the template writes behind the words of a message, up to those of the next.
    pub(crate) fn behind(&self, message: usize) -> Option<&str> {
        let start = self.said().rfind(|(_, other)| *other == message)?.0.end;
        let from = self.places.partition_point(|(place, _)| place.start < start);
        let next = self.places[from..].iter().find(|(_, part)| part.message().is_some());
        let end = next.map_or(self.rendered.text.len(), |(place, _)| place.start);
        Some(&self.rendered.text[start..end])
    }

    /// Where the first words of a message stand among those of the others. A reply without words stands nowhere.
    pub(crate) fn first_word(&self, message: usize) -> Option<usize> {
        self.said().find(|(_, other)| *other == message).map(|(place, _)| place.start)
    }

    /// What the template writes directly before the content of a message, without white space at its beginning;
    /// at most `most` bytes.
    pub(crate) fn before_content(&self, message: usize, most: usize) -> Option<&str> {
        let text = &self.rendered.text;
        let position = self.places.iter().position(|(_, part)| *part == Part::Content(message))?;
        let end = self.places[position].0.start;
        // What stands before it may belong to another message, up to that message's own words.
        let before = position.checked_sub(1).map_or(0, |before| self.places[before].0.end);
        let start = text.ceil_char_boundary(before.max(end.saturating_sub(most)));
        Some(text[start..end].trim_start())
    }
}

#[derive(Default)]
struct Marks {
    all: Vec<(String, Part)>,
}

impl Marks {
    fn mark(&mut self, part: Part) -> String {
        let mark = format!("zq{}qz", self.all.len());
        self.all.push((mark.clone(), part));
        mark
    }

    fn replace(&mut self, messages: &[Message], extras: &Extras) -> (Vec<Message>, Extras) {
        let messages =
            messages.iter().enumerate().map(|(index, message)| self.message(index, message)).collect();
        let mut extras = extras.clone();
        for (index, tool) in extras.tools.iter_mut().filter_map(Value::as_array_mut).flatten().enumerate() {
            let inner = if tool.get("function").is_some() { tool.get_mut("function") } else { Some(tool) };
            let Some(tool) = inner else { continue };
            if let Some(name) = tool.get_mut("name") {
                *name = self.mark(Part::Tool(index)).into();
            }
            if let Some(description) = tool.get_mut("description").filter(|text| is_said(text)) {
                *description = self.mark(Part::Description(index)).into();
            }
        }
        (messages, extras)
    }

    fn message(&mut self, index: usize, message: &Message) -> Message {
        let mut marked = message.clone();
        if message.reasoning.is_some() {
            marked.reasoning = Some(self.mark(Part::Reasoning(index)));
        }
        marked.content = match inline_reasoning(&message.content).filter(|_| message.is_assistant()) {
            Some((reasoning, rest)) => {
                let mut said =
                    |text: &str, part| if is_blank(text) { String::new() } else { self.mark(part) };
                let reasoning = said(reasoning, Part::Reasoning(index));
                format!("<think>\n{reasoning}\n</think>\n\n{}", said(rest, Part::Content(index)))
            }
            None if is_blank(&message.content) || message.result.is_some() => message.content.clone(),
            None => self.mark(Part::Content(index)),
        };
        if let Some(result) = &mut marked.result {
            self.leaves(result, Part::Content(index));
            marked.content = python_text(result);
        }
        for (position, value) in marked.fields.values_mut().enumerate().filter(|(_, value)| is_said(value)) {
            *value = self.mark(Part::Field(index, position)).into();
        }
        for (position, call) in marked.tool_calls.iter_mut().enumerate() {
            let Some(function) = call.get_mut("function") else { continue };
            if let Some(name) = function.get_mut("name") {
                *name = self.mark(Part::CallName(index, position)).into();
            }
            if let Some(arguments) = function.get_mut("arguments") {
                self.leaves(arguments, Part::CallArguments(index, position));
            }
        }
        marked
    }

    /// Puts a mark in place of each text and number of a value.
    fn leaves(&mut self, value: &mut Value, part: Part) {
        match value {
            Value::String(_) | Value::Number(_) => *value = self.mark(part).into(),
            Value::Array(list) => list.iter_mut().for_each(|value| self.leaves(value, part)),
            Value::Object(members) => members.values_mut().for_each(|value| self.leaves(value, part)),
            Value::Null | Value::Bool(_) => {}
        }
    }
}

/// Whether a value is a text with words in it.
fn is_said(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !is_blank(text))
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// A hash of all that a template may look at but words.
fn shape(messages: &[Message], extras: &Extras) -> u64 {
    let mut bytes: Vec<u8> = Vec::with_capacity(messages.len() * 24);
    for message in messages {
        let thinks = message.is_assistant().then(|| inline_reasoning(&message.content)).flatten();
        bytes.extend_from_slice(message.role.as_bytes());
        bytes.push(0);
        bytes.extend([
            u8::from(is_blank(&message.content)),
            u8::from(message.reasoning.is_some()),
            thinks.map_or(0, |(reasoning, rest)| {
                1 + u8::from(is_blank(reasoning)) + 2 * u8::from(is_blank(rest))
            }),
        ]);
        for value in message.result.iter().chain(&message.tool_calls) {
            structure(value, &mut bytes);
        }
        for (name, value) in &message.fields {
            bytes.push(8);
            bytes.extend_from_slice(name.as_bytes());
            // The template sees the value of a field that is no text.
            if is_said(value) { bytes.push(5) } else { bytes.extend_from_slice(value.to_string().as_bytes()) }
        }
        bytes.push(1);
    }
    if let Some(tools) = &extras.tools {
        structure(tools, &mut bytes);
    }
    for (name, value) in &extras.variables {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(value.to_string().as_bytes());
    }
    fnv1a(bytes)
}

fn structure(value: &Value, bytes: &mut Vec<u8>) {
    match value {
        Value::Null => bytes.push(2),
        Value::Bool(truth) => bytes.push(3 + u8::from(*truth)),
        Value::String(_) | Value::Number(_) => bytes.push(5),
        Value::Array(list) => {
            bytes.push(6);
            for value in list {
                structure(value, bytes);
            }
            bytes.push(9);
        }
        Value::Object(members) => {
            bytes.push(7);
            for (name, value) in members {
                bytes.extend_from_slice(name.as_bytes());
                structure(value, bytes);
            }
            bytes.push(9);
        }
    }
}
