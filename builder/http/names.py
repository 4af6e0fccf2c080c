"""Looking up host names: in Python, so that slow DNS stalls nothing, and once for all requests of some minutes."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time

_AGE = 300.0  # seconds that an answer is used


class Names:
    """The names looked up so far, for one event loop."""

    def __init__(self) -> None:
        self._found: tuple[str, int] | None = None  # the last name that the service knew
        self._lookups: dict[tuple[str, int], tuple[float, asyncio.Task[str | None]]] = {}

    async def look_up(self, host: str, port: int, until: float) -> str | None:
        """The addresses of a host as curl takes them, "+host:port:address,…"; None for an IP address.

        Args:
            until: when to stop waiting, by `time.monotonic`.

        Raises:
            TimeoutError: no answer by then.
            OSError, UnicodeError: there is no such name.
        """
        now = time.monotonic()
        fresh_until, lookup = self._lookups.get((host, port), (0.0, None))
        failed = lookup is not None and lookup.done() and (lookup.cancelled() or lookup.exception())
        if lookup is None or now >= fresh_until or failed:
            lookup = asyncio.create_task(self._remembering(host, port))
            lookup.add_done_callback(_retrieve)
            self._lookups[host, port] = now + _AGE, lookup
        if not lookup.done():
            await asyncio.wait((lookup,), timeout=max(0.0, until - now))
        if not lookup.done():
            raise TimeoutError
        return lookup.result()

    async def _remembering(self, host: str, port: int) -> str | None:
        """The addresses; a name that was found is remembered before its lookup counts as done."""
        found = await _addresses(host, port)
        if found is not None:
            self._found = host, port
        return found

    async def answers(self, until: float) -> bool:
        """Whether the name service knows any name: one found before, else one that is being looked up now.

        It is asked after a failure that may be that of one name or of the whole service.
        """
        if self._found is not None:
            try:
                await asyncio.wait_for(_addresses(*self._found), max(0.0, until - time.monotonic()))
            except TimeoutError:
                return False
            except OSError as error:
                return error.errno != socket.EAI_AGAIN
            return True
        pending = {lookup for _, lookup in self._lookups.values() if not lookup.done()}
        if pending:
            await asyncio.wait(pending, timeout=max(0.0, until - time.monotonic()))
        return self._found is not None

    def close(self) -> None:
        """Cancel what is still looked up, and forget everything."""
        for _, lookup in self._lookups.values():
            lookup.cancel()
        self._lookups.clear()


def _retrieve(lookup: asyncio.Task[str | None]) -> None:
    """Take the exception: asyncio would print one that nobody waits for."""
    if not lookup.cancelled():
        lookup.exception()


async def _addresses(host: str, port: int) -> str | None:
    try:
        ipaddress.ip_address(host)
        return None
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    written = (f"[{where[0]}]" if family == socket.AF_INET6 else str(where[0]) for family, _, _, _, where in found)
    # "+": curl drops it after a minute; for every request it searches all it knows
    return f"+{host}:{port}:{','.join(dict.fromkeys(written))}"
