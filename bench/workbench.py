#!/usr/bin/env python3
"""Measures the workbench itself, in a pseudo-terminal of 200×60 on a copy of the sample project.

Times are from `exec` to the last byte of the frame that shows the expected text. They and the resident memory are
medians of ROUNDS processes (default 3), each with its own copy and caches. The workbench sends no queries to the
terminal, so none are answered. Runs are started by `luthier train`, with a program that ends at once instead of the
engine; this script then writes the files that the engine would have written.
"""

import bisect
import contextlib
import datetime
import fcntl
import json
import math
import os
import pathlib
import pty
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

import measure

COLUMNS, ROWS = 200, 60
STEPS = 20_000
# The live run: its steps, the steps made when the workbench is opened, its pace, and how long bytes are counted.
LIVE_STEPS, LIVE_MADE, STEP_SECONDS, WINDOW = 2_000, 1_000, 0.5, 12.0
# After this many seconds without output, the workbench has drawn everything.
SETTLED = 1.5
PATIENCE = 60.0
# No other step has a loss near this one, so the screen shows it only after the whole journal was read.
LAST_LOSS = 0.321
# Ends a frame: the workbench writes each as one synchronized update.
FRAME_END = b"\x1b[?2026l"
CONTROL = re.compile(r"\x1b\[([0-?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[^\[\]]")


def stamp(moment):
    """Converts seconds since the epoch to the form in a run's files."""
    moment = datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


class Home:
    """A copy of the sample project, in a folder that also has the home, caches and other folders of its programs."""

    def __init__(self, folder):
        self.project = folder / "tickets"
        unwanted = shutil.ignore_patterns("runs", "luthier.db*", "verdicts.jsonl", "models")
        shutil.copytree(measure.PROJECT, self.project, ignore=unwanted)
        (self.project / "models").mkdir()
        (self.project / "models" / measure.MODEL.name).symlink_to(measure.MODEL.resolve())
        self.environment = {"PATH": os.environ.get("PATH", os.defpath), "TERM": "xterm-256color", "COLORTERM": "truecolor",
                            "LANG": "C.UTF-8", "LUTHIER_ENGINE": shutil.which("true")}
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            place = folder / name.lower()
            place.mkdir(mode=0o700)
            self.environment[name] = str(place)

    def luthier(self, *arguments):
        """The JSON output of a command."""
        command = [str(measure.LUTHIER), *arguments, "-C", str(self.project), "--json"]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"bench: `luthier {' '.join(arguments)}` ended with status {done.returncode}:\n{done.stderr}")
        return json.loads(done.stdout)


