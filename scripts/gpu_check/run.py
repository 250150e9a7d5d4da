#!/usr/bin/env python3
"""Checks this build of Luthier on this machine's GPU within a budget of seconds. Needs python3 with torch 2.11.

    python3 scripts/gpu_check/run.py --budget 530 --out gpu-check.jsonl

In stages, each of which gives way to the next when its share of the budget is used: facts of the machine; a smoke test,
which tries the known remedies if it fails; speed and memory of a random llama, beside the forecast and the goals; the
kernels of its training step; every family, method and number format against stored references, in several processes at a
time. Each finding is one line of JSON, written as soon as it is known; all that failed processes said is in a file beside
it. The exit status is 3 if something failed; a goal that is not met is no failure.
"""

import argparse
import concurrent.futures
import datetime
import json
import lzma
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import time

import checks
import process
import speed
from process import BINARIES, CLONE, ENGINE, REFERENCES, REMEDY, Failure, call

# Shares of the budget that are used up when a stage ends.
ENDS = {"facts": 0.08, "smoke": 0.2, "speed": 0.58, "profile": 0.7, "checks": 1.0}
# Seconds that one fact may take.
FACT = 30
# Processes that share the device while correctness is checked.
TOGETHER = 8
# What helped others whose first attention failed: variables, and folders of libraries beside torch's.
REMEDIES = (
    {},
    {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"},
    {"LD_LIBRARY_PATH": "nvidia"},
)
TWICE = (("llama", "lora"), ("llama", "dora"), ("llama", "full"), ("llama", "qlora-nf4"), ("llama", "prompt"),
         ("llama", "prefix"), ("falcon-40b", "lora"), ("phi", "lora"))
BEGINNINGS = ("llama", "gemma2", "falcon-7b", "gpt2")


class Record:
    """The findings, and the time that is left."""

    def __init__(self, path, budget):
        self.file = open(path, "w")
        self.begun, self.budget, self.failed, self.count = time.monotonic(), budget, [], 0
        self.without = set()

    def left(self, stage):
        """Seconds until the end of a stage."""
        return ENDS[stage] * self.budget - (time.monotonic() - self.begun)

    def note(self, stage, name, found):
        found = {"stage": stage, "name": name, "at": round(time.monotonic() - self.begun, 1), **found}
        self.file.write(json.dumps(found) + "\n")
        self.file.flush()
        self.count += 1
        passed = found.get("pass", True)
        if not passed:
            self.failed.append(f"{stage}: {name}")
        shown = found.get("error") or found.get("skipped") or found.get("shown") or ""
        print(f"{'ok  ' if passed else 'FAIL'} {found['at']:>6} s  {stage:<8} {name:<48} {shown}", flush=True)

    def attempt(self, stage, name, work):
        """Notes what a piece of work found, or why it failed; returns what it found if it passed."""
        try:
            found = work()
        except Failure as error:
            found = {"pass": False, "error": str(error)}
        except Exception as error:  # whatever one check meets, the others go on
            found = {"pass": False, "error": f"{type(error).__name__}: {error}"}
        if without := process.done_without():
            found = {**found, "without": without}
            self.without.add(name)
        self.note(stage, name, found)
        return found if found.get("pass", True) else None


def unpack(folder):
    """The binaries that travel compressed, or those that were built here, in a folder, later."""
    BINARIES.mkdir(parents=True, exist_ok=True)
    for name in ("luthier", "luthier-engine"):
        target, packed, built = BINARIES / name, CLONE / ".gpu" / f"{name}.xz", folder / name
        if packed.exists() and not (built.exists() and built.stat().st_mtime > packed.stat().st_mtime):
            with lzma.open(packed) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        elif built.exists():
            shutil.copyfile(built, target)
        else:
            sys.exit(f"gpu-check: there is neither {packed} nor {built}; `make gpu-check` makes the first")
        target.chmod(target.stat().st_mode | stat.S_IXUSR)


def facts(record, device):
    command = [sys.executable, CLONE / "scripts/gpu_check/facts.py", device]
    try:
        for line in process.lines(command, FACT, record.left("facts")):
            found = json.loads(line)
            record.note("facts", found.pop("name"), found)
    except process.OutOfTime:
        record.note("facts", "others", {"skipped": "no time left"})
    except Exception as error:  # the checks go on without them
        record.note("facts", "machine", {"pass": False, "error": str(error)})
    record.attempt("facts", "engine", lambda: doctor(device))


def doctor(device):
    found = json.loads(call([ENGINE, "doctor", "--json"], checks.LIMIT))
    return found | process.missing(found["slower"], device)


def smoke(record, device):
    """A model compared in both number formats, 20 steps of LoRA, some tokens. Stops at the first remedy that helps."""
    folder = REFERENCES / "tiny" / "llama"
    settings = ["--device", device, "--json"]
    generate = [ENGINE, "bench", folder, "--steps", "0", "--new-tokens", "16", "--dtype", "bf16", *settings]
    for remedy in REMEDIES if device.startswith("cuda") else REMEDIES[:1]:
        variables = dict(remedy)
        if "LD_LIBRARY_PATH" in variables:
            libraries = process.TORCH.parent / "nvidia"
            variables["LD_LIBRARY_PATH"] = ":".join([process.environment()["LD_LIBRARY_PATH"], *map(str, sorted(libraries.glob("*/lib")))])
        REMEDY.clear()
        REMEDY.update(variables)
        name = ", ".join(remedy) or "as it is"
        process.DEADLINE["at"] = record.begun + ENDS["smoke"] * record.budget
        passed = [
            record.attempt("smoke", f"f32, {name}", lambda: checks.check_family(folder, "f32", device)),
            record.attempt("smoke", f"bf16, {name}", lambda: checks.check_family(folder, "bf16", device)),
            record.attempt("smoke", f"LoRA, {name}", lambda: checks.check_method("llama", "lora", "bf16", device)),
            record.attempt("smoke", f"tokens, {name}", lambda: {"pass": json.loads(call(generate, checks.LIMIT))["decode"] is not None}),
        ]
        if None not in passed:
            return True
        if record.left("smoke") < 0:
            break
    REMEDY.clear()
    return False


def every_check(device):
    """Name and work of every comparison with a reference."""
    models = [path.parent for group in ("tiny", "variants") for path in (REFERENCES / group).glob("*/ref.safetensors")]
    formats = ("f32", "bf16")
    yield "out of memory", lambda: checks.check_out_of_memory(device)
    yield "killed and resumed", lambda: checks.check_resume("llama", "lora", "f32", device)
    for folder in sorted(models):
        for dtype in formats:
            yield f"{folder.name} {dtype}", lambda folder=folder, dtype=dtype: checks.check_family(folder, dtype, device)
    for family, name in checks.trained_runs():
        for dtype in formats:
            yield f"{family} {name} {dtype}", lambda family=family, name=name, dtype=dtype: checks.check_method(family, name, dtype, device)
    for family, name in TWICE:
        if (REFERENCES / "training" / family / name / "trajectory.json").exists():
            for dtype in formats:
                yield (f"{family} {name} {dtype} twice the same",
                       lambda family=family, name=name, dtype=dtype: checks.check_deterministic(family, name, dtype, device))
    for family in BEGINNINGS:
        yield f"{family} rows with a shared beginning", lambda family=family: checks.check_beginnings(family, device)


def correctness(record, device, together, only):
    """All checks in a pool. What does not begin in time is named."""
    late = []

    def one(name, work):
        # A check that begins now may take its whole limit.
        process.DEADLINE["at"] = record.begun + record.budget
        if record.left("checks") < 5:
            late.append(name)
        else:
            record.attempt("checks", name, work)

    with concurrent.futures.ThreadPoolExecutor(together) as pool:
        chosen = [(name, work) for name, work in every_check(device) if only in name]
        for done in [pool.submit(one, name, work) for name, work in chosen]:
            done.result()
    if record.without and device.startswith("cuda"):
        names = sorted(record.without)
        record.note("checks", "kernels", {"pass": False, "error": f"not all were used in {len(names)} findings", "names": names})
    if late:
        record.note("checks", "left out", {"pass": False, "error": f"no time for {len(late)} checks", "names": late})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=530, help="seconds for everything together")
    parser.add_argument("--out", default="gpu-check.jsonl", help="the file of findings, one JSON document a line")
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the script")
    parser.add_argument("--sizes", default="8b", help="random llamas to measure: " + ", ".join(speed.SIZES) + ", or none")
    parser.add_argument("--together", type=int, default=TOGETHER, help="processes at a time for the comparisons")
    parser.add_argument("--binaries", type=pathlib.Path, default=CLONE / "target" / "release", help="the folder of a build")
    parser.add_argument("--only", default="", help="only comparisons whose name contains this")
    arguments = parser.parse_args()
    sizes = [] if arguments.sizes == "none" else arguments.sizes.split(",")
    if unknown := sorted(set(sizes) - set(speed.SIZES)):
        parser.error(f"--sizes: unknown {', '.join(unknown)}; known are {', '.join(speed.SIZES)}")
    process.ERRORS["file"] = pathlib.Path(arguments.out).with_suffix(".errors.txt")
    process.ERRORS["file"].write_text("")
    unpack(arguments.binaries)
    if arguments.device != "cpu":
        try:
            call([sys.executable, "-c", "import torch; assert torch.cuda.is_available()"], 120)
        except Failure as error:
            sys.exit(f"gpu-check: torch sees no CUDA device ({error}); `luthier doctor` says why")
    record = Record(arguments.out, arguments.budget)
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    record.note("facts", "command", {"date": date, "command": " ".join(["run.py", *sys.argv[1:]]), "budget": arguments.budget})
    with tempfile.TemporaryDirectory() as cache:
        process.CACHE["folder"] = cache
        facts(record, arguments.device)
        works = smoke(record, arguments.device)
        process.DEADLINE["at"] = record.begun + record.budget
        if works:
            # In memory where there is room, so that loading measures the engine and not the disk.
            room = "/dev/shm" if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 40e9 else None
            with tempfile.TemporaryDirectory(dir=room) as scratch:
                for size in sizes:
                    speed.measure(size, pathlib.Path(scratch), arguments.device, record)
        correctness(record, arguments.device, arguments.together, arguments.only)
    spent = time.monotonic() - record.begun
    record.note("checks", "sum", {"count": record.count, "failed": record.failed, "seconds": round(spent, 1)})
    print(f"{len(record.failed)} of {record.count} findings are failures, in {spent:.0f} s; {arguments.out}")
    sys.exit(3 if record.failed else 0)


if __name__ == "__main__":
    main()
