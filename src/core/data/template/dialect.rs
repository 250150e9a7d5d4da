//! The Jinja dialect of chat templates: minijinja with the additions of `transformers`.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};

/// Put around the output of `{% generation %}` blocks. Unicode noncharacters, which text for interchange must
/// not contain.
pub(super) const GENERATION_START: char = '\u{fdd0}';
pub(super) const GENERATION_END: char = '\u{fdd1}';

const GENERATION_FILTER: &str = "luthier_generation";
/// Longest date pattern for `strftime_now`, in bytes.
const MAX_DATE_PATTERN: usize = 256;

/// The message of a template's `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An environment with the settings and functions with which `transformers` renders chat templates.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(false).build()?,
    );
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_debug(false);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    // minijinja's own tests answer otherwise than Jinja's for none, texts and maps.
    environment.add_test("iterable", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
        )
    });
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    // Both take time cubic in the depth of nested values, and no fuel.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
    environment
        .add_filter(GENERATION_FILTER, |body: String| format!("{GENERATION_START}{body}{GENERATION_END}"));
    Ok(environment)
}

fn strftime_now(pattern: &str) -> Result<String, Error> {
    if pattern.len() > MAX_DATE_PATTERN {
        return Err(Error::new(ErrorKind::InvalidOperation, "the date pattern is too long"));
    }
    jiff::fmt::strtime::format(pattern, &jiff::ZonedDateTime::now()).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("date pattern {pattern:?}: {error}"))
    })
}

/// A template's source in which `{% generation %}` blocks are replaced by a scope with a filter that marks
/// their output, and whether there are any.
pub(super) fn with_marked_generation(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut found = false;
    let mut rest = source;
    let mut in_raw = false;
    while let Some(at) = rest.find('{') {
        let opener = rest.as_bytes().get(at + 1).copied();
        let end = match opener {
            Some(b'#') if !in_raw => rest[at..].find("#}").map(|length| at + length + 2),
            Some(b'{') if !in_raw => end_of_expression(&rest[at + 2..], "}}").map(|length| at + 2 + length),
            Some(b'%') => end_of_expression(&rest[at + 2..], "%}").map(|length| at + 2 + length),
            _ => Some(at + 1),
        };
        let Some(end) = end else { break };
        out.push_str(&rest[..at]);
        let tag = &rest[at..end];
        rest = &rest[end..];
        if opener != Some(b'%') {
            out.push_str(tag);
            continue;
        }
        let body = &tag[2..tag.len() - 2];
        let open = if body.starts_with(['-', '+']) { &body[..1] } else { "" };
        let inner = &body[open.len()..];
        let close = if inner.ends_with(['-', '+']) { &inner[inner.len() - 1..] } else { "" };
        match inner[..inner.len() - close.len()].trim() {
            "raw" => in_raw = true,
            "endraw" => in_raw = false,
            "generation" if !in_raw => {
                found = true;
                out.extend(["{%", open, " with %}{% filter ", GENERATION_FILTER, " ", close, "%}"]);
                continue;
            }
            "endgeneration" if !in_raw => {
                out.extend(["{%", open, " endfilter %}{% endwith ", close, "%}"]);
                continue;
            }
            _ => {}
        }
        out.push_str(tag);
    }
    out.push_str(rest);
    (out, found)
}

/// Length up to and including `closer`, which is ignored inside string literals.
fn end_of_expression(text: &str, closer: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut quote = None;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, byte @ (b'\'' | b'"')) => quote = Some(byte),
            (None, _) if bytes[at..].starts_with(closer.as_bytes()) => return Some(at + closer.len()),
            _ => {}
        }
        at += 1;
    }
    None
}

