"""Whether what a node depends on answers: name servers, ports, the sockets of container runtimes.

    probe(host, ["tcp:head1:6817", "dns:198.18.0.53", "docker:/run/docker.sock"], deadline_seconds=3)

A look-up in libc, or a connect to a host that is away, blocks for as long as it likes; so one child
(`python -m clustertools.sources.endpoints --deadline S WHAT...`) asks all at once, each in a thread, and
prints one JSON line each when the deadline comes at the latest.

    tcp:HOST:PORT     a connection is accepted (HOST is looked up: a name proves the look-up too)
    dns:ADDRESS       the name server answers a question for the root's servers, with whatever answer
    docker:PATH       GET /_ping on the socket says OK
    grpc:PATH         the gRPC server behind the socket (containerd, CRI-O) answers with HTTP/2 settings
    http:HOST:PORT/P  a status of 200
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from clustertools.errors import Unparsable
from clustertools.host import PYTHON, Host

#: HTTP/2's connection preface, and an empty SETTINGS frame (RFC 9113, 3.4 and 6.5).
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
#: A question for the name servers of the root (RFC 1035, 4.1): recursion desired, ".", type NS, class IN.
_ROOT_QUESTION = b"\x43\x54\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one endpoint did. `error`: in words; empty when it answered. `denied`: we may not ask it."""

    what: str
    error: str = ""
    denied: bool = False
    elapsed_seconds: float = 0.0


def probe(host: Host, what: Iterable[str], *, deadline_seconds: float = 3.0) -> list[Answer]:
    """Ask all at once; one answer each. Raises Unobservable when the child failed, Unparsable."""
    what = list(what)
    if not what:
        return []
    done = host.run(
        PYTHON, "-m", "clustertools.sources.endpoints", "--deadline", f"{deadline_seconds:g}", *what,
        timeout_seconds=deadline_seconds + 5,
    ).check()  # fmt: skip
    found = []
    for line in done.stdout.splitlines():
        try:
            # {"what": "tcp:head1:6817", "error": "", "denied": false, "elapsed_seconds": 0.0004}
            answer = Answer(**json.loads(line))
            answer.error.upper(), float(answer.elapsed_seconds)
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:
            raise Unparsable("the endpoint probe printed an unknown line", line) from exc
        found.append(answer)
    if sorted(a.what for a in found) != sorted(what):
        raise Unparsable(f"the endpoint probe answered for {len(found)} of {len(what)}", done.stdout)
    return found


# ------------------------------------------------------------------ the child


def _tcp(place: str, seconds: float) -> None:
    name, _, port = place.rpartition(":")
    socket.create_connection((name.strip("[]"), int(port)), seconds).close()


def _dns(place: str, seconds: float) -> None:
    family = socket.AF_INET6 if ":" in place else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asked:
        for _ in range(2):  # a datagram may be lost
            asked.settimeout(seconds / 2)
            asked.connect((place, 53))
            with contextlib.suppress(TimeoutError):
                asked.send(_ROOT_QUESTION)
                if asked.recv(512)[:2] == _ROOT_QUESTION[:2]:
                    return
    raise TimeoutError("no answer")


def _unix(path: str, seconds: float) -> socket.socket:
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    asked.settimeout(seconds)
    asked.connect(path)
    return asked


def _docker(path: str, seconds: float) -> None:
    with _unix(path, seconds) as asked:
        asked.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
        said = asked.recv(4096).split(b"\r\n", 1)[0]
    if b" 200" not in said:
        raise OSError(f"it said {said[:60]!r}")


def _grpc(path: str, seconds: float) -> None:
    with _unix(path, seconds) as asked:
        asked.sendall(_HTTP2)
        said = asked.recv(9)
    if len(said) < 9 or said[3] != 4:
        raise OSError("it did not answer in HTTP/2")


def _http(place: str, seconds: float) -> None:
    at, _, path = place.partition("/")
    name, _, port = at.rpartition(":")
    with socket.create_connection((name, int(port)), seconds) as asked:
        asked.settimeout(seconds)
        asked.sendall(f"GET /{path} HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
        said = asked.recv(4096).split(b"\r\n", 1)[0]
    if b" 200" not in said:
        raise OSError(f"it said {said[:60]!r}")


_ASK = {"tcp": _tcp, "dns": _dns, "docker": _docker, "grpc": _grpc, "http": _http}


def _ask(what: str, seconds: float) -> Answer:
    kind, _, place = what.partition(":")
    began = time.monotonic()
    try:
        _ASK[kind](place, seconds)
    except PermissionError as exc:
        return Answer(what, str(exc), denied=True)
    except (OSError, ValueError, KeyError) as exc:
        text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        return Answer(what, text[:200], elapsed_seconds=round(time.monotonic() - began, 6))
    return Answer(what, elapsed_seconds=round(time.monotonic() - began, 6))


def main(arguments: list[str]) -> int:
    """`--deadline SECONDS WHAT...`: a JSON line for each."""
    if len(arguments) < 2 or arguments[0] != "--deadline":
        print("usage: --deadline SECONDS WHAT...", file=sys.stderr)
        return 3
    seconds = float(arguments[1])
    found: dict[str, Answer] = {}

    def ask(what: str) -> None:
        found[what] = _ask(what, seconds)

    threads = [threading.Thread(target=ask, args=(what,), daemon=True) for what in arguments[2:]]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    for what in arguments[2:]:
        silent = Answer(what, f"no answer within {seconds:g} s", elapsed_seconds=seconds)
        print(json.dumps(asdict(found.get(what, silent))))
    sys.stdout.flush()
    # a look-up that still blocks must not keep us
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
