//! Numbers in JSON, including NaN and infinities.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A measured number. JSON has no NaN and no infinity, so those are written as the strings `"NaN"`,
/// `"Infinity"` and `"-Infinity"`; all other values are plain JSON numbers. Two NaN compare equal, so that
/// tests can compare what was written with what was read.
#[derive(Clone, Copy, Default)]
pub struct Number(pub f64);

impl Number {
    pub fn get(self) -> f64 {
        self.0
    }

    pub fn is_finite(self) -> bool {
        self.0.is_finite()
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self(value)
    }
}

impl From<f32> for Number {
    /// Keeps the digits of the 32-bit number: `0.1f32` becomes `0.1`, not `0.10000000149011612`.
    fn from(value: f32) -> Self {
        Self(value.to_string().parse().unwrap_or_else(|_| f64::from(value)))
    }
}

impl From<Number> for f64 {
    fn from(value: Number) -> Self {
        value.0
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || (self.0.is_nan() && other.0.is_nan())
    }
}

impl fmt::Debug for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match word(self.0) {
            Some(word) => formatter.pad(word),
            None => fmt::Display::fmt(&self.0, formatter),
        }
    }
}

fn word(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        Some("NaN")
    } else if value == f64::INFINITY {
        Some("Infinity")
    } else if value == f64::NEG_INFINITY {
        Some("-Infinity")
    } else {
        None
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match word(self.0) {
            Some(word) => serializer.serialize_str(word),
            None => serializer.serialize_f64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number, or one of \"NaN\", \"Infinity\", \"-Infinity\"")
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Number, E> {
        Ok(Number(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Number, E> {
        Ok(Number(value as f64))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Number, E> {
        Ok(Number(value as f64))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Number, E> {
        match value {
            "NaN" => Ok(Number(f64::NAN)),
            "Infinity" => Ok(Number(f64::INFINITY)),
            "-Infinity" => Ok(Number(f64::NEG_INFINITY)),
            _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
        }
    }

    fn visit_unit<E: de::Error>(self) -> Result<Number, E> {
        Ok(Number(f64::NAN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_infinities_are_written_as_strings() {
        for (value, text) in [
            (f64::NAN, "\"NaN\""),
            (f64::INFINITY, "\"Infinity\""),
            (f64::NEG_INFINITY, "\"-Infinity\""),
            (0.5, "0.5"),
            (2.0, "2.0"),
        ] {
            assert_eq!(serde_json::to_string(&Number(value)).unwrap(), text);
            assert_eq!(serde_json::from_str::<Number>(text).unwrap(), Number(value));
        }
    }

    #[test]
    fn whole_numbers_and_null_are_read_too() {
        assert_eq!(serde_json::from_str::<Number>("3").unwrap(), Number(3.0));
        assert_eq!(serde_json::from_str::<Number>("-3").unwrap(), Number(-3.0));
        assert_eq!(serde_json::from_str::<Number>("null").unwrap(), Number(f64::NAN));
        assert!(serde_json::from_str::<Number>("\"nan\"").is_err());
        assert!(serde_json::from_str::<Number>("[1]").is_err());
    }

    #[test]
    fn a_32_bit_number_keeps_its_digits() {
        assert_eq!(serde_json::to_string(&Number::from(0.1_f32)).unwrap(), "0.1");
        assert!(Number::from(f32::NAN).get().is_nan());
        assert_eq!(Number::from(f32::INFINITY), Number(f64::INFINITY));
    }
}
