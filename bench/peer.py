"""One measurement of transformers + PEFT, in the environment that peers.py makes. Prints one JSON document.

    peer.py convert GGUF FOLDER             the sample base model as a Hugging Face folder, in f32
    peer.py train FOLDER DTYPE              on rows of random tokens, all trained on
    peer.py train FOLDER DTYPE --rows JSON  on given rows, padded, loss on completions
    peer.py generate FOLDER DTYPE           greedy `generate` after a prompt of 64 tokens
    peer.py both FOLDER DTYPE               `generate`, then LoRA, over one load: a document with a `name` on each of two lines

Threads are torch's default, as in the engine: one per core.
"""

import argparse
import json
import os
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
WARM_UP = 2


def peak(device):
    """Highest memory use of tensors on the device; on the CPU, largest resident memory of this process. In bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def now(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def load(folder, dtype, device, **more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], attn_implementation="sdpa", **more)
    return model if more else model.to(device)


def trained(arguments, model):
    """The model with its trained weights: all weights, or an adapter of rank 16 on all linear layers. `model` is one that is
    loaded already, or None."""
    folder, dtype, device = arguments.folder, arguments.dtype, arguments.device
    if arguments.method == "full":
        # As in the engine, weights are trained in f32, and products use the requested number format.
        model = load(folder, "f32", device)
    elif arguments.method == "qlora":
        from transformers import BitsAndBytesConfig

        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=DTYPES[dtype])
        model = load(folder, dtype, device, quantization_config=settings, device_map={"": device})
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=arguments.recompute)
    else:
        model = model or load(folder, dtype, device)
    if arguments.method != "full":
        config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    if arguments.recompute:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.train()
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def steps_of(model, parameters, steps, arguments):
    """Seconds of each step of `steps`, each a list of micro-batches; the loss is the mean over the step's trained tokens."""
    device = arguments.device
    # As in their trainers: products with f32 tensors, such as the factors, use the requested number format.
    mixed = arguments.dtype != "f32"
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)
    seconds = []
    for batches in steps:
        began = now(device)
        count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        for batch in batches:
            batch = {name: values.to(device) for name, values in batch.items()}
            with torch.autocast(device.type, DTYPES[arguments.dtype], enabled=mixed):
                loss = model(**batch, use_cache=False, num_items_in_batch=count).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(now(device) - began)
    return seconds


def padded(rows):
    """A micro-batch like that of `DataCollatorForSeq2Seq`: rows padded on the right to the longest."""
    width = max(len(row["ids"]) for row in rows)

    def fill(values, filler):
        return torch.tensor([list(value) + [filler] * (width - len(value)) for value in values])

    labels = [[id if kept else -100 for id, kept in zip(row["ids"], row["trained"])] for row in rows]
    return {
        "input_ids": fill([row["ids"] for row in rows], 2),
        "attention_mask": fill([[1] * len(row["ids"]) for row in rows], 0),
        "labels": fill(labels, -100),
    }


def train(arguments, model=None):
    if arguments.rows:
        with open(arguments.rows) as file:
            given = json.load(file)[: WARM_UP + arguments.steps]
        steps = [[padded(batch) for batch in step] for step in given]
        tokens = [sum(len(row["ids"]) for batch in step for row in batch) for step in given]
    else:
        steps = []
        for _ in range(WARM_UP + arguments.steps):
            ids = torch.randint(256, (arguments.batch, arguments.length))
            steps.append([{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}])
        tokens = [arguments.batch * arguments.length] * len(steps)
    model, parameters = trained(arguments, model)
    seconds = steps_of(model, parameters, steps, arguments)
    speeds = [count / taken for count, taken in zip(tokens[WARM_UP:], seconds[WARM_UP:])]
    return {"tokens_per_second": statistics.median(speeds), "peak_memory_bytes": peak(arguments.device)}


def generate(arguments, model=None):
    device = arguments.device
    model = (model or load(arguments.folder, arguments.dtype, device)).eval()
    # Nothing may end a reply early.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 2
    prompt = torch.randint(256, (1, 64), device=device)

    def seconds(count):
        began = now(device)
        with torch.inference_mode():
            made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False)
        assert made.shape[1] == 64 + count
        return now(device) - began

    count = arguments.tokens
    seconds(4)
    # As in the engine's bench, the time of the first token, mostly that of the prompt, is not counted.
    first = statistics.median(seconds(1) for _ in range(3))
    return {"tokens_per_second": (count - 1) / (seconds(count) - first), "peak_memory_bytes": peak(device)}


def both(arguments):
    model = load(arguments.folder, arguments.dtype, arguments.device)
    print(json.dumps({"name": "generate", **generate(arguments, model)}), flush=True)
    if arguments.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(arguments.device)
    return {"name": "train", **train(arguments, model)}


def convert(arguments):
    source, name = os.path.split(arguments.gguf)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    # After reading the GGUF file, the configuration says that the model is quantised; the copy must be a plain model.
    settings = {key: value for key, value in read.config.to_dict().items()
                if key not in ("quantization_config", "_model_name_or_path", "unk_token_id", "pretraining_tp")}
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(arguments.folder)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(arguments.folder)
    return {"folder": arguments.folder}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(required=True)
    converting = kinds.add_parser("convert")
    converting.add_argument("gguf")
    converting.add_argument("folder")
    converting.set_defaults(work=convert)
    for name, work in (("train", train), ("generate", generate), ("both", both)):
        kind = kinds.add_parser(name)
        kind.add_argument("folder")
        kind.add_argument("dtype", choices=DTYPES)
        kind.add_argument("--device", type=torch.device, default="cpu")
        kind.set_defaults(work=work)
        if work is not train:
            kind.add_argument("--tokens", type=int, default=64)
        if work is generate:
            continue
        methods = ("lora",) if work is both else ("full", "lora", "qlora")
        kind.add_argument("--method", choices=methods, default="lora")
        kind.add_argument("--batch", type=int, default=1)
        kind.add_argument("--length", type=int, default=512)
        kind.add_argument("--steps", type=int, default=5)
        kind.add_argument("--rows", help="steps of micro-batches of rows of `ids` and `trained`")
        kind.add_argument("--recompute", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(arguments.work(arguments)))


if __name__ == "__main__":
    main()
