//! Chat templates: messages → text, in the Jinja dialect of `transformers`, in a sandbox with limits.

mod arrange;
mod dialect;
mod probe;

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use minijinja::{Environment, ErrorKind, Value};
use regex::Regex;
use serde_json::{Map, json};

use super::example::short_hash;
use super::{DataError, Extras, Message, Tokenizer};
use crate::config::Config;
use crate::files;
use crate::json::python_text;
use crate::model::{ModelFiles, SpecialTokens};
use crate::panics::guarded;
use crate::text::clean;

pub use arrange::with_system;
pub(crate) use probe::{Part, Probe};

/// Largest template source, in bytes; published ones stay below 50 kB.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Limits on the work of a rendering, in minijinja's fuel (an instruction, or 64 bytes of data): a base, an
/// amount per message and per number of bytes in the messages, and a maximum. Published templates take 25 to
/// 75 per message.
const FUEL_BASE: u64 = 100_000;
const FUEL_PER_MESSAGE: u64 = 1_000;
const BYTES_PER_FUEL: u64 = 4;
const MAX_FUEL: u64 = 8_000_000;
/// Stack in bytes that one unit of fuel may need. Putting a list into a list again and again costs one unit
/// per instruction, and minijinja drops, compares and writes nested values recursively, with up to 505 bytes
/// per level.
const STACK_PER_FUEL: u64 = 1024;
/// Fuel for which every thread of ours has enough stack. With more, a thread is started for the rendering.
const FUEL_HERE: u64 = 1_000;
/// Limits on the output of a rendering, in bytes: a base, and amounts per message and per byte of the
/// messages.
const OUTPUT_BASE: usize = 1 << 20;
const OUTPUT_PER_MESSAGE: usize = 4 << 10;
const OUTPUT_PER_BYTE: usize = 8;

/// Templates included in Luthier: name and source.
const BUILT_IN: &[(&str, &str)] = &[
    ("alpaca", include_str!("builtin/alpaca.jinja")),
    ("chatml", include_str!("builtin/chatml.jinja")),
    ("gemma", include_str!("builtin/gemma.jinja")),
    ("llama2", include_str!("builtin/llama2.jinja")),
    ("llama3", include_str!("builtin/llama3.jinja")),
    ("mistral", include_str!("builtin/mistral.jinja")),
    ("phi3", include_str!("builtin/phi3.jinja")),
    ("smollm2", include_str!("builtin/smollm2.jinja")),
    ("zephyr", include_str!("builtin/zephyr.jinja")),
];

/// `data.template` for no template.
const NONE: &str = "none";

/// Turns messages into text. Clones share one compiled template.
#[derive(Clone)]
pub struct Template {
    /// `model` for the model's own, a built-in name, a file's name, or `none`.
    pub name: String,
    /// 16 hex digits of the source's SHA-256; `none` without a template.
    pub fingerprint: String,
    compiled: Option<Arc<Compiled>>,
}

