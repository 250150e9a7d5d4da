//! Files that the review pane writes for people: drafts, pairs, rows.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use luthier_core::data::Message;
use luthier_core::runs::socket_folder;
use luthier_core::text::{clean, clean_line};
use serde_json::{Value, json};

/// Longest draft read back.
const LONGEST_DRAFT: u64 = 1 << 20;

/// Longest first line of a dataset that is looked at.
const LONGEST_ROW: u64 = 64 << 20;

fn shown(path: &Path) -> String {
    clean_line(&path.display().to_string()).into_owned()
}

/// Puts a text where the external editor finds it: in a folder that only the user can enter.
pub fn write_draft(text: &str) -> Result<PathBuf, String> {
    let folder = socket_folder().map_err(|error| error.to_string())?;
    let path = folder.join(format!("draft-{}.md", std::process::id()));
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&path).and_then(|mut file| file.write_all(clean(text).as_bytes()));
    written.map_err(|error| format!("cannot write {}: {error}", shown(&path)))?;
    Ok(path)
}

/// What the external editor left, cleaned; the file is removed.
pub fn read_draft(path: &Path) -> Result<String, String> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST_DRAFT + 1).read_to_end(&mut text));
    // What stays behind is overwritten by the next draft.
    let _ = fs::remove_file(path);
    read.map_err(|error| format!("cannot read {}: {error}", shown(path)))?;
    if text.len() as u64 > LONGEST_DRAFT {
        return Err(format!("the text is longer than {LONGEST_DRAFT} bytes"));
    }
    let text = String::from_utf8(text).map_err(|_| "the text is not UTF-8".to_owned())?;
    Ok(clean(&text).into_owned())
}

/// Appends a conversation to a JSONL file of conversations and syncs it.
pub fn add_example(project: &Path, file: &Path, messages: &[Message]) -> Result<PathBuf, String> {
    let path = project.join(file);
    let failed = |error: std::io::Error| format!("{} cannot be written: {error}", shown(&path));
    let mut opened = File::options().read(true).append(true).open(&path).map_err(failed)?;
    if !holds_conversations(&opened).map_err(failed)? {
        return Err(format!(
            "The rows of {} are no `messages`, and all rows of a file have one form. Name a .jsonl file of \
             conversations in data.train.",
            shown(&path)
        ));
    }
    let mut line = Vec::new();
    if !ends_whole(&mut opened).map_err(failed)? {
        line.push(b'\n');
    }
    line.extend_from_slice(json!({ "messages": messages }).to_string().as_bytes());
    line.push(b'\n');
    opened.write_all(&line).and_then(|()| opened.sync_data()).map_err(failed)?;
    Ok(file.to_owned())
}

/// Whether the first row is a conversation, or there is none yet.
fn holds_conversations(file: &File) -> std::io::Result<bool> {
    let mut reader = BufReader::new(file.take(LONGEST_ROW));
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(true);
        }
        let row = line.trim_start_matches('\u{feff}').trim();
        if !row.is_empty() {
            let row: Value = serde_json::from_str(row).unwrap_or_default();
            return Ok(row["messages"][0].get("role").is_some());
        }
    }
}

fn ends_whole(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}
