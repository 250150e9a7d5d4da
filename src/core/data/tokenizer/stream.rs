//! Decoding while tokens arrive.

use super::Tokenizer;

/// Tokens that may wait for the rest of a character. Three would do, were it not for texts that hold U+FFFD themselves,
/// which reads like bytes that are still incomplete.
const MAX_WAITING: usize = 64;

/// Decodes token by token. Text comes out as soon as it cannot change: bytes of an incomplete character are held back.
/// Special tokens have no text.
#[derive(Debug, Clone)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    /// Tokens whose text is out and which the next ones are decoded with, since decoders treat a first token otherwise
    /// than a later one; then those that wait.
    window: Vec<u32>,
    /// Text of `window` that is out.
    sent: String,
    waiting: usize,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        DecodeStream { tokenizer, window: Vec::new(), sent: String::new(), waiting: 0 }
    }

    /// Takes the next token; returns the text that is certain now and was not before.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.window.push(id);
        self.waiting += 1;
        let text = self.tokenizer.decode(&self.window, true).unwrap_or_default();
        if text.ends_with('\u{fffd}') && self.waiting < MAX_WAITING {
            return None;
        }
        self.release(&text)
    }

    /// The text still held back when no token follows.
    pub fn finish(&mut self) -> Option<String> {
        if self.waiting == 0 {
            return None;
        }
        let text = self.tokenizer.decode(&self.window, true).unwrap_or_default();
        self.release(&text)
    }

    fn release(&mut self, text: &str) -> Option<String> {
        let fresh_tokens = self.window.len() - self.waiting;
        self.waiting = 0;
        let fresh = match text.strip_prefix(self.sent.as_str()) {
            // Tokens without text of their own stay in the window until one with text follows.
            Some("") => return None,
            Some(fresh) => fresh.to_owned(),
            // Bytes that were given up as broken read otherwise with their successors: start afresh behind them.
            None => self.tokenizer.decode(&self.window[fresh_tokens..], true).unwrap_or_default(),
        };
        self.window.drain(..fresh_tokens);
        self.sent = self.tokenizer.decode(&self.window, true).unwrap_or_default();
        (!fresh.is_empty()).then_some(fresh)
    }
}
