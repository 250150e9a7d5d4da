//! Metadata values of a GGUF file.

#[derive(Debug, Clone, PartialEq)]
pub(in crate::model) enum Value {
    Unsigned(u64),
    Signed(i64),
    Single(f32),
    Double(f64),
    Truth(bool),
    Text(String),
    Array(Array),
}

/// Elements of one type.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::model) enum Array {
    /// Numbers and truth values stay as the bytes of the file, so that a crafted array cannot take much more
    /// memory.
    Numbers {
        kind: Number,
        bytes: Vec<u8>,
    },
    Texts(Vec<String>),
    Arrays(Vec<Array>),
}

/// The element types of fixed size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Number {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Truth,
    U64,
    I64,
    F64,
}

/// The type number of texts.
pub(super) const TEXT: u32 = 8;
/// The type number of arrays.
pub(super) const ARRAY: u32 = 9;

impl Number {
    /// `enum gguf_type` of `gguf.h`.
    pub(super) const fn of(kind: u32) -> Option<Self> {
        Some(match kind {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Truth,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes per value.
    pub(super) const fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Truth => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Decodes [`Number::size`] bytes; missing ones count as 0.
    pub(super) fn decode(self, bytes: &[u8]) -> Value {
        let mut padded = [0; 8];
        for (to, from) in padded.iter_mut().zip(bytes.iter().take(self.size())) {
            *to = *from;
        }
        let bits = u64::from_le_bytes(padded);
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Unsigned(bits),
            Self::I8 => Value::Signed(i64::from(bits as i8)),
            Self::I16 => Value::Signed(i64::from(bits as i16)),
            Self::I32 => Value::Signed(i64::from(bits as i32)),
            Self::I64 => Value::Signed(bits as i64),
            Self::F32 => Value::Single(f32::from_bits(bits as u32)),
            Self::F64 => Value::Double(f64::from_bits(bits)),
            Self::Truth => Value::Truth(bits != 0),
        }
    }
}

impl Value {
    /// A whole number that is not negative.
    pub(in crate::model) fn unsigned(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// Any number. A single becomes the double with the same decimal form, because metadata comes from
    /// decimal settings: 1e-5 stays 1e-5.
    pub(in crate::model) fn number(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            Self::Single(value) => value.to_string().parse().ok(),
            Self::Double(value) => Some(value),
            _ => None,
        }
    }

    /// A truth value.
    pub(in crate::model) fn truth(&self) -> Option<bool> {
        match *self {
            Self::Truth(value) => Some(value),
            _ => None,
        }
    }

    /// A string.
    pub(in crate::model) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(value) => Some(value),
            _ => None,
        }
    }

    pub(in crate::model) fn array(&self) -> Option<&Array> {
        match self {
            Self::Array(value) => Some(value),
            _ => None,
        }
    }
}

impl Array {
    /// The elements of an array of numbers or truth values.
    pub(in crate::model) fn numbers(&self) -> Option<impl Iterator<Item = Value>> {
        match self {
            Self::Numbers { kind, bytes } => {
                Some(bytes.chunks_exact(kind.size()).map(|bytes| kind.decode(bytes)))
            }
            Self::Texts(_) | Self::Arrays(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_sign_and_width() {
        assert_eq!(Number::I8.decode(&[0xff]), Value::Signed(-1));
        assert_eq!(Number::I16.decode(&[0xfe, 0xff]), Value::Signed(-2));
        assert_eq!(Number::U16.decode(&[0xfe, 0xff, 9]), Value::Unsigned(0xfffe));
        assert_eq!(Number::I64.decode(&[0xff; 8]), Value::Signed(-1));
        assert_eq!(Number::F64.decode(&0.1_f64.to_le_bytes()), Value::Double(0.1));
    }

    #[test]
    fn singles_keep_their_decimal_form() {
        assert_eq!(Value::Single(1e-5).number(), Some(1e-5));
        assert_eq!(Value::Single(500_000.0).number(), Some(500_000.0));
        assert!(Value::Single(f32::NAN).number().unwrap().is_nan());
    }
}
