#!/usr/bin/env python3
"""Facts of the machine, as one JSON document: versions, and what its products and attention kernels reach in torch itself.

    facts.py DEVICE
"""

import json
import subprocess
import sys
import time

try:
    import torch
    import torch.nn.functional as functional
except ImportError:
    # On a processor nothing needs it.
    torch = None

# Rows, columns and depth of the measured product, and shape of the measured attention: on a GPU, and on a processor.
PRODUCT = {"cuda": 8192, "cpu": 512}
ATTENTION = {"cuda": (2, 32, 4096, 128), "cpu": (1, 4, 256, 64)}
ROUNDS = {"cuda": 20, "cpu": 3}


def told(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def seconds(work, device, rounds):
    """Median seconds of a piece of work."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]


def products(device):
    side = PRODUCT[device.type]
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        left = torch.randn(side, side, device=device, dtype=kind)
        found[str(kind).removeprefix("torch.")] = 2 * side**3 / seconds(lambda: left @ left, device, ROUNDS[device.type]) / 1e12
    return {"side": side, "teraflops": found}


def attention(device):
    """Seconds of causal attention forward and backward with each of torch's kernels, in bf16."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    rows, heads, tokens, size = ATTENTION[device.type]
    make = lambda: torch.randn(rows, heads, tokens, size, device=device, dtype=torch.bfloat16, requires_grad=True)
    query, key, value = make(), make(), make()
    grown = torch.randn(rows, heads, tokens, size, device=device, dtype=torch.bfloat16)
    found = {}
    names = {"flash": SDPBackend.FLASH_ATTENTION, "memory_efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for name, kernel in names.items():
        try:
            with sdpa_kernel(kernel):
                work = lambda: functional.scaled_dot_product_attention(query, key, value, is_causal=True).backward(grown)
                begun = time.perf_counter()
                work()
                first = time.perf_counter() - begun
                found[name] = {"first_call": first, "later": seconds(work, device, ROUNDS[device.type])}
        except RuntimeError as error:
            found[name] = {"error": str(error).splitlines()[0]}
    return {"shape": [rows, heads, tokens, size], "seconds": found}


def main():
    if torch is None and sys.argv[1] == "cpu":
        print(json.dumps({"python": sys.version.split()[0], "torch": None}))
        return
    device = torch.device(sys.argv[1])
    facts = {"torch": torch.__version__, "python": sys.version.split()[0], "device": str(device), "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"card": properties.name, "memory_bytes": properties.total_memory, "capability": f"{properties.major}.{properties.minor}"}
        facts |= {"cudnn": torch.backends.cudnn.version(), "nvidia_smi": told(["nvidia-smi"])}
    facts["products"] = products(device)
    facts["attention"] = attention(device)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
