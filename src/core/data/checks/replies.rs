//! Checks of what a reply says: refusals, boilerplate, broken form, repetition, echoes.

use std::iter::Peekable;

use regex::Regex;
use serde::de::IgnoredAny;
use serde_json::error::Category;

use super::markdown::{Block, blocks, prose};
use crate::text::clean_line;

/// A refusal begins within this many characters; what comes later is part of an answer.
const OPENING: usize = 200;
/// Characters beyond [`OPENING`] in which it may end.
const OPENING_END: usize = 80;
/// Replies that begin so are letters for somebody else, who may well be refused something.
const LETTERS: [&str; 11] = [
    "dear ",
    "subject:",
    "betreff:",
    "sehr geehrte",
    "liebe ",
    "lieber ",
    "cher ",
    "chère ",
    "objet :",
    "asunto:",
    "estimad",
];

/// Where a sentence starts, with "I'm sorry" and the like.
const START: &str = r"(?:^|[.!?:\n] *)";
const SORRY: &str = concat!(
    r"(?:oh|well|hello|hi|hmm|however|unfortunately|regrettably|sorry|(?:my )?apologies|",
    r"(?:i )?apologi[sz]e|i(?:'m| am)(?: so| very| really| truly| terribly| deeply)? (?:sorry|",
    r"afraid))[,.;:!–—-]*(?: (?:but|that|however|because),?)? *"
);
const CONCESSION: &str =
    r"(?:(?:while|although|as much as|i understand|i appreciate|i know)\b[^.!?\n]*, (?:but )?)?";
const CANNOT: &str = concat!(
    r"i(?:'m (?:not able to|unable to|not allowed to|not permitted to)| (?:can't|cannot|can not|won't|",
    r"will not|am not able to|am unable to|am not allowed to|am not permitted to|must decline to|",
    r"have to decline to))(?: (?:really|ethically|morally|legally|directly|currently|possibly|",
    r"in good conscience),?)* "
);
/// What nobody declines but an assistant.
const TASK: &str = concat!(
    r"(?:help (?:you )?(?:with|by)\b|help(?: you)?(?: there| here)?[.,;!]|help you (?:to )?(?:create|",
    r"make|build|write|do)\b|assist(?:[.,]| (?:you )?(?:with|in)\b)|comply\b|fulfil|provide (?:you|that|",
    r"this|any|an?|the|information|instructions|assistance|medical|legal|financial|specific|real-time|",
    r"personal|details|guidance|such|advice|help|support|content)\b|generate (?:that|this|such|content|",
    r"any|images?|an?)\b|engage in|participate in|(?:answer|respond to|support|accommodate|discuss|",
    r"create|write|share) (?:that|this|such|any|your|those)\b|offer (?:advice|guidance|instructions)|",
    r"give (?:advice|instructions|medical|legal|financial)|browse|access (?:the internet|real-time|",
    r"external|links|urls|websites))"
);
/// What others decline as well, without being sorry for it.
const DEED: &str =
    r"(?:do (?:that|this)\b|answer\b|continue with\b|recommend\b|discuss\b|help you (?:plan|find|hack)\b)";
