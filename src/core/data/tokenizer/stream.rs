//! Decodes tokens as they arrive.

use super::Tokenizer;

/// Most tokens that wait for the rest of a character. Three would be enough, except for texts that contain
/// U+FFFD, which looks like incomplete bytes.
const MAX_WAITING: usize = 64;

/// Decodes token by token. Text is returned once it cannot change; bytes of an incomplete character wait.
/// Special tokens have no text.
#[derive(Debug, Clone)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    /// Tokens whose text was returned, which are needed to decode the next (decoders treat a first token
    /// differently), followed by those that wait.
    window: Vec<u32>,
    /// The part of the text of `window` that was returned.
    sent: String,
    waiting: usize,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        DecodeStream { tokenizer, window: Vec::new(), sent: String::new(), waiting: 0 }
    }

    /// Takes the next token; returns the text that is now certain and was not before.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.window.push(id);
        self.waiting += 1;
        let text = self.tokenizer.decode(&self.window, true).unwrap_or_default();
        if text.ends_with('\u{fffd}') && self.waiting < MAX_WAITING {
            return None;
        }
        self.release(&text)
    }

    /// The text that still waits, if no token follows.
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
            // Tokens without their own text stay in the window until one with text follows.
            Some("") => return None,
            Some(fresh) => fresh.to_owned(),
            // Bytes that were returned as broken decode differently together with later ones, so the window
            // restarts after them.
            None => self.tokenizer.decode(&self.window[fresh_tokens..], true).unwrap_or_default(),
        };
        self.window.drain(..fresh_tokens);
        self.sent = self.tokenizer.decode(&self.window, true).unwrap_or_default();
        (!fresh.is_empty()).then_some(fresh)
    }
}
