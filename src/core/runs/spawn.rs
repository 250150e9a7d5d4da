//! Starts engine processes that outlive the process that started them.

use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use nix::sys::signal::Signal::{SIGALRM, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::process::Pid;

use super::directory::{RUNS_FOLDER, RunDir, RunLock};
use super::error::{io_error, shown};
use super::process::ProcessIdentity;
use super::sight::settings_trouble;
use super::socket::serving_socket_path;
use super::status::{Failure, FailureClass, RunState, Status};
use super::{RunError, time};
use crate::machine::{LogOut, log_out};
use crate::text::clean_line;

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
/// `engine.log`. Writes its pid to the status, so that its death is noticed from the start. Returns the pid. Of several
/// that start a run at once, one succeeds; the others get an error that names its engine.
pub fn start_detached(run: &RunDir) -> Result<u32, RunError> {
    start_detached_with(&engine_executable()?, run, &[])
}

/// As [`start_detached`], with another executable and additional environment variables.
pub fn start_detached_with(
    engine: &Path,
    run: &RunDir,
    environment: &[(String, String)],
) -> Result<u32, RunError> {
    if let Some(trouble) = settings_trouble(run.path()) {
        return Err(RunError::NoSettings { run: run.id().to_owned(), trouble });
    }
    let before = run.status()?;
    // Held until the pid is written: the engine waits for the lock before it writes a status itself.
    let (_lock, mut status) = claim(run, &before)?;
    status.state = RunState::Starting;
    status.failure = None;
    status.ended = None;
    status.reason = None;
    status.socket = None;
    let mut command = Command::new(engine);
    command.arg("train").arg(run.path()).envs(environment.iter().cloned());
    let mut child = match with_signals_delayed(|| spawn(command, engine, run.project(), &run.log_path())) {
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
    let written = status.write_atomic(run.path());
    if written.is_err() {
        // Nobody could know of it.
        let _ = child.kill();
    }
    reap(child);
    written.map(|()| pid)
}

/// The lock of a run that nobody works on, and its status. An error names who works on it, or who did since `before`.
fn claim(run: &RunDir, before: &Status) -> Result<(RunLock, Status), RunError> {
    let named = |status: &Status| format!("process {} on {}", status.pid, clean_line(&status.host));
    let check = |status: &Status| {
        if !status.state.is_live() {
            return Ok(());
        }
        Err(RunError::Locked { run: run.id().to_owned(), holder: named(status) })
    };
    check(before)?;
    let lock = match run.lock() {
        Ok(lock) => lock,
        Err(error) => {
            // The lock's own words may still be those of the starter.
            check(&run.status()?)?;
            return Err(error);
        }
    };
    let status = run.status()?;
    check(&status)?;
    if (status.pid, status.process_start) != (before.pid, before.process_start) {
        return Err(RunError::StartedAlready { run: run.id().to_owned(), holder: named(&status) });
    }
    Ok((lock, status))
}

/// Why runs that are started here may not outlive the log-out, and what to do about it.
pub fn log_out_warning() -> Option<String> {
    let LogOut::Ends { user } = log_out() else { return None };
    let when = match scope() {
        Some(_) => "once you have logged out everywhere",
        None => "when you log out",
    };
    let user = clean_line(&user);
    Some(format!(
        "systemd ends your processes {when} (KillUserProcesses=yes), runs included; `loginctl enable-linger {user}` keeps \
         them"
    ))
}

/// The program that gives a process a scope of its own, where the log-out would end it and the program works.
fn scope() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let LogOut::Ends { .. } = log_out() else { return None };
        let program = PathBuf::from("systemd-run");
        let mut trial = in_scope(&program, &Command::new(&program));
        trial.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        trial.status().is_ok_and(|ended| ended.success()).then_some(program)
    };
    FOUND.get_or_init(find).as_deref()
}