const ASSISTANT: &str = concat!(
    r"as an? (?:responsible |helpful |large )?(?:ai|artificial intelligence|",
    r"language model)(?: (?:language )?(?:model|assistant|system|chatbot))?(?: (?:developed|created|",
    r"trained|made|built) by [^,.]*)?, i(?:'m (?:not|unable)| (?:can't|cannot|can not|don't|do not|",
    r"won't|will not|am not|am unable|must|have no))\b"
);
const OTHERS: &str = concat!(
    r"i'm (?:just |only )?an ai\b[^.!?\n]* (?:can't|cannot|don't|do not|unable)\b|(?:that's|that is|",
    r"this is) not something i(?: can|'m able| am able)\b|it (?:would|",
    r"is) not be appropriate for me to\b|i (?:must|have to|need to|",
    r"will have to) (?:respectfully )?decline (?:this|that|your request|to (?:help|answer|provide|",
    r"assist|write|create))\b|i(?:'d| would) (?:rather|prefer) not (?:to )?(?:discuss|answer|",
    r"help with)\b"
);
const GERMAN: &str = concat!(
    r"(?:(?:(?:es )?tut mir(?: sehr| wirklich)? leid|leider|entschuldigung|entschuldige|",
    r"bedauere)[,.!:]?(?: (?:aber|dass))? *)*(?:(?:dabei|damit|hierbei|das|diese\w*(?: \w+)?|",
    r"solche\w*(?: \w+)?|leider)(?: leider)? (?:kann|darf|werde) ich|ich (?:kann|darf|",
    r"werde))(?: \w+){0,6}? nicht (?:weiter)?(?:helfen|behilflich sein|unterstützen|beantworten|",
    r"erfüllen|nachkommen|bereitstellen|erstellen|geben)|als (?:ki|künstliche intelligenz|sprachmodell|",
    r"großes sprachmodell)[\w-]*,? (?:kann|darf|habe|bin|werde) ich[^.!?\n]* (?:nicht|kein\w*)\b"
);
const FRENCH: &str = concat!(
    r"(?:je (?:suis|m'excuse)(?: vraiment| sincèrement)? ?(?:désolée?)?|désolée?|malheureusement|",
    r"je regrette)[,.! ]*(?:mais )?je ne (?:peux|suis pas (?:en mesure|capable|autorisée?)|",
    r"puis)(?: pas)?(?: (?:d'|de |vous |t'|te )*(?:aider|répondre|fournir|satisfaire|générer|donner|",
    r"accéder|créer|traiter|discuter|participer|faire))|je ne (?:peux pas|suis pas en mesure (?:de|",
    r"d')) ?(?:vous |t')?(?:aider(?: avec|[.,!]| (?:à|dans|sur) (?:cela|ce))|fournir|",
    r"répondre à (?:cette|ce|votre|ta)|satisfaire|générer)|en tant qu(?:'|e )(?:ia|",
    r"intelligence artificielle|modèle de langage|assistant ia)[^.!?\n]*, je (?:ne|n')"
);
const SPANISH: &str = concat!(
    r"(?:lo siento|lo lamento|lamentablemente|perdón|disculpa|",
    r"me temo que)(?: mucho)?[,.! ]*(?:pero )?no (?:puedo|me es posible|estoy en condiciones de|",
    r"tengo permitido) (?:ayudar|proporcionar|generar|cumplir|responder|participar|ofrecer|crear|hablar|",
    r"dar|acceder|hacer|brindar|asistir)|no puedo (?:ayudar(?:te|le|lo|la|os)? (?:con|en) (?:eso|esto|",
    r"esa|ese|tu|su)|proporcionar|generar|cumplir con|responder a (?:esa|esta|tu|su))|",
    r"como (?:un )?(?:modelo de lenguaje|ia|inteligencia artificial|",
    r"asistente de ia)[^.!?\n]*, no (?:puedo|tengo|soy)"
);
const CHINESE: &str = concat!(
    r"(?:(?:非常|很|十分|真的)?(?:抱歉|对不起|對不起|遗憾|遺憾)[，,。！! ]*(?:但是?)?[，, ]*)+我(?:目前|暂时|暫時)?(?:无法|無法|不能|没有办法|",
    r"沒有辦法)[^。！？，,\n]{0,15}(?:提供|回答|回應|回应|帮助|幫助|帮您|幫您|协助|協助|满足|滿足|生成|讨论|討論|参与|參與|执行|執行|访问)|作[为為](?:一个|",
    r"一個|一名|一款)?(?:ai|人工智能|人工智慧|大?型?[语語]言模型)[^。！？\n]*我(?:无法|無法|不能|没有|沒有|不具备|不具備)|我(?:无法|無法|不能)(?:帮助|幫助|",
    r"协助|協助|提供|回答|满足|滿足)(?:您|你|这|這|该|該|此|任何)"
);

