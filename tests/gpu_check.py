"""What scripts/gpu_check says of work that was done without our kernels. Run by tests/scripts.rs."""

import contextlib
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts" / "gpu_check"))
import checks
import process
import run
import speed

SLOWER = [{"what": "the kernels norm gave wrong results on this GPU", "remedy": "report this"}]
LOGGED = f"WARN luthier_engine::trials: {SLOWER[0]['what']}; going on without"
# In place of the engine and of luthier: `bench` gives the figures of one work, every command leaves what it may log, and
# where its cache is.
PROGRAM = """#!{python}
import json, os, pathlib, sys
print({logged!r}, file=sys.stderr)
if sys.argv[1] == "bench":
    part = {{"tokens_per_second": 9.0, "peak_device_memory_bytes": 5, "peak_memory_bytes": 7}}
    print(json.dumps({{"name": "lora", "train": part, "load_seconds": 1.0, "slower": {slower!r}}}))
elif sys.argv[1] == "doctor":
    print(json.dumps({{"slower": {slower!r}, "cache": os.environ["XDG_CACHE_HOME"]}}))
else:
    folder = pathlib.Path(sys.argv[sys.argv.index("-C") + 1], "runs", "one")
    folder.mkdir(parents=True)
    folder.joinpath("engine.log").write_text({logged!r})
    print(json.dumps({{"kind": "start"}}))
"""


class Kernels(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for module in (checks, process, run, speed):
            for name in ("ENGINE", "LUTHIER"):
                if hasattr(module, name):
                    self.addCleanup(setattr, module, name, getattr(module, name))
                    setattr(module, name, self.folder / "program")
        self.addCleanup(process.CACHE.update, process.CACHE.copy())
        process.CACHE["folder"] = str(self.folder / "cache")
        self.program(SLOWER, LOGGED)

    def program(self, slower, logged):
        path = self.folder / "program"
        path.write_text(PROGRAM.format(python=sys.executable, slower=slower, logged=logged))
        path.chmod(0o755)

    def findings(self, work):
        """What a piece of work notes, by name, and the names of those that failed."""
        path = self.folder / "out.jsonl"
        with contextlib.redirect_stdout(sys.stderr):
            record = run.Record(path, 60)
            work(record)
            record.file.close()
        found = {finding["name"]: finding for finding in map(json.loads, path.read_text().splitlines())}
        return found, [name.split(": ")[1] for name in record.failed]

    def bench(self, device, **variables):
        return self.findings(lambda record: speed.run_plan("toy", "model", device, [{"name": "lora"}], record, "speed", **variables))

    def test_a_work_on_cuda_that_was_done_without_them_failed(self):
        found, failed = self.bench("cuda:0")
        self.assertEqual(failed, ["toy lora"])
        self.assertIn(SLOWER[0]["what"], found["toy lora"]["error"])
        self.assertEqual(found["toy lora"]["tokens_per_second"], 9.0)
        self.assertEqual(self.bench("cpu")[1], [])
        self.assertEqual(self.bench("cuda:0", LUTHIER_KERNELS="off")[1], [])
        self.program([], "")
        self.assertEqual(self.bench("cuda:0")[1], [])

    def test_so_did_a_doctor_that_names_them(self):
        for device, failures in (("cuda:0", ["engine"]), ("cpu", [])):
            found, failed = self.findings(lambda record: record.attempt("facts", "engine", lambda: run.doctor(device)))
            self.assertEqual(failed, failures)
            self.assertEqual(found["engine"]["cache"], str(self.folder / "cache"))

    def test_what_a_log_says_of_them_is_kept(self):
        project = self.folder / "project"
        project.mkdir()

        def work(record):
            record.attempt("checks", "run", lambda: {"events": checks.train(project)})
            record.attempt("checks", "nothing", dict)
            run.correctness(record, "cuda:0", 1, "no check has this name")

        found, failed = self.findings(work)
        # Of luthier itself, and of the engine that it started.
        self.assertEqual(found["run"]["without"], [LOGGED, LOGGED])
        self.assertNotIn("without", found["nothing"])
        self.assertEqual((failed, found["kernels"]["names"]), (["kernels"], ["run"]))


if __name__ == "__main__":
    unittest.main()
