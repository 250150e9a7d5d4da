//! Encodings that are named instead of read.

/// What is said about a file in UTF-16.
pub(super) const UTF_16: &str =
    "UTF-16 text; save it as UTF-8 (in Excel: \"CSV UTF-8\"), or convert it: iconv -f UTF-16 -t UTF-8";

pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

/// Bytes of the beginning that are looked at.
const LOOKED_AT: usize = 256;

/// Whether the beginning of a file is in UTF-16 or UTF-32: it has their mark, or a NUL beside each character.
pub(super) fn is_wide(head: &[u8]) -> bool {
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return true;
    }
    let beginning = head.get(..LOOKED_AT).unwrap_or(head);
    let characters = beginning.iter().filter(|&&byte| byte != 0).count();
    let nuls = beginning.len() - characters;
    nuls > 1 && nuls * 2 >= characters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_text_is_known_with_and_without_its_mark() {
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let big = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        assert!(is_wide(&wide("\u{feff}\u{4e2d}\u{6587}")) && is_wide(&big("\u{feff}a")));
        assert!(is_wide(&wide("prompt,completion\n")) && is_wide(&big("prompt,completion\n")));
        for text in ["", "a", "prompt,completion\n", "\u{feff}a,b", "a\0b and much more text\n"] {
            assert!(!is_wide(text.as_bytes()), "{text:?}");
        }
    }
}
