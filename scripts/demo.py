#!/usr/bin/env python3
"""The sample job without a terminal: check the data, fine-tune, evaluate base against tuned, report.

Works in target/demo, on a copy of sample-data/tickets; every printed figure is measured by this
call. Further arguments are passed to `luthier train` (for example `--set train.max_steps=20`).
"""

import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

CLONE = pathlib.Path(__file__).resolve().parent.parent
SOURCE = CLONE / "sample-data" / "tickets"
PROJECT = CLONE / "target" / "demo" / "tickets"
LUTHIER = CLONE / "target" / "release" / "luthier"


def fail(step, status):
    sys.exit(f"demo: `{step}` ended with status {status}; see its output above")


def command(*arguments):
    return [str(LUTHIER), *arguments, "-C", str(PROJECT)]


def answer(*arguments, accept=(0,)):
    """The JSON output of a command."""
    done = subprocess.run(command(*arguments, "--json"), stdout=subprocess.PIPE, check=False)
    if done.returncode not in accept:
        fail(f"luthier {' '.join(arguments)}", done.returncode)
    return json.loads(done.stdout)


def train(arguments):
    """Follows the journal's events until the run ends. Returns its steps, evaluations and peak memory."""
    process = subprocess.Popen(command("train", "--json", *arguments), stdout=subprocess.PIPE, text=True)
    steps, evaluations, peak = [], [], 0
    show = sys.stderr.isatty()
    for line in process.stdout:
        event = json.loads(line)
        if event["kind"] == "step":
            steps.append(event)
            peak = max(peak, event.get("memory_bytes", 0))
            if show or len(steps) % 10 == 1:
                print(f"demo: step {event['step']}  loss {event['loss']:.3f}  {event['tokens_per_second']:.0f} tokens/s".ljust(70),
                      end="\r" if show else "\n", file=sys.stderr, flush=True)
        elif event["kind"] == "eval":
            evaluations.append(event)
    if process.wait():
        fail("luthier train", process.returncode)
    return steps, evaluations, peak


def share(scores, name):
    value = scores.get("scores", {}).get(name)
    return "    –" if value is None else f"{100 * value:4.0f} %"


def main():
    began = time.monotonic()
    shutil.rmtree(PROJECT, ignore_errors=True)
    shutil.copytree(SOURCE, PROJECT, symlinks=True, ignore=shutil.ignore_patterns("runs", "luthier.db*", "verdicts.jsonl"))

    report = answer("data", "check")
    print(f"data      {report['rows']} rows, {report['tokens']} tokens, {report['trained_tokens']} of them trained")
    plan = answer("plan")
    print(f"plan      {plan['parameters']['trainable']:,} of {plan['parameters']['total']:,} parameters trained, "
          f"{plan['steps']} steps, {plan['memory']['total'] / 2**30:.2f} GiB forecast")

    started = time.monotonic()
    steps, evaluations, peak = train(sys.argv[1:])
    seconds = time.monotonic() - started
    tokens = sum(step["tokens"] for step in steps)
    print(f"training  {len(steps)} steps, {tokens} tokens in {seconds:.0f} s ({tokens / seconds:.0f} tokens/s), loss {steps[0]['loss']:.3f} → {steps[-1]['loss']:.3f}")
    if evaluations:
        print(f"held out  loss {evaluations[0]['loss']:.3f} → {evaluations[-1]['loss']:.3f}")

    started = time.monotonic()
    scores = answer("eval", "latest")
    base, tuned = scores["base"], scores["tuned"]
    print(f"evaluated in {time.monotonic() - started:.0f} s on {base.get('replies', 'all')} held-out tickets")
    print("                                  base   tuned")
    print(f"  held-out loss                  {base['loss']:5.3f}   {tuned['loss']:5.3f}")
    for name, label in (("valid", "valid JSON"), ("conforms", "conforms to the schema"), ("equal", "equals the answer")):
        print(f"  {label:<30} {share(base, name)}  {share(tuned, name)}")
    peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    print(f"in all    {time.monotonic() - began:.0f} s, peak memory {peak / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