const SELF_DESCRIPTION: &str = concat!(
    r"\bas an? (?:large )?(?:ai|artificial intelligence|language model)(?: (?:language )?(?:model|",
    r"assistant|system|chatbot))?(?: (?:developed|created|trained|made|built) by [^,.\n]{1,40})?, (?:i|",
    r"my|it is|it's)\b|\bi(?:'m| am)(?: just| only| merely)? an? (?:large |ai )?language model\b|",
    r"als ki-sprachmodell|en tant que modèle de langage|como modelo de lenguaje|作为(?:一个|一名)?(?:ai|人工智能|",
    r"大?型?)语言模型"
);
const CUTOFF: &str = concat!(
    r"\bmy (?:last )?(?:knowledge|training)(?: data)? (?:cut-?off|update)\b|",
    r"\bas of my (?:last )?(?:(?:knowledge |training )?cut-?off|(?:knowledge |training )?update(?: in\b|",
    r" \(|,))|\bmy (?:training data|knowledge) (?:only )?(?:goes up to|extends to|ends in|",
    r"was last updated)\b|\bmein wissensstand (?:endet|reicht)|我的(?:知识|训练数据)(?:库)?(?:截止|更新)"
);
/// `{{name}}`, `[Your Name]` and `<insert a name>`.
const SLOTS: &str = concat!(
    r"\{\{ ?[A-Za-z_][A-Za-z0-9_.]{2,40} ?\}\}|\[(?:(?i:your|insert|enter your) [^\]\[\n=]{1,40}|",
    r"(?i:(?:recipient|company|customer|client|user|first|last|product)(?:'s)? name|phone number|",
    r"email address|job title))\]|<(?i:insert) [^<>=/\n]{2,60}>"
);
/// `Dear {name}` and `{first_name}`.
const BRACES: &str =
    r"(?:\b(?:Dear|Hello|Hi|Hey) \{ ?[a-z_ ]{2,30} ?\}|(?:^|[ \n])\{[a-z]+_name\})(?:[ ,.!?;\n]|$)";

/// Lines in a row that say the same, above which they are a loop and no refrain.
const SAME_LINES: usize = 8;
/// Shorter lines are words of a list or labels, in bytes.
const MIN_LINE: usize = 12;
/// Shortest piece that a loop at the end repeats, in bytes.
const MIN_PERIOD: usize = 20;
/// Times a piece at the end comes, from which it is a loop and no refrain.
const MIN_REPEATS: usize = 6;
/// Shortest loop at the end, in bytes.
const MIN_LOOP: usize = 200;
/// Only this many bytes at the end are searched for a loop.
const MAX_END: usize = 20_000;
/// Different letters of a piece that is made of words; fewer are laughter, a scream or a drawing.
const MIN_LETTERS: usize = 3;

/// Shortest prompt that a reply may echo, in characters: shorter ones are the start of a natural reply.
const MIN_PROMPT: usize = 20;

/// The patterns searched for in replies.
pub(super) struct Replies {
    refusal: Option<Regex>,
    self_description: Option<Regex>,
    cutoff: Option<Regex>,
    slots: Option<Regex>,
    braces: Option<Regex>,
}

impl Replies {
    pub(super) fn new() -> Self {
        let english = format!(
            "(?:{SORRY})*{CONCESSION}(?:{CANNOT}{TASK}|{ASSISTANT}|{OTHERS})|(?:{SORRY})+{CANNOT}{DEED}"
        );
        let refusal =
            format!("{START}(?:{english}|{GERMAN}|{FRENCH}|{SPANISH})|(?:^|[。！？，：\\n])(?:{CHINESE})");
        let regardless = |pattern: &str| Regex::new(&format!("(?i){pattern}")).ok();
        Replies {
            refusal: Regex::new(&refusal).ok(),
            self_description: regardless(SELF_DESCRIPTION),
            cutoff: regardless(CUTOFF),
            slots: Regex::new(SLOTS).ok(),
            braces: Regex::new(BRACES).ok(),
        }
    }

    /// Whether a reply declines to answer, in English, German, French, Spanish or Chinese.
    pub(super) fn refusal(&self, reply: &str) -> bool {
        let opening = opening(reply);
        if LETTERS.iter().any(|start| opening.starts_with(start)) {
            return false;
        }
        let found = self.refusal.as_ref().and_then(|refusal| refusal.find(&opening));
        found.is_some_and(|found| {
            let before = opening.get(..found.start()).unwrap_or_default();
            before.chars().count() < OPENING
        })
    }