struct Compiled {
    environment: Environment<'static>,
    /// Special tokens by their names in templates.
    tokens: Vec<(&'static str, String)>,
    main: Source,
    /// For rows with tools, if there is one of its own (transformers' `tool_use`).
    for_tools: Option<Source>,
    /// `data.template_variables`.
    variables: Map<String, serde_json::Value>,
    habits: Habits,
    /// Whether its habits are being found out, so that it gets everything as it is.
    is_tried: bool,
    probes: probe::Probes,
}

/// One template of the model.
struct Source {
    /// Its name in the environment.
    name: &'static str,
    text: String,
    marks_generation: bool,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// Byte ranges of `text` written by `{% generation %}` blocks, in order, without overlap.
    pub(crate) generation: Vec<Range<usize>>,
}

impl fmt::Debug for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Template")
            .field("name", &self.name)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Template {
    /// Names of the templates included in Luthier.
    pub fn built_in_names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|&(name, _)| name)
    }

    /// The template for `data.template`. `auto` is the model's own, or none if it has none.
    pub fn resolve(config: &Config, project: &Path, files: &ModelFiles) -> Result<Self, DataError> {
        let wanted = config.data.template.as_str();
        let variables = &config.data.template_variables;
        match wanted {
            "auto" => match &files.chat_template {
                Some(source) => Self::compile_all(
                    "model",
                    source,
                    files.tool_template.as_deref(),
                    &files.special,
                    variables,
                ),
                None => Ok(Self::none()),
            },
            NONE => Ok(Self::none()),
            _ => {
                if let Some((name, source)) = BUILT_IN.iter().find(|(name, _)| *name == wanted) {
                    return Self::compile_all(name, source, None, &files.special, variables);
                }
                let path = project.join(wanted);
                let is_template = path.extension().is_some_and(|extension| {
                    ["jinja", "jinja2", "j2"].iter().any(|known| extension == *known)
                });
                if !is_template {
                    return Err(DataError::template(
                        wanted,
                        format!(
                            "unknown. Use \"auto\" (the model's own), \"none\", one of {}, or the path of a .jinja file",
                            Self::built_in_names().collect::<Vec<_>>().join(", ")
                        ),
                    ));
                }
                let name = path.file_name().map_or_else(|| wanted.into(), |name| name.to_string_lossy());
                Self::compile_all(&name, &read_source(&path)?, None, &files.special, variables)
            }
        }
    }

    /// No template: texts are joined unchanged.
    pub(crate) fn none() -> Self {
        Template { name: NONE.to_owned(), fingerprint: NONE.to_owned(), compiled: None }
    }

    pub fn is_none(&self) -> bool {
        self.compiled.is_none()
    }

    /// Whether `{% generation %}` blocks mark the model's output in rows with these extras.
    pub(crate) fn marks_generation(&self, extras: &Extras) -> bool {
        self.compiled.as_ref().is_some_and(|compiled| compiled.source(extras).marks_generation)
    }

    /// Whether the source has this word, outside of other words.
    pub(crate) fn mentions(&self, word: &str) -> bool {
        let pattern = format!(r"(?:^|[^0-9A-Za-z_]){}(?:$|[^0-9A-Za-z_])", regex::escape(word));
        let Some(compiled) = &self.compiled else { return false };
        Regex::new(&pattern)
            .is_ok_and(|pattern| compiled.sources().any(|source| pattern.is_match(&source.text)))
    }

    /// A template without variables, and without another one for tools.
    #[cfg(test)]
    pub(crate) fn compile(name: &str, source: &str, special: &SpecialTokens) -> Result<Self, DataError> {
        Self::compile_all(name, source, None, special, &Map::new())
    }

    pub(crate) fn compile_all(
        name: &str,
        source: &str,
        for_tools: Option<&str>,
        special: &SpecialTokens,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<Self, DataError> {
        let name = clean(name).into_owned();
        let mut environment = guarded(dialect::environment)
            .map_err(|panic| DataError::template(&name, panic))?
            .map_err(|error| DataError::template(&name, describe(&error)))?;
        let main = add(&mut environment, &name, "chat", source)?;
        let for_tools =
            for_tools.map(|source| add(&mut environment, &name, "tool_use", source)).transpose()?;
        let texts = [
            ("bos_token", special.bos.as_ref()),
            ("eos_token", special.eos.first()),
            ("pad_token", special.pad.as_ref()),
            ("unk_token", special.unknown.as_ref()),
        ];
        let tokens = texts.into_iter().filter_map(|(key, token)| Some((key, token?.text.clone()?))).collect();
        let mut parts = vec![source.as_bytes()];
        parts.extend(for_tools.as_ref().map(|source| source.text.as_bytes()));
        let mut template = Template {
            fingerprint: short_hash(&parts),
            compiled: Some(Arc::new(Compiled {
                environment,
                tokens,
                main,
                for_tools,
                variables: variables.clone(),
                habits: Habits::default(),
                is_tried: true,
                probes: probe::Probes::default(),
            })),
            name,
        };
        let habits = Habits::of(&template);
        if let Some(compiled) = template.compiled.as_mut().and_then(Arc::get_mut) {
            compiled.habits = habits;
            compiled.is_tried = false;
        }
        Ok(template)
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the model continues. Without a
    /// template, the contents joined unchanged.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, DataError> {
        Ok(self.render_marked(messages, &Extras::default(), add_generation_prompt)?.text)
    }

    /// Token ids of the prompt for an answer to `messages`, arranged as in training ([`Template::arranged`]),
    /// with the row's tools and variables. Training puts exactly these ids before a reply.
    pub fn prompt_ids(
        &self,
        messages: &[Message],
        extras: &Extras,
        tokenizer: &Tokenizer,
        config: &Config,
    ) -> Result<Vec<u32>, DataError> {
        let messages = self.arranged(messages, config);
        let text = self.render_marked(&messages, extras, true)?.text;
        let mut ids = tokenizer.encode(&text, false)?.ids;
        if self.is_none() && !ids.starts_with(tokenizer.ids_before()) {
            ids.splice(0..0, tokenizer.ids_before().iter().copied());
        }
        Ok(ids)
    }

    /// Ids that end a reply: the model's own end tokens, then the special token that this template writes
    /// after a reply.
    pub fn stop_tokens(&self, tokenizer: &Tokenizer, files: &ModelFiles) -> Vec<u32> {
        let mut stop = files.special.eos_ids();
        stop.extend(tokenizer.eos());
        stop.extend(self.end_of_turn(tokenizer));
        let mut seen = Vec::with_capacity(stop.len());
        stop.retain(|id| {
            let fresh = !seen.contains(id);
            seen.push(*id);
            fresh
        });
        stop
    }

    /// The special token that this template writes after a reply.
    pub(crate) fn end_of_turn(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let after = self.compiled.as_ref()?.habits.after_reply.trim_start();
        tokenizer.special_at_start(after).map(|(_, id)| id)
    }

    /// The text of the special token that this template writes after a reply.
    pub(crate) fn turn_end(&self, tokenizer: &Tokenizer) -> Option<String> {
        let after = self.compiled.as_ref()?.habits.after_reply.trim_start();
        tokenizer.special_at_start(after).map(|(text, _)| text.to_owned())
    }

    /// What this template writes before every reply, without what it may put before its words.
    pub(crate) fn any_reply_header(&self) -> &str {
        self.compiled.as_ref().map_or("", |compiled| compiled.habits.header.as_str())
    }

    /// The part of a generation prompt that the template also writes before a finished reply.
    pub(crate) fn reply_header(&self, supplied: &str) -> &str {
        let header = self.any_reply_header();
        if supplied.starts_with(header) || supplied.is_empty() { header } else { "" }
    }

    /// As [`Template::render`], with the row's tools and other message fields, and the ranges of generation
    /// blocks.
    pub(crate) fn render_marked(
        &self,
        messages: &[Message],
        extras: &Extras,
        add_generation_prompt: bool,
    ) -> Result<Rendered, DataError> {
        let Some(compiled) = &self.compiled else {
            let text = messages.iter().map(|message| message.content.as_str()).collect();
            return Ok(Rendered { text, generation: Vec::new() });
        };
        let fail = |message: String| DataError::template(&self.name, message);
        let source = compiled.source(extras);
        let (context, size) = compiled.context(messages, extras, add_generation_prompt);
        let is_mark = |text: &str| text.contains([dialect::GENERATION_START, dialect::GENERATION_END]);
        if source.marks_generation
            && messages
                .iter()
                .any(|message| is_mark(&message.content) || message.reasoning.as_deref().is_some_and(is_mark))
        {
            return Err(fail("a message contains the noncharacters U+FDD0 or U+FDD1".to_owned()));
        }
        let count = messages.len() as u64;
        let fuel = FUEL_BASE + FUEL_PER_MESSAGE * count + size as u64 / BYTES_PER_FUEL;
        let limit = OUTPUT_BASE + OUTPUT_PER_MESSAGE * messages.len() + OUTPUT_PER_BYTE * size;
        let render = |fuel: u64| -> Result<Vec<u8>, minijinja::Error> {
            let mut environment = compiled.environment.clone();
            environment.set_fuel(Some(fuel));
            let mut output = Bounded { bytes: Vec::new(), limit };
            environment.get_template(source.name)?.render_captured_to(context.clone(), &mut output)?;
            Ok(output.bytes)
        };
        let mut rendered = guarded(|| render(FUEL_HERE));
        if matches!(&rendered, Ok(Err(error)) if ran_out(error)) {
            let fuel = fuel.min(MAX_FUEL);
            let stack = (fuel * STACK_PER_FUEL) as usize;
            rendered = with_stack(stack, || guarded(|| render(fuel))).map_err(&fail)?;
        }
        let bytes = rendered.map_err(&fail)?.map_err(|error| fail(describe(&error)))?;
        let text = String::from_utf8(bytes).map_err(|error| fail(error.to_string()))?;
        if !source.marks_generation {
            return Ok(Rendered { text, generation: Vec::new() });
        }
        without_marks(&text)
            .ok_or_else(|| fail("its generation blocks are nested or were cut apart".to_owned()))
    }
}

