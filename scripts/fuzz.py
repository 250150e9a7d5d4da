#!/usr/bin/env python3
"""Runs the fuzz targets of `fuzz/` one after the other, each for a short while.

    scripts/fuzz.py [TARGET …]     all targets if none is given

FUZZ_SECONDS sets the seconds for each target (default 10). Each starts from a corpus made from the reference data under
`tests/references` and the sample project; inputs with new coverage are added to it, under `fuzz/corpus`. A target fails
if it panics, takes longer than two seconds for an input, or uses more than 512 MiB. The input is kept under
`fuzz/artifacts`, and the command that repeats it is printed.

Works with the stable compiler: no sanitizer is used, because Luthier's own parsers have no unsafe code.
"""

import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

CLONE = pathlib.Path(__file__).resolve().parent.parent
FUZZ = CLONE / "fuzz"
REFERENCES = CLONE / "tests" / "references"
SAMPLE = CLONE / "sample-data" / "tickets"
TOOLS = CLONE / "target" / "tools"
CARGO_FUZZ = "0.13.2"
SECONDS = int(os.environ.get("FUZZ_SECONDS", "10"))
CARGO = os.environ.get("CARGO", "cargo")
LIMITS = ["-timeout=2", "-rss_limit_mb=512", "-len_control=0"]


def targets():
    return re.findall(r'\[\[bin\]\]\nname = "(\w+)"', (FUZZ / "Cargo.toml").read_text())


def tools():
    """An environment with `cargo fuzz`, which is installed into the build folder if it is missing."""
    tool = TOOLS / "bin" / "cargo-fuzz"
    if not tool.exists():
        install = [CARGO, "install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--root", str(TOOLS)]
        if subprocess.run(install, check=False).returncode:
            sys.exit("fuzz: cargo-fuzz could not be installed; see cargo's output above")
    return {**os.environ, "PATH": f"{os.environ['PATH']}{os.pathsep}{tool.parent}"}