    /// What in a reply was written by another model or left over from a form.
    pub(super) fn boilerplate(&self, reply: &str) -> Option<&'static str> {
        let prose = prose(reply);
        let says = |pattern: &Option<Regex>| {
            pattern.iter().any(|pattern| {
                pattern.find_iter(&prose).any(|found| !quoted(prose.get(..found.start()).unwrap_or_default()))
            })
        };
        if says(&self.self_description) {
            Some("the reply calls itself a language model")
        } else if says(&self.cutoff) {
            Some("the reply speaks of the date its knowledge ends")
        } else if self.unfilled(&prose) {
            Some("a placeholder was not filled in")
        } else {
            None
        }
    }

    fn unfilled(&self, prose: &str) -> bool {
        let trimmed = prose.trim();
        if matches!(trimmed, "TODO" | "TBD" | "FIXME")
            || prose.contains("[TODO")
            || prose.lines().any(|line| line.trim_start().starts_with("TODO:"))
            || (prose.contains("dolor sit amet")
                && prose.to_lowercase().contains("lorem ipsum dolor sit amet"))
        {
            return true;
        }
        // In markup and in templates for programs such marks are meant to stay.
        if ["{%", "${{", "</", "/>", "{{#", "\\begin{"].iter().any(|mark| prose.contains(mark)) {
            return false;
        }
        let slots = self.slots.iter().flat_map(|slots| slots.find_iter(prose)).any(|found| {
            let before = prose.get(..found.start()).unwrap_or_default();
            let after = prose.get(found.end()..).unwrap_or_default();
            !quoted(before)
                && !before.ends_with(|last: char| last.is_alphanumeric() || "\\^_{}$])!=:/".contains(last))
                && !after.starts_with(['(', '[', '}'])
                && !after.starts_with(": http")
        });
        slots
            || self.braces.iter().flat_map(|braces| braces.find_iter(prose)).any(|found| {
                let start = prose.get(..found.start()).unwrap_or_default();
                let line = start.rsplit('\n').next().unwrap_or_default();
                let rest = prose.get(found.start()..).unwrap_or_default().trim_start_matches('\n');
                let rest = rest.lines().next().unwrap_or_default();
                ![line, rest]
                    .iter()
                    .any(|part| part.contains(['"', '`', '=', '$', '\\']) || part.contains("f'"))
            })
    }
}

/// The start of a reply in lower case without emphasis, with single spaces and straight apostrophes.
fn opening(reply: &str) -> String {
    let mut opening = String::new();
    for character in reply.trim_start().chars().take(OPENING + OPENING_END) {
        match character {
            '*' | '_' | '#' | '\r' => {}
            '’' | '‘' => opening.push('\''),
            '\n' => opening.push('\n'),
            space if space.is_whitespace() => {
                if !opening.ends_with([' ', '\n']) {
                    opening.push(' ');
                }
            }
            other => opening.extend(other.to_lowercase()),
        }
    }
    opening
}

/// Whether what follows is in quotation marks: cited, not said.
fn quoted(before: &str) -> bool {
    before
        .trim_end_matches(['[', '*', '…', '.', ' '])
        .ends_with(['"', '\'', '“', '‘', '„', '«', '`', '「', '『'])
}

/// Whether a fenced block of a reply is never closed.
pub(super) fn unclosed_fence(reply: &str) -> bool {
    blocks(reply).unclosed
}

/// Why a reply is not JSON, with the place; `None` if it is, as a whole or in its only fenced block.
pub(super) fn broken_json(reply: &str) -> Option<String> {
    let found = blocks(reply);
    if let ([block], false) = (found.closed.as_slice(), found.unclosed) {
        return json_problem(*block);
    }
    json_problem(Block { line: 1, code: reply })
}

