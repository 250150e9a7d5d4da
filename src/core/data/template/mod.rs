//! Chat templates: messages → text, in the Jinja dialect of `transformers`, in a sandbox with limits.

mod dialect;

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use minijinja::{Environment, ErrorKind, Value};
use serde_json::Map;

use super::example::short_hash;
use super::{DataError, Extras, Message, Tokenizer};
use crate::config::Config;
use crate::files;
use crate::model::{ModelFiles, SpecialTokens};
use crate::panics::guarded;
use crate::text::clean;

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
        match wanted {
            "auto" => match &files.chat_template {
                Some(source) => Self::compile("model", source, &files.special),
                None => Ok(Self::none()),
            },
            NONE => Ok(Self::none()),
            _ => {
                if let Some((name, source)) = BUILT_IN.iter().find(|(name, _)| *name == wanted) {
                    return Self::compile(name, source, &files.special);
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
                Self::compile(&name, &read_source(&path)?, &files.special)
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

    /// Whether `{% generation %}` blocks mark the model's output.
    pub(crate) fn marks_generation(&self) -> bool {
        self.compiled.as_ref().is_some_and(|compiled| compiled.marks_generation)
    }

    pub(crate) fn compile(name: &str, source: &str, special: &SpecialTokens) -> Result<Self, DataError> {
        let name = clean(name).into_owned();
        if source.len() > MAX_SOURCE_BYTES {
            return Err(DataError::template(name, format!("larger than {} KiB", MAX_SOURCE_BYTES >> 10)));
        }
        let (marked, marks_generation) = dialect::with_marked_generation(source);
        if marks_generation && marked.contains([dialect::GENERATION_START, dialect::GENERATION_END]) {
            return Err(DataError::template(
                name,
                "contains the noncharacters U+FDD0 or U+FDD1, which mark generation here",
            ));
        }
        let environment = guarded(|| -> Result<_, minijinja::Error> {
            let mut environment = dialect::environment()?;
            environment.add_template_owned("chat", marked)?;
            Ok(environment)
        })
        .map_err(|panic| DataError::template(&name, panic))?
        .map_err(|error| DataError::template(&name, describe(&error)))?;
        let texts = [
            ("bos_token", special.bos.as_ref()),
            ("eos_token", special.eos.first()),
            ("pad_token", special.pad.as_ref()),
            ("unk_token", special.unknown.as_ref()),
        ];
        let tokens = texts.into_iter().filter_map(|(key, token)| Some((key, token?.text.clone()?))).collect();
        Ok(Template {
            fingerprint: short_hash(&[source.as_bytes()]),
            compiled: Some(Arc::new(Compiled { environment, tokens, marks_generation })),
            name,
        })
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the model continues. Without a
    /// template, the contents joined unchanged.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, DataError> {
        Ok(self.render_marked(messages, &Extras::default(), add_generation_prompt)?.text)
    }

    /// Token ids of the prompt for an answer to `messages`, with `data.system` before them if they have no
    /// system message. Training puts exactly these ids before a reply.
    pub fn prompt_ids(
        &self,
        messages: &[Message],
        tokenizer: &Tokenizer,
        config: &Config,
    ) -> Result<Vec<u32>, DataError> {
        let messages = with_system(messages, &config.data.system);
        let text = self.render(&messages, true)?;
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
        let reply = "Certainly";
        let messages = [Message::new("user", "Hello"), Message::new("assistant", reply)];
        let text = self.render(&messages, false).ok().filter(|_| !self.is_none())?;
        let behind = &text[text.rfind(reply)? + reply.len()..];
        tokenizer.special_at_start(behind.trim_start()).map(|(_, id)| id)
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
        let (context, size) = context(compiled, messages, extras, add_generation_prompt);
        if compiled.marks_generation
            && messages
                .iter()
                .any(|message| message.content.contains([dialect::GENERATION_START, dialect::GENERATION_END]))
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
            environment.get_template("chat")?.render_captured_to(context.clone(), &mut output)?;
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
        if !compiled.marks_generation {
            return Ok(Rendered { text, generation: Vec::new() });
        }
        without_marks(&text)
            .ok_or_else(|| fail("its generation blocks are nested or were cut apart".to_owned()))
    }
}

/// `messages` with `system` before them, unless it is empty or they have a system message.
pub fn with_system(messages: &[Message], system: &str) -> Vec<Message> {
    let mut all = Vec::with_capacity(messages.len() + 1);
    if !system.is_empty() && messages.first().is_none_or(|message| message.role != "system") {
        all.push(Message::new("system", system));
    }
    all.extend_from_slice(messages);
    all
}

/// The variables of a template, and their size in bytes.
fn context(
    compiled: &Compiled,
    messages: &[Message],
    extras: &Extras,
    add_generation_prompt: bool,
) -> (Value, usize) {
    let mut size = 0;
    let rows: Vec<Value> = messages
        .iter()
        .enumerate()
        .map(|(index, message)| {
            size += message.role.len() + message.content.len();
            let mut pairs = vec![
                ("role".to_owned(), Value::from(message.role.as_str())),
                ("content".to_owned(), Value::from(message.content.as_str())),
            ];
            for (key, value) in extras.fields.get(index).into_iter().flatten() {
                size += key.len();
                pairs.push((key.clone(), from_json(value, &mut size)));
            }
            Value::from_pairs(pairs)
        })
        .collect();
    let tools = extras.tools.as_ref().map_or_else(|| Value::from(()), |tools| from_json(tools, &mut size));
    let mut variables: Vec<(&str, Value)> = vec![
        ("messages", Value::from(rows)),
        ("tools", tools),
        ("documents", Value::from(())),
        ("add_generation_prompt", Value::from(add_generation_prompt)),
    ];
    variables.extend(compiled.tokens.iter().map(|(key, text)| (*key, Value::from(text.as_str()))));
    (Value::from_pairs(variables), size)
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
