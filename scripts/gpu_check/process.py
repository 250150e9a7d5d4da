"""Starts the engine, the command line and python for a check, each with a limit of its own."""

import importlib.util
import os
import pathlib
import subprocess
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
_log = threading.Lock()
ERRORS = {"file": None}


class Failure(Exception):
    """A process that failed; its last line of stderr."""


def environment(**more):
    """The variables of a process, whose libtorch is that of python's torch."""
    own = [str(TORCH / "lib")] if TORCH else []
    paths = own + [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(paths), "LUTHIER_ENGINE": str(ENGINE), **REMEDY, **more}


def call(command, limit, **variables):
    """The standard output of a command. What a failed one said goes to the file of errors as a whole."""
    command = [str(part) for part in command]
    if DEADLINE["at"]:
        limit = min(limit, DEADLINE["at"] - time.monotonic())
    try:
        done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=max(limit, 1), check=False)
        status, out, said = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        status, out = f"none after {limit:.0f} s", (error.stdout or b"").decode(errors="replace")
        said = (error.stderr or b"").decode(errors="replace") + f"\nno end after {limit:.0f} s"
    if status == 0:
        return out
    if ERRORS["file"]:
        with _log, open(ERRORS["file"], "a") as file:
            file.write(f"$ {' '.join(command)}\nstatus: {status}\n{out[-2000:]}\n{said}\n\n")
    lines = [line for line in said.splitlines() if line.strip()] or ["no message"]
    raise Failure(lines[-1].strip()[:500])
