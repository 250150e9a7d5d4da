//! JSON that others wrote, bounded in the memory it takes: a value of two bytes in a file takes some eighty in memory.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

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

/// A JSON value whose objects name each member once. Elsewhere the last of several members of one name is taken, and what
/// the others said is lost.
pub struct Distinct(pub Value);

/// How the error about a name that stands twice begins.
pub const REPEATED: &str = "one object has the name ";

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Distinctly).map(Self)
    }
}

struct Distinctly;

impl<'de> Visitor<'de> for Distinctly {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Distinct(element)) = elements.next_element()? {
            list.push(element);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Distinct(member))) = members.next_entry::<String, Distinct>()? {
            if object.contains_key(&name) {
                let name = crate::text::clean_line(&name).into_owned();
                return Err(A::Error::custom(format_args!("{REPEATED}{name:?} twice")));
            }
            object.insert(name, member);
        }
        Ok(object.into())
    }
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
    fn a_name_that_stands_twice_in_an_object_is_an_error() {
        let read = |text: &str| serde_json::from_str::<Distinct>(text).map(|value| value.0);
        for text in [
            "null",
            "[1, -2, 0.1, 18446744073709551615, true, \"é\"]",
            "{\"b\": {\"a\": 1}, \"a\": []}",
            "1e300",
        ] {
            assert_eq!(read(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
        let error = read("{\"a\": [{\"b\": 1, \"b\": 2}]}").unwrap_err().to_string();
        assert!(error.starts_with("one object has the name \"b\" twice"), "{error}");
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
