//! Tools that a row offers, and calls of them, in the form that chat templates expect (transformers' tool use).

use serde_json::{Map, Value, json};

use super::{Fields, kind, parsed};

/// The tools of a row as a list of `{"type": "function", "function": …}`: from such a list, bare functions,
/// JSON text of either, or a list of JSON texts. `None` if there are none.
pub(super) fn offered(value: &Value) -> Result<Option<Value>, String> {
    let list = match parsed(value) {
        Value::Array(list) => list,
        Value::String(text) if is_blank(&text) => return Ok(None),
        Value::Object(nothing) if nothing.is_empty() => return Ok(None),
        Value::Object(tool) if tool.contains_key("name") || tool.contains_key("function") => {
            vec![Value::Object(tool)]
        }
        other => return Err(format!("is {} where a list is expected", kind(&other))),
    };
    let tools =
        list.iter().enumerate().filter(|(_, tool)| !tool.is_null()).map(|(index, tool)| match parsed(tool) {
            Value::Object(fields) => Ok(wrapped(fields)),
            other => Err(format!("has {} at position {index} where a tool is expected", kind(&other))),
        });
    let tools = tools.collect::<Result<Vec<_>, _>>()?;
    Ok((!tools.is_empty()).then(|| Value::Array(tools)))
}

/// Whether a text says that there is nothing.
fn is_blank(text: &str) -> bool {
    matches!(text.trim(), "" | "null" | "None" | "none")
}

fn wrapped(mut tool: Fields) -> Value {
    if let Some(function) = tool.get_mut("function") {
        decode(function, "parameters");
        return Value::Object(tool);
    }
    if !tool.contains_key("name") {
        return Value::Object(tool);
    }
    if tool.get("type").is_some_and(|kind| kind == "function") {
        tool.shift_remove("type");
    }
    let mut function = Value::Object(tool);
    decode(&mut function, "parameters");
    json!({"type": "function", "function": function})
}

/// Replaces a member that is the JSON text of an object by that object.
fn decode(fields: &mut Value, name: &str) {
    if let Some(value) = fields.get_mut(name)
        && let decoded @ Value::Object(_) = parsed(value)
    {
        *value = decoded;
    }
}

/// Calls of tools: a list of calls, or one call, also as JSON text.
pub(super) fn calls(value: &Value) -> Result<Vec<Value>, String> {
    match parsed(value) {
        Value::Array(list) => list.iter().filter(|call| !call.is_null()).map(call).collect(),
        one @ Value::Object(_) => Ok(vec![call(&one)?]),
        Value::Null => Ok(Vec::new()),
        Value::String(text) if is_blank(&text) => Ok(Vec::new()),
        other => Err(format!("is {} where a tool call is expected", kind(&other))),
    }
}

/// `{"type": "function", "function": {"name", "arguments"}}`, from that or from a bare `{"name",
/// "arguments"}`. Arguments that are JSON text are decoded once.
fn call(value: &Value) -> Result<Value, String> {
    let Value::Object(mut call) = parsed(value) else {
        return Err(format!("holds {} where a tool call is expected", kind(value)));
    };
    let mut outer = Map::new();
    let mut function = match call.shift_remove("function").map(|function| parsed(&function)) {
        Some(Value::Object(function)) => {
            outer = call;
            function
        }
        // Mistral's and others' `{"function": "name", "arguments": …}`.
        Some(Value::String(name)) => {
            call.insert("name".to_owned(), name.into());
            call
        }
        Some(other) => return Err(format!("has a \"function\" that is {}", kind(&other))),
        None => call,
    };
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(format!("calls a tool without a \"name\" (has {})", super::names(&function)));
    }
    for id in ["id", "type"] {
        if let Some(value) = function.shift_remove(id) {
            outer.entry(id).or_insert(value);
        }
    }
    let mut given = |name: &str| function.shift_remove(name).filter(|arguments| !arguments.is_null());
    let arguments = ["arguments", "parameters", "input"].into_iter().find_map(&mut given);
    let arguments = match arguments.map(|arguments| (parsed(&arguments), arguments)) {
        Some((decoded @ Value::Object(_), _)) => decoded,
        Some((_, Value::String(text))) if !is_blank(&text) => Value::String(text),
        None | Some((_, Value::Null | Value::String(_))) => Value::Object(Map::new()),
        Some((_, other)) => other,
    };
    let name = function.shift_remove("name").unwrap_or_default();
    let mut inner = Map::new();
    inner.insert("name".to_owned(), name);
    inner.insert("arguments".to_owned(), arguments);
    inner.extend(function);
    outer.shift_remove("type");
    let mut whole = Map::new();
    whole.insert("type".to_owned(), "function".into());
    whole.insert("function".to_owned(), Value::Object(inner));
    whole.extend(outer);
    Ok(Value::Object(whole))
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn tools_are_wrapped_however_they_are_written() {
        let bare = json!({"name": "f", "parameters": {"type": "object"}});
        let expected = json!([{"type": "function", "function": bare}]);
        for written in [
            expected.clone(),
            json!([bare]),
            json!(expected.to_string()),
            json!([bare.to_string()]),
            json!(json!([bare.to_string()]).to_string()),
            bare.clone(),
            json!([{"type": "function", "name": "f", "parameters": {"type": "object"}}]),
            json!([{"name": "f", "parameters": "{\"type\": \"object\"}"}]),
        ] {
            assert_eq!(offered(&written), Ok(Some(expected.clone())), "{written}");
        }
        for nothing in [json!([]), json!(""), json!(" \n"), json!("[]"), json!("null"), json!([null])] {
            assert_eq!(offered(&nothing), Ok(None), "{nothing}");
        }
        assert_eq!(offered(&json!("f")), Err("is text where a list is expected".to_owned()));
        assert_eq!(
            offered(&json!([1])),
            Err("has a number at position 0 where a tool is expected".to_owned())
        );
    }

    #[test]
    fn calls_have_their_arguments_decoded_once() {
        let expected = json!([{"type": "function", "function": {"name": "f", "arguments": {"a": "{1}"}}}]);
        for written in [
            expected.clone(),
            json!([{"name": "f", "arguments": {"a": "{1}"}}]),
            json!({"name": "f", "arguments": "{\"a\": \"{1}\"}"}),
            json!("{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"{1}\\\"}\"}"),
            json!([{"function": {"name": "f", "arguments": "{\"a\": \"{1}\"}"}}]),
            json!([{"function": {"name": "f", "parameters": {"a": "{1}"}}, "type": "function"}]),
        ] {
            assert_eq!(calls(&written).map(Value::Array), Ok(expected.clone()), "{written}");
        }
        let with_id =
            calls(&json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]));
        assert_eq!(
            with_id,
            Ok(vec![json!({"type": "function", "function": {"name": "f", "arguments": {}}, "id": "1"})])
        );
        let broken = calls(&json!([{"name": "f", "arguments": "{broken"}])).unwrap();
        assert_eq!(broken[0]["function"]["arguments"], "{broken");
        assert!(calls(&json!([{"arguments": {}}])).unwrap_err().contains("without a \"name\""));
        assert_eq!(calls(&Value::Null), Ok(Vec::new()));
    }
}
