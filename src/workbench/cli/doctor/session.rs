//! Findings about the session: the terminal, sockets, and whether runs survive the log-out.

use std::env;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;

use luthier_core::runs::socket_folder;
use luthier_core::text::clean_line;
use rustix::termios::tcgetwinsize;

use super::{Finding, Standing};

/// The smallest terminal that shows all of the workbench.
const SMALLEST: (u16, u16) = (80, 24);

pub fn findings() -> Vec<Finding> {
    let mut findings = vec![terminal(), encoding(), sockets()];
    findings.extend(survival(Path::new("/"), user_name().as_deref()));
    findings
}

fn variable(name: &str) -> String {
    env::var(name).map(|value| clean_line(&value).into_owned()).unwrap_or_default()
}

fn terminal() -> Finding {
    let name = variable("TERM");
    if name.is_empty() || name == "dumb" {
        return Finding::short(
            "terminal",
            Standing::Note,
            format!("TERM is `{name}`: the workbench cannot be drawn, the command line works"),
            "use a terminal that sets TERM, such as xterm-256color",
        );
    }
    let output = io::stdout();
    let size = tcgetwinsize(&output).or_else(|_| tcgetwinsize(io::stderr()));
    let Ok(size) = size else {
        return Finding::good("terminal", format!("{name}; not attached here"));
    };
    let colours = colours(&name);
    let found = format!("{name}, {}×{}, {colours}", size.ws_col, size.ws_row);
    if !output.is_terminal() {
        Finding::good("terminal", found)
    } else if size.ws_col < SMALLEST.0 || size.ws_row < SMALLEST.1 {
        let remedy = format!("make it at least {}×{}", SMALLEST.0, SMALLEST.1);
        Finding::short("terminal", Standing::Warning, found, remedy)
    } else {
        Finding::good("terminal", found)
    }
}

fn colours(name: &str) -> &'static str {
    if env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        "no colours (NO_COLOR is set)"
    } else if matches!(variable("COLORTERM").as_str(), "truecolor" | "24bit") {
        "true colours"
    } else if name.contains("256color") {
        "256 colours"
    } else {
        "16 colours"
    }
}

fn encoding() -> Finding {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .map(variable)
        .find(|value| !value.is_empty())
        .unwrap_or_else(|| "unset".to_owned());
    let folded = locale.to_ascii_lowercase();
    if folded.contains("utf-8") || folded.contains("utf8") {
        Finding::good("locale", locale)
    } else {
        Finding::short(
            "locale",
            Standing::Note,
            format!("{locale}, which does not name UTF-8"),
            "export LANG=C.UTF-8, or that of your language, if charts look broken",
        )
    }
}

fn sockets() -> Finding {
    match socket_folder() {
        Ok(folder) => Finding::good("sockets", clean_line(&folder.display().to_string()).into_owned()),
        Err(error) => Finding::short(
            "sockets",
            Standing::Missing,
            error.to_string(),
            "runs can be watched without it, but not paused, stopped or edited",
        ),
    }
}

fn user_name() -> Option<String> {
    ["USER", "LOGNAME"].into_iter().find_map(|name| env::var(name).ok()).filter(|name| !name.is_empty())
}

/// Whether runs outlive the log-out: systemd ends what a user leaves behind where `KillUserProcesses` is on
/// and the user does not linger. `None` where there is no systemd.
fn survival(root: &Path, user: Option<&str>) -> Option<Finding> {
    if !root.join("run/systemd/system").is_dir() {
        return None;
    }
    if !kills_user_processes(root) {
        return Some(Finding::good("log-out", "runs continue after it"));
    }
    let user = user?;
    if !user.contains('/') && root.join("var/lib/systemd/linger").join(user).exists() {
        return Some(Finding::good("log-out", "runs continue after it (lingering is on)"));
    }
    Some(Finding::short(
        "log-out",
        Standing::Warning,
        "systemd ends your processes when you log out (KillUserProcesses=yes), runs included",
        format!("loginctl enable-linger {}", clean_line(user)),
    ))
}

/// The last assignment counts; drop-in files come after the main one, in the order of their names.
fn kills_user_processes(root: &Path) -> bool {
    let mut texts = Vec::new();
    for folder in ["usr/lib/systemd", "etc/systemd"] {
        texts.extend(fs::read_to_string(root.join(folder).join("logind.conf")));
    }
    let mut pieces = Vec::new();
    for folder in ["usr/lib/systemd/logind.conf.d", "etc/systemd/logind.conf.d"] {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        pieces.extend(entries.map(|entry| (entry.file_name(), entry.path())));
    }
    pieces.sort();
    texts.extend(pieces.iter().filter_map(|(_, path)| fs::read_to_string(path).ok()));
    let value = texts
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.trim().strip_prefix("KillUserProcesses")?.trim_start().strip_prefix('='))
        .next_back();
    value.is_some_and(|value| matches!(value.trim(), "yes" | "true" | "on" | "1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    const SYSTEMD: (&str, &str) = ("run/systemd/system/x", "");

    #[test]
    fn without_systemd_nothing_ends_runs() {
        let root = tree(&[("etc/systemd/logind.conf", "KillUserProcesses=yes\n")]);
        assert!(survival(root.path(), Some("ada")).is_none());
    }

    #[test]
    fn a_drop_in_goes_before_the_main_file_and_comments_do_not_count() {
        let root = tree(&[
            SYSTEMD,
            ("etc/systemd/logind.conf", "[Login]\nKillUserProcesses=no\n"),
            (
                "etc/systemd/logind.conf.d/10-kill.conf",
                "[Login]\n KillUserProcesses = yes\n#KillUserProcesses=no\n",
            ),
        ]);
        let finding = survival(root.path(), Some("ada")).unwrap();
        assert_eq!(finding.standing, Standing::Warning);
        assert_eq!(finding.remedy.as_deref(), Some("loginctl enable-linger ada"));
    }

    #[test]
    fn who_lingers_keeps_the_runs() {
        let root = tree(&[
            SYSTEMD,
            ("etc/systemd/logind.conf", "KillUserProcesses=yes\n"),
            ("var/lib/systemd/linger/ada", ""),
        ]);
        assert_eq!(survival(root.path(), Some("ada")).unwrap().standing, Standing::Good);
        assert_eq!(survival(root.path(), Some("eve")).unwrap().standing, Standing::Warning);
    }
}
