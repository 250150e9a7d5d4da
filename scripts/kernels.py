#!/usr/bin/env python3
"""Compiles every kernel for CUDA (src/engine/csrc/cuda) for each architecture, without a GPU, and fails if one does not
compile or needs more registers than there are. Installs NVIDIA's run-time compiler into the cache."""

import ctypes
import re
import sys

import setup

SOURCES = setup.CLONE / "src" / "engine" / "csrc" / "cuda"
VERSION = "13.0.88"
PACKAGE = f"nvidia-cuda-nvrtc=={VERSION}"
ENVIRONMENT = setup.CACHE / f"nvrtc-{VERSION}"
# A100; RTX 30; RTX 40 and L40; H100 and H200; B200; RTX 50.
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]


def installed():
    """The folder of the compiler's libraries."""
    found = lambda: next(ENVIRONMENT.glob("lib/python*/site-packages/nvidia/cu13/lib"), None)
    if not found():
        setup.install(ENVIRONMENT, PACKAGE, "NVIDIA's compiler")
    return found()


class Compiler:
    """NVRTC, by its C interface (nvrtc.h)."""

    def __init__(self, folder):
        # NVRTC looks for its builtins by name.
        ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so.*"))), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))

    def compile(self, name, source, architecture):
        """Whether the program compiles, and what the compiler says of it."""
        program = ctypes.c_void_p()
        made = self.library.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None)
        assert made == 0, f"nvrtcCreateProgram gave {made}"
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", b"--ptxas-options=-v"]
        status = self.library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        length = ctypes.c_size_t()
        self.library.nvrtcGetProgramLogSize(program, ctypes.byref(length))
        log = ctypes.create_string_buffer(length.value)
        self.library.nvrtcGetProgramLog(program, log)
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return status == 0, log.value.decode(errors="replace")


def main():
    compiler = Compiler(installed())
    shared = b"\n".join((SOURCES / name).read_bytes() for name in ["threads.h", "device.h"])
    failed = False
    for path in sorted(SOURCES.glob("*.cu")):
        for architecture in ARCHITECTURES:
            compiles, log = compiler.compile(path.stem, shared + b"\n" + path.read_bytes(), architecture)
            spills = sum(int(count) for count in re.findall(r"(\d+) bytes spill", log))
            registers = max((int(count) for count in re.findall(r"Used (\d+) registers", log)), default=0)
            kernels = log.count("Compiling entry function")
            if compiles and kernels and not spills:
                print(f"{path.name} {architecture}: {kernels} kernels, at most {registers} registers")
                continue
            failed = True
            reason = f"{spills} bytes of registers in memory" if compiles else "it does not compile"
            print(f"{path.name} {architecture}: {reason}\n{log}", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    try:
        main()
    except setup.SetupError as error:
        print(f"kernels: {error}", file=sys.stderr)
        sys.exit(1)
