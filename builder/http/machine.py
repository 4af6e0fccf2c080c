"""Faults of this machine: no URL is to blame for them, so they end a run and no outcome is recorded."""

from __future__ import annotations

import errno
import os
import socket

from sqid_lib.errors import FetchError

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
_ROUTES = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))  # for documentation; nothing is sent there
_AGAIN = "Then run it again: finished work is kept, and nothing is recorded for the URLs in progress."


def fault(number: int, where: str) -> FetchError | None:
    """The error for an errno of a socket, if this machine is to blame: no resources, or no route to anywhere.

    Args:
        where: the host that should have been connected to.
    """
    if number in _EXHAUSTED:
        few = number in (errno.EMFILE, errno.ENFILE)
        fix = "Raise the limit of open files (ulimit -n) or lower fetch.concurrency." if few else "Free some memory."
        return FetchError(
            "this machine cannot make more connections", where=where, got=_named(number), fix=f"{fix} {_AGAIN}"
        )
    if number in _NO_ROUTE and not has_route():
        return FetchError(
            "this machine has no route to the network",
            where=where,
            got=_named(number),
            fix=f"Connect it to the network. {_AGAIN}",
        )
    return None


def no_name_service(host: str) -> FetchError:
    """The error for a name service that answers nothing at all."""
    return FetchError(
        "the name service does not answer", where=host, fix=f"Check the network of this machine. {_AGAIN}"
    )


def no_certificates(host: str) -> FetchError:
    """The error for certificates of authorities that cannot be read."""
    fix = f"Check SSL_CERT_FILE and SSL_CERT_DIR, or install certificates. {_AGAIN}"
    return FetchError("the certificates of this machine cannot be read", where=host, fix=fix)


def has_route() -> bool:
    """Whether this machine has a route to public addresses, by its own routing table: nothing is sent."""
    for family, address in _ROUTES:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
        except OSError:
            continue
        return True
    return False


def check_files() -> None:
    """Raise OSError if no file can be opened now; curl and the name lookup hide that it was the reason."""
    os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def _named(number: int) -> str:
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
