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
import tempfile

from process import CLONE, ENGINE, REFERENCES, OutOfTime, call, lines, missing

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
# Rows and tokens of a step, tokens of a packed one, and tokens of an answer.
SHAPES = {
    "toy": {"batch": 2, "length": 64, "packed": 256, "answer": 32},
    "1b": {"batch": 4, "length": 4096, "packed": 16384, "answer": 256},
    "8b": {"batch": 2, "length": 4096, "packed": 16384, "answer": 256},
}
STEPS, WARM_UP = 8, 3
# Steps whose kernels are listed.
PROFILED = 2
# Seconds that one measurement may take, with the weights that it loads, and the least that a stage needs.
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


def equal(size, share=1.0):
    """Rows of a step: `share` times the usual number."""
    return {"equal": {"batch": int(SHAPES[size]["batch"] * share), "length": SHAPES[size]["length"]}}


def works(size):
    """What is measured at a size, in the form of `luthier-engine bench --plan`. Most telling first, because time may end."""
    shape = SHAPES[size]
    steps = {"steps": STEPS, "warm_up": WARM_UP}
    packed = {"lognormal": {"tokens": shape["packed"], "median": shape["length"] / 8, "deviation": 0.8}}
    answer = {"new_tokens": shape["answer"]}
    return [
        {"name": "lora", "train": {"rows": equal(size), **steps}},
        {"name": "lora, twice the rows", "train": {"rows": equal(size, 2), **steps}},
        {"name": "lora, packed rows", "train": {"rows": packed, **steps}},
        {"name": "answer", "generate": answer},
        {"name": "pair of answers", "generate": {**answer, "answers": "pair"}},
        {"name": "answer with an adapter", "generate": {**answer, "answers": "tuned"}},
        {"name": "qlora", "method": "qlora", "train": {"rows": equal(size), **steps}},
        {"name": "full, half the rows", "method": "full", "train": {"rows": equal(size, 0.5), **steps}},
    ]


def profiled(size):
    return [{"name": "lora", "train": {"rows": equal(size), "steps": PROFILED, "warm_up": WARM_UP, "profile": True}}]


def without_kernels(size):
    """What our kernels for CUDA are worth: the same as in `works`, by libtorch's operations."""
    steps = {"rows": equal(size), "steps": STEPS, "warm_up": WARM_UP}
    return [
        {"name": "lora without our kernels", "train": steps},
        {"name": "answer without our kernels", "generate": {"new_tokens": SHAPES[size]["answer"]}},
    ]


def summary(found):
    """The figures of a work that are read first."""
    part = found["train"] or found["decode"]
    peak = part["peak_device_memory_bytes"] or part["peak_memory_bytes"]
    figures = {"tokens_per_second": part["tokens_per_second"], "peak_memory_bytes": peak, "load_seconds": found["load_seconds"]}
    shown = f"{figures['tokens_per_second']:.0f} tokens/s, {peak / 2**30:.2f} GiB peak"
    if forecast := part.get("forecast"):
        # Libraries take their memory beside the tensors, whose peak a device counts.
        forecast = forecast["total"] - (forecast["runtime"] if part["peak_device_memory_bytes"] else 0)
        figures |= {"forecast_bytes": forecast, "forecast_by_peak": forecast / peak}
        shown += f", {forecast / 2**30:.2f} forecast"
    if table := part.get("profile"):
        most = table["lines"][0] if table["lines"] else {"name": "nothing", "share": 0.0}
        idle = table["idle_microseconds_per_step"] / max(table["microseconds_per_step"], 1e-9)
        shown = f"{table['launches_per_step']:.0f} launches a step, idle {idle:.0%}, most in {most['name'][:40]} {most['share']:.0%}"
    return figures | {"whole": found, "shown": shown}


def run_plan(size, model, device, planned, record, stage, **variables):
    """Notes every work of a plan as soon as it is measured. Returns the figures of each that was."""
    waiting, figures, error = [work["name"] for work in planned], {}, "the engine gave no figures"
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"works": planned}, file)
        file.flush()
        command = [ENGINE, "bench", model, "--plan", file.name, "--json", "--dtype", "bf16", "--device", device]
        try:
            for line in lines(command, LIMIT, record.left(stage), **variables):
                found = json.loads(line)
                name = found.pop("name")
                waiting.remove(name)
                if "error" in found:
                    record.note(stage, f"{size} {name}", {"pass": False, "error": found["error"]})
                elif noted := record.attempt(stage, f"{size} {name}", lambda: summary(found) | missing(found["slower"], device, **variables)):
                    figures[name] = noted
        except OutOfTime:
            error = None
        except Exception as failure:  # the stages after this one go on
            error = f"{type(failure).__name__}: {failure}"
    for name in waiting:
        record.note(stage, f"{size} {name}", {"pass": False, "error": error} if error else {"skipped": "no time left"})
    return figures


def peers_are_there():
    done = subprocess.run([sys.executable, "-c", "import peft, transformers"], capture_output=True, check=False)
    return done.returncode == 0


