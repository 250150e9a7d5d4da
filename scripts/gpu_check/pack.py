#!/usr/bin/env python3
"""Makes target/gpu-check.tar.gz: all files for checking this build on a machine with a GPU, python3 and torch 2.11.

There: tar xf gpu-check.tar.gz && python3 gpu-check/run.py --out result.json
"""

import pathlib
import tarfile

CLONE = pathlib.Path(__file__).resolve().parents[2]
HERE = CLONE / "scripts" / "gpu_check"
ARCHIVE = CLONE / "target" / "gpu-check.tar.gz"


def main():
    with tarfile.open(ARCHIVE, "w:gz", compresslevel=6) as archive:
        for name in ["luthier", "luthier-engine"]:
            archive.add(CLONE / "target" / "release" / name, f"gpu-check/bin/{name}")
        for path in [HERE / "run.py", HERE / "speed.py", CLONE / "bench" / "peer.py"]:
            archive.add(path, f"gpu-check/{path.name}")
        for name in ["tiny", "variants", "training"]:
            archive.add(CLONE / "tests" / "references" / name, f"gpu-check/references/{name}")
    print(f"{ARCHIVE.relative_to(CLONE)}  {ARCHIVE.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
