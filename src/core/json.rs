//! JSON that others wrote, bounded in the memory it takes: a value of two bytes in a file takes some eighty in memory.

use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

/// Parses JSON that holds at most about `most` values. They are counted by the marks that come before one, so that marks
/// within texts count as well: `most` must leave room for those.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8], most: usize) -> Result<T, serde_json::Error> {
    check(bytes, most)?;
    serde_json::from_slice(bytes)
}

/// Refuses JSON that may hold more than `most` values; looks at nothing else.
pub fn check(bytes: &[u8], most: usize) -> Result<(), serde_json::Error> {
    // Every value but the first comes behind one of these marks, or behind the name of a member that does.
    let marks = bytes.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    if marks < most {
        return Ok(());
    }
    Err(serde_json::Error::custom(format_args!("it holds more than {most} values")))
}

/// JSON text with the spaces that Python's `json.dumps` writes, as most datasets and templates have it.
pub fn python_text(value: &Value) -> String {
    let mut text = String::new();
    write_python(value, &mut text);
    text
}

fn write_python(value: &Value, text: &mut String) {
    match value {
        Value::Array(elements) => {
            text.push('[');
            for (index, element) in elements.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write_python(element, text);
            }
            text.push(']');
        }
        Value::Object(members) => {
            text.push('{');
            for (index, (name, member)) in members.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push_str(": ");
                write_python(member, text);
            }
            text.push('}');
        }
        other => text.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn values(value: &Value) -> usize {
        1 + match value {
            Value::Array(elements) => elements.iter().map(values).sum(),
            Value::Object(members) => members.values().map(values).sum(),
            _ => 0,
        }
    }

    #[test]
    fn too_many_values_are_refused_before_they_are_made() {
        let text = json!(vec![0; 100]).to_string();
        assert_eq!(from_slice::<Value>(text.as_bytes(), 101).unwrap().as_array().unwrap().len(), 100);
        let error = from_slice::<Value>(text.as_bytes(), 99).unwrap_err();
        assert_eq!(error.to_string(), "it holds more than 99 values");
        assert!(from_slice::<Value>(b"[1", 99).is_err());
    }

    #[test]
    fn text_has_the_spaces_of_python() {
        let value = json!({"a": [1, null, {"é": "b\"c"}], "d": {}, "e": []});
        assert_eq!(python_text(&value), r#"{"a": [1, null, {"é": "b\"c"}], "d": {}, "e": []}"#);
    }

    proptest! {
        #[test]
        fn no_more_values_are_made_than_allowed(text in r#"[\[\]{},:"a0 ]{0,60}"#, most in 0_usize..20) {
            if let Ok(value) = from_slice::<Value>(text.as_bytes(), most) {
                prop_assert!(values(&value) <= most, "{text}");
            }
        }
    }
}
