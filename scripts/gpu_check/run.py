#!/usr/bin/env python3
"""Checks this build of Luthier on this machine's GPU. Needs python3 with torch 2.11.

Compares every family with transformers' stored outputs in f32 and bf16, and every method with PEFT's stored training steps,
on the device, for all references in the archive. Then measures training and generation on random llamas of 1 and 8
billion weights, compared with transformers + PEFT if they are installed. Writes one JSON document. The exit status is 3
if a check failed.
"""

import argparse
import datetime
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile

import torch

import speed

HERE = pathlib.Path(__file__).resolve().parent
ENGINE = HERE / "bin" / "luthier-engine"
LUTHIER = HERE / "bin" / "luthier"
REFERENCES = HERE / "references"

# For random weights: in transformers itself, bf16 logits of these models differ from f32 by up to 0.24.
BF16_TOLERANCE = 0.06
# Largest relative difference of a step's loss from the reference's f32.
LOSS_BOUND = {"f32": 1e-4, "bf16": 5e-2}


def environment():
    """libtorch is in the folder of python's torch."""
    library = pathlib.Path(torch.__file__).parent / "lib"
    paths = [str(library)] + [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(paths), "LUTHIER_ENGINE": str(ENGINE)}


def call(command, timeout=900):
    done = subprocess.run(
        [str(part) for part in command], env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    return done.returncode, done.stdout, done.stderr.strip().splitlines()[-1:] or [""]


def read_safetensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    kinds = {"F32": torch.float32, "I64": torch.int64, "BF16": torch.bfloat16}
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        flat = torch.frombuffer(bytearray(data[start:end]), dtype=kinds[entry["dtype"]])
        found[name] = flat.view(entry["shape"])
    return found


def check_family(folder, dtype, device):
    with tempfile.TemporaryDirectory() as scratch:
        model = pathlib.Path(scratch) / folder.name
        shutil.copytree(folder, model)
        if not (model / "tokenizer.json").exists():
            tokenizer = REFERENCES / "tiny" / "_tokenizers" / "bytelevel"
            shutil.copytree(tokenizer, model, dirs_exist_ok=True)
        command = [ENGINE, "verify", model, "--reference", folder, "--dtype", dtype, "--device", device, "--json"]
        if dtype == "bf16":
            command += ["--tolerance", BF16_TOLERANCE]
        status, out, complaint = call(command)
    if status:
        return {"pass": False, "error": complaint[0]}
    report = json.loads(out)
    worst = {key: max(way[key] for way in report["ways"]) for key in ["logits", "hidden", "loss"]}
    passed = all(worst[key] <= report["allowed"][key] for key in worst)
    # A greedy token may differ if bf16 rounds two logits to the same number.
    if dtype == "f32":
        passed = passed and report["greedy_equal"]
    return {"pass": passed, "max_abs_error": worst, "greedy_equal": report["greedy_equal"]}


def trained_runs():
    """Family and name of every reference run that the engine can repeat: those with its normalisation and weight decay,
    and whose stored adapter has all trained weights."""
    for path in sorted((REFERENCES / "training").glob("*/*/trajectory.json")):
        settings = json.loads(path.read_text())
        adapter = path.parent / "adapter-init" / "adapter_config.json"
        projected = adapter.exists() and json.loads(adapter.read_text()).get("prefix_projection")
        if settings["normalisation"] == "tokens" and not settings.get("no_decay") and not projected:
            yield path.parts[-3:-1]


def method_of(reference):
    """The [method] section of a reference run, from its adapter."""
    start = reference / "adapter-init"
    if not start.exists():
        return 'kind = "full"'
    config = json.loads((start / "adapter_config.json").read_text())
    kinds = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}
    kind = kinds[config["peft_type"]]
    lines = [f"init = {json.dumps(str(start))}"]
    if kind == "lora":
        if (reference / "dequant_layer0.safetensors").exists():
            kind = "qlora"
        variant = "dora" if config["use_dora"] else "rslora" if config["use_rslora"] else "plain"
        lines += [f'rank = {config["r"]}', f'alpha = {config["lora_alpha"]}', f"variant = {json.dumps(variant)}",
                  f'targets = {json.dumps(sorted(config["target_modules"]))}']
        lines += [f'modules_to_save = {json.dumps(config["modules_to_save"])}'] if config["modules_to_save"] else []
    elif kind != "ia3":
        lines.append(f'virtual_tokens = {config["num_virtual_tokens"]}')
    return "\n".join([f'kind = "{kind}"', *lines])


