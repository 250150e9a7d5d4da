#!/usr/bin/env python3
"""Makes .gpu/, what a checkout lacks for checking this build on a machine with a GPU and without cargo: the binaries,
stripped and compressed. Prints what to take there and the command to run.
"""

import lzma
import pathlib
import shutil
import subprocess
import tempfile

CLONE = pathlib.Path(__file__).resolve().parents[2]
FOLDER = CLONE / ".gpu"
# Most bytes of the checkout and of this folder together.
ROOM = 60 << 20


def tracked():
    """Bytes of all files that git tracks or would take."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=CLONE, capture_output=True, check=True)
    paths = [CLONE / name.decode() for name in listed.stdout.split(b"\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file() and not path.is_symlink())


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for name in ("luthier", "luthier-engine"):
        with tempfile.TemporaryDirectory() as scratch:
            bare = pathlib.Path(scratch) / name
            subprocess.run(["strip", "-o", bare, CLONE / "target" / "release" / name], check=True)
            (FOLDER / f"{name}.xz").write_bytes(lzma.compress(bare.read_bytes(), preset=6))
    binaries = sum(path.stat().st_size for path in FOLDER.iterdir())
    tree = tracked()
    print(f"the checkout has {tree / 2**20:.1f} MiB, .gpu/ {binaries / 2**20:.1f} MiB")
    if tree + binaries > ROOM:
        raise SystemExit(f"together they are larger than {ROOM >> 20} MiB")
    print("take both to the machine with the GPU, and run there, in the checkout:")
    print("python3 scripts/gpu_check/run.py --budget 530 --out gpu-check.jsonl")


if __name__ == "__main__":
    main()