/// `tojson` as in `transformers`: `json.dumps` with its separators, no HTML escapes, and non-ASCII text
/// unchanged unless `ensure_ascii`.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands keyword arguments over by value")]
fn to_json(state: &State, value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let separators: Option<Value> = kwargs.get("separators")?;
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = match indent {
        Some(value) if value.is_none() || value.is_undefined() => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(value.as_usize().unwrap_or(0).min(64)),
        }),
        None => None,
    };
    let (item, key) = match separators.filter(|value| !value.is_none()) {
        Some(pair) => (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let mut writer = JsonWriter {
        state,
        out: String::new(),
        unpaid: 0,
        indent,
        item,
        key,
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    writer.write(value, 0)?;
    Ok(writer.out)
}

struct JsonWriter<'render> {
    state: &'render State<'render, 'render>,
    out: String,
    /// Bytes written for which no fuel was taken yet.
    unpaid: usize,
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

/// Deepest nesting that `tojson` writes.
const MAX_DEPTH: usize = 128;

/// Bytes per unit of fuel, as everywhere in minijinja.
const BYTES_PER_FUEL: usize = 64;

impl JsonWriter<'_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.state.consume_fuel(1)?;
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::BadSerialization, "nested too deeply"));
        }
        match value.kind() {
            ValueKind::None | ValueKind::Undefined => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.out.push('{');
                let empty = keys.is_empty();
                for (index, key) in keys.into_iter().enumerate() {
                    self.separate(index, depth + 1)?;
                    match key.as_str() {
                        Some(text) => self.string(text)?,
                        None => self.string(&json_key(&key))?,
                    }
                    self.pay(self.key.len())?;
                    self.out.push_str(&self.key);
                    self.write(&value.get_item(&key)?, depth + 1)?;
                }
                if !empty {
                    self.line(depth)?;
                }
                self.out.push('}');
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut empty = true;
                for (index, element) in value.try_iter()?.enumerate() {
                    empty = false;
                    self.separate(index, depth + 1)?;
                    self.write(&element, depth + 1)?;
                }
                if !empty {
                    self.line(depth)?;
                }
                self.out.push(']');
            }
            other => {
                return Err(Error::new(ErrorKind::BadSerialization, format!("{other} has no JSON form")));
            }
        }
        Ok(())
    }

    /// Takes fuel for bytes before they are written: one long text used in many places gives much output for
    /// little work.
    fn pay(&mut self, bytes: usize) -> Result<(), Error> {
        self.unpaid += bytes;
        self.state.consume_fuel((self.unpaid / BYTES_PER_FUEL) as u64)?;
        self.unpaid %= BYTES_PER_FUEL;
        Ok(())
    }

    fn separate(&mut self, index: usize, depth: usize) -> Result<(), Error> {
        if index > 0 {
            self.pay(self.item.len())?;
            self.out.push_str(&self.item);
        }
        self.line(depth)
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(width) = self.indent.as_ref().map(String::len) else { return Ok(()) };
        self.pay(width.saturating_mul(depth))?;
        self.out.push('\n');
        for _ in 0..depth {
            self.out.extend(self.indent.as_deref());
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.pay(text.len())?;
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                control if control < ' ' => self.escape(control as u16),
                other if self.ascii && !other.is_ascii() => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        self.escape(*unit);
                    }
                }
                other => self.out.push(other),
            }
        }
        self.out.push('"');
        Ok(())
    }

    fn escape(&mut self, unit: u16) {
        self.out.push_str("\\u");
        self.out.extend(
            [12, 8, 4, 0].map(|shift| char::from_digit(u32::from(unit >> shift) & 15, 16).unwrap_or('0')),
        );
    }
}

fn json_key(key: &Value) -> String {
    match key.kind() {
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::None => "null".to_owned(),
        _ => key.to_string(),
    }
}

/// A number as Python's `json` writes it: the shortest form that reads back equal, with an exponent from 1e16
/// on.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let magnitude = float.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{float:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{float:?}")
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn generation_tags_keep_their_whitespace_control() {
        let marked = |source: &str| with_marked_generation(source);
        assert_eq!(
            marked("a{%- generation -%}b{% endgeneration %}c"),
            ("a{%- with %}{% filter luthier_generation -%}b{% endfilter %}{% endwith %}c".to_owned(), true)
        );
        for untouched in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% set x = \"%} {% generation %}\" %}",
            "{ { generation",
            "{% generation",
            "{%%}{%-%}",
        ] {
            assert_eq!(marked(untouched), (untouched.to_owned(), false));
        }
    }

    #[test]
    fn json_is_written_as_python_does() {
        let environment = environment().unwrap();
        let render = |source: &str| environment.render_str(source, ()).unwrap();
        assert_eq!(
            render(r#"{{ {"a": [1, 2.0, none], "b": {}, "é": "<&'\""} | tojson }}"#),
            r#"{"a": [1, 2.0, null], "b": {}, "é": "<&'\""}"#
        );
        assert_eq!(
            render(r#"{{ {"a": [1, []]} | tojson(indent=2) }}"#),
            "{\n  \"a\": [\n    1,\n    []\n  ]\n}"
        );
        assert_eq!(render("{{ ['é😀'] | tojson(ensure_ascii=true) }}"), r#"["\u00e9\ud83d\ude00"]"#);
        assert_eq!(
            render("{{ {'b': 1, 'a': true} | tojson(sort_keys=true, separators=(',', ':')) }}"),
            r#"{"a":true,"b":1}"#
        );
        assert_eq!(render("{{ [1e20, 0.00001, 123456789.5] | tojson }}"), "[1e+20, 1e-05, 123456789.5]");
    }
}