def write_project(folder, family, name, dtype, device):
    reference = REFERENCES / "training" / family / name
    settings = json.loads((reference / "trajectory.json").read_text())
    batches = read_safetensors(REFERENCES / "training" / family / "batches.safetensors")
    count, rows, width = batches["input_ids"].shape
    flat = {key: batches[key].reshape(count * rows, width).tolist() for key in ["input_ids", "attention_mask", "labels"]}
    lines = []
    for ids, mask, labels in zip(flat["input_ids"], flat["attention_mask"], flat["labels"]):
        length = sum(mask)
        lines.append(json.dumps({"input_ids": ids[:length], "labels": labels[:length]}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "luthier.toml").write_text(
        f'[model]\npath = "{REFERENCES / "tiny" / family}"\ndtype = "{dtype}"\ndevice = "{device}"\n'
        f'[data]\ntrain = "train.jsonl"\neval = 0\nformat = "tokens"\nshuffle = false\npacking = false\n'
        f"[method]\n{method_of(reference)}\n"
        f'[train]\nmax_steps = {settings["steps"]}\nbatch_size = {rows}\naccumulate = {settings["accumulation"]}\n'
        f'learning_rate = {settings["lr"]}\nschedule = "cosine"\nwarmup = {settings["warmup"]}\n'
        f'weight_decay = {settings["weight_decay"]}\nmax_grad_norm = {settings["clip"]}\n'
        f"eval_every = 0\nsample_every = 0\ncheckpoint_every = 0\n"
    )
    return settings


def check_method(family, name, dtype, device):
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        settings = write_project(folder, family, name, dtype, device)
        status, out, complaint = call([LUTHIER, "train", "-C", folder, "--json"])
        if status:
            return {"pass": False, "error": complaint[0]}
        steps = [event for event in map(json.loads, out.splitlines()) if event["kind"] == "step"]
    wanted = settings["log"]
    if len(steps) != len(wanted):
        return {"pass": False, "error": f"{len(steps)} steps instead of {len(wanted)}"}
    relative = lambda ours, theirs: abs(ours - theirs) / abs(theirs)
    loss = max(relative(ours["loss"], theirs["loss"]) for ours, theirs in zip(steps, wanted))
    norm = max(relative(ours["grad_norm"], theirs["grad_norm"]) for ours, theirs in zip(steps, wanted))
    passed = loss <= LOSS_BOUND[dtype] and (dtype != "f32" or norm <= 1e-3)
    return {"pass": passed, "relative_error": {"loss": loss, "grad_norm": norm}}


def train_alike(folder, family, device):
    """Losses of five steps on rows with a shared beginning, which the engine computes once."""
    numbers = random.Random(7)
    begin = [numbers.randrange(3, 500) for _ in range(20)]
    rows = [begin + [numbers.randrange(3, 500) for _ in range(numbers.randrange(4, 14))] for _ in range(30)]
    lines = [json.dumps({"input_ids": row, "labels": [-100] * 15 + row[15:]}) for row in rows]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "luthier.toml").write_text(
        f'[model]\npath = "{REFERENCES / "tiny" / family}"\ndtype = "f32"\ndevice = "{device}"\n'
        f'[data]\ntrain = "train.jsonl"\neval = 0\nformat = "tokens"\nshuffle = false\npacking = false\n'
        f"[train]\nmax_steps = 5\nbatch_size = 6\naccumulate = 1\nlearning_rate = 0.01\n"
        f"eval_every = 0\nsample_every = 0\ncheckpoint_every = 0\n"
    )
    status, out, complaint = call([LUTHIER, "train", "-C", folder, "--json"])
    if status:
        raise RuntimeError(complaint[0])
    return [event["loss"] for event in map(json.loads, out.splitlines()) if event["kind"] == "step"]


def check_beginnings(family, device):
    """Compares the same steps on the device and on the CPU, which have different kernels."""
    losses = []
    for where in (device, "cpu"):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                losses.append(train_alike(pathlib.Path(scratch), family, where))
            except RuntimeError as error:
                return {"pass": False, "error": str(error)}
    if [len(run) for run in losses] != [5, 5]:
        return {"pass": False, "error": f"{[len(run) for run in losses]} steps instead of 5 each"}
    worst = max(abs(ours - theirs) / abs(theirs) for ours, theirs in zip(*losses))
    return {"pass": worst <= LOSS_BOUND["f32"], "relative_error": {"loss": worst}}


