#!/usr/bin/env python3
"""Compiles every kernel for CUDA (src/engine/csrc/cuda) for each architecture, without a GPU, and fails if one does not
compile, gives a warning, keeps registers in memory, or needs more than a block of its threads can have. Installs
NVIDIA's run-time compiler into the cache."""

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
# Registers of a block, of which each thread gets a multiple of 8, and threads of one that has no launch bound.
REGISTERS, EACH, THREADS = 65536, 8, 1024


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
        """Whether the program compiles, what the compiler says of it, and the program in PTX."""
        program = ctypes.c_void_p()
        made = self.library.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None)
        assert made == 0, f"nvrtcCreateProgram gave {made}"
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", b"--ptxas-options=-v"]
        status = self.library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = self.text(program, "ProgramLog")
        ptx = self.text(program, "PTX") if status == 0 else ""
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return status == 0, log, ptx

    def text(self, program, what):
        """What the functions nvrtcGet… give of a program."""
        length = ctypes.c_size_t()
        getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(length))
        text = ctypes.create_string_buffer(length.value)
        getattr(self.library, f"nvrtcGet{what}")(program, text)
        return text.value.decode(errors="replace")


def registers_of(log):
    """Registers of a thread, by kernel."""
    parts = re.split(r"Compiling entry function '(\w+)'", log)
    used = {name: re.search(r"Used (\d+) registers", said) for name, said in zip(parts[1::2], parts[2::2])}
    return {name: int(found.group(1)) for name, found in used.items() if found}


def threads_of(ptx):
    """Most threads of a block, by kernel."""
    parts = re.split(r"\.entry (\w+)\(", ptx)
    bounds = {name: re.search(r"^\.maxntid (\d+)", head.split("{")[0], re.MULTILINE) for name, head in zip(parts[1::2], parts[2::2])}
    return {name: int(found.group(1)) if found else THREADS for name, found in bounds.items()}


def problems(log, ptx):
    """What is wrong with a program that compiles."""
    if ": warning" in log:
        yield "the compiler warns"
    if spills := sum(int(count) for count in re.findall(r"(\d+) bytes spill", log)):
        yield f"{spills} bytes of registers in memory"
    registers, threads = registers_of(log), threads_of(ptx)
    if not registers or registers.keys() != threads.keys():
        yield "the registers or the threads of its kernels are not known"
    for name in registers.keys() & threads.keys():
        each = -(-registers[name] // EACH) * EACH
        if each * threads[name] > REGISTERS:
            yield f"{name} cannot start: {each} registers for each of {threads[name]} threads are more than {REGISTERS}"


def main():
    compiler = Compiler(installed())
    # The headers that the engine puts before each program.
    headers = re.findall(r'include_str!\("cuda/(\w+\.h)"\)', (SOURCES.parent / "cuda.rs").read_text())
    shared = b"\n".join((SOURCES / name).read_bytes() for name in headers)
    failed = False
    for path in sorted(SOURCES.glob("*.cu")):
        for architecture in ARCHITECTURES:
            compiles, log, ptx = compiler.compile(path.stem, shared + b"\n" + path.read_bytes(), architecture)
            found = list(problems(log, ptx)) if compiles else ["it does not compile"]
            if found:
                failed = True
                print(f"{path.name} {architecture}: {'; '.join(found)}\n{log}", file=sys.stderr)
                continue
            registers = registers_of(log)
            print(f"{path.name} {architecture}: {len(registers)} kernels, at most {max(registers.values())} registers")
    sys.exit(failed)


if __name__ == "__main__":
    try:
        main()
    except setup.SetupError as error:
        print(f"kernels: {error}", file=sys.stderr)
        sys.exit(1)
