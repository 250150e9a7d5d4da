#!/usr/bin/env python3
"""The same training and decoding through transformers and PEFT, on a randomly initialised model: one JSON line.

peer.py CONFIG METHOD DEVICE ROWS LENGTH STEPS
"""

import json
import statistics
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

DECODED = 128


def main():
    path, method, device = sys.argv[1:4]
    rows, length, steps = map(int, sys.argv[4:7])
    config = AutoConfig.from_pretrained(path)
    torch.manual_seed(0)
    dtype = torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if method == "qlora":
        import bitsandbytes

        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head"):
                parent = model.get_submodule(name.rpartition(".")[0])
                small = bitsandbytes.nn.Linear4bit(
                    module.in_features, module.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
                )
                small.weight = bitsandbytes.nn.Params4bit(module.weight.data.cpu(), quant_type="nf4", requires_grad=False)
                setattr(parent, name.rpartition(".")[2], small.to(device))
    if method != "full":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, settings)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    seconds = []
    for _ in range(steps + 2):
        ids = torch.randint(1000, config.vocab_size - 1, (rows, length), device=device)
        wait()
        begun = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        seconds.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else None
    model.gradient_checkpointing_disable()
    model.eval()
    ids = torch.randint(1000, config.vocab_size - 1, (1, 16), device=device)
    options = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
    model.generate(input_ids=ids, max_new_tokens=8, **options)
    wait()
    begun = time.perf_counter()
    model.generate(input_ids=ids, max_new_tokens=DECODED, **options)
    wait()
    decode = DECODED / (time.perf_counter() - begun)
    speed = rows * length / statistics.median(seconds[2:])
    print(json.dumps({"tokens_per_second": speed, "peak_memory_bytes": peak, "decode_tokens_per_second": decode}))


if __name__ == "__main__":
    main()
