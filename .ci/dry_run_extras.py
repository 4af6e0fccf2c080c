"""Try in a dry run that each extra of pyproject.toml installs, alone and all together, with constraints.txt.

    python .ci/dry_run_extras.py

Also reports packages that would be installed and that constraints.txt does not pin. Exit status 1 if anything fails.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
OF_TORCH = ("nvidia-", "cuda-", "triton")  # torch itself pins these; a build of torch for the CPU has none


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def dry_run(extras: list[str]) -> tuple[set[str], str]:
    """The names of all packages that would be installed, and the end of what pip prints when it fails."""
    with tempfile.NamedTemporaryFile() as report:
        options = ["--disable-pip-version-check", "--dry-run", "--ignore-installed", "--report", report.name]
        command = [sys.executable, "-m", "pip", "install", *options, "-c", "constraints.txt", "-e"]
        command.append(f".[{','.join(extras)}]")
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            return set(), "\n".join(done.stdout.splitlines()[-20:])
        return {normalized(package["metadata"]["name"]) for package in json.load(report)["install"]}, ""


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normalized(line.partition("==")[0]) for line in pins} | {project["name"]}
    extras = list(project["optional-dependencies"])
    failed = False
    for chosen in [*([extra] for extra in extras), extras]:
        start = time.monotonic()
        names, error = dry_run(chosen)
        unpinned = sorted(name for name in names - pinned if not name.startswith(OF_TORCH))
        print(f"[{','.join(chosen)}] {len(names)} packages, {time.monotonic() - start:.0f} s", flush=True)
        if error:
            print(error)
        if unpinned:
            print(f"constraints.txt does not pin {', '.join(unpinned)}: add the versions that `pip freeze --all` shows")
        failed = failed or bool(error or unpinned)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