def run_peers(size, model, device, record):
    """The same answer and the same training with transformers + PEFT, over one load. Returns the figures of each."""
    if not peers_are_there():
        record.note("speed", f"{size} peers", {"skipped": "transformers and PEFT are not installed"})
        return {}
    shape, figures = SHAPES[size], {}
    command = [sys.executable, PEER, "both", model, "bf16", "--device", device, "--tokens", shape["answer"],
               "--batch", shape["batch"], "--length", shape["length"], "--steps", STEPS]
    try:
        for line in lines(command, LIMIT, record.left("speed")):
            found = json.loads(line)
            name = f"peers, {found.pop('name')}"
            shown = f"{found['tokens_per_second']:.0f} tokens/s, {found['peak_memory_bytes'] / 2**30:.2f} GiB peak"
            record.note("speed", f"{size} {name}", found | {"shown": shown})
            figures[name] = found
    except OutOfTime:
        record.note("speed", f"{size} peers", {"skipped": "no time left"})
    except Exception as failure:  # whatever they lack, they are not what is checked
        record.note("speed", f"{size} peers", {"error": f"{type(failure).__name__}: {failure}"})
    return figures


def goals(figures):
    """What the project aims at, and what was measured of it: name, goal in words, figure, whether it meets the goal. The
    figure is None if something it needs was not measured."""

    def figure(work):
        try:
            return work()
        except (KeyError, ValueError, TypeError, ZeroDivisionError):
            return None

    speed = lambda name: figures[name]["tokens_per_second"]
    peak = lambda name: figures[name]["peak_memory_bytes"]
    decode = lambda: figures["pair of answers"]["whole"]["decode"]
    bytes_of = lambda part: part["peak_device_memory_bytes"] or part["peak_memory_bytes"]
    forecasts = lambda: [found["forecast_by_peak"] for found in figures.values() if "forecast_by_peak" in found]
    table = [
        ("LoRA tokens/s", "at least 13500", lambda: max(speed("lora"), speed("lora, twice the rows")), lambda it: it >= 13500),
        ("LoRA by peers' LoRA", "at least 1.5", lambda: speed("lora") / speed("peers, train"), lambda it: it >= 1.5),
        ("QLoRA by LoRA", "at least 0.95", lambda: speed("qlora") / speed("lora"), lambda it: it >= 0.95),
        ("full tokens/s", "at least 7500", lambda: speed("full, half the rows"), lambda it: it >= 7500),
        ("full GiB", "at most 132", lambda: peak("full, half the rows") / 2**30, lambda it: it <= 132),
        ("answer tokens/s", "at least 200", lambda: speed("answer"), lambda it: it >= 200),
        ("pair's time by one answer's", "at most 1.15", lambda: decode()["seconds"] / decode()["alone"]["seconds"], lambda it: it <= 1.15),
        ("pair's memory by one answer's", "at most 1.05", lambda: bytes_of(decode()) / bytes_of(decode()["alone"]), lambda it: it <= 1.05),
        ("forecast by peak, farthest", "from 0.95 to 1.05", lambda: max(forecasts(), key=lambda it: abs(it - 1)), lambda it: abs(it - 1) <= 0.05),
    ]
    for name, goal, work, meets in table:
        measured = figure(work)
        yield name, goal, measured, None if measured is None else meets(measured)


def measure(size, scratch, device, record):
    """Trains with every method and generates, until the stage's time is used up, and lists the kernels of a step."""
    model = scratch / size
    draw = lambda: json.loads(call([sys.executable, __file__, size, model, device], record.left("speed")))
    if not record.attempt("speed", f"{size} weights", draw):
        return
    figures = {}
    if record.left("speed") < LEAST:
        record.note("speed", size, {"skipped": "no time left"})
    else:
        figures |= run_plan(size, model, device, works(size), record, "speed")
        figures |= run_peers(size, model, device, record)
    for name, goal, measured, met in goals(figures):
        # They are goals of one size on one card; elsewhere the figure is only of interest.
        met = met if size == "8b" and device != "cpu" else None
        shown = "not measured" if measured is None else f"{measured:.2f}, {goal}" + {True: ", met", False: ", not met", None: ""}[met]
        record.note("speed", f"{size} goal: {name}", {"goal": goal, "measured": measured, "met": met, "shown": shown})
    if record.left("profile") < LEAST:
        record.note("profile", size, {"skipped": "no time left"})
    else:
        run_plan(size, model, device, profiled(size), record, "profile")
    if device != "cpu" and record.left("profile") >= LEAST:
        run_plan(size, model, device, without_kernels(size), record, "profile", LUTHIER_KERNELS="off")


if __name__ == "__main__":
    size, folder, device = sys.argv[1:]
    tokenizer = REFERENCES / "tiny" / "_tokenizers" / "bytelevel"
    print(json.dumps({"parameters": make_model(pathlib.Path(folder), size, device, tokenizer)}))
