"""A short form of every benchmark, and one table of ratios with their goals: `make bench`.

    python benchmarks/bench.py [--only NAME ...] [--markdown FILE] [--data DIR]

Each benchmark runs in a process of its own, which is ended with all it started when its time is over. Made-up data
lies in a temporary directory, or in DIR, where it stays for the next run; 6 GB are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goals import GOALS

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """A script with the arguments of its short form; `{data}` stands for the directory of data.

    Attributes:
        seconds: its time limit.
    """

    arguments: str
    seconds: int

    @property
    def name(self) -> str:
        return self.arguments.split()[0].removesuffix(".py")


BENCHMARKS = (
    Benchmark("startup.py", 60),
    Benchmark("pooled.py --quick", 120),
    Benchmark("embed.py --quick", 120),
    Benchmark("fetch.py --quick", 60),
    Benchmark("release.py --quick", 100),
    Benchmark("growth.py --quick", 120),
    Benchmark("load.py --quick --data {data}/load --configs urls", 70),
    Benchmark("load.py --quick --data {data}/load --configs product_features", 70),
    Benchmark("load.py --quick --data {data}/load", 70),
    Benchmark("stream.py --quick --data {data}/stream", 70),
    Benchmark("retrieval.py --quick", 70),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices={b.name for b in BENCHMARKS}, metavar="NAME")
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    parser.add_argument("--data", type=Path, help="a directory for made-up data, on a local disk")
    args = parser.parse_args()
    began, found, reasons = time.monotonic(), [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for benchmark in BENCHMARKS:
            if args.only and benchmark.name not in args.only:
                continue
            print(f"# {benchmark.arguments}", file=sys.stderr, flush=True)
            lines, reason = run(benchmark, args.data or Path(scratch))
            found += lines
            if reason:
                reasons[benchmark.arguments] = reason
    head = f"{machine()}; {time.monotonic() - began:.0f} s in all"
    text = "\n".join([head, "", *table(found), "", *(f"- {name}: {reason}" for name, reason in reasons.items())])
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")


def run(benchmark: Benchmark, data: Path) -> tuple[list[dict[str, Any]], str]:
    """What a benchmark stated, and why it came to no end, if so."""
    script, *options = benchmark.arguments.format(data=data).split()
    if not (FOLDER / script).exists():
        return [], "there is no such script"
    process = subprocess.Popen(
        [sys.executable, str(FOLDER / script), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    reason = ""
    try:
        out, errors = process.communicate(timeout=benchmark.seconds)
        if process.returncode:
            reason = f"exit status {process.returncode}: {' '.join(errors.split()[-30:])[-300:]}"
    except subprocess.TimeoutExpired:
        reason = f"ended after {benchmark.seconds} s"
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    lines = [json.loads(line) for line in out.splitlines() if line.startswith('{"goal"')]
    return lines, reason


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: every goal, with what was measured for it."""
    by_goal = {line["goal"]: line for line in found}
    yield "| measured | ratio (lowest to highest) | goal | | load |"
    yield "|---|---|---|---|---|"
    for name, goal in GOALS.items():
        line = by_goal.get(name)
        if line is None:
            yield f"| {goal.what} | – | {goal} | not measured | |"
            continue
        note = f"; {line['note']}" if line.get("note") else ""
        ratio = f"{line['ratio']:.2f} ({line['low']:.2f} to {line['high']:.2f})"
        met = "met" if goal.is_met(line["ratio"]) else "**not met**"
        yield f"| {goal.what}{note} | {ratio} | {goal} | {met} | {line['load']:.1f} |"


def machine() -> str:
    """This machine's processor and number of cores, and the version of Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores, {model}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