def host():
    told = subprocess.run(["rustc", "-vV"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return re.search(r"^host: (\S+)$", told, re.MULTILINE).group(1)


# --- Seeds: one list of inputs per target, in the form described at the top of the target. ---


def tiny_models():
    return sorted(path.parent for path in REFERENCES.glob("tiny/*/config.json"))


def zeros(count):
    return struct.pack("<I", min(count, (1 << 30) - 1))


def without_data(path):
    """A safetensors file's header, and the number of data bytes that follow it."""
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    return content[:start] + zeros(len(content) - start)


def safetensors():
    return [without_data(path) for path in sorted(REFERENCES.glob("**/*.safetensors"))]


# Bytes of a GGUF metadata value by its type; strings and arrays store their own length.
GGUF_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
GGUF_TEXT, GGUF_ARRAY = 8, 9


def gguf():
    """Every GGUF reference without its data."""
    return [header_of_gguf(path.read_bytes()) for path in sorted(REFERENCES.glob("gguf/**/*.gguf"))]


def header_of_gguf(content):
    place = 0

    def take(form):
        nonlocal place
        values = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(f"<{form}")
        return values if len(values) > 1 else values[0]

    def skip(kind):
        nonlocal place
        if kind == GGUF_TEXT:
            length = take("Q")
            place += length
        elif kind == GGUF_ARRAY:
            element, count = take("IQ")
            for _ in range(count):
                skip(element)
        else:
            place += GGUF_WIDTHS[kind]

    tensors, entries = take("4sIQQ")[2:]
    for _ in range(entries):
        skip(GGUF_TEXT)
        skip(take("I"))
    for _ in range(tensors):
        skip(GGUF_TEXT)
        dimensions = take("I")
        place += 8 * dimensions
        take("IQ")
    place += -place % 32
    return content[:place] + zeros(len(content) - place)


def architecture():
    return [path.read_bytes() for folder in tiny_models() for path in sorted(folder.glob("config*.json"))]


def shard_index():
    content = (REFERENCES / "tiny/llama/model.safetensors").read_bytes()
    names = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    weight_map = {name: "model-00001-of-00001.safetensors" for name in names if name != "__metadata__"}
    made = [{"metadata": {"total_size": 1}, "weight_map": weight_map}, {"weight_map": {"lm_head.weight": "../x.safetensors"}}]
    return [json.dumps(index).encode() for index in made]


MODEL_FILES = ["config.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "chat_template.jinja"]


def model_folder():
    made = [b"\3" + json.dumps({"eos_token": {"content": "<|end_of_text|>"}, "pad_token": "<|pad|>"}).encode()]
    for folder in tiny_models():
        for number, name in enumerate(MODEL_FILES):
            if (folder / name).exists():
                made.append(bytes([number]) + (folder / name).read_bytes())
    return made + [b"\4" + template for template in chat_template()]


def tokenizer():
    return [path.read_bytes() for path in sorted(REFERENCES.glob("tiny/**/tokenizer.json"))]


def chat_template():
    known = json.loads((REFERENCES / "chat/chat.json").read_text())["templates"].values()
    made = [template[kind].encode() for template in known for kind in ("template", "generation_template") if template.get(kind)]
    return made + [path.read_bytes() for path in sorted(CLONE.glob("src/core/data/template/builtin/*.jinja"))]


def adapter():
    made = []
    for config in sorted(REFERENCES.glob("**/adapter_config.json")):
        settings = config.read_bytes()
        made.append(struct.pack("<H", len(settings)) + settings + without_data(config.with_name("adapter_model.safetensors")))
    return made


def dataset():
    lines = (SAMPLE / "train.jsonl").read_bytes().splitlines()[:3]
    conversation = b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b", "weight": 0}], "tools": []}'
    others = [
        b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}',
        b'{"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]}',
        b'{"prompt": "a", "chosen": "b", "rejected": "c"}',
        b'{"input_ids": [1, 2, 3, 0], "labels": [-100, 2, 3, -100], "attention_mask": [1, 1, 1, 0]}',
    ]
    table = [b"prompt", b"completion"], [b'"a ""b"", c"', b"d\xc3\xa9"], [b'"[{""role"": ""user"", ""content"": ""x""}]"', b"y"]
    made = [b"\0" + b"\n".join(lines), b"\1[" + b",\n".join(lines) + b"]", b'\1{"data": [' + conversation + b"]}"]
    made += [b"\0" + row for row in [conversation, *others]]
    made += [b"\2" + b"\r\n".join(map(b",".join, table)), b"\3" + b"\n".join(map(b"\t".join, table))]
    return made + [b"\4eins\n\nzwei \ndrei"]


def parquet():
    return [path.read_bytes() for path in sorted(FUZZ.glob("seeds/*.parquet"))]


JOURNAL = [
    {"kind": "run", "versions": {"luthier": "0.1.0"}, "device": "cpu", "parameters": {"total": 9, "trainable": 3}, "resumed_from": 4},
    {"kind": "step", "step": 3, "loss": 0.5, "grad_norm": "Infinity", "tokens": 9, "seconds": 0.1, "load": 0.5},
    {"kind": "eval", "step": 3, "loss": "NaN", "perplexity": 1.5, "scores": {"valid": 1.0}, "rows": 3},
    {"kind": "sample", "step": 3, "prompt": "a\nb", "reply": "\u2028", "index": 0, "passed": False},
    {"kind": "checkpoint", "step": 3, "path": "checkpoints/step-3", "bytes": 7, "seconds": 0.1},
    {"kind": "edit", "step": 3, "key": "train.learning_rate", "old": "2e-4", "new": "1e-4", "who": "ann", "applied_at_step": 4},
    {"kind": "alert", "step": 3, "alert": "spike", "message": "up", "rows": [1, 2]},
    {"kind": "state", "state": "failed", "failure": {"class": "oom", "message": "out of memory", "remedy": "less"}},
    {"kind": "rung", "place": {"of": [1, 2]}},
]


def journal():
    lines = [json.dumps({**event, "time": "2026-08-23T14:02:11.250Z"}).encode() for event in JOURNAL]
    return [*lines, b"\n".join(lines) + b"\n"]


def control():
    requests = [
        {"request": "hello", "version": 1},
        {"request": "pause"},
        {"request": "stop", "when": "after_eval"},
        {"request": "edit", "key": "train.learning_rate", "value": "1e-4", "who": None},
        {"request": "sample", "prompt": "a\nb"},
        {"request": "load", "run": "runs/x"},
        {"request": "generate", "id": 3, "rows": [{"adapter": None, "messages": [{"role": "user", "content": "hi"}], "seed": 1}],
         "sampling": {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 8}},
        {"reply": "hello", "version": 1, "run": "r", "pid": 1, "engine": "0.1.0"},
        {"reply": "event", "event": {**JOURNAL[1], "time": "2026-08-23T14:02:11.250Z"}},
        {"reply": "done", "id": 3, "row": 0, "reason": "length", "tokens": 8, "seconds": 0.5, "weights": "f00d"},
    ]
    lines = [json.dumps(request).encode() for request in requests]
    return [*lines, b"\n".join(lines)]


def settings():
    files = [SAMPLE / "luthier.toml", *sorted(CLONE.glob("tests/configs/**/*.toml"))]
    sweep = b'sampler = "random"\ntrials = 6\n[goal]\nmetric = "eval.loss"\n[space]\n"train.learning_rate" = { log_uniform = [1e-4, 2e-3] }\nmethod.rank = { choice = [8, 16] }\n'
    return [sweep, *(path.read_bytes() for path in files), files[0].read_bytes() + b"\0train.learning_rate=1e-4"]


def project_files():
    side = {"who": "base", "reply": "a", "weights": "f00d", "seed": 1, "scores": {"valid": 1.0}}
    made = [
        {"time": "2026-08-23T14:02:11.250Z", "run": "r", "prompt": [{"role": "user", "content": "a"}], "left": side,
         "right": {**side, "who": "tuned"}, "choice": "left", "blind": True, "edited": "b"},
        ["0123456789abcdef", "fedcba9876543210"],
        {"state": "running", "pid": 1, "process_start": 1, "host": "here", "boot_id": "b", "step": 3, "epoch": 0.5,
         "started": "2026-08-23T14:02:11.250Z", "heartbeat": "2026-08-23T14:02:11.250Z", "loss": "NaN", "scores": {"valid": 1.0}},
        {"step": 8, "created": "2026-08-23T14:02:11.250Z", "files": {"a": {"bytes": 1, "sha256": "00"}}, "notes": {}, "digest": "00"},
    ]
    return [b"\n".join((SAMPLE / "prompts.jsonl").read_bytes().splitlines()[:2]), *(json.dumps(each).encode() for each in made)]


def corpus(target):
    folder = FUZZ / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(globals()[target]()):
        (folder / f"seed-{number:03}").write_bytes(seed)
    return folder


def run(target, program, scratch):
    artifacts = FUZZ / "artifacts" / target
    artifacts.mkdir(parents=True, exist_ok=True)
    call = [str(program), str(corpus(target)), f"-max_total_time={SECONDS}", "-print_final_stats=1",
            f"-artifact_prefix={artifacts}/", *LIMITS]
    done = subprocess.run(call, env={**os.environ, "TMPDIR": scratch}, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    executed = re.search(r"number_of_executed_units:\s+(\d+)", done.stderr)
    peak = re.search(r"peak_rss_mb:\s+(\d+)", done.stderr)
    covered = re.findall(r" cov: (\d+) ", done.stderr)
    if done.returncode == 0 and executed:
        print(f"{target:<14} {int(executed[1]):>9} inputs   {int(covered[-1]) if covered else 0:>6} edges   {peak[1]:>4} MiB", flush=True)
        return True
    print(done.stderr[-6000:], file=sys.stderr)
    kept = re.search(r"Test unit written to (\S+)", done.stderr)
    again = f"TMPDIR=$(mktemp -d) {program} {' '.join(LIMITS)} {kept[1]}" if kept else " ".join(call)
    print(f"{target:<14} FAILED; repeat with: {again}", flush=True)
    return False


def main():
    wanted = sys.argv[1:] or targets()
    unknown = [target for target in wanted if target not in targets()]
    if unknown:
        sys.exit(f"fuzz: no target {', '.join(unknown)}; the targets are {', '.join(targets())}")
    environment = tools()
    if subprocess.run([CARGO, "fuzz", "build", "--sanitizer", "none"], cwd=CLONE, env=environment, check=False).returncode:
        sys.exit("fuzz: the targets could not be built; see cargo's output above")
    programs = FUZZ / "target" / host() / "release"
    memory = pathlib.Path("/dev/shm")
    scratch = tempfile.mkdtemp(prefix="luthier-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    try:
        held = [run(target, programs / target, scratch) for target in wanted]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not all(held):
        sys.exit(1)


if __name__ == "__main__":
    main()
