#!/usr/bin/env python3
"""Checks that PEFT and transformers load what Luthier writes and compute the same with it, and the other way round.

    tests/references/against_peft.py [LUTHIER]      target/release/luthier where none is named

Each case trains a tiny model for a few steps with `luthier train`. Its last held-out loss must be what transformers + PEFT
compute with the adapter, or the whole model, that the run wrote. Then runs start from adapters that PEFT wrote with settings of
its own: the first held-out loss must be PEFT's. Needs the packages of requirements.txt; exit status 3 where a case fails.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile
import warnings

import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
LUTHIER = HERE.parents[1] / "target" / "release" / "luthier"
TOLERANCE = 1e-5
FAMILIES = sorted(path.parent.name for path in (HERE / "tiny").glob("*/ref.safetensors"))
METHODS = {
    "lora": "rank = 4",
    "rslora": 'rank = 4\nvariant = "rslora"',
    "dora": 'rank = 4\nvariant = "dora"',
    "bias": 'rank = 4\nbias = "all"',
    "dora with the bias of its layers": 'rank = 4\nbias = "lora_only"\nvariant = "dora"',
    "head saved": 'rank = 4\nmodules_to_save = ["lm_head"]',
    "on the head": 'rank = 4\ntargets = ["lm_head"]',
    "ia3": 'kind = "ia3"',
    "prefix": 'kind = "prefix"\nvirtual_tokens = 5',
    "prompt": 'kind = "prompt"\nvirtual_tokens = 5',
    "full": 'kind = "full"',
}
TASK = {"task_type": "CAUSAL_LM"}
MADE = [
    ("llama", "lora", LoraConfig(r=4, target_modules="all-linear", rank_pattern={"q_proj": 2, r".*\.1\.mlp\.up_proj": 6},
                                 alpha_pattern={"v_proj": 3}, use_rslora=True, **TASK)),
    ("llama", "lora", LoraConfig(r=4, target_modules=["q_proj", "lm_head"], **TASK)),
    ("phi", "lora", LoraConfig(r=4, target_modules=["q_proj", "fc1"], bias="all", **TASK)),
    ("gpt2", "lora", LoraConfig(r=4, target_modules=["c_attn", "mlp.c_proj", "lm_head"], fan_in_fan_out=True, use_dora=True,
                                modules_to_save=["ln_f", "wpe"], **TASK)),
    ("gpt2", "lora", LoraConfig(r=4, target_modules=["c_fc"], modules_to_save=["c_attn"], fan_in_fan_out=True, **TASK)),
    ("gemma2", "lora", LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], **TASK)),
    ("gpt2", "ia3", IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True,
                              **TASK)),
    ("llama", "prefix", PrefixTuningConfig(num_virtual_tokens=4, **TASK)),
    ("llama", "prompt", PromptTuningConfig(num_virtual_tokens=4, **TASK)),
]


def rows(count):
    made = []
    for _ in range(count):
        ids = [random.randrange(4, 500) for _ in range(random.randint(6, 20))]
        made.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return made


def base(family):
    return AutoModelForCausalLM.from_pretrained(HERE / "tiny" / family, dtype=torch.float32)


def loss(model, held_out):
    """Mean over all trained tokens."""
    total, count = 0.0, 0
    for row in held_out:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1]:]
        for place, label in enumerate(row["labels"][1:]):
            if label != -100:
                total -= torch.log_softmax(logits[place], -1)[label].item()
                count += 1
    return total / count


def run(luthier, folder, family, method, train, held_out, steps):
    """The held-out losses of a run, and its directory."""
    for name, data in (("train", train), ("held-out", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    (folder / "luthier.toml").write_text(
        f'[model]\npath = "{HERE / "tiny" / family}"\ndtype = "f32"\ndevice = "cpu"\n'
        f'[data]\ntrain = "train.jsonl"\neval = "held-out.jsonl"\nformat = "tokens"\n[method]\n{method}\n'
        f"[train]\nmax_steps = {steps}\nlearning_rate = 1e-2\nwarmup = 0\neval_every = 1\nsample_every = 0\ncheckpoint_every = 0\n"
    )
    done = subprocess.run([luthier, "train", "--json", "-C", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [done.stdout[-300:]])[-1])
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return [event["loss"] for event in events if event["kind"] == "eval"], next((folder / "runs").iterdir())


def written(luthier, folder, family, method, train, held_out):
    losses, left = run(luthier, folder, family, method, train, held_out, 3)
    if (left / "model").is_dir():
        model = AutoModelForCausalLM.from_pretrained(left / "model", dtype=torch.float32)
    else:
        model = PeftModel.from_pretrained(base(family), left / "adapter")
    return losses[-1], loss(model, held_out)


def read(luthier, folder, family, kind, settings, train, held_out):
    model = get_peft_model(base(family), settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder / "made")
    theirs = loss(PeftModel.from_pretrained(base(family), folder / "made"), held_out)
    method = f'kind = "{kind}"\ninit = "{folder / "made"}"'
    return run(luthier, folder, family, method, train, held_out, 1)[0][0], theirs


def main():
    warnings.filterwarnings("ignore")
    random.seed(1)
    torch.manual_seed(1)
    luthier = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else LUTHIER).resolve()
    data = rows(12), rows(6)
    cases = [(f"{family}, {name}", written, (family, method)) for family in FAMILIES for name, method in METHODS.items()]
    cases += [(f"{family}, PEFT's own {kind} {number}", read, (family, kind, settings))
              for number, (family, kind, settings) in enumerate(MADE)]
    failed = []
    for name, work, arguments in cases:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                ours, theirs = work(luthier, pathlib.Path(scratch), *arguments, *data)
                same, figures = abs(ours - theirs) <= TOLERANCE, f"{ours:.7f} {theirs:.7f}"
            except (RuntimeError, ValueError, KeyError) as error:
                same, figures = False, str(error)
        print(f"{'ok  ' if same else 'FAIL'} {name:<50} {figures}", flush=True)
        if not same:
            failed.append(name)
    print(f"{len(failed)} of {len(cases)} cases failed")
    sys.exit(3 if failed else 0)


if __name__ == "__main__":
    main()
