"""Speed and memory on random llamas of the usual sizes, compared with transformers + PEFT if they are installed."""

import ctypes
import json
import math
import pathlib
import shutil
import struct
import subprocess
import sys

import torch

PEER = pathlib.Path(__file__).resolve().parent / "peer.py"

# Shapes of Llama 3.2 1B and Llama 3.1 8B; `toy` is for trying the script.
COMMON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False,
    "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
}
SIZES = {
    "toy": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}
# Methods measured at each size. Full fine-tuning of 8 billion weights with f32 masters, gradients and moments takes 128 GB.
METHODS = {"toy": ["lora", "qlora", "full"], "1b": ["lora", "qlora", "full"], "8b": ["lora", "qlora"]}
BATCH, LENGTH, STEPS, NEW_TOKENS = 4, 1024, 8, 128
# Standard deviation of random weights, as in transformers' initialisation.
DEVIATION = 0.02


def tensors(config):
    """Name and shape of every weight, in the order in which they are stored."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shared = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (shared, hidden),
            "self_attn.v_proj": (shared, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def make_model(folder, size, device, tokenizer):
    """Writes a Hugging Face folder of a llama with random bf16 weights, generated on the device."""
    config = COMMON | SIZES[size]
    shutil.copytree(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in tensors(config):
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + 2 * math.prod(shape)]}
        end += 2 * math.prod(shape)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    generator = torch.Generator(device=device).manual_seed(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in tensors(config):
            if len(shape) == 1:
                weight = torch.ones(shape, dtype=torch.bfloat16)
            else:
                weight = torch.empty(shape, dtype=torch.bfloat16, device=device)
                weight = weight.normal_(0, DEVIATION, generator=generator).cpu()
            file.write(ctypes.string_at(weight.data_ptr(), weight.nbytes))
    return sum(math.prod(shape) for _, shape in tensors(config))


def ours(call, engine, model, device, arguments):
    status, out, said = call([engine, "bench", model, "--json", "--dtype", "bf16", "--device", device, *arguments])
    if status:
        return {"error": said[0]}
    found = json.loads(out.splitlines()[-1])
    peak = found["peak_device_memory_bytes"] or found["peak_memory_bytes"]
    part = found["train"] or found["decode"]
    return {"tokens_per_second": part["tokens_per_second"], "peak_memory_bytes": peak, "load_seconds": found["load_seconds"]}


def theirs(model, device, arguments):
    command = [sys.executable, PEER, *arguments, "--device", device]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def peers_are_there():
    done = subprocess.run([sys.executable, "-c", "import peft, transformers"], capture_output=True, check=False)
    return done.returncode == 0


def measure(size, scratch, device, tokenizer, call, engine, note):
    """Trains with every method and generates. `note` is called with each result's name."""
    model = pathlib.Path(scratch) / size
    parameters = make_model(model, size, device, tokenizer)
    peers = peers_are_there()
    # For a large model, both compute activations again in the backward pass.
    recompute = ["--recompute"] if size == "8b" else []
    shape = ["--batch", BATCH, "--length", LENGTH, "--steps", STEPS, *recompute]
    for method in METHODS[size]:
        found = {"parameters": parameters, "ours": ours(call, engine, model, device, ["--method", method, "--new-tokens", 0, *shape])}
        if peers:
            found["theirs"] = theirs(model, device, ["train", model, "bf16", *shape, "--method", method])
        note(f"{size} {method} {BATCH}×{LENGTH} bf16", found)
    found = {"parameters": parameters, "ours": ours(call, engine, model, device, ["--steps", 0, "--new-tokens", NEW_TOKENS])}
    if peers:
        found["theirs"] = theirs(model, device, ["generate", model, "bf16", "--tokens", NEW_TOKENS])
    note(f"{size} generation bf16", found)
    shutil.rmtree(model)
