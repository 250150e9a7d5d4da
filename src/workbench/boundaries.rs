//! What each room of the workbench must not do, read off its sources.

use std::fs;
use std::path::{Path, PathBuf};

/// A thing that only some rooms may do.
struct Rule {
    what: &'static str,
    /// Any of these in the code is a breach.
    signs: &'static [&'static str],
    /// Files and folders, below the crate root, that are held to it.
    held: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        what: "only the theme names a colour",
        signs: &["Color::", ".red()", ".green()", ".blue()", ".yellow()", ".cyan()"],
        held: &["app", "command", "effects", "keymap", "panes", "ui", "widgets", "term", "runtime.rs"],
    },
    Rule {
        what: "only term writes to the terminal",
        signs: &["stdout()", "stderr()", "println!", "print!", "eprintln!", "eprint!"],
        held: &[
            "app",
            "command",
            "effects",
            "keymap",
            "panes",
            "theme",
            "ui",
            "widgets",
            "runtime.rs",
            "telemetry.rs",
        ],
    },
    Rule {
        what: "state and views do no IO and read no clock",
        signs: &[
            "std::fs",
            "fs::",
            "File::",
            "Instant::now",
            "SystemTime::now",
            "Timestamp::now",
            "ZonedDateTime::now",
            "env::var",
            "thread::",
            "Command::new",
        ],
        held: &["app", "command", "keymap", "panes", "ui", "widgets"],
    },
    Rule {
        what: "only the hub's room uses the network",
        signs: &["ureq::", "hf_hub::", "TcpStream", "UdpSocket"],
        held: &[
            "app",
            "cli",
            "command",
            "effects",
            "keymap",
            "panes",
            "theme",
            "ui",
            "widgets",
            "term",
            "runtime.rs",
            "telemetry.rs",
        ],
    },
    Rule {
        what: "only effects start work",
        signs: &["thread::spawn", "thread::Builder", "spawn_blocking", "tokio::spawn"],
        held: &["app", "command", "keymap", "panes", "theme", "ui", "widgets", "term", "runtime.rs"],
    },
];

#[test]
fn every_room_keeps_to_its_work() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut breaches = Vec::new();
    let mut read = 0;
    for rule in RULES {
        for file in rule.held.iter().flat_map(|held| sources(&root.join(held))) {
            read += 1;
            let text = fs::read_to_string(&file).unwrap();
            // Tests may do what they need.
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap_or_default();
                if rule.signs.iter().any(|sign| line.contains(sign)) {
                    breaches.push(format!(
                        "{}: {}:{}: {}",
                        rule.what,
                        file.display(),
                        number + 1,
                        line.trim()
                    ));
                }
            }
        }
    }
    assert!(read > 100, "{read} files were read");
    assert!(breaches.is_empty(), "{breaches:#?}");
}

/// The Rust files at or below `path`, without those that hold nothing but tests.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| !path.file_stem().is_some_and(|stem| stem == "tests" || stem == "testing"))
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect();
    found.sort();
    found
}
