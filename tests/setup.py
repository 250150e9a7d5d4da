"""What `make setup` installs for which driver, against a pip index in a folder. Run by tests/scripts.rs."""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import unittest
import zipfile

CLONE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CLONE / "scripts"))
import setup

TEXT = "NVRM version: NVIDIA UNIX {kind}  {version}  Release Build  (builder@host)\n"


def wheel(folder, version):
    """A torch package that holds what setup looks for, and no more. Its library is any that the system has."""
    path = folder / f"torch-{version}-py3-none-any.whl"
    library = pathlib.Path(os.path.realpath(next(path for path in map(pathlib.Path, ("/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6")) if path.exists())))
    files = {
        "torch/__init__.py": b"",
        "torch/version.py": f"__version__ = '{version}'\n".encode(),
        "torch/lib/libtorch_cpu.so": library.read_bytes(),
        "torch/lib/libtorch_cuda.so": b"",
        "torch/include/torch/csrc/api/include/torch/torch.h": b"",
        f"torch-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n".encode(),
        f"torch-{version}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"torch-{version}.dist-info/RECORD"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(record, "".join(f"{name},,\n" for name in [*files, record]))
    return path


class Setup(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.driver_file = self.folder / "version"
        # The package here is small.
        for name, value in (("free_space", lambda needed, folder: None), ("compute_capability", lambda: None), ("DRIVER_FILE", self.driver_file), ("CACHE", self.folder / "cache"), ("DOWNLOADS", self.folder / "cache" / "downloads")):
            self.addCleanup(setattr, setup, name, getattr(setup, name))
            setattr(setup, name, value)
        setup.DOWNLOADS.mkdir(parents=True)
        for name in ("LUTHIER_TORCH_BUILD", "LUTHIER_TORCH_INDEX"):
            self.set(name, None)

    def enterContext(self, context):  # python3 before 3.11 has none
        entered = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return entered

    def set(self, name, value):
        old = os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
        self.addCleanup(lambda: os.environ.pop(name, None) if old is None else os.environ.__setitem__(name, old))

    def driver(self, version, kind="x86_64 Kernel Module"):
        self.driver_file.write_text(TEXT.format(kind=kind, version=version))

    def test_the_drivers_version_is_read(self):
        self.driver("580.65.06")
        self.assertEqual(setup.nvidia_driver(), 580)
        self.driver("570.86.15", "Open Kernel Module for x86_64")
        self.assertEqual(setup.nvidia_driver(), 570)
        self.driver_file.write_text("NVRM version: unknown\n")
        # Without nvidia-smi.
        self.set("PATH", str(self.folder))
        self.assertEqual(setup.nvidia_driver(), 0)
        self.driver_file.unlink()
        self.assertIsNone(setup.nvidia_driver())

    def test_the_newest_build_that_the_driver_runs(self):
        for driver, expected in ((None, "cpu"), (0, "cu130"), (590, "cu130"), (580, "cu130"), (575, "cu128"), (570, "cu128"), (560, "cu126"), (525, "cu126")):
            self.assertEqual(setup.torch_build(driver), expected)
        # A GPU before Turing.
        self.assertEqual(setup.torch_build(580, 7.0), "cu126")
        self.assertEqual(setup.torch_build(580, 9.0), "cu130")
        with self.assertRaisesRegex(setup.SetupError, "compute capability 3.7"):
            setup.torch_build(470, 3.7)
        with self.assertRaisesRegex(setup.SetupError, "driver 470 is too old .* needs 525 or newer"):
            setup.torch_build(470)
        self.set("LUTHIER_TORCH_BUILD", "cpu")
        self.assertEqual(setup.torch_build(470), "cpu")
        self.set("LUTHIER_TORCH_BUILD", "cu99")
        with self.assertRaisesRegex(setup.SetupError, "it takes cu130, cu128, cu126, cpu"):
            setup.torch_build(580)

    def test_an_older_build_needs_an_index(self):
        self.assertEqual(setup.torch_requirement("cu130"), (f"torch=={setup.TORCH_VERSION}", []))
        with self.assertRaisesRegex(setup.SetupError, "LUTHIER_TORCH_INDEX"):
            setup.torch_requirement("cu128")
        self.set("LUTHIER_TORCH_INDEX", "https://example.org/whl/{build}")
        self.assertEqual(setup.torch_requirement("cu126"), (f"torch=={setup.TORCH_VERSION}+cu126", ["--index-url", "https://example.org/whl/cu126"]))

    def test_a_torch_that_the_driver_cannot_run_is_passed_over(self):
        torch = self.folder / "torch"
        (torch / "lib").mkdir(parents=True)
        (torch / "version.py").write_text(f"__version__ = '{setup.TORCH_VERSION}+cu130'\n")
        self.assertIsNone(setup.unfit_for_driver(torch, None))
        self.assertIn("processor only", setup.unfit_for_driver(torch, 580))
        (torch / "lib" / "libtorch_cuda.so").touch()
        self.assertIsNone(setup.unfit_for_driver(torch, 580))
        self.assertIn("cu130 needs NVIDIA driver 580", setup.unfit_for_driver(torch, 550))
        self.set("LUTHIER_TORCH_BUILD", "cu126")
        self.assertIn("it is the cu130 build", setup.unfit_for_driver(torch, 580))
        self.set("LUTHIER_TORCH_BUILD", None)
        (torch / "version.py").write_text(f"__version__ = '{setup.TORCH_VERSION}+cu128'\n")
        self.assertIsNone(setup.unfit_for_driver(torch, 550))

    def test_it_is_installed_from_a_local_index(self):
        self.driver("570.86.15")
        index = self.folder / "index" / "cu128" / "torch"
        index.mkdir(parents=True)
        made = wheel(index, f"{setup.TORCH_VERSION}+cu128")
        (index / "index.html").write_text(f'<a href="{made.name.replace("+", "%2B")}">{made.name}</a>')
        self.set("LUTHIER_TORCH_INDEX", f"file://{self.folder}/index/{{build}}")
        with contextlib.redirect_stdout(sys.stderr):
            folder, origin = setup.from_cache()
        self.assertEqual(setup.torch_version(folder), f"{setup.TORCH_VERSION}+cu128")
        self.assertIn(f"torch-{setup.TORCH_VERSION}-cu128", str(folder))
        self.assertIn("installed just now", origin)
        self.assertIsNone(setup.unfit_for_driver(folder, 570))
        shutil.rmtree(self.folder / "index")
        with contextlib.redirect_stdout(sys.stderr):
            self.assertEqual(setup.from_cache(), (folder, "Luthier's cache"))


if __name__ == "__main__":
    unittest.main()
