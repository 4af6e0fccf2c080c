"""The command: tries every fault in turn until the time is up, prints the table, and how to repeat each failure."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from torture import disks, hostile, kills, readers, rot, scale  # the path of their servers is set above
from torture.outcome import Failed, Fault, Lost, Tally, table
from torture.world import World

FAULTS: list[Fault] = [
    *kills.FAULTS,
    *rot.FAULTS,
    *disks.FAULTS,
    *readers.FAULTS,
    *hostile.FAULTS,
    *scale.FAULTS,
]
_SHORT_SEED = 15


def main(arguments: list[str] | None = None) -> int:
    """0 if every try survived, 1 otherwise."""
    args = _parser().parse_args(arguments)
    seed = _SHORT_SEED if args.short else args.seed
    faults = [fault for fault in FAULTS if args.only is None or args.only in fault.name]
    if not faults:
        sys.stderr.write("no such fault; there are:\n" + "".join(f"  {fault.name}\n" for fault in FAULTS))
        return 2
    tallies = [Tally(fault) for fault in faults]
    with World(args.keep) as world:
        if args.one_try is not None:
            for tally in tallies:
                _try(tally, world, seed, args.one_try)
        else:
            _rounds(tallies, world, seed, time.monotonic() + 60 * args.minutes, short=args.short)
    sys.stdout.write(f"\n{table(tallies)}\n")
    for tally in tallies:
        for number, failed in tally.failures.items():
            again = f'python -m torture --seed {seed} --only "{tally.fault.name}" --try {number}'
            sys.stdout.write(f"\n{tally.fault.name}, {failed.column}: {failed}\n  repeat it: {again}\n")
    return 1 if any(tally.failures for tally in tallies) else 0


def _rounds(tallies: list[Tally], world: World, seed: int, end: float, *, short: bool) -> None:
    """Each fault once a round, those that took least time so far first, until the time is up."""
    while time.monotonic() < end:
        limits = {id(tally): tally.fault.short if short else tally.fault.full or 10**9 for tally in tallies}
        left = [tally for tally in tallies if tally.tries < limits[id(tally)]]
        if not left:
            return
        fewest = min(tally.tries for tally in left)
        for tally in left:
            if tally.tries == fewest and time.monotonic() < end:
                _try(tally, world, seed, tally.tries)


def _try(tally: Tally, world: World, seed: int, number: int) -> None:
    began = time.monotonic()
    try:
        tally.fault.run(world, Random(f"{seed} {tally.fault.name} {number}"))
    except Failed as failed:
        tally.failures[number] = failed
    except Exception as error:  # the harness itself met what it did not expect
        tally.failures[number] = Lost("".join(traceback.format_exception(error))[-1500:])
    tally.tries += 1
    took = time.monotonic() - began
    tally.seconds += took
    shown = tally.failures.get(number)
    sys.stderr.write(f"{took:6.1f} s  {tally.fault.name} {number}{f'  {shown.column.upper()}' if shown else ''}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    add = parser.add_argument
    add("--seed", type=int, default=1, metavar="N", help="of all tries (default 1)")
    add("--minutes", type=float, default=20.0, metavar="M", help="when to stop (default 20)")
    add("--only", metavar="NAME", help="faults with this in their name")
    add("--try", dest="one_try", type=int, metavar="N", help="this try alone, to repeat a failure")
    add("--short", action="store_true", help="a few tries of each fault with a fixed seed, as CI runs it")
    add("--keep", type=Path, metavar="DIR", help="an empty folder to work in; what failed is left there")
    return parser
