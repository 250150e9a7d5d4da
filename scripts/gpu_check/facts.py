#!/usr/bin/env python3
"""Facts of the machine: versions, and what its products, attention kernels and allocations reach in torch itself. Each is
one line of JSON with a name, written as soon as it is known; what cannot be found out is a line with the reason.

    facts.py DEVICE
"""

import ctypes
import glob
import json
import os
import pathlib
import subprocess
import sys
import time

try:
    import torch
    import torch.nn.functional as functional
except ImportError:
    # On a processor nothing needs it.
    torch = None

# Rows, depth and columns of products as in a step of Llama 3.1 8B; on a processor only small ones.
PRODUCTS = {
    "cuda": {"square": (8192, 8192, 8192), "query": (8192, 4096, 4096), "gate": (8192, 4096, 14336), "down": (8192, 14336, 4096),
             "head": (1046, 4096, 128256), "first factor": (8192, 4096, 16), "one token": (1, 4096, 14336)},
    "cpu": {"square": (256, 256, 256), "one token": (1, 256, 512)},
}
# Rows, heads, tokens and head size of the measured attention, and documents in a packed row of as many tokens.
ATTENTION = {"cuda": (2, 32, 4096, 128), "cpu": (1, 4, 256, 64)}
DOCUMENTS = 8
ROUNDS = {"cuda": 20, "cpu": 3}
# Bytes that are allocated first, with and without memory that grows.
FIRST = 1 << 20


def told(command, **variables):
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False, env={**os.environ, **variables})
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise RuntimeError(f"status {done.returncode}: {said[-1]}")
    return done.stdout.strip()


def seconds(work, device):
    """Median seconds of a piece of work."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    times = []
    for _ in range(ROUNDS[device.type]):
        begun = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]


def versions(device):
    return {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda, "git": torch.version.git_version}


def driver(device):
    fields = "name,driver_version,memory.total,memory.used,power.limit,clocks.max.sm,mig.mode.current"
    return {"nvidia_smi": told(["nvidia-smi"]), fields: told(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])}


def card(device):
    properties = torch.cuda.get_device_properties(device)
    return {"card": properties.name, "memory_bytes": properties.total_memory, "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count}


def cudnn(device):
    return {"version": torch.backends.cudnn.version()}


def nvrtc(device):
    """The version of the compiler that is loaded or lies beside torch."""
    with open("/proc/self/maps") as file:
        loaded = [line.split()[-1] for line in file if "libnvrtc.so" in line]
    packages = pathlib.Path(torch.__file__).parents[1]
    beside = [path for folder in (packages / "nvidia", packages / "torch" / "lib")
              for path in glob.glob(f"{folder}/**/libnvrtc.so.*", recursive=True)]
    found = (loaded + beside or ["libnvrtc.so"])[0]
    major, minor = ctypes.c_int(), ctypes.c_int()
    status = ctypes.CDLL(found).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return {"version": f"{major.value}.{minor.value}", "path": found, "loaded": bool(loaded), "status": status}


def product(shape, kind, device):
    rows, depth, columns = shape
    left = torch.randn(rows, depth, device=device, dtype=kind)
    right = torch.randn(columns, depth, device=device, dtype=kind)
    spent = seconds(lambda: left @ right.t(), device)
    moved = sum(matrix.element_size() * matrix.nelement() for matrix in (left, right))
    return {"teraflops": 2 * rows * depth * columns / spent / 1e12, "read_gb_per_second": moved / spent / 1e9}


def attention(kernel, device):
    """Seconds of causal attention forward and backward with one of torch's kernels, in bf16."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    rows, heads, tokens, size = ATTENTION[device.type]
    make = lambda: torch.randn(rows, heads, tokens, size, device=device, dtype=torch.bfloat16, requires_grad=True)
    query, key, value = make(), make(), make()
    grown = torch.randn_like(query)
    with sdpa_kernel(getattr(SDPBackend, kernel)):
        return first_and_later(lambda: functional.scaled_dot_product_attention(query, key, value, is_causal=True).backward(grown), device)


def documents(count, device):
    """The same over all tokens end to end, as flash attention takes `count` documents of a packed row."""
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, tokens, size = ATTENTION[device.type]
    make = lambda: torch.randn(rows * tokens, heads, size, device=device, dtype=torch.bfloat16, requires_grad=True)
    query, key, value = make(), make(), make()
    grown = torch.randn_like(query)
    each = rows * tokens // count
    ends = torch.arange(0, rows * tokens + 1, each, device=device, dtype=torch.int32)
    work = lambda: varlen_attn(query, key, value, ends, ends, each, each, window_size=(-1, 0)).backward(grown)
    return first_and_later(work, device)


def first_and_later(work, device):
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    first = time.perf_counter() - begun
    return {"shape": ATTENTION[device.type], "first_seconds": first, "later_seconds": seconds(work, device)}


def allocation(grows, device):
    """Seconds of a process's first allocation, with memory that grows or without."""
    code = f"import torch, time; begun = time.perf_counter(); torch.zeros({FIRST}, dtype=torch.uint8, device='{device}').sum().item(); print(time.perf_counter() - begun)"
    return {"seconds": float(told([sys.executable, "-c", code], PYTORCH_CUDA_ALLOC_CONF=f"expandable_segments:{grows}").splitlines()[-1])}


def works(device):
    """Name and work of every fact. Allocations are processes of their own, which take longest to start."""
    yield "versions", lambda: versions(device)
    if device.type == "cuda":
        yield "driver", lambda: driver(device)
        yield "card", lambda: card(device)
        yield "cudnn", lambda: cudnn(device)
        yield "nvrtc", lambda: nvrtc(device)
    for name, shape in PRODUCTS[device.type].items():
        yield f"product bfloat16 {name} {'×'.join(map(str, shape))}", lambda: product(shape, torch.bfloat16, device)
    yield "product float32 square", lambda: product(PRODUCTS[device.type]["square"], torch.float32, device)
    for kernel in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        yield f"attention {kernel.lower()}", lambda: attention(kernel, device)
    for count in (ATTENTION[device.type][0], DOCUMENTS):
        yield f"attention varlen, {count} documents", lambda: documents(count, device)
    for grows in (True, False):
        yield f"first allocation, {'growing' if grows else 'fixed'} memory", lambda: allocation(grows, device)


def main():
    if torch is None:
        # Without it there is no GPU to be checked, which run.py says.
        print(json.dumps({"name": "versions", "python": sys.version.split()[0], "torch": None}))
        return
    for name, work in works(torch.device(sys.argv[1])):
        try:
            found = work()
        except Exception as error:  # whatever one fact meets, the others go on
            lines = str(error).splitlines() or [""]
            found = {"error": f"{type(error).__name__}: {lines[0][:300]}"}
        print(json.dumps({"name": name, **found}), flush=True)


if __name__ == "__main__":
    main()
