#!/usr/bin/env python3
"""Tokens per second and peak memory on this machine, per method and number format, with the sample base model.

Training: batch 1 × 512, every token trained, all linear layers where a method has targets. Generation: greedy, after a
prompt of 64 tokens, one row and two rows at a time. Each figure is the median of ROUNDS processes (default 3).
`METHODS` and `DTYPES`, separated by commas, choose what is measured; `--parts` shows the time of each part of a step.
`--beside` measures LoRA and generation alone, and with one and two other processes that each keep a core busy.
"""

import json
import os
import subprocess
import sys

import measure


def chosen(name, available):
    wanted = os.environ.get(name)
    names = [part.strip() for part in wanted.split(",")] if wanted else available
    unknown = sorted(set(names) - set(available))
    if unknown:
        sys.exit(f"bench: {name} has unknown names: {', '.join(unknown)}; known are {', '.join(available)}")
    return names


def methods():
    """The methods that this build of the engine supports."""
    told = subprocess.run([str(measure.ENGINE), "doctor", "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(told.stdout)["methods"]


def line(name, speeds, peaks, runs):
    print(f"{name:<44} {measure.middle(speeds):8.1f} tokens/s   {measure.gib(max(peaks)):5.2f} GiB peak{measure.note(runs)}", flush=True)


def parts(runs):
    """Prints the share of each part in the median step, largest first."""
    seconds = {name: measure.middle([run["train"]["parts"][name] for run in runs]) for name in runs[0]["train"]["parts"]}
    whole = sum(seconds.values())
    for name, spent in sorted(seconds.items(), key=lambda entry: -entry[1]):
        print(f"    {name:<32} {1000 * spent:7.1f} ms  {100 * spent / whole:5.1f} %", flush=True)


def beside(count, dtype):
    """LoRA and generation, with 0 to 2 other processes that each keep a core busy."""
    others = ["alone", "with one busy process", "with two busy processes"][count]
    with measure.busy_processes(count):
        runs = [measure.engine("--dtype", dtype, "--steps", 3, "--new-tokens", 32) for _ in range(measure.ROUNDS)]
    for run in runs:
        run["others"] = 0.0  # Intended here.
    peaks = [run["peak_memory_bytes"] for run in runs]
    line(f"lora 1×512 {dtype}, {others}", [run["train"]["tokens_per_second"] for run in runs], peaks, runs)
    line(f"generation {dtype}, {others}", [run["decode"]["tokens_per_second"] for run in runs], peaks, runs)


def main():
    show_parts = "--parts" in sys.argv[1:]
    print(measure.processor(), flush=True)
    dtypes = chosen("DTYPES", ["f32", "bf16"])
    if "--beside" in sys.argv[1:]:
        for dtype in dtypes:
            for count in (0, 1, 2):
                beside(count, dtype)
        return
    for method in chosen("METHODS", methods()):
        # Full fine-tuning writes its result in the layout of its base, so it cannot start from a GGUF file.
        model = measure.FOLDER if method == "full" else measure.MODEL
        if not model.exists():
            print(f"{method:<44} is skipped: it needs a model folder, which `make bench-peers` writes", flush=True)
            continue
        for dtype in dtypes:
            runs = [measure.engine("--method", method, "--dtype", dtype, "--new-tokens", 0, model=model) for _ in range(measure.ROUNDS)]
            line(f"{method} 1×512 {dtype}", [run["train"]["tokens_per_second"] for run in runs],
                 [run["peak_memory_bytes"] for run in runs], runs)
            if show_parts:
                parts(runs)
    for dtype in dtypes:
        for rows in (1, 2):
            runs = [measure.engine("--dtype", dtype, "--steps", 0, "--rows", rows) for _ in range(measure.ROUNDS)]
            line(f"generation {dtype}, {rows} row{'s' if rows > 1 else ''}", [run["decode"]["tokens_per_second"] for run in runs],
                 [run["peak_memory_bytes"] for run in runs], runs)


if __name__ == "__main__":
    main()
