"""Speed and memory on random llamas of the usual sizes, compared with transformers + PEFT if they are installed.

    speed.py SIZE FOLDER DEVICE    writes such a llama; in a process of its own, whose memory on the device ends with it
"""

import ctypes
import json
import math
import pathlib
import random
import shutil
import struct
import subprocess
import sys

from process import CLONE, ENGINE, REFERENCES, call

PEER = CLONE / "bench" / "peer.py"

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
# What is measured at each size: name, and options of `luthier-engine bench`. Most telling first, because time may end.
TRAINING = {
    "toy": [("lora", 2, 64), ("qlora", 2, 64), ("full", 1, 64)],
    "1b": [("lora", 4, 4096), ("qlora", 4, 4096), ("full", 2, 4096)],
    "8b": [("lora", 2, 4096), ("qlora", 2, 4096), ("lora", 4, 4096), ("full", 1, 4096)],
}
STEPS, NEW_TOKENS = 8, 256
# Seconds that one measurement may take, and the least that it needs.
LIMIT, LEAST = 120, 20
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
    drawn = on_device(device) if device != "cpu" else in_python()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in tensors(config):
            file.write(b"\x80\x3f" * shape[0] if len(shape) == 1 else drawn(shape))
    return sum(math.prod(shape) for _, shape in tensors(config))


def on_device(device):
    """Draws a matrix of bf16 numbers on a device, and gives its bytes."""
    import torch

    generator = torch.Generator(device=device).manual_seed(0)

    def draw(shape):
        weight = torch.empty(shape, dtype=torch.bfloat16, device=device)
        weight = weight.normal_(0, DEVIATION, generator=generator).cpu()
        return ctypes.string_at(weight.data_ptr(), weight.nbytes)

    return draw


def in_python():
    """The same without torch, for small matrices: bf16 is the upper half of f32."""
    numbers = random.Random(0)

    def draw(shape):
        singles = struct.pack(f"<{math.prod(shape)}f", *(numbers.gauss(0, DEVIATION) for _ in range(math.prod(shape))))
        return b"".join(singles[at + 2 : at + 4] for at in range(0, len(singles), 4))

    return draw


def ours(model, device, arguments, limit):
    out = call([ENGINE, "bench", model, "--json", "--dtype", "bf16", "--device", device, *arguments], limit)
    found = json.loads(out.splitlines()[-1])
    peak = found["peak_device_memory_bytes"] or found["peak_memory_bytes"]
    part = found["train"] or found["decode"]
    figures = {"tokens_per_second": part["tokens_per_second"], "peak_memory_bytes": peak, "load_seconds": found["load_seconds"]}
    return figures | {"whole": found, "shown": shown(figures)}


def theirs(model, device, arguments, limit):
    figures = json.loads(call([sys.executable, PEER, *arguments, "--device", device], limit).splitlines()[-1])
    return figures | {"shown": shown(figures)}


def shown(figures):
    return f"{figures['tokens_per_second']:.0f} tokens/s, {figures['peak_memory_bytes'] / 2**30:.2f} GiB peak"


def peers_are_there():
    done = subprocess.run([sys.executable, "-c", "import peft, transformers"], capture_output=True, check=False)
    return done.returncode == 0


def measure(size, scratch, device, record):
    """Trains with every method and generates, until the stage's time is used up."""
    model = scratch / size
    begun = lambda: json.loads(call([sys.executable, __file__, size, model, device], record.left("speed")))
    if not record.attempt("speed", f"{size} weights", begun):
        return
    limit = lambda: min(LIMIT, record.left("speed"))

    def attempt(name, work):
        if limit() < LEAST:
            record.note("speed", name, {"skipped": "no time left"})
        else:
            record.attempt("speed", name, work)

    for method, batch, length in TRAINING[size][:2]:
        train(attempt, model, device, size, (method, batch, length), limit)
    tokens = ["--steps", 0, "--new-tokens", NEW_TOKENS]
    attempt(f"{size} generation", lambda: ours(model, device, tokens, limit()))
    if peers_are_there():
        method, batch, length = TRAINING[size][0]
        shape = ["--batch", batch, "--length", length, "--steps", STEPS, "--method", method]
        attempt(f"{size} {method} {batch}×{length}, peers", lambda: theirs(model, device, ["train", model, "bf16", *shape], limit()))
        tokens = ["generate", model, "bf16", "--tokens", NEW_TOKENS]
        attempt(f"{size} generation, peers", lambda: theirs(model, device, tokens, limit()))
    for method, batch, length in TRAINING[size][2:]:
        train(attempt, model, device, size, (method, batch, length), limit)


def train(attempt, model, device, size, what, limit):
    method, batch, length = what
    shape = ["--method", method, "--new-tokens", 0, "--batch", batch, "--length", length, "--steps", STEPS]
    attempt(f"{size} {method} {batch}×{length}", lambda: ours(model, device, shape, limit()))


if __name__ == "__main__":
    size, folder, device = sys.argv[1:]
    tokenizer = REFERENCES / "tiny" / "_tokenizers" / "bytelevel"
    print(json.dumps({"parameters": make_model(pathlib.Path(folder), size, device, tokenizer)}))
