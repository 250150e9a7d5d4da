#!/usr/bin/env python3
"""Makes reference data: what transformers, PEFT, TRL and bitsandbytes compute with small models.

    tests/references/make.py family NAME     tiny/NAME, a model of a family (makers/families.py has its settings)
    tests/references/make.py training NAME   training/NAME, training runs over tiny/NAME
    tests/references/make.py variants        variants/, models with options that none of tiny/ has
    tests/references/make.py tokenizer       tokenizer/, texts through every tokenizer of tiny/_tokenizers

--out FOLDER writes elsewhere, to compare with what is here. The packages of requirements.txt are installed into Luthier's
cache on first use; they take the torch that Luthier is built with where that is one of Python's.
"""

import argparse
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
CLONE = HERE.parents[1]
REQUIREMENTS = HERE / "requirements.txt"
INSIDE = "LUTHIER_REFERENCES"


def prepare():
    """The python of an environment with exactly the packages of requirements.txt."""
    sys.path[:0] = [str(CLONE / "scripts"), str(CLONE / "bench")]
    import peers
    import setup

    environment = setup.CACHE / "references"
    python, done = environment / "bin" / "python", environment / "installed.txt"
    if not done.exists() or done.read_text() != REQUIREMENTS.read_text():
        print(f"references: installing {REQUIREMENTS.name} into {environment}", flush=True)
        setup.virtual_environment(environment)
        peers.borrow_torch(environment)
        installed = setup.pip(environment, "install", "--quiet", "-r", str(REQUIREMENTS))
        if installed.returncode:
            sys.exit(f"references: pip could not install {REQUIREMENTS}:\n{installed.stderr.strip()}")
        done.write_text(REQUIREMENTS.read_text())
    return python


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="kind", required=True)
    for kind, named in [("family", True), ("training", True), ("variants", False), ("tokenizer", False)]:
        command = commands.add_parser(kind)
        if named:
            command.add_argument("name", help="a folder of tiny/")
        command.add_argument("--out", type=pathlib.Path, default=HERE, help="where to write, instead of beside this script")
    arguments = parser.parse_args()
    if os.environ.get(INSIDE) is None:
        offline = {INSIDE: "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run([prepare(), __file__, *sys.argv[1:]], env={**os.environ, **offline}, check=False)
        sys.exit(done.returncode)
    out = arguments.out.resolve()
    if arguments.kind == "family":
        from makers import families

        families.make(arguments.name, out / "tiny" / arguments.name)
    elif arguments.kind == "training":
        from makers import training

        training.make(arguments.name, out / "training" / arguments.name)
    elif arguments.kind == "variants":
        from makers import variants

        variants.make_all(out / "variants")
    else:
        from makers import texts

        texts.make(out / "tokenizer")


if __name__ == "__main__":
    main()
