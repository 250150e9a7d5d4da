#!/usr/bin/env python3
"""Runs the same work with Luthier and with transformers + PEFT, alternating, and prints the ratios.

Training: LoRA of rank 16 on all linear layers, every token trained, batch 1 × 512; the sample project's rows in the steps
of its luthier.toml, theirs padded, ours packed; generation of one row compared with `generate`. Each measurement is a
process of its own, ours and theirs alternating, ROUNDS times (default 3). Padding takes time but does not count as
tokens.

On first use the peers are installed into Luthier's cache (a few minutes). They use the torch that Luthier is built with
if that is a Python package. The sample base model is written there as a Hugging Face folder.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import measure
from measure import FOLDER, setup

# The packages to compare with; transformers and PEFT at the versions that made tests/references.
PACKAGES = (
    f"torch=={setup.TORCH_VERSION}",
    "transformers==5.23.0",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "tokenizers==0.23.3",
    "safetensors==0.8.0",
    "gguf==0.19.0",
    "numpy==2.4.6",
)
ROOT = setup.CACHE / "peers"
PYTHON = ROOT / "bin" / "python"
PEER = pathlib.Path(__file__).resolve().parent / "peer.py"
ROWS = measure.CLONE / "target" / "bench" / "rows.json"
STEPS = 5
NEW_TOKENS = 64


def borrow_torch(environment):
    """Makes the torch in Luthier's cache visible to the peers, so that pip fetches only missing packages."""
    packages = (measure.CLONE / ".libtorch").resolve().parent
    if not (packages / f"torch-{setup.TORCH_VERSION}.dist-info").is_dir():
        return
    asked = subprocess.run([environment / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                           stdout=subprocess.PIPE, text=True, check=True)
    pathlib.Path(asked.stdout.strip(), "luthier-torch.pth").write_text(f"{packages}\n")


def install():
    done = ROOT / "installed.txt"
    whole = done.exists() and (FOLDER / "tokenizer.json").exists()
    if whole and done.read_text() == "\n".join(PACKAGES):
        return
    print(f"bench: installing {', '.join(PACKAGES)} into {ROOT}", flush=True)
    shutil.rmtree(ROOT, ignore_errors=True)
    setup.virtual_environment(ROOT)
    borrow_torch(ROOT)
    installed = setup.pip(ROOT, "install", "--quiet", *PACKAGES)
    if installed.returncode:
        sys.exit(f"bench: pip could not install the peers:\n{installed.stderr}")
    theirs("convert", measure.MODEL.resolve(), FOLDER)
    done.write_text("\n".join(PACKAGES))


def theirs(*arguments):
    return measure.answer([PYTHON, PEER, *arguments])


def compare(name, ours, peers):
    """Runs both alternately and prints one line. `ours` and `peers` return a run's speed, peak memory and answer."""
    mine, other = [], []
    for _ in range(measure.ROUNDS):
        mine.append(ours())
        other.append(peers())
    speed, peer_speed = (measure.middle([run[0] for run in runs]) for runs in (mine, other))
    peak, peer_peak = (max(run[1] for run in runs) for runs in (mine, other))
    print(f"{name:<24} {speed:8.1f} {peer_speed:8.1f} tokens/s  ×{speed / peer_speed:5.2f}"
          f"   {measure.gib(peak):5.2f} {measure.gib(peer_peak):5.2f} GiB  ×{peak / peer_peak:4.2f}"
          f"{measure.note([run[2] for run in mine + other])}", flush=True)


def trained(run):
    return run["train"]["tokens_per_second"], run["peak_memory_bytes"], run


def generated(run):
    return run["decode"]["tokens_per_second"], run["peak_memory_bytes"], run


def peer(run):
    return run["tokens_per_second"], run["peak_memory_bytes"], run


def main():
    if not measure.ENGINE.exists():
        sys.exit("bench: the engine is not built: run `make build`")
    install()
    print(f"{measure.processor()}; {', '.join(PACKAGES[:3])}; ours first, then theirs", flush=True)
    train = ["--steps", STEPS, "--new-tokens", 0]
    for dtype in ("f32", "bf16"):
        compare(f"LoRA 1×512 {dtype}", lambda: trained(measure.engine("--dtype", dtype, *train)),
                lambda: peer(theirs("train", FOLDER, dtype, "--steps", STEPS)))
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    for dtype in ("f32", "bf16"):
        ours = [measure.ENGINE, "bench", "--json", "--project", measure.PROJECT, "--dtype", dtype, "--rows-to", ROWS, *train]
        compare(f"sample rows {dtype}", lambda: trained(measure.answer(ours)), lambda: peer(theirs("train", FOLDER, dtype, "--steps", STEPS, "--rows", ROWS)))
    for dtype in ("f32", "bf16"):
        compare(f"generation {dtype}",
                lambda: generated(measure.engine("--dtype", dtype, "--steps", 0, "--new-tokens", NEW_TOKENS, model=FOLDER)),
                lambda: peer(theirs("generate", FOLDER, dtype, "--tokens", NEW_TOKENS)))


if __name__ == "__main__":
    try:
        main()
    except setup.SetupError as error:
        sys.exit(f"bench: {error}")
