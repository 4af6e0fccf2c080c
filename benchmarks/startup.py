"""Seconds of `import sqid` against `import datasets`, and of `sqid --help`: python benchmarks/startup.py [--rounds 7].

Each in a fresh process, interleaved; files are in the page cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from goals import state

COMMANDS = {
    "nothing": ("-c", "pass"),
    "import datasets": ("-c", "import datasets"),
    "import sqid": ("-c", "import sqid"),
    "sqid --help": ("-m", "builder", "--help"),
}


def seconds(arguments: tuple[str, ...]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    for arguments in COMMANDS.values():
        seconds(arguments)
    found = [{name: seconds(arguments) for name, arguments in COMMANDS.items()} for _ in range(rounds)]
    for name in COMMANDS:
        print(f"{name:16} " + " ".join(f"{1000 * times[name]:.0f}" for times in found) + " ms")
    imports = [(t["import sqid"] - t["nothing"]) / (t["import datasets"] - t["nothing"]) for t in found]
    state("import", imports)
    state("help", [times["sqid --help"] for times in found], "the interpreter's own start is in it")


if __name__ == "__main__":
    main()
