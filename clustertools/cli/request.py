"""`clustertools check --request -`: what a node runs for the head. It can look, and nothing else.

One JSON object comes on standard input (`fleet.looking.Request`), JSON Lines go out: a verdict each as they
come, then the facts, then `{"kind": "end"}`, without which the answer is not whole. No config is read.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import time
import typing
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from clustertools import __version__, bounded
from clustertools import check as checking
from clustertools.check import Check
from clustertools.errors import ConfigError, Unobservable
from clustertools.fleet.looking import Request
from clustertools.fleet.typed import typed
from clustertools.host import Host
from clustertools.model import Verdict
from clustertools.render.json_lines import json_line
from clustertools.sources import facts, hardware

#: More than this is no request: 60 checks with all their limits and memory are a few hundred kilobytes.
MOST_BYTES = 8 << 20
MOST_SECONDS = 3600.0


def answer(source: BinaryIO, host: Host) -> int:
    """Read a request, look, and print. Raises ConfigError, before anything is looked at, for a bad one."""
    began = time.monotonic()
    text = source.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ConfigError(f"the request is longer than {MOST_BYTES} bytes")
    request = Request.read(text)
    checks = checking.discover(job_checks=False)
    chosen = choose(request, checks)
    limits = {name: _limits(checks[name], values) for name, values in request.limits.items()}
    count = 0
    for verdict in _look(request, chosen, limits, host):
        count += 1
        _tell("verdict", verdict)
    if request.facts:
        _tell("facts", _facts(host))
    _tell("end", {
        "verdicts": count, "elapsed_seconds": round(time.monotonic() - began, 3),
        "python": platform.python_version(), "version": __version__,
    })  # fmt: skip
    return 0


def choose(request: Request, checks: Mapping[str, Check]) -> list[Check]:
    """The checks that are asked for. Raises ConfigError for whatever a request must not hold."""
    problems = []
    if request.stage not in checking.STAGES - {"job"}:
        problems.append(f"the request has the stage {request.stage!r}, of which no node is asked")
    for key in ("limits", "timeouts"):  # elsewhere a check that is not here makes no difference
        problems += [
            f"{key} in the request names {name!r}, which is no check here"
            for name in getattr(request, key)
            if name not in checks
        ]
    seconds = request.timeout_seconds
    if seconds is not None and not 0 < seconds <= MOST_SECONDS:
        problems.append(f"timeout_seconds in the request must be up to {MOST_SECONDS:g}, not {seconds:g}")
    problems += [
        f"timeouts in the request: {name} must be above 0, not {each:g}"
        for name, each in request.timeouts.items()
        if each <= 0
    ]
    # names become words of commands (rpm -q NAME): none may be taken for an option
    problems += [
        f"{key} in the request holds {word!r}, which begins like an option"
        for key in ("expect", "limits")
        for word in _words(getattr(request, key))
        if word.startswith("-")
    ]
    if problems:
        raise ConfigError(*problems)
    if request.checks is not None and not request.checks:
        raise ConfigError("the request names no check: nothing was looked at")
    chosen = checking.select(request.checks or (), request.stage, checks)
    chosen = [
        dataclasses.replace(c, timeout_seconds=float(request.timeouts.get(c.name, c.timeout_seconds)))
        for c in chosen
        if c.name not in request.disabled
    ]
    if not chosen:
        raise ConfigError("every check of the request is disabled: nothing was looked at")
    return chosen


def _words(value: Any) -> Iterator[str]:
    """Every text in there, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from (key, *_words(each))
    elif isinstance(value, list):
        for each in value:
            yield from _words(each)


def _limits(check: Check, values: Mapping[str, Any]) -> Any:
    """The check's limits with `values` in place of the defaults. Raises ConfigError."""
    kinds = typing.get_type_hints(check.limits)
    problems, read = [], {}
    for name, value in values.items():
        try:
            read[name] = typed(kinds[name], value)
        except (KeyError, TypeError):
            problems.append(f"limits in the request: {check.name} has no {name!r} of this kind")
    if problems:
        raise ConfigError(*problems)
    try:
        return check.limits(**read)
    except ValueError as exc:  # a limit class may check itself
        raise ConfigError(f"limits in the request: {check.name}: {exc}") from exc


def _look(request: Request, chosen: list[Check], limits: Mapping[str, Any], host: Host) -> Iterator[Verdict]:
    expect = hardware.expectations(host, request.expect)

    def ask(each: Check, shared: Host) -> Verdict:
        return checking.run(
            each, shared, limits=limits.get(each.name), expect=expect,
            past=request.past.get(each.name), cluster=request.cluster,
        )  # fmt: skip

    return bounded.look(chosen, ask, host, seconds=request.timeout_seconds, cluster=request.cluster)


def _facts(host: Host) -> dict[str, Any]:
    try:
        return {"node": host.name, "facts": facts.facts(host, (), os.environ)}
    except Unobservable as exc:
        return {"node": host.name, "facts": {}, "blind": str(exc)}


def _tell(kind: str, data: Any) -> None:
    # at once, so that a head that ends us has what was known; in ASCII, whatever locale a node has
    sys.stdout.write(json_line(kind, data, ascii_only=True) + "\n")
    sys.stdout.flush()
