//! Time stamps in journals: RFC 3339, UTC, milliseconds.

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Deserializer, Serializer};

/// The current time, rounded to milliseconds, so that it reads back equal.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(Unit::Millisecond).unwrap_or(now)
}

/// `2026-08-23T14:02:11.250Z`: the form used in journals, status files and manifests.
pub fn text(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// `#[serde(with = "millis")]` for time stamps.
pub mod millis {
    use super::{Deserialize, Deserializer, Serializer, Timestamp};

    /// Always writes three fractional digits.
    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{time:.3}"))
    }

    /// Reads any RFC 3339 time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        Timestamp::deserialize(deserializer)
    }
}

/// `#[serde(with = "optional_millis")]` for time stamps that may be missing.
pub mod optional_millis {
    use super::{Deserialize, Deserializer, Serializer, Timestamp};

    /// Like [`super::millis::serialize`], or `null`.
    pub fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::millis::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Like [`super::millis::deserialize`], or `null`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        Option::<Timestamp>::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_fractional_digits_always() {
        let time: Timestamp = "2026-08-23T14:02:11.25Z".parse().unwrap();
        assert_eq!(text(time), "2026-08-23T14:02:11.250Z");
        assert_eq!(text(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        let now = now();
        assert_eq!(text(now).parse::<Timestamp>().unwrap(), now);
    }
}