fn json_problem(block: Block) -> Option<String> {
    if block.code.trim().is_empty() {
        return Some("it is empty".to_owned());
    }
    let error = serde_json::from_str::<IgnoredAny>(block.code).err()?;
    let line = block.code.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
    // The parser counts bytes.
    let until = line.bytes().take(error.column()).filter(|byte| byte & 0xc0 != 0x80).count();
    let at = line.chars().nth(until.saturating_sub(1));
    let start: usize =
        block.code.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let before = block.code.get(..start + error.column().saturating_sub(1)).unwrap_or_default();
    let place = format!("line {}, column {}", block.line + error.line().saturating_sub(1), until.max(1));
    let starts = block.code.trim_start().chars().next();
    let reason = if error.classify() == Category::Eof {
        "it ends before the JSON is complete".to_owned()
    } else if starts.is_some_and(|first| !"{[\"-".contains(first) && !first.is_ascii_digit())
        && error.line() == 1
        && error.column() <= 2
    {
        "it begins with text instead of JSON".to_owned()
    } else {
        match (error.to_string().as_str(), at) {
            (text, _) if text.starts_with("trailing characters") => "text follows the JSON".to_owned(),
            (_, Some('}' | ']')) if before.trim_end().ends_with(',') => {
                "a comma before a closing bracket".to_owned()
            }
            (text, _) if text.starts_with("control character") => {
                "a line break or another control character within a text, which JSON writes as \\n".to_owned()
            }
            (_, Some('\'')) => "a single quotation mark where JSON wants a double one".to_owned(),
            (_, Some(mark @ ('“' | '”' | '„'))) => {
                format!("the quotation mark {mark} where JSON wants a straight one")
            }
            (_, Some('T' | 'F' | 'N')) => {
                "a word that is not JSON, which writes true, false and null in lower case".to_owned()
            }
            (_, Some('/' | '#')) => "a comment, which JSON does not have".to_owned(),
            (text, _) => {
                let reason = text.rsplit_once(" at line").map_or(text, |(reason, _)| reason);
                clean_line(reason).into_owned()
            }
        }
    };
    Some(format!("{place}: {reason}"))
}

/// The share of a text that says the same over and over: the same line more than eight times in a row, or a
/// piece of at least 20 bytes repeated up to the end.
///
/// Code, tables, lists and drawings repeat themselves by nature and are left out.
pub(super) fn repetition(text: &str) -> Option<f64> {
    let trimmed = text.trim();
    if trimmed.len() < MIN_LINE * SAME_LINES || trimmed.starts_with(['{', '[', '<']) {
        return None;
    }
    let prose = prose(trimmed);
    let repeated = same_lines(&prose).max(loop_at_end(&prose));
    (repeated > 0).then(|| (repeated as f64 / trimmed.len() as f64).min(1.0))
}

/// Bytes of the longest run of equal lines; 0 if it is a short one.
fn same_lines(text: &str) -> usize {
    let (mut longest, mut run, mut same) = (0, 0, "");
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        run = if line == same { run + 1 } else { 1 };
        same = line;
        if run > SAME_LINES && is_sentence(line) {
            longest = longest.max(run * (line.len() + 1));
        }
    }
    longest
}

fn is_sentence(line: &str) -> bool {
    line.len() >= MIN_LINE
        && line.starts_with(|first: char| first.is_alphanumeric() || "\"'“„«¿¡".contains(first))
        && !line.ends_with([';', '{', '}', '>', '|', ')'])
        && has_words(line)
}

/// Bytes of the end of a text that repeats one piece; 0 if none does.
fn loop_at_end(text: &str) -> usize {
    let reversed: Vec<u8> = text.trim_end().bytes().rev().take(MAX_END).collect();
    if reversed.len() < MIN_LOOP {
        return 0;
    }
    let equal = equal_prefixes(&reversed);
    let mut best: Option<(usize, usize)> = None;
    for (period, &equal) in equal.iter().enumerate().skip(MIN_PERIOD) {
        let length = period + equal;
        if length >= MIN_LOOP
            && length / period >= MIN_REPEATS
            && best.is_none_or(|(_, longest)| length > longest)
        {
            best = Some((period, length));
        }
    }
    let Some((period, length)) = best else { return 0 };
    let piece: Vec<u8> = reversed.iter().take(period).rev().copied().collect();
    let piece = String::from_utf8_lossy(&piece);
    let mut lines = piece.lines().skip(1).map(str::trim_start);
    let listed = lines.any(|line| line.starts_with(|first: char| "-*+|#/<>•".contains(first)));
    let is_code = piece.contains(['|', ';', '{', '}', '<', '>', '=', '_', '\\']);
    if has_words(&piece) && !listed && !is_code { length } else { 0 }
}

/// For each position of `bytes`, how many bytes from there on equal the start (the Z function).
fn equal_prefixes(bytes: &[u8]) -> Vec<usize> {
    let mut equal = vec![0_usize; bytes.len()];
    // The stretch known to equal the start that reaches furthest.
    let (mut from, mut to) = (0, 0);
    for at in 1..bytes.len() {
        let known = equal.get(at - from).copied().unwrap_or_default();
        let mut length = if at < to { known.min(to - at) } else { 0 };
        while bytes.get(at + length).is_some_and(|byte| bytes.get(length) == Some(byte)) {
            length += 1;
        }
        if let Some(slot) = equal.get_mut(at) {
            *slot = length;
        }
        if at + length > to {
            (from, to) = (at, at + length);
        }
    }
    equal
}

