//! Findings about the engine: whether it is there, runs, and what it computes with.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use luthier_core::runs::engine_executable;
use luthier_core::text::clean_line;
use serde::Deserialize;

use super::{Finding, Standing};

/// Loading libtorch from a cold or remote disk can take this long.
const PATIENCE: Duration = Duration::from_mins(2);

/// Interval between checks of a process.
const LOOK: Duration = Duration::from_millis(20);

/// What `luthier-engine doctor --json` says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    version: String,
    libtorch: String,
    devices: Vec<String>,
    threads: usize,
    speeds: Vec<Speed>,
    slower: Vec<Missing>,
    problems: Vec<String>,
}

/// Something that makes a GPU faster and cannot be used there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Missing {
    what: String,
    remedy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Speed {
    device: String,
    hint: String,
}

pub fn findings() -> Vec<Finding> {
    let engine = match engine_executable() {
        Ok(engine) => engine,
        Err(error) => {
            return vec![Finding::short("engine", Standing::Missing, "not found", error.to_string())];
        }
    };
    let shown = clean_line(&engine.display().to_string()).into_owned();
    match ask(&engine) {
        Ok(report) => {
            let version = clean_line(&report.version).into_owned();
            let mut findings =
                vec![Finding::good("engine", format!("{shown}, version {version}")), libtorch(&report)];
            findings.extend(report.speeds.iter().map(|speed| {
                Finding::good("device", clean_line(&format!("{}: {}", speed.device, speed.hint)).into_owned())
            }));
            findings.extend(report.slower.iter().map(|missing| {
                let found = format!("slower than it could be: {}", clean_line(&missing.what));
                let remedy = clean_line(&missing.remedy).into_owned();
                Finding::short("device", Standing::Warning, found, remedy)
            }));
            findings.extend(report.problems.iter().map(|problem| {
                let remedy = "set model.device to another one, or to \"cpu\"";
                Finding::short("device", Standing::Warning, clean_line(problem).into_owned(), remedy)
            }));
            findings
        }
        Err(reason) => vec![Finding::short(
            "engine",
            Standing::Missing,
            format!("{shown} does not run: {reason}"),
            "run `make setup` and `make build` again: it was built against a libtorch that is missing or damaged",
        )],
    }
}

fn libtorch(report: &Report) -> Finding {
    let devices = report.devices.join(", ");
    let found = format!("{} on {} with {} threads", report.libtorch, devices, report.threads);
    Finding::good("libtorch", clean_line(&found).into_owned())
}

fn ask(engine: &Path) -> Result<Report, String> {
    let mut child = Command::new(engine)
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let output = drain(child.stdout.take());
    let errors = drain(child.stderr.take());
    let status = wait(&mut child)?;
    let read = |reading: thread::JoinHandle<String>| reading.join().unwrap_or_default();
    let (output, errors) = (read(output), read(errors));
    if !status.success() {
        let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed nothing");
        return Err(format!("{status}: {}", clean_line(last)));
    }
    serde_json::from_str(&output).map_err(|error| format!("its output cannot be parsed: {error}"))
}

fn drain(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    /// Output beyond this is not an engine's.
    const MOST: u64 = 1 << 20;
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(from) = from {
            // Show what was read before the error.
            let _ = from.take(MOST).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child) -> Result<std::process::ExitStatus, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK),
            Ok(None) => {
                // It may have exited by itself meanwhile.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it did not finish within {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
