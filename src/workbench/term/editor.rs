//! The user's editor.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// The user's editor: `$VISUAL`, `$EDITOR`, or vi.
pub(super) fn editor() -> String {
    let wanted = ["VISUAL", "EDITOR"].into_iter().filter_map(|name| std::env::var(name).ok());
    wanted
        .map(|editor| editor.trim().to_owned())
        .find(|editor| !editor.is_empty())
        .unwrap_or_else(|| "vi".to_owned())
}

/// Runs `editor` on `file` and waits until it exits.
pub(super) fn run(editor: &str, file: &Path, line: Option<usize>) -> Result<(), String> {
    // A shell splits what the variable holds as every other program does, arguments and quotes included.
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("{editor} \"$@\"")).arg("sh").args(arguments(editor, file, line));
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let status =
        command.status().map_err(|problem| format!("the editor `{editor}` did not start: {problem}"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(127) => Err(format!("there is no editor `{editor}`; set $VISUAL or $EDITOR to one")),
        _ => Err(format!("the editor `{editor}` exited with {status}")),
    }
}

/// The arguments that open an editor at a line of a file.
fn arguments(editor: &str, file: &Path, line: Option<usize>) -> Vec<OsString> {
    let program = editor.split_whitespace().next().unwrap_or_default();
    let name = Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let at_line = |line: usize| {
        let mut argument = file.as_os_str().to_owned();
        argument.push(format!(":{line}"));
        argument
    };
    match (line, name) {
        (Some(line), "hx" | "helix" | "zed" | "subl") => vec![at_line(line)],
        (Some(line), "code" | "codium" | "cursor") => vec!["--goto".into(), at_line(line)],
        (
            Some(line),
            "vi" | "vim" | "nvim" | "nano" | "emacs" | "emacsclient" | "kak" | "micro" | "joe" | "ne",
        ) => {
            vec![format!("+{line}").into(), file.into()]
        }
        _ => vec![file.into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editors_are_told_the_line_in_their_own_way() {
        let with = |editor: &str, line| {
            let all = arguments(editor, Path::new("a b.toml"), line);
            all.iter().map(|argument| argument.to_string_lossy().into_owned()).collect::<Vec<_>>().join("|")
        };
        assert_eq!(with("vi", Some(3)), "+3|a b.toml");
        assert_eq!(with("/usr/bin/hx", Some(3)), "a b.toml:3");
        assert_eq!(with("code --wait", Some(3)), "--goto|a b.toml:3");
        assert_eq!(with("unknown", Some(3)), "a b.toml");
        assert_eq!(with("vi", None), "a b.toml");
    }

    #[test]
    fn files_with_blanks_and_failures_are_handled() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a 'b' $(c).toml");
        assert_eq!(run("touch", &file, None), Ok(()));
        assert!(file.exists());
        assert!(run("false", &file, None).unwrap_err().contains("`false` exited"));
        assert!(run("no-such-editor-here", &file, None).unwrap_err().contains("$VISUAL"));
    }
}
