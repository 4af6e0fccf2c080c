"""Which items of a task end its workers: found by trying halves of it. What is known outlives the workers."""

from __future__ import annotations

from dataclasses import dataclass, field

ENDS = 3  # workers that a task, or one item alone, may end
_SYSTEMATIC = 5  # items given up in a row; if none was sound before, the items are not the cause


@dataclass
class Trials:
    """The attempts of one task. Every attempt that is not followed by `passed` has ended its worker.

    Args:
        items: how many the task has; 0 where it cannot be divided.

    Attributes:
        given_up: numbers of the items that ended `ENDS` workers each while they were tried alone.
        failure: why the task cannot be done; "" while it can.
        notes: what to tell the user, in words; whoever reads them empties the list.
    """

    items: int = 0
    given_up: list[int] = field(default_factory=list)
    failure: str = ""
    notes: list[str] = field(default_factory=list)
    _attempts: int = 0  # of the whole task, since the last success or change
    _alone: int = 0  # of the one item that is tried
    _opening: int = 0
    _state: str = "new"  # or opening, working
    _tried: range | None = None  # now; None: the whole task
    _left: list[range] | None = None  # to be tried, the next one last; None: not divided yet
    _sound: bool = False  # whether a trial has passed

    def begin(self) -> None:
        """A worker begins the task; the one before, if there was one, has ended."""
        if self._state == "opening":
            self._opening += 1
        elif self._state == "working":
            self._ended()
        if self._opening >= ENDS:
            self.failure = f"{ENDS} workers ended while they opened what this task needs"
        self._state = "opening"

    def opened(self) -> None:
        """The worker has what it needs."""
        self._state, self._opening = "working", 0
        self._next()

    def passed(self) -> None:
        """The items just tried end no worker."""
        self._sound, self._alone = True, 0
        self._next()

    @property
    def trial(self) -> range | None:
        """The items to try alone now; None: the whole task, without those given up."""
        return self._tried

    def _next(self) -> None:
        self._tried = self._left.pop() if self._left else None

    def _ended(self) -> None:
        if self._tried is None:
            self._attempts += 1
            if self._attempts >= ENDS:
                self._divide()
        elif len(self._tried) > 1:
            self._halve(self._tried)
        else:
            self._alone += 1
            if self._alone < ENDS:
                self._again(self._tried)
            else:
                self._give_up(self._tried.start)

    def _divide(self) -> None:
        if not self.items or self._left is not None:
            found = "" if not self.items else ", and no item of it does so alone"
            self.failure = f"{ENDS} workers ended while they did this task{found}"
        elif self.items == 1:
            self._left = []
            self._give_up(0)
        else:
            self.notes.append(f"{ENDS} workers ended in the same task; its {self.items:,} items are tried in parts")
            self._left = []
            self._halve(range(self.items))
        self._attempts = 0

    def _halve(self, items: range) -> None:
        middle = len(items) // 2
        self._again(items[middle:])
        self._again(items[:middle])

    def _again(self, items: range) -> None:
        assert self._left is not None
        self._left.append(items)

    def _give_up(self, item: int) -> None:
        self.given_up.append(item)
        self._alone = 0
        if len(self.given_up) >= _SYSTEMATIC and not self._sound:
            self.failure = (
                f"every one of its first {_SYSTEMATIC} items ended {ENDS} workers: the items are not the cause"
            )
