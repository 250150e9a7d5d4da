//! Whole numbers that 64 bits do not hold: they are read as the nearest floating-point number.

/// Fewest characters of such a number.
const SHORTEST: usize = 19;

/// Whether a JSON text has a whole number that loses digits.
pub(super) fn loses_digits(json: &[u8]) -> bool {
    let mut rest = json;
    let mut is_text = false;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        match byte {
            b'"' => is_text = !is_text,
            b'\\' if is_text => rest = behind.get(1..).unwrap_or_default(),
            b'-' | b'0'..=b'9' if !is_text => {
                let more = behind.iter().take_while(|byte| is_of_number(**byte)).count();
                let length = more + 1;
                let number = json.len() - behind.len() - 1;
                rest = behind.get(more..).unwrap_or_default();
                if length >= SHORTEST && json.get(number..number + length).is_some_and(is_too_wide) {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

fn is_of_number(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E')
}

fn is_too_wide(number: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(number) else { return false };
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.bytes().all(|byte| byte.is_ascii_digit())
        && text.parse::<i64>().is_err()
        && text.parse::<u64>().is_err()
}

/// What to say of rows with such numbers.
pub(super) fn words(rows: &str) -> String {
    format!("{rows} a whole number of more than 64 bits, whose last digits are lost; write it as a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_beyond_64_bits_lose_digits() {
        for (text, loses) in [
            ("[18446744073709551615, -9223372036854775808]", false),
            ("[18446744073709551616]", true),
            ("{\"a\": -9223372036854775809}", true),
            ("123456789012345678901234567890", true),
            ("\"123456789012345678901234567890\"", false),
            ("\"a\\\"\", 123456789012345678901234567890", true),
            ("\"\\\\\", 123456789012345678901234567890", true),
            ("[1234567890123456789012.5, 1e400, 0.1234567890123456789012]", false),
            ("\"\\", false),
            ("-", false),
            ("", false),
        ] {
            assert_eq!(loses_digits(text.as_bytes()), loses, "{text}");
        }
    }
}
