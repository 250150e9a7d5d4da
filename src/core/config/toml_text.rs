//! Values as TOML text, on one line and short.

use std::fmt::Write;

use toml::Value;

/// The value as written after a `=`.
pub(super) fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Float(value) => number(*value),
        Value::Integer(value) => value.to_string(),
        Value::Boolean(value) => value.to_string(),
        Value::Datetime(value) => value.to_string(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(literal).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) if table.is_empty() => "{}".to_owned(),
        Value::Table(table) => {
            let items: Vec<_> = table
                .iter()
                .map(|(name, value)| format!("{} = {}", bare_or_quoted(name), literal(value)))
                .collect();
            format!("{{ {} }}", items.join(", "))
        }
    }
}

/// A line that gives a key of a section its value; a key of a table in the section gets the table
/// around it.
pub(super) fn assignment(name: &str, literal: &str) -> String {
    match name.split_once('.') {
        Some((table, name)) => format!("{table} = {{ {name} = {literal} }}"),
        None => format!("{name} = {literal}"),
    }
}

/// A float that reads back exactly; small and large ones in the form people write them, `2e-4`.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(0.01..1e7).contains(&size) { format!("{value:e}") } else { format!("{value:?}") }
}

fn bare_or_quoted(name: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.bytes().all(is_bare) { name.to_owned() } else { quoted(name) }
}

/// Line ends and everything that could not be seen are escaped, so that the text stays on its line.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            other if !crate::text::clean(other.encode_utf8(&mut [0; 4])).is_empty() => quoted.push(other),
            other => {
                let _ = write!(quoted, "\\U{:08X}", other as u32);
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact() {
        let written: Vec<_> =
            [2e-4, 0.0, 3.0, 0.999, 0.00018, 1e-10, 1e300, 123_456.0, -0.5].map(number).into();
        assert_eq!(written, ["2e-4", "0.0", "3.0", "0.999", "1.8e-4", "1e-10", "1e300", "123456.0", "-0.5"]);
    }

    #[test]
    fn texts_stay_on_their_line() {
        let text = "a\"b\\c\nd\te\u{1b}\u{202e}é";
        let written = literal(&Value::from(text));
        assert_eq!(written, "\"a\\\"b\\\\c\\nd\\te\\U0000001B\\U0000202Eé\"");
        let read: toml::Table = toml::from_str(&format!("x = {written}")).expect("valid");
        assert_eq!(read["x"].as_str(), Some(text));
    }

    #[test]
    fn tables_and_lists_are_inline() {
        let value: Value = toml::from_str("\"a b\" = [1, 2.5, true]\nc = {}\n").expect("valid");
        assert_eq!(literal(&value), "{ \"a b\" = [1, 2.5, true], c = {} }");
    }
}
