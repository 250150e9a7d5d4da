//! Text that went through the wrong encoding, or through an escape too many.

use super::markdown::prose;
use crate::text::clean_line;

/// Most characters that are decoded together.
const MAX_PIECE: usize = 16;
/// So many characters in a row that all decode to letters are no accident in any language.
const SURE: usize = 3;
/// Fewest escapes that are no slip of one word.
const MIN_ESCAPES: usize = 3;
/// Texts with these words speak of encodings and may show what goes wrong with them.
const ABOUT_ENCODING: [&str; 8] =
    ["mojibake", "utf-8", "utf8", "latin-1", "latin1", "iso-8859", "1252", "encoding"];
/// Texts with these words speak of markup and may show its entities.
const ABOUT_MARKUP: [&str; 5] = ["html", "xml", "entit", "escap", "markup"];
/// Texts with these are code or JSON that is not fenced.
const LITERALS: [&str; 6] = ["\":", "\"\\u", "('\\u", ":'\\u", " r'\\u", " u'\\u"];
const ENTITIES: [&str; 12] =
    ["amp", "lt", "gt", "quot", "apos", "nbsp", "hellip", "mdash", "ndash", "rsquo", "eacute", "uuml"];

/// UTF-8 that was read as Latin-1 or Windows-1252: the first such piece and what it should read as. `None`
/// where the same characters may well be meant, as in capitals before punctuation.
pub(super) fn mojibake(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let mut before = None;
    for (at, character) in text.char_indices() {
        if ('\u{c2}'..='\u{f4}').contains(&character) {
            let rest = text.get(at..).unwrap_or_default();
            if let Some(piece) = Piece::at(rest)
                && piece.is_certain(before, rest)
            {
                return (!mentions(text, &ABOUT_ENCODING)).then(|| piece.told());
            }
        }
        before = Some(character);
    }
    None
}

struct Piece<'text> {
    text: &'text str,
    decoded: String,
    /// Bytes of `text` that the first decoded character takes.
    first: usize,
}

impl<'text> Piece<'text> {
    /// The characters at the start of `rest` that decode as UTF-8, if any.
    fn at(rest: &'text str) -> Option<Self> {
        let mut decoded = String::new();
        let (mut length, mut first) = (0, 0);
        while decoded.chars().count() < MAX_PIECE
            && let Some((character, taken)) = decode(rest.get(length..).unwrap_or_default())
        {
            if length == 0 {
                first = taken;
            }
            decoded.push(character);
            length += taken;
        }
        (length > 0).then(|| Piece { text: rest.get(..length).unwrap_or_default(), decoded, first })
    }

    fn is_certain(&self, before: Option<char>, rest: &str) -> bool {
        let mut characters = self.text.chars();
        let (Some(lead), Some(second)) = (characters.next(), characters.next()) else { return false };
        let third = characters.next();
        if self.decoded.chars().count() >= SURE && self.decoded.chars().all(char::is_alphabetic) {
            return true;
        }
        let control = matches!(second, '\u{80}'..='\u{9f}');
        // The next character, past the first one decoded.
        let next = rest.get(self.first..).and_then(|rest| rest.chars().next());
        let in_capitals = before.is_some_and(char::is_uppercase);
        match lead {
            'â' => control || "€„†‡ˆ‰šœž".contains(second),
            'ð' => second == 'Ÿ' || second == '\u{9f}',
            'ï' => matches!((second, third), ('»', Some('¿')) | ('¿', Some('½'))),
            // A capital does not follow a small letter, least of all with a sign behind it.
            _ if lead.is_uppercase() && before.is_some_and(char::is_lowercase) => true,
            'Ã' => {
                control
                    || if "¨©¤¶¼½¾±³²¹¢£§´µ¸¬®¯¦¥‰‡†ˆŠŒŽƒ€˜šœžŸ".contains(second)
                    {
                        !in_capitals || !"¹²³®©§".contains(second)
                    } else {
                        second != '\u{a0}'
                            && !before.is_some_and(char::is_alphanumeric)
                            && next.is_some_and(char::is_lowercase)
                    }
            }
            'Â' => {
                let quoted = before.is_some_and(|before| "\"'“‘«„‹(".contains(before));
                !in_capitals
                    && !quoted
                    && (control
                        || "£°©®§±²³½¼¾¡¿¢¥µ¶¬´".contains(second)
                        || (second == '\u{a0}'
                            && before.is_some()
                            && !next.is_some_and(|next| ":;!?»".contains(next))))
            }
            _ => false,
        }
    }

