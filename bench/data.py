#!/usr/bin/env python3
"""Measures `luthier data check` on made-up rows: time and peak memory, and the time of the same check once more, whose
result is kept.

ROWS conversations (default 100,000) of about 300 tokens of the sample model, a fifth of them with a system prompt and two
replies. The words come from this repository's documents.
"""

import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys
import tempfile
import time

import measure

ROWS = int(os.environ.get("ROWS", "100000"))
# The words of a question and of a reply, fewest and most.
QUESTION, REPLY = (30, 90), (60, 200)


def words():
    """The words that rows are made of."""
    documents = [measure.CLONE / name for name in ("README.md", "ARCHITECTURE.md", "docs/data.md", "bench/README.md")]
    return re.findall(r"[A-Za-z']+", "".join(path.read_text() for path in documents))


def rows(folder):
    """Writes the rows into `folder`."""
    draw, known = random.Random(1), words()

    def text(least, most):
        return " ".join(draw.choice(known) for _ in range(draw.randint(least, most))).capitalize() + "."

    with open(folder / "train.jsonl", "w") as file:
        for number in range(ROWS):
            messages = [{"role": "user", "content": f"{number}: {text(*QUESTION)}"},
                        {"role": "assistant", "content": text(*REPLY)}]
            if number % 5 == 0:
                messages.insert(0, {"role": "system", "content": "You are a careful assistant."})
                messages += [{"role": "user", "content": text(10, 14)}, {"role": "assistant", "content": text(25, 35)}]
            file.write(json.dumps({"messages": messages}) + "\n")


def check(folder):
    """Checks the project in `folder`, which also holds the results that are kept. Returns the report and the seconds."""
    begun = time.monotonic()
    done = subprocess.run([measure.LUTHIER, "data", "check", "-C", str(folder), "--json"], stdout=subprocess.PIPE,
                          env={**os.environ, "XDG_CACHE_HOME": str(folder)})
    seconds = time.monotonic() - begun
    if done.returncode != 0:
        sys.exit(f"data: the check failed with status {done.returncode}")
    return json.loads(done.stdout), seconds


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        rows(folder)
        settings = f"[model]\npath = {json.dumps(str(measure.MODEL))}\n[data]\ntrain = \"train.jsonl\"\nmax_length = 2048\n"
        (folder / "luthier.toml").write_text(settings)
        report, seconds = check(folder)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        _, again = check(folder)
        print(f"{report['rows']:,} rows, {report['tokens']:,} tokens checked in {seconds:.1f} s, peak memory {peak:,.0f} MiB; "
              f"again in {again:.2f} s")


if __name__ == "__main__":
    main()
