//! `NaN` and `Infinity`, which Python's `json.dumps` writes and JSON does not have.

/// Words of Python's `json` for numbers that JSON has not.
const WORDS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];

/// JSON with null in place of each of those words outside of texts, and how many there were; `None` if there
/// are none.
pub(super) fn without_nan(json: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut result = Vec::new();
    let (mut at, mut copied, mut count) = (0, 0, 0);
    let mut quoted = false;
    while let Some(&byte) = json.get(at) {
        let rest = json.get(at..).unwrap_or_default();
        let starts = !quoted && matches!(byte, b'N' | b'I' | b'-');
        if let Some(word) = WORDS.iter().find(|word| starts && rest.starts_with(word)) {
            result.extend_from_slice(json.get(copied..at).unwrap_or_default());
            result.extend_from_slice(b"null");
            at += word.len();
            copied = at;
            count += 1;
            continue;
        }
        quoted ^= byte == b'"';
        // What a backslash precedes does not end a text.
        at += if quoted && byte == b'\\' { 2 } else { 1 };
    }
    (count > 0).then(|| {
        result.extend_from_slice(json.get(copied..).unwrap_or_default());
        (result, count)
    })
}

/// What is said about `count` replaced words in so many `places`.
pub(super) fn words(places: &str, count: usize) -> String {
    format!("NaN or Infinity in {places} {} read as null", if count == 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn only_words_outside_of_texts_are_replaced() {
        let text = |json: &str| {
            without_nan(json.as_bytes()).map(|(bytes, count)| (String::from_utf8(bytes).unwrap(), count))
        };
        assert_eq!(
            text(r#"{"a": NaN, "NaN": [-Infinity,Infinity], "b": "\"NaN", "c\\": NaN}"#),
            Some((r#"{"a": null, "NaN": [null,null], "b": "\"NaN", "c\\": null}"#.to_owned(), 4))
        );
        for unchanged in [r#"{"a": "NaN, -Infinity", "b": -1, "c": null}"#, "", "\"", "\"\\", "Na", "-"] {
            assert_eq!(text(unchanged), None, "{unchanged}");
        }
    }
}