def check_deterministic(family, name, dtype, device):
    """Two runs with train.deterministic = true must have the same bits in every loss, norm and final weight."""
    runs = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            write_project(folder, family, name, dtype, device)
            status, out, complaint = call([LUTHIER, "train", "-C", folder, "--json", "--set", "train.deterministic=true"])
            if status:
                return {"pass": False, "error": complaint[0]}
            steps = [(event["loss"], event["grad_norm"]) for event in map(json.loads, out.splitlines()) if event["kind"] == "step"]
            weights = sorted(folder.glob("runs/*/adapter/*.safetensors")) + sorted(folder.glob("runs/*/model/*.safetensors"))
            runs.append((steps, [path.read_bytes() for path in weights]))
    if not runs[0][0] or not runs[0][1]:
        return {"pass": False, "error": "the run wrote no weights"}
    if runs[0] != runs[1]:
        return {"pass": False, "error": "two runs differ"}
    return {"pass": True, "relative_error": {"loss": 0.0}}


def machine(device):
    index = int(device.split(":")[1]) if ":" in device else None
    facts = {"torch": torch.__version__, "python": sys.version.split()[0], "device": device}
    if index is not None:
        properties = torch.cuda.get_device_properties(index)
        facts |= {"card": properties.name, "memory_bytes": properties.total_memory}
        facts |= {"capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}
    return facts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="gpu-check.json", help="the JSON document to write")
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the script")
    parser.add_argument("--sizes", default="1b,8b", help="random llamas to measure: " + ", ".join(speed.SIZES) + ", or none")
    arguments = parser.parse_args()
    sizes = [] if arguments.sizes == "none" else arguments.sizes.split(",")
    if unknown := sorted(set(sizes) - set(speed.SIZES)):
        parser.error(f"--sizes: unknown {', '.join(unknown)}; known are {', '.join(speed.SIZES)}")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        sys.exit("gpu-check: torch sees no CUDA device; `luthier doctor` says why")
    result = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    result |= {"command": " ".join(["run.py", *sys.argv[1:]]), "machine": machine(arguments.device)}
    result |= {"families": {}, "methods": {}, "speed": {}}
    failed = []

    def note(kind, name, found):
        result[kind][name] = found
        if not found["pass"]:
            failed.append(name)
        figures = found.get("error") or found.get("max_abs_error") or found.get("relative_error")
        print(f"{'ok  ' if found['pass'] else 'FAIL'} {kind:<9} {name:<40} {figures}", flush=True)

    models = [path.parent for group in ["tiny", "variants"] for path in (REFERENCES / group).glob("*/ref.safetensors")]
    for folder in sorted(models):
        for dtype in ["f32", "bf16"]:
            note("families", f"{folder.name} {dtype}", check_family(folder, dtype, arguments.device))
    for family, name in trained_runs():
        for dtype in ["f32", "bf16"]:
            note("methods", f"{family} {name} {dtype}", check_method(family, name, dtype, arguments.device))

    for family, name in [("llama", "lora"), ("llama", "dora"), ("llama", "full"), ("llama", "qlora-nf4"), ("llama", "prompt"),
                         ("llama", "prefix"), ("falcon-40b", "lora"), ("phi", "lora")]:
        if not (REFERENCES / "training" / family / name / "trajectory.json").exists():
            continue
        for dtype in ["f32", "bf16"]:
            note("methods", f"{family} {name} {dtype} twice the same", check_deterministic(family, name, dtype, arguments.device))
    for family in ["llama", "gemma2", "falcon-7b", "gpt2"]:
        note("methods", f"{family} rows with a shared beginning", check_beginnings(family, arguments.device))

    def measured(name, found):
        result["speed"][name] = found
        for who in ("ours", "theirs"):
            measurement = found.get(who)
            if measurement is not None:
                figures = measurement.get("error") or (f"{measurement['tokens_per_second']:.0f} tokens/s, "
                                                f"{measurement['peak_memory_bytes'] / 2**30:.2f} GiB peak")
                print(f"     {name:<50} {who:<7} {figures}", flush=True)
        if "error" in found["ours"]:
            failed.append(name)

    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = REFERENCES / "tiny" / "_tokenizers" / "bytelevel"
            speed.measure(size, scratch, arguments.device, tokenizer, call, ENGINE, measured)
    result["failed"] = failed
    pathlib.Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")
    checks = sum(len(result[kind]) for kind in ("families", "methods", "speed"))
    print(f"{len(failed)} of {checks} checks and measurements failed; {arguments.out}")
    sys.exit(3 if failed else 0)


if __name__ == "__main__":
    main()