class Run:
    """A run whose directory is written by this script instead of the engine."""

    def __init__(self, home, steps):
        self.home, self.steps, self.step = home, steps, 0
        settings = (f"train.max_steps={steps}", "train.eval_every=1000", "train.sample_every=0", "train.checkpoint_every=0", "objective.kind=none")
        started = home.luthier("train", "--detach", *[part for setting in settings for part in ("--set", setting)])
        self.id, self.folder = started["id"], pathlib.Path(started["path"])
        # The same values each time.
        self.random = random.Random(1)
        self.status = json.loads((self.folder / "status.json").read_text())
        # A run is live as long as its process, identified by number, start time and boot. Here this is our own process.
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        self.status.update(pid=os.getpid(), process_start=int(fields[19]), total_steps=steps, device="cpu")
        self.journal = open(self.folder / "events.jsonl", "a", encoding="utf-8")

    def close(self):
        self.journal.close()

    def event(self, kind, moment, **body):
        line = {"kind": kind, "time": stamp(moment), "step": self.step, **body}
        self.journal.write(json.dumps(line, separators=(",", ":")) + "\n")

    def begin(self, moment):
        self.status["started"] = stamp(moment)
        self.event("state", moment, state="starting")
        self.event("run", moment, config_hash="0" * 64, data_hash="0" * 16, model_fingerprint="0" * 64, template_fingerprint="0" * 16,
                   versions={"luthier": "0.1.0", "libtorch": "2.11.0"}, device="cpu", dtype="f32",
                   parameters={"total": 139_399_488, "trainable": 4_884_480}, train_rows=420, eval_rows=40, total_steps=self.steps, seed=42)
        self.event("state", moment, state="running")

    def advance(self, moment):
        """Makes a step, with values as noisy as those of small batches."""
        self.step += 1
        done, noise = self.step / self.steps, self.random.gauss
        loss = LAST_LOSS if self.step == STEPS else max(0.4, 0.6 + 1.2 * math.exp(-8 * done) + noise(0, 0.08))
        rate = 2.5e-4 * (1 + math.cos(math.pi * done))
        tokens = self.random.randint(960, 1024)
        spent = STEP_SECONDS * self.random.uniform(0.96, 1.0)
        body = {"loss": loss, "learning_rate": rate, "grad_norm": abs(noise(0.9, 0.15)), "tokens": tokens, "trained_tokens": tokens * 3 // 10,
                "tokens_per_second": tokens / spent, "seconds": spent, "epoch": self.step / 48,
                "memory_bytes": 1_370_000_000 + self.random.randint(0, 4_000_000), "load": self.random.uniform(0.95, 1.0)}
        self.event("step", moment, **body)
        self.status.update(step=self.step, epoch=body["epoch"], loss=loss, learning_rate=rate, tokens_per_second=body["tokens_per_second"],
                           train_seconds=self.status["train_seconds"] + spent)
        if self.step % 1000 == 0:
            held_out = 0.7 + math.exp(-8 * done)
            self.event("eval", moment, loss=held_out, perplexity=math.exp(held_out), token_accuracy=0.85, seconds=1.0, rows=40)
            best = min(held_out, self.status.get("best_eval_loss", held_out))
            self.status.update(eval_loss=held_out, best_eval_loss=best)
            if best == held_out:
                self.status["best_step"] = self.step

    def write(self, state):
        """Replaces the status atomically like the engine, so that a reader never sees half of it."""
        self.journal.flush()
        self.status.update(state=state, heartbeat=stamp(time.time()))
        beside = self.folder / ".status.json.tmp"
        beside.write_text(json.dumps(self.status, indent=2) + "\n")
        beside.replace(self.folder / "status.json")

    def check(self, state):
        """Checks that Luthier lists the run with the intended state."""
        found = next((run for run in self.home.luthier("runs") if run["id"] == self.id), None)
        expected = {"state": state, "step": self.step, "total_steps": self.steps}
        if found is None or any(found[key] != value for key, value in expected.items()):
            sys.exit(f"bench: `luthier runs` should list {self.id} with {expected}, but lists {found}")


@contextlib.contextmanager
def project(steps, made):
    """A copy of the project with a run that has made `made` of its `steps`."""
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as folder:
        home = Home(pathlib.Path(folder))
        with contextlib.closing(Run(home, steps)) as run:
            began = time.time() - made * STEP_SECONDS
            run.begin(began)
            for step in range(1, made + 1):
                run.advance(began + step * STEP_SECONDS)
            state = "finished" if made == steps else "running"
            if state == "finished":
                run.event("state", time.time(), state=state)
                run.status["ended"] = stamp(time.time())
            run.write(state)
            run.check(state)
            yield home, run


