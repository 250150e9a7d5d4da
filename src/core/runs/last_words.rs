//! What a process that ended without a final status could still say.

use std::path::Path;

use crate::files;
use crate::text::clean_line;

/// A sentence in a run's folder. The engine prepares it under [`PREPARED_WORDS_FILE`] and renames it in a signal's handler.
pub const LAST_WORDS_FILE: &str = "last-words";

/// The same, while the process lives.
pub const PREPARED_WORDS_FILE: &str = ".last-words.tmp";

const LIMIT: u64 = 4096;

/// The last words in a run's folder, if there are any.
pub(super) fn read(run: &Path) -> Option<String> {
    let text = files::read_text(&run.join(LAST_WORDS_FILE), LIMIT).ok()?;
    Some(clean_line(text.trim()).into_owned()).filter(|words| !words.is_empty())
}