/// The same command, which keeps its process id, outside of the session that would end with the log-out.
fn in_scope(program: &Path, command: &Command) -> Command {
    let mut scoped = Command::new(program);
    scoped.args(["--user", "--scope", "--quiet", "--collect", "--"]).arg(command.get_program());
    scoped.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => scoped.env(name, value),
            None => scoped.env_remove(name),
        };
    }
    scoped
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
pub(crate) fn spawn(command: Command, program: &Path, folder: &Path, log: &Path) -> Result<Child, RunError> {
    let mut command = match scope() {
        Some(program) => in_scope(program, &command),
        None => command,
    };
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
    // The starter has made this process the leader of a process group, and a leader may not start a session. So another
    // group is made, to be a member of. It does not end with its process, which stays a zombie until we wait for it; the
    // groups of others, such as the starter's, may be gone.
    let other = Command::new("/proc/self/exe")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    let began = other.and_then(|mut other| {
        let joined = rustix::process::setpgid(None, Some(Pid::from_child(&other)));
        let began = joined.and_then(|()| rustix::process::setsid());
        // It has done its part, whatever it does.
        let _ = other.kill();
        let _ = other.wait();
        Ok(began?)
    });
    if let Err(error) = began
        && rustix::process::getsid(None).ok() != Some(rustix::process::getpid())
    {
        // Its own process group and ignoring SIGHUP are nearly as good.
        tracing::warn!(%error, "cannot start a new session");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::JournalWriter;
    use crate::runs::testing::{run, script, wait_until};

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

    #[test]
    fn of_many_starts_one_wins_and_the_others_say_who() {
        let (project, run) = run();
        let engine = script(project.path(), "engine", "exec sleep 60");
        for _ in 0..3 {
            let starts: Vec<_> = (0..8)
                .map(|_| {
                    let (engine, run) = (engine.clone(), run.clone());
                    std::thread::spawn(move || start_detached_with(&engine, &run, &[]))
                })
                .collect();
            let (won, lost): (Vec<_>, Vec<_>) =
                starts.into_iter().map(|start| start.join().unwrap()).partition(Result::is_ok);
            assert_eq!(won.len(), 1, "{won:?} {lost:?}");
            let pid = *won[0].as_ref().unwrap();
            for error in lost {
                let said = error.unwrap_err().to_string();
                assert!(said.contains(&format!("process {pid} on ")), "{said}");
            }
            let engine = Pid::from_raw(pid.cast_signed()).unwrap();
            rustix::process::kill_process(engine, rustix::process::Signal::KILL).unwrap();
            wait_until("it is gone", || run.status().unwrap().state == RunState::Lost);
        }
    }

    #[test]
    fn a_run_whose_engine_came_and_went_meanwhile_is_not_started_again() {
        let (project, run) = run();
        let engine = script(project.path(), "engine", "true");
        let before = run.status().unwrap();
        let pid = start_detached_with(&engine, &run, &[]).unwrap();
        wait_until("it is gone", || run.status().unwrap().state == RunState::Lost);
        let said = claim(&run, &before).unwrap_err();
        assert!(
            matches!(&said, RunError::StartedAlready { holder, .. } if holder.contains(&pid.to_string()))
        );
        assert!(claim(&run, &run.status().unwrap()).is_ok());
    }

    #[test]
    fn without_settings_nothing_is_started() {
        let (project, run) = run();
        let engine = script(project.path(), "engine", "echo started");
        fs::remove_file(run.config_path()).unwrap();
        JournalWriter::open(&run.journal_path()).unwrap();
        let said = start_detached_with(&engine, &run, &[]).unwrap_err().to_string();
        assert!(said.contains("config.toml is missing; put the file back"), "{said}");
        assert_eq!(run.status().unwrap().state, RunState::Queued);
    }

    #[test]
    fn a_scope_keeps_process_arguments_and_variables() {
        let (project, run) = run();
        let body = r#"while [ "$1" != -- ]; do shift; done; shift; exec "$@""#;
        let runner = script(project.path(), "runner", body);
        let engine = script(project.path(), "engine", r#"echo "$1 $2 $MARK ${HF_TOKEN:-none} $$""#);
        let mut command = Command::new(&engine);
        command.args(["--user", "a b"]).env("MARK", "yes");
        let mut child = spawn(in_scope(&runner, &command), &engine, project.path(), &run.log_path()).unwrap();
        child.wait().unwrap();
        assert_eq!(run.log_tail(1), [format!("--user a b yes none {}", child.id())]);
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
