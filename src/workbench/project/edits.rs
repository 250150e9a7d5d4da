//! Rows that the user rewrites. The dataset files stay as they are: `edits.jsonl` has what replaces them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use luthier_core::config::Config;
use luthier_core::data::{self, Edits, Row, RowHead};
use luthier_core::files;
use luthier_core::runs::socket_folder;

use super::Refusal;

/// Longest row that is read back.
const LONGEST: u64 = 64 << 20;

/// A row written out for an editor, in a file that only the user can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub path: PathBuf,
    /// What the row is listed by among the edits.
    key: String,
    /// What was written.
    text: String,
}

impl Draft {
    /// Writes a row out.
    pub fn of(row: &Row, head: &RowHead) -> Result<Self, Refusal> {
        let text = data::draft(row).map_err(|reason| Refusal::NotEdited(reason.to_owned()))?;
        let key = head.edit_key();
        let folder = socket_folder()?;
        let path = folder.join(format!("row-{}-{key}.json", std::process::id()));
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|source| Refusal::System { doing: "the row cannot be written out", source })?;
        Ok(Self { path, key, text })
    }

    /// Whether it is of this row.
    pub fn is_of(&self, head: &RowHead) -> bool {
        self.key == head.edit_key()
    }

    /// Removes the file if it still has what was written out. Returns whether it did.
    pub fn drop_if_unchanged(&self) -> bool {
        let is_unchanged = files::read(&self.path, LONGEST).is_ok_and(|text| text == self.text.as_bytes());
        is_unchanged && fs::remove_file(&self.path).is_ok()
    }

    /// Replaces the row with what the file has by now, and removes the file. Returns whether that is something else. A
    /// file that is refused stays.
    pub fn take(&self, folder: &Path, config: &Config) -> Result<bool, Refusal> {
        let read = files::read(&self.path, LONGEST)
            .map_err(|source| Refusal::System { doing: "what was edited cannot be read", source })?;
        let text = String::from_utf8(read).map_err(|_| Refusal::NotEdited("it is not UTF-8".to_owned()))?;
        let changed = text != self.text;
        if changed {
            rewrite(folder, config, &self.key, &text)?;
        }
        // What stays behind is overwritten by the next draft.
        let _ = fs::remove_file(&self.path);
        Ok(changed)
    }
}

/// Replaces the row with this key among the edits with what `text`, a JSON object, says.
pub fn rewrite(folder: &Path, config: &Config, key: &str, text: &str) -> Result<(), Refusal> {
    let fields = data::read_draft(text, config).map_err(Refusal::NotEdited)?;
    let mut edits = Edits::load(folder)?;
    edits.set(key, fields);
    Ok(edits.save()?)
}

/// Lets a row be again as it is in its file.
pub fn undo(folder: &Path, head: &RowHead) -> Result<(), Refusal> {
    if !head.is_edited() {
        return Err(Refusal::NotEdited("it is not edited".to_owned()));
    }
    let mut edits = Edits::load(folder)?;
    edits.remove(&head.edit_key());
    Ok(edits.save()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::Project;

    #[test]
    fn a_row_is_edited_in_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.jsonl"), "{\"text\": \"one\"}\n").unwrap();
        let settings = "[model]\npath = \"m\"\n[data]\ntrain = \"a.jsonl\"\neval = 0\n";
        fs::write(folder.path().join("luthier.toml"), settings).unwrap();
        let project = Project::open(folder.path(), &[]).unwrap();
        let read = || data::read_dataset(&project.config, folder.path()).unwrap().rows;
        let draft = || {
            let rows = read();
            let head = rows.heads()[0];
            (Draft::of(&rows.row(&head).unwrap(), &head).unwrap(), head)
        };
        let (first, head) = draft();
        assert!(first.is_of(&head));
        assert!(!first.take(folder.path(), &project.config).unwrap(), "nothing was changed");
        assert!(!first.path.exists());
        let (second, _) = draft();
        fs::write(&second.path, "{\"a\": 1}").unwrap();
        let refusal = second.take(folder.path(), &project.config).unwrap_err().to_string();
        assert!(refusal.starts_with("the row stays as it is: "), "{refusal}");
        fs::write(&second.path, "{\"text\": \"two\"}").unwrap();
        assert!(second.take(folder.path(), &project.config).unwrap());
        assert_eq!(read().load().unwrap()[0].example.plain_text(), "two");
        // The row keeps its place among the edits.
        let (third, edited) = draft();
        assert!(third.is_of(&head) && third.is_of(&edited));
        undo(folder.path(), &edited).unwrap();
        assert_eq!(read().load().unwrap()[0].example.plain_text(), "one");
        assert!(undo(folder.path(), &head).is_err());
    }
}
