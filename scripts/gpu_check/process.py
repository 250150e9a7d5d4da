"""Starts the engine, the command line and python for a check, each with a limit of its own."""

import importlib.util
import os
import pathlib
import queue
import subprocess
import tempfile
import threading
import time

CLONE = pathlib.Path(__file__).resolve().parents[2]
REFERENCES = CLONE / "tests" / "references"
_torch = importlib.util.find_spec("torch")
# The folder of python's torch, if it has one. On a processor the engine's own libtorch does.
TORCH = pathlib.Path(_torch.submodule_search_locations[0]) if _torch else None
# Where run.py puts the binaries.
BINARIES = CLONE / ".gpu" / "bin"
ENGINE = BINARIES / "luthier-engine"
LUTHIER = BINARIES / "luthier"

# Variables that a remedy of the smoke stage sets for all later processes.
REMEDY = {}
# When the last process must have ended, in seconds of the monotonic clock.
DEADLINE = {"at": None}
# The cache of this session alone: what earlier ones have kept there decides nothing.
CACHE = {"folder": None}
_log = threading.Lock()
ERRORS = {"file": None}
# Of each thread, the lines with which the engine says what it did without.
_without = threading.local()


class Failure(Exception):
    """A process that failed; its last line of stderr."""


class OutOfTime(Failure):
    """A process that was stopped because the time for all of it was used up."""


def environment(**more):
    """The variables of a process, whose libtorch is that of python's torch."""
    own = [str(TORCH / "lib")] if TORCH else []
    paths = own + [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    cache = {"XDG_CACHE_HOME": CACHE["folder"]} if CACHE["folder"] else {}
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(paths), "LUTHIER_ENGINE": str(ENGINE), **cache, **REMEDY, **more}


def call(command, limit, **variables):
    """The standard output of a command. What a failed one said goes to the file of errors as a whole."""
    command = [str(part) for part in command]
    limit = left(limit)
    try:
        done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=max(limit, 1), check=False)
        status, out, said = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        status, out = f"none after {limit:.0f} s", (error.stdout or b"").decode(errors="replace")
        said = (error.stderr or b"").decode(errors="replace") + f"\nno end after {limit:.0f} s"
    if status == 0:
        listen(said)
        return out
    raise Failure(keep(command, status, out, said))


def listen(said):
    """Remembers the lines of a log that say what the engine did without."""
    _without.lines = done_without() + [line for line in said.splitlines() if "going on without" in line]


def done_without():
    """The lines that this thread has remembered since it last asked."""
    found, _without.lines = getattr(_without, "lines", []), []
    return found


def missing(slower, device, **variables):
    """What makes a finding a failure: something that makes a GPU faster was not used, although nobody switched it off."""
    if not slower or not device.startswith("cuda") or variables.get("LUTHIER_KERNELS") == "off":
        return {}
    return {"pass": False, "error": "not used: " + "; ".join(part["what"] for part in slower)}


def lines(command, each, limit, **variables):
    """The lines of a command's standard output, as they come. Stops it after `each` seconds without a line, and after
    `limit` seconds. A failed one is treated as in `call`, once its lines were given."""
    command = [str(part) for part in command]
    ends = time.monotonic() + left(limit)
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        child = subprocess.Popen(command, env=environment(**variables), stdout=subprocess.PIPE, stderr=errors, text=True)
        coming = queue.SimpleQueue()

        def read():
            for line in child.stdout:
                coming.put(line)
            coming.put(None)

        threading.Thread(target=read, daemon=True).start()
        out, status, failure = "", None, Failure
        try:
            while True:
                wait = min(each, ends - time.monotonic())
                try:
                    line = coming.get(timeout=max(wait, 0.1))
                except queue.Empty:
                    failure = OutOfTime if wait < each else Failure
                    break
                if line is None:
                    try:
                        status = child.wait(10)
                    except subprocess.TimeoutExpired:
                        pass
                    break
                out += line
                yield line
        finally:
            child.kill()
            child.wait()
        errors.seek(0)
        said = errors.read()
    if status is None:
        status = "none"
        said += f"\nno end after {limit:.0f} s" if failure is OutOfTime else f"\nno line for {each:.0f} s"
    if status != 0:
        raise failure(keep(command, status, out, said))


def left(limit):
    """Seconds of `limit` before the last process must have ended."""
    return min(limit, DEADLINE["at"] - time.monotonic()) if DEADLINE["at"] else limit


def keep(command, status, out, said):
    """Writes what a failed command said to the file of errors; returns its last line."""
    if ERRORS["file"]:
        with _log, open(ERRORS["file"], "a") as file:
            file.write(f"$ {' '.join(command)}\nstatus: {status}\n{out[-2000:]}\n{said}\n\n")
    last = [line for line in said.splitlines() if line.strip()] or ["no message"]
    return last[-1].strip()[:500]
