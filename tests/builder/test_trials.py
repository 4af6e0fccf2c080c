"""builder.engines.trials: which items of a task end its workers."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest

from builder.engines.trials import ENDS, Trials


def attempt(trials: Trials, ends: Callable[[Collection[int]], bool]) -> bool:
    """One worker's attempt; whether it does the whole task."""
    trials.begin()
    trials.opened()
    while not trials.failure and (trial := trials.trial) is not None:
        if ends(trial):
            return False
        trials.passed()
    whole = set(range(trials.items)) - set(trials.given_up)
    return not trials.failure and not ends(whole)


def attempts(items: int, ends: Callable[[Collection[int]], bool]) -> tuple[Trials, int]:
    trials, count = Trials(items), 1
    while not attempt(trials, ends) and not trials.failure:
        count += 1
    return trials, count


@pytest.mark.parametrize("bad", [{0}, {999}, {1999}, {3, 4}, {0, 1, 2, 3, 1500, 1999}])
def test_the_items_that_end_workers_are_given_up(bad: set[int]) -> None:
    trials, count = attempts(2_000, lambda items: any(item in items for item in bad))
    assert sorted(trials.given_up) == sorted(bad) and not trials.failure
    assert count <= 1 + ENDS + len(bad) * (11 + ENDS)


def test_a_task_of_one_item_needs_no_trial() -> None:
    trials, count = attempts(1, lambda items: 0 in items)
    assert (trials.given_up, count) == ([0], ENDS + 1)


def test_machines_that_go_cost_no_item() -> None:
    lost = iter([True] * 5 + [False] * 100)  # three in the whole task, two in trials
    trials, _ = attempts(8, lambda _: next(lost))
    assert not trials.given_up and not trials.failure


@pytest.mark.parametrize(
    ("items", "ends", "message"),
    [
        (0, lambda _: True, "3 workers ended while they did this task"),
        (8, lambda items: len(items) > 4, "3 workers ended while they did this task, and no item of it does so alone"),
        (1000, lambda _: True, "every one of its first 5 items ended 3 workers: the items are not the cause"),
    ],
)
def test_other_causes_are_failures(items: int, ends: Callable[[Collection[int]], bool], message: str) -> None:
    assert attempts(items, ends)[0].failure == message


def test_a_model_that_ends_workers_costs_no_item() -> None:
    trials = Trials(8)
    for _ in range(ENDS + 1):
        assert not trials.failure
        trials.begin()
    assert trials.failure == "3 workers ended while they opened what this task needs" and not trials.given_up