    fn told(&self) -> String {
        let shown = clean_line(&self.decoded);
        if shown.trim().is_empty() {
            let points: Vec<String> =
                self.decoded.chars().map(|character| format!("U+{:04X}", u32::from(character))).collect();
            return format!("\"{}\", which should read {}", clean_line(self.text), points.join(" "));
        }
        format!("\"{}\", which should read \"{shown}\"", clean_line(self.text))
    }
}

/// The character whose UTF-8 bytes the first characters of `rest` stand for, and how many bytes they take.
fn decode(rest: &str) -> Option<(char, usize)> {
    let mut characters = rest.chars();
    let lead_character = characters.next()?;
    let lead = byte(lead_character)?;
    let width = match lead {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let mut bytes = vec![lead];
    let mut taken = lead_character.len_utf8();
    for character in characters.take(width - 1) {
        bytes.push(byte(character).filter(|byte| matches!(byte, 0x80..=0xbf))?);
        taken += character.len_utf8();
    }
    let decoded = std::str::from_utf8(&bytes).ok()?.chars().next()?;
    Some((decoded, taken))
}

/// The byte that Windows-1252, or Latin-1 where that has none, reads as a character beyond ASCII.
fn byte(character: char) -> Option<u8> {
    Some(match character {
        '\u{80}'..='\u{ff}' => u8::try_from(u32::from(character)).ok()?,
        '€' => 0x80,
        '‚' => 0x82,
        'ƒ' => 0x83,
        '„' => 0x84,
        '…' => 0x85,
        '†' => 0x86,
        '‡' => 0x87,
        'ˆ' => 0x88,
        '‰' => 0x89,
        'Š' => 0x8a,
        '‹' => 0x8b,
        'Œ' => 0x8c,
        'Ž' => 0x8e,
        '‘' => 0x91,
        '’' => 0x92,
        '“' => 0x93,
        '”' => 0x94,
        '•' => 0x95,
        '–' => 0x96,
        '—' => 0x97,
        '˜' => 0x98,
        '™' => 0x99,
        'š' => 0x9a,
        '›' => 0x9b,
        'œ' => 0x9c,
        'ž' => 0x9e,
        'Ÿ' => 0x9f,
        _ => return None,
    })
}

/// Whether prose holds escapes that should have been undone: at least three of `\n` without a real line
/// break, of `\u00e9` within words, or of HTML entities. Code, JSON and markup are left out.
pub(super) fn escaped(text: &str) -> bool {
    if !text.contains(['\\', '&']) || text.trim_start().starts_with(['{', '[', '<', '"']) {
        return false;
    }
    let prose = prose(text);
    if LITERALS.iter().any(|literal| prose.contains(literal)) {
        return false;
    }
    let breaks = if prose.trim().contains('\n') { 0 } else { line_breaks(&prose) };
    breaks >= MIN_ESCAPES || code_points(&prose) >= MIN_ESCAPES || entities(&prose) >= MIN_ESCAPES
}

/// The number of `\n` that stand for line breaks, not for the start of a command, a path or a string's end.
fn line_breaks(prose: &str) -> usize {
    let formula = ["\\frac", "\\begin", "\\(", "\\[", "$"].iter().any(|mark| prose.contains(mark));
    if formula {
        return 0;
    }
    prose
        .match_indices("\\n")
        .filter(|&(at, found)| {
            let before = prose.get(..at).unwrap_or_default();
            let after = prose.get(at + found.len()..).unwrap_or_default();
            let ends = before.ends_with(['.', ',', ':', ';', '!', '?']) || before.ends_with("\\n");
            let starts = !after.starts_with(|next: char| next.is_lowercase() || "\"'`])".contains(next));
            let path = before.ends_with(':') && before.trim_end_matches(':').ends_with(char::is_uppercase);
            (ends || starts) && !path && !after.starts_with(['"', '\''])
        })
        .count()
}

/// The number of `\u00e9` and the like that are part of a word.
fn code_points(prose: &str) -> usize {
    prose
        .match_indices("\\u")
        .filter(|&(at, found)| {
            let before = prose.get(..at).unwrap_or_default();
            let after = prose.get(at + found.len()..).unwrap_or_default();
            let Some((digits, after)) = after.split_at_checked(4) else { return false };
            let in_word = before.ends_with(char::is_alphabetic) || after.starts_with(char::is_alphabetic);
            let in_row = after.starts_with("\\u");
            digits.bytes().all(|digit| digit.is_ascii_hexdigit()) && (in_word || in_row)
        })
        .count()
}

fn entities(prose: &str) -> usize {
    if !prose.contains('&') || prose.contains("</") || prose.contains("/>") || prose.contains("&&") {
        return 0;
    }
    let found = prose.match_indices('&').filter(|&(at, _)| {
        let after = prose.get(at + 1..).unwrap_or_default();
        // No entity is longer.
        let near = &after[..after.floor_char_boundary(12.min(after.len()))];
        let Some((name, _)) = near.split_once(';') else { return false };
        let number = name.strip_prefix('#').is_some_and(|number| {
            let hexadecimal = number.strip_prefix(['x', 'X']);
            let digits = hexadecimal.unwrap_or(number);
            (1..=6).contains(&digits.len())
                && digits.chars().all(|digit| digit.is_digit(if hexadecimal.is_some() { 16 } else { 10 }))
        });
        number || ENTITIES.contains(&name)
    });
    let found = found.count();
    if found >= MIN_ESCAPES && mentions(prose, &ABOUT_MARKUP) { 0 } else { found }
}

fn mentions(text: &str, words: &[&str]) -> bool {
    let lower = text.to_lowercase();
    words.iter().any(|word| lower.contains(word))
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    /// A text whose UTF-8 is read as Windows-1252.
    fn misread(text: &str) -> String {
        let known: Vec<(u8, char)> =
            ('\u{80}'..'\u{2200}').filter_map(|character| Some((byte(character)?, character))).collect();
        text.bytes()
            .map(|wanted| match known.iter().rev().find(|&&(byte, _)| byte == wanted) {
                Some(&(_, character)) => character,
                None => char::from(wanted),
            })
            .collect()
    }

    #[test]
    fn planted_mojibake_is_found() {
        for (text, piece) in [
            ("Das Café ist über Mittag geschlossen.", "é"),
            ("Été comme hiver", "É"),
            ("don’t", "’"),
            ("an “apple” a day", "“"),
            ("one – two", "–"),
            ("so 😀 happy", "😀"),
            ("it costs £20", "£"),
            ("20 °C", "°"),
            ("привет, мир", "привет"),
            ("日本語の文", "日本語の文"),
            ("załoga", "ł"),
            ("¡Hola!", "¡"),
            ("Óscar", "Ó"),
            ("Acme™", "™"),
            ("✅ done", "✅"),
        ] {
            let told = mojibake(&misread(text)).unwrap_or_default();
            assert!(told.ends_with(&format!("which should read \"{piece}\"")), "{text}: {told}");
            assert_eq!(mojibake(text), None, "{text}");
        }
        assert_eq!(mojibake("cafÃ©").as_deref(), Some("\"Ã©\", which should read \"é\""));
        assert_eq!(
            mojibake(&misread("Hello.\u{a0}World")).as_deref(),
            Some("\"Â\u{a0}\", which should read U+00A0")
        );
        assert!(mojibake(&misread("\u{feff}Hello")).is_some_and(|told| told.ends_with("U+FEFF")));
        assert!(mojibake("caf\u{c3}\u{83}\u{c2}\u{a9}").is_some());
    }

    #[test]
    fn real_text_is_no_mojibake() {
        for text in [
            "",
            "NÃO! A MÃE DE SÃO PAULO VAI AMANHÃ.",
            "“AMANHÃ” — «IRMû… MANHû",
            "A palavra MAÇÃ, maçã e “maçã”…",
            "AMANHÖ E DEPOIS",
            "Un café\u{a0}», dit-il, un été\u{a0}»… à\u{a0}»",
            "VOILÀ «\u{a0}À\u{a0}» ET Â\u{a0}: CHÂTEAU",
            "ESPAÑA, «Ñ» y “Ñ”…",
            "Spaß”… Straße“ und „Ä“, „Ü“ und GRÖSSE",
            "CAFÉ”, RÉSUMÉ…",
            "Å»Ä«Ö”",
            "XÃ HỘI, MÃ SỐ, Việt Nam, đã, cũng",
            "România, câine, â, î: „mâine”",
            "Ðegar það… Ð” og ð",
            "Это обычный русский текст «в кавычках»…",
            "日本語、中文「引用」……",
            "Ελληνικά «κείμενο»…",
            "x² + y³ ≤ 5 µm ± 2 °C, 3 × 4 ÷ 2",
            "naïve façade, œuvre, Œdipe, Ÿ",
            "The é became Ã© because UTF-8 was read as Latin-1.",
            "© 2024 Acme® – all rights ™",
            "😀👍🏽 ✅ → ≥",
            "INFORMAÇÃO® e IRMò",
            "İstanbul, ağaç, şeker, IŞIK",
        ] {
            assert_eq!(mojibake(text), None, "{text}");
        }
    }

    #[test]
    fn escapes_in_prose_are_found() {
        for text in [
            "Hello Ann,\\n\\nthank you for the order.\\nIt is on its way.",
            "First line\\nSecond line\\nThird line\\nFourth",
            "Un caf\\u00e9 et un th\\u00e9 pour l'\\u00e9t\\u00e9",
            "\\u4f60\\u597d\\u5417",
            "Tom &amp; Jerry &amp; friends said &quot;hello&quot;",
            "it&#39;s what they&#39;ve said, isn&#x27;t it",
        ] {
            assert!(escaped(text), "{text}");
        }
    }

    #[test]
    fn code_formulas_and_markup_are_not_escaped_prose() {
        for text in [
            "",
            "Use \\n for a line break.",
            "```c\nprintf(\"a\\n\\n\\nB\\n\");\n```",
            "Write `a\\nB\\nC\\nD` in the file.",
            "printf(\"a\\n\"); printf(\"b\\n\"); printf(\"c\\n\");",
            "{\"text\": \"a.\\nB.\\nC.\\nD &amp; &amp; &amp;\"}",
            "$\\nu \\neq \\nabla$ and \\(\\nu\\)",
            "the angles \\nu, \\nu and \\nabla \\neq",
            "C:\\new\\names\\notes\\now",
            "D:\\Nord\\Name\\Net",
            "A real break\nand \\n, \\N, \\n. \\n",
            "<p>Tom &amp; Jerry &lt; &gt;</p>",
            "HTML knows &amp;, &lt; and &gt;.",
            "if (a && b && c) { x &= y; }",
            "https://luthier.dev/?a=1&b=2&c=3;d",
            "Q&A; R&D; AT&T;",
            "\\u00e9 is é, \\u00e8 is è, \\u00ea is ê",
            "\\usepackage{a} \\underline{b} \\utilde",
            "table = {0x1f66:'\\u1f66\\u03b9', 0x1f67:'\\u1f67\\u03b9', 0x1f68:'\\u1f68\\u03b9'}",
            "\"text\": \"th\\u00e9\\u00e9, caf\\u00e9s\", \"lang\": \"fr\"",
            "Regex: \\d+\\s\\w \\unicode",
        ] {
            assert!(!escaped(text), "{text}");
        }
    }
}