impl Compiled {
    /// The template for a row.
    fn source(&self, extras: &Extras) -> &Source {
        match &self.for_tools {
            Some(source) if extras.tools.is_some() => source,
            _ => &self.main,
        }
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        std::iter::once(&self.main).chain(&self.for_tools)
    }
}

/// Adds a template to the environment.
fn add(
    environment: &mut Environment<'static>,
    shown: &str,
    name: &'static str,
    source: &str,
) -> Result<Source, DataError> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(DataError::template(shown, format!("larger than {} KiB", MAX_SOURCE_BYTES >> 10)));
    }
    // As Jinja does: the line ends of the source do not reach the text.
    let text = source.replace("\r\n", "\n").replace('\r', "\n");
    let (marked, marks_generation) = dialect::with_marked_generation(&text);
    if marks_generation && marked.contains([dialect::GENERATION_START, dialect::GENERATION_END]) {
        return Err(DataError::template(
            shown,
            "contains the noncharacters U+FDD0 or U+FDD1, which mark generation here",
        ));
    }
    guarded(|| environment.add_template_owned(name, marked))
        .map_err(|panic| DataError::template(shown, panic))?
        .map_err(|error| DataError::template(shown, describe(&error)))?;
    Ok(Source { name, text, marks_generation })
}

impl Compiled {
    /// The variables of a template, and their size in bytes.
    fn context(&self, messages: &[Message], extras: &Extras, add_generation_prompt: bool) -> (Value, usize) {
        let mut size = 0;
        let rows: Vec<Value> = messages.iter().map(|message| self.message(message, &mut size)).collect();
        let tools =
            extras.tools.as_ref().map_or_else(|| Value::from(()), |tools| from_json(tools, &mut size));
        let mut variables: Vec<(&str, Value)> = vec![("documents", Value::from(()))];
        variables.extend(self.tokens.iter().map(|(key, text)| (*key, Value::from(text.as_str()))));
        let given = self.variables.iter().chain(&extras.variables);
        variables.extend(given.map(|(key, value)| (key.as_str(), from_json(value, &mut size))));
        variables.extend([
            ("messages", Value::from(rows)),
            ("tools", tools),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ]);
        (Value::from_pairs(variables), size)
    }