class Workbench:
    """The workbench in a pseudo-terminal, with its output and times. `keys` are pressed right after the start."""

    def __init__(self, home, keys):
        told, tell = os.pipe()
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
                # The pipe closes on exec. The monotonic clock is the same in all processes of the machine.
                os.write(tell, struct.pack("d", time.monotonic()))
                os.execve(measure.LUTHIER, [str(measure.LUTHIER), str(home.project)], home.environment)
            finally:
                os._exit(127)
        os.close(tell)
        self.started = struct.unpack("d", os.read(told, 8))[0]
        os.close(told)
        self.press(keys)
        self.written = bytearray()
        # For each piece of output: its time, and the total length with it.
        self.times, self.ends = [], []

    def close(self):
        os.kill(self.process, signal.SIGKILL)
        os.close(self.terminal)
        os.waitpid(self.process, 0)

    def press(self, keys):
        os.write(self.terminal, keys.encode())

    def listen(self, until):
        """Reads its output until this time."""
        while (left := until - time.monotonic()) > 0:
            if not select.select([self.terminal], [], [], left)[0]:
                return
            try:
                piece = os.read(self.terminal, 65536)
            except OSError:
                piece = b""
            if not piece:
                sys.exit(f"bench: the workbench ended; it last wrote {bytes(self.written[-300:])!r}")
            self.times.append(time.monotonic())
            self.written += piece
            self.ends.append(len(self.written))

    def frames(self):
        """Every frame so far: milliseconds from the start to its last byte, and its text."""
        cells = [[" "] * COLUMNS for _ in range(ROWS)]
        begin = 0
        while (end := self.written.find(FRAME_END, begin)) >= 0:
            end += len(FRAME_END)
            show(self.written[begin:end].decode(errors="replace"), cells)
            came = self.times[bisect.bisect_left(self.ends, end)]
            yield 1000 * (came - self.started), "\n".join("".join(row) for row in cells)
            begin = end

    def wait(self, *texts):
        """Waits until output stops and a frame has shown all the texts. Returns the time of the first such frame."""
        deadline = time.monotonic() + PATIENCE
        while True:
            # Frames are examined only when output stops, so that this does not slow down the workbench.
            before = len(self.written)
            self.listen(time.monotonic() + SETTLED)
            if len(self.written) == before:
                for came, text in self.frames():
                    if all(wanted in text for wanted in texts):
                        return came
            if time.monotonic() > deadline:
                *_, (_, text) = [(0, "nothing"), *self.frames()]
                sys.exit(f"bench: the screen never showed {', '.join(texts)}; it shows:\n{text}")

    def resident(self):
        """Its resident memory in bytes."""
        status = pathlib.Path(f"/proc/{self.process}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])


def show(text, cells):
    """Writes a frame into the cells. A frame only moves the cursor, sets styles and prints. After a wide character the
    cursor is always moved, so the width of characters does not matter here."""
    row = column = position = 0
    while position < len(text):
        control = CONTROL.match(text, position)
        if control:
            position = control.end()
            if control[2] == "H":
                row, column = (int(number or 1) - 1 for number in (control[1] or "1;1").split(";"))
        else:
            if row < ROWS and column < COLUMNS:
                cells[row][column] = text[position]
            column += 1
            position += 1


def opening():
    """One process on a project with a finished run; the train pane is opened at once."""
    with project(STEPS, STEPS) as (home, _):
        others = measure.Others()
        with contextlib.closing(Workbench(home, "2")) as workbench:
            drawn = workbench.wait("✓ finished", f"step {STEPS}/{STEPS}", f"train {LAST_LOSS}")
            first = workbench.wait("luthier · tickets", "1 Data", "2 Train", "3 Sweep", "4 Review")
            # The rows are read in the background; their pane shows when they are loaded.
            workbench.press("1")
            workbench.wait("420 train, 40 held out")
            run = {"first": first, "drawn": drawn, "resident": workbench.resident()}
        share = others.share()
        return run if share is None else {**run, "others": share}


def idle():
    """Bytes written while nothing happens."""
    with project(STEPS, STEPS) as (home, _), contextlib.closing(Workbench(home, "2")) as workbench:
        workbench.wait("✓ finished", f"train {LAST_LOSS}")
        before = len(workbench.written)
        workbench.listen(time.monotonic() + WINDOW)
        return len(workbench.written) - before


def live():
    """Bytes written while a run makes steps."""
    with project(LIVE_STEPS, LIVE_MADE) as (home, run), contextlib.closing(Workbench(home, "2")) as workbench:
        workbench.wait("▶ running", f"step {LIVE_MADE}/{LIVE_STEPS}")
        # The first steps are not counted, because they establish the pace and the expected end of the run.
        warm = 4
        began = time.monotonic()
        for step in range(1, warm + round(WINDOW / STEP_SECONDS) + 1):
            if step == warm + 1:
                before = len(workbench.written)
            run.advance(time.time())
            run.write("running")
            workbench.listen(began + step * STEP_SECONDS)
        count = len(workbench.written) - before
        run.check("running")
        workbench.wait("▶ running", f"step {run.step}/{LIVE_STEPS}")
        return count


def line(name, value, unit, remark=""):
    print(f"{name:<34} {value:8.1f} {unit}{remark}", flush=True)


def main():
    if not measure.LUTHIER.exists() or not measure.MODEL.exists():
        sys.exit("bench: the workbench or the sample base model is missing; `make build` gets both")
    # Cleans up also after SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"{measure.processor()}; a terminal of {COLUMNS}×{ROWS}", flush=True)
    runs = [opening() for _ in range(measure.ROUNDS)]
    note = measure.note(runs)
    line("first paint", measure.middle([run["first"] for run in runs]), "ms after the start", note)
    line(f"finished run of {STEPS:,} steps drawn", measure.middle([run["drawn"] for run in runs]), "ms after the start", note)
    line("resident memory then, data read", measure.middle([run["resident"] for run in runs]) / 2**20, "MiB")
    line("written, idle", idle() / WINDOW, f"bytes/s over {WINDOW:.0f} s")
    line(f"written, a run live at {1 / STEP_SECONDS:.0f} steps/s", live() / WINDOW, f"bytes/s over {WINDOW:.0f} s")


if __name__ == "__main__":
    main()
