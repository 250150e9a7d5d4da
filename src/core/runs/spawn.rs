//! Starts engine processes that outlive the process that started them.

use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::sys::signal::Signal::{SIGALRM, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::process::Pid;

use super::directory::{RUNS_FOLDER, RunDir};
use super::error::{io_error, shown};
use super::process::ProcessIdentity;
use super::socket::serving_socket_path;
use super::status::{Failure, FailureClass, RunState, Status};
use super::{RunError, time};

/// Names an engine executable to use instead of the one next to this program.
pub const ENGINE_VARIABLE: &str = "LUTHIER_ENGINE";

const ENGINE_NAME: &str = "luthier-engine";

/// Secrets that the engine does not need and that must not reach its log.
const SECRETS: [&str; 4] =
    ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "WANDB_API_KEY"];

/// The engine's executable: `LUTHIER_ENGINE` if set, otherwise `luthier-engine` in the folder of this
/// program.
pub fn engine_executable() -> Result<PathBuf, RunError> {
    let own = std::env::current_exe().ok();
    engine_among(std::env::var_os(ENGINE_VARIABLE).map(PathBuf::from), own.as_deref())
}

fn engine_among(named: Option<PathBuf>, own: Option<&Path>) -> Result<PathBuf, RunError> {
    if let Some(named) = named.filter(|path| !path.as_os_str().is_empty()) {
        return if is_executable(&named) {
            std::path::absolute(&named).map_err(io_error("find", &named))
        } else {
            Err(RunError::Engine(format!(
                "{ENGINE_VARIABLE} names `{}`, which is not an executable file; unset it, or set it to the \
                 engine's path (`make build` leaves one at target/release/{ENGINE_NAME})",
                shown(&named)
            )))
        };
    }
    let beside = own.and_then(|own| own.canonicalize().ok()).map(|own| own.with_file_name(ENGINE_NAME));
    match beside {
        Some(beside) if is_executable(&beside) => Ok(beside),
        Some(beside) => Err(RunError::Engine(format!(
            "the engine is missing: `{}` does not exist; build it with `make build`, or set {ENGINE_VARIABLE}",
            shown(&beside)
        ))),
        None => Err(RunError::Engine(format!(
            "the engine cannot be found, since the path of this program is unknown; set \
             {ENGINE_VARIABLE} to the engine's path"
        ))),
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Starts the engine on a run, detached: its own process group, no stdin, no pipes, all output in
/// `engine.log`. Writes its pid to the status, so that its death is noticed from the start. Returns the pid.
pub fn start_detached(run: &RunDir) -> Result<u32, RunError> {
    start_detached_with(&engine_executable()?, run, &[])
}

/// As [`start_detached`], with another executable and additional environment variables.
pub fn start_detached_with(
    engine: &Path,
    run: &RunDir,
    environment: &[(String, String)],
) -> Result<u32, RunError> {
    // Held until the pid is written: the engine waits for the lock before it writes a status itself.
    let _lock = run.lock()?;
    // An unreadable status is treated as missing: the journal is the truth.
    let mut status = Status::read(run.path()).ok().flatten().unwrap_or_default();
    status.state = RunState::Starting;
    status.failure = None;
    status.ended = None;
    status.reason = None;
    status.socket = None;
    let mut command = Command::new(engine);
    command.arg("train").arg(run.path()).envs(environment.iter().cloned());
    let child = match with_signals_delayed(|| spawn(command, engine, run.project(), &run.log_path())) {
        Ok(child) => child,
        Err(error) => {
            status.state = RunState::Failed;
            status.ended = Some(time::now());
            status.failure = Some(Failure {
                class: FailureClass::Config,
                message: error.to_string(),
                remedy: "build the engine with `make build`, then resume the run".to_owned(),
            });
            status.write_atomic(run.path())?;
            return Err(error);
        }
    };
    let pid = child.id();
    status.claim(&ProcessIdentity::of(pid));
    reap(child);
    status.write_atomic(run.path())?;
    Ok(pid)
}

/// Starts a process that keeps the signals that ask it to end until it handles them: loading libtorch takes a while, in
/// which they would end it without a word.
fn with_signals_delayed<T>(start: impl FnOnce() -> T) -> T {
    let signals =
        [SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU, SIGQUIT].into_iter().collect::<SigSet>();
    // A process inherits what its parent's thread keeps. Without it only that while is not covered.
    let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let started = start();
    if let Ok(before) = before
        && let Err(error) = before.thread_set_mask()
    {
        tracing::warn!(%error, "signals to this thread stay delayed");
    }
    started
}

/// Starts `luthier-engine serve` for a project. Returns the child and the socket it will listen on. The
/// caller owns the child; it ends on a signal, or some time after its last client has gone. Its output goes
/// to `runs/serve.log`.
pub fn start_serving(project: &Path) -> Result<(Child, PathBuf), RunError> {
    let engine = engine_executable()?;
    let project = project.canonicalize().map_err(io_error("find", project))?;
    let socket = serving_socket_path(&project)?;
    let runs = project.join(RUNS_FOLDER);
    fs::create_dir_all(&runs).map_err(io_error("make", &runs))?;
    let mut command = Command::new(&engine);
    command.arg("serve").arg("--project").arg(&project).arg("--socket").arg(&socket);
    let child = spawn(command, &engine, &project, &runs.join("serve.log"))?;
    Ok((child, socket))
}

/// Starts a process that outlives its parent: its own process group, no stdin, both outputs appended to a
/// log, no secrets in the environment.
pub(crate) fn spawn(
    mut command: Command,
    program: &Path,
    folder: &Path,
    log: &Path,
) -> Result<Child, RunError> {
    let output =
        File::options().append(true).create(true).mode(0o600).open(log).map_err(io_error("open", log))?;
    let errors = output.try_clone().map_err(io_error("open", log))?;
    for secret in SECRETS {
        command.env_remove(secret);
    }
    command
        .current_dir(folder)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|error| RunError::Engine(format!("`{}` could not be started: {error}", shown(program))))
}

/// Waits for the child in its own thread, so that it does not stay a zombie.
pub(crate) fn reap(mut child: Child) {
    let waiting = std::thread::Builder::new().name("reap".to_owned()).spawn(move || {
        // The status says how it ended.
        let _ = child.wait();
    });
    if let Err(error) = waiting {
        tracing::warn!(%error, "cannot start a thread that waits for the engine");
    }
}

/// Makes the calling process independent of its terminal and session: it becomes the leader of a new session
/// and ignores SIGHUP. Called first by the engine.
pub fn become_session_leader() -> Result<(), RunError> {
    // A handler that does nothing, because SIG_IGN needs unsafe code.
    signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::new(AtomicBool::new(false))).map_err(
        |error| {
            RunError::Engine(format!("cannot ignore SIGHUP: {error}; the run would end with its terminal"))
        },
    )?;
    if rustix::process::setsid().is_ok() {
        return Ok(());
    }
    // A process group leader may not start a session, so join another group of this session first.
    let own = rustix::process::getpgrp();
    let others = [
        rustix::process::getppid().and_then(|parent| group_and_session(parent.as_raw_nonzero().get())?[0]),
        group_and_session(std::process::id() as i32).and_then(|[_, session]| session),
    ];
    let joined = others
        .into_iter()
        .flatten()
        .any(|group| group != own && rustix::process::setpgid(None, Some(group)).is_ok());
    let leads = joined && rustix::process::setsid().is_ok();
    let session = group_and_session(std::process::id() as i32).and_then(|[_, session]| session);
    if !leads && session != Some(rustix::process::getpid()) {
        // Its own process group and ignoring SIGHUP are nearly as good.
        tracing::warn!("cannot start a new session");
    }
    Ok(())
}

