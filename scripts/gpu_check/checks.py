"""Checks of the engine on a device against stored references: every family, every method."""

import json
import math
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import time

from process import ENGINE, LUTHIER, REFERENCES, Failure, call, environment, listen

# For random weights: in transformers itself, bf16 logits of these models differ from f32 by up to 0.24.
BF16_TOLERANCE = 0.06
# Largest relative difference of a step's loss from the reference's f32.
LOSS_BOUND = {"f32": 1e-4, "bf16": 5e-2}
# Seconds that one process may take.
LIMIT = 120


def read_integers(path):
    """The tensors of whole numbers in a safetensors file: shape, and all numbers in order."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__" and entry["dtype"] == "I64":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = entry["shape"], struct.unpack(f"<{(end - start) // 8}q", data[start:end])
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
        report = json.loads(call(command, LIMIT))
    # What is no number is null in JSON.
    worst = {key: max(math.inf if way[key] is None else way[key] for way in report["ways"]) for key in ["logits", "hidden", "loss"]}
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
    batches = read_integers(REFERENCES / "training" / family / "batches.safetensors")
    (count, rows, width), _ = batches["input_ids"]
    row = lambda numbers, index: list(numbers[index * width : (index + 1) * width])
    flat = {key: [row(batches[key][1], index) for index in range(count * rows)] for key in ["input_ids", "attention_mask", "labels"]}
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


def train(folder, *settings, **variables):
    """The events of a run of the project in a folder."""
    out = call([LUTHIER, "train", "-C", folder, "--json", *settings], LIMIT, **variables)
    for log in folder.glob("runs/*/engine.log"):
        listen(log.read_text(errors="replace"))
    return [json.loads(line) for line in out.splitlines()]


def check_method(family, name, dtype, device):
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        settings = write_project(folder, family, name, dtype, device)
        steps = [event for event in train(folder) if event["kind"] == "step"]
    wanted = settings["log"]
    if len(steps) != len(wanted):
        return {"pass": False, "error": f"{len(steps)} steps instead of {len(wanted)}"}
    relative = lambda ours, theirs: math.inf if ours is None else abs(ours - theirs) / abs(theirs)
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
    return [event["loss"] for event in train(folder) if event["kind"] == "step"]


def check_beginnings(family, device):
    """Compares the same steps on the device and on the CPU, which have different kernels."""
    losses = []
    for where in (device, "cpu"):
        with tempfile.TemporaryDirectory() as scratch:
            losses.append(train_alike(pathlib.Path(scratch), family, where))
    if [len(run) for run in losses] != [5, 5]:
        return {"pass": False, "error": f"{[len(run) for run in losses]} steps instead of 5 each"}
    if any(loss is None for run in losses for loss in run):
        return {"pass": False, "error": "a loss is no number"}
    worst = max(abs(ours - theirs) / abs(theirs) for ours, theirs in zip(*losses))
    return {"pass": worst <= LOSS_BOUND["f32"], "relative_error": {"loss": worst}}


def check_deterministic(family, name, dtype, device):
    """Two runs with train.deterministic = true must have the same bits in every loss, norm and final weight."""
    runs = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            write_project(folder, family, name, dtype, device)
            events = train(folder, "--set", "train.deterministic=true")
            steps = [(event["loss"], event["grad_norm"]) for event in events if event["kind"] == "step"]
            weights = sorted(folder.glob("runs/*/adapter/*.safetensors")) + sorted(folder.glob("runs/*/model/*.safetensors"))
            runs.append((steps, [path.read_bytes() for path in weights]))
    if not runs[0][0] or not runs[0][1]:
        return {"pass": False, "error": "the run wrote no weights"}
    if runs[0] != runs[1]:
        return {"pass": False, "error": "two runs differ"}
    return {"pass": True, "relative_error": {"loss": 0.0}}



def steps_of(run):
    """Loss and gradient norm of every step that a run's journal keeps, the last of each step."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {event["step"]: (event["loss"], event["grad_norm"]) for event in events if event.get("kind") == "step"}


def weights_of(run):
    return sorted(run.glob("adapter/*.safetensors")) + sorted(run.glob("model/*.safetensors"))


def check_resume(family, name, dtype, device):
    """A run whose engine is killed in the middle and that is resumed must end with the bits of one that is left alone."""
    settings = ["--set", "train.deterministic=true", "--set", "train.checkpoint_every=5", "--set", "train.max_steps=400"]
    weights, losses = [], []
    for kill in (False, True):
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            write_project(folder, family, name, dtype, device)
            if kill:
                run = start_and_kill(folder, settings)
                call([LUTHIER, "run", "resume", run.name, "-C", folder], LIMIT)
                deadline = time.monotonic() + LIMIT
                while not weights_of(run):
                    if time.monotonic() > deadline:
                        return {"pass": False, "error": "the resumed run did not end"}
                    time.sleep(0.2)
            else:
                train(folder, *settings)
                (run,) = (folder / "runs").iterdir()
            losses.append(steps_of(run))
            weights.append([path.read_bytes() for path in weights_of(run)])
    if not weights[0] or losses[0] != losses[1] or weights[0] != weights[1]:
        return {"pass": False, "error": "the resumed run differs from one that was left alone"}
    return {"pass": True, "relative_error": {"loss": 0.0}}


def start_and_kill(folder, settings):
    """Starts a run, and kills its engine once it has some checkpoints. Returns the run's folder."""
    begun = subprocess.Popen([str(LUTHIER), "train", "-C", str(folder), "--json", *settings], env=environment(),
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in begun.stdout:
            event = json.loads(line)
            if event.get("kind") == "step" and event["step"] >= 12:
                break
        (run,) = (folder / "runs").iterdir()
        found = subprocess.run(["pgrep", "-f", f"luthier-engine train .*{run.name}"], capture_output=True, text=True, check=False)
        if not found.stdout.split():
            raise Failure("the run ended before it could be killed")
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
        return run
    finally:
        begun.kill()
        begun.wait()


def check_out_of_memory(device):
    """A micro-batch that does not fit is cut into parts, and the run goes on."""
    if not device.startswith("cuda"):
        return {"pass": True, "skipped": "only a GPU has a memory of its own that can be limited"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        numbers = random.Random(7)
        rows = [[numbers.randrange(3, 500) for _ in range(500)] for _ in range(64)]
        lines = [json.dumps({"input_ids": row, "labels": row}) for row in rows]
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "luthier.toml").write_text(
            f'[model]\npath = "{REFERENCES / "tiny" / "llama"}"\ndtype = "f32"\ndevice = "{device}"\n'
            f'[data]\ntrain = "train.jsonl"\neval = 0\nformat = "tokens"\npacking = false\nmax_length = 512\n'
            f"[train]\nmax_steps = 2\nbatch_size = 64\naccumulate = 1\neval_every = 0\nsample_every = 0\n"
            f'recompute = "off"\n'
        )
        limit = "per_process_memory_fraction:0.003"
        events = train(folder, PYTORCH_CUDA_ALLOC_CONF=limit)
    steps = [event for event in events if event["kind"] == "step"]
    told = any("memory" in json.dumps(event) for event in events if event["kind"] not in ("step", "start"))
    return {"pass": len(steps) == 2 and told, "steps": len(steps), "told": told}
