//! Findings about the session: the terminal, sockets, and whether runs survive the log-out.

use std::env;
use std::io::{self, IsTerminal};

use luthier_core::machine::{LogOut, log_out};
use luthier_core::runs::socket_folder;
use luthier_core::text::clean_line;
use rustix::termios::tcgetwinsize;

use super::{Finding, Standing};

/// The smallest terminal that shows all of the workbench.
const SMALLEST: (u16, u16) = (80, 24);

pub fn findings() -> Vec<Finding> {
    let mut findings = vec![terminal(), encoding(), sockets()];
    findings.extend(survival(&log_out()));
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

/// Whether runs outlive the log-out. `None` where nothing is known to end them.
fn survival(found: &LogOut) -> Option<Finding> {
    match found {
        LogOut::Unmanaged => None,
        LogOut::Continues => Some(Finding::good("log-out", "runs continue after it")),
        LogOut::Lingers => Some(Finding::good("log-out", "runs continue after it (lingering is on)")),
        LogOut::Ends { user } => Some(Finding::short(
            "log-out",
            Standing::Warning,
            "systemd ends your processes when you log out (KillUserProcesses=yes), runs included",
            format!("loginctl enable-linger {}", clean_line(user)),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_runs_would_end_the_remedy_is_named() {
        assert!(survival(&LogOut::Unmanaged).is_none());
        assert_eq!(survival(&LogOut::Lingers).unwrap().standing, Standing::Good);
        let finding = survival(&LogOut::Ends { user: "ada".to_owned() }).unwrap();
        assert_eq!(finding.standing, Standing::Warning);
        assert_eq!(finding.remedy.as_deref(), Some("loginctl enable-linger ada"));
    }
}