/// Process group and session of a process (fields 5 and 6 of `/proc/PID/stat`, see proc(5)). One is missing
/// if it is outside our process namespace: the kernel then reports 0, which rustix does not accept.
fn group_and_session(pid: i32) -> Option<[Option<Pid>; 2]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(2);
    let mut next = || Some(Pid::from_raw(fields.next()?.parse().ok()?));
    Some([next()?, next()?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::testing::{config, script, wait_until};

    fn run() -> (tempfile::TempDir, RunDir) {
        let project = tempfile::tempdir().unwrap();
        let run = RunDir::create(project.path(), &config(&[]), Some("a")).unwrap();
        (project, run)
    }

    #[test]
    fn the_engine_is_next_to_us_unless_named() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("luthier");
        fs::write(&own, b"").unwrap();
        let missing = engine_among(None, Some(&own)).unwrap_err().to_string();
        assert!(missing.contains("make build") && missing.contains(ENGINE_VARIABLE), "{missing}");
        fs::write(folder.path().join(ENGINE_NAME), b"not executable").unwrap();
        assert!(engine_among(None, Some(&own)).is_err());
        let engine = script(folder.path(), ENGINE_NAME, "true");
        assert_eq!(engine_among(None, Some(&own)).unwrap(), engine.canonicalize().unwrap());
        assert_eq!(engine_among(Some(PathBuf::new()), Some(&own)).unwrap(), engine.canonicalize().unwrap());
        let other = script(folder.path(), "other", "true");
        assert_eq!(engine_among(Some(other.clone()), Some(&own)).unwrap(), other);
        let wrong = engine_among(Some(folder.path().join("gone")), Some(&own)).unwrap_err().to_string();
        assert!(wrong.contains("gone") && wrong.contains("unset it"), "{wrong}");
        assert!(engine_among(None, None).is_err());
    }

    #[test]
    fn a_started_engine_is_independent() {
        let (project, run) = run();
        let body = r#"
            echo "arguments $1 $2"
            echo "token ${HF_TOKEN:-none} marked $MARK" >&2
            echo "input $(cat | wc -c)"
            echo "group $(ps -o pgid= -p $$ 2>/dev/null || cut -d' ' -f5 /proc/$$/stat) pid $$"
            mv "$2/go" "$2/went""#;
        let engine = script(project.path(), "engine", body);
        fs::write(run.path().join("go"), b"").unwrap();
        let environment =
            [("HF_TOKEN", "secret"), ("MARK", "yes")].map(|(key, value)| (key.into(), value.into()));
        let pid = start_detached_with(&engine, &run, &environment).unwrap();
        wait_until("the engine is done", || run.path().join("went").exists());
        let log = fs::read_to_string(run.log_path()).unwrap();
        assert!(log.contains(&format!("arguments train {}", run.path().display())), "{log}");
        assert!(log.contains("token none marked yes"), "{log}");
        assert!(log.contains("input 0"), "{log}");
        let words: Vec<_> =
            log.lines().find(|line| line.starts_with("group")).unwrap().split_whitespace().collect();
        assert_eq!((words[1], words[3]), (pid.to_string().as_str(), pid.to_string().as_str()));
    }

    #[test]
    fn an_engine_that_dies_at_once_is_lost() {
        let (project, run) = run();
        let engine = script(project.path(), "engine", "echo cannot load libtorch.so; exit 127");
        start_detached_with(&engine, &run, &[]).unwrap();
        wait_until("it is lost", || run.status().unwrap().state == RunState::Lost);
        assert_eq!(run.log_tail(1), ["cannot load libtorch.so"]);
    }

    #[test]
    fn an_engine_that_cannot_be_started_fails_the_run_with_a_remedy() {
        let (project, run) = run();
        let error = start_detached_with(&project.path().join("gone"), &run, &[]).unwrap_err().to_string();
        assert!(error.contains("gone") && error.contains("could not be started"), "{error}");
        let status = run.status().unwrap();
        assert_eq!(status.state, RunState::Failed);
        assert!(status.failure.unwrap().remedy.contains("make build"));
    }

    #[test]
    fn a_locked_run_is_not_started_again() {
        let (project, run) = run();
        let engine = script(project.path(), "engine", "true");
        let _lock = run.lock().unwrap();
        assert!(matches!(start_detached_with(&engine, &run, &[]), Err(RunError::Locked { .. })));
        assert_eq!(run.status().unwrap().state, RunState::Queued);
    }

    /// The test starts itself as a child in its own process group; the child becomes a session leader and
    /// checks that.
    #[test]
    fn a_group_leader_becomes_a_session_leader() {
        const PART: &str = "LUTHIER_TEST_SESSION";
        if std::env::var_os(PART).is_some() {
            become_session_leader().unwrap();
            let own = rustix::process::getpid();
            assert_eq!(rustix::process::getsid(None).unwrap(), own);
            rustix::process::kill_process(own, rustix::process::Signal::HUP).unwrap();
            assert_eq!(rustix::process::getsid(None).unwrap(), own, "still alive");
            return;
        }
        for group in [Some(0), None] {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .env(PART, "1")
                .args(["--exact", "runs::spawn::tests::a_group_leader_becomes_a_session_leader"]);
            if let Some(group) = group {
                command.process_group(group);
            }
            let output = command.stdin(Stdio::null()).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && text.contains("1 passed"), "{group:?}: {text}");
        }
    }
}