    /// A message as templates expect it. What it thinks has all the names that are in use (transformers'
    /// `_alias_reasoning_fields`).
    fn message(&self, message: &Message, size: &mut usize) -> Value {
        *size += message.role.len() + message.content.len();
        let content = match &message.result {
            Some(result) if self.habits.object_results || self.is_tried => from_json(result, size),
            _ => Value::from(message.content.as_str()),
        };
        let mut pairs =
            vec![("role".to_owned(), Value::from(message.role.as_str())), ("content".to_owned(), content)];
        if let Some(reasoning) = &message.reasoning {
            *size += reasoning.len();
            let names = ["reasoning_content", "reasoning", "thinking"];
            pairs.extend(names.map(|name| (name.to_owned(), Value::from(reasoning.as_str()))));
        }
        if !message.tool_calls.is_empty() {
            let as_text = self.habits.text_arguments;
            let calls = message.tool_calls.iter().map(|call| {
                let call = if as_text { Cow::Owned(with_text_arguments(call)) } else { Cow::Borrowed(call) };
                from_json(&call, size)
            });
            pairs.push(("tool_calls".to_owned(), calls.collect::<Vec<_>>().into()));
        }
        for (key, value) in &message.fields {
            *size += key.len();
            pairs.push((key.clone(), from_json(value, size)));
        }
        Value::from_pairs(pairs)
    }
}

