"""Cuts a Python process, and every Python it starts, off from the network.

Python runs a `sitecustomize` that it finds on PYTHONPATH at start-up. This one adds an audit hook: connecting, sending
or looking up a name raises an OSError, unless the address is this machine's. Each attempt is also written to the file
that LLMSCRATCH_NETWORK_LOG names, so that a run which swallows the error is found out.
"""

import errno
import importlib.machinery
import importlib.util
import os
import re
import sys
from socket import gethostname

SENDS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}  # event → which argument is the address
LOOK_UPS = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0, "socket.getnameinfo": 0}
WATCHED = SENDS | LOOK_UPS
HERE = {"", "localhost", "ip6-localhost", "0.0.0.0", "::", "::1", gethostname()}


def _is_here(event: str, address) -> bool:
    """True for every name and number of this machine itself, for a Unix socket's path, and for no address at all."""
    host = address[0] if isinstance(address, tuple) else address if event in LOOK_UPS else None
    if not isinstance(host, str | bytes | bytearray):
        return True
    name = host if isinstance(host, str) else os.fsdecode(bytes(host))
    return name in HERE or re.fullmatch(r"(::ffff:)?127(\.\d+){3}", name) is not None


def _guard(event: str, arguments: tuple) -> None:
    if event not in WATCHED:
        return
    address = arguments[WATCHED[event]]
    if _is_here(event, address):
        return
    log = os.environ.get("LLMSCRATCH_NETWORK_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{event} {address!r} by process {os.getpid()} ({sys.argv[0] if sys.argv else 'python'})\n")
    raise OSError(errno.ENETUNREACH, f"the network is cut off in this run, but {event} was asked for {address!r}")


def _run_the_shadowed_one() -> None:
    """Run the `sitecustomize` of the installation, which this file hides."""
    here = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.machinery.PathFinder.find_spec(
        "sitecustomize", [p for p in sys.path if os.path.abspath(p) != here]
    )
    if spec and spec.loader:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.addaudithook(_guard)
_run_the_shadowed_one()
