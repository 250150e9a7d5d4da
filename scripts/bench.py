#!/usr/bin/env python3
"""Tokens per second and peak memory on this machine, with the sample base model.

LoRA of rank 16 on all linear layers, every token trained, batch 1 × 512; greedy generation of one and of
two rows. Where a python with transformers and PEFT is named in LUTHIER_PEER_PYTHON, and a Hugging Face
folder of the same weights in LUTHIER_PEER_MODEL, the same training step is measured there too, in turn with ours, so that
both see the same machine.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys

CLONE = pathlib.Path(__file__).resolve().parent.parent
ENGINE = CLONE / "target" / "release" / "luthier-engine"
MODEL = CLONE / "sample-data" / "tickets" / "models" / "smollm2-135m-instruct-q4_1.gguf"
ROUNDS = int(os.environ.get("ROUNDS", "3"))

PEER = """
import json, sys, time, statistics, torch
from transformers import AutoModelForCausalLM
from peft import LoraConfig, get_peft_model
torch.manual_seed(0)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype, attn_implementation="sdpa")
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
model.train()
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
seconds = []
for step in range(7):
    ids = torch.randint(1000, 40000, (1, 512))
    begun = time.perf_counter()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step(); optimizer.zero_grad(set_to_none=True)
    seconds.append(time.perf_counter() - begun)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"tokens_per_second": 512 / statistics.median(seconds[2:]), "peak_memory_bytes": peak}))
"""


def answer(command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench: {command[0]} ended with status {done.returncode}; what it said stands above")
    return json.loads(done.stdout.splitlines()[-1])


def ours(dtype, steps, rows, new_tokens):
    return answer([ENGINE, "bench", MODEL, "--dtype", dtype, "--steps", steps, "--rows", rows, "--new-tokens", new_tokens, "--json"])


def line(name, speeds, peaks):
    print(f"{name:<34} {statistics.median(speeds):8.1f} tokens/s   {max(peaks) / 2**30:5.2f} GiB peak", flush=True)
    return statistics.median(speeds)


def main():
    python, model = os.environ.get("LUTHIER_PEER_PYTHON"), os.environ.get("LUTHIER_PEER_MODEL")
    for dtype in ("f32", "bf16"):
        mine, theirs = [], []
        for _ in range(ROUNDS):
            mine.append(ours(dtype, 5, 1, 0))
            if python and model:
                theirs.append(answer([python, "-c", PEER, model, dtype]))
        own = line(f"LoRA 1×512 {dtype}", [run["train"]["tokens_per_second"] for run in mine],
                   [run["peak_memory_bytes"] for run in mine])
        if theirs:
            peer = line(f"  transformers + PEFT {dtype}", [run["tokens_per_second"] for run in theirs],
                        [run["peak_memory_bytes"] for run in theirs])
            print(f"  ratio {own / peer:.2f}")
        for rows in (1, 2):
            runs = [ours(dtype, 0, rows, 64) for _ in range(ROUNDS)]
            line(f"generation {dtype}, {rows} at a time", [run["decode"]["tokens_per_second"] for run in runs],
                 [run["peak_memory_bytes"] for run in runs])


if __name__ == "__main__":
    main()
