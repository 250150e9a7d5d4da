//! Runs `luthier` with a deadline and checks how it ended.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};

use serde_json::Value;

use crate::process::send;
use crate::programs::luthier;
use crate::wait::{PATIENCE, wait_for};

/// Environment variables of the caller that must not reach a test.
const FOREIGN: [&str; 17] = [
    "LUTHIER_ENGINE",
    "LUTHIER_LOG",
    "NO_COLOR",
    "RUST_BACKTRACE",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGINGFACE_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
];

/// A `luthier` to be started.
pub struct Luthier {
    command: Command,
    input: Vec<u8>,
}

/// A running `luthier`.
pub struct Running {
    child: Child,
    said: String,
    lines: Receiver<String>,
    errors: JoinHandle<String>,
    described: String,
}

/// A `luthier` that has exited.
#[derive(Debug)]
pub struct Finished {
    described: String,
    status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Luthier {
    pub(crate) fn new(folder: &Path) -> Self {
        let mut command = Command::new(luthier());
        command.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in FOREIGN {
            command.env_remove(name);
        }
        Self { command, input: Vec::new() }
    }

    #[must_use]
    pub fn arguments<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(arguments);
        self
    }

    #[must_use]
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Limits its address space (MiB) and CPU time (seconds); it is killed beyond them.
    #[must_use]
    pub fn within(mut self, mebibytes: u64, seconds: u64) -> Self {
        let limits = format!("ulimit -v {} && ulimit -t {seconds} && exec \"$@\"", mebibytes << 10);
        let mut limited = Command::new("sh");
        limited.args(["-c", &limits, "sh"]).arg(self.command.get_program()).args(self.command.get_args());
        limited.current_dir(self.command.get_current_dir().unwrap());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        limited.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command = limited;
        self
    }

    /// What the program reads on stdin.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    pub fn start(mut self) -> Running {
        let described = format!("{:?}", self.command);
        let mut child = self.command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = self.input;
        // A program that does not read its input may exit before all of it is written.
        thread::spawn(move || drop(stdin.write_all(&input)));
        let (sender, lines) = channel();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            let mut line = String::new();
            while output.read_line(&mut line).is_ok_and(|count| count > 0) {
                if sender.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        });
        let mut errors = child.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut bytes = Vec::new();
            errors.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Running { child, said: String::new(), lines, errors, described }
    }

    /// Runs it and waits for its end.
    pub fn run(self) -> Finished {
        self.start().finish()
    }
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line on stdout for which `wanted` is true.
    pub fn line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.said.push_str(&line);
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{}: timed out waiting for {what}:\n{}", self.described, self.said)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{}: ended without {what}:\n{}", self.described, self.said)
                }
            }
        }
    }

    /// Stops reading stdout, so that the next line meets a closed pipe.
    pub fn close(&mut self) {
        self.lines = channel().1;
    }

    pub fn interrupt(&self) {
        send("INT", self.pid());
    }

    pub fn finish(mut self) -> Finished {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.said.push_str(&line);
        }
        let child = &mut self.child;
        let status = wait_for(&format!("the end of {}", self.described), || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        let stderr = self.errors.join().unwrap();
        Finished { described: self.described, status, stdout: self.said, stderr }
    }
}

#[expect(clippy::return_self_not_must_use, reason = "the checks have been made by then")]
impl Finished {
    /// Expects this exit status.
    pub fn expect(self, status: i32) -> Self {
        assert_eq!(self.status.code(), Some(status), "{self}");
        self
    }

    /// Expects each of these texts on stdout.
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stdout.contains(text), "stdout lacks `{text}`: {self}");
        }
        self
    }

    /// Expects each of these texts on stderr, and no panic.
    pub fn complains(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "stderr lacks `{text}`: {self}");
        }
        assert!(!self.stderr.contains("panicked"), "{self}");
        self
    }

    /// Stdout as one JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Stdout as JSON lines.
    pub fn json_lines(&self) -> Vec<Value> {
        let read =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}: {self}"));
        self.stdout.lines().map(read).collect()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { described, status, stdout, stderr } = self;
        write!(formatter, "{described}: {status}\nstdout:\n{stdout}\nstderr:\n{stderr}")
    }
}