/// What a template writes around a reply, and does with tools and system messages; found by trying.
#[derive(Debug, Clone, Default)]
struct Habits {
    /// Written before a reply, both by the generation prompt and in a finished conversation.
    header: String,
    /// Written after a reply.
    after_reply: String,
    /// Refuses conversations with a system message.
    refuses_system: bool,
    /// Joins the arguments of a tool call to other text, so that they must be JSON text.
    text_arguments: bool,
    /// Writes a tool's result that is an object as JSON.
    object_results: bool,
}

impl Habits {
    fn of(template: &Template) -> Self {
        let renders = |messages: &[Message], prompt: bool| {
            template.render_marked(messages, &Extras::default(), prompt).ok().map(|rendered| rendered.text)
        };
        let asked = Message::new("user", "Hello");
        let system = [Message::new("system", "Be brief."), asked.clone()];
        // A template that refuses both says nothing about system messages.
        let refuses_system = renders(&system, true).is_none() && renders(&system[1..], true).is_some();
        let call = |arguments: serde_json::Value| Message {
            tool_calls: vec![
                json!({"type": "function", "function": {"name": "look", "arguments": arguments}}),
            ],
            ..Message::new("assistant", "")
        };
        let object = [asked, call(json!({"word": "hello"}))];
        let text = [object[0].clone(), call(json!("{\"word\": \"hello\"}"))];
        let writes = |messages: &[Message], given: &str| {
            renders(messages, false).is_some_and(|text| text.contains(given))
        };
        let refuses = renders(&object, false).is_none() && renders(&text, false).is_some();
        // Written without `tojson`, an object comes out in the form of a programming language.
        let prints = writes(&object, "{'word': 'hello'}") && writes(&text, "{\"word\": \"hello\"}");
        let text_arguments = refuses || prints;
        let result = json!({"found": [true, null]});
        let content = python_text(&result);
        let with_result = |result| {
            let message = Message { result, ..Message::new("tool", &content) };
            renders(&[object[0].clone(), object[1].clone(), message], false)
        };
        let object_results = with_result(Some(result.clone())).is_some_and(|text| text.contains(&content));
        let reply = "Certainly";
        let whole =
            renders(&[object[0].clone(), Message::new("assistant", reply)], false).unwrap_or_default();
        let after_reply = whole.rfind(reply).map_or("", |at| &whole[at + reply.len()..]).to_owned();
        let prompt = renders(&object[..1], true).unwrap_or_default();
        let before = renders(&object[..1], false).filter(|before| whole.starts_with(before.as_str()));
        // A template may write a reply differently once the conversation goes on.
        let earlier = [object[0].clone(), Message::new("assistant", reply), Message::new("user", "Thanks")];
        let earlier = renders(&earlier, true).unwrap_or_else(|| whole.clone());
        let header = before.and_then(|before| {
            let supplied = prompt.strip_prefix(before.as_str())?;
            let last = whole[before.len()..].split(reply).next()?;
            let earlier = earlier.strip_prefix(before.as_str()).unwrap_or(last).split(reply).next()?;
            Some(shared_header(&[supplied, last, earlier]))
        });
        let header = header.unwrap_or_default();
        Habits { header, after_reply, refuses_system, text_arguments, object_results }
    }
}

