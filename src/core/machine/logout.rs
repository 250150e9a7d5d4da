//! Whether processes outlive the log-out of their user: systemd ends what a session leaves behind where
//! `KillUserProcesses` is on and the user does not linger.

use std::env;
use std::fs;
use std::path::Path;

/// What happens to a user's processes at the log-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOut {
    /// There is no systemd, or the user is unknown.
    Unmanaged,
    /// They go on.
    Continues,
    /// They go on, because the user lingers.
    Lingers,
    /// They end.
    Ends {
        /// Name of the user.
        user: String,
    },
}

/// What happens to processes of this one at the log-out.
pub fn log_out() -> LogOut {
    let user = ["USER", "LOGNAME"].into_iter().find_map(|name| env::var(name).ok());
    log_out_below(Path::new("/"), user.filter(|name| !name.is_empty()).as_deref())
}

fn log_out_below(root: &Path, user: Option<&str>) -> LogOut {
    if !root.join("run/systemd/system").is_dir() {
        return LogOut::Unmanaged;
    }
    let is_of_a_session =
        fs::read_to_string(root.join("proc/self/cgroup")).map_or(true, |group| group.contains("/session-"));
    if !is_of_a_session || !kills_user_processes(root) {
        return LogOut::Continues;
    }
    match user {
        None => LogOut::Unmanaged,
        Some(user) if !user.contains('/') && root.join("var/lib/systemd/linger").join(user).exists() => {
            LogOut::Lingers
        }
        Some(user) => LogOut::Ends { user: user.to_owned() },
    }
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
    use crate::machine::tests::tree;

    const SYSTEMD: (&str, &str) = ("run/systemd/system/x", "");
    const KILLS: (&str, &str) = ("etc/systemd/logind.conf", "KillUserProcesses=yes\n");

    fn ends(user: &str) -> LogOut {
        LogOut::Ends { user: user.to_owned() }
    }

    #[test]
    fn without_systemd_nothing_ends_processes() {
        assert_eq!(log_out_below(tree(&[KILLS]).path(), Some("ada")), LogOut::Unmanaged);
        assert_eq!(log_out_below(tree(&[SYSTEMD]).path(), Some("ada")), LogOut::Continues);
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
        assert_eq!(log_out_below(root.path(), Some("ada")), ends("ada"));
    }

    #[test]
    fn who_lingers_keeps_the_processes() {
        let root = tree(&[SYSTEMD, KILLS, ("var/lib/systemd/linger/ada", "")]);
        assert_eq!(log_out_below(root.path(), Some("ada")), LogOut::Lingers);
        assert_eq!(log_out_below(root.path(), Some("eve")), ends("eve"));
        assert_eq!(log_out_below(root.path(), None), LogOut::Unmanaged);
    }

    #[test]
    fn what_belongs_to_no_session_goes_on() {
        let of = |group| tree(&[SYSTEMD, KILLS, ("proc/self/cgroup", group)]);
        let service = of("0::/system.slice/train.service\n");
        assert_eq!(log_out_below(service.path(), Some("ada")), LogOut::Continues);
        let session = of("0::/user.slice/user-1000.slice/session-3.scope\n");
        assert_eq!(log_out_below(session.path(), Some("ada")), ends("ada"));
    }
}
