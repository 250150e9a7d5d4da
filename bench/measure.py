"""Shared by the benches: runs each measurement in its own process, and checks whether other processes disturbed it."""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

CLONE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CLONE / "scripts"))
import setup

ENGINE = CLONE / "target" / "release" / "luthier-engine"
LUTHIER = CLONE / "target" / "release" / "luthier"
PROJECT = CLONE / "sample-data" / "tickets"
MODEL = PROJECT / "models" / "smollm2-135m-instruct-q4_1.gguf"
# The same weights as a Hugging Face folder, written by peers.py.
FOLDER = setup.CACHE / "peers" / "smollm2-135m"
ROUNDS = int(os.environ.get("ROUNDS", "3"))
# Largest CPU share of other processes before a figure is marked as disturbed.
QUIET = 0.06


def _busy():
    """Busy seconds of all processors together so far; None if the system does not report them."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(value) for value in file.readline().split()[1:9]]
    except OSError:
        return None
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _own():
    """CPU seconds of this process and its finished children so far."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


class Others:
    """Measures the CPU share of other processes since its creation."""

    def __init__(self):
        self.began, self.busy, self.own = time.monotonic(), _busy(), _own()

    def share(self):
        """Their share so far; our own processes must have ended. None if the system does not report it."""
        if self.busy is None:
            return None
        machine = (time.monotonic() - self.began) * os.cpu_count()
        return max(0.0, _busy() - self.busy - (_own() - self.own)) / machine


def answer(command, **options):
    """The JSON document on the last line of a command's output. Its `others` is the CPU share of other processes
    during the command."""
    others = Others()
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"bench: {command[0]} ended with status {done.returncode}; see its output above")
    found = json.loads(done.stdout.splitlines()[-1])
    share = others.share()
    if share is not None:
        found["others"] = share
    return found


def engine(*arguments, model=MODEL):
    return answer([ENGINE, "bench", model, "--json", *arguments])


@contextlib.contextmanager
def busy_processes(count):
    """Runs `count` other processes that each keep a core busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def middle(values):
    return statistics.median(values)


def gib(count):
    return count / 2**30


def note(runs):
    """A note on figures that other processes may have disturbed."""
    most = max((run.get("others", 0.0) for run in runs), default=0.0)
    return f"   (disturbed: others took up to {100 * most:.0f} % of the machine)" if most > QUIET else ""


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "a processor")
    except OSError:
        name = "a processor"
    return f"{name}, {os.cpu_count()} cores"
