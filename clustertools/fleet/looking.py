"""The passive checks of many nodes at once: what a node is asked, and what is made of what it says.

    for look in look_all(transport, tool, {node: Request() for node in nodes}, timeout_seconds=60):
        look.node, look.verdicts, look.facts, look.why_not

A node runs `clustertools check --request -`: one JSON object in, JSON Lines out. What comes back is data of a
stranger: its types are checked, the node's name is the one that we asked, and what is no answer is counted.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clustertools.errors import ConfigError
from clustertools.fleet import Answer, Fate, Transport
from clustertools.fleet.shipping import Tool
from clustertools.fleet.typed import typed
from clustertools.model import Subject, Verdict, to_data
from clustertools.text import plain

#: Raised when a node of an older version would misunderstand the request.
VERSION = 1
#: Of a node's time this share, and at most so many seconds, is for starting Python and for facts.
MARGIN, MOST_MARGIN_SECONDS = 0.25, 10.0
#: So many groups of nodes with different requests are asked at the same time.
MOST_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Request:
    """What one node is asked. Nothing of a node's own config counts there.

    `checks` None: all of `stage`. `limits`, `past` (a check's memory) and `timeouts` are by check; `expect`
    is what the node's class expects. `timeout_seconds` is for all together; None: what `look_all` leaves it.
    """

    stage: str = "preflight"
    checks: tuple[str, ...] | None = None
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    timeouts: Mapping[str, float] = field(default_factory=dict)
    expect: Mapping[str, Any] = field(default_factory=dict)
    past: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    disabled: tuple[str, ...] = ()
    cluster: str = ""
    timeout_seconds: float | None = None
    facts: bool = True

    def text(self) -> str:
        """As the JSON object that `check --request -` reads. Raises ConfigError for an infinite number."""
        try:
            return json.dumps({"v": VERSION, **to_data(self)}, sort_keys=True, allow_nan=False, default=str)
        except ValueError as exc:
            raise ConfigError(f"limits or expectations cannot be sent to a node: {exc}") from exc

    @classmethod
    def read(cls, text: str | bytes) -> Request:
        """The inverse of `text`. Raises ConfigError for anything else, an unknown key included."""
        try:
            data = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as exc:
            raise ConfigError(f"the request is not JSON: {plain(str(exc), 200)}") from exc
        if not isinstance(data, dict):
            raise ConfigError("the request must be one JSON object")
        version = data.pop("v", None)
        if version != VERSION:
            raise ConfigError(f"the request has the version {plain(repr(version), 40)}, this reads {VERSION}")
        kinds = typing.get_type_hints(cls)
        problems, values = [], {}
        for key, value in data.items():
            if key not in kinds:
                problems.append(f"the request has an unknown key {plain(key, 60)!r}")
                continue
            try:
                values[key] = typed(kinds[key], value)
            except TypeError as exc:
                problems.append(f"{key} in the request has the wrong type: {plain(str(exc), 80)}")
        if problems:
            raise ConfigError(*problems)
        return cls(**values)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


@dataclass(frozen=True, slots=True)
class NodeLook:
    """What one node said. `why_not` is empty when it said all; else `verdicts` are those that came before.

    `strange` counts the lines that were no answer (a login script's greeting, a verdict of another shape).
    """

    node: str
    verdicts: tuple[Verdict, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    fate: Fate = Fate.COMPLETED
    why_not: str = ""
    python: str = ""
    version: str = ""
    elapsed_seconds: float = 0.0
    strange: int = 0


def look_all(
    transport: Transport, tool: Tool, requests: Mapping[str, Request], *, timeout_seconds: float
) -> Iterator[NodeLook]:
    """Ask every node of `requests`, and give what each says as it comes: exactly one NodeLook a node.

    Nodes with the same request are asked in one run, up to MOST_AT_ONCE runs side by side. A node that lacks
    the tool gives why. What a node said before it died, or before the deadline, is kept. Raises what the
    transport raises, and ConfigError for a request that cannot be sent.
    """
    groups: dict[str, list[str]] = {}
    for node, request in requests.items():
        if node in tool.missing:
            answer = tool.missing[node]
            yield NodeLook(node, fate=answer.fate, why_not=answer.reason)
            continue
        groups.setdefault(_timed(request, timeout_seconds).text(), []).append(node)
    for answer in _answers(transport, tool, groups, timeout_seconds):
        yield read_answer(answer, requests[answer.node].cluster)


def _timed(request: Request, timeout_seconds: float) -> Request:
    if request.timeout_seconds is not None:
        return request
    margin = min(MOST_MARGIN_SECONDS, MARGIN * timeout_seconds)
    return replace(request, timeout_seconds=round(timeout_seconds - margin, 3))


def _answers(
    transport: Transport, tool: Tool, groups: Mapping[str, Sequence[str]], timeout_seconds: float
) -> Iterator[Answer]:
    """One Answer for every node of every group; what a transport raises is raised here."""
    told: queue.SimpleQueue[Answer | BaseException | None] = queue.SimpleQueue()
    turns = threading.Semaphore(MOST_AT_ONCE)
    stop = threading.Event()

    def ask(text: str, nodes: Sequence[str]) -> None:
        waiting = dict.fromkeys(nodes)
        try:
            with turns:
                argv = tool.argv("check", "--request", "-")
                answers = transport.run(nodes, argv, stdin=text.encode(), timeout_seconds=timeout_seconds)
                with contextlib.closing(answers):  # type: ignore[type-var]
                    for answer in answers:
                        if stop.is_set():
                            return
                        if answer.node in waiting:
                            del waiting[answer.node]
                            told.put(answer)
            for node in waiting:
                told.put(Answer(node, Fate.LOST, reason="the transport said nothing of this node"))
        except BaseException as exc:  # noqa: BLE001 - it is raised where the answers are read
            told.put(exc)
        finally:
            told.put(None)

    threads = [threading.Thread(target=ask, args=group, daemon=True) for group in groups.items()]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            one = told.get()
            if one is None:
                running -= 1
            elif isinstance(one, BaseException):
                raise one
            else:
                yield one
    finally:
        stop.set()


def read_answer(answer: Answer, cluster: str = "") -> NodeLook:
    """What one node's answer says; whatever it holds, this raises nothing."""
    text = answer.completed.stdout if answer.completed else answer.said
    verdicts, strange, facts = [], 0, {}
    end: Mapping[str, Any] = {}
    for line in text.splitlines():
        data = _line(line)
        kind = data.get("kind")
        if kind == "verdict" and (verdict := _verdict(data, answer.node, cluster)):
            verdicts.append(verdict)
        elif kind == "facts" and isinstance(told := data.get("facts"), dict):
            facts = {name: value for name, value in told.items() if value and isinstance(value, str)}
        elif kind == "end" and isinstance(data.get("verdicts"), int):
            end = data
        elif line.strip():
            strange += 1
    about = {key: plain(str(end.get(key, "")), 40) for key in ("python", "version")}
    return NodeLook(
        answer.node, tuple(verdicts), facts, answer.fate, _why_not(answer, end, len(verdicts)),
        about["python"], about["version"], answer.elapsed_seconds, strange,
    )  # fmt: skip


def _why_not(answer: Answer, end: Mapping[str, Any], count: int) -> str:
    if answer.completed is None:
        return answer.reason or f"it ended as {answer.fate.value}"
    if not end and answer.completed.truncated:
        return "it said more than is kept"
    if not end:
        said = next((line for line in reversed(answer.completed.stderr.splitlines()) if line.strip()), "")
        code = answer.completed.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the look broke off with {how}: {plain(said, 300) or 'it said nothing'}"
    if end["verdicts"] != count:
        return f"of {end['verdicts']} verdicts only {count} could be read"
    return ""


def _line(line: str) -> Mapping[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        # {"schema": 1, "kind": "verdict", "check": "gpu_ecc", ...}
        data = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) and data.get("schema") == 1 else {}


def _verdict(data: Mapping[str, Any], node: str, cluster: str) -> Verdict | None:
    """The verdict, about the node that was asked whatever it calls itself; None: it has another shape."""
    data = {key: value for key, value in data.items() if key not in ("schema", "kind")}
    if isinstance(data.get("readings"), list):
        # a number that is none (NaN) is null in JSON
        data["readings"] = [
            r for r in data["readings"] if not (isinstance(r, dict) and r.get("value", 0) is None)
        ]
    try:
        verdict = typed(Verdict, data)
    except TypeError:
        return None

    def own(subject: Subject) -> Subject:
        return replace(subject, cluster=cluster, node=node)

    return replace(
        verdict,
        subject=own(verdict.subject),
        findings=tuple(replace(f, subject=own(f.subject)) for f in verdict.findings),
        readings=tuple(replace(r, subject=own(r.subject)) for r in verdict.readings),
    )