/// What all of these begin with, up to the end of a line, a tag or one of the texts.
fn shared_header(texts: &[&str]) -> String {
    let Some((first, others)) = texts.split_first() else { return String::new() };
    let is_shared =
        |at: usize| others.iter().all(|other| other.as_bytes().starts_with(&first.as_bytes()[..at]));
    let shared = (0..=first.len()).rev().filter(|&at| first.is_char_boundary(at)).find(|&at| is_shared(at));
    let shared = &first[..shared.unwrap_or(0)];
    if texts.contains(&shared) {
        return shared.to_owned();
    }
    let end = shared.rfind(['>', '\n', ' ', ':', ']']).map_or(0, |at| at + 1);
    shared[..end].to_owned()
}

/// A tool call with its arguments as JSON text.
fn with_text_arguments(call: &serde_json::Value) -> serde_json::Value {
    let mut call = call.clone();
    if let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments"))
        && !arguments.is_string()
    {
        *arguments = python_text(arguments).into();
    }
    call
}

fn from_json(value: &serde_json::Value, size: &mut usize) -> Value {
    *size += 8;
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(truth) => Value::from(*truth),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), ..) => Value::from(integer),
            (_, Some(integer), _) => Value::from(integer),
            (.., float) => Value::from(float.unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => {
            *size += text.len();
            Value::from(text.as_str())
        }
        serde_json::Value::Array(elements) => {
            elements.iter().map(|element| from_json(element, size)).collect::<Vec<_>>().into()
        }
        serde_json::Value::Object(fields) => from_map(fields, size),
    }
}

fn from_map(fields: &Map<String, serde_json::Value>, size: &mut usize) -> Value {
    let pairs: Vec<(String, Value)> = fields
        .iter()
        .map(|(key, value)| {
            *size += key.len();
            (key.clone(), from_json(value, size))
        })
        .collect();
    Value::from_pairs(pairs)
}

/// Removes the marks of generation blocks; `None` if they are not in pairs.
fn without_marks(marked: &str) -> Option<Rendered> {
    let mut rendered = Rendered { text: String::with_capacity(marked.len()), generation: Vec::new() };
    let mut start = None;
    for character in marked.chars() {
        match character {
            dialect::GENERATION_START if start.is_none() => start = Some(rendered.text.len()),
            dialect::GENERATION_START => return None,
            dialect::GENERATION_END => rendered.generation.push(start.take()?..rendered.text.len()),
            other => rendered.text.push(other),
        }
    }
    start.is_none().then_some(rendered)
}

/// Whether a template used up its fuel, at any depth.
fn ran_out(error: &minijinja::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if current
            .downcast_ref::<minijinja::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::OutOfFuel)
        {
            return true;
        }
        source = current.source();
    }
    false
}

/// Runs `call` on a thread with a stack of this size. Memory is only reserved until it is used.
fn with_stack<T: Send>(bytes: usize, call: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().stack_size(bytes).spawn_scoped(scope, call);
        let worker = worker.map_err(|error| format!("cannot start a thread to render it: {error}"))?;
        worker.join().map_err(|_| "rendering stopped with an internal error".to_owned())
    })
}

/// A template's error, in words for the user.
fn describe(error: &minijinja::Error) -> String {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(raised) = current.downcast_ref::<dialect::Raised>() {
            return clean(&raised.0).into_owned();
        }
        source = current.source();
    }
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let reason = match error.kind() {
        ErrorKind::OutOfFuel => "does more work than allowed".to_owned(),
        ErrorKind::WriteFailure => "writes more text than allowed".to_owned(),
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    clean(&format!("{line}{reason}")).into_owned()
}

/// Collects bytes up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read_source(path: &Path) -> Result<String, DataError> {
    files::read_text(path, MAX_SOURCE_BYTES as u64).map_err(|error| DataError::read(path, error))
}

#[cfg(test)]
mod tests;
