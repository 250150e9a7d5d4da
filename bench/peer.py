"""One measurement of transformers + PEFT, in the environment that peers.py makes. Prints one JSON document.

    peer.py convert GGUF FOLDER                  the sample base model as a Hugging Face folder, in f32
    peer.py train FOLDER DTYPE STEPS             LoRA of rank 16 on all linear layers, batch 1 × 512, every token trained
    peer.py rows FOLDER DTYPE STEPS JSON         the same adapter on given rows, padded, loss on completions
    peer.py generate FOLDER DTYPE TOKENS         greedy `generate` after a prompt of 64 tokens

Threads are torch's own default, as for us: one for each core.
"""

import json
import os
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
WARM_UP = 2


def peak():
    """Largest resident memory of this process so far, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def load(folder, dtype):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], attn_implementation="sdpa")


def with_adapter(model):
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    model.train()
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def steps_of(model, parameters, steps):
    """Seconds of each step of `steps`, each a list of micro-batches; the loss is the mean over the step's trained tokens."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)
    seconds = []
    for batches in steps:
        began = time.perf_counter()
        trained = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        for batch in batches:
            model(**batch, use_cache=False, num_items_in_batch=trained).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    return seconds


def train(folder, dtype, steps):
    model, parameters = with_adapter(load(folder, dtype))
    batches = []
    for _ in range(WARM_UP + int(steps)):
        ids = torch.randint(1000, 40000, (1, 512))
        batches.append([{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}])
    seconds = steps_of(model, parameters, batches)[WARM_UP:]
    return {"tokens_per_second": 512 / statistics.median(seconds), "peak_memory_bytes": peak()}


def padded(rows):
    """A micro-batch as `DataCollatorForSeq2Seq` makes it: rows padded on the right to the longest."""
    width = max(len(row["ids"]) for row in rows)

    def fill(values, filler):
        return torch.tensor([list(value) + [filler] * (width - len(value)) for value in values])

    labels = [[id if kept else -100 for id, kept in zip(row["ids"], row["trained"])] for row in rows]
    return {
        "input_ids": fill([row["ids"] for row in rows], 2),
        "attention_mask": fill([[1] * len(row["ids"]) for row in rows], 0),
        "labels": fill(labels, -100),
    }


def rows(folder, dtype, steps, path):
    """`path` holds steps of micro-batches of rows of `ids` and `trained`."""
    with open(path) as file:
        given = json.load(file)[: WARM_UP + int(steps)]
    model, parameters = with_adapter(load(folder, dtype))
    seconds = steps_of(model, parameters, [[padded(batch) for batch in step] for step in given])[WARM_UP:]
    tokens = sum(len(row["ids"]) for step in given[WARM_UP:] for batch in step for row in batch)
    return {"tokens_per_second": tokens / sum(seconds), "tokens": tokens, "peak_memory_bytes": peak()}


def generate(folder, dtype, tokens):
    model = load(folder, dtype).eval()
    # Nothing may end a reply early.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 2
    prompt = torch.randint(1000, 40000, (1, 64))

    def seconds(count):
        began = time.perf_counter()
        with torch.inference_mode():
            made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False)
        assert made.shape[1] == 64 + count
        return time.perf_counter() - began

    count = int(tokens)
    seconds(4)
    # The first token's time, the prompt's above all, is not counted, as for us.
    first = statistics.median(seconds(1) for _ in range(3))
    return {"tokens_per_second": (count - 1) / (seconds(count) - first), "peak_memory_bytes": peak()}


def convert(gguf, folder):
    source, name = os.path.split(gguf)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    # What transformers made of the file says that it is quantised; a plain model of the same weights is wanted.
    settings = {key: value for key, value in read.config.to_dict().items()
                if key not in ("quantization_config", "_model_name_or_path", "unk_token_id", "pretraining_tp")}
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    return {"folder": folder}


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    work = {"convert": convert, "train": train, "rows": rows, "generate": generate}[kind]
    print(json.dumps(work(*arguments)))