/// Whether a piece is made of words of a natural language, not of digits, padding or one long identifier.
fn has_words(piece: &str) -> bool {
    let letters = piece.chars().filter(|character| character.is_alphabetic()).count();
    let mut different: Vec<char> = Vec::new();
    for letter in piece.chars().filter(|character| character.is_alphabetic()) {
        if different.len() < MIN_LETTERS && !different.contains(&letter) {
            different.push(letter);
        }
    }
    letters * 2 >= piece.chars().count()
        && different.len() >= MIN_LETTERS
        && (!piece.is_ascii() || piece.trim().contains(char::is_whitespace))
}

/// Whether a reply begins with its prompt, but for case and spacing.
pub(super) fn echoes(prompt: &str, reply: &str) -> bool {
    let mut reply = normal(reply);
    let mut length = 0;
    for expected in normal(prompt) {
        if reply.next() != Some(expected) {
            return false;
        }
        length += 1;
    }
    length >= MIN_PROMPT && reply.peek().is_none_or(|next| !next.is_alphanumeric())
}

fn normal(text: &str) -> Peekable<impl Iterator<Item = char>> {
    let words = text.split_whitespace().enumerate();
    words
        .flat_map(|(position, word)| {
            let space = (position > 0).then_some(' ');
            space.into_iter().chain(word.chars().flat_map(char::to_lowercase))
        })
        .peekable()
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn the_patterns_compile() {
        let replies = Replies::new();
        assert!(replies.refusal.is_some() && replies.self_description.is_some() && replies.cutoff.is_some());
        assert!(replies.slots.is_some() && replies.braces.is_some());
    }

    #[test]
    fn refusals_are_found() {
        let replies = Replies::new();
        for reply in [
            "I cannot help with that request.",
            "I can’t help you with that.",
            "I'm sorry, but I can't assist with that.",
            "I’m sorry, but I can’t provide instructions for that.",
            "I am very sorry, I cannot answer this.",
            "**I'm sorry, but I can't do that.**",
            "Unfortunately, I am unable to provide medical advice.",
            "Sorry, I won't write that.",
            "As an AI language model, I do not have personal opinions.",
            "As a large language model trained by Acme, I cannot browse.",
            "Thank you for asking! However, I'm not able to assist with this.",
            "While I understand that you are curious, I cannot provide such details.",
            "I apologize, but I cannot fulfill this request.",
            "I must decline to answer.",
            "I will not engage in that conversation.",
            "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
            "Dabei kann ich dir leider nicht helfen.",
            "Als KI-Sprachmodell habe ich keine eigene Meinung.",
            "Leider kann ich diese Frage nicht beantworten.",
            "Je suis désolé, mais je ne peux pas vous aider avec cela.",
            "Désolée, je ne peux pas répondre à cette question.",
            "En tant qu'intelligence artificielle, je n'ai pas d'opinion.",
            "Lo siento, pero no puedo ayudarte con eso.",
            "Como modelo de lenguaje, no tengo opiniones.",
            "No puedo proporcionar esa información.",
            "很抱歉，我无法提供这方面的信息。",
            "对不起，我不能回答这个问题。",
            "作为一个人工智能语言模型，我无法回答。",
            "抱歉，我無法協助您完成這項要求。",
        ] {
            assert!(replies.refusal(reply), "{reply}");
        }
    }

    #[test]
    fn answers_are_no_refusals() {
        let replies = Replies::new();
        let late =
            format!("{} I'm sorry, but I can't assist with that.", "An answer of some length. ".repeat(12));
        for reply in [
            "",
            "I can't help but notice that the loop never ends.",
            "I cannot help feeling that Tuesday would suit us better.",
            "I couldn't provide for my family that winter, so we moved.",
            "I'm sorry to hear that! Restart the router and wait two minutes.",
            "Sorry, the total is 14, not 12.",
            "I'm sorry, but I can't make it on Friday.",
            "I'm sorry, I can't find an order with that number. Could you check it?",
            "Dear Mr Hall,\n\nI'm sorry, but I can't provide the report before Monday.",
            "\"I can't help you with that,\" said the wizard.",
            "The server will not answer that request because the port is closed.",
            "As an AI engineer, I don't write much C.",
            "I won't give up, and neither should you.",
            "Yes, you can refuse. A landlord cannot provide less than 24 hours' notice.",
            "Privacy matters: never share your password, and do not provide personal data.",
            "Das kann ich gut verstehen. Ein Neustart hilft meistens.",
            "Ich kann heute nicht kommen, ich bin krank.",
            "Je ne peux pas venir demain, je suis malade.",
            "No puedo creer que ya sea lunes.",
            "对不起，我不能来参加会议了。",
            "我不能喝牛奶，所以点了茶。",
            "作为一个人工智能工程师，他每天写代码。",
            "{\"refusal\": false, \"reason\": null}",
            "def help():\n    raise ValueError(\"I cannot help with that\")",
            late.as_str(),
        ] {
            assert!(!replies.refusal(reply), "{reply}");
        }
    }

    #[test]
    fn boilerplate_is_found() {
        let replies = Replies::new();
        for (reply, told) in [
            ("Well, as an AI language model, I have no taste. But soup is nice.", "language model"),
            ("I am a large language model.", "language model"),
            ("I'm just an AI language model", "language model"),
            ("The price was 12 as of my last knowledge update in 2023.", "knowledge ends"),
            ("My knowledge cutoff is April 2023.", "knowledge ends"),
            ("As of my last update, the record was 9.58 s.", "knowledge ends"),
            ("Dear Ann,\n\nthanks.\n\nBest regards,\n[Your Name]", "placeholder"),
            ("Hello [Customer Name], your order is ready.", "placeholder"),
            ("Call us at [insert phone number here].", "placeholder"),
            ("Dear {{first_name}}, welcome!", "placeholder"),
            ("Dear {name}, welcome!", "placeholder"),
            ("Thank you, {customer_name}.", "placeholder"),
            ("Our address is <insert address>.", "placeholder"),
            ("Lorem ipsum dolor sit amet, consectetur", "placeholder"),
            ("TODO", "placeholder"),
            ("Summary\nTODO: write this", "placeholder"),
            ("The answer is [TODO].", "placeholder"),
        ] {
            let found = replies.boilerplate(reply);
            assert!(found.is_some_and(|found| found.contains(told)), "{reply}: {found:?}");
        }
    }

    #[test]
    fn templates_code_and_talk_are_no_boilerplate() {
        let replies = Replies::new();
        for reply in [
            "",
            "Filter replies that say \"As an AI language model, I cannot\".",
            "As an AI engineer, I like this. Think of it as an AI, not as a tool.",
            "The team calls it as an AI system, it was built in 2020 and my desk is next to it.",
            "Use `{{name}}` in the template, and `[Your Name]` stays.",
            "```jinja\nDear {{ first_name }}\n[Your Name]\nTODO: x\n```",
            "<li v-for=\"x in xs\">{{ message }}</li>",
            "env:\n  TOKEN: ${{ secrets.TOKEN }}",
            r"$\frac{{abc}}{{def}} = x^{{abc}}$ and \text{name} and {name} = \{n\}",
            "The set {name, age} has two members; {x} has one.",
            "print(f\"Hello {name}, welcome\")",
            "GET /users/{user_name}/posts",
            "f'Hello {name} and bye'",
            "The file is unpacked to a folder {name}, with {name} of the wheel.",
            "See [your profile](https://luthier.dev/me) and [Your Name][1].",
            "array[your index] and list[my key]",
            "TODO EL MUNDO está aquí. Add it to the TODO list.",
            "// TODO: rename\nlet x = 1;",
            "Lorem ipsum is placeholder text.",
            "Your knowledge of cutoff frequencies helps: the cutoff is 3 kHz.",
            "As of the last update in March, the project is on time.",
            "<insert id=\"x\" parameterType=\"int\">",
            "| [x] | [ ] |",
            "- [ ] add a test",
            "{\"name\": \"{name}\"}",
        ] {
            assert_eq!(replies.boilerplate(reply), None, "{reply}");
        }
    }

    #[test]
    fn json_is_told_broken_with_its_place() {
        for (reply, told) in [
            ("", "it is empty"),
            ("{\"a\": 1", "line 1, column 7: it ends before"),
            ("Sure! {\"a\": 1}", "line 1, column 1: it begins with text"),
            ("{\"a\": 1}\nThat is all.", "line 2, column 1: text follows the JSON"),
            ("{'a': 1}", "line 1, column 2: a single quotation mark"),
            ("{“a”: 1}", "line 1, column 2: the quotation mark “"),
            ("{\"é\": 1,\n \"ü\": True}", "line 2, column 7: a word that is not JSON"),
            ("{\"a\": 1,}", "line 1, column 9: a comma before a closing bracket"),
            ("[\"é\",\n1,\n]", "line 3, column 1: a comma before a closing bracket"),
            ("{\"a\": 1 \"b\": 2}", "line 1, column 9: expected `,` or `}`"),
            ("{\"a\": \"b\nc\"}", "a line break"),
            ("Here:\n```json\n{\"a\": }\n```\n", "line 3, column 7: "),
            ("```json\n{\"a\": 1}", "it begins with text"),
        ] {
            let found = broken_json(reply).unwrap_or_default();
            assert!(found.contains(told), "{reply}: {found}");
        }
    }

    #[test]
    fn json_is_accepted_whole_or_in_a_block() {
        let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
        for reply in [
            "{\"a\": [1, 2.5e3, null, \"x\\n\\u00e9\"]}",
            " \n[]\n",
            "\"text\"",
            "-1",
            "null",
            "true",
            "Here it is:\n\n```json\n{\"a\": \"```\"}\n```\nDone.",
            deep.as_str(),
        ] {
            assert_eq!(broken_json(reply), None, "{reply}");
        }
    }

    #[test]
    fn loops_are_found_with_their_share() {
        let line = "The cat sat on the mat again.\n".repeat(12);
        let found = repetition(&format!("A story.\n{line}The end, at last.")).unwrap();
        assert!((0.8..1.0).contains(&found), "{found}");
        let sentence = "and then he said that it was late, ".repeat(20);
        let found = repetition(&format!("Once upon a time {sentence}and then he")).unwrap();
        assert!((0.9..1.0).contains(&found), "{found}");
        assert!(repetition(&"the ".repeat(100)).is_some());
        assert!(repetition(&"我们需要更多的时间来完成这个工作。".repeat(10)).is_some());
        assert!(repetition(&"I am here.\n\nI am not there.\n\n".repeat(20)).is_some());
    }

    #[test]
    fn refrains_lists_and_code_are_no_loops() {
        let story = "It was late. He went home, and the rain went with him through the empty streets. ";
        for text in [
            String::new(),
            "Row, row, row your boat\n".repeat(4),
            "We will, we will rock you, sing it, we will, we will rock you\n".repeat(4),
            format!("{story}{story}"),
            "| n/a | n/a | not available |\n".repeat(40),
            "- [ ] Follow up with the team\n".repeat(20),
            format!("```\n{}```", "nothing to see in here at all\n".repeat(30)),
            "    let value = compute(first, second);\n".repeat(30),
            "=".repeat(500),
            "-=*=- ".repeat(100),
            " ".repeat(1000),
            "ha".repeat(300),
            "ha ha ".repeat(100),
            "0.0, 1.0, 0.0, 1.0, ".repeat(50),
            "no\n".repeat(50),
            format!("[{}0]", "\"not available at all\", ".repeat(50)),
            format!("<table>{}</table>", "<tr><td>not available</td></tr>\n".repeat(50)),
            "/\\_/\\ ( o.o ) > ^ <\n".repeat(20),
            "ATGCATGCATGC".repeat(50),
            "\u{fffd}\u{200b}".repeat(400),
        ] {
            assert_eq!(repetition(&text), None, "{text}");
        }
    }

    #[test]
    fn long_texts_take_linear_time() {
        assert!(repetition(&"abc ".repeat(250_000)).is_some());
        assert_eq!(repetition(&"a".repeat(1_000_000)), None);
    }

    #[test]
    fn echoes_are_found() {
        let prompt = "What is the capital of  France?";
        assert!(echoes(prompt, "what is the capital\nof france?"));
        assert!(echoes(prompt, " What is the capital of France? It is Paris."));
        assert!(!echoes(prompt, "The capital of France is Paris."));
        assert!(!echoes(prompt, "What is the capital"));
        assert!(!echoes("Say yes", "Say yes"));
        assert!(!echoes("Write about the old town", "Write about the old townhouse"));
        assert!(!echoes("", ""));
    }
}
